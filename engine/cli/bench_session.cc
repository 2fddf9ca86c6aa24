#include "engine/cli/bench_session.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <utility>

#include <nlohmann/json.hpp>

#include "engine/cli/bench_report.h"
#include "engine/cli/command_line.h"
#include "engine/cli/signals.h"
#include "engine/cli/size_text.h"
#include "engine/open_model.h"

namespace weir::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string Hex(uint64_t value) {
  std::array<char, 20> buffer{};
  std::snprintf(buffer.data(), buffer.size(), "%016llx", static_cast<unsigned long long>(value));
  return buffer.data();
}

std::string UtcNow() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  std::array<char, 32> buffer{};
  if (gmtime_r(&now, &utc) == nullptr) return "";
  std::strftime(buffer.data(), buffer.size(), "%Y-%m-%dT%H:%M:%SZ", &utc);
  return buffer.data();
}

Json ModelJson(const Settings& settings, const ModelConfig& m) {
  return {{"path", settings.engine.model},
          {"dummy_weights", settings.engine.dummy_weights},
          {"compress_weights", settings.engine.compress_weights},
          {"family", std::string(ModelFamilyName(m.family))},
          {"layers", m.num_layers},
          {"hidden_size", m.hidden_size},
          {"intermediate_size", m.intermediate_size},
          {"heads", m.num_heads},
          {"kv_heads", m.num_kv_heads},
          {"head_dim", m.head_dim},
          {"vocab_size", m.vocab_size}};
}

Json MemoryJson(const EngineInfo& info) {
  return {{"budget_bytes", info.budget_bytes},
          {"granule_bytes", info.granule_bytes},
          {"weight_bytes", info.weight_bytes},
          {"lookup_bytes", info.lookup_bytes},
          {"scratch_bytes", info.scratch_bytes},
          {"kv_block_bytes", info.kv_block_bytes},
          {"most_kv_blocks", info.most_kv_blocks},
          {"max_model_len", info.max_model_len},
          {"startup_s",
           {{"memory", info.startup.memory},
            {"weights", info.startup.weights},
            {"kernels", info.startup.kernels},
            {"calibration", info.startup.calibration}}}};
}

Status WriteJson(const std::string& path, const Json& json) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << json.dump(1, ' ', false, Json::error_handler_t::replace) << "\n";
  if (!out.flush()) return IoError("cannot write " + OneLine(path, 300));
  return OkStatus();
}

}  // namespace

BenchSession::BenchSession(std::string command, const Config& config, const BenchOutput& output)
    : command_(std::move(command)),
      settings_(config.settings()),
      output_(output),
      progress_(output.quiet) {}

Status BenchSession::ReadModel() {
  const EngineOptions& e = settings_.engine;
  if (e.model.empty()) return InvalidArgument("no model given; use --model PATH");
  if (e.model.ends_with(".json") && !e.dummy_weights) {
    return InvalidArgument(OneLine(e.model, 200) +
                           " is a shape without weights; add --dummy-weights, or give a directory "
                           "or a .gguf file");
  }
  model_ = WEIR_TRY(OpenCheckpoint(e)).config();
  max_model_len_ =
      e.max_model_len != 0 ? std::min(e.max_model_len, model_.max_position) : model_.max_position;
  return OkStatus();
}

Status BenchSession::MakeRequests(bench::WorkloadOptions options) {
  options.vocab_size = model_.vocab_size;
  options.max_model_len = max_model_len_;
  workload_options_ = std::move(options);
  workload_ = WEIR_TRY(bench::MakeWorkload(workload_options_));
  if (output_.save_requests.empty()) return OkStatus();
  return bench::SaveRequests(workload_, output_.save_requests);
}

Status BenchSession::OpenEngine() {
  engine_ = WEIR_TRY(Engine::Open(settings_.engine, progress_.ForLoading()));
  progress_.Clear();
  CatchInterrupts();
  return OkStatus();
}

Status BenchSession::Warm(uint64_t count) {
  if (count == 0) return OkStatus();
  std::vector<bench::WorkloadRequest> requests;
  requests.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    requests.push_back(workload_.requests[i % workload_.requests.size()]);
    requests.back().at_ns = 0;
  }
  WEIR_TRY(Run(requests, Prefixes::kFresh));
  return OkStatus();
}

Result<BenchRun> BenchSession::Run(const std::vector<bench::WorkloadRequest>& requests,
                                   Prefixes prefixes) {
  if (prefixes == Prefixes::kFresh) ++salt_;
  Result<BenchRun> run = RunBench(*engine_, requests,
                                  {.label = command_, .cache_salt = salt_, .progress = &progress_});
  progress_.Clear();
  return run;
}

std::string BenchSession::Header() const {
  const EngineInfo& info = engine_->info();
  const bench::Workload& w = workload_;
  ReportLines out(10);
  out.Row("model", OneLine(settings_.engine.model, 200) +
                       (settings_.engine.dummy_weights ? " (made-up weights)" : "") +
                       (settings_.engine.compress_weights ? " (compressed weights)" : ""));
  out.Row("device", info.device + ", driver " + info.driver + ", policy " + info.policy);
  const std::string in_place = info.lookup_bytes == 0 ? ""
                                                      : " (" + HumanSize(info.lookup_bytes) +
                                                            " of the embedding in backing memory)";
  out.Row("memory", HumanSize(info.budget_bytes) + ": weights " + HumanSize(info.weight_bytes) +
                        in_place + ", step buffers " + HumanSize(info.scratch_bytes) +
                        ", the rest for KV (at most " + Grouped(info.most_kv_blocks) +
                        " blocks of 16 tokens)");
  const StartupTimes& t = info.startup;
  out.Row("ready in", Fixed(t.memory + t.weights + t.kernels + t.calibration, 1) + " s: memory " +
                          Fixed(t.memory, 1) + ", weights " + Fixed(t.weights, 1) + ", kernels " +
                          Fixed(t.kernels, 1) + ", calibration " + Fixed(t.calibration, 1));
  out.Row("requests", std::string(bench::DatasetName(workload_options_.dataset)) + ": " +
                          Grouped(w.requests.size()) + " requests, " + Grouped(w.input_tokens) +
                          " prompt tokens, " + Grouped(w.output_tokens) + " to generate" +
                          (w.clipped > 0 ? ", " + Grouped(w.clipped) + " cut to max_model_len " +
                                               std::to_string(max_model_len_)
                                         : "") +
                          "; seed " + std::to_string(workload_options_.seed) + ", digest " +
                          Hex(w.Digest()));
  out.Row("commit", CommitText());
  return out.Take();
}

Json BenchSession::OptionsJson() const {
  Settings resolved = settings_;
  resolved.engine = engine_->options();
  Json j;
  for (const OptionInfo& o : OptionTable()) {
    if (o.section == "server" || o.section == "sampling" || o.section == "log") continue;
    j[o.name()] = o.get(resolved);
  }
  return j;
}

Json BenchSession::WorkloadJson() const {
  const bench::WorkloadOptions& o = workload_options_;
  return {{"dataset", std::string(bench::DatasetName(o.dataset))},
          {"path", o.path},
          {"seed", o.seed},
          {"requests", workload_.requests.size()},
          {"prompt_tokens", workload_.input_tokens},
          {"output_tokens", workload_.output_tokens},
          {"clipped", workload_.clipped},
          {"digest", Hex(workload_.Digest())}};
}

Status BenchSession::Report(const std::string& table, Json options, Json results) {
  std::printf("weir bench %s\n%s\n%s", command_.c_str(), Header().c_str(), table.c_str());
  std::fflush(stdout);
  if (output_.json.empty()) return OkStatus();
  const EngineInfo& info = engine_->info();
  Json j;
  j["command"] = "bench " + command_;
  j["version"] = VersionNumber();
  j["commit"] = CommitText();
  j["ended"] = UtcNow();
  j["device"] = info.device;
  j["driver"] = info.driver;
  j["policy"] = info.policy;
  j["model"] = ModelJson(settings_, model_);
  j["memory"] = MemoryJson(info);
  j["options"] = OptionsJson();
  j["bench"] = std::move(options);
  j["workload"] = WorkloadJson();
  j["results"] = std::move(results);
  return WriteJson(output_.json, j);
}

int BenchExitCode(const Status& prepared, const Status& run, bool passed) {
  if (!prepared.ok()) return Fail(prepared, kExitUsage);
  if (!run.ok()) return Fail(run, kExitFailed);
  if (Interrupted()) return kExitInterrupted;
  return passed ? kExitOk : kExitFailed;
}

}  // namespace weir::cli
