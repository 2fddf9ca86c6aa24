// StepEngine: what AsyncEngine's thread drives. Engine in a server, a stand-in in tests.
#pragma once

#include <memory>
#include <vector>

#include "engine/engine.h"
#include "engine/server/async_engine.h"
#include "vmm/status.h"

namespace weir::server {

// What limits how many requests the engine may soon run.
struct StepLimits {
  uint32_t max_sequences = 0;
  uint32_t max_batched_tokens = 0;  // of one step
  uint32_t max_model_len = 0;       // tokens of prompt and output
};

struct StepLoad {
  uint32_t running = 0;
  uint32_t waiting = 0;         // in the engine's own queue
  uint64_t waiting_tokens = 0;  // known tokens of those, in whole blocks
};

// Owned and called by one thread, except Prepare and limits: any thread.
class StepEngine {
 public:
  virtual ~StepEngine() = default;
  virtual StepLimits limits() const = 0;
  // Makes |request|->prompt_tokens of its text if it has none.
  virtual Status Prepare(GenerationRequest* request) const = 0;

  virtual Result<RequestId> Submit(GenerationRequest request) = 0;
  // Its blocks are free at once; the next Step reports its end.
  virtual Status Cancel(RequestId id) = 0;
  virtual Result<bool> Step() = 0;
  virtual std::vector<GenerationOutput> TakeOutputs() = 0;

  virtual StepLoad load() const = 0;
  // What waits in front of the engine, for its policy.
  virtual void SetQueued(const QueuedDemand& queued) = 0;
  // The engine's part of |stats|.
  virtual void FillStats(AsyncStats* stats) const = 0;
  // With no request known: invariants in validating and debug builds.
  virtual Status CheckIdle() = 0;
};

std::unique_ptr<StepEngine> MakeStepEngine(std::unique_ptr<Engine> engine);

}  // namespace weir::server
