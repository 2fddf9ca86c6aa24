#include "engine/weight_map.h"

#include "kernels/compressed_weights.h"
#include "kernels/cpu/gemm.h"
#include "vmm/check.h"
#include "vmm/types.h"

namespace weir {
namespace {

constexpr uint64_t kAlignment = 256;  // what the vectorised loads of every back-end want

// FlashInfer's attention has kernels for these head sizes only.
uint32_t HeadStride(uint32_t head_dim, WeightFormat format) {
  if (format == WeightFormat::kCpu) return head_dim;
  for (const uint32_t built : {64U, 128U, 256U}) {
    if (head_dim <= built) return built;
  }
  return head_dim;
}

class Cursor {
 public:
  explicit Cursor(const WeightMap& map) : map_(map) {}
  uint64_t Take(uint64_t bytes) {
    const uint64_t at = offset_;
    offset_ = AlignUp(offset_ + bytes, kAlignment);
    return at;
  }
  uint64_t TakeMatrix(uint64_t rows, uint64_t cols) { return Take(map_.MatrixBytes(rows, cols)); }
  uint64_t TakeGateUp(uint64_t rows, uint64_t cols) { return Take(map_.GateUpBytes(rows, cols)); }
  uint64_t TakeNorm(uint64_t n) { return Take(n * sizeof(float)); }
  uint64_t TakeBias(uint64_t n) { return Take(map_.BiasBytes(n)); }
  void Skip(uint64_t bytes) { offset_ += bytes; }
  uint64_t offset() const { return offset_; }

 private:
  const WeightMap& map_;
  uint64_t offset_ = 0;
};

// How far a segment of |bytes| at |offset| must move to hold a whole granule; 0 where it does so
// already or never can.
uint64_t ShiftToHoldGranule(uint64_t offset, uint64_t bytes, uint64_t granule) {
  if (granule == 0 || bytes < granule) return 0;
  const uint64_t first_end = AlignUp(offset, granule) + granule;
  return first_end <= offset + bytes ? 0 : AlignUp(first_end - (offset + bytes), kAlignment);
}

}  // namespace

uint64_t WeightMap::MatrixBytes(uint64_t rows, uint64_t cols) const {
  if (format == WeightFormat::kCuda) return rows * cols * 2;
  return cpu::PackedWeightBytes(static_cast<int64_t>(rows), static_cast<int64_t>(cols));
}

uint64_t WeightMap::GateUpBytes(uint64_t rows, uint64_t cols) const {
  if (!compressed) return MatrixBytes(rows, cols);
  return static_cast<uint64_t>(
      compressed::Bytes(static_cast<int64_t>(rows), static_cast<int64_t>(cols)));
}

WeightMap WeightMap::Make(const ModelConfig& c, WeightFormat format, uint64_t granule,
                          bool compressed) {
  WEIR_CHECK(!compressed || (format == WeightFormat::kCuda &&
                             compressed::Fits(static_cast<int64_t>(c.hidden_size))),
             "compressed weights are a GPU's, of whole blocks");
  WeightMap map;
  map.format = format;
  map.compressed = compressed;
  map.head_stride = HeadStride(c.head_dim, format);
  const uint64_t q_size = uint64_t{c.num_heads} * map.head_stride;
  const uint64_t qkv_size = q_size + 2 * uint64_t{c.num_kv_heads} * map.head_stride;
  Cursor at(map);
  map.embedding = at.TakeMatrix(c.vocab_size, c.hidden_size);
  map.lm_head = c.tie_word_embeddings ? map.embedding : at.TakeMatrix(c.vocab_size, c.hidden_size);
  if (!c.tie_word_embeddings) {
    map.layout.lookup = {map.embedding, map.MatrixBytes(c.vocab_size, c.hidden_size)};
  }
  map.final_norm = at.TakeNorm(c.hidden_size);
  map.layers.resize(c.num_layers);
  for (LayerOffsets& l : map.layers) {
    l.attn_norm = at.TakeNorm(c.hidden_size);
    l.mlp_norm = at.TakeNorm(c.hidden_size);
    if (c.qk_norm) {
      l.q_norm = at.TakeNorm(c.head_dim);
      l.k_norm = at.TakeNorm(c.head_dim);
    }
    if (c.attention_bias) l.qkv_bias = at.TakeBias(qkv_size);
    if (c.o_bias) l.o_bias = at.TakeBias(c.hidden_size);
    if (c.mlp_bias) {
      l.gate_up_bias = at.TakeBias(2 * uint64_t{c.intermediate_size});
      l.down_bias = at.TakeBias(c.hidden_size);
    }
  }
  const uint64_t before_mlp = AlignUp(map.MatrixBytes(qkv_size, c.hidden_size), kAlignment) +
                              AlignUp(map.MatrixBytes(c.hidden_size, q_size), kAlignment);
  const uint64_t mlp_bytes = map.GateUpBytes(2 * uint64_t{c.intermediate_size}, c.hidden_size);
  for (LayerOffsets& l : map.layers) {
    std::vector<WeightSegment> segments(kSegmentsPerLayer);
    at.Skip(ShiftToHoldGranule(at.offset() + before_mlp, mlp_bytes, granule));
    segments[0].offset = at.offset();
    l.qkv = at.TakeMatrix(qkv_size, c.hidden_size);
    l.o = at.TakeMatrix(c.hidden_size, q_size);
    segments[1].offset = at.offset();
    l.gate_up = at.TakeGateUp(2 * uint64_t{c.intermediate_size}, c.hidden_size);
    segments[2].offset = at.offset();
    l.down = at.TakeMatrix(c.hidden_size, c.intermediate_size);
    segments[0].bytes = segments[1].offset - segments[0].offset;
    segments[1].bytes = segments[2].offset - segments[1].offset;
    segments[2].bytes = at.offset() - segments[2].offset;
    map.layout.layers.push_back(std::move(segments));
  }
  map.layout.region_bytes = at.offset();
  return map;
}

}  // namespace weir
