#include "engine/bench/random.h"

#include <cmath>

namespace weir::bench {
namespace {

constexpr double kTau = 6.283185307179586;

// The finaliser of SplitMix64: neighbouring seeds give unrelated streams.
uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27U)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31U);
}

}  // namespace

Random::Random(uint64_t seed, uint64_t stream) : engine_(Mix(Mix(seed) ^ stream)) {}

double Random::Uniform() {
  return static_cast<double>(Bits() >> 11U) * 0x1p-53;
}

uint64_t Random::Below(uint64_t n) {
  const uint64_t rejected = (0 - n) % n;  // 2^64 mod n
  uint64_t bits = Bits();
  while (bits < rejected) bits = Bits();
  return bits % n;
}

double Random::Normal() {
  const double radius = std::sqrt(2 * Exponential());
  return radius * std::cos(kTau * Uniform());
}

double Random::Exponential() {
  return -std::log1p(-Uniform());
}

double Random::Gamma(double shape) {
  if (shape < 1) {
    const double larger = Gamma(shape + 1);
    return larger * std::pow(1 - Uniform(), 1 / shape);
  }
  const double d = shape - 1.0 / 3;
  const double c = 1 / std::sqrt(9 * d);
  for (;;) {
    const double x = Normal();
    const double v = std::pow(1 + c * x, 3);
    if (v <= 0) continue;
    const double u = 1 - Uniform();  // (0, 1]
    if (std::log(u) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
  }
}

}  // namespace weir::bench
