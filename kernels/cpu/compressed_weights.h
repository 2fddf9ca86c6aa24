// The reference of kernels/compressed_weights.h: matrices to compressed bytes and back.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels/compressed_weights.h"

namespace weir::cpu {

// The first block that needs more than compressed::kMostPatches patches, in the order of the bytes.
struct CompressFailure {
  int64_t tile = 0;
  int64_t column_block = 0;  // of 64 columns
  int patches = 0;           // that it needs
};

// Compresses |weights|, bf16 bits, row-major [rows, cols], into the compressed::Bytes(rows, cols)
// bytes at |out|, which are undefined after a failure. rows at least 1, compressed::Fits(cols).
//
// The bytes are a function of the matrix alone. A block's eight values are those that most of its
// weights have, of two that as many have the smaller one, in ascending order; patches are in
// ascending order of (thread, i), words without a patch are zero. Rows beyond the last count for
// nothing: their bytes and codes are 0, which expands to a number of the block's first value, so
// nothing may use those rows of a product.
std::optional<CompressFailure> CompressWeights(const uint16_t* weights, int64_t rows, int64_t cols,
                                               uint8_t* out);

// As CompressWeights, of the tiles [first_tile, first_tile + tiles): |weights| and |out| are the
// whole matrix's, touched at those tiles only, so that several threads may share a matrix.
std::optional<CompressFailure> CompressTiles(const uint16_t* weights, int64_t rows, int64_t cols,
                                             int64_t first_tile, int64_t tiles, uint8_t* out);

// The inverse: the |rows| rows of the matrix, without what pads the last tile.
void ExpandWeights(const uint8_t* compressed, int64_t rows, int64_t cols, uint16_t* out);

}  // namespace weir::cpu
