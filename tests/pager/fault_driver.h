// A driver that passes every call on to another one, counts them, and can be told to do some wrong:
// the faults a copy or a map can have, on any driver.
#pragma once

#include <atomic>
#include <chrono>
#include <thread>

#include "vmm/driver.h"

namespace weir::test {

enum class CopyFault : uint8_t {
  kNone,
  kRefuse,  // the call fails
  kFail,    // accepted, fails when it runs
  kLose,    // accepted, reported complete, moves nothing
  kDelay,   // accepted, runs late (real-time drivers)
  kBlock,   // accepted, runs when the counter |blocker| is at least 1
};

class FaultDriver final : public Driver {
 public:
  explicit FaultDriver(Driver& inner) : inner_(inner) {}

  // Asked before each Copy, Map and Unmap; empty: nothing wrong.
  std::function<CopyFault()> on_copy;
  std::function<CopyFault(VirtAddr src)> on_copy_from;  // if set, instead
  std::function<bool()> map_fails;
  std::function<bool()> unmap_fails;
  std::function<bool(VirtAddr)> read_fails;  // of a Read, from where
  std::function<Status(Tier)> create_fails;
  Status lost;  // as device_lost() has it; calls go on
  std::function<bool()> create_stream_fails;
  // How far a stamp is off, and how far the driver says it may be.
  std::function<int64_t()> stamp_off;
  uint64_t stamp_error = 0;
  std::chrono::microseconds delay{2000};
  VirtAddr blocker = 0;
  std::atomic<uint64_t> calls{0};  // of every kind, from any thread

  const DriverProperties& properties() const override { return inner_.properties(); }
  Result<AllocId> Create(Tier tier, uint64_t bytes) override {
    ++calls;
    if (Status failed = create_fails ? create_fails(tier) : OkStatus(); !failed.ok()) return failed;
    return inner_.Create(tier, bytes);
  }
  Status Release(AllocId alloc) override {
    ++calls;
    return inner_.Release(alloc);
  }
  Result<VirtAddr> Reserve(uint64_t bytes, uint64_t alignment) override {
    ++calls;
    return inner_.Reserve(bytes, alignment);
  }
  Status Free(VirtAddr base) override {
    ++calls;
    return inner_.Free(base);
  }
  Status Map(VirtAddr at, AllocId alloc) override {
    ++calls;
    if (map_fails && map_fails()) return DriverError("injected: map");
    return inner_.Map(at, alloc);
  }
  Status SetAccess(VirtAddr at, uint64_t bytes, Access access) override {
    ++calls;
    return inner_.SetAccess(at, bytes, access);
  }
  Status Unmap(VirtAddr at) override {
    ++calls;
    if (unmap_fails && unmap_fails()) return DriverError("injected: unmap");
    return inner_.Unmap(at);
  }
  Result<StreamId> CreateStream(std::string_view name) override {
    ++calls;
    if (create_stream_fails && create_stream_fails()) return DriverError("injected: no stream");
    return inner_.CreateStream(name);
  }
  Status DestroyStream(StreamId stream) override {
    ++calls;
    return inner_.DestroyStream(stream);
  }
  Status Copy(StreamId stream, VirtAddr dst, VirtAddr src, uint64_t bytes) override {
    ++calls;
    switch (on_copy_from ? on_copy_from(src) : on_copy ? on_copy() : CopyFault::kNone) {
      case CopyFault::kNone: break;
      case CopyFault::kRefuse: return DriverError("injected: copy refused");
      case CopyFault::kFail:
        return inner_.HostFunction(stream, [] { return DriverError("injected: copy failed"); });
      case CopyFault::kLose: return OkStatus();
      case CopyFault::kDelay: {
        const Status late = inner_.HostFunction(stream, [d = delay] {
          std::this_thread::sleep_for(d);
          return OkStatus();
        });
        if (!late.ok()) return late;
        break;
      }
      case CopyFault::kBlock: {
        const Status blocked = inner_.WaitCounter(stream, blocker, 1);
        if (!blocked.ok()) return blocked;
        break;
      }
    }
    return inner_.Copy(stream, dst, src, bytes);
  }
  Status Fill(StreamId stream, VirtAddr dst, std::byte value, uint64_t bytes) override {
    ++calls;
    return inner_.Fill(stream, dst, value, bytes);
  }
  Status HostFunction(StreamId stream, std::function<Status()> fn) override {
    ++calls;
    return inner_.HostFunction(stream, std::move(fn));
  }
  Result<EventId> Record(StreamId stream) override {
    ++calls;
    return inner_.Record(stream);
  }
  Result<bool> IsComplete(EventId event) override {
    ++calls;
    return inner_.IsComplete(event);
  }
  Status Wait(EventId event) override {
    ++calls;
    return inner_.Wait(event);
  }
  Status WaitFor(EventId event, uint64_t timeout_ns) override {
    ++calls;
    return inner_.WaitFor(event, timeout_ns);
  }
  Status StreamWait(StreamId stream, EventId event) override {
    ++calls;
    return inner_.StreamWait(stream, event);
  }
  Result<StampId> Stamp(StreamId stream) override {
    ++calls;
    return inner_.Stamp(stream);
  }
  Result<TimeNs> TakeStamp(StampId stamp) override {
    ++calls;
    Result<TimeNs> time = inner_.TakeStamp(stamp);
    if (!time.ok() || !stamp_off) return time;
    return *time + static_cast<uint64_t>(stamp_off());
  }
  void DropStamp(StampId stamp) override {
    ++calls;
    inner_.DropStamp(stamp);
  }
  uint64_t stamp_error_ns() const override { return inner_.stamp_error_ns() + stamp_error; }
  Result<VirtAddr> CreateCounter() override {
    ++calls;
    return inner_.CreateCounter();
  }
  Status DestroyCounter(VirtAddr counter) override {
    ++calls;
    return inner_.DestroyCounter(counter);
  }
  Status WriteCounter(StreamId stream, VirtAddr counter, uint64_t value) override {
    ++calls;
    return inner_.WriteCounter(stream, counter, value);
  }
  Status WaitCounter(StreamId stream, VirtAddr counter, uint64_t at_least) override {
    ++calls;
    return inner_.WaitCounter(stream, counter, at_least);
  }
  uint64_t LoadCounter(VirtAddr counter) override {
    ++calls;
    return inner_.LoadCounter(counter);
  }
  void StoreCounter(VirtAddr counter, uint64_t value) override {
    ++calls;
    inner_.StoreCounter(counter, value);
  }
  Status HostWaitCounter(VirtAddr counter, uint64_t at_least, uint64_t timeout_ns) override {
    ++calls;
    return inner_.HostWaitCounter(counter, at_least, timeout_ns);
  }
  Result<VirtAddr> CreateGateWord() override {
    ++calls;
    return inner_.CreateGateWord();
  }
  Status DestroyGateWord(VirtAddr word) override {
    ++calls;
    return inner_.DestroyGateWord(word);
  }
  Status Read(VirtAddr src, std::span<std::byte> dst) override {
    ++calls;
    if (read_fails && read_fails(src)) return DriverError("injected: read");
    return inner_.Read(src, dst);
  }
  Status Write(VirtAddr dst, std::span<const std::byte> src) override {
    ++calls;
    return inner_.Write(dst, src);
  }
  TimeNs Now() override { return inner_.Now(); }
  Status device_lost() const override { return lost; }

 private:
  Driver& inner_;
};

}  // namespace weir::test
