#include <algorithm>

#include "kernels/cuda/decode_attention.cuh"
#include "kernels/cuda/decode_attention.h"

namespace weir::cuda {
namespace {

using decode::DecodeLaunch;
using decode::Shape;

template <int kDim>
__global__ void __launch_bounds__(Shape<kDim>::kThreads, 1)
    DecodeAttentionKernel(const __grid_constant__ DecodeLaunch p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) uint8_t raw[];
  decode::Run<kDim>(p, raw);
#endif
}

LaunchStatus Check(const AttentionShape& shape, const DecodeAttentionParams& p) {
  if (LaunchStatus s = CheckKvPool(p.kv, p.layer); !s.ok()) return s;
  const KvLayout& layout = p.kv.layout;
  if (layout.kv_heads != shape.kv_heads || layout.head_dim != shape.head_dim) {
    return LaunchStatus::Invalid("decode attention: made for " + std::to_string(shape.kv_heads) +
                                 " kv heads of " + std::to_string(shape.head_dim) +
                                 ", the pool has " + std::to_string(layout.kv_heads) + " of " +
                                 std::to_string(layout.head_dim));
  }
  if (p.sequences < 1 || p.sequences > kMaxDecodeSequences) {
    return LaunchStatus::Invalid("decode attention: 1 to " + std::to_string(kMaxDecodeSequences) +
                                 " sequences, got " + std::to_string(p.sequences));
  }
  const int64_t row = int64_t{shape.q_heads} * shape.head_dim;
  if (!Aligned16(p.q, p.out) || p.q_stride % 8 != 0 || p.q_stride < row) {
    return LaunchStatus::Invalid(
        "decode attention: q and out must be 16-byte aligned, and q_stride a multiple of 8 of at "
        "least " +
        std::to_string(row) + " elements, got " + std::to_string(p.q_stride));
  }
  if (p.pages.blocks == nullptr || p.pages.page_indptr == nullptr ||
      p.pages.last_page_len == nullptr || p.workspace == nullptr ||
      reinterpret_cast<uintptr_t>(p.workspace) % 256 != 0) {
    return LaunchStatus::Invalid(
        "decode attention: blocks, page_indptr and last_page_len must be given, and the workspace "
        "be 256-byte aligned");
  }
  return {};
}

size_t ArrivalBytes(size_t clusters) {
  return (clusters * sizeof(uint32_t) + 255) / 256 * 256;
}

// Makes |kernel| ready, and asks how many clusters of each size fit the device.
template <int kDim>
cudaError_t Fit(int processors, std::array<int, kMaxDecodeCluster + 1>* clusters) {
  constexpr auto kernel = DecodeAttentionKernel<kDim>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           Shape<kDim>::kBytes);
  for (int size = 1; size <= kMaxDecodeCluster && error == cudaSuccess; size *= 2) {
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(size * processors));
    config.blockDim = dim3(Shape<kDim>::kThreads);
    config.dynamicSmemBytes = Shape<kDim>::kBytes;
    config.attrs = &cluster;
    config.numAttrs = 1;
    error =
        cudaOccupancyMaxActiveClusters(&(*clusters)[static_cast<size_t>(size)], kernel, &config);
  }
  return error;
}

}  // namespace

LaunchStatus DecodeAttention::Create(const AttentionShape& shape, DecodeAttention* decode) {
  *decode = {};
  if (shape.head_dim != 64 && shape.head_dim != 128 && shape.head_dim != 256) {
    return {cudaErrorNotSupported, "decode attention: head_dim must be 64, 128 or 256, got " +
                                       std::to_string(shape.head_dim)};
  }
  if (shape.kv_heads < 1 || shape.q_heads < 1 || shape.q_heads % shape.kv_heads != 0 ||
      shape.q_heads / shape.kv_heads > kMaxDecodeGroup) {
    return {cudaErrorNotSupported, "decode attention: q_heads must be 1 to " +
                                       std::to_string(kMaxDecodeGroup) + " times kv_heads, got " +
                                       std::to_string(shape.q_heads) + " and " +
                                       std::to_string(shape.kv_heads)};
  }
  cudaFuncAttributes attributes = {};
  // A build without sm_90a has kernels with nothing in them.
  if (DeviceArchitecture() != 90 ||
      cudaFuncGetAttributes(&attributes, DecodeAttentionKernel<128>) != cudaSuccess ||
      attributes.binaryVersion != 90) {
    return {cudaErrorNotSupported,
            "decode attention: needs a GPU of compute capability 9.0 and a build for 90a"};
  }
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  }
  std::array<int, kMaxDecodeCluster + 1> clusters{};
  if (error == cudaSuccess) {
    error = shape.head_dim == 64    ? Fit<64>(processors, &clusters)
            : shape.head_dim == 128 ? Fit<128>(processors, &clusters)
                                    : Fit<256>(processors, &clusters);
  }
  if (error == cudaSuccess && clusters[1] < 1) error = cudaErrorLaunchOutOfResources;
  if (error != cudaSuccess) return LaunchStatus::Of(error, "decode attention");
  decode->shape_ = shape;
  decode->clusters_ = clusters;
  return {};
}

// Arrivals come first, where they are for every batch: they must stay 0 between launches.
size_t DecodeAttention::workspace_bytes() const {
  const auto most = static_cast<size_t>(*std::max_element(clusters_.begin(), clusters_.end()));
  const auto floats = static_cast<size_t>(decode::kPieceFloats(shape_.head_dim));
  return ArrivalBytes(most) + most * 2 * floats * sizeof(float);
}

// The largest with which there is a cluster for each kv head; small batches are bound by how long
// a block takes for its part.
int DecodeAttention::ClusterFor(int32_t sequences) const {
  const int64_t kv_heads = int64_t{sequences} * shape_.kv_heads;
  int size = kMaxDecodeCluster;
  while (size > 1 && clusters_[static_cast<size_t>(size)] < kv_heads) size /= 2;
  return size;
}

LaunchStatus DecodeAttention::Run(const DecodeAttentionParams& params, const Launch& launch) const {
  if (clusters_[1] == 0) {
    return {cudaErrorNotSupported, "decode attention: not made for this device"};
  }
  if (LaunchStatus s = Check(shape_, params); !s.ok()) return s;
  const KvLayout& layout = params.kv.layout;
  const int cluster = ClusterFor(params.sequences);
  const int clusters = clusters_[static_cast<size_t>(cluster)];
  const auto most = static_cast<size_t>(*std::max_element(clusters_.begin(), clusters_.end()));
  constexpr float kLog2E = 1.4426950408889634f;
  DecodeLaunch p{};
  p.q = params.q;
  p.q_stride = params.q_stride;
  p.out = params.out;
  p.k = params.kv.base + layout.KOffset(params.layer);
  p.block_stride = params.kv.block_stride;
  p.token_stride = layout.TokenStride();
  p.head_stride = layout.HeadStride();
  p.v_offset = layout.SlabElements();
  p.blocks = params.pages.blocks;
  p.page_indptr = params.pages.page_indptr;
  p.last_page_len = params.pages.last_page_len;
  p.arrivals = static_cast<uint32_t*>(params.workspace);
  p.pieces = static_cast<float*>(params.workspace) + ArrivalBytes(most) / sizeof(float);
  p.scale = params.scale * kLog2E;
  p.sequences = params.sequences;
  p.kv_heads = shape_.kv_heads;
  p.group = shape_.q_heads / shape_.kv_heads;
  const auto start = [&](auto kernel, int threads, size_t shared) {
    return Enqueue("decode attention", kernel, int64_t{cluster} * clusters, threads, launch, p,
                   shared, static_cast<unsigned>(cluster));
  };
  switch (shape_.head_dim) {
    case 64: return start(DecodeAttentionKernel<64>, Shape<64>::kThreads, Shape<64>::kBytes);
    case 128: return start(DecodeAttentionKernel<128>, Shape<128>::kThreads, Shape<128>::kBytes);
    default: return start(DecodeAttentionKernel<256>, Shape<256>::kThreads, Shape<256>::kBytes);
  }
}

}  // namespace weir::cuda
