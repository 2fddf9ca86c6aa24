// Compressed weights: matrices of bf16, row-major [rows, cols], without loss in 0.758 of their
// bytes.
//
// Nearly all weights of a block have one of a few exponents. Of a weight's two bytes the low one
// (the exponent's last bit and the mantissa) stays as it is; the high one (sign and seven bits of
// exponent) becomes a code of four bits: the sign, and which of eight high values the exponent has
// (DFloat11, Zhang et al. 2025, arXiv 2504.11651, uses a Huffman code, which is shorter, for
// weights that are expanded before they are read). Codes of one length let a product read a block
// as it is and put every weight where its thread needs it: a thread's 32 weights of a block are
// what it has of the operand A of four "wgmma" of 64 x 16 (PTX ISA, "Register Fragments for
// wgmma.mma_async.m64nNk16"). A table of eight bytes is what the GPU's byte permutation ("prmt")
// looks up four of at once.
//
// A block is 128 rows x 64 columns. Blocks lie tile by tile (a tile: 128 rows), in a tile by
// column; rows beyond the matrix's last are zeros. Weight i (0 to 31) of thread t (0 to 255) of a
// block:
//   row    64 (t / 128) + 16 (t / 32 % 4) + t % 32 / 4 + 8 (i / 2 % 2)
//   column 16 (i / 8) + 8 (i / 4 % 2) + 2 (t % 4) + i % 2
// and in the block's bytes, with j = i % 8:
//   low byte  byte 4096 (i / 16) + 16 t + i % 16
//   code      in the little-endian word at kCodesAt + 16 t + 4 (i / 8): which value in bits 4 j to
//             4 j + 2; the sign in bit 8 j + 7 for j < 4, in bit 8 (j - 4) + 3 otherwise
//   header    little-endian words at kHeaderAt. Word 0: in bit 8 + w whether warp w has patches
//             (threads 32 w to 32 w + 31), their number in the bits from 16 on. Words 1 and 2: the
//             eight values, a byte each. Then the patches: thread in bits 0 to 7, i in bits 8 to
//             12, value in bits 16 to 22.
// A patch gives the value of a weight that has none of the eight; its code has the first one. A
// block has room for kMostPatches of them: matrices that need more cannot be compressed.
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
inline constexpr int kFirstPatch = 3;  // the header's word
inline constexpr int kMostPatches = 29;
inline constexpr int kValues = 8;       // that have a code
inline constexpr int kAllValues = 128;  // of seven bits of exponent

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

// The value of a weight, bf16 bits.
constexpr uint32_t ValueOf(uint32_t weight) {
  return weight >> 8 & 0x7f;
}
// Where weight |i|'s value and sign lie in their word.
constexpr int ValueBit(int i) {
  return 4 * (i % 8);
}
constexpr int SignBit(int i) {
  return i % 8 < 4 ? 8 * (i % 8) + 7 : 8 * (i % 8 - 4) + 3;
}

// Where weight |i| of thread |t| lies in its block.
constexpr int RowOf(int t, int i) {
  return 64 * (t / 128) + 16 * (t / 32 % 4) + t % 32 / 4 + 8 * (i / 2 % 2);
}
constexpr int ColOf(int t, int i) {
  return 16 * (i / 8) + 8 * (i / 4 % 2) + 2 * (t % 4) + i % 2;
}

}  // namespace weir::compressed
