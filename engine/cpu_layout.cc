#include "engine/cpu_layout.h"

#include "kernels/cpu/gemm.h"
#include "vmm/types.h"

namespace weir {
namespace {

constexpr uint64_t kAlignment = 64;

class Cursor {
 public:
  uint64_t Take(uint64_t bytes) {
    const uint64_t at = offset_;
    offset_ = AlignUp(offset_ + bytes, kAlignment);
    return at;
  }
  uint64_t TakeMatrix(uint64_t rows, uint64_t cols) {
    return Take(cpu::PackedWeightBytes(static_cast<int64_t>(rows), static_cast<int64_t>(cols)));
  }
  uint64_t TakeVector(uint64_t n) { return Take(n * sizeof(float)); }
  uint64_t offset() const { return offset_; }

 private:
  uint64_t offset_ = 0;
};

}  // namespace

CpuWeightMap CpuWeightMap::Make(const ModelConfig& c) {
  CpuWeightMap map;
  Cursor at;
  map.embedding = at.TakeMatrix(c.vocab_size, c.hidden_size);
  map.lm_head = c.tie_word_embeddings ? map.embedding : at.TakeMatrix(c.vocab_size, c.hidden_size);
  map.final_norm = at.TakeVector(c.hidden_size);
  map.layers.resize(c.num_layers);
  const uint64_t qkv_rows = uint64_t{c.q_size()} + 2 * uint64_t{c.kv_size()};
  for (CpuLayerOffsets& l : map.layers) {
    l.attn_norm = at.TakeVector(c.hidden_size);
    l.mlp_norm = at.TakeVector(c.hidden_size);
    if (c.qk_norm) {
      l.q_norm = at.TakeVector(c.head_dim);
      l.k_norm = at.TakeVector(c.head_dim);
    }
    if (c.attention_bias) l.qkv_bias = at.TakeVector(qkv_rows);
    if (c.o_bias) l.o_bias = at.TakeVector(c.hidden_size);
    if (c.mlp_bias) {
      l.gate_up_bias = at.TakeVector(2 * uint64_t{c.intermediate_size});
      l.down_bias = at.TakeVector(c.hidden_size);
    }
  }
  for (CpuLayerOffsets& l : map.layers) {
    std::vector<WeightSegment> segments(kCpuSegmentsPerLayer);
    segments[0].offset = at.offset();
    l.qkv = at.TakeMatrix(qkv_rows, c.hidden_size);
    l.o = at.TakeMatrix(c.hidden_size, c.q_size());
    segments[1].offset = at.offset();
    l.gate_up = at.TakeMatrix(2 * uint64_t{c.intermediate_size}, c.hidden_size);
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
