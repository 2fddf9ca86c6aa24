// Compressing matrices to kernels/compressed_weights.h on the device, and expanding them again.
#pragma once

#include <cstdint>

#include "kernels/compressed_weights.h"
#include "kernels/cuda/launch.h"

namespace weir::cuda {

// Compresses a matrix to the bytes of cpu::CompressWeights, bit for bit (rows beyond the last have
// sign and mantissa 0 and code 0). Each block that needs more than compressed::kMostPatches patches
// adds 1 to |failed|; its bytes are undefined.
struct CompressParams {
  const Bf16* weights = nullptr;  // [rows, cols], 16-byte aligned
  int64_t rows = 0;
  int64_t cols = 0;            // a multiple of 64
  uint8_t* out = nullptr;      // compressed::Bytes(rows, cols), 16-byte aligned
  uint32_t* failed = nullptr;  // the caller sets it to 0
};
LaunchStatus CompressWeights(const CompressParams& params, const Launch& launch);

// The weights that were compressed. Whole tiles of compressed::kRows rows may be taken from the
// middle of a matrix.
struct ExpandParams {
  const uint8_t* compressed = nullptr;  // of [rows, cols], 16-byte aligned
  int64_t rows = 0;
  int64_t cols = 0;         // a multiple of 64
  Bf16* weights = nullptr;  // [rows, cols], 16-byte aligned
};
LaunchStatus ExpandWeights(const ExpandParams& params, const Launch& launch);

}  // namespace weir::cuda
