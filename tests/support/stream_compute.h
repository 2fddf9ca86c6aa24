// StreamCompute: steps that run beside the host, on a stream of SimDriver, as a GPU's do.
//
// Where SimCompute (sim_model.h) runs a step when it is collected, here a step runs while the host
// plans, remaps and submits, in the same virtual time: for questions of who waits for whom. Every
// layer takes the same time and has one gate; its tokens follow from their positions alone. At each
// layer the first bytes of every granule must be those that loading put there.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "engine/compute.h"
#include "pager/eviction_plan.h"
#include "vmm/sim_driver.h"

namespace weir::testing {

struct StreamComputeOptions {
  uint64_t layer_ns = 0;
  uint64_t submit_ns = 0;  // of the host, for one step
  uint64_t granule_bytes = 0;
};

class StreamCompute final : public Compute {
 public:
  // |layout|: of SimModel's weights at |weights|, one segment a layer.
  StreamCompute(SimDriver& driver, const WeightLayout& layout, VirtAddr weights,
                const ComputeLimits& limits, const StreamComputeOptions& options);
  ~StreamCompute() override;

  const ComputeLimits& limits() const override { return limits_; }
  uint32_t depth() const override { return 2; }
  Status Scrub(std::span<const BlockId> blocks) override;
  Status Submit(const StepBatch& batch, StepGates& gates) override;
  Status Collect(StepOutcome* outcome) override;
  Result<std::vector<float>> ReadLogits(uint32_t row) override;
  uint64_t RecordedPointersDigest() const override { return weights_; }
  uint32_t recordings() const override { return 1; }
  std::string description() const override { return "simulated, beside the host"; }

  // When the steps collected so far ended.
  const std::vector<TimeNs>& ends() const { return ends_; }
  // Granules whose first bytes were not those loaded.
  uint64_t wrong_granules() const { return wrong_granules_; }

 private:
  struct Pending {
    StepGates* gates = nullptr;
    DeviceGates device;
    std::vector<int32_t> chunk_of_gate;
    DeviceGateLog log;
    std::vector<DeviceGateTimes> times;
    std::vector<uint64_t> positions;  // of the tokens to sample
    TimeNs begin = 0, end = 0;
    EventId done;
  };
  Status QueueLayer(Pending* step, uint32_t layer);
  Status ReadLayer(uint32_t layer);

  SimDriver& driver_;
  WeightLayout layout_;
  VirtAddr weights_;
  ComputeLimits limits_;
  StreamComputeOptions options_;
  StreamId stream_;
  std::deque<std::unique_ptr<Pending>> pending_;
  std::vector<TimeNs> ends_;
  uint64_t wrong_granules_ = 0;
};

}  // namespace weir::testing
