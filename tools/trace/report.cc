// `weir-trace report`: a Summary as text and as JSON.
#include <cstdio>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tools/trace/commands.h"
#include "tools/trace/schema.h"
#include "tools/trace/script.h"
#include "tools/trace/summary.h"
#include "tools/trace/text.h"

namespace weir::trace_tool {
namespace {

using nlohmann::ordered_json;

std::string Ns(uint64_t ns) {
  return HumanNs(static_cast<double>(ns));
}
std::string Bytes(uint64_t bytes) {
  return HumanBytes(static_cast<double>(bytes));
}

ordered_json HistogramJson(const Histogram& h) {
  ordered_json json;
  json["count"] = h.count();
  json["sum_ns"] = h.sum();
  json["p50_ns"] = h.Percentile(0.50);
  json["p90_ns"] = h.Percentile(0.90);
  json["p99_ns"] = h.Percentile(0.99);
  json["max_ns"] = h.max();
  return json;
}

std::vector<std::string> Durations(const Histogram& h) {
  return {Grouped(h.count()), HumanNs(h.sum()), Ns(h.Percentile(0.5)), Ns(h.Percentile(0.99)),
          Ns(h.max())};
}

std::vector<std::string> Row(std::string name, std::vector<std::string> rest) {
  rest.insert(rest.begin(), std::move(name));
  return rest;
}

std::string LayerName(int64_t layer) {
  return layer < 0 ? "other" : std::to_string(layer);
}

struct ReportOptions {
  std::string file;
  std::string sort = "cause";
  bool json = false;
};

int RunReport(const ReportOptions& options) {
  const auto reader = OpenTrace(options.file);
  Summary summary(*reader);
  reader->ForEach([&](const TraceEvent& event) { summary.Add(event); });
  WriteFile("-", options.json ? summary.Json().dump(2) + "\n" : summary.Text(options.sort));
  return kExitOk;
}

}  // namespace

std::string Summary::HeadText() const {
  const TraceMeta& m = reader_.meta();
  const double s = Seconds();
  std::string out =
      fmt::format("{} {}{}, model {}, policy {}, pid {} on {}\n", m.program, m.version,
                  m.commit.empty() ? "" : " (" + m.commit + ")", m.model, m.policy, m.pid, m.host);
  if (!m.command.empty()) out += m.command + "\n";
  out += fmt::format("{:.3f} s, {} records, {} steps ({} failed), {} tokens, {:.1f} tokens/s\n", s,
                     Grouped(reader_.records()), Grouped(steps_), failed_steps_, Grouped(tokens_),
                     s > 0 ? static_cast<double>(tokens_) / s : 0.0);
  out += fmt::format("stall {} in {} faults, {} of step time {}; streamed {}\n",
                     HumanNs(stall_.sum()), Grouped(stall_.count()),
                     Percent(stall_.sum(), step_.sum()), HumanNs(step_.sum()), Bytes(streamed_));
  out += fmt::format("the engine's own counter has {} of stall\n", Ns(step_stall_ns_));
  if (stall_.count() != 0) {
    out +=
        fmt::format("a fault waits: p50 {}, p90 {}, p99 {}, most {}\n", Ns(stall_.Percentile(0.5)),
                    Ns(stall_.Percentile(0.9)), Ns(stall_.Percentile(0.99)), Ns(stall_.max()));
  }
  if (device_steps_ != 0) {
    out += fmt::format("on the device: {} steps in {}, {} between them; clocks agree within {}\n",
                       Grouped(device_steps_), Ns(device_busy_ns_), Ns(device_idle_ns_),
                       Ns(clock_error_ns_));
  }
  out += fmt::format("policy: {} decisions recorded, {} clipped\n", Grouped(decisions_), clipped_);
  if (!requests_.empty()) {
    out += "requests:";
    for (const auto& [event, n] : requests_) {
      out += fmt::format(" {} {}", Grouped(n), RequestEventName(event));
    }
    out += "\n";
  }
  for (const std::string& line : reader_.losses().Lines()) out += "missing: " + line + "\n";
  return out;
}

std::string Summary::CauseText() const {
  TextTable faults({"faults by cause", "count", "stall", "p50", "p99", "most"});
  for (const auto& [cause, h] : faults_) faults.Add(Row(FaultCauseName(cause), Durations(h)));
  TextTable plans({"plans by cause", "count", "time", "p50", "p99", "most", "taken", "freed"});
  for (const auto& [cause, h] : plans_) {
    auto row = Row(RemapCauseName(cause), Durations(h));
    row.push_back(Grouped(taken_.at(cause)));
    row.push_back(Grouped(freed_.at(cause)));
    plans.Add(std::move(row));
  }
  std::string out = faults.empty() ? "no faults\n" : faults.ToString(0);
  if (!plans.empty()) out += "\n" + plans.ToString(0);
  if (rollbacks_ != 0) out += fmt::format("{} plans rolled back\n", rollbacks_);
  return out;
}

std::string Summary::OwnerText() const {
  TextTable table({"by owner", "granules at end", "most", "most bytes", "maps"});
  for (const auto& [owner, t] : owners_) {
    table.Add({reader_.meta().OwnerName(owner), Grouped(t.granules), Grouped(t.most),
               Bytes(t.most * reader_.meta().granule_bytes), Grouped(t.maps)});
  }
  return table.empty() ? "" : table.ToString(0);
}

std::string Summary::LayerText() const {
  TextTable table(
      {"by layer", "faults", "stall", "p50", "p99", "most", "copied", "filled", "slots evicted"});
  for (const auto& [layer, t] : layers_) {
    auto row = Row(LayerName(layer), Durations(t.stall));
    row.push_back(Bytes(t.copied_bytes));
    row.push_back(Bytes(t.filled_bytes));
    row.push_back(Grouped(t.evicted_slots));
    table.Add(std::move(row));
  }
  return table.empty() ? "" : table.ToString(0);
}

std::string Summary::LinkText() const {
  TextTable table({"link from", "bytes", "transfers", "mean rate", "rate while busy", "busy",
                   "of measured peak"});
  const double peak = reader_.meta().link_bytes_per_ns * 1e9;
  for (const auto& [tier, t] : links_) {
    const double bytes = static_cast<double>(t.bytes);
    const double busy = static_cast<double>(t.busy.ns()) * 1e-9;
    const double mean = Seconds() > 0 ? bytes / Seconds() : 0;
    table.Add({TierName(tier), HumanBytes(bytes), Grouped(t.transfers), HumanRate(mean),
               busy > 0 ? HumanRate(bytes / busy) : "-", Percent(busy, Seconds()),
               Percent(mean, peak)});
  }
  return table.empty() ? "" : table.ToString(0);
}

std::string Summary::KvText() const {
  TextTable table(
      {"KV at", "used", "cached", "free", "capacity", "running", "waiting", "weights away"});
  for (size_t i = 0; i < samples_.size(); ++i) {
    const KvSample& k = samples_[i];
    if (!k.any) continue;
    table.Add({fmt::format("{:.3f} s", Seconds() * static_cast<double>(i + 1) / kSamples),
               Grouped(k.used), Grouped(k.cached), Grouped(k.free),
               Grouped(k.used + k.cached + k.free), Grouped(k.running), Grouped(k.waiting),
               Bytes(k.evicted_bytes)});
  }
  if (table.empty()) return "";
  return table.ToString(0) + fmt::format("{} blocks hit in the prefix cache, {} evicted from it\n",
                                         Grouped(kv_hit_), Grouped(kv_evicted_));
}

std::string Summary::TopText() const {
  if (top_.empty()) return "";
  std::string out = "longest faults\n";
  for (const FaultSeen& f : top_) {
    const TraceRecord& r = f.event.record;
    out += fmt::format("  {:>8}  {} at {:.6f} s, step {}, {}\n", Ns(r.args[3]),
                       FaultCauseName(r.cause), reader_.SecondsOf(r.time_ns), r.args[1],
                       reader_.meta().GateName(r.args[0]));
    if (!f.decision.any) continue;
    const TraceRecord& d = f.decision.record;
    out += fmt::format("            after decision {} at {:.6f} s: {} {} away, was {}{}: {}\n",
                       d.args[0], reader_.SecondsOf(d.time_ns), d.args[1],
                       d.cause == 0 ? "granules a layer" : "layers", d.args[2],
                       d.args[3] != 0 ? ", clipped" : "", reader_.meta().ReasonText(d.args[5]));
  }
  return out;
}

std::string Summary::Text(const std::string& sort) const {
  std::vector<std::string> parts = {CauseText(), OwnerText(), LayerText()};
  const size_t first = sort == "owner" ? 1 : sort == "layer" ? 2 : 0;
  std::rotate(parts.begin(), parts.begin() + static_cast<ptrdiff_t>(first),
              parts.begin() + static_cast<ptrdiff_t>(first) + 1);
  std::string out = HeadText();
  parts.insert(parts.end(), {LinkText(), KvText(), TopText()});
  for (const std::string& part : parts) {
    if (!part.empty()) out += "\n" + part;
  }
  return out;
}

ordered_json Summary::Json() const {
  ordered_json root;
  root["seconds"] = Seconds();
  root["records"] = reader_.records();
  root["steps"] = steps_;
  root["failed_steps"] = failed_steps_;
  root["tokens"] = tokens_;
  root["step"] = HistogramJson(step_);
  root["stall"] = HistogramJson(stall_);
  root["step_stall_ns"] = step_stall_ns_;
  root["streamed_bytes"] = streamed_;
  if (device_steps_ != 0) {
    root["device"] = {{"steps", device_steps_},
                      {"busy_ns", device_busy_ns_},
                      {"idle_ns", device_idle_ns_},
                      {"clock_error_ns", clock_error_ns_}};
  }
  root["rollbacks"] = rollbacks_;
  for (const auto& [cause, h] : faults_) {
    root["faults_by_cause"][FaultCauseName(cause)] = HistogramJson(h);
  }
  for (const auto& [cause, h] : plans_) {
    root["plans_by_cause"][RemapCauseName(cause)] = HistogramJson(h);
  }
  for (const auto& [owner, t] : owners_) {
    root["owners"][reader_.meta().OwnerName(owner)] = {
        {"granules", t.granules}, {"most", t.most}, {"maps", t.maps}};
  }
  for (const auto& [layer, t] : layers_) {
    ordered_json item = HistogramJson(t.stall);
    item["copied_bytes"] = t.copied_bytes;
    item["filled_bytes"] = t.filled_bytes;
    item["evicted_slots"] = t.evicted_slots;
    root["layers"][LayerName(layer)] = std::move(item);
  }
  for (const auto& [tier, t] : links_) {
    root["links"][TierName(tier)] = {
        {"bytes", t.bytes}, {"transfers", t.transfers}, {"busy_ns", t.busy.ns()}};
  }
  root["top_faults"] = ordered_json::array();
  for (const FaultSeen& f : top_) {
    ordered_json item = ordered_json::parse(EventJson(f.event, reader_));
    if (f.decision.any) {
      item["decision"] = f.decision.record.args[0];
      item["reason"] = reader_.meta().ReasonText(f.decision.record.args[5]);
    }
    root["top_faults"].push_back(std::move(item));
  }
  root["losses"] = reader_.losses().Lines();
  return root;
}

void AddReportCommand(CLI::App& app, int* exit_status) {
  auto options = std::make_shared<ReportOptions>();
  CLI::App* command = app.add_subcommand("report", "where memory and time went");
  command->add_option("file", options->file, "the trace")->required();
  command->add_option("--sort", options->sort, "which table comes first: cause, owner, layer")
      ->check(CLI::IsMember({"cause", "owner", "layer"}));
  command->add_flag("--json", options->json, "for programs");
  command->footer(
      "Examples:\n"
      "  weir-trace report run.trace\n"
      "  weir-trace report --sort layer run.trace");
  command->callback([options, exit_status] { *exit_status = RunReport(*options); });
}

}  // namespace weir::trace_tool
