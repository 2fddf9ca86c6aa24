// Workload: the requests of a benchmark, made up from a seed. Token ids are random in the model's
// vocabulary, so that no tokenizer is needed; the same options give the same requests everywhere.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/bench/arrivals.h"
#include "engine/bench/trace_file.h"

namespace weir::bench {

enum class Dataset : uint8_t {
  kRandom,            // lengths around input_len and output_len
  kShareGptLike,      // log-normal lengths with ShareGPT's means
  kPrefixRepetition,  // num_prefixes shared beginnings of prompts, in turn
  kLongContext,       // ShareGPT-like, and a share with long prompts
  kAzure,             // lengths and times of a trace file
  kMooncake,          // the same, and shared prefixes
};
// "random", "sharegpt_like", ...; kInvalidArgument lists them.
Result<Dataset> ParseDataset(std::string_view name);
std::string_view DatasetName(Dataset dataset);

struct WorkloadOptions {
  Dataset dataset = Dataset::kRandom;
  std::string path;          // of kAzure, kMooncake
  uint64_t num_prompts = 0;  // 0: 200, or all of a trace file
  uint32_t input_len = 0;    // tokens; 0: the dataset's own (512; 161 for ShareGPT-like)
  uint32_t output_len = 0;   // tokens; 0: the dataset's own (128; 338 for ShareGPT-like)
  double range_ratio = 0;    // kRandom: lengths uniform in [(1 - r) n, (1 + r) n]; [0, 1)
  uint32_t num_prefixes = 10;
  uint32_t prefix_len = 256;
  uint32_t suffix_len = 256;
  double long_share = 0.1;  // kLongContext: of the requests, [0, 1]
  uint32_t long_input_len = 8192;
  double time_scale = 1;    // of a trace file's times; 2: half as fast
  ArrivalOptions arrivals;  // of a trace file only when it names a rate
  uint64_t seed = 0;
  uint32_t vocab_size = 0;
  uint32_t max_model_len = 0;  // tokens of prompt and output; longer requests are clipped
};

struct WorkloadRequest {
  std::vector<int32_t> prompt;
  uint32_t output_len = 0;
  TimeNs at_ns = 0;
};

struct Workload {
  std::vector<WorkloadRequest> requests;
  uint64_t clipped = 0;  // requests shortened to max_model_len
  uint64_t input_tokens = 0;
  uint64_t output_tokens = 0;
  // Of prompts, output lengths and times: equal digests, equal requests.
  uint64_t Digest() const;
};

// kInvalidArgument names the option or the trace file's line.
Result<Workload> MakeWorkload(const WorkloadOptions& options);

// Writes the requests for other programs to run, a JSON object a line: {"at_ms": when it arrives,
// "prompt_tokens": [ids], "output_len": tokens to generate}. kIo names the file.
Status SaveRequests(const Workload& workload, const std::string& path);

// To max_model_len in all: the output gives way down to half of it, then the prompt's end.
bool ClipLengths(uint32_t max_model_len, uint32_t* input_len, uint32_t* output_len);

}  // namespace weir::bench
