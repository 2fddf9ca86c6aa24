#include "kernels/cpu/isa.h"

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "kernels/cpu/kernel_table.h"

namespace weir::cpu {
namespace {

constexpr std::array kAllIsas = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kNeon};

// Null when this build lacks it or this CPU cannot run it.
const KernelTable* TableOf(Isa isa) {
  switch (isa) {
    case Isa::kScalar: return &kScalarKernels;
#if defined(__x86_64__)
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kAvx2Kernels
                                                                             : nullptr;
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("fma")
                 ? &kAvx512Kernels
                 : nullptr;
#elif defined(__aarch64__)
    case Isa::kNeon: return &kNeonKernels;
#endif
    default: return nullptr;
  }
}

struct Supported {
  std::array<Isa, kAllIsas.size()> isas{};
  size_t count = 0;
  Supported() {
    for (Isa isa : kAllIsas) {
      if (TableOf(isa) != nullptr) isas[count++] = isa;
    }
  }
};

Isa InitialIsa() {
  const Isa best = SupportedIsas().back();
  const char* wanted = std::getenv("WEIR_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  for (Isa isa : SupportedIsas()) {
    if (IsaName(isa) == wanted) return isa;
  }
  std::fprintf(stderr, "weir: WEIR_CPU_ISA=%s is not one of", wanted);
  for (Isa isa : SupportedIsas()) std::fprintf(stderr, " %s", IsaName(isa).data());
  std::fprintf(stderr, " (what this build and CPU support); using %s\n", IsaName(best).data());
  return best;
}

struct Active {
  std::atomic<Isa> isa;
  std::atomic<const KernelTable*> table;
};

Active& TheActive() {
  static Active active = [] {
    const Isa isa = InitialIsa();
    return Active{isa, TableOf(isa)};
  }();
  return active;
}

}  // namespace

std::string_view IsaName(Isa isa) {
  switch (isa) {
    case Isa::kScalar: return "scalar";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
    case Isa::kNeon: return "neon";
  }
  return "unknown";
}

std::span<const Isa> SupportedIsas() {
  static const Supported supported;
  return {supported.isas.data(), supported.count};
}

Isa ActiveIsa() {
  return TheActive().isa.load(std::memory_order_relaxed);
}

bool SetActiveIsa(Isa isa) {
  const KernelTable* table = TableOf(isa);
  if (table == nullptr) return false;
  TheActive().isa.store(isa, std::memory_order_relaxed);
  TheActive().table.store(table, std::memory_order_relaxed);
  return true;
}

const KernelTable& ActiveKernels() {
  return *TheActive().table.load(std::memory_order_relaxed);
}

}  // namespace weir::cpu
