// Products that read weights before the kernel before them has ended: only if the weights are
// there.
#include "kernels/cuda/fill.h"
#include "kernels/cuda/gemm.h"
#include "tests/kernels/cuda/gates_testing.h"

namespace weir::cuda {
namespace {

using testing::AsBf16;
using testing::DeviceBuffer;
using testing::kBase;
using testing::kLongNs;
using testing::kMs;
using testing::Launched;

constexpr int64_t kM = 8;
constexpr int32_t kGate = 1;  // of the weights; gate 0 is another's

class CudaEarlyWeights : public testing::GateTest {
 protected:
  using Values = std::vector<uint16_t>;

  void SetUp() override {
    testing::GateTest::SetUp();
    if (IsSkipped()) return;
    if (DeviceArchitecture() != 90) GTEST_SKIP() << "only products of Hopper's read early";
    workspace_ = std::make_unique<DeviceBuffer<uint8_t>>(32 << 20);
    ASSERT_TRUE(Launched(GemmPlanner::Create({.workspace = workspace_->get(),
                                              .workspace_bytes = workspace_->Bytes(),
                                              .skinny = SkinnyUse::kAlways},
                                             &planner_)));
  }
  void TearDown() override {
    planner_.reset();
    workspace_.reset();
    testing::GateTest::TearDown();
  }

  struct Product {
    Product(int64_t n_, int64_t k_)
        : n(n_),
          k(k_),
          x(Size(kM * k)),
          y(Size(kM * n)),
          weights(Size(n * k)),
          one(Size(n * k)),
          other(Size(n * k)) {}
    static size_t Size(int64_t count) { return static_cast<size_t>(count); }
    int64_t n, k;
    DeviceBuffer<uint16_t> x, y;
    DeviceBuffer<uint16_t> weights;     // what the product reads
    DeviceBuffer<uint16_t> one, other;  // to be copied there
  };

  WeightGate Gate() {
    const GateTable& table = bed_->table();
    return {table.chunk_of_gate + kGate, table.header, table.produced};
  }
  void Run(const Product& p, const WeightGate& gate, Overlap overlap) {
    const GemmParams params{.kind = {p.n, p.k},
                            .x = AsBf16(p.x.get()),
                            .weights = AsBf16(p.weights.get()),
                            .y = p.y.get(),
                            .m = kM,
                            .gate = gate};
    EXPECT_TRUE(Launched(planner_->Run(params, {stream_, overlap})));
  }
  // A step whose gate |held| is passed by the kernel before the product.
  void Step(const Product& p, int32_t held) {
    bed_->Begin();
    bed_->Gate(held, -1);
    Run(p, Gate(), Overlap::kPrologue);
    bed_->End(-1, -1);
  }

  // Makes up x and both weights, and chooses the algorithm.
  void Prepare(const Product& p) {
    uint64_t seed = 1;
    for (const auto* buffer : {&p.x, &p.one, &p.other, &p.weights}) {
      ASSERT_TRUE(Launched(FillNormal({.dst = AsBf16(buffer->get()),
                                       .count = static_cast<int64_t>(buffer->Bytes() / 2),
                                       .seed = seed++},
                                      {.stream = stream_})));
    }
    const GemmParams params{.kind = {p.n, p.k},
                            .x = AsBf16(p.x.get()),
                            .weights = AsBf16(p.weights.get()),
                            .y = p.y.get(),
                            .m = kM};
    ASSERT_TRUE(Launched(planner_->Prepare(params, {}, stream_)));
  }
  void CopyWeights(const Product& p, const DeviceBuffer<uint16_t>& from) {
    EXPECT_EQ(cudaMemcpyAsync(p.weights.get(), from.get(), from.Bytes(), cudaMemcpyDeviceToDevice,
                              copies_),
              cudaSuccess);
  }
  // The product of |from|, which nobody writes meanwhile.
  Values ProductOf(const Product& p, const DeviceBuffer<uint16_t>& from) {
    CopyWeights(p, from);
    EXPECT_EQ(cudaStreamSynchronize(copies_), cudaSuccess);
    Run(p, {}, Overlap::kNone);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    return p.y.Download();
  }
  void Poison(const Product& p) {
    ASSERT_EQ(cudaMemsetAsync(p.weights.get(), 0xff, p.weights.Bytes(), stream_), cudaSuccess);
    Finish();
  }

  // Chunks that come at any moment of a step, copied from |from| as the pager does: copy, then
  // counter, in the order of one stream.
  void ExpectRightProductsWheneverTheChunkComes(const Product& p, const void* from, bool captured);

  std::unique_ptr<DeviceBuffer<uint8_t>> workspace_;
  std::unique_ptr<GemmPlanner> planner_;
};

// A step as a graph, for its life.
class Captured {
 public:
  template <typename Enqueue>
  Captured(cudaStream_t stream, Enqueue enqueue) : stream_(stream) {
    EXPECT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    enqueue();
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph_), cudaSuccess);
    EXPECT_EQ(cudaGraphInstantiate(&exec_, graph_, 0), cudaSuccess);
    EXPECT_EQ(cudaGraphUpload(exec_, stream), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  }
  ~Captured() {
    (void)cudaGraphExecDestroy(exec_);
    (void)cudaGraphDestroy(graph_);
  }
  Captured(const Captured&) = delete;
  Captured& operator=(const Captured&) = delete;
  void Replay() const { EXPECT_EQ(cudaGraphLaunch(exec_, stream_), cudaSuccess); }

 private:
  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
};

// The kernel before stands at a gate of its own while the weights are exchanged. Each block's share
// fits into its stages, so the product tells which weights were read, and so when.
TEST_F(CudaEarlyWeights, AreReadBeforeTheKernelBeforeHasEndedIfTheyAreThere) {
  const Product p(1024, 512);
  Prepare(p);
  const Values before = ProductOf(p, p.one);
  const Values after = ProductOf(p, p.other);
  ASSERT_NE(before, after);
  constexpr int32_t kLast = 9;  // chunk of the gate that holds the kernel before
  struct Case {
    int32_t chunk;
    uint64_t produced;
    bool early;
  };
  constexpr Case kCases[] = {
      {-1, 0, true},          // not armed
      {2, kBase + 2, false},  // the chunk before it has come
      {2, kBase + 3, true},   // it has come
      {2, kBase + 4, true},  {0, kBase, false},
      {0, kBase + 1, true},  {2, kBase / 2 + 3, false},  // as many of an earlier pass
  };
  const Captured step(stream_, [&] { Step(p, 0); });
  for (const bool captured : {false, true}) {
    for (const Case& c : kCases) {
      bed_->produced().Store(c.produced);
      bed_->Prepare({kBase, kLongNs}, {kLast, c.chunk});
      CopyWeights(p, p.one);
      ASSERT_EQ(cudaStreamSynchronize(copies_), cudaSuccess);
      if (captured) {
        step.Replay();
      } else {
        Step(p, 0);
      }
      ExpectWaiting();
      CopyWeights(p, p.other);
      ASSERT_EQ(cudaStreamSynchronize(copies_), cudaSuccess);
      bed_->produced().Store(kBase + kLast + 1);
      Finish();
      ASSERT_EQ(p.y.Download(), c.early ? before : after)
          << "captured " << captured << ", chunk " << c.chunk << ", produced "
          << static_cast<int64_t>(c.produced - kBase) << " past the base";
      EXPECT_EQ(bed_->Log().failed_gate, -1);
    }
  }
}

void CudaEarlyWeights::ExpectRightProductsWheneverTheChunkComes(const Product& p, const void* from,
                                                                bool captured) {
  constexpr int kRounds = 200;
  const Values right = ProductOf(p, p.one);
  const DeviceBuffer<uint64_t> produced(std::vector<uint64_t>{kBase});
  testing::HostCounter next;
  next.Store(kBase + 1);
  bed_->table().produced = produced.get();
  bed_->Prepare({kBase, kLongNs}, {-1, 0});
  const Captured step(stream_, [&] { Step(p, kGate); });
  int faults = 0;
  for (int round = 0; round < kRounds; ++round) {
    Poison(p);
    ASSERT_EQ(cudaMemcpy(produced.get(), &kBase, sizeof(kBase), cudaMemcpyHostToDevice),
              cudaSuccess);
    const auto copy = [&] {
      return cudaMemcpyAsync(p.weights.get(), from, p.weights.Bytes(), cudaMemcpyDefault,
                             copies_) == cudaSuccess &&
             cudaMemcpyAsync(produced.get(), next.get(), sizeof(uint64_t), cudaMemcpyHostToDevice,
                             copies_) == cudaSuccess;
    };
    const auto step_now = [&] { captured ? step.Replay() : Step(p, kGate); };
    // The copy takes 10 to 100 us. In a quarter of the rounds the step comes first.
    const int after_copy = round - kRounds / 4;
    if (after_copy < 0) {
      step_now();
    } else {
      ASSERT_TRUE(copy());
    }
    const auto until =
        std::chrono::steady_clock::now() + std::chrono::microseconds(std::abs(after_copy));
    while (std::chrono::steady_clock::now() < until) {
    }
    if (after_copy < 0) {
      ASSERT_TRUE(copy());
    } else {
      step_now();
    }
    Finish();
    ASSERT_EQ(cudaStreamSynchronize(copies_), cudaSuccess);
    ASSERT_EQ(p.y.Download(), right) << "round " << round;
    EXPECT_EQ(bed_->Log().failed_gate, -1);
    faults += static_cast<int>(bed_->Log().faults);
  }
  // Otherwise the rounds were all alike, and say little.
  EXPECT_GT(faults, 0);
  EXPECT_LT(faults, kRounds);
}

TEST_F(CudaEarlyWeights, GiveTheRightProductWheneverTheirChunkComes) {
  const Product p(4096, 4096);
  Prepare(p);
  for (const bool captured : {false, true}) {
    ExpectRightProductsWheneverTheChunkComes(p, p.one.get(), captured);
  }
}

TEST_F(CudaEarlyWeights, BehindAGateThatFailedAreReadLateAndTheNextStepIsClean) {
  const Product p(1024, 512);
  Prepare(p);
  const Values one = ProductOf(p, p.one);
  const Values other = ProductOf(p, p.other);
  bed_->produced().Store(kBase);
  bed_->Prepare({kBase, 30 * kMs}, {-1, 0});
  CopyWeights(p, p.one);
  ASSERT_EQ(cudaStreamSynchronize(copies_), cudaSuccess);
  Step(p, kGate);
  CopyWeights(p, p.other);  // within the limit
  Finish();
  EXPECT_EQ(bed_->Log().failed_gate, kGate);
  EXPECT_EQ(p.y.Download(), other);
  CopyWeights(p, p.one);
  ASSERT_EQ(cudaStreamSynchronize(copies_), cudaSuccess);
  bed_->produced().Store(kBase + 3);
  bed_->Prepare({kBase + 2, 30 * kMs}, {-1, 0});
  Step(p, kGate);
  Finish();
  EXPECT_EQ(bed_->Log().failed_gate, -1);
  EXPECT_EQ(p.y.Download(), one);
}

TEST_F(CudaEarlyWeights, NeedAWholeGate) {
  const Product p(1024, 512);
  Prepare(p);
  WeightGate gate = Gate();
  EXPECT_TRUE(CheckWeightGate(gate, "a launch").ok());
  EXPECT_TRUE(CheckWeightGate({}, "a launch").ok());
  gate.header = nullptr;
  EXPECT_FALSE(CheckWeightGate(gate, "a launch").ok());
  gate = Gate();
  gate.produced = nullptr;
  const LaunchStatus refused = planner_->Run({.kind = {p.n, p.k},
                                              .x = AsBf16(p.x.get()),
                                              .weights = AsBf16(p.weights.get()),
                                              .y = p.y.get(),
                                              .m = kM,
                                              .gate = gate},
                                             {.stream = stream_});
  EXPECT_NE(refused.message().find("needs header and produced"), std::string::npos);
}

}  // namespace
}  // namespace weir::cuda
