#pragma once

#include <cstddef>
#include <cstdint>

// What each instruction set provides. Internal: callers use the headers beside this one.
//
// The translation units that fill these tables are compiled with different -m flags, so they
// include this header, intrinsics and the .inc files (all in an anonymous namespace) and nothing
// that defines inline functions: those would be merged across units and could put AVX-512 code on a
// CPU without it.
namespace weir::cpu {

struct GemmArgs {
  const float* x;
  int64_t ldx;
  const uint16_t* weights;
  const float* bias;
  float* y;
  int64_t ldy;
  int64_t n;
  int64_t k;
  int accumulate;
};

// Rows [row_begin, row_begin + rows) of the list (query token, head of the group), token-major, of
// one sequence and one kv head.
struct AttentionTask {
  const float* q;  // token 0 of the sequence, first head of the group
  int64_t q_stride;
  float* out;
  int64_t out_stride;
  const uint8_t* k_base;  // block 0 of the pool, advanced to this layer and head
  const uint8_t* v_base;
  int64_t block_stride;
  const int32_t* blocks;
  int64_t head_dim;
  int64_t group;
  int64_t row_begin;
  int64_t rows;           // 1 .. kMaxAttentionRows
  int64_t first_visible;  // tokens that query token 0 sees
  int64_t span_begin;     // spans [span_begin, span_end) of 1024 tokens
  int64_t span_end;
  float scale;
  int kv_is_bf16;
  float* partial;  // null: finish the rows; else one span's [rows][kPartialHeader + padded dim]
};

inline constexpr int64_t kMaxAttentionRows = 32;
inline constexpr int64_t kMaxHeadDim = 256;
inline constexpr int64_t kPartialHeader = 16;  // m, L, then padding to keep vectors aligned

struct KernelTable {
  // Panels [panel_begin, panel_end) x rows [m_begin, m_end) of a Gemm.
  void (*gemm)(const GemmArgs& args, int64_t panel_begin, int64_t panel_end, int64_t m_begin,
               int64_t m_end);
  int64_t gemm_row_tile;      // most rows computed at once
  int64_t gemm_panel_stride;  // panels computed at once for one row
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t h, float* y);
  void (*rope)(float* x, const float* cos, const float* sin, int64_t half);
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* y);
  void (*exp)(const float* in, int64_t n, float* out);
  void (*add)(const float* x, int64_t n, float* y);
  float (*max)(const float* x, int64_t n);  // ignoring NaN; -inf when nothing else
  void (*bf16_to_float)(const uint16_t* in, int64_t n, float* out);
  void (*float_to_bf16)(const float* in, int64_t n, uint16_t* out);
  void (*attention)(const AttentionTask& task);
  // partials: spans consecutive blocks of task.rows rows, in span order; writes task.out.
  void (*attention_merge)(const AttentionTask& task, const float* partials, int64_t spans);
};

extern const KernelTable kScalarKernels;
#if defined(__x86_64__)
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
#elif defined(__aarch64__)
extern const KernelTable kNeonKernels;
#endif

const KernelTable& ActiveKernels();

}  // namespace weir::cpu
