// The gate protocol inside kernels. A gate is the point of a step where the GPU waits, on a counter
// in device memory, until a chunk of weights has been copied in. Gates ride in kernels that are
// there anyway (norms, the activation): the kernel boundary behind such a kernel keeps every reader
// of the chunk back. A kernel that is launched early (Overlap::kPrologue) reads gated weights
// before its predecessor has ended only where it has seen for itself that they are there
// (WeightGate).
//
// Everything here is device memory at fixed addresses: which gates are armed, and for which chunks,
// changes from step to step without another capture.
//
// A gated launch has one block more, block 0, which does nothing but the gate; rows are worked on
// at the same time. An open gate therefore costs nothing, and a wait shorter than the kernel costs
// nothing either, though it is counted as a fault with its full time.
//   Depart: every kernel before this one has ended, and with them the reads of the departed gate's
//     chunk: *consumed = pass_base + chunk + 1 (release, system scope).
//   Arrive: waits until *produced >= pass_base + chunk + 1 (acquire, system scope), or the limit.
// The two are done side by side: a departure never waits for an arrival of the same kernel.
//
// A gate that waits for timeout_ns or longer fails the step: log->failed_gate names it, the results
// of the step are void, and no later gate of the step waits any more, so that the step drains.
// Departures are published in a failed step as well, or copies behind them would be stuck.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.h"

namespace weir::cuda {

// Written before every step, on its stream.
struct GateHeader {
  uint64_t pass_base = 0;   // added to every chunk of this step
  uint64_t timeout_ns = 0;  // of one wait; 0: a closed gate fails at once
};

// %globaltimer of one gate in the last step that came by; both 0 where it was not armed. They are
// equal where the gate was open on arrival.
struct GateRecord {
  uint64_t arrive_ns = 0;
  uint64_t pass_ns = 0;
};

// Begun by the embedding kernel (embed.h), ended by StepEnd.
struct StepLog {
  uint64_t begin_ns = 0;
  uint64_t end_ns = 0;    // 0: the step has not ended
  uint32_t passed = 0;    // armed gates left behind, in a failed step opened or not
  uint32_t departed = 0;  // the last departed chunk + 1
  uint32_t faults = 0;    // armed gates that were closed on arrival
  int32_t failed_gate =
      -1;                 // the gate whose wait ran out; a store by somebody else ends the waiting
  uint64_t stall_ns = 0;  // sum over the faults
  uint64_t max_stall_ns = 0;
};

struct GateTable {
  const uint64_t* produced = nullptr;
  uint64_t* consumed = nullptr;
  const int32_t* chunk_of_gate = nullptr;  // [gates]; negative: not armed
  const GateHeader* header = nullptr;
  StepLog* log = nullptr;
  GateRecord* records = nullptr;  // [gates]
};

// The gate that guards some weights, for a kernel that would read them before its predecessor, and
// with it the kernel that passes the gate, has ended. It may where the gate is not armed: nobody
// writes the weights then. And it may where |produced| says that their chunk has come: it stays
// until a later kernel departs, since `consumed` holds the next copy back. Elsewhere it waits for
// its predecessor. It never waits for the chunk, and neither counts nor notes anything.
struct WeightGate {
  const int32_t* chunk = nullptr;  // the gate's entry of chunk_of_gate; null: they never leave
  const GateHeader* header = nullptr;
  const uint64_t* produced = nullptr;
};

// Invalid when a gate with a chunk lacks the rest. |what| names the launch.
LaunchStatus CheckWeightGate(const WeightGate& gate, const char* what);

// What one kernel does for gates. By default nothing; the table may be empty then.
struct GatePoint {
  GateTable table;
  int32_t arrive = -1;  // a gate; its weights are read by kernels after this one
  int32_t depart = -1;  // a gate; its weights were read by kernels before this one
  constexpr bool used() const { return arrive >= 0 || depart >= 0; }
};

// Invalid when a used gate point lacks a part of its table. |what| names the launch.
LaunchStatus CheckGatePoint(const GatePoint& gate, const char* what);

// Departs and arrives, as |gate| says, then writes log->end_ns. The last launch of a step.
struct StepEndParams {
  StepLog* log = nullptr;
  GatePoint gate;
};
LaunchStatus StepEnd(const StepEndParams& params, const Launch& launch);

}  // namespace weir::cuda
