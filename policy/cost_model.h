// CostModel: what a step costs, learnt from measured steps.
//
// Represents the coefficients of StepCost (policy.h) together with how sure they are. At start-up
// a handful of measured steps is fitted by non-negative least squares; while serving every step
// corrects the coefficients a little (recursive least squares with exponential forgetting: Ljung,
// "System Identification", 2nd ed., section 11.2; the normal equations are kept and solved anew,
// which five coefficients allow and which cannot wind up), with outliers clipped. The link's speed
// is measured alone at start-up; steps that stood at gates say what it gives beside a working GPU.
// What was copied before such a step began says nothing of it: behind a step that did not wait for
// the link (a prompt's, say) that is the prefix of its pass.
// Steps that stood for other reasons, or whose copies did not follow each other, do not: an
// estimate that is too low stays, for a policy that believes it sends so little away that nothing
// waits for the link any more.
//
// Owner: the engine, one per model; engine thread only. Nothing here fails after construction:
// unusable samples are counted and dropped, and cost() is finite and non-negative at all times.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "policy/policy.h"
#include "vmm/status.h"

namespace weir {

// One measured step. step_ns is the whole step, gates included; stall_ns is the part of it in which
// the compute stood at gates.
struct StepSample {
  double tokens = 0;         // tokens computed
  double context = 0;        // sum over the sequences of the tokens in their KV
  double evicted_bytes = 0;  // bytes streamed for the step
  double stall_ns = 0;
  double step_ns = 0;
  // Sum over the tokens of prompts (sequences with more than one token) of what each attends to.
  double pairs = 0;
  // Copies followed each other as those of stripes do. Otherwise the link also rested (between
  // whole layers, while the border moved), and how long the step stood says nothing of its speed.
  bool streamed_evenly = true;
  // Of the gates that were passed, those at which the compute stood. Where the link binds it stands
  // at each layer's; at a few it stands for other reasons.
  double waited_share = 1;
  double ahead_bytes = 0;  // of evicted_bytes, what may have been streamed before the step began
};

struct CostModelConfig {
  // How many recent steps the coefficients remember: the weight of a step falls to 1/e after so
  // many. Range [8, 1e6]; 0 disables online correction.
  double memory_steps = 256;
  // A step that is off by more than this many typical deviations is moved to that distance before
  // it is learnt from. Range [1, 100]; 0 disables clipping.
  double clip_deviations = 3.0;
  // The typical relative deviation assumed before any was seen, and the least ever assumed.
  double initial_deviation = 0.10;
  double least_deviation = 0.01;
  // How many recent copies the link speed remembers, by the same rule. Range [1, 1e6].
  double link_memory_copies = 64;
};

class CostModel {
 public:
  explicit CostModel(const CostModelConfig& config = {});

  // Replaces the coefficients by the best non-negative fit of |samples|: relative errors, Huber
  // weights, so that one disturbed sample does not bend the fit. Coefficients that the samples
  // cannot tell apart (one batch size only, say) share the cost evenly. Learns copy_interference
  // too if some samples were taken with eviction, and free_tokens, which stays from then on.
  // kInvalidArgument if no sample is usable; the model is then unchanged.
  Status Calibrate(std::span<const StepSample> samples);

  // Learns from a step while serving, the link's speed too where the step waited for it. Without a
  // calibration the first step is one.
  void Observe(const StepSample& sample);

  // Learns the link's speed from |bytes| that took it |duration_ns| without a pause.
  void ObserveCopy(uint64_t bytes, uint64_t duration_ns);

  // Starts from a known link speed (a profile, an earlier run); 0 forgets it.
  void SetLinkSpeed(double bytes_per_ns);

  const StepCost& cost() const { return cost_; }
  bool calibrated() const { return calibrated_; }
  // Smoothed |measured - predicted| / predicted of the compute part.
  double typical_deviation() const { return deviation_; }

  struct Counters {
    uint64_t learnt = 0;   // steps the coefficients were corrected with
    uint64_t clipped = 0;  // of these, moved nearer first
    uint64_t dropped = 0;  // not finite, negative, or nothing but stall
    uint64_t copies = 0;
  };
  const Counters& counters() const { return counters_; }

 private:
  static constexpr int kTerms = 5;  // fixed, tokens, context, evicted bytes, pairs
  using Vector = std::array<double, kTerms>;
  using Matrix = std::array<Vector, kTerms>;

  // A robust fit with |cost_.free_tokens| as it is: sets theta_ and deviation_, and returns the
  // mean relative error. |normal| becomes the weighted normal equations.
  double Fit(std::span<const StepSample> samples, Matrix* normal);
  Vector Features(const StepSample& sample) const;
  void ObserveLink(const StepSample& sample);
  void Refit();
  void Publish();

  CostModelConfig config_;
  StepCost cost_;
  bool calibrated_ = false;
  // Everything below is in scaled units: a feature is divided by column_scale_, a time by
  // time_scale_, so that typical numbers are near one.
  Vector column_scale_{1, 1, 1, 1, 1};
  double time_scale_ = 1;
  Vector theta_{};
  Matrix recent_{};  // normal equations of the recent steps, forgotten exponentially
  Vector recent_target_{};
  Matrix anchor_{};  // a few steps' worth of the calibration, never forgotten
  Vector anchor_target_{};
  double deviation_ = 0;
  double link_bytes_ = 0;  // decayed sums; their ratio is the link's speed
  double link_ns_ = 0;
  bool link_preset_ = false;  // and no copy seen since
  bool link_bound_ = false;   // the last step was, so that nothing was copied ahead for the next
  Counters counters_;
};

}  // namespace weir
