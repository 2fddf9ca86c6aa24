#include "kernels/cpu/exp_constants.h"
#include "kernels/cpu/kernel_table.h"

namespace weir::cpu {
namespace {
// The vector type first; the rest is the same text for every instruction set.
// clang-format off
#include "kernels/cpu/simd/vec_scalar.inc"
#include "kernels/cpu/simd/rows.inc"
#include "kernels/cpu/simd/gemm.inc"
#include "kernels/cpu/simd/attention.inc"
#include "kernels/cpu/simd/table.inc"
// clang-format on
}  // namespace

extern constinit const KernelTable kScalarKernels = MakeTable();

}  // namespace weir::cpu
