#include "bench/vmm/host_work.h"

#include <atomic>

namespace weir::bench {
namespace {

constexpr uint64_t kLaunchNs = 2000;  // as long as a GPU takes for an empty kernel

class HostWork final : public DeviceWork {
 public:
  HostWork(Driver& driver, VirtAddr gate) : driver_(driver), gate_(gate) {}
  ~HostWork() override { (void)driver_.DestroyCounter(gate_); }
  HostWork(const HostWork&) = delete;
  HostWork& operator=(const HostWork&) = delete;

  Status Read(StreamId stream, VirtAddr at, uint64_t bytes) override {
    return driver_.HostFunction(stream, [this, at, bytes] {
      uint64_t sum = 0;
      const auto* words = reinterpret_cast<const uint64_t*>(at);
      for (uint64_t i = 0; i < bytes / sizeof *words; ++i) sum ^= words[i];
      sink_.store(sum, std::memory_order_relaxed);  // or the compiler would read nothing
      return OkStatus();
    });
  }

  Status Launches(StreamId stream, uint32_t count) override {
    for (uint32_t i = 0; i < count; ++i) {
      WEIR_TRY(driver_.HostFunction(stream, [this] {
        for (const TimeNs begin = driver_.Now(); driver_.Now() - begin < kLaunchNs;) {
        }
        return OkStatus();
      }));
    }
    return OkStatus();
  }

  Status Graph(StreamId) override { return Unsupported("driver host has no graphs"); }

  Status CloseGate(StreamId stream) override {
    return driver_.HostFunction(stream, [this, open_at = ++closed_] {
      const Status opened = driver_.HostWaitCounter(gate_, open_at, kGateLimitNs);
      return opened.code() == StatusCode::kShouldWait ? OkStatus() : opened;
    });
  }

  Status OpenGate() override {
    driver_.StoreCounter(gate_, closed_);
    return OkStatus();
  }

  void Poll(StreamId) override { (void)driver_.LoadCounter(gate_); }

 private:
  Driver& driver_;
  VirtAddr gate_;
  uint64_t closed_ = 0;  // gates so far; the counter's value that opens the last one
  std::atomic<uint64_t> sink_{0};
};

}  // namespace

Result<std::unique_ptr<DeviceWork>> MakeHostWork(Driver& driver) {
  const VirtAddr gate = WEIR_TRY(driver.CreateCounter());
  return std::unique_ptr<DeviceWork>(std::make_unique<HostWork>(driver, gate));
}

}  // namespace weir::bench
