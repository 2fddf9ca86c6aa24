#include "bench/vmm/cuda_work.h"

#include <cstddef>
#include <span>

#include "bench/kernels/cuda_empty.h"
#include "engine/cuda_graph.h"
#include "kernels/cuda/gates.h"
#include "kernels/cuda/peak.h"

namespace weir::bench {
namespace {

constexpr uint64_t kWarmUpLimitNs = 2'000'000'000;

// What the gate's kernel and the reading kernel need in device memory.
struct DeviceMemory {
  cuda::GateHeader header;
  cuda::StepLog log;
  cuda::GateRecord record;
  int32_t chunk_of_gate = 0;  // armed
  uint32_t checksum = 0;
};

class CudaWork final : public DeviceWork {
 public:
  explicit CudaWork(CudaDriver& driver) : driver_(driver) {}
  ~CudaWork() override;
  CudaWork(const CudaWork&) = delete;
  CudaWork& operator=(const CudaWork&) = delete;
  Status Init();

  Status Read(StreamId stream, VirtAddr at, uint64_t bytes) override {
    return ToStatus(cuda::ReadBandwidth({.src = reinterpret_cast<const void*>(at),
                                         .bytes = static_cast<int64_t>(bytes),
                                         .checksum = &device()->checksum},
                                        {.stream = driver_.native_stream(stream)}));
  }

  Status Launches(StreamId stream, uint32_t count) override {
    for (uint32_t i = 0; i < count; ++i) {
      WEIR_TRY(ToStatus(Empty(1, {.stream = driver_.native_stream(stream)})));
    }
    return OkStatus();
  }

  Status Graph(StreamId stream) override {
    return FromCuda(cudaGraphLaunch(graph_.get(), driver_.native_stream(stream)),
                    "launching a graph");
  }

  Status CloseGate(StreamId stream) override;
  Status OpenGate() override { return driver_.WriteCounter(opener_, gate_, closed_); }

  void Poll(StreamId stream) override {
    // A thread has no current device of its own before the first call.
    thread_local const cudaError_t set = cudaSetDevice(kDevice);
    if (set == cudaSuccess) (void)cudaStreamQuery(driver_.native_stream(stream));
  }

 private:
  static constexpr int kDevice = 0;  // CudaDriverOptions' default
  DeviceMemory* device() const { return reinterpret_cast<DeviceMemory*>(memory_); }

  CudaDriver& driver_;
  AllocId allocation_;
  VirtAddr memory_ = 0;
  VirtAddr gate_ = 0;
  StreamId opener_;  // no work but the opening of gates: it must not stand behind one
  CudaGraph graph_;
  uint64_t closed_ = 0;  // gates so far; the word's value that opens the last one
};

// Results are of no use here: the driver gives back what is left.
CudaWork::~CudaWork() {
  if (opener_.valid()) (void)driver_.DestroyStream(opener_);
  if (gate_ != 0) (void)driver_.DestroyGateWord(gate_);
  if (memory_ == 0) return;
  (void)driver_.Unmap(memory_);
  (void)driver_.Free(memory_);
  (void)driver_.Release(allocation_);
}

Status CudaWork::Init() {
  WEIR_TRY(FromCuda(cudaSetDevice(kDevice), "cudaSetDevice"));
  const uint64_t bytes =
      AlignUp(uint64_t{sizeof(DeviceMemory)}, driver_.properties().granularity_bytes);
  allocation_ = WEIR_TRY(driver_.Create(Tier::kHbm, bytes));
  memory_ = WEIR_TRY(driver_.Reserve(bytes, driver_.properties().granularity_bytes));
  WEIR_TRY(driver_.Map(memory_, allocation_));
  WEIR_TRY(driver_.SetAccess(memory_, bytes, Access::kReadWrite));
  gate_ = WEIR_TRY(driver_.CreateGateWord());
  opener_ = WEIR_TRY(driver_.CreateStream("bench-open"));

  const StreamId stream = WEIR_TRY(driver_.CreateStream("bench-warm"));
  graph_ = WEIR_TRY(CaptureCudaGraph(driver_.native_stream(stream),
                                     [&] { return Launches(stream, kGraphLaunches); }));
  WEIR_TRY(CloseGate(stream));
  WEIR_TRY(OpenGate());
  WEIR_TRY(Read(stream, memory_, kKiB));
  WEIR_TRY(Launches(stream, 1));
  WEIR_TRY(Graph(stream));
  const EventId end = WEIR_TRY(driver_.Record(stream));
  WEIR_TRY(driver_.WaitFor(end, kWarmUpLimitNs));
  return driver_.DestroyStream(stream);
}

// The gate of a step, with nothing else in its kernel: StepEnd arrives at gate 0 and waits until
// the gate word has passed header.pass_base + chunk 0.
Status CudaWork::CloseGate(StreamId stream) {
  const DeviceMemory fresh{.header = {.pass_base = closed_, .timeout_ns = kGateLimitNs}};
  WEIR_TRY(driver_.Write(memory_, std::as_bytes(std::span(&fresh, 1))));
  ++closed_;
  DeviceMemory* const d = device();
  const cuda::GatePoint point{.table = {.produced = reinterpret_cast<const uint64_t*>(gate_),
                                        .chunk_of_gate = &d->chunk_of_gate,
                                        .header = &d->header,
                                        .log = &d->log,
                                        .records = &d->record},
                              .arrive = 0};
  return ToStatus(
      cuda::StepEnd({.log = &d->log, .gate = point}, {.stream = driver_.native_stream(stream)}));
}

}  // namespace

Result<std::unique_ptr<DeviceWork>> MakeCudaWork(CudaDriver& driver) {
  auto work = std::make_unique<CudaWork>(driver);
  WEIR_TRY(work->Init());
  return std::unique_ptr<DeviceWork>(std::move(work));
}

}  // namespace weir::bench
