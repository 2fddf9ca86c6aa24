// Opening a model as a user names it: its checkpoint, and its tokenizer.
#pragma once

#include <memory>

#include "engine/model/checkpoint.h"
#include "engine/options.h"
#include "engine/text/tokenizer.h"
#include "vmm/status.h"

namespace weir {

// The checkpoint that |options| names; with dummy_weights, made up from a config.json, or from a
// directory that holds one and maybe a tokenizer. Reads headers only.
Result<Checkpoint> OpenCheckpoint(const EngineOptions& options);

// Null when the model comes without a tokenizer (a dummy, a directory with weights only).
Result<std::unique_ptr<Tokenizer>> OpenTokenizer(const ModelTextFiles& files);

}  // namespace weir
