// Rotary frequencies. The order of operations and the points where doubles become floats follow
// transformers' modeling_rope_utils.py: angles at position 10^5 magnify the last bit of a
// frequency.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "engine/model/model_config.h"

namespace weir {

namespace {

// theta^(2i/dim) for i in [0, dim/2): torch's float32 base ** (arange / dim).
std::vector<float> PositionFrequencies(const ModelConfig& config) {
  const auto base = static_cast<float>(config.rope.theta);
  const auto dim = static_cast<float>(config.head_dim);
  std::vector<float> out(config.head_dim / 2);
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = std::pow(base, static_cast<float>(2 * i) / dim);
  }
  return out;
}

void ApplyLlama3(const RopeConfig& rope, std::vector<float>& inverse) {
  const auto factor = static_cast<float>(rope.factor);
  const auto low = static_cast<float>(rope.low_freq_factor);
  const auto original = static_cast<float>(rope.original_max_position);
  const auto low_wavelen =
      static_cast<float>(static_cast<double>(rope.original_max_position) / rope.low_freq_factor);
  const auto high_wavelen =
      static_cast<float>(static_cast<double>(rope.original_max_position) / rope.high_freq_factor);
  const auto span = static_cast<float>(rope.high_freq_factor - rope.low_freq_factor);
  constexpr auto kTwoPi = static_cast<float>(2 * std::numbers::pi);
  for (float& f : inverse) {
    // torch computes scalar / tensor as reciprocal times scalar.
    const float wavelen = (1.0f / f) * kTwoPi;
    if (wavelen > low_wavelen) {
      f = f / factor;
    } else if (!(wavelen < high_wavelen)) {
      const float smooth = ((1.0f / wavelen) * original - low) / span;
      f = (1.0f - smooth) * f / factor + smooth * f;
    }
  }
}

// The (fractional) dimension that makes |rotations| turns over the original context.
double CorrectionDim(double rotations, const ModelConfig& config) {
  const double original = config.rope.original_max_position;
  return config.head_dim * std::log(original / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(config.rope.theta));
}

void ApplyYarn(const ModelConfig& config, const std::vector<float>& pos_freqs,
               std::vector<float>& inverse) {
  const RopeConfig& rope = config.rope;
  double low = CorrectionDim(rope.beta_fast, config);
  double high = CorrectionDim(rope.beta_slow, config);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(config.head_dim) - 1);
  if (low == high) high += 0.001;
  const auto start = static_cast<float>(low);
  const auto span = static_cast<float>(high - low);
  const auto factor = static_cast<float>(rope.factor);
  for (size_t i = 0; i < inverse.size(); ++i) {
    const float ramp = std::clamp((static_cast<float>(i) - start) / span, 0.0f, 1.0f);
    const float extrapolation = 1.0f - ramp;
    const float interpolated = 1.0f / (factor * pos_freqs[i]);
    inverse[i] = interpolated * (1.0f - extrapolation) + inverse[i] * extrapolation;
  }
}

double YarnMscale(double scale, double mscale) {
  return scale <= 1 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0;
}

}  // namespace

std::vector<float> RopeInverseFrequencies(const ModelConfig& config) {
  const std::vector<float> pos_freqs = PositionFrequencies(config);
  std::vector<float> inverse(pos_freqs.size());
  for (size_t i = 0; i < inverse.size(); ++i) inverse[i] = 1.0f / pos_freqs[i];
  switch (config.rope.kind) {
    case RopeKind::kNone: break;
    case RopeKind::kLinear:
      for (float& f : inverse) f = f / static_cast<float>(config.rope.factor);
      break;
    case RopeKind::kLlama3: ApplyLlama3(config.rope, inverse); break;
    case RopeKind::kYarn: ApplyYarn(config, pos_freqs, inverse); break;
  }
  for (size_t i = 0; i < config.rope.divisors.size() && i < inverse.size(); ++i) {
    inverse[i] = inverse[i] / config.rope.divisors[i];
  }
  return inverse;
}

float RopeAttentionScale(const ModelConfig& config) {
  const RopeConfig& rope = config.rope;
  if (rope.kind != RopeKind::kYarn) return 1.0f;
  if (rope.attention_factor) return static_cast<float>(*rope.attention_factor);
  // transformers tests truth, so an explicit 0 counts as absent.
  const double mscale = rope.mscale.value_or(0);
  const double all_dim = rope.mscale_all_dim.value_or(0);
  if (mscale != 0 && all_dim != 0) {
    return static_cast<float>(YarnMscale(rope.factor, mscale) / YarnMscale(rope.factor, all_dim));
  }
  return static_cast<float>(YarnMscale(rope.factor, 1.0));
}

}  // namespace weir
