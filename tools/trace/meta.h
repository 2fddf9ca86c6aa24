// TraceMeta: what the numbers of a trace mean, from the JSON in it (vmm/trace_format.h lists the
// keys).
//
// The JSON is untrusted: every key may be missing or of another type, and is then as if unset. What
// is left out is shown by number.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weir::trace_tool {

struct RegionMeta {
  uint64_t id = 0;
  std::string name;
  uint64_t slots = 0;  // 0: unknown
  uint64_t bytes = 0;
  bool operator==(const RegionMeta&) const = default;
};

// Where the bytes of one gate lie in the weight region: [offset, offset + bytes).
struct SegmentSpan {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

struct TraceMeta {
  std::string program, version, commit, command, host, device, driver, model, policy;
  uint64_t pid = 0;
  uint64_t granule_bytes = 0;
  uint64_t block_bytes = 0;  // of a KV block
  uint64_t block_tokens = 16;
  uint64_t blocks_per_extent = 0;
  uint64_t granules_per_extent = 0;
  uint64_t ring_slots = 0;
  uint64_t max_num_seqs = 0, max_model_len = 0, max_batched_tokens = 0;
  uint64_t scratch_bytes = 0;
  bool prefix_caching = true;
  uint64_t steps_under_way = 1;  // at most at once
  // How far times of gates and device steps, and of copies, may be off the records' clock.
  uint64_t step_clock_error_ns = 0, stamp_error_ns = 0;
  // Region ids; -1: not known.
  int64_t weights_region = -1;
  int64_t ring_region = -1;
  int64_t kv_region = -1;
  double link_bytes_per_ns = 0;  // backing store to device, measured at start; 0: unknown
  std::vector<std::string> owners;
  std::map<uint64_t, uint64_t> pool_granules;  // by tier
  std::map<uint64_t, RegionMeta> regions;
  std::vector<std::vector<SegmentSpan>> layers;  // of the weight region, by layer and segment
  std::vector<std::string> gates;                // names, by number
  std::vector<std::string> reasons;              // of policy decisions
  std::vector<std::pair<std::string, std::string>> policy_parameters;

  // Lenient; a text that is no JSON object gives empty metadata and |problem|.
  static TraceMeta Parse(std::string_view json, std::string* problem);

  std::string OwnerName(uint64_t owner) const;
  std::string RegionName(uint64_t region) const;
  std::string GateName(uint64_t gate) const;  // "layer 3 mlp", "gate 7"
  std::string ReasonText(uint64_t reason) const;
  // -1: not known.
  int64_t LayerOfGate(uint64_t gate) const;
  // The layer to which slot |slot| of the weight region belongs; -1: none or not known.
  int64_t LayerOfSlot(uint64_t slot) const;

 private:
  std::vector<SegmentSpan> layer_spans_;  // by layer, ascending
  void FindLayers();
};

}  // namespace weir::trace_tool
