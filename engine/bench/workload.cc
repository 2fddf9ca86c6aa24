#include "engine/bench/workload.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <utility>

#include <nlohmann/json.hpp>

#include "engine/bench/random.h"

namespace weir::bench {
namespace {

constexpr uint64_t kLengthStream = 2;
constexpr uint64_t kTokenStream = 3;
constexpr uint64_t kPrefixStream = 4;
constexpr uint64_t kBlockStream = uint64_t{1} << 63U;  // | hash id
constexpr uint64_t kDefaultPrompts = 200;
constexpr uint64_t kMostPrompts = 10'000'000;
// ShareGPT as vLLM's paper (Kwon et al. 2023, section 6.1) describes it: mean prompt 161, mean
// output 338. The spread of the logarithm is ours: about 1 gives the long tail of chat.
constexpr double kShareGptInput = 161;
constexpr double kShareGptOutput = 338;
constexpr double kSigmaInput = 1.2;
constexpr double kSigmaOutput = 0.8;
constexpr double kMostTokens = 1U << 27U;

constexpr std::array<std::pair<std::string_view, Dataset>, 6> kNames = {
    {{"random", Dataset::kRandom},
     {"sharegpt_like", Dataset::kShareGptLike},
     {"prefix_repetition", Dataset::kPrefixRepetition},
     {"long_context", Dataset::kLongContext},
     {"azure", Dataset::kAzure},
     {"mooncake", Dataset::kMooncake}}};

struct Lengths {
  uint32_t input = 0;
  uint32_t output = 0;
};

uint32_t LogNormal(Random* random, double mean, double sigma) {
  const double value = std::exp(std::log(mean) - sigma * sigma / 2 + sigma * random->Normal());
  return static_cast<uint32_t>(std::clamp(std::round(value), 1.0, kMostTokens));
}

uint32_t Around(Random* random, uint32_t length, double ratio) {
  const auto least = static_cast<uint64_t>(std::floor(length * (1 - ratio)));
  const auto most = static_cast<uint64_t>(std::ceil(length * (1 + ratio)));
  return static_cast<uint32_t>(std::max<uint64_t>(1, least + random->Below(most - least + 1)));
}

void Append(Random* random, uint32_t vocab, size_t tokens, std::vector<int32_t>* out) {
  for (size_t i = 0; i < tokens; ++i) out->push_back(static_cast<int32_t>(random->Below(vocab)));
}

Status Validate(const WorkloadOptions& o) {
  const bool file = o.dataset == Dataset::kAzure || o.dataset == Dataset::kMooncake;
  if (file == o.path.empty()) {
    return InvalidArgument(file ? "dataset " + std::string(DatasetName(o.dataset)) +
                                      " needs --dataset-path FILE"
                                : "--dataset-path is of the datasets azure and mooncake");
  }
  if (o.vocab_size == 0 || o.max_model_len < 2) {
    return InvalidArgument("the model's vocabulary must not be empty and max_model_len at least 2");
  }
  if (o.num_prompts > kMostPrompts) return InvalidArgument("num_prompts is at most 10000000");
  if (!(o.range_ratio >= 0 && o.range_ratio < 1)) {
    return InvalidArgument("random-range-ratio must be at least 0 and below 1");
  }
  if (!(o.long_share >= 0 && o.long_share <= 1)) {
    return InvalidArgument("long-share must be from 0 to 1");
  }
  if (!(o.time_scale > 0 && o.time_scale <= 1e6)) {
    return InvalidArgument("time-scale must be above 0 and at most 1000000");
  }
  if (o.num_prefixes == 0 || o.prefix_len + uint64_t{o.suffix_len} == 0) {
    return InvalidArgument("num-prefixes, and prefix-len + suffix-len, must be at least 1");
  }
  for (const uint32_t n :
       {o.input_len, o.output_len, o.prefix_len, o.suffix_len, o.long_input_len}) {
    if (n > static_cast<uint32_t>(kMostTokens)) {
      return InvalidArgument("a length of " + std::to_string(n) + " tokens is above 134217728");
    }
  }
  return ValidateArrivals(o.arrivals);
}

Lengths DrawLengths(const WorkloadOptions& o, Random* random) {
  const auto or_else = [](uint32_t given, double own) { return given != 0 ? given : own; };
  switch (o.dataset) {
    case Dataset::kRandom:
      return {Around(random, o.input_len != 0 ? o.input_len : 512, o.range_ratio),
              Around(random, o.output_len != 0 ? o.output_len : 128, o.range_ratio)};
    case Dataset::kPrefixRepetition:
      return {o.prefix_len + o.suffix_len, o.output_len != 0 ? o.output_len : 128};
    case Dataset::kLongContext:
    case Dataset::kShareGptLike:
    case Dataset::kAzure:
    case Dataset::kMooncake: break;
  }
  const bool is_long = o.dataset == Dataset::kLongContext && random->Uniform() < o.long_share;
  const double mean = is_long ? o.long_input_len : or_else(o.input_len, kShareGptInput);
  const uint32_t input = LogNormal(random, mean, is_long ? 0.3 : kSigmaInput);
  return {input, LogNormal(random, or_else(o.output_len, kShareGptOutput), kSigmaOutput)};
}

// The first |tokens| of the shared piece |id|, the same wherever it occurs.
void AppendShared(const WorkloadOptions& o, uint64_t stream, size_t tokens,
                  std::vector<int32_t>* out) {
  Random random(o.seed, stream);
  Append(&random, o.vocab_size, tokens, out);
}

class Maker {
 public:
  explicit Maker(const WorkloadOptions& o) : o_(o), tokens_(o.seed, kTokenStream) {}

  void Add(Lengths n, TimeNs at, const std::vector<uint64_t>& hash_ids) {
    if (ClipLengths(o_.max_model_len, &n.input, &n.output)) ++out_.clipped;
    WorkloadRequest r;
    r.output_len = n.output;
    r.at_ns = at;
    r.prompt.reserve(n.input);
    if (o_.dataset == Dataset::kPrefixRepetition) {
      const uint64_t prefix = out_.requests.size() % o_.num_prefixes;
      AppendShared(o_, kPrefixStream + (prefix << 3U), std::min(n.input, o_.prefix_len), &r.prompt);
    }
    for (const uint64_t id : hash_ids) {
      const size_t room = n.input - r.prompt.size();
      AppendShared(o_, kBlockStream | id, std::min<size_t>(room, kMooncakeBlockTokens), &r.prompt);
    }
    Append(&tokens_, o_.vocab_size, n.input - r.prompt.size(), &r.prompt);
    out_.input_tokens += n.input;
    out_.output_tokens += n.output;
    out_.requests.push_back(std::move(r));
  }
  Workload Take() { return std::move(out_); }

 private:
  const WorkloadOptions& o_;
  Random tokens_;
  Workload out_;
};

Result<Workload> FromTrace(const WorkloadOptions& o) {
  const TraceFormat format =
      o.dataset == Dataset::kAzure ? TraceFormat::kAzure : TraceFormat::kMooncake;
  const std::vector<TraceRequest> trace = WEIR_TRY(ReadTrace(format, o.path, o.num_prompts));
  const bool own_times = o.arrivals.request_rate == 0 && o.arrivals.ramp_up == RampUp::kNone;
  const std::vector<TimeNs> times = ArrivalTimes(trace.size(), o.arrivals);
  Maker maker(o);
  for (size_t i = 0; i < trace.size(); ++i) {
    const TraceRequest& t = trace[i];
    const auto scaled = static_cast<TimeNs>(static_cast<double>(t.at_ns) * o.time_scale);
    maker.Add({t.input_len, t.output_len}, own_times ? scaled : times[i], t.hash_ids);
  }
  return maker.Take();
}

}  // namespace

Result<Dataset> ParseDataset(std::string_view name) {
  std::string accepted;
  for (const auto& [text, dataset] : kNames) {
    if (text == name) return dataset;
    accepted += (accepted.empty() ? "" : ", ") + std::string(text);
  }
  return InvalidArgument("no dataset \"" + std::string(name) + "\"; accepted: " + accepted);
}

std::string_view DatasetName(Dataset dataset) {
  for (const auto& [text, value] : kNames) {
    if (value == dataset) return text;
  }
  return "?";
}

bool ClipLengths(uint32_t max_model_len, uint32_t* input_len, uint32_t* output_len) {
  if (uint64_t{*input_len} + *output_len <= max_model_len) return false;
  const uint32_t half = max_model_len / 2;
  const uint32_t room = *input_len < max_model_len ? max_model_len - *input_len : 0;
  *output_len = std::min(*output_len, std::max(half, room));
  *input_len = std::min(*input_len, max_model_len - *output_len);
  return true;
}

uint64_t Workload::Digest() const {
  uint64_t hash = 0xCBF29CE484222325ULL;  // FNV-1a over 64-bit words
  const auto add = [&hash](uint64_t v) { hash = (hash ^ v) * 0x100000001B3ULL; };
  for (const WorkloadRequest& r : requests) {
    add(r.prompt.size());
    for (const int32_t token : r.prompt) add(static_cast<uint64_t>(token));
    add(r.output_len);
    add(r.at_ns);
  }
  return hash;
}

Status SaveRequests(const Workload& workload, const std::string& path) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  for (const WorkloadRequest& r : workload.requests) {
    out << nlohmann::ordered_json{{"at_ms", static_cast<double>(r.at_ns) * 1e-6},
                                  {"prompt_tokens", r.prompt},
                                  {"output_len", r.output_len}}
        << "\n";
  }
  if (!out.flush()) return IoError("cannot write " + path);
  return OkStatus();
}

Result<Workload> MakeWorkload(const WorkloadOptions& o) {
  WEIR_TRY(Validate(o));
  if (!o.path.empty()) return FromTrace(o);
  const uint64_t n = o.num_prompts != 0 ? o.num_prompts : kDefaultPrompts;
  const std::vector<TimeNs> times = ArrivalTimes(n, o.arrivals);
  Random lengths(o.seed, kLengthStream);
  Maker maker(o);
  for (uint64_t i = 0; i < n; ++i) maker.Add(DrawLengths(o, &lengths), times[i], {});
  return maker.Take();
}

}  // namespace weir::bench
