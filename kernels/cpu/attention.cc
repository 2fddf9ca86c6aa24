#include "kernels/cpu/attention.h"

#include <algorithm>
#include <atomic>

#include "kernels/cpu/kernel_table.h"

namespace weir::cpu {
namespace {

constexpr int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
constexpr int64_t RoundUp(int64_t a, int64_t b) {
  return CeilDiv(a, b) * b;
}

// How one sequence is cut into tasks: kv heads x row tiles, or, when all its rows fit one tile and
// there is scratch for it, kv heads x spans.
struct SeqPlan {
  int64_t first_task;
  int64_t tiles;     // tasks of one kv head
  int64_t partials;  // offset in floats of the sequence's partial results, -1 when not split
  int64_t counters;  // index of its first countdown, one a kv head
};

struct Plan {
  const KvPool* kv;
  const AttentionParams* params;
  SeqPlan* seqs;
  int32_t* counters;
  float* partials;
  int64_t group;
};

int64_t PartialFloats(int64_t head_dim) {
  return kPartialHeader + RoundUp(head_dim, 16);
}

int64_t PlanBytes(int64_t num_seqs) {
  return RoundUp(num_seqs * static_cast<int64_t>(sizeof(SeqPlan)), 64);
}

// Fills plan.seqs; returns the number of tasks. Sequences are cut by what their shape and the
// scratch allow, which changes who computes a row and never what is computed.
int64_t MakePlan(Plan& plan) {
  const AttentionParams& p = *plan.params;
  const int64_t kv_heads = plan.kv->layout.kv_heads;
  uint8_t* memory = static_cast<uint8_t*>(p.scratch);
  plan.seqs = reinterpret_cast<SeqPlan*>(memory);
  const int64_t plan_bytes = PlanBytes(p.num_seqs);
  const int64_t counter_bytes = RoundUp(p.num_seqs * kv_heads * 4, 64);
  plan.counters = reinterpret_cast<int32_t*>(memory + plan_bytes);
  plan.partials = reinterpret_cast<float*>(memory + plan_bytes + counter_bytes);
  const int64_t room =
      (static_cast<int64_t>(p.scratch_bytes) - plan_bytes - counter_bytes) / int64_t{4};
  int64_t used = 0;
  int64_t tasks = 0;
  for (int64_t i = 0; i < p.num_seqs; ++i) {
    const AttentionSeq& seq = p.seqs[i];
    SeqPlan& out = plan.seqs[i];
    const int64_t rows = (seq.q_end - seq.q_begin) * plan.group;
    const int64_t spans = CeilDiv(seq.context, kAttentionSpan);
    const int64_t needed = kv_heads * spans * rows * PartialFloats(plan.kv->layout.head_dim);
    out.first_task = tasks;
    out.counters = i * kv_heads;
    out.partials = -1;
    out.tiles = CeilDiv(rows, kMaxAttentionRows);
    if (out.tiles == 1 && spans > 1 && used + needed <= room) {
      out.partials = used;
      out.tiles = spans;
      used += needed;
      for (int64_t h = 0; h < kv_heads; ++h) {
        plan.counters[out.counters + h] = static_cast<int32_t>(spans);
      }
    }
    tasks += out.tiles * kv_heads;
  }
  return tasks;
}

AttentionTask BaseTask(const Plan& plan, const AttentionSeq& seq, int64_t kv_head) {
  const AttentionParams& p = *plan.params;
  const KvLayout& layout = plan.kv->layout;
  const uint8_t* base = static_cast<const uint8_t*>(plan.kv->base);
  const int64_t column = kv_head * plan.group * layout.head_dim;
  AttentionTask task{};
  task.q = p.q + seq.q_begin * p.q_stride + column;
  task.q_stride = p.q_stride;
  task.out = p.out + seq.q_begin * p.out_stride + column;
  task.out_stride = p.out_stride;
  task.k_base = base + layout.KOffset(p.layer, kv_head);
  task.v_base = base + layout.VOffset(p.layer, kv_head);
  task.block_stride = plan.kv->block_stride_bytes;
  task.blocks = seq.blocks;
  task.head_dim = layout.head_dim;
  task.group = plan.group;
  task.rows = (seq.q_end - seq.q_begin) * plan.group;
  task.first_visible = seq.context - (seq.q_end - seq.q_begin) + 1;
  task.span_end = CeilDiv(seq.context, kAttentionSpan);
  task.scale = p.scale;
  task.kv_is_bf16 = layout.dtype == KvDtype::kBf16 ? 1 : 0;
  return task;
}

void RunTiled(const KernelTable& kernels, AttentionTask task, int64_t tile, int64_t tiles) {
  const int64_t rows = task.rows;
  tile = tiles - 1 - tile;  // the tile that sees most goes first
  task.row_begin = tile * kMaxAttentionRows;
  task.rows = std::min(kMaxAttentionRows, rows - task.row_begin);
  const int64_t last = task.first_visible + (task.row_begin + task.rows - 1) / task.group;
  task.span_end = CeilDiv(last, kAttentionSpan);
  kernels.attention(task);
}

void RunSplit(const KernelTable& kernels, const Plan& plan, const SeqPlan& seq, AttentionTask task,
              int64_t kv_head, int64_t span) {
  const int64_t spans = seq.tiles;
  const int64_t span_floats = task.rows * PartialFloats(task.head_dim);
  float* partials = plan.partials + seq.partials + kv_head * spans * span_floats;
  task.span_begin = span;
  task.span_end = span + 1;
  task.partial = partials + span * span_floats;
  kernels.attention(task);
  // Whoever finishes a head last joins its spans, always in the same order.
  std::atomic_ref<int32_t> left(plan.counters[seq.counters + kv_head]);
  if (left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    kernels.attention_merge(task, partials, spans);
  }
}

}  // namespace

size_t AttentionScratchBytes(int64_t num_seqs, int64_t context_tokens, int64_t q_heads,
                             int64_t head_dim) {
  const int64_t fixed = PlanBytes(num_seqs) + RoundUp(num_seqs * q_heads * 4, 64);
  if (context_tokens <= 0) return static_cast<size_t>(fixed);
  const int64_t spans = context_tokens / kAttentionSpan + num_seqs;
  return static_cast<size_t>(fixed + spans * q_heads * PartialFloats(head_dim) * 4);
}

void PagedAttention(const KvPool& kv, const AttentionParams& params, ThreadPool& pool) {
  if (params.num_seqs <= 0) return;
  const KernelTable& kernels = ActiveKernels();
  Plan plan{};
  plan.kv = &kv;
  plan.params = &params;
  plan.group = params.q_heads / kv.layout.kv_heads;
  const int64_t tasks = MakePlan(plan);
  pool.ParallelFor(static_cast<int>(tasks), [&](int index) {
    const SeqPlan* seq =
        std::upper_bound(plan.seqs, plan.seqs + params.num_seqs, index,
                         [](int64_t task, const SeqPlan& s) { return task < s.first_task; }) -
        1;
    const int64_t local = index - seq->first_task;
    const int64_t kv_heads = kv.layout.kv_heads;
    const AttentionTask task = BaseTask(plan, params.seqs[seq - plan.seqs], local % kv_heads);
    if (seq->partials >= 0) {
      RunSplit(kernels, plan, *seq, task, local % kv_heads, local / kv_heads);
    } else {
      RunTiled(kernels, task, local / kv_heads, seq->tiles);
    }
  });
}

}  // namespace weir::cpu
