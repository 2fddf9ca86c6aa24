#include "kernels/cuda/exchange.h"

#include <random>

#include "tests/kernels/cuda/rows_testing.h"

namespace weir::cuda {
namespace {

using testing::DeviceBuffer;
using testing::Launched;

constexpr uint8_t kUntouched = 0xff;

// Pinned bytes.
class HostBlock {
 public:
  explicit HostBlock(size_t bytes) : bytes_(bytes) {
    EXPECT_EQ(cudaMallocHost(&data_, bytes), cudaSuccess);
    Clear();
  }
  ~HostBlock() { (void)cudaFreeHost(data_); }
  HostBlock(const HostBlock&) = delete;
  HostBlock& operator=(const HostBlock&) = delete;
  void Clear() { std::memset(data_, kUntouched, bytes_); }
  uint8_t* get() const { return static_cast<uint8_t*>(data_); }
  std::vector<uint8_t> Bytes() const { return {get(), get() + bytes_}; }

 private:
  size_t bytes_;
  void* data_ = nullptr;
};

class CudaExchange : public testing::GpuTest {
 protected:
  static constexpr size_t kBytes = 1 << 20;

  // What FetchInputs is to make of |inputs| of which the header names some ranges.
  static std::vector<uint8_t> Fetched(const std::vector<uint8_t>& inputs,
                                      const ExchangeHeader& header) {
    std::vector<uint8_t> want(inputs.size(), kUntouched);
    std::copy_n(inputs.begin(), sizeof(header), want.begin());
    for (uint32_t r = 0; r < header.ranges; ++r) {
      std::copy(inputs.begin() + header.range[r].begin, inputs.begin() + header.range[r].end,
                want.begin() + header.range[r].begin);
    }
    return want;
  }
};

// Ranges of all sizes, some empty; results of all sizes; each step in its turn, and what is not
// asked for stays as it was.
TEST_F(CudaExchange, EachStepGetsItsRangesAndReturnsItsResults) {
  HostBlock in0(kBytes), in1(kBytes), out0(kBytes), out1(kBytes);
  const DeviceBuffer<uint32_t> turn(std::vector<uint32_t>{0});
  const Exchange pointers{.host_inputs = {in0.get(), in1.get()},
                          .host_results = {out0.get(), out1.get()},
                          .turn = turn.get()};
  std::mt19937 engine(5);
  const auto random = [&engine] { return static_cast<uint32_t>(engine()); };
  for (uint64_t step = 1; step <= 40; ++step) {
    const HostBlock& in = step % 2 == 1 ? in0 : in1;
    HostBlock& out = step % 2 == 1 ? out0 : out1;
    HostBlock& other = step % 2 == 1 ? out1 : out0;
    for (size_t i = 0; i < kBytes; ++i) in.get()[i] = static_cast<uint8_t>(random() % 255);
    ExchangeHeader header{.step = step, .result_bytes = 16 + random() % 4000 * 16};
    uint32_t at = sizeof(header);
    header.ranges = random() % (kExchangeRanges + 1);
    for (uint32_t r = 0; r < header.ranges; ++r) {
      at += random() % 20 * 16;
      const auto pieces = random() % (r % 2 == 0 ? 40U : 10000U);
      header.range[r] = {at, at + pieces * 16};
      at = header.range[r].end;
    }
    ASSERT_LE(at, kBytes);
    std::memcpy(in.get(), &header, sizeof(header));

    const DeviceBuffer<uint8_t> inputs(kBytes);
    std::vector<uint8_t> results(kBytes);
    for (uint8_t& byte : results) byte = static_cast<uint8_t>(random() % 255);
    const DeviceBuffer<uint8_t> device_results(results);
    out.Clear();
    other.Clear();
    Exchange exchange = pointers;
    exchange.inputs = inputs.get();
    exchange.results = device_results.get();
    ASSERT_TRUE(Launched(FetchInputs(exchange, {.stream = stream_})));
    ASSERT_TRUE(
        Launched(ReturnResults(exchange, {.stream = stream_, .overlap = Overlap::kPrologue})));
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);

    ASSERT_EQ(inputs.Download(), Fetched(in.Bytes(), header)) << "step " << step;
    std::vector<uint8_t> want(kBytes, kUntouched);
    std::copy_n(results.begin(), header.result_bytes, want.begin());
    std::fill_n(want.begin(), 16, kUntouched);
    std::memcpy(want.data(), &step, sizeof(step));
    ASSERT_EQ(out.Bytes(), want) << "step " << step;
    ASSERT_EQ(other.Bytes(), std::vector<uint8_t>(kBytes, kUntouched)) << "step " << step;
    ASSERT_EQ(turn.Download().front(), step);
  }
}

TEST_F(CudaExchange, NamesWhatIsMissing) {
  const Exchange nothing;
  EXPECT_EQ(FetchInputs(nothing, {.stream = stream_}).message(),
            "fetching inputs: every pointer must be given and 16-byte aligned");
  EXPECT_EQ(ReturnResults(nothing, {.stream = stream_}).message(),
            "returning results: every pointer must be given and 16-byte aligned");
}

}  // namespace
}  // namespace weir::cuda
