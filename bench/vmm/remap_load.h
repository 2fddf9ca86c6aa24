// RemapLoad: what the device does while granules are remapped, and the memory it does it in.
//
// A load runs in helpings: Begin queues some milliseconds of work, Running says whether all of it
// still runs, End lets it end and waits. So nobody else calls the driver while remaps are timed,
// and every helping ends by itself.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bench/vmm/device_work.h"
#include "vmm/driver.h"

namespace weir::bench {

// Which parts a load has; all of them run at the same time. None: the device rests.
struct LoadSpec {
  std::string name;
  bool reads = false;          // kernels read device memory, one after the other
  std::optional<Tier> copies;  // pieces of a granule, from there into device memory
  bool launches = false;       // DeviceWork::kQueuedLaunches, queued before the first of them runs
  bool graph = false;
  // A gate is closed until the helping ends; launches or a graph stand behind it.
  bool gate = false;

  bool rests() const { return !reads && !copies && !launches && !graph && !gate; }
  bool needs_work() const { return reads || launches || graph || gate; }
};

// Memory that stays mapped. Copies write behind what is read.
struct LoadMemory {
  VirtAddr read_at = 0;
  uint64_t read_bytes = 0;
  VirtAddr write_at = 0;
  uint64_t write_bytes = 0;  // a multiple of piece_bytes
  uint64_t piece_bytes = 0;  // of a copy: the granule's size
  struct Source {
    Tier tier;
    VirtAddr at;
    uint64_t bytes;  // a multiple of piece_bytes
  };
  std::vector<Source> sources;
};

// Made once for all loads of a driver: with streams of its own for each load, one of them would at
// some time share a hardware queue with the stream that opens gates.
struct LoadStreams {
  StreamId compute, copy;
};

class RemapLoad {
 public:
  // |work| may be null where the spec needs none. Runs the load once, to learn how long it takes.
  // kUnsupported: the machine or the program lacks something, which the message names.
  static Result<std::unique_ptr<RemapLoad>> Create(Driver& driver, DeviceWork* work,
                                                   const LoadStreams& streams, const LoadSpec& spec,
                                                   const LoadMemory& memory);
  // Waits for what runs. Results are of no use there.
  ~RemapLoad();
  RemapLoad(const RemapLoad&) = delete;
  RemapLoad& operator=(const RemapLoad&) = delete;

  // The device is at work, and no part will end for a while (a load that never rests: some
  // milliseconds).
  Status Begin();
  // False from the moment on at which some part has ended. A load that rests runs for ever.
  Result<bool> Running();
  // kShouldWait: something still runs after two seconds.
  Status End();

 private:
  struct Part {
    StreamId stream;
    std::function<Status()> unit;
    uint32_t units = 1;  // of a helping
    EventId end;
  };
  RemapLoad(Driver& driver, DeviceWork* work, const LoadStreams& streams, LoadSpec spec,
            const LoadMemory& memory)
      : driver_(driver), work_(work), streams_(streams), spec_(std::move(spec)), memory_(memory) {}
  Status Init();
  Status AddCopies(Tier from);
  Status AddPart(StreamId stream, std::function<Status()> unit);
  Result<uint64_t> TimeUnits(const Part& part, uint32_t units);

  Driver& driver_;
  DeviceWork* work_;
  LoadStreams streams_;
  LoadSpec spec_;
  LoadMemory memory_;
  std::vector<Part> parts_;
  bool gate_closed_ = false;
  EventId gated_;  // the end of what stands at a gate or stood behind one
  uint64_t next_piece_ = 0;
};

}  // namespace weir::bench
