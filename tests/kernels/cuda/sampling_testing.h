// Requests as the engine's sampler takes them, run by the device's.
#pragma once

#include <map>
#include <vector>

#include "engine/sampler.h"
#include "kernels/cuda/sampling.h"
#include "tests/kernels/cuda/device_testing.h"

namespace weir::cuda::testing {

struct SampleCase {
  std::vector<float> logits;
  SamplingParams params = {};
  TokenHistory history = {};
  std::vector<int32_t> eos = {};
  double uniform = 0;
  bool active = true;
};

struct SampledRows {
  std::vector<int32_t> tokens;
  std::vector<SampleResult> results;
  std::vector<int32_t> top_tokens;  // [rows, kMaxTopLogprobs]
  std::vector<float> top_logprobs;
};

// Bias, mask and penalties of a token as one edit (Sampler::Process).
inline std::vector<LogitEdit> EditsOf(const SampleCase& c) {
  std::map<int32_t, LogitEdit> edits;
  const auto edit = [&](int32_t token) -> LogitEdit& {
    edits[token].token = token;
    return edits[token];
  };
  for (const auto& [token, bias] : c.params.logit_bias) edit(token).bias = bias;
  if (c.history.output_tokens() < c.params.min_tokens) {
    for (const int32_t token : c.eos) edit(token).masked = 1;
    for (const int32_t token : c.params.stop_token_ids) edit(token).masked = 1;
  }
  if (c.params.has_penalties()) {
    for (const TokenHistory::Entry& entry : c.history.entries()) {
      LogitEdit& e = edit(entry.token);
      e.repetition = static_cast<float>(c.params.repetition_penalty);
      if (entry.output_count == 0) continue;
      e.frequency =
          static_cast<float>(c.params.frequency_penalty) * static_cast<float>(entry.output_count);
      e.presence = static_cast<float>(c.params.presence_penalty);
    }
  }
  std::vector<LogitEdit> list;
  for (const auto& [token, e] : edits) list.push_back(e);
  return list;
}

inline SampleRow RowOf(const SampleCase& c, std::vector<LogitEdit>* edits) {
  SampleRow row;
  row.temperature = c.params.temperature;
  row.top_p = c.params.top_p;
  row.min_p = c.params.min_p;
  row.uniform = c.uniform;
  row.top_k = c.params.top_k;
  row.logprobs = c.params.logprobs;
  row.active = c.active ? 1 : 0;
  row.edits_begin = static_cast<int32_t>(edits->size());
  for (const LogitEdit& e : EditsOf(c)) edits->push_back(e);
  row.edits_end = static_cast<int32_t>(edits->size());
  return row;
}

// A batch in device memory; all that Sample() writes is poisoned.
class SampleBatch {
 public:
  explicit SampleBatch(const std::vector<SampleCase>& cases)
      : SampleBatch(cases, Edits(cases), cases.at(0).logits.size()) {}
  const SampleParams& params() const { return params_; }
  SampledRows Download() const {
    return {tokens_.Download(), results_.Download(), top_tokens_.Download(),
            top_logprobs_.Download()};
  }
  // Other requests, and as many edits at most, in the same memory: what a replay finds.
  void Replace(const std::vector<SampleCase>& cases) {
    const std::vector<LogitEdit> edits = Edits(cases);
    const std::vector<SampleRow> rows = Rows(cases);
    const std::vector<float> logits = Logits(cases);
    ASSERT_EQ(rows.size() * sizeof(SampleRow), rows_.Bytes());
    ASSERT_LE(edits.size() * sizeof(LogitEdit), edits_.Bytes());
    Upload(edits_.get(), edits);
    Upload(rows_.get(), rows);
    Upload(logits_.get(), logits);
  }

 private:
  SampleBatch(const std::vector<SampleCase>& cases, const std::vector<LogitEdit>& edits,
              size_t vocab)
      : logits_(Logits(cases)),
        rows_(Rows(cases)),
        edits_(edits),
        tokens_(cases.size()),
        results_(cases.size()),
        top_tokens_(cases.size() * kMaxTopLogprobs),
        top_logprobs_(cases.size() * kMaxTopLogprobs) {
    params_.logits = logits_.get();
    params_.row = rows_.get();
    params_.edits = edits_.get();
    params_.tokens = tokens_.get();
    params_.results = results_.get();
    params_.top_tokens = top_tokens_.get();
    params_.top_logprobs = top_logprobs_.get();
    params_.rows = static_cast<int64_t>(cases.size());
    params_.vocab = static_cast<int64_t>(vocab);
  }
  static std::vector<float> Logits(const std::vector<SampleCase>& cases) {
    std::vector<float> all;
    for (const SampleCase& c : cases) {
      EXPECT_EQ(c.logits.size(), cases[0].logits.size());
      all.insert(all.end(), c.logits.begin(), c.logits.end());
    }
    return all;
  }
  static std::vector<LogitEdit> Edits(const std::vector<SampleCase>& cases) {
    std::vector<LogitEdit> edits;
    for (const SampleCase& c : cases) (void)RowOf(c, &edits);
    return edits;
  }
  static std::vector<SampleRow> Rows(const std::vector<SampleCase>& cases) {
    std::vector<LogitEdit> edits;
    std::vector<SampleRow> rows;
    for (const SampleCase& c : cases) rows.push_back(RowOf(c, &edits));
    return rows;
  }
  template <typename T>
  static void Upload(T* to, const std::vector<T>& from) {
    EXPECT_EQ(cudaMemcpy(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
  }

  DeviceBuffer<float> logits_;
  DeviceBuffer<SampleRow> rows_;
  DeviceBuffer<LogitEdit> edits_;
  DeviceBuffer<int32_t> tokens_;
  DeviceBuffer<SampleResult> results_;
  DeviceBuffer<int32_t> top_tokens_;
  DeviceBuffer<float> top_logprobs_;
  SampleParams params_;
};

inline SampledRows RunSample(const std::vector<SampleCase>& cases, cudaStream_t stream,
                             Overlap overlap = Overlap::kNone) {
  const SampleBatch batch(cases);
  const LaunchStatus status = Sample(batch.params(), {stream, overlap});
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  return batch.Download();
}

}  // namespace weir::cuda::testing
