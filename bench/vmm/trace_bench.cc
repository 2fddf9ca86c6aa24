// What an event costs: nobody subscribed, subscribed and drained, and with the ring full.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <thread>

#include "vmm/trace.h"

namespace {

double NsPerEvent(uint64_t events) {
  const weir::TimeNs begin = weir::TraceMonotonicNs();
  for (uint64_t i = 0; i < events; ++i) {
    weir::TraceEmit(weir::TraceType::kCopy, 0, i, i, i, i, i, i);
    asm volatile("" ::: "memory");
  }
  return static_cast<double>(weir::TraceMonotonicNs() - begin) / static_cast<double>(events);
}

}  // namespace

int main() {
  std::printf("nobody subscribed: %.2f ns\n", NsPerEvent(100'000'000));
  weir::Tracer tracer({.ring_records = 1U << 16});
  weir::SetTracer(&tracer);
  double best = 1e9;
  for (int i = 0; i < 200; ++i) {  // within the ring: every event is kept
    best = std::min(best, NsPerEvent(1U << 15));
    tracer.Drain([](const weir::TraceRecord&) {});
  }
  std::printf("recorded: %.1f ns, %llu lost\n", best,
              static_cast<unsigned long long>(tracer.dropped()));
  (void)NsPerEvent(1U << 17);
  std::printf("ring full: %.1f ns\n", NsPerEvent(1'000'000));
  return 0;
}
