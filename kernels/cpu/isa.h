#pragma once

#include <span>
#include <string_view>

namespace weir::cpu {

// The instruction sets the kernels are compiled for. Every kernel is defined (in its own header) as
// an exact sequence of IEEE-754 binary32 operations, so the choice changes the speed and never a
// bit of a result. (NaN payloads and signs are the one exception: they are unspecified.)
enum class Isa { kScalar, kAvx2, kAvx512, kNeon };

// "scalar", "avx2", "avx512", "neon": the words WEIR_CPU_ISA takes and reports print.
std::string_view IsaName(Isa isa);

// What this build contains and this CPU can run, slowest first. Never empty: scalar always works.
std::span<const Isa> SupportedIsas();

// What the kernels use: the fastest supported set, unless the environment variable WEIR_CPU_ISA
// names another one (read once, at first use; a word that is unknown or not supported here is
// reported on standard error and ignored).
Isa ActiveIsa();

// Overrides ActiveIsa() for the process; false, and nothing changes, when not supported. Call it
// while no kernel runs: a kernel reads the choice once, when it starts.
bool SetActiveIsa(Isa isa);

}  // namespace weir::cpu
