#include "bench/engine/steady_load.h"

#include <algorithm>
#include <utility>

namespace weir::bench {

SteadyLoad::SteadyLoad(Engine& engine, const SteadyLoadOptions& options)
    : engine_(engine), options_(options) {
  for (uint32_t i = 0; i < options.shared; ++i) {
    shared_.push_back(static_cast<int32_t>(random_() % engine.model().vocab_size));
  }
  for (uint32_t i = 0; options.prefill == 0 && i < options.batch; ++i) {
    prompts_.push_back(Prompt());
  }
}

std::vector<int32_t> SteadyLoad::Prompt() {
  std::vector<int32_t> prompt = shared_;
  while (prompt.size() < options_.context) {
    prompt.push_back(static_cast<int32_t>(random_() % engine_.model().vocab_size));
  }
  return prompt;
}

Status SteadyLoad::Submit(std::vector<int32_t> prompt, uint32_t max_tokens) {
  GenerationRequest request;
  request.prompt_tokens = std::move(prompt);
  request.sampling.temperature = 0;
  request.sampling.ignore_eos = true;
  if (max_tokens > 0) request.sampling.max_tokens = max_tokens;
  const RequestId id = WEIR_TRY(engine_.Submit(std::move(request)));
  if (options_.prefill == 0) running_.push_back(id);
  ++unfinished_;
  return OkStatus();
}

Status SteadyLoad::Step() {
  // Two steps may be under way, and one more is planned.
  const uint64_t enough = options_.prefill == 0 ? 0 : 4 * (options_.prefill / options_.context + 1);
  while (unfinished_ < enough) WEIR_TRY(Submit(Prompt(), 1));
  if (!WEIR_TRY(engine_.Step())) return BadState("the load ended");
  for (const GenerationOutput& out : engine_.TakeOutputs()) {
    if (!out.error.ok()) return out.error;
    if (!out.finished) continue;
    if (options_.prefill == 0) return BadState("a sequence came to the end of its context");
    --unfinished_;
  }
  return OkStatus();
}

Status SteadyLoad::End() {
  for (const RequestId id : std::exchange(running_, {})) WEIR_TRY(engine_.Cancel(id));
  unfinished_ = 0;
  while (WEIR_TRY(engine_.Step())) {
  }
  (void)engine_.TakeOutputs();
  return OkStatus();
}

Status SteadyLoad::Begin() {
  const bool decodes = options_.prefill == 0;
  const uint32_t rows = decodes ? options_.batch : options_.prefill;
  const BlockManager& blocks = engine_.core().memory().blocks();
  const std::vector<StepRecord>& records = engine_.core().step_records();
  if (!decodes && !records.empty()) return OkStatus();
  WEIR_TRY(End());
  const PrefixCacheStats before = blocks.prefix_stats();
  for (const std::vector<int32_t>& prompt : prompts_) WEIR_TRY(Submit(prompt, 0));
  do {
    WEIR_TRY(Step());
  } while (records.empty() || records.back().rows != rows ||
           (decodes && records.back().running != options_.batch));
  const PrefixCacheStats& after = blocks.prefix_stats();
  const uint64_t queried = after.queried_tokens - before.queried_tokens;
  cached_share_ = static_cast<double>(after.hit_tokens - before.hit_tokens) /
                  static_cast<double>(std::max<uint64_t>(1, queried));
  return OkStatus();
}

}  // namespace weir::bench
