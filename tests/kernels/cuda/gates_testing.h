// Steps of kernels so small that only their gates matter.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/cuda/embed.h"
#include "kernels/cuda/gates.h"
#include "kernels/cuda/norm.h"
#include "tests/kernels/cuda/rows_testing.h"

namespace weir::cuda::testing {

inline constexpr uint64_t kMs = 1000000;              // ns
inline constexpr uint64_t kLongNs = 10000 * kMs;      // no wait of a test lasts so long
inline constexpr uint64_t kBase = uint64_t{5} << 33;  // pass_base, beyond 32 bits
inline constexpr int kGates = 6;
inline constexpr int64_t kWidth = 8;

// A counter in host memory that the GPU reads and writes in place.
class HostCounter {
 public:
  HostCounter() {
    void* p = nullptr;
    EXPECT_EQ(cudaHostAlloc(&p, sizeof(uint64_t), cudaHostAllocMapped), cudaSuccess);
    value_ = static_cast<uint64_t*>(p);
    Store(0);
  }
  ~HostCounter() { (void)cudaFreeHost(value_); }
  HostCounter(const HostCounter&) = delete;
  HostCounter& operator=(const HostCounter&) = delete;
  void Store(uint64_t value) { std::atomic_ref(*value_).store(value, std::memory_order_release); }
  uint64_t Load() const { return std::atomic_ref(*value_).load(std::memory_order_acquire); }
  uint64_t* get() const { return value_; }

 private:
  uint64_t* value_ = nullptr;
};

// What a step's gates need, in device memory, and the steps. Nothing in here uses the legacy stream
// while a gate waits: that would wait for the gate.
class GateBed {
 public:
  explicit GateBed(cudaStream_t stream) : stream_(stream), header_(1), chunks_(kGates) {
    table_ = {produced_.get(), consumed_.get(), chunks_.get(),
              header_.get(),   log_.get(),      records_.get()};
  }

  const GateTable& table() const { return table_; }
  GateTable& table() { return table_; }
  HostCounter& produced() { return produced_; }
  HostCounter& consumed() { return consumed_; }

  void Prepare(const GateHeader& header, std::vector<int32_t> chunks) {
    chunks.resize(kGates, -1);
    EXPECT_EQ(cudaMemcpy(header_.get(), &header, sizeof(header), cudaMemcpyHostToDevice),
              cudaSuccess);
    EXPECT_EQ(
        cudaMemcpy(chunks_.get(), chunks.data(), kGates * sizeof(int32_t), cudaMemcpyHostToDevice),
        cudaSuccess);
  }

  void Begin() {
    EmbedParams p;
    p.table = AsBf16(x_.get());
    p.tokens = token_.get();
    p.vocab = 1;
    p.y = AsBf16(y_.get());
    p.m = 1;
    p.h = kWidth;
    p.begin = log_.get();
    EXPECT_TRUE(Launched(Embed(p, {stream_, Overlap::kNone})));
  }
  void Gate(int32_t arrive, int32_t depart) {
    RmsNormParams p;
    p.x = AsBf16(x_.get());
    p.weight = weight_.get();
    p.y = AsBf16(y_.get());
    p.m = 1;
    p.h = p.ldx = p.ldy = kWidth;
    p.gate = {table_, arrive, depart};
    EXPECT_TRUE(Launched(RmsNorm(p, {stream_, Overlap::kNone})));
  }
  void End(int32_t arrive, int32_t depart) {
    EXPECT_TRUE(
        Launched(StepEnd({log_.get(), {table_, arrive, depart}}, {stream_, Overlap::kNone})));
  }
  // Gates [0, gates), each departed by the next kernel.
  void Step(int32_t gates) {
    Begin();
    for (int32_t gate = 0; gate < gates; ++gate) Gate(gate, gate - 1);
    End(-1, gates - 1);
  }

  StepLog Log() const { return log_.Download()[0]; }
  std::vector<GateRecord> Records() const { return records_.Download(); }

 private:
  cudaStream_t stream_;
  HostCounter produced_, consumed_;
  DeviceBuffer<GateHeader> header_;
  DeviceBuffer<int32_t> chunks_;
  DeviceBuffer<StepLog> log_{1};
  DeviceBuffer<GateRecord> records_{kGates};
  DeviceBuffer<uint16_t> x_{kWidth}, y_{kWidth};
  DeviceBuffer<float> weight_{kWidth};
  DeviceBuffer<int32_t> token_{1};
  GateTable table_;
};

// A bed on stream_, whose kernels are loaded, and a stream for copies.
class GateTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    ASSERT_EQ(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking), cudaSuccess);
    // CUDA loads a kernel at its first launch, and may wait for the GPU then: not behind a gate.
    bed_ = std::make_unique<GateBed>(stream_);
    bed_->Prepare({0, 0}, {});
    bed_->Step(1);
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  }
  void TearDown() override {
    bed_.reset();
    if (copies_ != nullptr) (void)cudaStreamDestroy(copies_);
    GpuTest::TearDown();
  }

  void Finish() { ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess); }
  void ExpectWaiting() {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_EQ(cudaStreamQuery(stream_), cudaErrorNotReady);
  }

  cudaStream_t copies_ = nullptr;
  std::unique_ptr<GateBed> bed_;
};

}  // namespace weir::cuda::testing
