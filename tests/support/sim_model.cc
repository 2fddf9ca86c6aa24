#include "tests/support/sim_model.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace weir::testing {
namespace {

constexpr uint64_t Mix(uint64_t x) {  // splitmix64's finaliser
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

}  // namespace

WeightLayout SimModel::Layout(const SimModelShape& shape) {
  WeightLayout layout;
  layout.lookup.bytes = shape.lookup_bytes;
  uint64_t at = shape.lookup_bytes + shape.resident_bytes;
  for (uint32_t l = 0; l < shape.layers; ++l) {
    std::vector<WeightSegment> segments;
    for (uint32_t s = 0; s < shape.segments; ++s) {
      // Odd sizes, so that segments begin and end inside granules.
      const uint64_t bytes = shape.segment_bytes + 64 * ((l + s) % 3);
      segments.push_back({at, bytes});
      at += bytes;
    }
    layout.layers.push_back(std::move(segments));
  }
  layout.region_bytes = at;
  return layout;
}

std::byte SimModel::WeightByte(uint64_t offset) {
  return static_cast<std::byte>(Mix(offset / 8) >> (8 * (offset % 8)));
}

std::vector<std::byte> SimModel::WeightBytes(const SimModelShape& shape) {
  std::vector<std::byte> bytes(Layout(shape).region_bytes);
  for (uint64_t i = 0; i < bytes.size(); ++i) bytes[i] = WeightByte(i);
  return bytes;
}

uint64_t SimModel::Digest(std::span<const std::byte> bytes, uint64_t seed) {
  uint64_t h = seed;
  for (size_t i = 0; i < bytes.size(); i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + i, std::min<size_t>(8, bytes.size() - i));
    h = Mix(h ^ word);
  }
  return h;
}

uint64_t SimModel::Word(int32_t token, uint64_t position, uint64_t weight_digest, uint64_t tenant) {
  return Mix(static_cast<uint64_t>(token) ^ (position << 32) ^ weight_digest ^ Mix(tenant));
}

std::vector<int32_t> SimModel::Expected(const SimModelShape& shape, std::span<const int32_t> prompt,
                                        uint32_t count, uint64_t tenant) {
  const std::vector<std::byte> weights = WeightBytes(shape);
  uint64_t digest = 0;
  for (const auto& layer : Layout(shape).layers) {
    for (const WeightSegment& s : layer) {
      digest = Digest(std::span(weights).subspan(s.offset, s.bytes), digest);
    }
  }
  std::vector<int32_t> tokens(prompt.begin(), prompt.end());
  uint64_t context = 0;
  size_t folded = 0;
  for (uint32_t i = 0; i < count; ++i) {
    for (; folded < tokens.size(); ++folded) {
      context = Mix(context ^ Word(tokens[folded], folded, digest, tenant));
    }
    tokens.push_back(static_cast<int32_t>(context % shape.vocab));
  }
  return {tokens.begin() + static_cast<std::ptrdiff_t>(prompt.size()), tokens.end()};
}

SimCompute::SimCompute(Driver& driver, const SimModelShape& shape, const ComputeLimits& limits,
                       const Memory& memory, std::function<void(uint64_t)> advance, uint32_t depth)
    : driver_(driver),
      shape_(shape),
      limits_(limits),
      memory_(memory),
      advance_(std::move(advance)),
      layout_(SimModel::Layout(shape)),
      depth_(depth) {}

Status SimCompute::Arrive(Pending& step, uint32_t gate) {
  return step.device ? step.device->Arrive(gate) : step.gates->Arrive(gate);
}

Status SimCompute::Depart(Pending& step, uint32_t gate) {
  if (step.device) return step.device->Depart(gate);
  step.gates->Depart(gate);
  return OkStatus();
}

Result<uint64_t> SimCompute::ReadWeights(Pending& step) {
  uint64_t digest = 0;
  uint32_t gate = 0;
  std::vector<std::byte> bytes(layout_.lookup.bytes);
  if (!bytes.empty()) WEIR_TRY(driver_.Read(memory_.weights + layout_.lookup.offset, bytes));
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != SimModel::WeightByte(layout_.lookup.offset + i)) {
      return DataLoss("wrong bytes in the lookup table");
    }
  }
  for (const auto& layer : layout_.layers) {
    for (const WeightSegment& s : layer) {
      WEIR_TRY(Arrive(step, gate));
      bytes.resize(s.bytes);
      WEIR_TRY(driver_.Read(memory_.weights + s.offset, bytes));
      digest = SimModel::Digest(bytes, digest);
      advance_(shape_.segment_ns);
      WEIR_TRY(Depart(step, gate++));
    }
  }
  return digest;
}

Status SimCompute::Scrub(std::span<const BlockId> blocks) {
  scrubs_.insert(scrubs_.end(), blocks.begin(), blocks.end());
  return OkStatus();
}

Status SimCompute::Submit(const StepBatch& batch, StepGates& gates) {
  Pending step{.batch = batch,
               .blocks = {},
               .scrubs = {},
               .submitted_ns = driver_.Now(),
               .gates = &gates,
               .device = {}};
  const DeviceGates device = gates.device_gates();
  if (device.produced != 0) step.device.emplace(driver_, device, advance_);
  uint32_t prompt_rows = 0;
  for (StepSequence& s : step.batch.sequences) {
    step.blocks.emplace_back(s.blocks.begin(), s.blocks.end());
    s.blocks = {};
    if (s.rows > 1) prompt_rows += s.rows;
  }
  most_prompt_rows = std::max(most_prompt_rows, prompt_rows);
  if (Status failed = submit_fails ? submit_fails() : OkStatus(); !failed.ok()) {
    if (failed_submits_run) {
      step.scrubs = std::exchange(scrubs_, {});
      failed_submit_.emplace(std::move(step));
    }
    RunFailedSubmit();
    return failed;
  }
  step.scrubs = std::exchange(scrubs_, {});
  pending_.push_back(std::move(step));
  return OkStatus();
}

void SimCompute::RunFailedSubmit() {
  if (!failed_submit_ || !pending_.empty()) return;
  Pending step = std::move(*failed_submit_);
  failed_submit_.reset();
  StepOutcome nobodys;
  (void)Run(step, &nobodys);
}

Status SimCompute::Collect(StepOutcome* outcome) {
  Pending step = std::move(pending_.front());
  pending_.pop_front();
  *outcome = {};
  const TimeNs begin = driver_.Now();
  Status status = Run(step, outcome);
  outcome->compute_ns = driver_.Now() - begin;
  if (step.device) {
    outcome->begin_ns = begin;
    outcome->end_ns = driver_.Now();
    if (clock_off) {
      const int64_t earliest =
          static_cast<int64_t>(step.submitted_ns) - static_cast<int64_t>(begin);
      const int64_t off = std::clamp(clock_off(), earliest, int64_t{0});
      outcome->begin_ns += static_cast<uint64_t>(off);
      outcome->end_ns += static_cast<uint64_t>(off);
      outcome->clock_error_ns = clock_error_ns;
      step.device->ShiftClock(off, clock_error_ns);
    }
  }
  if (step.device) {
    // What a failed step sampled is there for the one behind it, as bad as it is.
    if (status.ok() && step.device->armed()) status = step.gates->Report(step.device->log());
  } else if (!status.ok()) {
    sampled_.clear();
  }
  RunFailedSubmit();
  return status;
}

Status SimCompute::Run(Pending& step, StepOutcome* outcome) {
  const StepBatch& batch = step.batch;
  const std::array<std::byte, kBlockTokens * 8> zeroes{};
  for (const BlockId block : step.scrubs) {
    WEIR_TRY(driver_.Write(WordAddress(block, 0), zeroes));
  }
  const uint64_t digest = WEIR_TRY(ReadWeights(step));
  logits_.clear();
  for (size_t i = 0; i < batch.sequences.size(); ++i) {
    const StepSequence& s = batch.sequences[i];
    const std::vector<BlockId>& blocks = step.blocks[i];
    const uint64_t tenant = tenant_of && s.sample.params ? tenant_of(s.sample.key) : 0;
    if (tenant_of) {
      WEIR_TRY(
          LookForCanaries(blocks, s, tenant, static_cast<uint64_t>(batch.positions[s.first_row])));
    }
    for (uint32_t r = s.first_row; r < s.first_row + s.rows; ++r) {
      const auto p = static_cast<uint64_t>(batch.positions[r]);
      int32_t token = batch.tokens[r];
      if (token < 0) {
        const auto before = static_cast<size_t>(-token - 1);
        if (before >= sampled_.size()) return BadState("the step before sampled no such token");
        token = sampled_[before];
      }
      const uint64_t word = SimModel::Word(token, p, digest, tenant);
      if (tenant != 0) writer_.emplace(word, tenant);
      WEIR_TRY(
          driver_.Write(WordAddress(blocks[p / 16], p % 16), std::as_bytes(std::span(&word, 1))));
      advance_(shape_.token_ns);
    }
    if (!s.wants_logits) continue;
    uint64_t context = 0;
    for (uint32_t p = 0; p < s.context; ++p) {
      uint64_t word = 0;
      WEIR_TRY(driver_.Read(WordAddress(blocks[p / 16], p % 16),
                            std::as_writable_bytes(std::span(&word, 1))));
      context = Mix(context ^ word);
    }
    std::vector<float> row(shape_.vocab, 0.0F);
    row[context % shape_.vocab] = 1.0F;
    logits_.push_back(std::move(row));
  }
  SampleOnHost(
      batch, sampler_, [this](uint32_t row) { return std::span(logits_[row]); }, outcome);
  sampled_.clear();
  for (const Result<SampledToken>& s : outcome->samples) {
    sampled_.push_back(s.ok() ? s->token : -1);
  }
  return OkStatus();
}

// Blocks that |s| writes into hold what its own tenant wrote, or nobody's.
Status SimCompute::LookForCanaries(std::span<const BlockId> blocks, const StepSequence& s,
                                   uint64_t tenant, uint64_t first_position) {
  std::array<uint64_t, kBlockTokens> words{};
  for (uint64_t b = first_position / kBlockTokens; b * kBlockTokens < s.context; ++b) {
    WEIR_TRY(driver_.Read(WordAddress(blocks[b], 0), std::as_writable_bytes(std::span(words))));
    for (const uint64_t word : words) {
      const auto it = writer_.find(word);
      if (it != writer_.end() && it->second != tenant) ++canaries_seen_;
    }
  }
  return OkStatus();
}

Result<std::vector<float>> SimCompute::ReadLogits(uint32_t row) {
  return logits_[row];
}

}  // namespace weir::testing
