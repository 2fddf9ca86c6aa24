#include "kernels/cuda/skinny_gemm.h"

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/skinny_kernel.cuh"

namespace weir::cuda {
namespace {

using skinny::Arguments;
using skinny::Form;
using skinny::kBlockK;
using skinny::Shape;

int64_t KBlocksOf(const GemmKind& kind) {
  return (kind.k + kBlockK - 1) / kBlockK;
}

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                 const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                 const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// A row-major bf16 matrix [rows, k], in boxes of [box_rows, kBlockK]; what a box has outside reads
// as zero.
LaunchStatus MakeMap(EncodeTiled encode, const void* matrix, int64_t rows, int64_t k, int box_rows,
                     CUtensorMap* map) {
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(k) * sizeof(Bf16)};
  const cuuint32_t box[2] = {kBlockK, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(matrix), sizes, strides,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return {};
  return LaunchStatus::Invalid("skinny gemm: a tensor map of [" + std::to_string(rows) + ", " +
                               std::to_string(k) + "]: error " +
                               std::to_string(static_cast<int>(result)));
}

// What |make| makes of the Shape for compressed products of |rows| rows.
template <typename Make>
auto WithCompressedShape(int rows, int cluster, Make make) {
  constexpr Form kForm = Form::kCompressed;
  const auto alone_or_not = [&]<int kM>(std::integral_constant<int, kM>) {
    return cluster == 1 ? make(Shape<kM, kForm, false>()) : make(Shape<kM, kForm, true>());
  };
  switch (rows) {
    case 8: return make(Shape<8, kForm, true>());
    case 16: return make(Shape<16, kForm, true>());
    case 32: return make(Shape<32, kForm, true>());
    case 64: return make(Shape<64, kForm, true>());
    case 80: return alone_or_not(std::integral_constant<int, 80>());
    case 96: return alone_or_not(std::integral_constant<int, 96>());
    case 112: return alone_or_not(std::integral_constant<int, 112>());
    case 128: return alone_or_not(std::integral_constant<int, 128>());
    case 144: return make(Shape<144, kForm, false>());
    case 160: return make(Shape<160, kForm, false>());
    case 176: return make(Shape<176, kForm, false>());
    case 192: return make(Shape<192, kForm, false>());
    case 200: return make(Shape<200, kForm, false>());
    case 208: return make(Shape<208, kForm, false>());
    case 224: return make(Shape<224, kForm, false>());
    case 240: return make(Shape<240, kForm, false>());
    default: return make(Shape<256, kForm, false>());
  }
}

template <typename Make>
auto WithPlainShape(int rows, Make make) {
  constexpr Form kForm = Form::kPlain;
  switch (rows) {
    case 8: return make(Shape<8, kForm, true>());
    case 16: return make(Shape<16, kForm, true>());
    case 32: return make(Shape<32, kForm, true>());
    default: return make(Shape<64, kForm, true>());
  }
}

uint32_t TilesOf(const GemmKind& kind, int tile_rows) {
  return static_cast<uint32_t>((kind.n + tile_rows - 1) / tile_rows);
}

}  // namespace

LaunchStatus SkinnyGemm::Create(SkinnyGemm* skinny) {
  using S = Shape<8, Form::kPlain, true>;
  constexpr auto kernel = skinny::Kernel<S, Bf16>;
  cudaFuncAttributes attributes = {};
  // A build without sm_90a has kernels with nothing in them.
  if (DeviceArchitecture() != 90 || cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess ||
      attributes.binaryVersion != 90) {
    return {cudaErrorNotSupported,
            "skinny gemm: needs a GPU of compute capability 9.0 and a build for 90a"};
  }
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&skinny->processors_, cudaDevAttrMultiProcessorCount, device);
  }
  // Clusters lie within one group of multiprocessors, and groups differ in size.
  constexpr int kAlone = 120 * 1024;  // more than half of a multiprocessor's shared memory
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kAlone);
  }
  for (int size = 1; size <= kMaxSkinnyCluster && error == cudaSuccess; ++size) {
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(size * skinny->processors_));
    config.blockDim = dim3(S::kThreads);
    config.dynamicSmemBytes = kAlone;
    config.attrs = &cluster;
    config.numAttrs = 1;
    error = cudaOccupancyMaxActiveClusters(&skinny->clusters_[static_cast<size_t>(size)], kernel,
                                           &config);
  }
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  if (error == cudaSuccess) {
    error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &skinny->encode_, 12000,
                                             cudaEnableDefault, &found);
  }
  if (error == cudaSuccess && found != cudaDriverEntryPointSuccess) {
    error = cudaErrorSymbolNotFound;
  }
  if (error != cudaSuccess) {
    *skinny = {};
    return LaunchStatus::Of(error, "skinny gemm");
  }
  return {};
}

// By the time that blocks take if memory bounds them where all multiprocessors read, and they
// themselves do otherwise. It does not know of what is read before the kernel before has ended, nor
// that some multiprocessors read a tenth faster than others: sizes close to the best one are worth
// a try.
std::vector<int> SkinnyGemm::Clusters(const GemmKind& kind, int64_t m) const {
  if (m > kMaxSharedRows) return {1};
  constexpr double kAlone = 1.35;  // a block reads so much faster than its share
  constexpr double kAddUp = 1;     // blocks of k that are read in the time a tile is added up in
  constexpr double kClose = 1.3;
  const int rows = SkinnyRows(m);
  const int64_t k_blocks = KBlocksOf(kind);
  std::vector<std::pair<double, int>> found;
  for (int size = 1; size <= kMaxSkinnyCluster && size <= k_blocks; ++size) {
    const int held = clusters_[static_cast<size_t>(size)];
    if (held == 0) continue;
    const auto rows_of = [](auto shape) { return shape.kTileRows; };
    const int tile_rows = kind.compressed ? WithCompressedShape(rows, size, rows_of)
                                          : WithPlainShape(rows, rows_of);
    const int64_t tiles = TilesOf(kind, tile_rows);
    const auto round = [&](int64_t clusters) {
      const double busy = static_cast<double>(clusters * size) / processors_;
      return std::max(busy, 1 / kAlone);
    };
    const int64_t rest = tiles % held;
    const double rounds =
        static_cast<double>(tiles / held) * round(held) + (rest == 0 ? 0 : round(rest));
    const double time =
        rounds * tile_rows * (static_cast<double>((k_blocks + size - 1) / size) + kAddUp);
    found.emplace_back(time, size);
  }
  std::sort(found.begin(), found.end());
  std::vector<int> sizes;
  for (const auto& [time, size] : found) {
    if (time <= kClose * found.front().first) sizes.push_back(size);
  }
  return sizes;
}

LaunchStatus SkinnyGemm::Run(const GemmParams& params, int cluster, const Launch& launch) const {
  const GemmKind& kind = params.kind;
  const int rows = SkinnyRows(params.m);
  Arguments p{};
  p.y = params.y;
  p.bias = params.bias;
  p.gate = params.gate;
  p.m = static_cast<int32_t>(params.m);
  p.n = static_cast<int32_t>(kind.n);
  p.k_blocks = static_cast<uint32_t>(KBlocksOf(kind));
  p.accumulate = kind.output == GemmOutput::kAccumulate;
  const auto encode = reinterpret_cast<EncodeTiled>(encode_);
  if (LaunchStatus s = MakeMap(encode, params.x, params.m, kind.k, rows, &p.x); !s.ok()) return s;
  const int held = clusters_[static_cast<size_t>(cluster)];
  const auto start = [&]<typename S, typename Out>(S, Out) {
    constexpr auto kernel = skinny::Kernel<S, Out>;
    const cudaError_t set =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes);
    if (set != cudaSuccess) return LaunchStatus::Of(set, "skinny gemm: shared memory");
    p.passes = static_cast<uint32_t>(SkinnyPasses(params.m));
    p.tiles = TilesOf(kind, S::kTileRows) * p.passes;
    const int blocks = cluster * std::min(static_cast<int>(p.tiles), held);
    return Enqueue("skinny gemm", kernel, blocks, S::kThreads, launch, p, S::kBytes,
                   static_cast<unsigned>(cluster));
  };
  if (kind.compressed) {
    p.compressed = reinterpret_cast<const uint8_t*>(params.weights);
    p.compressed_tiles = static_cast<uint32_t>(compressed::Tiles(kind.n));
    return WithCompressedShape(rows, cluster, [&](auto shape) { return start(shape, Bf16()); });
  }
  constexpr int kTileRows = Shape<8, Form::kPlain, true>::kTileRows;
  if (LaunchStatus s = MakeMap(encode, params.weights, kind.n, kind.k, kTileRows, &p.weights);
      !s.ok()) {
    return s;
  }
  return WithPlainShape(rows, [&](auto shape) {
    return kind.type == GemmOutputType::kF32 ? start(shape, float()) : start(shape, Bf16());
  });
}

}  // namespace weir::cuda
