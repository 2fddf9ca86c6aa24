// A checkpoint on disk that nobody trained: a published shape, bytes from a seed.
#pragma once

#include <cstdint>
#include <string>

#include "engine/model/checkpoint.h"
#include "vmm/status.h"

namespace weir {

// Opens the safetensors checkpoint of |config_path|'s shape in |directory|, which is written first
// (bf16, config.json beside it) unless it is there. |layers| 0: as many as the shape has. kIo: the
// directory or its disk.
Result<Checkpoint> OpenSyntheticCheckpoint(const std::string& config_path, uint32_t layers,
                                           const std::string& directory);

// Takes |path|'s pages out of the page cache, so that the next read is the disk's. kIo.
Status DropFromPageCache(const std::string& path);

}  // namespace weir
