#include "kernels/cpu/compressed_weights.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace weir::cpu {
namespace {

using compressed::ColOf;
using compressed::kBlockBytes;
using compressed::kCodesAt;
using compressed::kCols;
using compressed::kExponents;
using compressed::kHeaderAt;
using compressed::kMostPatches;
using compressed::kRows;
using compressed::kThreads;
using compressed::kWeightsPerThread;
using compressed::RowOf;

constexpr int kAllExponents = 256;
constexpr int kCodeWords = kWeightsPerThread / 8;

// A block's weights within the matrix.
template <typename T>
struct Block {
  T& at(int t, int i) const { return first[RowOf(t, i) * cols + ColOf(t, i)]; }

  T* first;
  int64_t cols;
  int64_t rows;  // before the matrix's last, at most 128
};

int SignByteOf(int t, int i) {
  return 16 * kThreads * (i / 16) + 16 * t + i % 16;
}
int CodeShiftOf(int i) {
  return 16 * (i % 2) + 4 * (i / 2 % 4);
}
int ExponentOf(uint32_t weight) {
  return static_cast<int>(weight >> 7 & 0xff);
}

// Little-endian, whatever the host.
void StoreWord(uint8_t* p, uint32_t word) {
  for (int i = 0; i < 4; ++i) p[i] = static_cast<uint8_t>(word >> (8 * i));
}
uint32_t LoadWord(const uint8_t* p) {
  return uint32_t{p[0]} | uint32_t{p[1]} << 8 | uint32_t{p[2]} << 16 | uint32_t{p[3]} << 24;
}

int BestBase(const Block<const uint16_t>& block) {
  // Neighbours often have one exponent: each counts elsewhere, so that none waits for another.
  std::array<std::array<int, kAllExponents>, 4> counts{};
  for (int64_t r = 0; r < block.rows; ++r) {
    const uint16_t* row = block.first + r * block.cols;
    for (size_t c = 0; c < kCols; ++c) ++counts[c % 4][static_cast<size_t>(ExponentOf(row[c]))];
  }
  const auto count = [&](int exponent) {
    const auto e = static_cast<size_t>(exponent);
    return counts[0][e] + counts[1][e] + counts[2][e] + counts[3][e];
  };
  int covered = 0;
  for (int e = 0; e < kExponents; ++e) covered += count(e);
  int best = 0;
  int most = covered;
  for (int base = 1; base <= kAllExponents - kExponents; ++base) {
    covered += count(base + kExponents - 1) - count(base - 1);
    if (covered <= most) continue;
    best = base;
    most = covered;
  }
  return best;
}

// Gives how many patches the block needs.
int CompressBlock(const Block<const uint16_t>& block, uint8_t* out) {
  const int base = BestBase(block);
  auto word0 = static_cast<uint32_t>(base);
  int patches = 0;
  std::memset(out, 0, kBlockBytes);
  for (int t = 0; t < kThreads; ++t) {
    std::array<uint32_t, kCodeWords> codes{};
    for (int i = 0; i < kWeightsPerThread; ++i) {
      if (RowOf(t, i) >= block.rows) continue;
      const uint32_t weight = block.at(t, i);
      out[SignByteOf(t, i)] = static_cast<uint8_t>((weight >> 8 & 0x80) | (weight & 0x7f));
      const int exponent = ExponentOf(weight);
      if (exponent >= base && exponent < base + kExponents) {
        codes[static_cast<size_t>(i / 8)] |= static_cast<uint32_t>(exponent - base)
                                             << CodeShiftOf(i);
        continue;
      }
      word0 |= 1u << (8 + t / 32);
      if (++patches > kMostPatches) continue;
      StoreWord(out + kHeaderAt + 4 * patches, static_cast<uint32_t>(t | i << 8 | exponent << 16));
    }
    for (int j = 0; j < kCodeWords; ++j) {
      StoreWord(out + kCodesAt + 16 * t + 4 * j, codes[static_cast<size_t>(j)]);
    }
  }
  StoreWord(out + kHeaderAt, word0 | static_cast<uint32_t>(patches) << 16);
  return patches;
}

void ExpandBlock(const uint8_t* compressed, const Block<uint16_t>& block) {
  const uint32_t word0 = LoadWord(compressed + kHeaderAt);
  const uint32_t base = word0 & 0xff;
  for (int t = 0; t < kThreads; ++t) {
    for (int i = 0; i < kWeightsPerThread; ++i) {
      if (RowOf(t, i) >= block.rows) continue;
      const uint32_t codes = LoadWord(compressed + kCodesAt + 16 * t + 4 * (i / 8));
      const uint32_t exponent = base + (codes >> CodeShiftOf(i) & 0xf);
      const uint32_t sign = compressed[SignByteOf(t, i)];
      block.at(t, i) = static_cast<uint16_t>((sign & 0x80) << 8 | exponent << 7 | (sign & 0x7f));
    }
  }
  const auto patches = static_cast<int>(word0 >> 16);
  for (int j = 1; j <= patches; ++j) {
    const uint32_t patch = LoadWord(compressed + kHeaderAt + 4 * j);
    uint16_t& weight =
        block.at(static_cast<int>(patch & 0xff), static_cast<int>(patch >> 8 & 0x1f));
    weight = static_cast<uint16_t>((weight & 0x807fu) | (patch >> 16 & 0xff) << 7);
  }
}

// Block |column_block| of |tile|.
template <typename T>
Block<T> BlockOf(T* matrix, int64_t rows, int64_t cols, int64_t tile, int64_t column_block) {
  const int64_t row = tile * kRows;
  return {matrix + row * cols + column_block * kCols, cols, std::min(kRows, rows - row)};
}

}  // namespace

std::optional<CompressFailure> CompressTiles(const uint16_t* weights, int64_t rows, int64_t cols,
                                             int64_t first_tile, int64_t tiles, uint8_t* out) {
  const int64_t column_blocks = cols / kCols;
  for (int64_t tile = first_tile; tile < first_tile + tiles; ++tile) {
    for (int64_t c = 0; c < column_blocks; ++c) {
      const int patches = CompressBlock(BlockOf(weights, rows, cols, tile, c),
                                        out + (tile * column_blocks + c) * kBlockBytes);
      if (patches > kMostPatches) return CompressFailure{tile, c, patches};
    }
  }
  return std::nullopt;
}

std::optional<CompressFailure> CompressWeights(const uint16_t* weights, int64_t rows, int64_t cols,
                                               uint8_t* out) {
  return CompressTiles(weights, rows, cols, 0, compressed::Tiles(rows), out);
}

void ExpandWeights(const uint8_t* compressed, int64_t rows, int64_t cols, uint16_t* out) {
  const int64_t column_blocks = cols / kCols;
  for (int64_t tile = 0; tile < compressed::Tiles(rows); ++tile) {
    for (int64_t c = 0; c < column_blocks; ++c) {
      ExpandBlock(compressed + (tile * column_blocks + c) * kBlockBytes,
                  BlockOf(out, rows, cols, tile, c));
    }
  }
}

}  // namespace weir::cpu
