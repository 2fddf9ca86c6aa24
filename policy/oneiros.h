// oneiros: lends whole layers to KV while KV is exhausted.
//
// The decisions of Oneiros (Li et al., "Oneiros: KV Cache Optimization through Parameter Remapping
// for Multi-tenant LLM Serving", SoCC 2025, arXiv 2507.11507; first titled MIRAGE), for one model:
//   when         KV does not hold what its requests need; back when there is ample room again
//                ("dynamic reversion");
//   how many     the fewest layers alpha that cover the shortfall, but no more than can be loaded
//                while a pass computes, T_T * N <= T_compute, and never more than a cap;
//   which        evenly spaced;
//   how          alpha + 1 layers take turns in one shared slot, or alpha + 2 in two.
// N, the layers loaded in a pass, is alpha + 1 or alpha + 2. The paper prefers two slots from an
// alpha on that depends on the model (9 of 40 layers); here the same follows from the circular
// schedule: with n layers and r = load time / compute time of a layer, a pass is stretched to
//   one slot    (alpha + 1) * (r + 1) / n   a load waits until the layer before has been computed,
//   two slots   (alpha + 2) * r / n         loads follow each other,
// and to no less than 1; the smaller stretch wins, one slot in a tie, as it loads a layer less.
//
// Not taken over: choosing among models (there is one), and eager execution.
#pragma once

#include "policy/params.h"
#include "policy/policy.h"

namespace weir {

struct OneirosConfig {
  double cap = 0.5;       // share of the layers lent at most; the paper leaves the number open
  uint64_t slots = 0;     // 1: always alpha + 1; 2: always alpha + 2; 0: the shorter pass
  double headroom = 1.2;  // reversion: KV that must be there after it, as a factor of the need
  // Reversion: steps for which there must have been ample room, and from one move to the next
  // opposite one.
  uint64_t hold_steps = 64;
  ParamTable Params();
};

// Represents the controller of one model. Its state: the layers it lends, in how many slots, when
// it last moved and since when there has been ample room.
class OneirosPolicy final : public Policy {
 public:
  explicit OneirosPolicy(const OneirosConfig& config) : config_(config) {}
  std::string_view name() const override { return "oneiros"; }
  PolicyDecision Decide(const PolicySnapshot& snapshot) override;
  PolicyDecision Widest(const WeightsView& weights) const override;
  std::vector<std::pair<std::string, std::string>> Parameters() const override;

  // The largest alpha whose loads hide behind a pass of |layers| layers, |ratio| = r above.
  static uint32_t MaxHidden(uint32_t layers, double ratio, uint32_t slots);
  // How long a pass becomes, as a factor; at least 1.
  static double Stretch(uint32_t layers, double ratio, uint32_t alpha, uint32_t slots);

 private:
  enum class Direction : uint8_t { kNone, kLend, kRevert };
  uint32_t ChooseSlots(const WeightsView& weights, double ratio, uint32_t alpha) const;
  uint32_t MostAlpha(const WeightsView& weights) const;
  PolicyDecision Hold(std::string reason) const;
  PolicyDecision Move(const PolicySnapshot& s, double ratio, uint32_t alpha, std::string reason);

  OneirosConfig config_;
  bool started_ = false;
  uint32_t alpha_ = 0;
  uint32_t slots_ = 2;
  uint64_t moved_at_ = 0;
  Direction moved_ = Direction::kNone;
  bool ample_ = false;
  uint64_t ample_since_ = 0;
};

}  // namespace weir
