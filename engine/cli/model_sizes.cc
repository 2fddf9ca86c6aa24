#include "engine/cli/model_sizes.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/backend.h"
#include "engine/engine.h"
#include "engine/memory.h"
#include "engine/open_model.h"
#include "vmm/types.h"

namespace weir::cli {

Result<ModelSizes> MeasureModel(const EngineOptions& options) {
  if (options.model.empty()) return InvalidArgument("no model given; use --model PATH");
  const Checkpoint checkpoint = WEIR_TRY(OpenCheckpoint(options));
  ModelSizes m;
  m.config = checkpoint.config();
  m.stored_bytes = checkpoint.stored_bytes();
  m.tokenizer = WEIR_TRY(OpenTokenizer(checkpoint.text_files()));
  m.has_chat_template = !checkpoint.text_files().chat_template.empty();
  m.max_model_len = options.max_model_len != 0
                        ? std::min(options.max_model_len, m.config.max_position)
                        : m.config.max_position;
  const auto backend = WEIR_TRY(MakeBackend(options, m.config,
                                            {.max_rows = options.max_num_batched_tokens,
                                             .max_sequences = options.max_num_seqs,
                                             .max_context = m.max_model_len,
                                             .vocab_size = m.config.vocab_size}));
  MemoryOptions memory;
  backend->Describe(&memory);
  m.weight_bytes = memory.weights.region_bytes;
  m.scratch_bytes = memory.scratch_bytes;
  m.kv_block_bytes = memory.kv_block_bytes;
  memory.granule_bytes = options.granule;
  memory.kv_least_blocks = CeilDiv(std::min(m.max_model_len, kLeastRequestTokens), kBlockTokens);
  m.least_at_home_bytes = WEIR_TRY(Memory::LeastAtHome(backend->driver(), memory));
  return m;
}

std::string LeastBudget(const EngineOptions& options) {
  // A budget of one byte is refused before anything is loaded, with the reason.
  EngineOptions tiny = options;
  tiny.hbm_budget = 1;
  tiny.trace = {.attach = false};
  const auto engine = Engine::Open(tiny);
  if (engine.ok()) return "any budget";
  const std::string& message = engine.status().message();
  const size_t colon = message.find(": ");
  if (engine.status().code() != StatusCode::kNoMemory || colon == std::string::npos) {
    return engine.status().ToString();
  }
  return message.substr(colon + 2);
}

TightBudget MakeTightBudget(const ModelSizes& sizes, const EngineOptions& options, double tokens,
                            double share) {
  TightBudget t;
  const auto blocks = static_cast<uint64_t>(std::ceil(tokens / kBlockTokens));
  t.kv_wanted_bytes = options.max_num_seqs * blocks * sizes.kv_block_bytes;
  const uint64_t fixed = sizes.weight_bytes + sizes.scratch_bytes;
  const auto given = static_cast<uint64_t>(static_cast<double>(t.kv_wanted_bytes) * share);
  // `resident` is to run in it too.
  t.bytes = AlignUp(std::max(fixed + given, sizes.least_at_home_bytes), kMiB);
  return t;
}

}  // namespace weir::cli
