// Compressed weights: matrices of bf16, row-major [rows, cols], without loss in 0.758 of their
// bytes.
//
// Nearly all weights of a block have one of 16 neighbouring exponents: of a weight's 16 bits, sign
// and mantissa stay as they are and the exponent becomes a code of four bits (DFloat11, Zhang et
// al. 2025, arXiv 2504.11651, uses a Huffman code, which is shorter, for weights that are expanded
// before they are read). Codes of one length let a product read a block as it is and put every
// weight where its thread needs it: a thread's 32 weights of a block are what it has of the operand
// A of four "wgmma" of 64 x 16 (PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16").
//
// A block is 128 rows x 64 columns. Blocks lie tile by tile (a tile: 128 rows), in a tile by
// column; rows beyond the matrix's last are zeros. Weight i (0 to 31) of thread t (0 to 255) of a
// block:
//   row    64 (t / 128) + 16 (t / 32 % 4) + t % 32 / 4 + 8 (i / 2 % 2)
//   column 16 (i / 8) + 8 (i / 4 % 2) + 2 (t % 4) + i % 2
// and in the block's bytes:
//   sign and mantissa  bits 7 and 0 to 6 of byte 4096 (i / 16) + 16 t + i % 16
//   code               bits 16 (i % 2) + 4 (i / 2 % 4) to + 3 of the little-endian word at
//                      kCodesAt + 16 t + 4 (i / 8)
//   header             little-endian words at kHeaderAt. Word 0: the exponent of code 0 in bits 0
//   to
//                      7, in bit 8 + w whether warp w (threads 32 w to 32 w + 31) has patches,
//                      their number in the bits from 16 on. Then the patches: thread in bits 0 to
//                      7, i in bits 8 to 12, exponent in bits 16 to 23.
// A patch gives the exponent of a weight that is none of the 16; its code is 0. A block has room
// for kMostPatches of them: matrices that need more cannot be compressed.
#pragma once

#include <cstdint>

namespace weir::compressed {

inline constexpr int64_t kRows = 128;
inline constexpr int64_t kCols = 64;
inline constexpr int kThreads = 256;
inline constexpr int kWeightsPerThread = 32;
inline constexpr int kCodesAt = 8192;
inline constexpr int kHeaderAt = 12288;
inline constexpr int kBlockBytes = 12416;
inline constexpr int kMostPatches = 31;
inline constexpr int kExponents = 16;  // that have a code

// Whether a matrix of |cols| columns has this form.
constexpr bool Fits(int64_t cols) {
  return cols > 0 && cols % kCols == 0;
}
constexpr int64_t Tiles(int64_t rows) {
  return (rows + kRows - 1) / kRows;
}
// Bytes of a matrix; Fits(cols).
constexpr int64_t Bytes(int64_t rows, int64_t cols) {
  return Tiles(rows) * (cols / kCols) * kBlockBytes;
}

// Where weight |i| of thread |t| lies in its block.
constexpr int RowOf(int t, int i) {
  return 64 * (t / 128) + 16 * (t / 32 % 4) + t % 32 / 4 + 8 * (i / 2 % 2);
}
constexpr int ColOf(int t, int i) {
  return 16 * (i / 8) + 8 * (i / 4 % 2) + 2 * (t % 4) + i % 2;
}

}  // namespace weir::compressed
