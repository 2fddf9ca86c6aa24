// How the CUDA benchmarks time: calls captured into a graph that is replayed, between two events.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>

#include <cuda_runtime_api.h>

#include "engine/cuda_graph.h"
#include "vmm/status.h"

namespace weir::bench {

struct EventDeleter {
  void operator()(cudaEvent_t event) const { (void)cudaEventDestroy(event); }
};
using CudaEvent = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, EventDeleter>;

// One that takes times.
Result<CudaEvent> MakeCudaEvent();

// Seconds of one call, over the replays of a graph.
struct Timing {
  double median = 0;
  double least = 0;
  double most = 0;
  uint32_t calls = 0;  // in the graph
};

struct TimingOptions {
  uint32_t rounds = 21;  // replays that are timed
  // Call i gets i; after so many of them the same memory comes again. A graph has a multiple of
  // these calls unless it would last longer than |most_seconds|.
  uint32_t rotation = 1;
  uint32_t least_calls = 1;
  uint32_t most_calls = 4096;
  double least_seconds = 0.002;  // of a graph: an event and a graph's launch cost microseconds
  double most_seconds = 0.03;
  double warm_seconds = 0.05;  // of replays that are not timed
};

struct RepeatedCalls {
  CudaGraph graph;
  uint32_t calls = 0;  // in it
};

// |enqueue|(i) puts call i on |stream|; it is called once before the capture, so that no module is
// loaded during it. Waits for the stream.
Result<RepeatedCalls> RepeatCalls(cudaStream_t stream, const TimingOptions& options,
                                  const std::function<Status(uint32_t)>& enqueue);
// Times them.
Result<Timing> TimeCalls(cudaStream_t stream, const TimingOptions& options,
                         const std::function<Status(uint32_t)>& enqueue);

}  // namespace weir::bench
