#include "kernels/cpu/compressed_weights.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

namespace weir::cpu {
namespace {

using compressed::ColOf;
using compressed::kAllValues;
using compressed::kBlockBytes;
using compressed::kCodesAt;
using compressed::kCols;
using compressed::kFirstPatch;
using compressed::kHeaderAt;
using compressed::kMostPatches;
using compressed::kRows;
using compressed::kThreads;
using compressed::kValues;
using compressed::kWeightsPerThread;
using compressed::RowOf;
using compressed::SignBit;
using compressed::ValueBit;
using compressed::ValueOf;

constexpr int kCodeWords = kWeightsPerThread / 8;

// A block's weights within the matrix.
template <typename T>
struct Block {
  T& at(int t, int i) const { return first[RowOf(t, i) * cols + ColOf(t, i)]; }

  T* first;
  int64_t cols;
  int64_t rows;  // before the matrix's last, at most 128
};

int LowByteOf(int t, int i) {
  return 16 * kThreads * (i / 16) + 16 * t + i % 16;
}

// Little-endian, whatever the host.
void StoreWord(uint8_t* p, uint32_t word) {
  for (int i = 0; i < 4; ++i) p[i] = static_cast<uint8_t>(word >> (8 * i));
}
uint32_t LoadWord(const uint8_t* p) {
  return uint32_t{p[0]} | uint32_t{p[1]} << 8 | uint32_t{p[2]} << 16 | uint32_t{p[3]} << 24;
}

using Table = std::array<uint8_t, kValues>;

// The values that most weights have, the smaller of two that as many have; ascending.
Table BestTable(const Block<const uint16_t>& block) {
  // Neighbours often have one value: each counts elsewhere, so that none waits for another.
  std::array<std::array<int, kAllValues>, 4> counts{};
  for (int64_t r = 0; r < block.rows; ++r) {
    const uint16_t* row = block.first + r * block.cols;
    for (size_t c = 0; c < kCols; ++c) ++counts[c % 4][ValueOf(row[c])];
  }
  const auto count = [&](uint8_t v) {
    return counts[0][v] + counts[1][v] + counts[2][v] + counts[3][v];
  };
  std::array<uint8_t, kAllValues> all{};
  std::iota(all.begin(), all.end(), uint8_t{0});
  std::partial_sort(all.begin(), all.begin() + kValues, all.end(), [&](uint8_t a, uint8_t b) {
    return count(a) != count(b) ? count(a) > count(b) : a < b;
  });
  Table table{};
  std::copy_n(all.begin(), kValues, table.begin());
  std::sort(table.begin(), table.end());
  return table;
}

// Gives how many patches the block needs.
int CompressBlock(const Block<const uint16_t>& block, uint8_t* out) {
  const Table table = BestTable(block);
  std::array<uint32_t, kAllValues> codes{};
  codes.fill(kValues);  // none
  for (uint32_t i = 0; i < kValues; ++i) codes[table[i]] = i;
  uint32_t word0 = 0;
  int patches = 0;
  std::memset(out, 0, kBlockBytes);
  for (int t = 0; t < kThreads; ++t) {
    std::array<uint32_t, kCodeWords> words{};
    for (int i = 0; i < kWeightsPerThread; ++i) {
      if (RowOf(t, i) >= block.rows) continue;
      const uint32_t weight = block.at(t, i);
      uint32_t& word = words[static_cast<size_t>(i / 8)];
      out[LowByteOf(t, i)] = static_cast<uint8_t>(weight);
      word |= (weight >> 15) << SignBit(i);
      const uint32_t value = ValueOf(weight);
      if (codes[value] < kValues) {
        word |= codes[value] << ValueBit(i);
        continue;
      }
      word0 |= 1u << (8 + t / 32);
      if (patches++ >= kMostPatches) continue;
      StoreWord(out + kHeaderAt + 4 * (kFirstPatch + patches - 1),
                static_cast<uint32_t>(t | i << 8) | value << 16);
    }
    for (int j = 0; j < kCodeWords; ++j) {
      StoreWord(out + kCodesAt + 16 * t + 4 * j, words[static_cast<size_t>(j)]);
    }
  }
  StoreWord(out + kHeaderAt, word0 | static_cast<uint32_t>(patches) << 16);
  std::copy(table.begin(), table.end(), out + kHeaderAt + 4);
  return patches;
}

void ExpandBlock(const uint8_t* compressed, const Block<uint16_t>& block) {
  const uint8_t* header = compressed + kHeaderAt;
  const uint8_t* table = header + 4;
  for (int t = 0; t < kThreads; ++t) {
    for (int i = 0; i < kWeightsPerThread; ++i) {
      if (RowOf(t, i) >= block.rows) continue;
      const uint32_t word = LoadWord(compressed + kCodesAt + 16 * t + 4 * (i / 8));
      const uint32_t value = table[word >> ValueBit(i) & 7];
      const uint32_t sign = word >> SignBit(i) & 1;
      block.at(t, i) = static_cast<uint16_t>(sign << 15 | value << 8 | compressed[LowByteOf(t, i)]);
    }
  }
  const auto patches = static_cast<int>(LoadWord(header) >> 16);
  for (int j = 0; j < patches; ++j) {
    const uint32_t patch = LoadWord(header + 4 * (kFirstPatch + j));
    uint16_t& weight =
        block.at(static_cast<int>(patch & 0xff), static_cast<int>(patch >> 8 & 0x1f));
    weight = static_cast<uint16_t>((weight & 0x80ffu) | (patch >> 16 & 0x7f) << 8);
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
