#include "kernels/cuda/enqueue.cuh"
#include "kernels/cuda/exchange.h"

namespace weir::cuda {
namespace {

using Piece = uint4;
static_assert(sizeof(Piece) == kExchangePiece);

// Enough reads under way for a link's latency times its rate, some 100 KB; few blocks, for each
// reads the header over the link.
constexpr int kFetchBlocks = 6, kFetchThreads = 1024;
// Results are few, and nobody else may write |turn|.
constexpr int kReturnThreads = 512;

constexpr uint32_t kHeaderPieces = sizeof(ExchangeHeader) / sizeof(Piece);
static_assert(sizeof(ExchangeHeader) % sizeof(Piece) == 0 && kHeaderPieces <= 32);

// Not by an index, for which every thread would copy the array to its stack.
template <typename T>
__device__ T InTurn(const std::array<T, 2>& pair, uint32_t turn) {
  return turn % 2 == 0 ? pair[0] : pair[1];
}

__global__ void __launch_bounds__(kFetchThreads) FetchKernel(const Exchange e) {
  __shared__ Piece shared[kHeaderPieces];
  WaitForPredecessor();
  const auto* from = static_cast<const Piece*>(InTurn(e.host_inputs, *e.turn));
  auto* to = static_cast<Piece*>(e.inputs);
  if (threadIdx.x < kHeaderPieces) {
    // Not from a cache: the host writes there between launches.
    const Piece piece = __ldcv(from + threadIdx.x);
    shared[threadIdx.x] = piece;
    if (blockIdx.x == 0) to[threadIdx.x] = piece;
  }
  __syncthreads();
  const auto& header = *reinterpret_cast<const ExchangeHeader*>(shared);
  for (uint32_t n = blockIdx.x * kFetchThreads + threadIdx.x;; n += kFetchBlocks * kFetchThreads) {
    const uint32_t at = header.PieceAt(n);
    if (at == ExchangeHeader::kNowhere) return;
    to[at] = __ldcv(from + at);
  }
}

__global__ void __launch_bounds__(kReturnThreads) ReturnKernel(const Exchange e) {
  WaitForPredecessor();
  const auto& header = *static_cast<const ExchangeHeader*>(e.inputs);
  const uint32_t turn = *e.turn;
  const auto* from = static_cast<const Piece*>(e.results);
  auto* to = static_cast<Piece*>(InTurn(e.host_results, turn));
  if (threadIdx.x == 0) *reinterpret_cast<uint64_t*>(to) = header.step;
  const uint32_t count = header.result_bytes / sizeof(Piece);
  for (uint32_t i = 1 + threadIdx.x; i < count; i += kReturnThreads) to[i] = from[i];
  __syncthreads();
  if (threadIdx.x == 0) *e.turn = turn + 1;
}

LaunchStatus Check(const Exchange& e, const char* what) {
  if (Aligned16(e.host_inputs[0], e.host_inputs[1], e.host_results[0], e.host_results[1], e.inputs,
                e.results, e.turn)) {
    return {};
  }
  return LaunchStatus::Invalid(std::string(what) +
                               ": every pointer must be given and 16-byte aligned");
}

}  // namespace

LaunchStatus FetchInputs(const Exchange& exchange, const Launch& launch) {
  if (LaunchStatus s = Check(exchange, "fetching inputs"); !s.ok()) return s;
  return Enqueue("fetching inputs", FetchKernel, kFetchBlocks, kFetchThreads, launch, exchange);
}

LaunchStatus ReturnResults(const Exchange& exchange, const Launch& launch) {
  if (LaunchStatus s = Check(exchange, "returning results"); !s.ok()) return s;
  return Enqueue("returning results", ReturnKernel, 1, kReturnThreads, launch, exchange);
}

}  // namespace weir::cuda
