// The command line of weir_cuda_kernel_bench.
#pragma once

#include <string>
#include <vector>

#include "bench/kernels/cuda_step.h"
#include "kernels/cuda/launch.h"

namespace weir::bench {

struct KernelBenchOptions {
  std::string config;  // a config.json, or a folder with one
  std::vector<StepSpec> specs;
  bool profile = true, step = true, energy = true, gemm = true;
  cuda::Overlap overlap = cuda::Overlap::kNone;
  StepOptions model;
  uint32_t gemm_rows = 512;
  uint32_t rounds = 21;
  double budget_gib = 70;
  int device = 0;
  std::string json;

  static std::string Usage();
  // kInvalidArgument names the option and what it accepts.
  static Result<KernelBenchOptions> Parse(const std::vector<std::string>& arguments);
};

}  // namespace weir::bench
