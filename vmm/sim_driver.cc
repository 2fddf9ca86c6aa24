#include "vmm/sim_driver.h"

#include <algorithm>
#include <cstring>

#include "vmm/checked_math.h"
#include "vmm/event_number.h"

namespace weir {
namespace {

// Not canonical on x86-64, so dereferencing a simulated address faults.
constexpr VirtAddr kFirstAddress = VirtAddr{1} << 62;
constexpr VirtAddr kCounterBase = (VirtAddr{1} << 62) + (VirtAddr{1} << 61);
constexpr uint64_t kCounterBytes = 64;
// What unwritten memory holds: "contents are unspecified" must not mean zero.
constexpr std::byte kUnwritten{0xCD};

}  // namespace

SimDriver::Options SimDriver::MeasuredCosts(Options options) {
  options.create_ns = 20'000;
  options.map_ns = 1'400;
  options.set_access_ns = 32'000;
  options.unmap_ns = 20'000;
  return options;
}

Result<std::unique_ptr<SimDriver>> SimDriver::Create(const Options& options) {
  if (!IsPowerOfTwo(options.granularity_bytes)) {
    return InvalidArgument("granularity " + std::to_string(options.granularity_bytes) +
                           " is no power of two");
  }
  const bool rates_ok = options.hbm_bytes_per_s > 0 && options.host_link.in_bytes_per_s > 0 &&
                        options.host_link.out_bytes_per_s > 0 &&
                        options.peer_link.in_bytes_per_s > 0 &&
                        options.peer_link.out_bytes_per_s > 0;
  if (!rates_ok) return InvalidArgument("a simulated bandwidth must be greater than 0");
  if (!(options.busy_factor >= 1)) {
    return InvalidArgument("busy_factor " + std::to_string(options.busy_factor) +
                           "; accepted is 1 or more");
  }
  return std::unique_ptr<SimDriver>(new SimDriver(options));
}

SimDriver::SimDriver(const Options& options)
    : options_(options),
      faults_(options.seed),
      table_(options.granularity_bytes),
      next_address_(kFirstAddress) {
  properties_.name = "sim";
  properties_.device = options.device;
  properties_.granularity_bytes = options.granularity_bytes;
  properties_.hbm_bytes = options.hbm_bytes;
  properties_.virtual_time = true;
  properties_.has_peer = options.peer_bytes != 0;
}

SimDriver::~SimDriver() = default;

// --- Physical memory
// -------------------------------------------------------------------------------

Result<AllocId> SimDriver::Create(Tier tier, uint64_t bytes) {
  if (tier == Tier::kNvme || (tier == Tier::kPeer && options_.peer_bytes == 0)) {
    return Unsupported("the simulated device has no tier " + std::string(TierName(tier)));
  }
  WEIR_TRY(table_.CheckSize("allocation", bytes));
  const uint64_t cap = tier == Tier::kHbm    ? options_.hbm_bytes
                       : tier == Tier::kPeer ? options_.peer_bytes
                                             : options_.host_bytes;
  uint64_t& used = used_[static_cast<size_t>(tier)];
  if (cap != 0 && (bytes > cap || used > cap - bytes)) {
    return NoMemory("tier " + std::string(TierName(tier)) + " has " + std::to_string(cap - used) +
                    " of " + std::to_string(cap) + " bytes left, " + std::to_string(bytes) +
                    " asked");
  }
  WEIR_TRY(faults_.OnCall(SimCall::kCreate));
  used += bytes;
  const AllocId id = table_.AddAllocation(tier, bytes, 0);
  AdvanceBy(options_.create_ns);
  return id;
}

Status SimDriver::Release(AllocId alloc) {
  WEIR_TRY(table_.CheckRelease(alloc));
  const MappingTable::Allocation& a = *table_.Find(alloc);
  used_[static_cast<size_t>(a.tier)] -= a.bytes;
  contents_.erase(alloc);
  table_.ApplyRelease(alloc);
  return OkStatus();
}

// --- Virtual memory
// --------------------------------------------------------------------------------

Result<VirtAddr> SimDriver::Reserve(uint64_t bytes, uint64_t alignment) {
  WEIR_TRY(table_.CheckSize("reservation", bytes));
  if (!IsPowerOfTwo(alignment)) {
    return InvalidArgument("alignment " + std::to_string(alignment) + " is no power of two");
  }
  WEIR_TRY(faults_.OnCall(SimCall::kReserve));
  const uint64_t align = std::max(alignment, options_.granularity_bytes);
  const auto base = CheckedAlignUp(next_address_, align);
  const auto end = base ? CheckedAdd(*base, bytes) : std::nullopt;
  if (!end || *end > kCounterBase - options_.granularity_bytes) {
    return NoMemory("no address space for " + std::to_string(bytes) + " bytes");
  }
  next_address_ = *end + options_.granularity_bytes;  // a gap, so that overruns are caught
  table_.AddReservation(*base, bytes);
  return *base;
}

Status SimDriver::Free(VirtAddr base) {
  WEIR_TRY(table_.CheckFree(base));
  table_.ApplyFree(base);
  return OkStatus();
}

TimeNs SimDriver::CallNs(TimeNs rest_ns) const {
  const bool busy =
      std::any_of(streams_.begin(), streams_.end(), [](const Stream& s) { return s.running; });
  return busy ? static_cast<TimeNs>(static_cast<double>(rest_ns) * options_.busy_factor) : rest_ns;
}

void SimDriver::AwaitCopyEngine() {
  const TimeNs limit = now_ + options_.unmap_waits_for_copies_ns;
  bool waited = false;
  while (now_ < limit) {
    while (!in_loop_ && Step(now_)) {  // what can start has started
    }
    TimeNs end = 0;  // of the copy that ends last
    for (const Stream& s : streams_) {
      const auto* copy = s.running ? std::get_if<CopyOp>(&s.queue.front()) : nullptr;
      if (copy != nullptr && TierAt(copy->src) != TierAt(copy->dst)) end = std::max(end, s.end);
    }
    if (end <= now_) break;
    waited = true;
    AdvanceTo(std::min(end, limit));
  }
  if (waited) AdvanceBy(options_.unmap_handover_ns);
}

Status SimDriver::Map(VirtAddr at, AllocId alloc) {
  WEIR_TRY(table_.CheckMap(at, alloc));
  WEIR_TRY(faults_.OnCall(SimCall::kMap));
  table_.ApplyMap(at, alloc);
  AdvanceBy(CallNs(options_.map_ns));
  return OkStatus();
}

Status SimDriver::SetAccess(VirtAddr at, uint64_t bytes, Access access) {
  WEIR_TRY(table_.CheckSetAccess(at, bytes));
  WEIR_TRY(faults_.OnCall(SimCall::kSetAccess));
  table_.ApplySetAccess(at, bytes, access);
  if (options_.set_access_ns != 0) {
    uint64_t mappings = 0;
    for (VirtAddr p = at; p < at + bytes; p += table_.mapping(p).bytes) ++mappings;
    AdvanceBy(CallNs(options_.set_access_ns) * mappings);
  }
  return OkStatus();
}

Status SimDriver::Unmap(VirtAddr at) {
  WEIR_TRY(table_.CheckUnmap(at));
  WEIR_TRY(faults_.OnCall(SimCall::kUnmap));
  NoteUnmapHazards(at, table_.mapping(at).bytes);
  AwaitCopyEngine();
  table_.ApplyUnmap(at);
  AdvanceBy(CallNs(options_.unmap_ns));
  return OkStatus();
}

// --- Contents
// --------------------------------------------------------------------------------------

void SimDriver::Load(VirtAddr at, std::span<std::byte> out) const {
  while (!out.empty()) {
    VirtAddr begin = 0;
    const MappingTable::Mapping* m = table_.Covering(at, &begin);
    WEIR_CHECK(m != nullptr, "load of an unmapped simulated address");
    const uint64_t offset = at - begin;
    const uint64_t n = std::min<uint64_t>(out.size(), m->bytes - offset);
    const auto it = contents_.find(m->alloc);
    const uint64_t kept = it == contents_.end() ? 0 : it->second.size();
    const uint64_t have = kept > offset ? std::min(n, kept - offset) : 0;
    if (have != 0) std::memcpy(out.data(), it->second.data() + offset, have);
    std::fill(out.begin() + static_cast<ptrdiff_t>(have), out.begin() + static_cast<ptrdiff_t>(n),
              kUnwritten);
    out = out.subspan(n);
    at += n;
  }
}

void SimDriver::Store(VirtAddr at, std::span<const std::byte> in) {
  while (!in.empty()) {
    VirtAddr begin = 0;
    const MappingTable::Mapping* m = table_.Covering(at, &begin);
    WEIR_CHECK(m != nullptr, "store to an unmapped simulated address");
    const uint64_t offset = at - begin;
    const uint64_t n = std::min<uint64_t>(in.size(), m->bytes - offset);
    const uint64_t keep =
        options_.content_bytes == 0 ? m->bytes : std::min(options_.content_bytes, m->bytes);
    if (offset < keep) {
      std::vector<std::byte>& bytes = contents_[m->alloc];
      if (bytes.empty()) bytes.assign(keep, kUnwritten);
      std::memcpy(bytes.data() + offset, in.data(), std::min(n, keep - offset));
    }
    in = in.subspan(n);
    at += n;
  }
}

Status SimDriver::Read(VirtAddr src, std::span<std::byte> dst) {
  if (src >= kCounterBase) {
    const size_t index = WEIR_TRY(GateWordIndex(src));
    if (dst.size() != sizeof(uint64_t)) return InvalidArgument("a gate word has 8 bytes");
    std::memcpy(dst.data(), &counters_[index].value, sizeof(uint64_t));
    return OkStatus();
  }
  WEIR_TRY(table_.CheckAccess(src, dst.size(), Access::kRead));
  Load(src, dst);
  return OkStatus();
}

Status SimDriver::Write(VirtAddr dst, std::span<const std::byte> src) {
  if (dst >= kCounterBase) {
    const size_t index = WEIR_TRY(GateWordIndex(dst));
    if (src.size() != sizeof(uint64_t)) return InvalidArgument("a gate word has 8 bytes");
    NoteWriteHazards(dst);
    std::memcpy(&counters_[index].value, src.data(), sizeof(uint64_t));
    return OkStatus();
  }
  WEIR_TRY(table_.CheckAccess(dst, src.size(), Access::kReadWrite));
  Store(dst, src);
  return OkStatus();
}

// --- Counters
// --------------------------------------------------------------------------------------

Result<size_t> SimDriver::WordIndex(VirtAddr word) const {
  const uint64_t index = (word - kCounterBase) / kCounterBytes;
  if (word < kCounterBase || (word - kCounterBase) % kCounterBytes != 0 ||
      index >= counters_.size() || !counters_[index].alive) {
    return InvalidArgument("there is no counter or gate word at " + HexAddress(word));
  }
  return index;
}

Result<size_t> SimDriver::CounterIndex(VirtAddr counter) const {
  const size_t index = WEIR_TRY(WordIndex(counter));
  if (counters_[index].gate_word) {
    return InvalidArgument(HexAddress(counter) + " is a gate word, no counter");
  }
  return index;
}

Result<size_t> SimDriver::GateWordIndex(VirtAddr word) const {
  const size_t index = WEIR_TRY(WordIndex(word));
  if (!counters_[index].gate_word) {
    return InvalidArgument(HexAddress(word) + " is a counter, no gate word");
  }
  return index;
}

VirtAddr SimDriver::NewWord(bool gate_word) {
  counters_.push_back({.alive = true, .gate_word = gate_word});
  return kCounterBase + (counters_.size() - 1) * kCounterBytes;
}

Status SimDriver::DestroyWord(VirtAddr word, size_t index) {
  for (const Stream& stream : streams_) {
    for (const Op& op : stream.queue) {
      const auto* wait = std::get_if<WaitCounterOp>(&op);
      const auto* write = std::get_if<WriteCounterOp>(&op);
      if ((wait != nullptr && wait->counter == word) ||
          (write != nullptr && write->counter == word)) {
        return BadState("the word at " + HexAddress(word) + " is used by queued work of " +
                        stream.name);
      }
    }
  }
  counters_[index].alive = false;
  return OkStatus();
}

Result<VirtAddr> SimDriver::CreateCounter() {
  return NewWord(false);
}

Status SimDriver::DestroyCounter(VirtAddr counter) {
  return DestroyWord(counter, WEIR_TRY(CounterIndex(counter)));
}

Result<VirtAddr> SimDriver::CreateGateWord() {
  return NewWord(true);
}

Status SimDriver::DestroyGateWord(VirtAddr word) {
  return DestroyWord(word, WEIR_TRY(GateWordIndex(word)));
}

size_t SimDriver::word_count() const {
  return static_cast<size_t>(
      std::count_if(counters_.begin(), counters_.end(), [](const Counter& c) { return c.alive; }));
}

uint64_t SimDriver::LoadCounter(VirtAddr counter) {
  return counters_[CounterIndex(counter).value()].value;
}

void SimDriver::StoreCounter(VirtAddr counter, uint64_t value) {
  counters_[CounterIndex(counter).value()].value = value;
}

// --- Mistakes
// --------------------------------------------------------------------------------------

void SimDriver::Violation(std::string what) {
  ++violations_;
  if (violation_list_.size() < 100) {
    violation_list_.push_back("at " + std::to_string(now_) + " ns: " + std::move(what));
  }
}

void SimDriver::NoteWriteHazards(VirtAddr word) {
  for (const Stream& stream : streams_) {
    if (!stream.error.ok()) continue;  // its work has no effect any more
    for (const Op& op : stream.queue) {
      const auto* write = std::get_if<WriteCounterOp>(&op);
      if (write == nullptr || write->counter != word) continue;
      Violation("the gate word at " + HexAddress(word) +
                " is written while queued work of stream " + stream.name + " writes it");
      return;
    }
  }
}

void SimDriver::NoteUnmapHazards(VirtAddr at, uint64_t bytes) {
  const auto overlaps = [&](VirtAddr b, uint64_t n) { return b < at + bytes && at < b + n; };
  for (const Stream& stream : streams_) {
    if (!stream.error.ok()) continue;  // its work has no effect any more
    for (size_t i = 0; i < stream.queue.size(); ++i) {
      const Op& op = stream.queue[i];
      bool hit = false;
      if (const auto* copy = std::get_if<CopyOp>(&op)) {
        hit = overlaps(copy->dst, copy->bytes) || overlaps(copy->src, copy->bytes);
      } else if (const auto* fill = std::get_if<FillOp>(&op)) {
        hit = overlaps(fill->dst, fill->bytes);
      } else if (const auto* compute = std::get_if<ComputeOp>(&op)) {
        for (const SimTouch& t : compute->touches) {
          hit = hit || (i == 0 && stream.running && overlaps(t.at, t.bytes));
        }
      }
      if (hit) {
        Violation("M2: unmap of " + HexAddress(at) + ", which queued work of stream " +
                  stream.name + " still touches");
        break;
      }
    }
  }
}

}  // namespace weir
