#include "engine/trace_metadata.h"

#include <nlohmann/json.hpp>
#include <unistd.h>

namespace weir {

std::string TraceMetadata(const EngineOptions& options, const EngineInfo& info, Memory& memory,
                          const Policy& policy) {
  using nlohmann::json;
  const WeightLayout& layout = memory.weights().layout();
  const KvGeometry& geometry = memory.kv().geometry();
  char host[256] = {};
  (void)gethostname(host, sizeof(host) - 1);
  json j = {
      {"program", "weir"},
      {"version", options.trace.version},
      {"commit", options.trace.commit},
      {"command", options.trace.command},
      {"pid", getpid()},
      {"host", host},
      {"device", info.device},
      {"driver", info.driver},
      {"model", options.model},
      {"granule_bytes", info.granule_bytes},
      {"tiers", {"hbm", "peer", "host", "nvme"}},
      {"owners", {"none", "weights", "ring", "kv", "scratch"}},
      {"states", {"free", "pinned", "mapped", "retiring"}},
      {"remap_causes", {"load", "evict", "restore", "kv-grow", "kv-shrink", "shutdown", "test"}},
      {"placements", kPlacementNames},
      {"link", {{"bytes_per_ns", memory.link_bytes_per_ns()}}},
      {"scheduler",
       {{"max_batched_tokens", options.max_num_batched_tokens},
        {"prefix_caching", options.enable_prefix_caching},
        {"steps_under_way", memory.weights().max_steps_under_way()}}},
      {"clocks",
       {{"step_error_ns", info.clock_error_ns},
        {"stamp_error_ns", memory.space().driver().stamp_error_ns()}}},
      {"scratch_bytes", info.scratch_bytes},
      {"max_num_seqs", options.max_num_seqs},
      {"max_model_len", info.max_model_len}};
  j["pools"] = json::array({{{"tier", static_cast<unsigned>(memory.pool().tier())},
                             {"granules", memory.pool().counts().total}}});
  j["ring"] = {{"slots", memory.ring_slots()}};
  j["kv"] = {{"block_bytes", info.kv_block_bytes},
             {"block_tokens", kBlockTokens},
             {"blocks_per_extent", geometry.blocks_per_extent},
             {"granules_per_extent", geometry.granules_per_extent}};
  j["regions"] = json::array();
  for (uint32_t i = 0; i < memory.space().region_count(); ++i) {
    const Region& region = memory.space().region(RegionId(i));
    j["regions"].push_back({{"id", i},
                            {"name", region.name},
                            {"slots", region.slots.size()},
                            {"bytes", region.bytes()}});
    if (region.name == "ring" || region.name == "kv") j[region.name]["region"] = i;
  }
  json layers = json::array();
  json gates = json::array();
  json segments = json::array();
  // As the CPU's layout cuts a layer (engine/weight_map.h); others by number.
  constexpr const char* kNames[] = {"attention", "gate_up", "down"};
  const auto name = [&](size_t s) {
    return layout.segments_per_layer() == 3 ? std::string(kNames[s]) : std::to_string(s);
  };
  for (uint32_t s = 0; s < layout.segments_per_layer(); ++s) segments.push_back(name(s));
  for (size_t l = 0; l < layout.layers.size(); ++l) {
    json layer = json::array();
    for (size_t s = 0; s < layout.layers[l].size(); ++s) {
      const WeightSegment& segment = layout.layers[l][s];
      layer.push_back({{"offset", segment.offset}, {"bytes", segment.bytes}});
      gates.push_back("layer " + std::to_string(l) + " " + name(s));
    }
    layers.push_back(std::move(layer));
  }
  j["weights"] = {{"region", memory.weights().region().value}, {"layers", std::move(layers)}};
  j["gates"] = std::move(gates);
  j["segments"] = std::move(segments);
  json parameters = json::object();
  for (const auto& [key, value] : policy.Parameters()) parameters[key] = value;
  j["policy"] = {{"name", policy.name()}, {"parameters", std::move(parameters)}};
  return j.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace weir
