#include "kernels/cuda/attention.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>
#include <vector>

#include "kernels/cuda/flash.h"
#include "kernels/cuda/prefill_choice.h"

namespace weir::cuda {
namespace {

constexpr int64_t kFa3MaxTilesPerHead = 4096;  // beyond, FlashInfer wants another kernel

bool IsAligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

std::string Text(int64_t value) {
  return std::to_string(value);
}

int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

const char* KernelName(AttentionKernel kernel) {
  return kernel == AttentionKernel::kFa2 ? "FA2" : "FA3";
}

LaunchStatus CheckShape(AttentionKernel kernel, const AttentionShape& s) {
  if (s.head_dim != 64 && s.head_dim != 128 && s.head_dim != 256) {
    return LaunchStatus::Invalid("attention: head_dim must be 64, 128 or 256, got " +
                                 Text(s.head_dim));
  }
  if (s.kv_heads < 1 || s.q_heads < 1 || s.q_heads % s.kv_heads != 0) {
    return LaunchStatus::Invalid("attention: q_heads must be a multiple of kv_heads, got " +
                                 Text(s.q_heads) + " and " + Text(s.kv_heads));
  }
  if (!AttentionKernelAvailable(kernel)) {
    return {cudaErrorNotSupported,
            std::string("attention: ") + KernelName(kernel) +
                " is not available: FA2 needs a GPU of compute capability 8.0 or later, FA3 one of "
                "9.0 and a build for 90a; this is " +
                Text(DeviceArchitecture())};
  }
  return {};
}

LaunchStatus CheckSequence(const PlanRequest& request, int32_t i) {
  const AttentionBatch& b = request.batch;
  const int64_t rows = int64_t{b.q_indptr_host[i + 1]} - b.q_indptr_host[i];
  const int64_t pages = int64_t{b.page_indptr_host[i + 1]} - b.page_indptr_host[i];
  const int64_t context = b.context_host[i];
  const auto wrong = [&](const char* rule) {
    return LaunchStatus::Invalid("attention: sequence " + Text(i) + " has " + Text(rows) +
                                 " rows, " + Text(pages) + " pages and a context of " +
                                 Text(context) + "; " + rule);
  };
  if (rows < 0 || pages < 0 || context < 0) return wrong("none of these may be negative");
  if (pages != CeilDiv(context, kBlockTokens)) return wrong("a page holds 16 tokens");
  if (request.use == PlanUse::kDecodeGraph) {
    return rows == 1 ? LaunchStatus() : wrong("a captured decode step has one row a sequence");
  }
  return rows <= context ? LaunchStatus() : wrong("the context includes the new rows");
}

LaunchStatus CheckRequest(const PlanRequest& request, const PlanBuffers& buffers) {
  if (LaunchStatus s = CheckShape(request.kernel, request.shape); !s.ok()) return s;
  const AttentionBatch& b = request.batch;
  if (b.sequences < 1) return LaunchStatus::Invalid("attention: a plan needs a sequence");
  if (b.q_indptr_host[0] != 0 || b.page_indptr_host[0] != 0) {
    return LaunchStatus::Invalid("attention: q_indptr and page_indptr must begin with 0");
  }
  for (int32_t i = 0; i < b.sequences; ++i) {
    if (LaunchStatus s = CheckSequence(request, i); !s.ok()) return s;
  }
  const int64_t rows = b.q_indptr_host[b.sequences];
  if (rows < 1) return LaunchStatus::Invalid("attention: a plan needs a row");
  if (request.split_pages != 0 && (request.kernel != AttentionKernel::kFa2 ||
                                   request.use != PlanUse::kEager || request.split_pages < 0)) {
    return LaunchStatus::Invalid("attention: split_pages is for eager FA2 plans, and positive");
  }
  if (request.kernel == AttentionKernel::kFa3) {
    if (request.use == PlanUse::kDecodeGraph) {
      return LaunchStatus::Invalid("attention: FA3 does not decode; plan with FA2");
    }
    const int64_t tile = request.shape.head_dim == 64 ? 192 : 128;
    if (CeilDiv(rows, tile) + b.sequences - 1 > kFa3MaxTilesPerHead) {
      return LaunchStatus::Invalid("attention: FA3 takes at most 4096 query tiles, and " +
                                   Text(rows) + " rows of " + Text(b.sequences) +
                                   " sequences are more; split the step");
    }
  }
  if (!IsAligned(buffers.device_float) || !IsAligned(buffers.device_int) ||
      !IsAligned(buffers.host_int) || buffers.device_int == nullptr ||
      buffers.host_int == nullptr) {
    return LaunchStatus::Invalid(
        "attention: plan buffers must be 16-byte aligned and there must be two integer buffers");
  }
  return {};
}

// Runs |fn|, which may throw what FlashInfer throws.
template <typename Fn>
LaunchStatus Guarded(const char* what, const Fn& fn) {
  try {
    return LaunchStatus::Of(fn(), what);
  } catch (const std::exception& e) {
    return {cudaErrorInvalidValue, std::string(what) + ": " + e.what()};
  }
}

template <int kHeadDim>
cudaError_t RunKernel(const AttentionPlan& plan, const PlanBuffers& buffers,
                      const AttentionRun& run, const Launch& launch) {
#if defined(WEIR_CUDA_FA3)
  if (plan.kernel == AttentionKernel::kFa3) {
    return flash::RunFa3<kHeadDim>(plan, buffers, run, launch);
  }
#endif
  if (plan.kernel != AttentionKernel::kFa2) return cudaErrorNotSupported;
  return flash::RunFa2<kHeadDim>(plan, buffers, run, launch);
}

LaunchStatus CheckRun(const AttentionPlan& plan, const AttentionRun& run) {
  if (LaunchStatus s = CheckShape(plan.kernel, plan.shape); !s.ok()) return s;
  if (LaunchStatus s = CheckKvPool(run.kv, run.layer); !s.ok()) return s;
  const KvLayout& layout = run.kv.layout;
  if (layout.kv_heads != plan.shape.kv_heads || layout.head_dim != plan.shape.head_dim) {
    return LaunchStatus::Invalid("attention: the plan was made for " + Text(plan.shape.kv_heads) +
                                 " kv heads of " + Text(plan.shape.head_dim) + ", the pool has " +
                                 Text(layout.kv_heads) + " of " + Text(layout.head_dim));
  }
  const int64_t row = int64_t{plan.shape.q_heads} * plan.shape.head_dim;
  if (!IsAligned(run.q) || !IsAligned(run.out) || run.q_stride % 8 != 0 || run.q_stride < row ||
      run.q_stride > std::numeric_limits<int32_t>::max()) {
    return LaunchStatus::Invalid(
        "attention: q and out must be 16-byte aligned, and q_stride a multiple of 8 of at least " +
        Text(row) + " elements, got " + Text(run.q_stride));
  }
  return {};
}

cudaError_t Processors(int* count) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error == cudaSuccess
             ? cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device)
             : error;
}

}  // namespace

LaunchStatus CheckKvPool(const KvPool& pool, int32_t layer) {
  const KvLayout& l = pool.layout;
  if (l.layers < 1 || l.kv_heads < 1 || layer < 0 || layer >= l.layers) {
    return LaunchStatus::Invalid("kv pool: layer " + Text(layer) + " of " + Text(l.layers) +
                                 " and " + Text(l.kv_heads) + " kv heads");
  }
  if (l.head_dim != 64 && l.head_dim != 128 && l.head_dim != 256) {
    return LaunchStatus::Invalid("kv pool: head_dim must be 64, 128 or 256, got " +
                                 Text(l.head_dim));
  }
  if (pool.block_stride < l.BlockElements() || pool.block_stride % 8 != 0 ||
      pool.block_stride > std::numeric_limits<uint32_t>::max() || !IsAligned(pool.base)) {
    return LaunchStatus::Invalid(
        "kv pool: the base must be 16-byte aligned and block_stride a multiple of 8 in [" +
        Text(l.BlockElements()) + ", 2^32), got " + Text(pool.block_stride));
  }
  return {};
}

bool AttentionKernelAvailable(AttentionKernel kernel) {
  const int architecture = DeviceArchitecture();
  if (kernel == AttentionKernel::kFa2) return architecture >= 80;
#if defined(WEIR_CUDA_FA3)
  return architecture == 90;
#else
  return false;
#endif
}

AttentionKernel PrefillKernel(const AttentionShape& shape, const AttentionBatch& batch) {
  if (!AttentionKernelAvailable(AttentionKernel::kFa3)) return AttentionKernel::kFa2;
  int processors = 0;
  if (Processors(&processors) != cudaSuccess) return AttentionKernel::kFa3;  // planning will say
  return Fa2AttendsSooner(shape.q_heads, shape.head_dim, batch.q_indptr_host, batch.context_host,
                          batch.sequences, processors)
             ? AttentionKernel::kFa2
             : AttentionKernel::kFa3;
}

bool SameLaunch(const AttentionPlan& a, const AttentionPlan& b) {
  return a.kernel == b.kernel && a.use == b.use && a.shape.q_heads == b.shape.q_heads &&
         a.shape.kv_heads == b.shape.kv_heads && a.shape.head_dim == b.shape.head_dim &&
         a.sequences == b.sequences && a.rows == b.rows &&
         std::memcmp(a.fields, b.fields, sizeof(a.fields)) == 0;
}

LaunchStatus AttentionPlanSizes(AttentionKernel kernel, const AttentionShape& shape, PlanUse use,
                                int32_t sequences, int32_t rows, PlanSizes* sizes) {
  *sizes = {};
  if (LaunchStatus s = CheckShape(kernel, shape); !s.ok()) return s;
  if (sequences < 1 || rows < sequences || (use == PlanUse::kDecodeGraph && rows != sequences)) {
    return LaunchStatus::Invalid("attention: sizes need at least one row a sequence, got " +
                                 Text(rows) + " rows of " + Text(sequences) + " sequences");
  }
  int processors = 0;
  const cudaError_t error = Processors(&processors);
  if (error != cudaSuccess) return LaunchStatus::Of(error, "attention: the device's size");
  constexpr size_t kAlignmentSlack = 1024;
  const int64_t group = shape.q_heads / shape.kv_heads;
  if (kernel == AttentionKernel::kFa3) {
    const int64_t tile = shape.head_dim == 64 ? 192 : 128;
    const int64_t works = (CeilDiv(rows, tile) + sequences - 1) * shape.q_heads;
    sizes->int_bytes = static_cast<size_t>(4 * (7 * works + processors + 1)) + kAlignmentSlack;
    return {};
  }
  if (use == PlanUse::kEager) {
    // The tile follows from the batch: many small tiles make the most indices; where contexts are
    // split there are at most two blocks an SM, and the largest tile makes the most partials.
    const int64_t split = 2 * int64_t{processors} / shape.kv_heads;
    const int64_t tiles = std::max(split, CeilDiv(rows * group, 16) + sequences);
    sizes->int_bytes =
        static_cast<size_t>(13 * tiles + 4 * (rows + sequences + 2)) + kAlignmentSlack;
    sizes->float_bytes =
        static_cast<size_t>(4 * shape.q_heads * split * 128 * (shape.head_dim + 1)) +
        kAlignmentSlack;
    return {};
  }
  std::vector<int32_t> q_indptr(static_cast<size_t>(sequences) + 1), pages(q_indptr.size(), 0);
  for (size_t i = 0; i < q_indptr.size(); ++i) q_indptr[i] = static_cast<int32_t>(i);
  q_indptr.back() = rows;
  PlanRequest request;
  request.kernel = kernel;
  request.shape = shape;
  request.use = use;
  request.batch = {q_indptr.data(), pages.data(), nullptr, sequences};
  LaunchStatus status =
      Guarded("attention: sizing a plan", [&] { return flash::Fa2PlanSizes(request, sizes); });
  sizes->float_bytes += kAlignmentSlack;
  sizes->int_bytes += kAlignmentSlack;
  return status;
}

LaunchStatus PlanAttention(const PlanRequest& request, const PlanBuffers& buffers,
                           cudaStream_t stream, AttentionPlan* plan) {
  if (LaunchStatus s = CheckRequest(request, buffers); !s.ok()) return s;
  return Guarded("attention: planning", [&] {
    return request.kernel == AttentionKernel::kFa3 ? flash::PlanFa3(request, buffers, stream, plan)
                                                   : flash::PlanFa2(request, buffers, stream, plan);
  });
}

LaunchStatus RunAttention(const AttentionPlan& plan, const PlanBuffers& buffers,
                          const AttentionRun& run, const Launch& launch) {
  if (LaunchStatus s = CheckRun(plan, run); !s.ok()) return s;
  return Guarded("attention", [&] {
    switch (plan.shape.head_dim) {
      case 64: return RunKernel<64>(plan, buffers, run, launch);
      case 128: return RunKernel<128>(plan, buffers, run, launch);
      default: return RunKernel<256>(plan, buffers, run, launch);
    }
  });
}

}  // namespace weir::cuda
