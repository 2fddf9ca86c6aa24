// From rows of logits to tokens: engine/sampler.h's procedure on the device, one launch a step.
//
// Per row: log-probabilities are of the raw logits; then the edits (bias, masks, penalties),
// temperature, min-p, top-k (ties of the k-th stay), top-p (ties: lower id first), and a draw by
// inverse CDF in token order with a number that the host computed. Greedy: the first of the
// largest. Rows read nothing of each other, so that a row's result depends neither on its index nor
// on its neighbours; FlashInfer's sampling kernels are not used because their draws depend on the
// row index.
//
// How: a cluster of eight blocks holds a row in its shared memory, so that logits are read from
// global memory once whatever the row asks for. Thresholds are found by histograms over ordered
// float keys, finer with each pass. Weights exp((logit - max) / temperature) become integers
// (multiples of 2^-44) before anything is added: sums are exact in any order, and the same input
// gives the same bits. Against the CPU's sampler a token may differ where the draw lies, or a
// candidate's place in top-p or min-p is, within about 1e-6 of a boundary.
//
// Needs compute capability 9.0 (thread block clusters).
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.h"

namespace weir::cuda {

constexpr int32_t kMaxTopLogprobs = 20;
constexpr int64_t kMaxSampleVocab = 8 * 26 * 2048;  // what eight blocks' shared memory holds

// What a row asks for. Device memory, replaced between replays of a graph; the values were
// validated (engine/sampler.h names the ranges).
struct SampleRow {
  double temperature = 1;   // below 1e-5: greedy
  double top_p = 1;         // 1: off
  double min_p = 0;         // 0: off
  double uniform = 0;       // [0, 1): the draw, of seed or key and position (SamplingUniform)
  int32_t top_k = 0;        // <= 0 or >= vocab: off
  int32_t logprobs = -1;    // -1: off; 0: of the sampled token; n <= kMaxTopLogprobs: top n too
  int32_t edits_begin = 0;  // the row's edits: [begin, end) of SampleParams::edits
  int32_t edits_end = 0;
  int32_t active = 1;  // 0: a padding row: token 0, no error, its logits are not read
  int32_t reserved = 0;
};
static_assert(sizeof(SampleRow) == 56);

// One token's logit before it is sampled, in this order: plus |bias|; -infinity if |masked|;
// divided by |repetition| if positive, else multiplied; minus |frequency|; minus |presence|. At
// most one edit of a token in a row; ids outside the vocabulary are ignored.
struct LogitEdit {
  int32_t token = 0;
  float bias = 0;
  float repetition = 1;
  float frequency = 0;  // the frequency penalty times the token's count in the output, in float
  float presence = 0;   // 0 unless the token is in the output
  int32_t masked = 0;
};
static_assert(sizeof(LogitEdit) == 24);

enum class SampleError : int32_t { kNone = 0, kNan = 1, kInfinite = 2, kNothingPossible = 3 };

struct SampleResult {
  int32_t token = 0;  // 0 after an error
  float logprob = 0;  // raw; 0 unless asked for
  SampleError error = SampleError::kNone;
  int32_t reserved = 0;
};
static_assert(sizeof(SampleResult) == 16);

struct SampleParams {
  const float* logits = nullptr;     // [rows, vocab]; not modified
  const SampleRow* row = nullptr;    // [rows]
  const LogitEdit* edits = nullptr;  // may be null when no row has any
  int32_t* tokens = nullptr;         // [rows]: results' tokens, for the next step's embedding
  SampleResult* results = nullptr;   // [rows]
  // [rows, kMaxTopLogprobs], best first, ties by lower id; written for rows with logprobs > 0 only,
  // there up to the end with token -1 and logprob 0. May be null when no row has any.
  int32_t* top_tokens = nullptr;
  float* top_logprobs = nullptr;
  int64_t rows = 0;
  int64_t vocab = 0;  // 1 to kMaxSampleVocab; rows are read fastest if it is a multiple of 4
};

// Enqueues one kernel; there is no workspace. rows = 0 enqueues nothing. Call it once before a
// capture, so that no module is loaded during one.
LaunchStatus Sample(const SampleParams& params, const Launch& launch);

}  // namespace weir::cuda
