#include "engine/cli/option_table.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "engine/cli/size_text.h"

namespace weir::cli {
namespace {

template <typename T>
using Field = T& (*)(Settings&);

// Reading through a non-const accessor: the table has one accessor a field.
template <typename T>
const T& Read(const Settings& s, Field<T> field) {
  return field(const_cast<Settings&>(s));
}

OptionInfo Row(std::string section, std::string key, OptionType type, std::string accepted,
               std::string help) {
  OptionInfo o;
  o.flag = "--" + key;
  std::replace(o.flag.begin(), o.flag.end(), '_', '-');
  o.section = std::move(section);
  o.key = std::move(key);
  o.type = type;
  o.accepted = std::move(accepted);
  o.help = std::move(help);
  return o;
}

OptionInfo Text(std::string section, std::string key, Field<std::string> field,
                std::string accepted, std::string help) {
  OptionInfo o = Row(std::move(section), std::move(key), OptionType::kText, std::move(accepted),
                     std::move(help));
  o.set = [field](Settings& s, std::string_view text) -> Status {
    field(s) = std::string(text);
    return OkStatus();
  };
  o.get = [field](const Settings& s) { return Read(s, field); };
  return o;
}

OptionInfo Switch(std::string section, std::string key, Field<bool> field, std::string help) {
  OptionInfo o = Row(std::move(section), std::move(key), OptionType::kSwitch, "true or false",
                     std::move(help));
  o.set = [field](Settings& s, std::string_view text) -> Status {
    if (text == "true" || text == "1" || text == "on" || text == "yes") {
      field(s) = true;
    } else if (text == "false" || text == "0" || text == "off" || text == "no") {
      field(s) = false;
    } else {
      return InvalidArgument("\"" + OneLine(text, 40) + "\" is not accepted; give true or false");
    }
    return OkStatus();
  };
  o.get = [field](const Settings& s) -> std::string { return Read(s, field) ? "true" : "false"; };
  return o;
}

OptionInfo Size(std::string section, std::string key, Field<uint64_t> field, std::string help) {
  OptionInfo o =
      Row(std::move(section), std::move(key), OptionType::kSize, "a size", std::move(help));
  o.set = [field](Settings& s, std::string_view text) -> Status {
    field(s) = WEIR_TRY(ParseSize(text));
    return OkStatus();
  };
  o.get = [field](const Settings& s) { return SizeText(Read(s, field)); };
  return o;
}

template <typename T>
OptionInfo Count(std::string section, std::string key, Field<T> field, uint64_t least,
                 uint64_t most, std::string help) {
  const std::string range = most == std::numeric_limits<uint64_t>::max()
                                ? "a whole number from " + std::to_string(least)
                                : std::to_string(least) + " to " + std::to_string(most);
  OptionInfo o =
      Row(std::move(section), std::move(key), OptionType::kCount, range, std::move(help));
  o.set = [field, least, most](Settings& s, std::string_view text) -> Status {
    field(s) = static_cast<T>(WEIR_TRY(ParseCount(text, least, most)));
    return OkStatus();
  };
  o.get = [field](const Settings& s) { return std::to_string(Read(s, field)); };
  return o;
}

OptionInfo Real(std::string section, std::string key, Field<double> field, double least,
                double most, std::string help) {
  OptionInfo o = Row(std::move(section), std::move(key), OptionType::kReal,
                     RealText(least) + " to " + RealText(most), std::move(help));
  o.set = [field, least, most](Settings& s, std::string_view text) -> Status {
    field(s) = WEIR_TRY(ParseReal(text, least, most));
    return OkStatus();
  };
  o.get = [field](const Settings& s) { return RealText(Read(s, field)); };
  return o;
}

// As Real, but 0 is not accepted.
OptionInfo Share(std::string section, std::string key, Field<double> field, std::string help) {
  OptionInfo o =
      Row(std::move(section), std::move(key), OptionType::kReal, "above 0 to 1", std::move(help));
  o.set = [field](Settings& s, std::string_view text) -> Status {
    const Result<double> value = ParseReal(text, 0, 1);
    if (!value.ok() || *value == 0) {
      return InvalidArgument("\"" + OneLine(text, 40) +
                             "\" is not accepted; give a number above 0 and at most 1");
    }
    field(s) = *value;
    return OkStatus();
  };
  o.get = [field](const Settings& s) { return RealText(Read(s, field)); };
  return o;
}

template <typename T>
OptionInfo Choice(std::string section, std::string key, Field<T> field,
                  std::vector<std::pair<std::string, T>> values, std::string help) {
  std::string accepted;
  for (size_t i = 0; i < values.size(); ++i) {
    accepted += (i == 0 ? "" : i + 1 == values.size() ? " or " : ", ") + values[i].first;
  }
  OptionInfo o =
      Row(std::move(section), std::move(key), OptionType::kChoice, accepted, std::move(help));
  o.set = [field, values, accepted](Settings& s, std::string_view text) -> Status {
    for (const auto& [name, value] : values) {
      if (name != text) continue;
      field(s) = value;
      return OkStatus();
    }
    return InvalidArgument("\"" + OneLine(text, 40) + "\" is not accepted; give " + accepted);
  };
  o.get = [field, values](const Settings& s) -> std::string {
    for (const auto& [name, value] : values) {
      if (value == Read(s, field)) return name;
    }
    return "";
  };
  return o;
}

OptionInfo Budget() {
  OptionInfo o = Row("memory", "hbm_budget", OptionType::kSize, "a size or auto",
                     "everything weir takes of the device; auto: room for everything, and for "
                     "'run' weights, step buffers and a share of the KV wanted (--kv-share)");
  o.set = [](Settings& s, std::string_view text) -> Status {
    if (text == "auto") {
      s.budget_mode = BudgetMode::kAuto;
      s.engine.hbm_budget = 0;
      return OkStatus();
    }
    const Result<uint64_t> bytes = ParseSize(text);
    if (!bytes.ok()) return bytes.status().WithContext("neither auto nor a size");
    if (*bytes == 0) return InvalidArgument("a budget of 0 holds nothing; give a size or auto");
    s.budget_mode = BudgetMode::kBytes;
    s.engine.hbm_budget = *bytes;
    return OkStatus();
  };
  o.get = [](const Settings& s) -> std::string {
    return s.budget_mode == BudgetMode::kAuto ? "auto" : SizeText(s.engine.hbm_budget);
  };
  return o;
}

OptionInfo Seed() {
  OptionInfo o = Row("sampling", "seed", OptionType::kText, "a whole number or none",
                     "of the draws; none: from the request's number");
  o.set = [](Settings& s, std::string_view text) -> Status {
    if (text == "none") {
      s.sampling.seed.reset();
    } else {
      s.sampling.seed = WEIR_TRY(ParseCount(text, 0, std::numeric_limits<uint64_t>::max()));
    }
    return OkStatus();
  };
  o.get = [](const Settings& s) -> std::string {
    return s.sampling.seed ? std::to_string(*s.sampling.seed) : "none";
  };
  return o;
}

OptionInfo TopK() {
  OptionInfo o = Row("sampling", "top_k", OptionType::kCount, "0 to 1000000",
                     "draw from the k likeliest tokens; 0: all");
  o.set = [](Settings& s, std::string_view text) -> Status {
    s.sampling.top_k = static_cast<int32_t>(WEIR_TRY(ParseCount(text, 0, 1'000'000)));
    return OkStatus();
  };
  o.get = [](const Settings& s) { return std::to_string(std::max(0, s.sampling.top_k)); };
  return o;
}

void AddServerOptions(std::vector<OptionInfo>* t) {
  using S = Settings;
  constexpr uint64_t k32 = std::numeric_limits<uint32_t>::max();
  t->push_back(Text(
      "server", "host", [](S& s) -> std::string& { return s.serve.host; }, "an address",
      "to listen on; 0.0.0.0: every network, then set API keys"));
  t->push_back(Count<uint32_t>(
      "server", "port", [](S& s) -> uint32_t& { return s.serve.port; }, 0, 65535,
      "to listen on; 0: any free one, printed"));
  t->push_back(Text(
      "server", "api_key_file", [](S& s) -> std::string& { return s.serve.api_key_file; }, "a path",
      "keys, one a line: [name] key, or name sha256:digest; WEIR_SERVER_API_KEY adds one"));
  t->push_back(Text(
      "server", "served_model_name", [](S& s) -> std::string& { return s.serve.served_model_name; },
      "a name", "of the model in requests and replies; empty: that of its file or directory"));
  t->push_back(Count<uint32_t>(
      "server", "http_threads", [](S& s) -> uint32_t& { return s.serve.http_threads; }, 1, 64,
      "threads that read and write connections"));
  t->push_back(Count<uint32_t>(
      "server", "max_connections", [](S& s) -> uint32_t& { return s.serve.max_connections; }, 1,
      1'000'000, "open at once; more are answered 503"));
  t->push_back(Count<uint32_t>(
      "server", "max_queued_requests",
      [](S& s) -> uint32_t& { return s.serve.max_queued_requests; }, 1, k32,
      "requests that wait to run; more are answered 503"));
  t->push_back(Count<uint64_t>(
      "server", "max_queued_tokens", [](S& s) -> uint64_t& { return s.serve.max_queued_tokens; }, 1,
      std::numeric_limits<uint64_t>::max(),
      "prompt tokens of those, about wanted time to first token x prefill speed"));
  t->push_back(Count<uint32_t>(
      "server", "max_queued_per_tenant",
      [](S& s) -> uint32_t& { return s.serve.max_queued_per_tenant; }, 1, k32,
      "waiting requests of one API key where there are several; more are answered 429"));
  t->push_back(Real(
      "server", "request_timeout", [](S& s) -> double& { return s.serve.request_timeout; }, 0,
      1'000'000, "seconds a request may take, waiting included; 0: no limit"));
  t->push_back(Real(
      "server", "shutdown_timeout", [](S& s) -> double& { return s.serve.shutdown_timeout; }, 0,
      1'000'000, "seconds that requests in flight have to end after SIGTERM"));
  t->push_back(Switch(
      "server", "vllm_metrics", [](S& s) -> bool& { return s.serve.vllm_metrics; },
      "show request metrics under vllm: too, for dashboards made for vLLM"));
  t->push_back(Switch(
      "server", "log_requests", [](S& s) -> bool& { return s.serve.log_requests; },
      "one line at level info for each request; never its text"));
}

std::vector<OptionInfo> MakeTable() {
  using S = Settings;
  constexpr uint64_t k32 = std::numeric_limits<uint32_t>::max();
  constexpr uint64_t k64 = std::numeric_limits<uint64_t>::max();
  std::vector<OptionInfo> t;

  t.push_back(Text(
      "model", "path", [](S& s) -> std::string& { return s.engine.model; }, "a path",
      "a Hugging Face directory, a .gguf file, or with dummy_weights also a config.json"));
  t.back().flag = "--model";
  t.back().short_flag = "-m";
  t.push_back(Switch(
      "model", "dummy_weights", [](S& s) -> bool& { return s.engine.dummy_weights; },
      "made-up weights of the model's shape, for benchmarks"));
  t.push_back(Count<uint64_t>(
      "model", "dummy_seed", [](S& s) -> uint64_t& { return s.engine.dummy_seed; }, 0, k64,
      "of the made-up weights"));
  t.push_back(Switch(
      "model", "compress_weights", [](S& s) -> bool& { return s.engine.compress_weights; },
      "gate and up matrices take 0.758 of their bytes in memory, without loss; on Hopper GPUs"));

  t.push_back(Choice<DeviceKind>(
      "compute", "device", [](S& s) -> DeviceKind& { return s.engine.device; },
      {{"auto", DeviceKind::kAuto}, {"cpu", DeviceKind::kCpu}, {"cuda", DeviceKind::kCuda}},
      "where the model runs"));
  t.push_back(Count<uint32_t>(
      "compute", "threads", [](S& s) -> uint32_t& { return s.engine.threads; }, 0, 4096,
      "compute threads on the CPU; 0: one per core"));

  t.push_back(Count<uint32_t>(
      "compute", "device_index", [](S& s) -> uint32_t& { return s.engine.device_index; }, 0, 1023,
      "which GPU"));
  t.push_back(Count<uint32_t>(
      "compute", "peer_index", [](S& s) -> uint32_t& { return s.engine.peer_index; }, 0, 1023,
      "which GPU holds weights that are away when backing is peer"));

  t.push_back(Text(
      "compute", "gemm_algorithm_file",
      [](S& s) -> std::string& { return s.engine.gemm_algorithm_file; }, "a path",
      "keeps a GPU's choice of product algorithms: later starts are faster, and compute the same "
      "bits"));
  t.push_back(Choice<DecodeAttentionUse>(
      "compute", "decode_attention",
      [](S& s) -> DecodeAttentionUse& { return s.engine.decode_attention; },
      {{"auto", DecodeAttentionUse::kAuto}, {"flashinfer", DecodeAttentionUse::kFlashInfer}},
      "which kernel attends in decode steps on a GPU; auto: weir's own where it takes the model's "
      "shape"));
  t.push_back(Budget());
  t.push_back(Size(
      "memory", "kv_cache", [](S& s) -> uint64_t& { return s.engine.kv_cache_bytes; },
      "KV wanted when there is no budget; 0: from the scheduler's limits"));
  t.push_back(Size(
      "memory", "granule", [](S& s) -> uint64_t& { return s.engine.granule; },
      "unit that is mapped and moved, a power of two; 0: chosen from device and "
      "model"));
  t.push_back(Choice<BackingChoice>(
      "memory", "backing", [](S& s) -> BackingChoice& { return s.engine.backing; },
      {{"host", BackingChoice::kHost},
       {"peer", BackingChoice::kPeer},
       {"nvme", BackingChoice::kNvme},
       {"none", BackingChoice::kNone}},
      "where weights live that are away; peer: another GPU; none: they never leave"));
  t.push_back(Text(
      "memory", "backing_directory",
      [](S& s) -> std::string& { return s.engine.backing_directory; }, "a directory",
      "of the backing file when backing is nvme"));
  t.push_back(Count<uint32_t>(
      "memory", "ring_slots", [](S& s) -> uint32_t& { return s.engine.ring_slots; }, 2, 64,
      "stripes that can be in memory at once while weights stream"));
  t.push_back(Choice<KvCacheDtype>(
      "memory", "kv_cache_dtype", [](S& s) -> KvCacheDtype& { return s.engine.kv_cache_dtype; },
      {{"bf16", KvCacheDtype::kBf16}, {"f32", KvCacheDtype::kF32}}, "numbers in the KV cache"));
  t.push_back(Switch(
      "memory", "enable_prefix_caching",
      [](S& s) -> bool& { return s.engine.enable_prefix_caching; },
      "reuse the KV of prompt beginnings that were computed before"));
  t.push_back(Switch(
      "memory", "scrub_kv", [](S& s) -> bool& { return s.engine.scrub_kv; },
      "zero a KV block that held one tenant's tokens before another's (API key, cache_salt) use "
      "it"));

  t.push_back(Count<uint32_t>(
      "scheduler", "max_num_seqs", [](S& s) -> uint32_t& { return s.engine.max_num_seqs; }, 1,
      65536, "sequences running at once"));
  t.push_back(Count<uint32_t>(
      "scheduler", "max_num_batched_tokens",
      [](S& s) -> uint32_t& { return s.engine.max_num_batched_tokens; }, 1, 1U << 20,
      "tokens computed in one step"));
  t.push_back(Count<uint32_t>(
      "scheduler", "max_model_len", [](S& s) -> uint32_t& { return s.engine.max_model_len; }, 0,
      k32,
      "tokens of prompt and output of one request; 0: what the model was "
      "made for"));

  t.push_back(Text(
      "policy", "name", [](S& s) -> std::string& { return s.engine.policy; },
      "name or name{key=value; ...}",
      "who decides where the border between weights and KV is; see 'weir policies'"));
  t.back().flag = "--policy";

  t.push_back(Count<uint32_t>(
      "sampling", "max_tokens", [](S& s) -> uint32_t& { return s.sampling.max_tokens; }, 0, k32,
      "most tokens to generate for a request; 0: what the context holds"));
  t.back().short_flag = "-n";
  t.push_back(Real(
      "sampling", "temperature", [](S& s) -> double& { return s.sampling.temperature; }, 0, 2,
      "0: greedy, the likeliest token always"));
  t.push_back(TopK());
  t.push_back(Share(
      "sampling", "top_p", [](S& s) -> double& { return s.sampling.top_p; },
      "draw from the likeliest tokens that hold this probability; 1: all"));
  t.push_back(Real(
      "sampling", "min_p", [](S& s) -> double& { return s.sampling.min_p; }, 0, 1,
      "drop tokens less likely than this share of the likeliest; 0: none"));
  t.push_back(Real(
      "sampling", "repetition_penalty",
      [](S& s) -> double& { return s.sampling.repetition_penalty; }, 0.01, 2,
      "above 1: makes what was there less likely; 1: off"));
  t.push_back(Real(
      "sampling", "presence_penalty", [](S& s) -> double& { return s.sampling.presence_penalty; },
      -2, 2, "taken from every token the output holds; 0: off"));
  t.push_back(Real(
      "sampling", "frequency_penalty", [](S& s) -> double& { return s.sampling.frequency_penalty; },
      -2, 2, "the same for each time it is there; 0: off"));
  t.push_back(Seed());
  t.push_back(Switch(
      "sampling", "ignore_eos", [](S& s) -> bool& { return s.sampling.ignore_eos; },
      "go on after the end-of-sequence token"));

  AddServerOptions(&t);

  t.push_back(Choice<std::string>(
      "log", "level", [](S& s) -> std::string& { return s.log_level; },
      {{"debug", "debug"}, {"info", "info"}, {"warn", "warn"}, {"error", "error"}, {"off", "off"}},
      "least important messages to print on stderr"));
  t.back().flag = "--log-level";
  t.push_back(Choice<LogFormat>(
      "log", "format", [](S& s) -> LogFormat& { return s.log_format; },
      {{"text", LogFormat::kText}, {"json", LogFormat::kJson}}, "json: one object a line"));
  t.back().flag = "--log-format";

  t.push_back(Text(
      "trace", "file", [](S& s) -> std::string& { return s.engine.trace.file; }, "a path",
      "record every memory event into this file (for weir-trace); 'run': of the first pass"));
  t.back().flag = "--trace";
  t.push_back(Count<uint32_t>(
      "trace", "ring_records", [](S& s) -> uint32_t& { return s.engine.trace.ring_records; }, 4,
      1U << 22, "events of 64 bytes that each thread can hold, a power of two"));
  t.back().flag = "--trace-ring-records";
  t.push_back(Switch(
      "trace", "attach", [](S& s) -> bool& { return s.engine.trace.attach; },
      "let 'weir-trace record' of the same user attach"));
  t.back().flag = "--trace-attach";

  t.push_back(Switch(
      "debug", "verify_stripes", [](S& s) -> bool& { return s.engine.verify_stripes; },
      "checksum every piece of weights that arrives"));
  t.push_back(Switch(
      "debug", "poison_freed", [](S& s) -> bool& { return s.engine.poison_freed; },
      "fill memory that is given back with NaN"));
  return t;
}

}  // namespace

Settings::Settings() {
  sampling.max_tokens = 256;
  sampling.temperature = 0;  // the same answer every time, unless asked otherwise
}

std::string OptionInfo::environment() const {
  std::string name = "WEIR_" + section + "_" + key;
  for (char& c : name) {
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  }
  return name;
}

const std::vector<OptionInfo>& OptionTable() {
  static const std::vector<OptionInfo> table = MakeTable();
  return table;
}

const OptionInfo* FindOption(std::string_view section, std::string_view key) {
  for (const OptionInfo& o : OptionTable()) {
    if (o.section == section && o.key == key) return &o;
  }
  return nullptr;
}

std::vector<std::string> Sections() {
  std::vector<std::string> sections;
  for (const OptionInfo& o : OptionTable()) {
    if (sections.empty() || sections.back() != o.section) sections.push_back(o.section);
  }
  return sections;
}

std::string_view OptionTypeName(OptionType type) {
  switch (type) {
    case OptionType::kText: return "text";
    case OptionType::kSwitch: return "true or false";
    case OptionType::kSize: return "a size";
    case OptionType::kCount: return "a whole number";
    case OptionType::kReal: return "a number";
    case OptionType::kChoice: return "one of a few words";
  }
  return "?";
}

}  // namespace weir::cli
