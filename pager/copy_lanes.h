// CopyLanes: the streams that bring chunks of weights in, each whole and in turn.
//
// Represents one or two streams of a driver ("lanes"): chunk number n is copied on lane n mod 2, so
// that a link goes on with one chunk while the other's lane is between two copies (writes its
// counter, waits for a ring slot, starts). Measured between two H200s under load: 363 GB/s against
// 280 with chunks of 32 MiB, 388 against 360 with 128 MiB. A third lane would have nothing left to
// hide. There is one lane only
//   - from a file: the disk is the limit, and has as many reads in flight as it wants with one
//     fetch; two at a time would make each stripe late for the sake of the next;
//   - where there is no copy engine: a second stream would take a second processor from the compute
//     (75 % of the weights away on two cores: 10 to 12 GB/s with one stream, 8 with two).
//
// What the copies of different lanes must keep an order in, they keep through events: Follow puts
// what comes next on a chunk's lane behind everything queued on the other. Other work goes on the
// lane that Join gives, behind all chunks; a chunk queued later does not wait for it before Follow,
// so whoever queues such work waits for its end. A lane that fails takes those that follow it
// along. Owner: whoever owns the copies (the WeightPager; Memory for a measurement). Engine thread
// only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pager/backing_store.h"
#include "vmm/driver.h"
#include "vmm/status.h"

namespace weir {

class CopyLanes {
 public:
  // How many lanes make the link to |tier| busy.
  static uint32_t CountFor(const DriverProperties& driver, Tier tier) {
    return driver.has_copy_engine && tier != Tier::kNvme ? 2 : 1;
  }

  // |name|: of the streams (Driver::CreateStream).
  CopyLanes(Driver& driver, std::string name) : driver_(driver), name_(std::move(name)) {}
  CopyLanes(const CopyLanes&) = delete;
  CopyLanes& operator=(const CopyLanes&) = delete;

  // Makes the streams for fetches from |backing|; on an error there are none. Not open yet.
  Status Open(BackingStore& backing);
  // Destroys them, which waits for their work as Driver::DestroyStream does, and lets |backing|
  // know; without effect when not open. The first error; the streams are given up all the same.
  Status Close();
  bool open() const { return !lanes_.empty(); }
  uint32_t count() const { return static_cast<uint32_t>(lanes_.size()); }

  // --- While open; otherwise a lane is invalid, and the others are kDriver.
  StreamId Of(uint64_t chunk) const { return open() ? lanes_[IndexOf(chunk)].stream : StreamId(); }
  // What is put on the lane of |chunk| from now on runs behind all that is queued on the others.
  Status Follow(uint64_t chunk);
  // An event behind what is queued on the lane of |chunk|; of the chunk queued last, which followed
  // the others, it is one behind everything.
  Result<EventId> RecordBehind(uint64_t chunk);
  // The lane for work that is no chunk's; it is behind everything queued so far.
  Result<StreamId> Join();
  // An event behind everything queued so far.
  Result<EventId> RecordAll();
  // The error of a lane that has failed, however long the others are going to wait for theirs.
  // Looks at what was recorded last on each lane, by any of the above.
  Status Health();

 private:
  struct Lane {
    StreamId stream;
    EventId last;  // invalid: nothing has been recorded
  };
  size_t IndexOf(uint64_t chunk) const { return chunk % lanes_.size(); }
  Status CheckOpen() const;
  Result<EventId> RecordOn(Lane& lane);

  Driver& driver_;
  const std::string name_;
  BackingStore* backing_ = nullptr;
  std::vector<Lane> lanes_;
};

}  // namespace weir
