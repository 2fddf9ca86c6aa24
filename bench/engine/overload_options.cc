#include "bench/engine/overload_options.h"

#include <charconv>
#include <functional>
#include <map>
#include <utility>

namespace weir::overload {
namespace {

constexpr std::pair<const char*, Mode> kModes[] = {
    {"flood", Mode::kFlood}, {"swing", Mode::kSwing}, {"light", Mode::kLight}};

// At |at| outside braces; empty parts are left out.
std::vector<std::string> Split(const std::string& text, char at) {
  std::vector<std::string> parts;
  std::string part;
  int depth = 0;
  for (const char c : text + at) {
    depth += c == '{' ? 1 : c == '}' ? -1 : 0;
    if (c != at || depth > 0) {
      part += c;
    } else if (!part.empty()) {
      parts.push_back(std::exchange(part, {}));
    }
  }
  return parts;
}

Status Refused(const std::string& flag, const std::string& value, const std::string& accepted) {
  return InvalidArgument(flag + " \"" + value + "\" is not accepted; give " + accepted);
}

Result<double> Number(const std::string& flag, const std::string& value, double least,
                      double most) {
  double number = 0;
  const char* const end = value.data() + value.size();
  const auto parsed = std::from_chars(value.data(), end, number);
  if (parsed.ec != std::errc{} || parsed.ptr != end || !(number >= least && number <= most)) {
    return Refused(flag, value,
                   "a number from " + std::to_string(least) + " to " + std::to_string(most));
  }
  return number;
}

}  // namespace

const char* ModeName(Mode mode) {
  for (const auto& [name, value] : kModes) {
    if (value == mode) return name;
  }
  return "?";
}

std::string Usage() {
  return "usage: weir_overload_bench MODEL [--dummy] [--compress] [--device cuda|cpu] [--backing "
         "peer|host]\n"
         "  [--modes flood,swing,light] [--ratios 0.73,0.8] [--policies \"resident;tide\"]\n"
         "  [--dataset NAME] [--input-len N] [--output-len N] [--range-ratio R]\n"
         "  [--seqs N] [--tokens N] [--max-model-len N] [--granule BYTES] [--threads N]\n"
         "  [--warm S] [--measure S] [--repeats N] [--phase S] [--rounds N] [--light SHARE] "
         "[--heavy SHARE]\n"
         "  [--hbm GB/s] [--algorithms FILE] [--json FILE]\n";
}

Result<Options> ParseOptions(int argc, char** argv) {
  Options o;
  o.engine.max_num_seqs = 256;
  o.engine.max_num_batched_tokens = 2048;
  o.engine.max_model_len = 4096;
  o.workload.dataset = bench::Dataset::kShareGptLike;
  o.workload.num_prompts = 4000;
  const auto seconds = [](double* field) {
    return [field](const std::string& flag, const std::string& value) -> Status {
      *field = WEIR_TRY(Number(flag, value, 0.01, 1e5));
      return OkStatus();
    };
  };
  const auto count = [](uint32_t* field) {
    return [field](const std::string& flag, const std::string& value) -> Status {
      *field = static_cast<uint32_t>(WEIR_TRY(Number(flag, value, 1, 1e7)));
      return OkStatus();
    };
  };
  const auto share = [](double* field, double most) {
    return [field, most](const std::string& flag, const std::string& value) -> Status {
      *field = WEIR_TRY(Number(flag, value, 0, most));
      return OkStatus();
    };
  };
  const auto text = [](std::string* field) {
    return [field](const std::string&, const std::string& value) -> Status {
      *field = value;
      return OkStatus();
    };
  };
  using Setter = std::function<Status(const std::string& flag, const std::string& value)>;
  const std::map<std::string, Setter> known = {
      {"--device",
       [&](const std::string& flag, const std::string& value) -> Status {
         if (value != "cuda" && value != "cpu") return Refused(flag, value, "cuda or cpu");
         o.engine.device = value == "cuda" ? DeviceKind::kCuda : DeviceKind::kCpu;
         return OkStatus();
       }},
      {"--backing",
       [&](const std::string& flag, const std::string& value) -> Status {
         if (value != "peer" && value != "host") return Refused(flag, value, "peer or host");
         o.engine.backing = value == "peer" ? BackingChoice::kPeer : BackingChoice::kHost;
         return OkStatus();
       }},
      {"--modes",
       [&](const std::string& flag, const std::string& value) -> Status {
         o.modes.clear();
         for (const std::string& name : Split(value, ',')) {
           bool found = false;
           for (const auto& [mode_name, mode] : kModes) {
             if (name != mode_name) continue;
             o.modes.push_back(mode);
             found = true;
           }
           if (!found) return Refused(flag, name, "flood, swing or light");
         }
         return OkStatus();
       }},
      {"--ratios",
       [&](const std::string& flag, const std::string& value) -> Status {
         o.ratios.clear();
         for (const std::string& ratio : Split(value, ',')) {
           o.ratios.push_back(WEIR_TRY(Number(flag, ratio, 0.01, 0.99)));
         }
         return OkStatus();
       }},
      {"--policies",
       [&](const std::string&, const std::string& value) -> Status {
         o.policies = Split(value, ';');
         return OkStatus();
       }},
      {"--dataset",
       [&](const std::string&, const std::string& value) -> Status {
         o.workload.dataset = WEIR_TRY(bench::ParseDataset(value));
         return OkStatus();
       }},
      {"--input-len", count(&o.workload.input_len)},
      {"--output-len", count(&o.workload.output_len)},
      {"--range-ratio", share(&o.workload.range_ratio, 0.99)},
      {"--seqs", count(&o.engine.max_num_seqs)},
      {"--tokens", count(&o.engine.max_num_batched_tokens)},
      {"--max-model-len", count(&o.engine.max_model_len)},
      {"--threads", count(&o.engine.threads)},
      {"--granule",
       [&](const std::string& flag, const std::string& value) -> Status {
         o.engine.granule = static_cast<uint64_t>(WEIR_TRY(Number(flag, value, 4096, 1e9)));
         return OkStatus();
       }},
      {"--warm", seconds(&o.warm_s)},
      {"--measure", seconds(&o.measure_s)},
      {"--repeats", count(&o.repeats)},
      {"--phase", seconds(&o.phase_s)},
      {"--rounds", count(&o.rounds)},
      {"--light", share(&o.light, 1)},
      {"--heavy", share(&o.heavy, 100)},
      {"--hbm", share(&o.hbm_gb_s, 1e6)},
      {"--algorithms", text(&o.engine.gemm_algorithm_file)},
      {"--json", text(&o.json)},
  };
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag.empty() || flag[0] != '-') {
      o.engine.model = flag;
      continue;
    }
    if (flag == "--dummy") {
      o.engine.dummy_weights = true;
      continue;
    }
    if (flag == "--compress") {
      o.engine.compress_weights = true;
      continue;
    }
    const auto setter = known.find(flag);
    if (setter == known.end()) return InvalidArgument("no option " + flag + "\n" + Usage());
    if (i + 1 >= argc) return InvalidArgument(flag + " needs a value\n" + Usage());
    WEIR_TRY(setter->second(flag, argv[++i]));
  }
  if (o.engine.model.empty()) return InvalidArgument("no MODEL is named\n" + Usage());
  if (o.modes.empty() || o.ratios.empty() || o.policies.empty()) {
    return InvalidArgument("--modes, --ratios and --policies must name at least one each");
  }
  // What the other modes' loads are shares of.
  if (o.policies.front() != "resident") o.policies.insert(o.policies.begin(), "resident");
  return o;
}

}  // namespace weir::overload
