// What a model and its memory would weigh, without loading it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/model/model_config.h"
#include "engine/options.h"
#include "engine/text/tokenizer.h"
#include "vmm/status.h"

namespace weir::cli {

struct ModelSizes {
  ModelConfig config;
  uint64_t stored_bytes = 0;         // of the files
  uint64_t weight_bytes = 0;         // in memory, in the compute back-end's layout
  uint64_t scratch_bytes = 0;        // step buffers under the scheduler's limits
  uint64_t kv_block_bytes = 0;       // 16 tokens
  uint64_t least_at_home_bytes = 0;  // Memory::LeastAtHome
  uint32_t max_model_len = 0;
  std::unique_ptr<Tokenizer> tokenizer;  // null: none
  bool has_chat_template = false;
};

// Reads headers and text files only.
Result<ModelSizes> MeasureModel(const EngineOptions& options);

// The engine's own account of the least budget: "weights ... (of which at most ... can be lent),
// step buffers ...; the least that runs is ...".
std::string LeastBudget(const EngineOptions& options);

struct TightBudget {
  uint64_t bytes = 0;
  uint64_t kv_wanted_bytes = 0;
};
// Weights, step buffers and |share| of the KV that max_num_seqs sequences of |tokens| each hold.
TightBudget MakeTightBudget(const ModelSizes& sizes, const EngineOptions& options, double tokens,
                            double share);

}  // namespace weir::cli
