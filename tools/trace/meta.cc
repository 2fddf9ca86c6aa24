#include "tools/trace/meta.h"

#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

namespace weir::trace_tool {
namespace {

using nlohmann::json;

// More than any model has; keeps a hostile file from making us allocate.
constexpr size_t kMostEntries = 1U << 20;
constexpr uint64_t kMostLayers = 1U << 14;
constexpr size_t kMostSegments = 64;

const json* Find(const json& object, std::string_view key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(std::string(key));
  return it == object.end() ? nullptr : &*it;
}

// Text for a terminal: no control characters, no endless lines.
std::string Clean(std::string text) {
  constexpr size_t kMost = 400;
  if (text.size() > kMost) text.resize(kMost);
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return text;
}

void Get(const json& object, std::string_view key, std::string* out) {
  const json* v = Find(object, key);
  if (v != nullptr && v->is_string()) *out = Clean(v->get<std::string>());
}

uint64_t AsNumber(const json& v) {
  if (v.is_number_unsigned()) return v.get<uint64_t>();
  if (v.is_number_integer()) return static_cast<uint64_t>(std::max<int64_t>(0, v.get<int64_t>()));
  if (v.is_number_float()) {
    const double d = v.get<double>();
    return d > 0 && d < 1e18 ? static_cast<uint64_t>(d) : 0;
  }
  return 0;
}

void Get(const json& object, std::string_view key, uint64_t* out) {
  const json* v = Find(object, key);
  if (v != nullptr && v->is_number()) *out = AsNumber(*v);
}

std::vector<std::string> Texts(const json& object, std::string_view key) {
  std::vector<std::string> texts;
  const json* v = Find(object, key);
  if (v == nullptr || !v->is_array()) return texts;
  for (const json& item : *v) {
    if (texts.size() >= kMostEntries) break;
    texts.push_back(item.is_string() ? Clean(item.get<std::string>()) : "");
  }
  return texts;
}

template <typename Each>
void ForObjects(const json& object, std::string_view key, Each each) {
  const json* v = Find(object, key);
  if (v == nullptr || !v->is_array()) return;
  size_t n = 0;
  for (const json& item : *v) {
    if (++n > kMostEntries) break;
    if (item.is_object()) each(item);
  }
}

void GetId(const json& object, std::string_view key, int64_t* out) {
  const json* v = Find(object, key);
  if (v != nullptr && v->is_number() && AsNumber(*v) <= INT64_MAX) {
    *out = static_cast<int64_t>(AsNumber(*v));
  }
}

void ReadLayers(const json& weights, TraceMeta* meta) {
  const json* layers = Find(weights, "layers");
  if (layers == nullptr || !layers->is_array()) return;
  for (const json& layer : *layers) {
    if (meta->layers.size() >= kMostLayers) break;
    std::vector<SegmentSpan>& spans = meta->layers.emplace_back();
    if (!layer.is_array()) continue;
    for (const json& item : layer) {
      if (spans.size() >= kMostSegments) break;
      SegmentSpan span;
      Get(item, "offset", &span.offset);
      Get(item, "bytes", &span.bytes);
      if (span.offset > UINT64_MAX - span.bytes) span = {};
      spans.push_back(span);
    }
  }
}

void ReadPlaces(const json& root, TraceMeta* meta) {
  ForObjects(root, "pools", [&](const json& pool) {
    uint64_t tier = UINT64_MAX;
    uint64_t granules = 0;
    Get(pool, "tier", &tier);
    Get(pool, "granules", &granules);
    if (tier < kMostLayers) meta->pool_granules[tier] = granules;
  });
  ForObjects(root, "regions", [&](const json& item) {
    RegionMeta region;
    Get(item, "id", &region.id);
    Get(item, "name", &region.name);
    Get(item, "slots", &region.slots);
    Get(item, "bytes", &region.bytes);
    meta->regions[region.id] = region;
  });
  if (const json* weights = Find(root, "weights"); weights != nullptr) {
    GetId(*weights, "region", &meta->weights_region);
    ReadLayers(*weights, meta);
  }
  if (const json* ring = Find(root, "ring"); ring != nullptr) {
    GetId(*ring, "region", &meta->ring_region);
    Get(*ring, "slots", &meta->ring_slots);
  }
  if (const json* kv = Find(root, "kv"); kv != nullptr) {
    GetId(*kv, "region", &meta->kv_region);
    Get(*kv, "block_bytes", &meta->block_bytes);
    Get(*kv, "block_tokens", &meta->block_tokens);
    Get(*kv, "blocks_per_extent", &meta->blocks_per_extent);
    Get(*kv, "granules_per_extent", &meta->granules_per_extent);
  }
  if (const json* link = Find(root, "link"); link != nullptr) {
    const json* rate = Find(*link, "bytes_per_ns");
    if (rate != nullptr && rate->is_number()) {
      const double value = rate->get<double>();
      if (std::isfinite(value) && value > 0) meta->link_bytes_per_ns = value;
    }
  }
}

void ReadPolicy(const json& root, TraceMeta* meta) {
  const json* policy = Find(root, "policy");
  if (policy == nullptr) return;
  Get(*policy, "name", &meta->policy);
  const json* parameters = Find(*policy, "parameters");
  if (parameters == nullptr || !parameters->is_object()) return;
  for (const auto& [name, value] : parameters->items()) {
    if (meta->policy_parameters.size() >= kMostLayers) break;
    meta->policy_parameters.emplace_back(
        Clean(name), Clean(value.is_string() ? value.get<std::string>() : value.dump()));
  }
}

}  // namespace

TraceMeta TraceMeta::Parse(std::string_view text, std::string* problem) {
  TraceMeta meta;
  problem->clear();
  const json root = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded() || !root.is_object()) {
    *problem = "the metadata is not a JSON object; numbers are shown without names";
    return meta;
  }
  Get(root, "program", &meta.program);
  Get(root, "version", &meta.version);
  Get(root, "commit", &meta.commit);
  Get(root, "command", &meta.command);
  Get(root, "host", &meta.host);
  Get(root, "device", &meta.device);
  Get(root, "driver", &meta.driver);
  Get(root, "model", &meta.model);
  Get(root, "pid", &meta.pid);
  Get(root, "granule_bytes", &meta.granule_bytes);
  Get(root, "max_num_seqs", &meta.max_num_seqs);
  Get(root, "max_model_len", &meta.max_model_len);
  Get(root, "scratch_bytes", &meta.scratch_bytes);
  if (const json* scheduler = Find(root, "scheduler"); scheduler != nullptr) {
    Get(*scheduler, "max_batched_tokens", &meta.max_batched_tokens);
    Get(*scheduler, "steps_under_way", &meta.steps_under_way);
    const json* caching = Find(*scheduler, "prefix_caching");
    if (caching != nullptr && caching->is_boolean()) meta.prefix_caching = caching->get<bool>();
  }
  if (const json* clocks = Find(root, "clocks"); clocks != nullptr) {
    Get(*clocks, "step_error_ns", &meta.step_clock_error_ns);
    Get(*clocks, "stamp_error_ns", &meta.stamp_error_ns);
  }
  meta.owners = Texts(root, "owners");
  meta.reasons = Texts(root, "reasons");
  meta.gates = Texts(root, "gates");
  ReadPolicy(root, &meta);
  ReadPlaces(root, &meta);
  meta.FindLayers();
  return meta;
}

void TraceMeta::FindLayers() {
  uint64_t end = 0;
  for (const auto& segments : layers) {
    SegmentSpan span{UINT64_MAX, 0};
    uint64_t last = 0;
    for (const SegmentSpan& s : segments) {
      if (s.bytes == 0) continue;
      span.offset = std::min(span.offset, s.offset);
      last = std::max(last, s.offset + s.bytes);
    }
    // Layers lie back to back; anything else is not looked up by address.
    if (last == 0 || span.offset < end) span = {end, 0};
    span.bytes = last > span.offset ? last - span.offset : 0;
    end = span.offset + span.bytes;
    layer_spans_.push_back(span);
  }
}

std::string TraceMeta::OwnerName(uint64_t owner) const {
  if (owner < owners.size() && !owners[owner].empty()) return owners[owner];
  constexpr std::string_view kNames[] = {"none", "weights", "ring", "kv", "scratch"};
  if (owner < std::size(kNames)) return std::string(kNames[owner]);
  return "owner " + std::to_string(owner);
}

std::string TraceMeta::RegionName(uint64_t region) const {
  const auto it = regions.find(region);
  if (it != regions.end() && !it->second.name.empty()) return it->second.name;
  return "region " + std::to_string(region);
}

std::string TraceMeta::GateName(uint64_t gate) const {
  if (gate < gates.size() && !gates[gate].empty()) return gates[gate];
  return "gate " + std::to_string(gate);
}

std::string TraceMeta::ReasonText(uint64_t reason) const {
  if (reason < reasons.size() && !reasons[reason].empty()) return reasons[reason];
  return "reason " + std::to_string(reason);
}

int64_t TraceMeta::LayerOfGate(uint64_t gate) const {
  if (layers.empty() || layers[0].empty()) return -1;
  const uint64_t layer = gate / layers[0].size();
  return layer < layers.size() ? static_cast<int64_t>(layer) : -1;
}

int64_t TraceMeta::LayerOfSlot(uint64_t slot) const {
  if (granule_bytes == 0 || slot > UINT64_MAX / granule_bytes - 1) return -1;
  // A granule across a border belongs to the layer that has its middle.
  const uint64_t middle = slot * granule_bytes + granule_bytes / 2;
  auto it = std::upper_bound(layer_spans_.begin(), layer_spans_.end(), middle,
                             [](uint64_t at, const SegmentSpan& span) { return at < span.offset; });
  if (it == layer_spans_.begin()) return -1;
  --it;
  return middle - it->offset < it->bytes ? it - layer_spans_.begin() : -1;
}

}  // namespace weir::trace_tool
