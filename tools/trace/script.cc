#include "tools/trace/script.h"

#include <cstdio>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tools/trace/commands.h"
#include "tools/trace/schema.h"
#include "tools/trace/text.h"

namespace weir::trace_tool {
namespace {

std::string ArgText(const ArgInfo& info, uint64_t value, const TraceMeta& meta) {
  switch (info.kind) {
    case ArgKind::kNone:
    case ArgKind::kNumber:
    case ArgKind::kTime: return std::to_string(value);
    case ArgKind::kSigned: return std::to_string(static_cast<int64_t>(value));
    case ArgKind::kBytes: return HumanBytes(static_cast<double>(value));
    case ArgKind::kDuration: return HumanNs(static_cast<double>(value));
    case ArgKind::kOwner: return meta.OwnerName(value);
    case ArgKind::kGranuleState: return GranuleStateName(value);
    case ArgKind::kTier: return TierName(value);
    case ArgKind::kGate: return meta.GateName(value);
    case ArgKind::kRegion: return meta.RegionName(value);
    case ArgKind::kSequence: return value == kTraceNoSequence ? "none" : std::to_string(value);
    case ArgKind::kFingerprint: return fmt::format("{:016x}", value);
    case ArgKind::kReason: return "\"" + meta.ReasonText(value) + "\"";
  }
  return "?";
}

std::string TypeName(uint16_t type) {
  const TypeInfo* info = FindType(type);
  return info != nullptr ? std::string(TraceTypeName(info->type)) : "type-" + std::to_string(type);
}

struct ScriptOptions {
  std::string file;
  std::vector<std::string> types;
  double from_s = 0;
  double to_s = 0;
  uint64_t limit = 0;
};

int RunScript(const ScriptOptions& options) {
  if (options.to_s > 0 && options.to_s < options.from_s) {
    throw TraceError(fmt::format("--to {} is before --from {}", options.to_s, options.from_s));
  }
  uint64_t mask = 0;
  for (const std::string& name : options.types) {
    const auto type = TypeByName(name);
    if (!type) {
      throw TraceError("--type: " + UnknownType(name));
    }
    mask |= uint64_t{1} << static_cast<unsigned>(*type);
  }
  const auto reader = OpenTrace(options.file);
  uint64_t shown = 0;
  reader->ForEach([&](const TraceEvent& event) {
    const TraceRecord& r = event.record;
    if (options.limit != 0 && shown >= options.limit) return;
    if (mask != 0 && (r.type >= kTraceTypeLimit || (mask >> r.type & 1) == 0)) return;
    const double at = reader->SecondsOf(r.time_ns);
    if (at < options.from_s || (options.to_s > 0 && at > options.to_s)) return;
    const std::string line = EventLine(event, *reader) + "\n";
    std::fwrite(line.data(), 1, line.size(), stdout);
    ++shown;
  });
  return kExitOk;
}

}  // namespace

std::string ArgumentText(const TraceRecord& r, const TraceMeta& meta) {
  std::string text;
  const TypeInfo* info = FindType(r.type);
  for (size_t i = 0; i < 6; ++i) {
    const ArgInfo arg = info != nullptr ? info->args[i] : ArgInfo{"arg", ArgKind::kNumber};
    if (arg.kind == ArgKind::kNone) break;
    if (!text.empty()) text += ' ';
    text += std::string(arg.name) + "=" + ArgText(arg, r.args[i], meta);
  }
  return text;
}

std::string EventLine(const TraceEvent& event, const TraceReader& reader) {
  const TraceRecord& r = event.record;
  const TypeInfo* info = FindType(r.type);
  std::string type = TypeName(r.type);
  if (info != nullptr && info->cause != CauseKind::kNone) {
    type += " " + CauseName(info->cause, r.cause);
  }
  return fmt::format("{:14.9f} {:>3} {:<27} {}", reader.SecondsOf(r.time_ns), r.thread, type,
                     ArgumentText(r, reader.meta()));
}

std::string EventJson(const TraceEvent& event, const TraceReader& reader) {
  const TraceRecord& r = event.record;
  const TypeInfo* info = FindType(r.type);
  nlohmann::ordered_json json;
  json["time_ns"] = r.time_ns;
  json["seconds"] = reader.SecondsOf(r.time_ns);
  json["thread"] = r.thread;
  json["type"] = TypeName(r.type);
  if (info != nullptr && info->cause != CauseKind::kNone) {
    json["cause"] = CauseName(info->cause, r.cause);
  }
  nlohmann::ordered_json args = nlohmann::ordered_json::object();
  for (size_t i = 0; i < 6; ++i) {
    if (info == nullptr) {
      args["arg" + std::to_string(i)] = r.args[i];
    } else if (info->args[i].kind == ArgKind::kSigned) {
      args[std::string(info->args[i].name)] = static_cast<int64_t>(r.args[i]);
    } else if (info->args[i].kind != ArgKind::kNone) {
      args[std::string(info->args[i].name)] = r.args[i];
    }
  }
  json["args"] = std::move(args);
  return json.dump();
}

std::string EventCsv(const TraceEvent& event, const TraceReader& reader) {
  const TraceRecord& r = event.record;
  const TypeInfo* info = FindType(r.type);
  return fmt::format("{},{:.9f},{},{},{},{},{},{},{},{},{}", r.time_ns, reader.SecondsOf(r.time_ns),
                     r.thread, TypeName(r.type),
                     info != nullptr ? CauseName(info->cause, r.cause) : std::to_string(r.cause),
                     r.args[0], r.args[1], r.args[2], r.args[3], r.args[4], r.args[5]);
}

void AddScriptCommand(CLI::App& app, int* exit_status) {
  auto options = std::make_shared<ScriptOptions>();
  CLI::App* command = app.add_subcommand("script", "every record as a line of text, with names");
  command->add_option("file", options->file, "the trace")->required();
  command->add_option("--type", options->types, "only these types, for example map,fault_major")
      ->delimiter(',');
  command->add_option("--from", options->from_s, "seconds since the trace began");
  command->add_option("--to", options->to_s, "seconds since the trace began; 0: the end");
  command->add_option("--limit", options->limit, "at most this many lines; 0: all");
  command->footer(
      "Example: weir-trace script run.trace --from 2.5 --to 2.6 --type step_end,fault_major");
  command->callback([options, exit_status] { *exit_status = RunScript(*options); });
}

}  // namespace weir::trace_tool
