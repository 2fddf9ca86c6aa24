// Random: the numbers that workloads are made of.
//
// The standard fixes std::mt19937_64 but not its distributions: these are our own, so that one seed
// gives the same requests with every standard library.
#pragma once

#include <cstdint>
#include <random>

namespace weir::bench {

class Random {
 public:
  // |stream| separates uses of one seed: lengths, tokens, arrivals.
  Random(uint64_t seed, uint64_t stream);

  uint64_t Bits() { return engine_(); }
  double Uniform();            // [0, 1)
  uint64_t Below(uint64_t n);  // [0, n), n > 0, without bias
  double Normal();             // mean 0, variance 1 (Box-Muller)
  double Exponential();        // mean 1
  double Gamma(double shape);  // mean |shape| > 0 (Marsaglia and Tsang 2000)

 private:
  std::mt19937_64 engine_;
};

}  // namespace weir::bench
