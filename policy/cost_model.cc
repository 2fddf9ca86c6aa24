#include "policy/cost_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

namespace weir {
namespace {

constexpr double kMaxValue = 1e18;       // larger inputs are measurement errors
constexpr double kRidge = 1e-9;          // makes indistinguishable columns share evenly
constexpr double kAnchorSteps = 4;       // what the calibration weighs for good, in steps
constexpr double kProximalSteps = 0.01;  // what the previous coefficients weigh
constexpr int kHuberRounds = 6;
constexpr double kHuberThreshold = 1.5;  // deviations; the usual 95 % efficiency is 1.345
// free_tokens is looked for in steps of so many, up to so many, and must shrink the error to this
// share to be believed.
constexpr double kFreeStep = 16;
constexpr double kFreeMost = 512;
constexpr double kFreeGain = 0.7;
// A step tells the link's speed if it stood at gates and streaming explains most of its time, or
// most of it was standing: the first steps after a move stand too, for the latency of one stripe.
constexpr double kLeastStall = 0.01;
constexpr double kStreamShare = 0.75;
constexpr double kMostlyStall = 0.3;
constexpr double kLeastWaited = 0.25;  // of the gates; chunks of a layer may differ in size
constexpr double kPresetCopies = 4;    // what a preset speed weighs, in copies

bool Usable(const StepSample& s) {
  const auto sane = [](double v) { return std::isfinite(v) && v >= 0 && v <= kMaxValue; };
  return sane(s.tokens) && sane(s.context) && sane(s.pairs) && sane(s.evicted_bytes) &&
         sane(s.stall_ns) && sane(s.step_ns) && s.step_ns > 0 && s.stall_ns < s.step_ns;
}

double ComputeNs(const StepSample& s) {
  return s.step_ns - s.stall_ns;
}

double Median(std::vector<double> values) {
  const size_t middle = values.size() / 2;
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(middle), values.end());
  return values[middle];
}

template <size_t N>
using Square = std::array<std::array<double, N>, N>;

// Solves the symmetric positive definite system of the |subset| of rows and columns by Cholesky.
// False when it is not numerically positive definite.
template <size_t N>
bool SolveSubset(const Square<N>& a, const std::array<double, N>& b, unsigned subset,
                 std::array<double, N>* x) {
  std::array<size_t, N> index{};
  size_t n = 0;
  for (size_t i = 0; i < N; ++i) {
    if ((subset >> i) & 1u) index[n++] = i;
  }
  Square<N> l{};
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j <= i; ++j) {
      double sum = a[index[i]][index[j]];
      for (size_t k = 0; k < j; ++k) sum -= l[i][k] * l[j][k];
      if (i == j) {
        if (!(sum > 0)) return false;
        l[i][i] = std::sqrt(sum);
      } else {
        l[i][j] = sum / l[j][j];
      }
    }
  }
  std::array<double, N> y{};
  for (size_t i = 0; i < n; ++i) {
    double sum = b[index[i]];
    for (size_t k = 0; k < i; ++k) sum -= l[i][k] * y[k];
    y[i] = sum / l[i][i];
  }
  x->fill(0);
  for (size_t i = n; i-- > 0;) {
    double sum = y[i];
    for (size_t k = i + 1; k < n; ++k) sum -= l[k][i] * (*x)[index[k]];
    (*x)[index[i]] = sum / l[i][i];
    if (!std::isfinite((*x)[index[i]])) return false;
  }
  return true;
}

// Non-negative least squares over normal equations by trying every set of active columns: exact,
// and with five columns cheaper than being clever (Lawson & Hanson, "Solving Least Squares
// Problems", chapter 23, is the general method).
template <size_t N>
std::array<double, N> NonNegativeLeastSquares(const Square<N>& a, const std::array<double, N>& b) {
  constexpr unsigned kAll = (1u << N) - 1;
  std::array<double, N> best{};
  // Without a bound in the way nothing is better.
  if (SolveSubset(a, b, kAll, &best) &&
      std::all_of(best.begin(), best.end(), [](double v) { return v >= 0; })) {
    return best;
  }
  best = {};
  double best_objective = 0;  // of x = 0
  for (unsigned subset = 1; subset < kAll; ++subset) {
    std::array<double, N> x{};
    if (!SolveSubset(a, b, subset, &x)) continue;
    if (std::any_of(x.begin(), x.end(), [](double v) { return v < 0; })) continue;
    double objective = 0;  // x'Ax/2 - b'x, the residual up to a constant
    for (size_t i = 0; i < N; ++i) {
      for (size_t j = 0; j < N; ++j) objective += 0.5 * x[i] * a[i][j] * x[j];
      objective -= b[i] * x[i];
    }
    if (objective < best_objective) {
      best_objective = objective;
      best = x;
    }
  }
  return best;
}

}  // namespace

CostModel::CostModel(const CostModelConfig& config)
    : config_(config), deviation_(config.initial_deviation) {}

CostModel::Vector CostModel::Features(const StepSample& s) const {
  return {1.0 / column_scale_[0], cost_.DearTokens(s.tokens) / column_scale_[1],
          s.context / column_scale_[2], s.evicted_bytes / column_scale_[3],
          s.pairs / column_scale_[4]};
}

Status CostModel::Calibrate(std::span<const StepSample> samples) {
  std::vector<StepSample> usable;
  std::copy_if(samples.begin(), samples.end(), std::back_inserter(usable), Usable);
  if (usable.empty()) {
    return InvalidArgument("calibrating the step cost needs at least one finished step; of " +
                           std::to_string(samples.size()) + " samples none is usable");
  }
  counters_.dropped += samples.size() - usable.size();

  std::vector<double> times;
  Vector scale{1, 0, 0, 0, 0};
  for (const StepSample& s : usable) {
    times.push_back(ComputeNs(s));
    scale[1] = std::max(scale[1], s.tokens);
    scale[2] = std::max(scale[2], s.context);
    scale[3] = std::max(scale[3], s.evicted_bytes);
    scale[4] = std::max(scale[4], s.pairs);
  }
  for (double& v : scale) v = v > 0 ? v : 1;
  const double most_tokens = scale[1];
  column_scale_ = scale;
  time_scale_ = std::max(Median(times), 1e-6);

  Matrix a{};
  cost_.free_tokens = 0;
  double best = Fit(usable, &a) * kFreeGain;
  double free = 0;
  for (double f = kFreeStep; f <= std::min(kFreeMost, most_tokens / 2); f += kFreeStep) {
    cost_.free_tokens = f;
    const double error = Fit(usable, &a);
    if (error < best) {
      best = error;
      free = f;
    }
  }
  cost_.free_tokens = free;
  (void)Fit(usable, &a);

  // Serving starts from these samples; a little of them stays, so that what a steady load does not
  // excite keeps its calibrated value.
  recent_ = a;
  anchor_ = a;
  const double scale_to_anchor = kAnchorSteps / static_cast<double>(usable.size());
  for (size_t i = 0; i < kTerms; ++i) {
    recent_target_[i] = 0;
    anchor_target_[i] = 0;
    for (size_t j = 0; j < kTerms; ++j) {
      recent_target_[i] += a[i][j] * theta_[j];
      anchor_[i][j] *= scale_to_anchor;
      anchor_target_[i] += anchor_[i][j] * theta_[j];
    }
  }
  calibrated_ = true;
  Publish();
  return OkStatus();
}

double CostModel::Fit(std::span<const StepSample> samples, Matrix* normal) {
  // Iteratively re-weighted: relative errors first, then Huber's weights.
  std::vector<double> weight(samples.size(), 1.0);
  std::vector<double> relative(samples.size(), 0.0);
  Matrix a{};
  for (int round = 0; round < kHuberRounds; ++round) {
    a = {};
    Vector b{};
    for (size_t n = 0; n < samples.size(); ++n) {
      const Vector x = Features(samples[n]);
      const double y = ComputeNs(samples[n]) / time_scale_;
      const double w = weight[n] / (y * y);
      for (size_t i = 0; i < kTerms; ++i) {
        for (size_t j = 0; j < kTerms; ++j) a[i][j] += w * x[i] * x[j];
        b[i] += w * x[i] * y;
      }
    }
    double diagonal = 0;
    for (size_t i = 0; i < kTerms; ++i) diagonal = std::max(diagonal, a[i][i]);
    for (size_t i = 0; i < kTerms; ++i) a[i][i] += kRidge * diagonal;
    theta_ = NonNegativeLeastSquares<kTerms>(a, b);
    for (size_t n = 0; n < samples.size(); ++n) {
      const Vector x = Features(samples[n]);
      const double measured = ComputeNs(samples[n]) / time_scale_;
      double predicted = 0;
      for (size_t i = 0; i < kTerms; ++i) predicted += theta_[i] * x[i];
      relative[n] = std::abs(measured - predicted) / measured;
    }
    deviation_ = std::max(config_.least_deviation, 1.4826 * Median(relative));
    for (size_t n = 0; n < samples.size(); ++n) {
      const double limit = kHuberThreshold * deviation_;
      weight[n] = relative[n] <= limit ? 1.0 : limit / relative[n];
    }
  }
  *normal = a;
  double sum = 0;
  for (const double r : relative) sum += r;
  return sum / static_cast<double>(samples.size());
}

void CostModel::Observe(const StepSample& sample) {
  if (!Usable(sample)) {
    ++counters_.dropped;
    return;
  }
  ObserveLink(sample);
  if (!calibrated_) {
    if (Calibrate({&sample, 1}).ok()) ++counters_.learnt;
    return;
  }
  if (config_.memory_steps <= 0) return;
  // The first step with eviction sets the unit of that column.
  if (sample.evicted_bytes > 0 && theta_[3] == 0 && column_scale_[3] == 1) {
    column_scale_[3] = sample.evicted_bytes;
  }
  Vector x = Features(sample);
  double predicted = 0;
  for (size_t i = 0; i < kTerms; ++i) predicted += theta_[i] * x[i];
  const double measured = ComputeNs(sample) / time_scale_;
  const double reference = std::max({predicted, measured * 1e-3, 1e-9});
  double innovation = (measured - predicted) / reference;  // relative
  const double limit = config_.clip_deviations * deviation_;
  if (config_.clip_deviations > 0 && std::abs(innovation) > limit) {
    innovation = std::copysign(limit, innovation);
    ++counters_.clipped;
  }
  const double forget = 1.0 / std::max(8.0, config_.memory_steps);
  // Clipped deviations still widen the limit: a lasting change gets through, a single spike not.
  deviation_ += std::max(forget, 0.02) * (1.25 * std::abs(innovation) - deviation_);
  deviation_ = std::clamp(deviation_, config_.least_deviation, 10.0);

  const double largest = *std::max_element(x.begin(), x.end());
  if (!(largest < 1e6)) {  // far outside what was calibrated: would swamp everything else
    ++counters_.dropped;
    return;
  }
  for (double& v : x) v /= reference;
  const double target = predicted / reference + innovation;
  for (size_t i = 0; i < kTerms; ++i) {
    for (size_t j = 0; j < kTerms; ++j) {
      recent_[i][j] = (1 - forget) * recent_[i][j] + x[i] * x[j];
    }
    recent_target_[i] = (1 - forget) * recent_target_[i] + x[i] * target;
  }
  Refit();
  ++counters_.learnt;
  Publish();
}

// Minimises the forgetting sum of squares, anchored weakly at the calibration and, where neither
// says anything (interference long after the last eviction), at the previous coefficients.
void CostModel::Refit() {
  Matrix a = anchor_;
  Vector b = anchor_target_;
  for (size_t i = 0; i < kTerms; ++i) {
    for (size_t j = 0; j < kTerms; ++j) a[i][j] += recent_[i][j];
    a[i][i] += kProximalSteps;
    b[i] += recent_target_[i] + kProximalSteps * theta_[i];
  }
  const Vector fitted = NonNegativeLeastSquares<kTerms>(a, b);
  for (size_t i = 0; i < kTerms; ++i) {
    if (std::isfinite(fitted[i])) theta_[i] = std::clamp(fitted[i], 0.0, 1e12);
  }
}

void CostModel::ObserveLink(const StepSample& s) {
  const bool behind_bound = std::exchange(link_bound_, false);
  if (!(s.evicted_bytes >= 1) || !s.streamed_evenly) return;
  const double inside =
      behind_bound ? s.evicted_bytes : std::max(0.0, s.evicted_bytes - s.ahead_bytes);
  const double known = cost_.link_bytes_per_ns;
  const bool stood = s.stall_ns >= kLeastStall * s.step_ns;
  const bool streamed = s.evicted_bytes >= kStreamShare * known * s.step_ns;
  const bool slow = s.stall_ns >= kMostlyStall * s.step_ns;
  const bool faster = known > 0 && inside > known * s.step_ns;
  const bool bound = s.waited_share >= kLeastWaited && ((stood && streamed) || slow);
  link_bound_ = bound;
  if (bound || faster) {
    ObserveCopy(static_cast<uint64_t>(inside), static_cast<uint64_t>(std::max(1.0, s.step_ns)));
  }
}

void CostModel::ObserveCopy(uint64_t bytes, uint64_t duration_ns) {
  if (bytes == 0 || duration_ns == 0) {
    ++counters_.dropped;
    return;
  }
  double b = static_cast<double>(bytes);
  double ns = static_cast<double>(duration_ns);
  if (link_ns_ > 0) {
    // A copy that had to share the link, or a clock that jumped, counts at most four times off.
    const double known = link_bytes_ / link_ns_;
    const double rate = b / ns;
    if (rate > 4 * known) ns = b / (4 * known);
    if (rate < known / 4) ns = b / (known / 4);
  }
  if (link_preset_) {
    link_ns_ = kPresetCopies * b * link_ns_ / link_bytes_;
    link_bytes_ = kPresetCopies * b;
    link_preset_ = false;
  }
  const double keep = 1.0 - 1.0 / std::max(1.0, config_.link_memory_copies);
  link_bytes_ = keep * link_bytes_ + b;
  link_ns_ = keep * link_ns_ + ns;
  ++counters_.copies;
  Publish();
}

void CostModel::SetLinkSpeed(double bytes_per_ns) {
  const bool known = std::isfinite(bytes_per_ns) && bytes_per_ns > 0;
  link_bytes_ = known ? bytes_per_ns : 0;
  link_ns_ = known ? 1 : 0;
  link_preset_ = known;
  Publish();
}

void CostModel::Publish() {
  const auto coefficient = [&](size_t i) {
    const double v = theta_[i] * time_scale_ / column_scale_[i];
    return std::isfinite(v) && v > 0 ? v : 0.0;
  };
  cost_.fixed_ns = coefficient(0);
  cost_.per_token_ns = coefficient(1);
  cost_.per_context_ns = coefficient(2);
  cost_.copy_interference = coefficient(3);
  cost_.per_pair_ns = coefficient(4);
  const double speed = link_ns_ > 0 ? link_bytes_ / link_ns_ : 0;
  cost_.link_bytes_per_ns = std::isfinite(speed) && speed > 0 ? speed : 0;
}

}  // namespace weir
