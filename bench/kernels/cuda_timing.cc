#include "bench/kernels/cuda_timing.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

namespace weir::bench {
namespace {

Result<CudaGraph> Capture(cudaStream_t stream, uint32_t calls,
                          const std::function<Status(uint32_t)>& enqueue) {
  return CaptureCudaGraph(stream, [&] {
    Status status;
    for (uint32_t i = 0; i < calls && status.ok(); ++i) status = enqueue(i);
    return status;
  });
}

// Seconds of each of |rounds| replays. All are queued before the first is waited for.
Result<std::vector<double>> Replay(cudaStream_t stream, cudaGraphExec_t graph, uint32_t rounds) {
  std::vector<CudaEvent> events;
  for (uint32_t i = 0; i < 2 * rounds; ++i) events.push_back(WEIR_TRY(MakeCudaEvent()));
  for (uint32_t i = 0; i < rounds; ++i) {
    WEIR_TRY(FromCuda(cudaEventRecord(events[2 * i].get(), stream), "an event"));
    WEIR_TRY(FromCuda(cudaGraphLaunch(graph, stream), "cudaGraphLaunch"));
    WEIR_TRY(FromCuda(cudaEventRecord(events[2 * i + 1].get(), stream), "an event"));
  }
  WEIR_TRY(FromCuda(cudaStreamSynchronize(stream), "replaying a graph"));
  std::vector<double> seconds;
  for (uint32_t i = 0; i < rounds; ++i) {
    float ms = 0;
    WEIR_TRY(FromCuda(cudaEventElapsedTime(&ms, events[2 * i].get(), events[2 * i + 1].get()),
                      "an event"));
    seconds.push_back(static_cast<double>(ms) * 1e-3);
  }
  return seconds;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

uint32_t CallsFor(const TimingOptions& o, double seconds_a_call) {
  uint32_t calls = std::max(o.rotation, o.least_calls);
  const double wanted = std::ceil(o.least_seconds / seconds_a_call);
  const double allowed = std::floor(o.most_seconds / seconds_a_call);
  if (wanted > calls) {
    const double passes = std::ceil(wanted / o.rotation);
    calls = static_cast<uint32_t>(std::min<double>(passes * o.rotation, o.most_calls));
  }
  if (allowed < calls) calls = static_cast<uint32_t>(std::max<double>(allowed, o.least_calls));
  return std::max(1U, calls);
}

}  // namespace

Result<CudaEvent> MakeCudaEvent() {
  cudaEvent_t event = nullptr;
  WEIR_TRY(FromCuda(cudaEventCreate(&event), "an event"));
  return CudaEvent(event);
}

Result<RepeatedCalls> RepeatCalls(cudaStream_t stream, const TimingOptions& o,
                                  const std::function<Status(uint32_t)>& enqueue) {
  WEIR_TRY(enqueue(0));
  WEIR_TRY(FromCuda(cudaStreamSynchronize(stream), "the first call"));

  const uint32_t few = std::clamp(o.rotation, o.least_calls, std::max(o.least_calls, 8U));
  double estimate = 0;
  {
    const CudaGraph trial = WEIR_TRY(Capture(stream, few, enqueue));
    estimate = Median(WEIR_TRY(Replay(stream, trial.get(), 3))) / few;
  }
  RepeatedCalls repeated;
  repeated.calls = CallsFor(o, std::max(estimate, 1e-8));
  repeated.graph = WEIR_TRY(Capture(stream, repeated.calls, enqueue));
  return repeated;
}

Result<Timing> TimeCalls(cudaStream_t stream, const TimingOptions& o,
                         const std::function<Status(uint32_t)>& enqueue) {
  const RepeatedCalls repeated = WEIR_TRY(RepeatCalls(stream, o, enqueue));
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  do {
    WEIR_TRY(Replay(stream, repeated.graph.get(), 2));
  } while (std::chrono::duration<double>(Clock::now() - start).count() < o.warm_seconds);

  std::vector<double> seconds = WEIR_TRY(Replay(stream, repeated.graph.get(), o.rounds));
  for (double& s : seconds) s /= repeated.calls;
  Timing timing;
  timing.calls = repeated.calls;
  timing.median = Median(seconds);
  timing.least = *std::min_element(seconds.begin(), seconds.end());
  timing.most = *std::max_element(seconds.begin(), seconds.end());
  return timing;
}

}  // namespace weir::bench
