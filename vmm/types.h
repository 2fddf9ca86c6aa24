// Strong ids, tiers, owners and byte helpers shared by every layer.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>

namespace weir {

// A distinct integer type per kind of id, so that a granule is never taken for a slot.
template <typename Tag, typename Rep = uint32_t>
struct StrongId {
  static constexpr Rep kInvalidValue = static_cast<Rep>(-1);
  Rep value = kInvalidValue;
  constexpr StrongId() = default;
  constexpr explicit StrongId(Rep v) : value(v) {}
  constexpr bool valid() const { return value != kInvalidValue; }
  constexpr auto operator<=>(const StrongId&) const = default;
};

using GranuleId = StrongId<struct GranuleIdTag>;        // index into a pool's granules
using RegionId = StrongId<struct RegionIdTag>;          // index into an address space's regions
using SlotIndex = StrongId<struct SlotIndexTag>;        // granule-sized slot inside a region
using StreamId = StrongId<struct StreamIdTag>;          // in-order queue of device work
using EventId = StrongId<struct EventIdTag, uint64_t>;  // point in a stream's order
using StampId = StrongId<struct StampIdTag, uint64_t>;  // a time that a stream is to note
using AllocId = StrongId<struct AllocIdTag, uint64_t>;  // a driver's physical allocation handle

// A virtual address of the device. On the host driver it is a pointer of this process.
using VirtAddr = uint64_t;
using TimeNs = uint64_t;  // monotonic, from the driver's clock (virtual under SimDriver)

// Where bytes can live.
enum class Tier : uint8_t { kHbm, kPeer, kHost, kNvme };
inline constexpr size_t kTierCount = 4;
constexpr std::string_view TierName(Tier tier) {
  switch (tier) {
    case Tier::kHbm: return "hbm";
    case Tier::kPeer: return "peer";
    case Tier::kHost: return "host";
    case Tier::kNvme: return "nvme";
  }
  return "?";
}

// Whose memory a granule currently is.
enum class Owner : uint8_t { kNone, kWeights, kRing, kKv, kScratch };
inline constexpr size_t kOwnerCount = 5;
constexpr std::string_view OwnerName(Owner owner) {
  switch (owner) {
    case Owner::kNone: return "none";
    case Owner::kWeights: return "weights";
    case Owner::kRing: return "ring";
    case Owner::kKv: return "kv";
    case Owner::kScratch: return "scratch";
  }
  return "?";
}

inline constexpr uint64_t kKiB = 1024;
inline constexpr uint64_t kMiB = 1024 * kKiB;
inline constexpr uint64_t kGiB = 1024 * kMiB;

constexpr bool IsPowerOfTwo(uint64_t v) {
  return v != 0 && (v & (v - 1)) == 0;
}
constexpr uint64_t CeilDiv(uint64_t a, uint64_t b) {
  return a / b + (a % b != 0 ? 1 : 0);
}
constexpr uint64_t AlignUp(uint64_t v, uint64_t alignment) {
  return CeilDiv(v, alignment) * alignment;
}
constexpr uint64_t AlignDown(uint64_t v, uint64_t alignment) {
  return v / alignment * alignment;
}

}  // namespace weir

template <typename Tag, typename Rep>
struct std::hash<weir::StrongId<Tag, Rep>> {
  size_t operator()(const weir::StrongId<Tag, Rep>& id) const noexcept {
    return std::hash<Rep>()(id.value);
  }
};
