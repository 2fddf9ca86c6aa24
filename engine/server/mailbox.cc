#include "engine/server/mailbox.h"

#include <algorithm>

namespace weir::server {
namespace {

void Add(QueuedDemand* sum, const QueuedDemand& one) {
  sum->requests += one.requests;
  sum->blocks += one.blocks;
  sum->expected_blocks += one.expected_blocks;
}

void Subtract(QueuedDemand* sum, const QueuedDemand& one) {
  sum->requests -= one.requests;
  sum->blocks -= one.blocks;
  sum->expected_blocks -= one.expected_blocks;
}

}  // namespace

Status Mailbox::CheckOpen() const {
  if (health_ == Health::kFailed) return BadState("the engine failed: " + failure_.ToString());
  if (aborted_) return BadState("the server has shut down");
  return OkStatus();
}

Status Mailbox::Reserve(const std::string& tenant) {
  const MutexLock lock(mutex_);
  WEIR_TRY(CheckOpen());
  if (health_ == Health::kDraining) return BadState("the server is shutting down");
  if (stats_.link.state == LinkState::kLost) return BadState(stats_.link.cause);
  if (reserved_ + queue_.size() >= options_.max_queued_requests) {
    return NoMemory("the queue holds its " + std::to_string(options_.max_queued_requests) +
                    " requests (max_queued_requests); try again later");
  }
  const auto known = reserved_of_.find(tenant);
  const uint32_t reserved = known == reserved_of_.end() ? 0 : known->second;
  if (reserved + queue_.waiting_of(tenant) >= options_.max_queued_per_tenant) {
    return ShouldWait("this client's " + std::to_string(options_.max_queued_per_tenant) +
                      " places in the queue are taken (max_queued_per_tenant); try again later");
  }
  ++reserved_;
  ++reserved_of_[tenant];
  return OkStatus();
}

void Mailbox::Unreserve(const std::string& tenant) {
  {
    const MutexLock lock(mutex_);
    --reserved_;
    const auto at = reserved_of_.find(tenant);
    if (--at->second == 0) reserved_of_.erase(at);
  }
  settled_.notify_all();
}

Result<uint64_t> Mailbox::Put(RequestEntry entry) {
  uint64_t ticket = 0;
  {
    const MutexLock lock(mutex_);
    WEIR_TRY(CheckOpen());
    const uint64_t tokens = queue_.prompt_tokens() + entry.prompt_tokens;
    if (!queue_.empty() && tokens > options_.max_queued_tokens) {
      return NoMemory("the queue holds " + std::to_string(queue_.prompt_tokens()) +
                      " prompt tokens; with this request's " + std::to_string(entry.prompt_tokens) +
                      " they would be more than max_queued_tokens, " +
                      std::to_string(options_.max_queued_tokens) + "; try again later");
    }
    ticket = next_ticket_++;
    entry.ticket = ticket;
    entry.demand.requests = 1;
    entry.demand.blocks = CeilDiv(entry.prompt_tokens, kBlockTokens);
    const uint64_t end = entry.max_tokens == 0
                             ? limits_.max_model_len
                             : std::min<uint64_t>(limits_.max_model_len,
                                                  uint64_t{entry.prompt_tokens} + entry.max_tokens);
    entry.demand.expected_blocks = CeilDiv(end, kBlockTokens);
    Add(&queued_, entry.demand);
    queue_.Push({.ticket = ticket,
                 .tenant = entry.tenant,
                 .priority = entry.request.priority,
                 .prompt_tokens = entry.prompt_tokens});
    if (entry.deadline_ns != 0) deadlines_.emplace(entry.deadline_ns, ticket);
    --reserved_;
    const auto at = reserved_of_.find(entry.tenant);
    if (--at->second == 0) reserved_of_.erase(at);
    ++unfinished_;
    waiting_.emplace(ticket, std::move(entry));
  }
  wake_.notify_one();
  return ticket;
}

void Mailbox::Cancel(uint64_t ticket) {
  {
    const MutexLock lock(mutex_);
    cancels_.push_back(ticket);
  }
  wake_.notify_one();
}

void Mailbox::BeginDrain() {
  if (health_ == Health::kReady) health_ = Health::kDraining;
}

bool Mailbox::Drain(TimeNs timeout_ns) {
  const TimeNs start = MonotonicNow();
  bool in_time = true;
  MutexLock lock(mutex_);
  BeginDrain();
  while (unfinished_ > 0 || reserved_ > 0) {
    const TimeNs waited = MonotonicNow() - start;
    if (waited >= timeout_ns || aborted_) {
      in_time = false;
      break;
    }
    lock.WaitFor(settled_, std::min<TimeNs>(timeout_ns - waited, 1'000'000'000));
  }
  // What an Abort ended meanwhile did not end in time, however soon it was gone.
  if (in_time && !cut_short_) return true;
  CutShort();
  wake_.notify_one();
  // Reservations end with an error at Put; they need not be waited for.
  while (unfinished_ > 0) lock.Wait(settled_);
  return false;
}

void Mailbox::Abort() {
  {
    const MutexLock lock(mutex_);
    BeginDrain();
    CutShort();
  }
  wake_.notify_one();
  settled_.notify_all();
}

void Mailbox::CutShort() {
  aborted_ = true;
  cut_short_ = cut_short_ || unfinished_ > 0 || reserved_ > 0;
}

void Mailbox::Stop() {
  {
    const MutexLock lock(mutex_);
    BeginDrain();
    CutShort();
    stopped_ = true;
  }
  wake_.notify_one();
  settled_.notify_all();
}

AsyncStats Mailbox::stats() const {
  const MutexLock lock(mutex_);
  AsyncStats stats = stats_;
  stats.health = health_;
  stats.failure = failure_;
  if (health_ == Health::kReady && stats_.link.state == LinkState::kLost) {
    stats.health = Health::kNotReady;
    stats.failure = BadState(stats_.link.cause);
  }
  stats.queued = static_cast<uint32_t>(queue_.size());
  stats.queued_tokens = queue_.prompt_tokens();
  stats.unfinished = unfinished_;
  return stats;
}

RequestEntry Mailbox::Release(uint64_t ticket) {
  auto node = waiting_.extract(ticket);
  WEIR_CHECK(!node.empty(), "a queued ticket has an entry");
  Subtract(&queued_, node.mapped().demand);
  return std::move(node.mapped());
}

bool Mailbox::TakeWaiting(uint64_t ticket, RequestEntry* entry) {
  if (!queue_.Remove(ticket)) return false;
  *entry = Release(ticket);
  return true;
}

void Mailbox::EndOverdue(TimeNs now, Intake* intake) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const uint64_t ticket = deadlines_.begin()->second;
    deadlines_.erase(deadlines_.begin());
    Status late = Cancelled("the request's deadline passed before it was done");
    RequestEntry entry;
    if (TakeWaiting(ticket, &entry)) {
      entry.end = std::move(late);
      intake->ended.push_back(std::move(entry));
    } else {
      intake->end_running.emplace_back(ticket, std::move(late));
    }
  }
}

void Mailbox::Feed(Room room, Intake* intake) {
  while (room.sequences > 0 && room.tokens > 0) {
    const std::optional<QueuedRequest> next = queue_.Pop();
    if (!next) return;
    --room.sequences;
    room.tokens -= std::min<uint64_t>(room.tokens, next->prompt_tokens);
    intake->feed.push_back(Release(next->ticket));
  }
}

bool Mailbox::HasWork() const {
  return !queue_.empty() || !cancels_.empty() || stopped_;
}

Intake Mailbox::Take(Room room, TimeNs wait_ns) {
  Intake intake;
  MutexLock lock(mutex_);
  if (wait_ns == kForever) {
    while (!HasWork()) lock.Wait(wake_);
  } else if (wait_ns > 0 && !HasWork()) {
    lock.WaitFor(wake_, wait_ns);  // early is fine: the loop comes back
  }
  for (const uint64_t ticket : std::exchange(cancels_, {})) {
    RequestEntry entry;
    if (TakeWaiting(ticket, &entry)) {
      intake.ended.push_back(std::move(entry));
    } else {
      intake.end_running.emplace_back(ticket, OkStatus());
    }
  }
  EndOverdue(MonotonicNow(), &intake);
  if (aborted_) {
    while (const std::optional<QueuedRequest> next = queue_.Pop()) {
      RequestEntry entry = Release(next->ticket);
      entry.end = BadState("the server shut down before the request was done");
      intake.ended.push_back(std::move(entry));
    }
    intake.end_all = true;
  } else {
    Feed(room, &intake);
  }
  intake.stop = stopped_;
  intake.queued = queued_;
  return intake;
}

void Mailbox::Settle(Settlement settlement) {
  {
    const MutexLock lock(mutex_);
    for (const auto& [tenant, tokens] : settlement.output_tokens) {
      queue_.ChargeOutput(tenant, tokens);
    }
    for (const auto& [ticket, deadline] : settlement.ended) {
      if (deadline != 0) deadlines_.erase({deadline, ticket});
      --unfinished_;
    }
    stats_ = std::move(settlement.stats);
  }
  if (!settlement.ended.empty()) settled_.notify_all();
}

std::vector<RequestEntry> Mailbox::Fail(Status failure) {
  std::vector<RequestEntry> entries;
  const MutexLock lock(mutex_);
  health_ = Health::kFailed;
  failure_ = std::move(failure);
  while (const std::optional<QueuedRequest> next = queue_.Pop()) {
    entries.push_back(Release(next->ticket));
  }
  return entries;
}

void Mailbox::AwaitStop() {
  MutexLock lock(mutex_);
  while (!stopped_) lock.Wait(wake_);
}

}  // namespace weir::server
