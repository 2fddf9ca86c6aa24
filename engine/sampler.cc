#include "engine/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

namespace weir {
namespace {

constexpr size_t kBlock = 128;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Four lanes, on every machine: partial maxima and sums never depend on the width of its vectors.
constexpr size_t kLanes = 4;
typedef float Lanes __attribute__((vector_size(16)));
typedef int32_t LaneBits __attribute__((vector_size(16)));

inline Lanes Load(const float* x) {
  Lanes v;
  std::memcpy(&v, x, sizeof(v));
  return v;
}

// exp(x) for x <= 0; relative error below 2e-7. Range reduction and polynomial of Cephes expf
// (S. Moshier). 0 below -87, where the result would be denormal.
inline Lanes ExpNonPositive(Lanes x) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Lanes shifted = x * kLog2E + kRound;
  const Lanes n = shifted - kRound;
  const Lanes r = (x - n * kLn2High) - n * kLn2Low;
  Lanes y = 1.9875691500e-4f * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  // The low bits of |shifted| hold n; n + 127 in the exponent's place is 2^n.
  const LaneBits exponent = std::bit_cast<LaneBits>(shifted) - std::bit_cast<int32_t>(kRound) + 127;
  const Lanes power = std::bit_cast<Lanes>(exponent << 23);
  const LaneBits representable = x >= -87.0f;  // all ones or zeros; a NaN is not
  return std::bit_cast<Lanes>(std::bit_cast<LaneBits>(y * power) & representable);
}

inline Lanes Weights(Lanes logits, float max, float scale) {
  return ExpNonPositive((logits - max) * scale);
}

// out[i] = exp((x[i] - max) * scale). The same bits for a logit wherever it stands.
void FillWeights(const float* x, size_t count, float max, float scale, float* out) {
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Lanes w = Weights(Load(x + i), max, scale);
    std::memcpy(out + i, &w, sizeof(w));
  }
  for (; i < count; ++i) out[i] = Weights(Lanes{x[i], max, max, max}, max, scale)[0];
}

// The largest of |count| logits; sets |nan| if one is not a number. Every comparison with a NaN is
// false, so it neither becomes nor hides the maximum.
float MaxOfBlock(const float* x, size_t count, bool* nan) {
  Lanes a = Lanes{} + kMinusInfinity, b = a;
  LaneBits unordered{};
  size_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    const Lanes v = Load(x + i), w = Load(x + i + kLanes);
    a = v > a ? v : a;
    b = w > b ? w : b;
    unordered |= (v != v) | (w != w);  // NOLINT(misc-redundant-expression)
  }
  float max = kMinusInfinity;
  for (; i < count; ++i) {
    max = x[i] > max ? x[i] : max;
    *nan |= x[i] != x[i];
  }
  for (size_t j = 0; j < kLanes; ++j) {
    max = a[j] > max ? a[j] : max;
    max = b[j] > max ? b[j] : max;
    *nan |= unordered[j] != 0;
  }
  return max;
}

double SumOfBlock(const float* x, size_t count, float max, float scale) {
  std::array<Lanes, 2> sums{};
  size_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    sums[0] += Weights(Load(x + i), max, scale);
    sums[1] += Weights(Load(x + i + kLanes), max, scale);
  }
  for (; i < count; ++i) {
    sums[0] += Weights(Lanes{x[i], kMinusInfinity, kMinusInfinity, kMinusInfinity}, max, scale);
  }
  const Lanes sum = sums[0] + sums[1];
  return static_cast<double>((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// Unsigned integers in the order of the floats they are made of (no NaN).
inline uint32_t OrderedKey(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

// Philox4x32-10; the reference's constants.
std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// The first index whose running sum exceeds |target|; rounding at the upper end gives the last one
// with a weight.
size_t PickByMass(std::span<const float> weights, double target) {
  double sum = 0;
  size_t picked = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] > 0) picked = i;
    sum += static_cast<double>(weights[i]);
    if (sum > target) break;
  }
  return picked;
}

std::string Number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", value);
  return text;
}

Status CheckRange(const char* name, double value, bool within, const char* accepted) {
  if (within) return OkStatus();  // a NaN is within nothing
  return InvalidArgument(std::string(name) + " must be " + accepted + ", got " + Number(value));
}

Status CheckToken(const char* name, int32_t token, uint32_t vocab_size) {
  if (token >= 0 && static_cast<uint32_t>(token) < vocab_size) return OkStatus();
  return InvalidArgument(std::string(name) + " must hold token ids in [0, " +
                         std::to_string(vocab_size) + "), got " + std::to_string(token));
}

}  // namespace

uint64_t MostLogitEdits(const SamplingParams& p, uint64_t tokens, uint64_t eos_tokens,
                        uint32_t vocab_size) {
  uint64_t most = p.logit_bias.size();
  if (p.min_tokens > 0) most += eos_tokens + p.stop_token_ids.size();
  if (p.has_penalties()) most += tokens;
  return std::min<uint64_t>(most, vocab_size);
}

Status ValidateSampling(const SamplingParams& p, uint32_t vocab_size) {
  WEIR_TRY(CheckRange("temperature", p.temperature, p.temperature >= 0 && p.temperature <= 2,
                      "between 0 and 2"));
  WEIR_TRY(CheckRange("top_p", p.top_p, p.top_p > 0 && p.top_p <= 1, "above 0 and at most 1"));
  WEIR_TRY(CheckRange("min_p", p.min_p, p.min_p >= 0 && p.min_p <= 1, "between 0 and 1"));
  WEIR_TRY(CheckRange("top_k", p.top_k, p.top_k >= -1, "-1 or 0 (off) or at least 1"));
  WEIR_TRY(CheckRange("repetition_penalty", p.repetition_penalty,
                      p.repetition_penalty > 0 && p.repetition_penalty <= 2,
                      "above 0 and at most 2"));
  WEIR_TRY(CheckRange("presence_penalty", p.presence_penalty,
                      p.presence_penalty >= -2 && p.presence_penalty <= 2, "between -2 and 2"));
  WEIR_TRY(CheckRange("frequency_penalty", p.frequency_penalty,
                      p.frequency_penalty >= -2 && p.frequency_penalty <= 2, "between -2 and 2"));
  WEIR_TRY(CheckRange("logprobs", p.logprobs, p.logprobs >= -1 && p.logprobs <= 20,
                      "-1 (off) or between 0 and 20"));
  if (p.max_tokens > 0 && p.min_tokens > p.max_tokens) {
    return InvalidArgument("min_tokens must be at most max_tokens (" +
                           std::to_string(p.max_tokens) + "), got " + std::to_string(p.min_tokens));
  }
  if (p.stop.size() > 16) {
    return InvalidArgument("stop must hold at most 16 strings, got " +
                           std::to_string(p.stop.size()));
  }
  for (const std::string& stop : p.stop) {
    if (stop.empty() || stop.size() > 256) {
      return InvalidArgument("stop must hold strings of 1 to 256 bytes, got one of " +
                             std::to_string(stop.size()));
    }
  }
  for (const int32_t token : p.stop_token_ids) {
    WEIR_TRY(CheckToken("stop_token_ids", token, vocab_size));
  }
  if (p.logit_bias.size() > 1024) {
    return InvalidArgument("logit_bias must hold at most 1024 tokens, got " +
                           std::to_string(p.logit_bias.size()));
  }
  for (const auto& [token, bias] : p.logit_bias) {
    WEIR_TRY(CheckToken("logit_bias", token, vocab_size));
    WEIR_TRY(CheckRange("logit_bias", static_cast<double>(bias), bias >= -100 && bias <= 100,
                        "between -100 and 100"));
  }
  return OkStatus();
}

TokenHistory::Entry& TokenHistory::EntryOf(int32_t token) {
  const auto [it, added] = index_.try_emplace(token, static_cast<uint32_t>(entries_.size()));
  if (added) entries_.push_back({token, false, 0});
  return entries_[it->second];
}

void TokenHistory::AddPrompt(std::span<const int32_t> tokens) {
  if (keep_ == Keep::kNumber) return;
  for (const int32_t token : tokens) EntryOf(token).in_prompt = true;
}

void TokenHistory::AddOutput(int32_t token) {
  ++output_tokens_;
  if (keep_ == Keep::kTokens) ++EntryOf(token).output_count;
}

double SamplingUniform(const std::optional<uint64_t>& seed, uint64_t request_key,
                       uint64_t position) {
  const uint64_t key = seed.value_or(request_key);
  const auto low = [](uint64_t v) { return static_cast<uint32_t>(v); };
  const auto high = [](uint64_t v) { return static_cast<uint32_t>(v >> 32); };
  // The third counter word keeps seeds and request keys apart.
  const auto out =
      Philox({low(position), high(position), seed ? 1u : 0u, 0u}, {low(key), high(key)});
  const uint64_t bits = (static_cast<uint64_t>(out[0]) << 32) | out[1];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

Status Sampler::Scan(std::span<const float> logits) {
  block_max_.resize((logits.size() + kBlock - 1) / kBlock);
  max_ = kMinusInfinity;
  size_t best_block = 0;
  bool nan = false;
  for (size_t b = 0; b < block_max_.size(); ++b) {
    const size_t first = b * kBlock;
    block_max_[b] =
        MaxOfBlock(logits.data() + first, std::min(kBlock, logits.size() - first), &nan);
    if (block_max_[b] > max_) {
      max_ = block_max_[b];
      best_block = b;
    }
  }
  if (nan) return DataLoss("the model produced a logit that is not a number");
  if (max_ == std::numeric_limits<float>::infinity()) {
    return DataLoss("the model produced an infinite logit");
  }
  if (max_ == kMinusInfinity) return DataLoss("no token is possible: every logit is -infinity");
  argmax_ = best_block * kBlock;
  while (logits[argmax_] != max_) ++argmax_;
  return OkStatus();
}

void Sampler::SetLogit(std::span<float> logits, int32_t token, float value) {
  if (token < 0 || static_cast<size_t>(token) >= logits.size()) return;
  float& logit = logits[static_cast<size_t>(token)];
  raw_.emplace_back(token, logit);
  logit = value;
}

void Sampler::Process(std::span<float> logits, const SamplingParams& params,
                      const TokenHistory& history, std::span<const int32_t> eos_tokens) {
  const auto at = [&](int32_t token) {
    const bool known = token >= 0 && static_cast<size_t>(token) < logits.size();
    return known ? logits[static_cast<size_t>(token)] : 0.0f;
  };
  for (const auto& [token, bias] : params.logit_bias) SetLogit(logits, token, at(token) + bias);
  if (history.output_tokens() < params.min_tokens) {
    for (const int32_t token : eos_tokens) SetLogit(logits, token, kMinusInfinity);
    for (const int32_t token : params.stop_token_ids) SetLogit(logits, token, kMinusInfinity);
  }
  if (!params.has_penalties()) return;
  const float repetition = static_cast<float>(params.repetition_penalty);
  const float presence = static_cast<float>(params.presence_penalty);
  const float frequency = static_cast<float>(params.frequency_penalty);
  for (const TokenHistory::Entry& entry : history.entries()) {
    float logit = at(entry.token);
    logit = logit > 0 ? logit / repetition : logit * repetition;
    if (entry.output_count > 0) {
      logit -= frequency * static_cast<float>(entry.output_count);
      logit -= presence;
    }
    SetLogit(logits, entry.token, logit);
  }
}

double Sampler::SumWeights(std::span<const float> logits, float scale) {
  block_sums_.resize(block_max_.size());
  total_ = 0;
  for (size_t b = 0; b < block_sums_.size(); ++b) {
    const size_t first = b * kBlock;
    block_sums_[b] =
        SumOfBlock(logits.data() + first, std::min(kBlock, logits.size() - first), max_, scale);
    total_ += block_sums_[b];
  }
  return total_;
}

float Sampler::KthLargest(std::span<const float> logits, size_t k) {
  const auto descending = [](float a, float b) { return a > b; };
  const auto kth = [&](size_t n) {
    const auto place = values_.begin() + static_cast<ptrdiff_t>(n - 1);
    std::nth_element(values_.begin(), place, values_.end(), descending);
    return *place;
  };
  if (k <= block_max_.size()) {
    // The k-th largest of the block maxima is a lower bound: k blocks hold a logit that large.
    values_ = block_max_;
    const float least = kth(k);
    values_.clear();
    for (size_t b = 0; b < block_max_.size(); ++b) {
      if (block_max_[b] < least) continue;
      const size_t end = std::min(logits.size(), (b + 1) * kBlock);
      for (size_t i = b * kBlock; i < end; ++i) {
        if (logits[i] >= least) values_.push_back(logits[i]);
      }
    }
    return kth(k);
  }
  // Many wanted: count by the upper bits, then look into the one bucket that holds the k-th.
  constexpr uint32_t kShift = 20;
  histogram_.assign(size_t{1} << (32 - kShift), 0);
  for (const float v : logits) ++histogram_[OrderedKey(v) >> kShift];
  size_t bucket = histogram_.size() - 1;
  while (histogram_[bucket] < k) k -= histogram_[bucket--];
  values_.clear();
  for (const float v : logits) {
    if (OrderedKey(v) >> kShift == bucket) values_.push_back(v);
  }
  return kth(k);
}

void Sampler::Collect(std::span<const float> logits, float least, float scale) {
  logits_.resize(logits.size());
  tokens_.resize(logits.size());
  size_t n = 0;
  for (size_t b = 0; b < block_max_.size(); ++b) {
    if (block_max_[b] < least) continue;
    const size_t end = std::min(logits.size(), (b + 1) * kBlock);
    for (size_t i = b * kBlock; i < end; ++i) {  // without a branch: which stay is random
      logits_[n] = logits[i];
      tokens_[n] = static_cast<int32_t>(i);
      n += logits[i] >= least ? 1u : 0u;
    }
  }
  logits_.resize(n);
  tokens_.resize(n);
  weights_.resize(n);
  FillWeights(logits_.data(), n, max_, scale, weights_.data());
}

template <typename Keep>
void Sampler::KeepCandidates(Keep keep) {
  size_t n = 0;
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const bool stays = keep(i);
    logits_[n] = logits_[i];
    weights_[n] = weights_[i];
    tokens_[n] = tokens_[i];
    n += stays ? 1u : 0u;
  }
  logits_.resize(n);
  weights_.resize(n);
  tokens_.resize(n);
}

double Sampler::CandidateMass() const {
  double mass = 0;
  for (const float w : weights_) mass += static_cast<double>(w);
  return mass;
}

double Sampler::FillTop(std::span<const float> logits, int32_t count, SampledToken* result) {
  const double log_total = std::log(SumWeights(logits, 1.0f)) + static_cast<double>(max_);
  const size_t wanted = std::min(static_cast<size_t>(count), logits.size());
  if (wanted == 0) return log_total;
  Collect(logits, KthLargest(logits, wanted), 1.0f);
  order_.clear();
  for (size_t i = 0; i < tokens_.size(); ++i) order_.push_back({logits_[i], 0, tokens_[i]});
  std::partial_sort(order_.begin(), order_.begin() + static_cast<ptrdiff_t>(wanted), order_.end(),
                    Better);
  for (size_t i = 0; i < wanted; ++i) {
    const double logprob = static_cast<double>(order_[i].logit) - log_total;
    result->top.push_back({order_[i].token, static_cast<float>(logprob)});
  }
  return log_total;
}

Sampler::Support Sampler::Filter(std::span<const float> logits, const SamplingParams& params) {
  const float scale = static_cast<float>(1.0 / params.temperature);
  const bool top_k = params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size();
  const bool top_p = params.top_p < 1;
  double total = 0;
  float least = kMinusInfinity;
  if (top_k) least = KthLargest(logits, static_cast<size_t>(params.top_k));
  if (!top_k && params.min_p <= 0) {
    total = SumWeights(logits, scale);
    if (!top_p) return Support::kAll;
    // Tokens less likely than (1 - top_p) / n hold less than 1 - top_p together: none is needed.
    const double weight = (1 - params.top_p) / static_cast<double>(logits.size()) * total;
    const double distance = std::log(weight) / static_cast<double>(scale);
    least = static_cast<float>(static_cast<double>(max_) + distance) - 1e-3f;
  } else if (params.min_p > 0) {  // collect a little more, then decide by weight
    const double distance = std::log(params.min_p) / static_cast<double>(scale);
    least = std::max(least, static_cast<float>(static_cast<double>(max_) + distance) - 1e-3f);
  }
  least = std::max(least, max_ - 88.0f / scale);  // below, a weight is zero
  Collect(logits, least, scale);
  if (params.min_p > 0) {
    const float least_weight = static_cast<float>(params.min_p);
    KeepCandidates([&](size_t i) { return weights_[i] >= least_weight; });
  }
  if (top_p) SelectTopP(params.top_p, total > 0 ? total : CandidateMass());
  return Support::kCandidates;
}

void Sampler::SelectTopP(double top_p, double total) {
  const double target = top_p * total;
  // Buckets of equal width over the logits: all tokens of better buckets stay, and only the bucket
  // in which the mass reaches the target needs an order.
  constexpr size_t kBuckets = 1024;
  const float worst_logit = *std::min_element(logits_.begin(), logits_.end());
  const float per_logit = static_cast<float>(kBuckets - 1) / std::max(max_ - worst_logit, 1e-20f);
  const auto bucket_of = [&](float logit) {
    return std::min(kBuckets - 1, static_cast<size_t>((max_ - logit) * per_logit));
  };
  double mass = 0;  // of the tokens better than those looked at
  order_.clear();
  if (tokens_.size() > 2 * kBuckets) {
    bucket_mass_.assign(kBuckets, 0);
    for (size_t i = 0; i < tokens_.size(); ++i) {
      bucket_mass_[bucket_of(logits_[i])] += static_cast<double>(weights_[i]);
    }
    size_t bucket = 0;
    while (bucket + 1 < kBuckets && mass + bucket_mass_[bucket] < target) {
      mass += bucket_mass_[bucket++];
    }
    while (bucket > 0 && bucket_mass_[bucket] == 0) mass -= bucket_mass_[--bucket];  // rounding
    for (size_t i = 0; i < tokens_.size(); ++i) {
      if (bucket_of(logits_[i]) == bucket) order_.push_back({logits_[i], weights_[i], tokens_[i]});
    }
  } else {
    for (size_t i = 0; i < tokens_.size(); ++i) {
      order_.push_back({logits_[i], weights_[i], tokens_[i]});
    }
  }
  const Candidate worst = LastOfMass(mass, target);
  KeepCandidates([&](size_t i) {
    return !Better(worst, Candidate{logits_[i], weights_[i], tokens_[i]});
  });
}

// Reorders order_ and returns the last token that stays: those better than it, together with |mass|
// outside order_, hold less than |target|. Quickselect by mass.
Sampler::Candidate Sampler::LastOfMass(double mass, double target) {
  size_t first = 0, last = order_.size();
  // A median of three distinct tokens is never the worst, so each round cuts something off; after
  // too many rounds (an adverse order) sorting is the better end.
  for (int round = 0; round < 64 && last - first > 48; ++round) {
    const Candidate a = order_[first], b = order_[first + (last - first) / 2], c = order_[last - 1];
    const Candidate pivot = Better(a, b) ? (Better(b, c)   ? b
                                            : Better(a, c) ? c
                                                           : a)
                                         : (Better(a, c)   ? a
                                            : Better(b, c) ? c
                                                           : b);
    double left = 0;
    size_t split = first;  // those not worse than the pivot go before it
    for (size_t i = first; i < last; ++i) {
      if (Better(pivot, order_[i])) continue;
      left += static_cast<double>(order_[i].weight);
      std::swap(order_[i], order_[split++]);
    }
    if (mass + left >= target) {
      last = split;
    } else {
      mass += left;
      first = split;
    }
  }
  std::sort(order_.begin() + static_cast<ptrdiff_t>(first),
            order_.begin() + static_cast<ptrdiff_t>(last), Better);
  size_t kept = first;
  while (kept < last && (kept == 0 || mass < target)) {
    mass += static_cast<double>(order_[kept++].weight);
  }
  return order_[kept - 1];
}

int32_t Sampler::DrawFromAll(std::span<const float> logits, float scale, double uniform) const {
  const double target = uniform * total_;
  double sum = 0;
  size_t block = 0, last_possible = 0;
  for (; block < block_sums_.size(); ++block) {
    if (block_sums_[block] > 0) last_possible = block;
    if (sum + block_sums_[block] > target) break;
    sum += block_sums_[block];
  }
  if (block == block_sums_.size()) block = last_possible;  // rounding at the upper end
  const size_t first = block * kBlock;
  const size_t count = std::min(kBlock, logits.size() - first);
  std::array<float, kBlock> weights;
  FillWeights(logits.data() + first, count, max_, scale, weights.data());
  return static_cast<int32_t>(first + PickByMass({weights.data(), count}, target - sum));
}

int32_t Sampler::DrawFromCandidates(double uniform) const {
  return tokens_[PickByMass(weights_, uniform * CandidateMass())];
}

Result<SampledToken> Sampler::Sample(std::span<float> logits, const SamplingParams& params,
                                     const TokenHistory& history, uint64_t request_key,
                                     uint64_t position, std::span<const int32_t> eos_tokens) {
  SampledToken result;
  double log_total = 0;
  raw_.clear();
  if (params.logprobs >= 0) {
    WEIR_TRY(Scan(logits));
    log_total = FillTop(logits, params.logprobs, &result);
  }
  Process(logits, params, history, eos_tokens);
  if (params.logprobs < 0 || !raw_.empty()) WEIR_TRY(Scan(logits));
  if (params.greedy()) {
    result.token = static_cast<int32_t>(argmax_);
  } else {
    const double uniform = SamplingUniform(params.seed, request_key, position);
    const float scale = static_cast<float>(1.0 / params.temperature);
    result.token = Filter(logits, params) == Support::kAll ? DrawFromAll(logits, scale, uniform)
                                                           : DrawFromCandidates(uniform);
  }
  if (params.logprobs >= 0) {
    float logit = logits[static_cast<size_t>(result.token)];
    const auto changed = std::find_if(raw_.begin(), raw_.end(), [&](const auto& entry) {
      return entry.first == result.token;  // the first change saw the raw logit
    });
    if (changed != raw_.end()) logit = changed->second;
    result.logprob = static_cast<float>(static_cast<double>(logit) - log_total);
  }
  return result;
}

Result<std::vector<TokenProbability>> Sampler::Distribution(std::span<float> logits,
                                                            const SamplingParams& params,
                                                            const TokenHistory& history,
                                                            std::span<const int32_t> eos_tokens) {
  raw_.clear();
  Process(logits, params, history, eos_tokens);
  WEIR_TRY(Scan(logits));
  std::vector<TokenProbability> distribution;
  if (params.greedy()) {
    distribution.push_back({static_cast<int32_t>(argmax_), 1.0});
    return distribution;
  }
  const float scale = static_cast<float>(1.0 / params.temperature);
  if (Filter(logits, params) == Support::kAll) Collect(logits, kMinusInfinity, scale);
  const double total = CandidateMass();
  for (size_t i = 0; i < tokens_.size(); ++i) {
    if (weights_[i] > 0) {
      distribution.push_back({tokens_[i], static_cast<double>(weights_[i]) / total});
    }
  }
  return distribution;
}

}  // namespace weir
