// Loading a checkpoint's weights into the weight region, in a back-end's layout.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/model/checkpoint.h"
#include "engine/weight_map.h"
#include "pager/file_ring.h"
#include "pager/weight_pager.h"
#include "vmm/status.h"

namespace weir {

struct WeightLoadReport {
  uint64_t bytes_read = 0;
  uint64_t bytes_stored = 0;  // in the region's layout
  double seconds = 0;
  FileRing::Mode io_mode = FileRing::Mode::kIoUring;
  std::string io_mode_reason;  // why not io_uring, "" otherwise
  bool staged = false;         // through memory that the device reaches (StagedUpload)
  std::string staging_reason;  // why not although it was asked for, "" otherwise
  double GigabytesPerSecond() const {
    return seconds > 0 ? static_cast<double>(bytes_read) / seconds * 1e-9 : 0;
  }
};

// Reads every tensor through a FileRing (the next piece is being read while one is converted),
// dequantises, packs and writes it through |pager|, then seals the pager. |progress| gets bytes
// done and in all. Errors name the tensor. |make|, if given, makes the matrices of a made-up
// checkpoint, through WeightPager::WriteFrom.
// |stage_on|: |pager|'s driver, if files are to go through a StagedUpload; where there is no memory
// for one they go through ordinary memory, and the report says why.
struct MadeMatrix {
  struct Part {
    uint64_t first_row = 0;  // up to the next part's, or the last row
    DummyTensor tensor;
  };
  uint64_t offset = 0;  // in the region
  uint64_t rows = 0, cols = 0;
  bool compressed = false;
  std::vector<Part> parts;
};
using MakeMatrixFn = std::function<Status(const MadeMatrix& matrix)>;
Result<WeightLoadReport> LoadWeights(const Checkpoint& checkpoint, const WeightMap& map,
                                     WeightPager& pager,
                                     const std::function<void(uint64_t, uint64_t)>& progress,
                                     const MakeMatrixFn& make = {}, Driver* stage_on = nullptr);

// Writes |ranges| of weights that were loaded with the same arguments to |pager| again, bit for
// bit, within a WeightSource. Tensors are read whole where a range has a part of them.
Status ReloadWeights(const Checkpoint& checkpoint, const WeightMap& map, WeightPager& pager,
                     std::span<const WeightRange> ranges, const MakeMatrixFn& make = {},
                     Driver* stage_on = nullptr);

}  // namespace weir
