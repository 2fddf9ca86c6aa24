#include "engine/core.h"

#include <algorithm>
#include <string>
#include <utility>

#include "engine/prefetch.h"
#include "vmm/trace.h"

namespace weir {
namespace {

constexpr double kSmoothing = 0.1;

// When a step has ended the gates of the next are opened first, for so long, so that its kernels
// have work while its tokens are passed on; then the rest. The tokens are late by it.
constexpr uint64_t kFirstGatesNs = 200'000;
constexpr double kFirstGatesShare = 1.0 / 32;

double Smooth(double old, double now) {
  return old == 0 ? now : old + kSmoothing * (now - old);
}

RequestEvent EndEvent(FinishReason reason) {
  switch (reason) {
    case FinishReason::kCancelled: return RequestEvent::kCancelled;
    case FinishReason::kError: return RequestEvent::kFailed;
    case FinishReason::kNone:
    case FinishReason::kStop:
    case FinishReason::kLength: break;
  }
  return RequestEvent::kFinished;
}

SchedulerOptions WithLimitsOf(SchedulerOptions options, const Compute& compute) {
  options.max_logit_edits = compute.limits().max_logit_edits;
  return options;
}

}  // namespace

EngineCore::EngineCore(Driver& driver, Memory& memory, Compute& compute, Policy& policy,
                       const CoreOptions& options)
    : driver_(driver),
      memory_(memory),
      compute_(compute),
      policy_(&policy),
      options_(options),
      scheduler_(memory.blocks(), WithLimitsOf(options.scheduler, compute),
                 [this](uint32_t blocks) {
                   // Growing is best effort: the scheduler looks at what there is afterwards.
                   const Status grown = memory_.GrowKv(blocks);
                   if (!grown.ok()) ++stats_.border_refusals;
                 }),
      recorded_pointers_(compute.RecordedPointersDigest()) {
  WEIR_CHECK(options.scheduler.max_batched_tokens <= compute.limits().max_rows, "step rows");
  WEIR_CHECK(options.scheduler.max_sequences <= compute.limits().max_sequences, "sequences");
  WEIR_CHECK(options.max_model_len <= compute.limits().max_context, "context");
  link_.SetExpected(memory.backing_tier(), memory.link_bytes_per_ns());
  SetPolicy(policy);
}

EngineCore::~EngineCore() {
  while (!under_way_.empty()) {
    StepOutcome outcome;
    AdvanceBorder(UINT64_MAX);
    (void)compute_.Collect(&outcome);
    under_way_.front()->trace->Ran(outcome);
    (void)memory_.weights().EndStep();
    under_way_.pop_front();
  }
  for (auto& [id, sequence] : sequences_) scheduler_.Finish(sequence.get());
}

void EngineCore::SetPolicy(Policy& policy) {
  policy_ = &policy;
  // As if all was well: where weights are held home it passes.
  PolicySnapshot snapshot = Snapshot();
  snapshot.weights.max_granules_per_layer = memory_.max_granules_per_layer();
  snapshot.weights.max_layers_away = memory_.max_layers();
  snapshot.weights.max_in_place_per_layer = memory_.max_in_place_per_layer();
  const PolicyDecision widest =
      policy.follows_load() ? policy.Widest(snapshot.weights) : policy.Decide(snapshot);
  const auto held = memory_.KvBlocksAt(Clip(widest, snapshot.weights));
  // Where its border has no room for the weights it keeps, the one in force stays.
  const uint64_t blocks =
      held ? *held : memory_.KvBlocksAt(memory_.weights().plan().target()).value_or(0);
  // The last token is never computed: it needs no place in KV.
  max_request_tokens_ = std::min<uint64_t>(options_.max_model_len, blocks * kBlockTokens + 1);
}

Result<RequestId> EngineCore::Add(CoreRequest request) {
  if (link_.state() == LinkState::kLost) return BadState(link_.report().cause);
  const uint32_t vocab = compute_.limits().vocab_size;
  if (request.prompt.empty()) return InvalidArgument("the prompt has no tokens");
  for (const int32_t token : request.prompt) {
    if (token < 0 || static_cast<uint32_t>(token) >= vocab) {
      return InvalidArgument("prompt token " + std::to_string(token) +
                             " is outside the vocabulary [0, " + std::to_string(vocab) + ")");
    }
  }
  const uint64_t prompt = request.prompt.size();
  if (prompt >= options_.max_model_len) {
    return InvalidArgument("the prompt has " + std::to_string(prompt) +
                           " tokens; with one to generate the model's context takes at most " +
                           std::to_string(options_.max_model_len - 1));
  }
  const uint64_t room = options_.max_model_len - prompt;
  const uint64_t fits = max_request_tokens_ - std::min(max_request_tokens_, prompt);
  const uint64_t wanted = request.sampling.max_tokens == 0
                              ? std::max<uint64_t>(fits, 1)
                              : std::min<uint64_t>(request.sampling.max_tokens, room);
  if (wanted > fits) {
    return NoMemory("the prompt has " + std::to_string(prompt) + " tokens, " +
                    std::to_string(wanted) + " are to be generated, and under policy " +
                    std::string(policy_->name()) + " KV holds a request of at most " +
                    std::to_string(max_request_tokens_) + " in all");
  }
  request.sampling.max_tokens = static_cast<uint32_t>(wanted);
  WEIR_TRY(ValidateSampling(request.sampling, vocab));
  auto sequence = std::make_unique<Sequence>();
  sequence->id = next_id_++;
  sequence->arrival = sequence->id;
  sequence->prompt_tokens = static_cast<uint32_t>(prompt);
  sequence->tokens = std::move(request.prompt);
  sequence->sampling = std::move(request.sampling);
  sequence->logit_edits = MostLogitEdits(sequence->sampling, prompt + sequence->sampling.max_tokens,
                                         options_.eos_ids.size(), vocab);
  sequence->root = PrefixRoot(request.cache_salt);
  sequence->priority = request.priority;
  sequence->added_ns = driver_.Now();
  sequence->history =
      TokenHistory(sequence->sampling.has_penalties() ? TokenHistory::Keep::kTokens
                                                      : TokenHistory::Keep::kNumber);
  sequence->history.AddPrompt(sequence->tokens);
  const RequestId id = sequence->id;
  sequence->TraceEvent(RequestEvent::kAdded);
  if (sequence->sampling.has_penalties()) ++lockstep_requests_;
  scheduler_.Add(sequence.get());
  sequences_.emplace(id, std::move(sequence));
  return id;
}

Status EngineCore::Finish(RequestId id, FinishReason reason) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return NotFound("no request " + std::to_string(id));
  Retire(*it->second, reason, {});
  return OkStatus();
}

// Takes the sequence out of everything and reports its end.
void EngineCore::Retire(Sequence& sequence, FinishReason reason, Status error) {
  scheduler_.Finish(&sequence);
  sequence.TraceEvent(EndEvent(reason));
  CoreOutput output;
  output.id = sequence.id;
  output.finished = true;
  output.reason = reason;
  output.error = std::move(error);
  output.prompt_tokens = sequence.prompt_tokens;
  output.cached_tokens = sequence.cached_tokens;
  output.scheduled_ns = sequence.first_scheduled_ns;
  // A token of this step may wait to be reported: the end goes into the same record.
  if (!outputs_.empty() && outputs_.back().id == sequence.id && !outputs_.back().finished) {
    output.tokens = std::move(outputs_.back().tokens);
    outputs_.back() = std::move(output);
  } else {
    outputs_.push_back(std::move(output));
  }
  ++(reason == FinishReason::kError ? stats_.requests_failed : stats_.requests_finished);
  if (sequence.first_token_ns != 0) {
    const auto observe = reason == FinishReason::kCancelled ? &RequestWork::ObserveCancelled
                                                            : &RequestWork::ObserveEnd;
    (work_.*observe)(sequence.prefill_tokens, sequence.known_output_tokens());
  }
  if (sequence.sampling.has_penalties()) --lockstep_requests_;
  auto known = sequences_.extract(sequence.id);
  if (!under_way_.empty()) under_way_.back()->retired.push_back(std::move(known.mapped()));
}

uint32_t EngineCore::depth() const {
  return lockstep_requests_ == 0 ? compute_.depth() : 1;
}

Result<bool> EngineCore::Step() {
  step_begin_ns_ = driver_.Now();
  Result<bool> worked = ScheduleAndCollect();
  stats_.step_ns += driver_.Now() - step_begin_ns_;
  return worked;
}

Result<bool> EngineCore::ScheduleAndCollect() {
  FollowRecorder();
  AdvanceBorder(UINT64_MAX);
  if (!WEIR_TRY(WatchLink())) return !outputs_.empty();
  if (scheduler_.idle() && under_way_.empty()) {
    // Nothing to run, but weights may still be away: let the policy bring them home.
    ++idle_steps_;
    ApplyPolicy();
    return false;
  }
  while (!under_way_.empty() && under_way_.size() >= depth()) CollectStep();
  const bool keep = std::exchange(keep_border_, false);
  if (!keep && stats_.steps % options_.policy_interval == 0) {
    ApplyPolicy();
  } else {
    MoveTowardsGoal();
  }
  const bool submitted = SubmitStep();
  if (!under_way_.empty() && (!submitted || under_way_.size() >= depth())) CollectStep();
  TraceMemory();
  return true;
}

void EngineCore::Drain() {
  while (!under_way_.empty()) CollectStep();
}

// S3: nothing runs. If no border of the policy has room for the first waiting request it fails;
// never a hang, and never for a border that only is not there yet.
void EngineCore::HandleStarvation() {
  Sequence* first = scheduler_.front_waiting();
  WEIR_CHECK(first != nullptr && scheduler_.running() == 0, "an empty batch with work to do");
  const uint64_t need = CeilDiv(first->length(), kBlockTokens);
  const uint32_t available = memory_.blocks().available();
  starved_blocks_ = need > available ? need - available : 1;
  const uint32_t before = memory_.blocks().counts().capacity + memory_.pool().Available();
  ApplyPolicy();
  starved_blocks_ = 0;
  const bool room = MakeRoomFor(need);
  const uint32_t after = memory_.blocks().counts().capacity + memory_.pool().Available();
  // Even where there is room driver calls may fail, so the tries are counted.
  if ((room || after != before) && ++starved_in_a_row_ < options_.max_starved_steps) return;
  starved_in_a_row_ = 0;
  Retire(*first, FinishReason::kError,
         NoMemory("the request holds " + std::to_string(first->length()) + " tokens and needs " +
                  std::to_string(need) + " KV blocks, but only " + std::to_string(available) +
                  " can be had under policy " + std::string(policy_->name()) +
                  (link_.state() == LinkState::kHeld
                       ? "; no weights make room, for " + link_.report().cause
                       : "")));
}

// The policy has been asked. Whether so many blocks fit in the border in force, or in the policy's
// widest, which is then moved to and kept until the next step has been scheduled.
bool EngineCore::MakeRoomFor(uint64_t blocks) {
  const auto fit = [&](const EvictionTarget& target) {
    return memory_.KvBlocksAt(target).value_or(0) >= blocks;
  };
  if (fit(memory_.weights().planned().target())) return true;
  const WeightsView weights = Snapshot().weights;
  const EvictionTarget widest = Clip(policy_->Widest(weights), weights);
  if (!policy_->follows_load() || !fit(widest)) return false;
  SetBorderGoal(widest);
  keep_border_ = true;
  MoveTowardsGoal();
  return true;
}

void EngineCore::BuildBatch(const std::vector<ScheduledSequence>& scheduled,
                            StepBatch* batch) const {
  // Where the step before samples the token of each sequence; looked up in order, as both batches
  // list running sequences in order of admission.
  size_t at = 0;
  int32_t row = 0;
  const auto place_of = [&](const Sequence* sequence) {
    const std::vector<ScheduledSequence>& before = under_way_.back()->scheduled;
    for (size_t n = 0; n <= before.size(); ++n) {
      if (at == before.size()) at = 0, row = 0;
      if (before[at].sequence == sequence) return row;
      row += under_way_.back()->batch.sequences[at++].wants_logits ? 1 : 0;
    }
    WEIR_CHECK(false, "a token is sampled by no step under way");
    return 0;
  };
  for (const ScheduledSequence& s : scheduled) {
    const Sequence& q = *s.sequence;
    StepSequence step;
    step.first_row = batch->rows();
    step.rows = s.tokens;
    step.context = s.end;
    step.wants_logits = step.context == q.length();
    step.blocks = std::span(q.blocks).first(CeilDiv(step.context, kBlockTokens));
    step.sample = {.params = &q.sampling,
                   .history = &q.history,
                   .key = q.id,
                   .position = q.length(),
                   .output_tokens = q.output_tokens(),
                   .eos_tokens = options_.eos_ids};
    const uint32_t known = q.length() - q.pending;
    for (uint32_t i = s.end - s.tokens; i < s.end; ++i) {
      batch->tokens.push_back(i < known ? q.tokens[i] : -1 - place_of(&q));
      batch->positions.push_back(static_cast<int32_t>(i));
    }
    batch->sequences.push_back(step);
  }
}

bool EngineCore::SubmitStep() {
  std::unique_ptr<StepUnderWay> step = NewStep();
  scheduler_.Schedule(&step->scheduled, prompt_tokens_);
  stats_.peak_running = std::max(stats_.peak_running, scheduler_.running());
  if (step->scheduled.empty()) {
    Recycle(std::move(step));
    if (under_way_.empty() && !scheduler_.idle()) HandleStarvation();
    return false;
  }
  starved_in_a_row_ = 0;
  WEIR_DCHECK(compute_.RecordedPointersDigest() == recorded_pointers_ && compute_.recordings() == 1,
              "S1: a recorded pointer changed");
  BuildBatch(step->scheduled, &step->batch);
  step->trace.emplace(StepKind::kServing, step->batch, driver_,
                      memory_.weights().stats().steps + under_way_.size());
  for (const ScheduledSequence& s : step->scheduled) {
    if (s.sequence->first_scheduled_ns == 0)
      s.sequence->first_scheduled_ns = step->trace->start_ns();
  }
  scheduler_.OnSubmitted(step->scheduled);
  for (size_t i = 0; i < step->scheduled.size(); ++i) {
    if (!step->batch.sequences[i].wants_logits) continue;
    step->scheduled[i].sequence->tokens.push_back(-1);
    ++step->scheduled[i].sequence->pending;
  }
  Status status = Submit(*step);
  if (!status.ok()) {
    std::vector<RequestId> requests;
    for (const ScheduledSequence& s : step->scheduled) requests.push_back(s.sequence->id);
    (void)step->trace->Failed(status);
    const Status missing = memory_.weights().copy_error();
    RollBack(*step, missing);
    Drain();  // those before it are not concerned
    CountFailure(requests, status, missing);
    return true;
  }
  under_way_.push_back(std::move(step));
  return true;
}

Status EngineCore::Submit(StepUnderWay& step) {
  WeightPager& weights = memory_.weights();
  const uint64_t bytes_before = weights.stats().bytes_copied;
  WEIR_TRY(weights.BeginStep());
  step.bytes_queued = weights.stats().bytes_copied - bytes_before;
  Status submitted = ScrubBlocks();
  if (submitted.ok()) submitted = compute_.Submit(step.batch, weights);
  if (!submitted.ok()) weights.CancelStep();
  return submitted;
}

// K4: before the step that may be the first to touch them.
Status EngineCore::ScrubBlocks() {
  const std::set<BlockId>& unscrubbed = memory_.blocks().unscrubbed();
  if (unscrubbed.empty()) return OkStatus();
  const std::vector<BlockId> blocks(unscrubbed.begin(), unscrubbed.end());
  WEIR_TRY(compute_.Scrub(blocks));
  memory_.blocks().OnScrubbed();
  stats_.scrubbed_blocks += blocks.size();
  return OkStatus();
}

// Its vectors are as large as the batches of late.
std::unique_ptr<EngineCore::StepUnderWay> EngineCore::NewStep() {
  return spare_step_ ? std::move(spare_step_) : std::make_unique<StepUnderWay>();
}

void EngineCore::Recycle(std::unique_ptr<StepUnderWay> step) {
  step->trace.reset();
  step->scheduled.clear();
  step->batch.tokens.clear();
  step->batch.positions.clear();
  step->batch.sequences.clear();
  step->bytes_queued = 0;
  step->retired.clear();
  spare_step_ = std::move(step);
}

void EngineCore::CollectStep() {
  std::unique_ptr<StepUnderWay> step = std::move(under_way_.front());
  under_way_.pop_front();
  WeightPager& weights = memory_.weights();
  const WeightPagerStats before = weights.stats();
  StepOutcome outcome;
  AdvanceBorder(UINT64_MAX);
  const TimeNs begin = driver_.Now();
  Status run = compute_.Collect(&outcome);
  stats_.waited_ns += driver_.Now() - begin;
  step->trace->Ran(outcome);  // before anything is remapped because of it
  Status end = weights.EndStep();
  if (run.ok()) run = std::move(end);
  if (!run.ok()) {
    OnStepError(std::move(step), run);
    return;
  }
  AdvanceBorder(
      std::max(kFirstGatesNs, static_cast<uint64_t>(smoothed_step_ns_ * kFirstGatesShare)));
  const TimeNs stall_ns = weights.stats().stall_ns - before.stall_ns;
  const uint64_t bytes = step->bytes_queued + weights.stats().bytes_copied - before.bytes_copied;
  stats_.compute_ns += outcome.compute_ns;
  if (outcome.idle_before_ns) {
    ++stats_.queued_steps;
    stats_.queued_ns += outcome.compute_ns;
    stats_.idle_ns += *outcome.idle_before_ns;
  }
  scheduler_.OnComputed(step->scheduled);
  outputs_.reserve(outputs_.size() + outcome.samples.size());
  const uint64_t output_before = stats_.output_tokens;
  AcceptAll(*step, outcome);
  ++stats_.steps;
  failed_in_a_row_ = missing_in_a_row_ = 0;
  const TimeNs step_ns =
      compute_.depth() > 1 ? outcome.compute_ns : driver_.Now() - step->trace->start_ns();
  ObserveLink(bytes, stall_ns, step_ns);
  const uint64_t passed = weights.stats().gate_arrivals - before.gate_arrivals;
  const uint64_t waited = weights.stats().faults - before.faults;
  Observe(step->batch, step_ns, stall_ns, bytes,
          passed > 0 ? static_cast<double>(waited) / static_cast<double>(passed) : 0);
  work_.ObserveStep(memory_.blocks().counts().used, scheduler_.running(),
                    scheduler_.running_output_tokens(), stats_.output_tokens - output_before);
  step->trace->Ended(step_ns, stall_ns, bytes);
  if (keep_records_) Keep(*step, step_ns, stall_ns);
  Recycle(std::move(step));
}

void EngineCore::Keep(const StepUnderWay& step, TimeNs step_ns, TimeNs stall_ns) {
  const BlockCounts& blocks = memory_.blocks().counts();
  const TimeNs host_ns = stats_.step_ns + (driver_.Now() - step_begin_ns_) - stats_.waited_ns;
  records_.push_back({.step = stats_.steps,
                      .start_ns = step.trace->start_ns(),
                      .step_ns = step_ns,
                      .stall_ns = stall_ns,
                      .host_ns = host_ns - std::exchange(recorded_host_ns_, host_ns),
                      .rows = step.batch.rows(),
                      .running = scheduler_.running(),
                      .waiting = scheduler_.waiting(),
                      .kv_used = blocks.used,
                      .kv_cached = blocks.cached,
                      .kv_capacity = blocks.capacity,
                      .evicted_granules = memory_.weights().plan().evicted_granules()});
}

void EngineCore::Observe(const StepBatch& batch, TimeNs step_ns, TimeNs stall_ns, uint64_t streamed,
                         double waited_share) {
  smoothed_step_ns_ = Smooth(smoothed_step_ns_, static_cast<double>(step_ns));
  smoothed_stall_ns_ = Smooth(smoothed_stall_ns_, static_cast<double>(stall_ns));
  last_compute_ns_ = static_cast<double>(step_ns - std::min(stall_ns, step_ns));
  smoothed_compute_ns_ = Smooth(smoothed_compute_ns_, last_compute_ns_);
  // Kernels that read weights over the link take longer than what they compute.
  if (reads_in_place()) return;
  StepSample sample;
  sample.tokens = batch.rows();
  sample.context = static_cast<double>(batch.context_tokens());
  sample.pairs = batch.prompt_pairs();
  sample.evicted_bytes = static_cast<double>(streamed);
  sample.ahead_bytes = static_cast<double>(memory_.weights().plan().prefix_granules()) *
                       static_cast<double>(memory_.pool().granule_bytes());
  sample.stall_ns = static_cast<double>(stall_ns);
  sample.step_ns = static_cast<double>(step_ns);
  sample.streamed_evenly = memory_.weights().streamed_evenly();
  sample.waited_share = waited_share;
  cost_.Observe(sample);
}

void EngineCore::AcceptAll(StepUnderWay& step, StepOutcome& outcome) {
  size_t row = 0;
  for (size_t i = 0; i < step.scheduled.size(); ++i) {
    if (i + kPrefetchAhead < step.scheduled.size()) {
      const ScheduledSequence& later = step.scheduled[i + kPrefetchAhead];
      Prefetch(later.sequence->tokens.data() + later.end, sizeof(int32_t));
    }
    const ScheduledSequence& s = step.scheduled[i];
    Sequence& sequence = *s.sequence;
    const bool sampled = step.batch.sequences[i].wants_logits;
    stats_.prompt_tokens_computed += s.tokens - (sampled ? 1 : 0);
    sequence.prefill_tokens += s.tokens - (sampled ? 1 : 0);
    if (!sampled) continue;
    Result<SampledToken>& token = outcome.samples[row++];
    if (sequence.state == SequenceState::kFinished) {
      stats_.wasted_rows += s.tokens;
      continue;
    }
    if (!token.ok()) {
      Retire(sequence, FinishReason::kError, token.status());
      continue;
    }
    Accept(s, std::move(*token));
  }
}

void EngineCore::Accept(const ScheduledSequence& scheduled, SampledToken token) {
  Sequence& sequence = *scheduled.sequence;
  CoreOutput output;
  output.id = sequence.id;
  output.prompt_tokens = sequence.prompt_tokens;
  output.cached_tokens = sequence.cached_tokens;
  output.scheduled_ns = sequence.first_scheduled_ns;
  const int32_t id = token.token;
  WEIR_CHECK(sequence.pending > 0 && sequence.tokens[scheduled.end] == -1, "one token a place");
  sequence.tokens[scheduled.end] = id;
  --sequence.pending;
  sequence.history.AddOutput(id);
  if (sequence.first_token_ns == 0) {
    sequence.first_token_ns = driver_.Now();
    sequence.TraceEvent(RequestEvent::kFirstToken);
  }
  ++stats_.output_tokens;
  output.tokens.push_back(std::move(token));
  outputs_.push_back(std::move(output));
  const FinishReason reason = CheckFinish(sequence, id);
  if (reason != FinishReason::kNone) Retire(sequence, reason, {});
}

FinishReason EngineCore::CheckFinish(const Sequence& sequence, int32_t token) const {
  const SamplingParams& p = sequence.sampling;
  const uint32_t output = sequence.known_output_tokens();
  if (output >= p.min_tokens) {
    const auto is = [token](const std::vector<int32_t>& ids) {
      return std::find(ids.begin(), ids.end(), token) != ids.end();
    };
    if ((!p.ignore_eos && is(options_.eos_ids)) || is(p.stop_token_ids)) return FinishReason::kStop;
  }
  if (output >= p.max_tokens || sequence.prompt_tokens + output >= options_.max_model_len) {
    return FinishReason::kLength;
  }
  return FinishReason::kNone;
}

void EngineCore::OnStepError(std::unique_ptr<StepUnderWay> step, const Status& error) {
  std::vector<RequestId> requests;
  for (const ScheduledSequence& s : step->scheduled) requests.push_back(s.sequence->id);
  (void)step->trace->Failed(error);
  const Status missing = memory_.weights().copy_error();
  // What was submitted after it read KV and tokens that are not there.
  std::vector<std::unique_ptr<StepUnderWay>> failed;
  failed.push_back(std::move(step));
  while (!under_way_.empty()) {
    failed.push_back(std::move(under_way_.front()));
    under_way_.pop_front();
    StepOutcome void_outcome;
    AdvanceBorder(UINT64_MAX);
    (void)compute_.Collect(&void_outcome);
    failed.back()->trace->Ran(void_outcome);
    (void)memory_.weights().EndStep();
    (void)failed.back()->trace->Failed(error);
  }
  for (auto it = failed.rbegin(); it != failed.rend(); ++it) RollBack(**it, missing);
  CountFailure(requests, error, missing);
}

// As if |step|, the last one submitted, had never been.
void EngineCore::RollBack(StepUnderWay& step, const Status& missing) {
  ++stats_.failed_steps;
  if (!missing.ok()) ++stats_.steps_without_weights;
  scheduler_.OnFailed(step.scheduled);
  for (size_t i = 0; i < step.scheduled.size(); ++i) {
    Sequence& sequence = *step.scheduled[i].sequence;
    if (!step.batch.sequences[i].wants_logits) continue;
    sequence.tokens.pop_back();
    --sequence.pending;
  }
}

void EngineCore::CountFailure(const std::vector<RequestId>& requests, const Status& error,
                              const Status& missing) {
  missing_in_a_row_ = missing.ok() ? 0 : missing_in_a_row_ + 1;
  if (++failed_in_a_row_ < options_.max_failed_steps) return;  // the same work is tried again
  failed_in_a_row_ = 0;
  if (missing_in_a_row_ >= options_.max_failed_steps) {
    // No request's fault. The next step begins with bringing weights home: here the border may be
    // in the middle of a move.
    missing_in_a_row_ = 0;
    weights_missing_ = missing;
    return;
  }
  for (const RequestId id : requests) {
    const auto it = sequences_.find(id);
    if (it == sequences_.end()) continue;
    Retire(*it->second, FinishReason::kError, error.WithContext("the step failed repeatedly"));
  }
}

// --- Trace ---------------------------------------------------------------------------------------

void EngineCore::FollowRecorder() {
  Tracer* const tracer = GetTracer();
  if (tracer == nullptr || !tracer->FollowRecorder()) return;
  TraceEmit(TraceType::kSnapshotBegin, 0);
  memory_.TraceState();
  scheduler_.TraceState();
  TraceEmit(TraceType::kSnapshotEnd, 0);
  TraceMemory();
}

// What there is after a step: the queue, KV, and what is short.
void EngineCore::TraceMemory() {
  const BlockCounts& blocks = memory_.blocks().counts();
  TraceEmit(TraceType::kQueue, 0, scheduler_.running(), scheduler_.waiting(), blocks.used,
            blocks.cached, blocks.free, blocks.capacity);
  if (!TraceEnabled(TraceType::kPressure)) return;
  const uint32_t free = memory_.pool().counts().free - memory_.pool().counts().committed;
  PressureLevel level = PressureLevel::kNone;
  if (blocks.free == 0) {
    level = free >= memory_.kv().geometry().granules_per_extent ? PressureLevel::kFreeGranules
            : blocks.cached > 0                                 ? PressureLevel::kCached
                                                                : PressureLevel::kFull;
  }
  if (level == traced_pressure_) return;
  traced_pressure_ = level;
  TraceEmit(TraceType::kPressure, static_cast<uint8_t>(level), level, free);
}

std::vector<CoreOutput> EngineCore::TakeOutputs() {
  return std::exchange(outputs_, {});
}

Status EngineCore::CheckIntegrity() {
  WEIR_TRY(memory_.CheckIntegrity());
  if (sequences_.empty() && memory_.blocks().counts().used != 0) {
    return BadState(std::to_string(memory_.blocks().counts().used) +
                    " KV blocks are used by nobody");
  }
  if (compute_.recordings() != 1) return BadState("a step was recorded twice (S1)");
  if (compute_.RecordedPointersDigest() != recorded_pointers_) {
    return BadState("a recorded pointer changed (S1)");
  }
  return OkStatus();
}

}  // namespace weir
