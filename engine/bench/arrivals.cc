#include "engine/bench/arrivals.h"

#include <algorithm>
#include <cmath>

#include "engine/bench/random.h"

namespace weir::bench {
namespace {

constexpr uint64_t kArrivalStream = 1;

double RateAt(const ArrivalOptions& o, size_t index, size_t requests) {
  if (o.ramp_up == RampUp::kNone) return o.request_rate;
  const double progress =
      static_cast<double>(index) / static_cast<double>(std::max<size_t>(requests - 1, 1));
  if (o.ramp_up == RampUp::kLinear) return o.ramp_start + (o.ramp_end - o.ramp_start) * progress;
  return o.ramp_start * std::pow(o.ramp_end / o.ramp_start, progress);
}

}  // namespace

Status ValidateArrivals(const ArrivalOptions& o) {
  if (!std::isfinite(o.request_rate) || o.request_rate < 0) {
    return InvalidArgument("request_rate must be above 0, or 0 (or inf) for all at once");
  }
  if (!std::isfinite(o.burstiness) || o.burstiness < 1e-3 || o.burstiness > 1e6) {
    return InvalidArgument("burstiness must be from 0.001 to 1000000; 1 is a Poisson process");
  }
  if (o.ramp_up == RampUp::kNone) return OkStatus();
  const auto positive = [](double rate) { return std::isfinite(rate) && rate > 0; };
  if (!positive(o.ramp_start) || !positive(o.ramp_end)) {
    return InvalidArgument("a ramp-up needs ramp-up-start-rps and ramp-up-end-rps above 0");
  }
  if (o.request_rate != 0) {
    return InvalidArgument("give a request rate or a ramp-up, not both");
  }
  return OkStatus();
}

std::vector<TimeNs> ArrivalTimes(size_t requests, const ArrivalOptions& o) {
  std::vector<TimeNs> times(requests, 0);
  if (o.ramp_up == RampUp::kNone && o.request_rate <= 0) return times;
  Random random(o.seed, kArrivalStream);
  std::vector<double> at(requests);
  double sum = 0;
  for (size_t i = 0; i < requests; ++i) {
    sum += random.Gamma(o.burstiness) / (o.burstiness * RateAt(o, i, requests));
    at[i] = sum;
  }
  double scale = 1;
  if (o.ramp_up == RampUp::kNone && sum > 0) {
    scale = static_cast<double>(requests) / o.request_rate / sum;
  }
  for (size_t i = 0; i < requests; ++i) times[i] = static_cast<TimeNs>(at[i] * scale * 1e9);
  return times;
}

}  // namespace weir::bench
