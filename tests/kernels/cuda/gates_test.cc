#include "kernels/cuda/activation.h"
#include "tests/kernels/cuda/gates_testing.h"

namespace weir::cuda {
namespace {

using testing::AsBf16;
using testing::DeviceBuffer;
using testing::HostCounter;
using testing::kBase;
using testing::kLongNs;
using testing::kMs;
using testing::Launched;

class CudaGates : public testing::GateTest {};

TEST_F(CudaGates, OpenGatesArePassedAndDepartedInOrder) {
  bed_->produced().Store(kBase + 3);
  bed_->Prepare({kBase, kLongNs}, {0, 1, -1, 2});
  bed_->Step(4);
  Finish();
  const StepLog log = bed_->Log();
  EXPECT_EQ(log.passed, 3u);
  EXPECT_EQ(log.departed, 3u);
  EXPECT_EQ(log.faults, 0u);
  EXPECT_EQ(log.failed_gate, -1);
  EXPECT_EQ(log.stall_ns, 0u);
  EXPECT_EQ(log.max_stall_ns, 0u);
  EXPECT_LT(log.end_ns - log.begin_ns, kLongNs);
  EXPECT_EQ(bed_->consumed().Load(), kBase + 3);
  const auto records = bed_->Records();
  uint64_t last = log.begin_ns;
  for (const size_t gate : {0u, 1u, 3u}) {
    EXPECT_GE(records[gate].arrive_ns, last);
    EXPECT_EQ(records[gate].arrive_ns, records[gate].pass_ns);
    last = records[gate].pass_ns;
  }
  EXPECT_GE(log.end_ns, last);
  EXPECT_EQ(records[2].arrive_ns, 0u);  // not armed: cleared
  EXPECT_EQ(records[2].pass_ns, 0u);
}

TEST_F(CudaGates, AChunkIsConsumedOnceItsGateIsDeparted) {
  bed_->produced().Store(kBase + 2);
  bed_->Prepare({kBase, kLongNs}, {0, 1});
  bed_->Begin();
  bed_->Gate(0, -1);
  Finish();
  EXPECT_EQ(bed_->consumed().Load(), 0u);
  bed_->Gate(1, 0);
  Finish();
  EXPECT_EQ(bed_->consumed().Load(), kBase + 1);
  EXPECT_EQ(bed_->Log().departed, 1u);
  bed_->End(-1, 1);
  Finish();
  EXPECT_EQ(bed_->consumed().Load(), kBase + 2);
}

TEST_F(CudaGates, AClosedGateOpensWhenTheHostStoresTheCounter) {
  bed_->produced().Store(kBase);
  bed_->Prepare({kBase, kLongNs}, {0, 1});
  bed_->Step(2);
  ExpectWaiting();
  bed_->produced().Store(kBase + 1);
  ExpectWaiting();  // at the second gate now
  bed_->produced().Store(kBase + 2);
  Finish();
  const StepLog log = bed_->Log();
  EXPECT_EQ(log.failed_gate, -1);
  EXPECT_EQ(log.passed, 2u);
  EXPECT_EQ(log.faults, 2u);
  const auto records = bed_->Records();
  const uint64_t first = records[0].pass_ns - records[0].arrive_ns;
  const uint64_t second = records[1].pass_ns - records[1].arrive_ns;
  EXPECT_GT(first, 10 * kMs);
  EXPECT_GT(second, 10 * kMs);
  EXPECT_LT(first + second, kLongNs);
  EXPECT_EQ(log.stall_ns, first + second);
  EXPECT_EQ(log.max_stall_ns, std::max(first, second));
  EXPECT_GE(records[1].arrive_ns, records[0].pass_ns);
  EXPECT_EQ(bed_->consumed().Load(), kBase + 2);
}

TEST_F(CudaGates, AClosedGateOpensForACopyOfAnotherStream) {
  const DeviceBuffer<uint64_t> produced(std::vector<uint64_t>{kBase});
  HostCounter next;
  next.Store(kBase + 1);
  bed_->table().produced = produced.get();
  bed_->Prepare({kBase, kLongNs}, {0});
  bed_->Step(1);
  ExpectWaiting();
  ASSERT_EQ(cudaMemcpyAsync(produced.get(), next.get(), sizeof(uint64_t), cudaMemcpyHostToDevice,
                            copies_),
            cudaSuccess);
  Finish();
  EXPECT_EQ(bed_->Log().failed_gate, -1);
  EXPECT_EQ(bed_->Log().faults, 1u);
}

TEST_F(CudaGates, ADepartureDoesNotWaitForTheArrivalOfItsKernel) {
  bed_->produced().Store(kBase + 1);
  bed_->Prepare({kBase, kLongNs}, {0, 1});
  bed_->Begin();
  bed_->Gate(0, -1);
  bed_->Gate(1, 0);
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while (bed_->consumed().Load() != kBase + 1 && std::chrono::steady_clock::now() < limit) {
    std::this_thread::yield();
  }
  EXPECT_EQ(bed_->consumed().Load(), kBase + 1);
  EXPECT_EQ(cudaStreamQuery(stream_), cudaErrorNotReady);
  bed_->produced().Store(kBase + 2);
  Finish();
  EXPECT_EQ(bed_->Log().failed_gate, -1);
}

TEST_F(CudaGates, AWaitBeyondTheLimitFailsTheStepAndNoLaterGateWaits) {
  constexpr uint64_t kLimit = 30 * kMs;
  bed_->produced().Store(kBase + 1);
  bed_->Prepare({kBase, kLimit}, {0, 1, 2, 3, 0});  // gate 4 is open
  bed_->Step(5);
  Finish();
  const StepLog log = bed_->Log();
  EXPECT_EQ(log.failed_gate, 1);
  EXPECT_EQ(log.passed, 5u);
  EXPECT_EQ(log.faults, 3u);
  EXPECT_GE(log.stall_ns, kLimit);
  EXPECT_LT(log.stall_ns, 2 * kLimit);
  EXPECT_EQ(log.max_stall_ns, log.stall_ns);
  EXPECT_NE(log.end_ns, 0u);
  const auto records = bed_->Records();
  EXPECT_EQ(records[0].pass_ns, records[0].arrive_ns);
  EXPECT_EQ(records[1].pass_ns - records[1].arrive_ns, log.stall_ns);
  EXPECT_EQ(records[2].pass_ns, records[2].arrive_ns);
  EXPECT_EQ(records[3].pass_ns, records[3].arrive_ns);
  EXPECT_EQ(bed_->consumed().Load(), kBase + 1);  // of gate 4, the last to depart
}

TEST_F(CudaGates, ALimitOfZeroDoesNotWaitAndTheNextStepIsClean) {
  bed_->produced().Store(kBase);
  bed_->Prepare({kBase, 0}, {0, 1});
  bed_->Step(2);
  Finish();
  StepLog log = bed_->Log();
  EXPECT_EQ(log.failed_gate, 0);
  EXPECT_EQ(log.faults, 2u);
  EXPECT_LT(log.stall_ns, kMs);
  EXPECT_EQ(bed_->consumed().Load(), kBase + 2);  // departures are published all the same
  bed_->produced().Store(kBase + 4);
  bed_->Prepare({kBase + 2, 0}, {0, 1});
  bed_->Step(2);
  Finish();
  log = bed_->Log();
  EXPECT_EQ(log.failed_gate, -1);
  EXPECT_EQ(log.passed, 2u);
  EXPECT_EQ(log.faults, 0u);
  EXPECT_EQ(bed_->consumed().Load(), kBase + 4);
}

TEST_F(CudaGates, TheEndOfAStepMayArrive) {
  bed_->produced().Store(kBase);
  bed_->Prepare({kBase, kLongNs}, {0});
  bed_->Begin();
  bed_->End(0, -1);
  ExpectWaiting();
  bed_->produced().Store(kBase + 1);
  Finish();
  EXPECT_GE(bed_->Log().end_ns, bed_->Records()[0].pass_ns);
  EXPECT_GT(bed_->Log().stall_ns, 10 * kMs);
}

TEST_F(CudaGates, ACapturedStepFollowsTheTables) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  bed_->Step(4);
  ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  const auto replay = [&](const GateHeader& header, std::vector<int32_t> chunks) {
    bed_->Prepare(header, std::move(chunks));
    EXPECT_EQ(cudaGraphLaunch(exec, stream_), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  };
  replay({kBase, kMs}, {});
  EXPECT_EQ(bed_->Log().passed, 0u);
  EXPECT_EQ(bed_->consumed().Load(), 0u);
  bed_->produced().Store(kBase + 2);
  replay({kBase, kMs}, {-1, 0, -1, 1});
  EXPECT_EQ(bed_->Log().passed, 2u);
  EXPECT_EQ(bed_->Log().failed_gate, -1);
  EXPECT_EQ(bed_->consumed().Load(), kBase + 2);
  replay({kBase + 2, kMs}, {0});
  EXPECT_EQ(bed_->Log().failed_gate, 0);
  (void)cudaGraphExecDestroy(exec);
  (void)cudaGraphDestroy(graph);
}

TEST_F(CudaGates, AGateChangesNoBitOfItsKernelsResult) {
  constexpr int64_t kRows = 300, kColumns = 4096;
  bed_->produced().Store(kBase + 1);
  bed_->Prepare({kBase, kLongNs}, {0});
  testing::Random random(1);
  const DeviceBuffer<uint16_t> x(random.Bf16s(kRows * 2 * kColumns));
  const DeviceBuffer<float> weight(random.Floats(kColumns, 1));
  const Launch launch{stream_, Overlap::kPrologue};
  std::vector<uint16_t> norms[2], activations[2];
  for (const int gated : {0, 1}) {
    const DeviceBuffer<uint16_t> norm_y(kRows * kColumns), silu_y(kRows * kColumns);
    RmsNormParams norm;
    norm.x = AsBf16(x.get());
    norm.y = AsBf16(norm_y.get());
    norm.weight = weight.get();
    norm.eps = 1e-5f;
    norm.m = kRows;
    norm.h = norm.ldx = norm.ldy = kColumns;
    SiluMulParams silu;
    silu.gate_up = AsBf16(x.get());
    silu.y = AsBf16(silu_y.get());
    silu.m = kRows;
    silu.f = kColumns;
    if (gated == 1) {
      bed_->Begin();
      norm.gate = {bed_->table(), 0, -1};
      silu.gate = {bed_->table(), -1, 0};
    }
    ASSERT_TRUE(Launched(RmsNorm(norm, launch)));
    ASSERT_TRUE(Launched(SiluMul(silu, launch)));
    Finish();
    norms[gated] = norm_y.Download();
    activations[gated] = silu_y.Download();
  }
  EXPECT_EQ(norms[0], norms[1]);
  EXPECT_EQ(activations[0], activations[1]);
  EXPECT_EQ(bed_->Log().passed, 1u);
  EXPECT_EQ(bed_->Log().departed, 1u);
}

TEST_F(CudaGates, AnIncompleteTableIsRefused) {
  GateTable table = bed_->table();
  EXPECT_TRUE(CheckGatePoint({}, "a launch").ok());
  EXPECT_TRUE(CheckGatePoint({table, 0, 1}, "a launch").ok());
  table.consumed = nullptr;
  EXPECT_TRUE(CheckGatePoint({table, 0, -1}, "a launch").ok());
  EXPECT_FALSE(CheckGatePoint({table, 0, 1}, "a launch").ok());
  table = bed_->table();
  table.produced = nullptr;
  EXPECT_TRUE(CheckGatePoint({table, -1, 1}, "a launch").ok());
  EXPECT_FALSE(CheckGatePoint({table, 0, 1}, "a launch").ok());
  table = bed_->table();
  table.header = nullptr;
  EXPECT_FALSE(CheckGatePoint({table, -1, 1}, "a launch").ok());
  EXPECT_FALSE(StepEnd({nullptr, {}}, {stream_, Overlap::kNone}).ok());
}

}  // namespace
}  // namespace weir::cuda
