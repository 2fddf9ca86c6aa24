// Trace files: when requests came to a real service and how long they were, without their text.
//
// Azure LLM inference traces (CSV): TIMESTAMP,ContextTokens,GeneratedTokens, the time as
// 2023-11-16 18:15:46.6805900 with an optional +00:00.
// Mooncake (JSON Lines): {"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [..]}
// with one id for each 512 tokens of input; equal ids mean equal tokens, so that prefixes repeat.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/status.h"
#include "vmm/types.h"

namespace weir::bench {

inline constexpr uint32_t kMooncakeBlockTokens = 512;

struct TraceRequest {
  TimeNs at_ns = 0;  // since the first request of the file
  uint32_t input_len = 0;
  uint32_t output_len = 0;
  std::vector<uint64_t> hash_ids;  // Mooncake; empty: none
};

enum class TraceFormat : uint8_t { kAzure, kMooncake };

// At most |limit| requests from the start (0: all). kInvalidArgument names file, line, what was
// found and what is accepted; times that go backwards, lengths of 0 or above 2^27 are refused.
Result<std::vector<TraceRequest>> ParseTrace(TraceFormat format, std::string_view text,
                                             const std::string& path, uint64_t limit);
Result<std::vector<TraceRequest>> ReadTrace(TraceFormat format, const std::string& path,
                                            uint64_t limit);

}  // namespace weir::bench
