// Sampler: from one row of logits to one token.
//
// The order of operations is vLLM's (V1 sampler): log-probabilities are of the raw logits; then
// logit bias, minimum length, penalties, temperature, min-p, top-k, top-p, draw. The draw is
// counter-based (Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011): it depends on the seed (or the request's key) and the position only, never on the batch
// a request happens to share or on what was sampled before. All sums are taken in a fixed order.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <boost/container/small_vector.hpp>

#include "vmm/status.h"

namespace weir {

// What a request may ask of the sampler and of its stopping; defaults are OpenAI's.
struct SamplingParams {
  double temperature = 1.0;            // [0, 2]; below 1e-5: greedy
  int32_t top_k = 0;                   // 0 or -1: off
  double top_p = 1.0;                  // (0, 1]; 1: off
  double min_p = 0.0;                  // [0, 1]; 0: off
  double repetition_penalty = 1.0;     // (0, 2]; 1: off; over prompt and output
  double presence_penalty = 0.0;       // [-2, 2]; over the output
  double frequency_penalty = 0.0;      // [-2, 2]; over the output
  std::optional<uint64_t> seed = {};   // absent: the request's key is used
  uint32_t max_tokens = 0;             // 0: as many as the model's context has room for
  uint32_t min_tokens = 0;             // nothing but max_tokens ends it before; <= max_tokens
  std::vector<std::string> stop = {};  // at most 16, of 1 to 256 bytes
  std::vector<int32_t> stop_token_ids = {};
  bool ignore_eos = false;
  bool include_stop_str_in_output = false;  // the text of what ended it: stop string, stop token
  bool skip_special_tokens = true;          // in the text; they are in the tokens all the same
  int32_t logprobs = -1;  // -1: off; 0: of the sampled token; n <= 20: of the top n too
  std::map<int32_t, float> logit_bias = {};  // at most 1024 ids; [-100, 100]

  bool greedy() const { return temperature < 1e-5; }
  bool has_penalties() const {
    return repetition_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0;
  }
};

// The most logits that a step ever has to change for a request that ends at |tokens| in all.
uint64_t MostLogitEdits(const SamplingParams& params, uint64_t tokens, uint64_t eos_tokens,
                        uint32_t vocab_size);

// kInvalidArgument with the parameter's name first, what is accepted and what was given.
Status ValidateSampling(const SamplingParams& params, uint32_t vocab_size);

// Represents which tokens a sequence holds: what penalties look at. Owned by the request; engine
// thread. Tokens outside the vocabulary are the caller's error and are ignored by the sampler.
class TokenHistory {
 public:
  // kNumber: only how many there are in the output, for a request without penalties. The entries
  // cost a look into a hash map for each token.
  enum class Keep : uint8_t { kTokens, kNumber };
  TokenHistory() = default;
  explicit TokenHistory(Keep keep) : keep_(keep) {}

  struct Entry {
    int32_t token = 0;
    bool in_prompt = false;
    uint32_t output_count = 0;
  };
  void AddPrompt(std::span<const int32_t> tokens);
  void AddOutput(int32_t token);

  const std::vector<Entry>& entries() const { return entries_; }  // distinct tokens, by first use
  uint32_t output_tokens() const { return output_tokens_; }

 private:
  Entry& EntryOf(int32_t token);
  Keep keep_ = Keep::kTokens;
  std::vector<Entry> entries_;
  std::unordered_map<int32_t, uint32_t> index_;
  uint32_t output_tokens_ = 0;
};

struct TokenLogprob {
  int32_t token = -1;
  float logprob = 0;
};

struct SampledToken {
  int32_t token = -1;
  float logprob = 0;              // raw; 0 unless logprobs were asked for
  std::vector<TokenLogprob> top;  // best first; ties by lower id
};

// The tokens of one request in one output, nearly always one: it takes no memory of its own.
using SampledTokens = boost::container::small_vector<SampledToken, 1>;

// A token that can be drawn, and how likely.
struct TokenProbability {
  int32_t token = -1;
  double probability = 0;
};

// Represents the procedure with its scratch memory; two samplers give the same answers. Use one
// per thread.
class Sampler {
 public:
  // |logits| is one row over the vocabulary and is used as scratch. |params| passed
  // ValidateSampling(). |request_key| identifies a request that has no seed; |position| is the
  // index of the sampled token in its sequence, so that a token sampled again comes out the same.
  // |eos_tokens| are masked while a request is below min_tokens.
  // kDataLoss: a logit is NaN or +infinity, or no token is possible.
  Result<SampledToken> Sample(std::span<float> logits, const SamplingParams& params,
                              const TokenHistory& history, uint64_t request_key, uint64_t position,
                              std::span<const int32_t> eos_tokens);

  // The distribution Sample() draws from, by token id; one token when greedy. For tests and tools.
  Result<std::vector<TokenProbability>> Distribution(std::span<float> logits,
                                                     const SamplingParams& params,
                                                     const TokenHistory& history,
                                                     std::span<const int32_t> eos_tokens);

 private:
  struct Candidate {
    float logit = 0;
    float weight = 0;  // exp((logit - max) / temperature)
    int32_t token = 0;
  };
  // Total order: more likely first, then the lower id.
  static bool Better(const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  }
  enum class Support { kAll, kCandidates };  // which tokens can be drawn

  // Finds the largest logit and its first position; fills block_max_.
  Status Scan(std::span<const float> logits);
  void Process(std::span<float> logits, const SamplingParams& params, const TokenHistory& history,
               std::span<const int32_t> eos_tokens);
  void SetLogit(std::span<float> logits, int32_t token, float value);
  // Needs Scan() of the raw logits; fills result->top and returns the log of their normaliser.
  double FillTop(std::span<const float> logits, int32_t count, SampledToken* result);
  // The rest need Scan() of the processed logits.
  // Applies temperature, min-p, top-k and top-p; the outcome is the candidates unless kAll.
  Support Filter(std::span<const float> logits, const SamplingParams& params);
  // Fills block_sums_ with the sums of weights; returns their total.
  double SumWeights(std::span<const float> logits, float scale);
  // The k-th largest logit, 0 < k <= size.
  float KthLargest(std::span<const float> logits, size_t k);
  // The candidates become the tokens with a logit of at least |least|, by id, with their weights.
  void Collect(std::span<const float> logits, float least, float scale);
  template <typename Keep>
  void KeepCandidates(Keep keep);
  double CandidateMass() const;
  // Reduces the candidates to the smallest set of largest weights that holds |top_p| of |total|.
  void SelectTopP(double top_p, double total);
  Candidate LastOfMass(double mass, double target);
  int32_t DrawFromAll(std::span<const float> logits, float scale, double uniform) const;
  int32_t DrawFromCandidates(double uniform) const;

  float max_ = 0;
  size_t argmax_ = 0;
  double total_ = 0;  // of block_sums_
  std::vector<float> block_max_;
  std::vector<double> block_sums_;
  std::vector<float> logits_;  // candidates: logit, weight, token; by token
  std::vector<float> weights_;
  std::vector<int32_t> tokens_;
  std::vector<Candidate> order_;  // some candidates, ordered by how likely
  std::vector<float> values_;     // scratch of the selections
  std::vector<uint32_t> histogram_;
  std::vector<double> bucket_mass_;
  std::vector<std::pair<int32_t, float>> raw_;  // logits as they were before Process()
};

// A uniform number in [0, 1) for this key and position; the sampler's only source of chance.
double SamplingUniform(const std::optional<uint64_t>& seed, uint64_t request_key,
                       uint64_t position);

}  // namespace weir
