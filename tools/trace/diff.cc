#include "tools/trace/diff.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <set>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tools/trace/commands.h"
#include "tools/trace/error.h"
#include "tools/trace/schema.h"
#include "tools/trace/text.h"

namespace weir::trace_tool {
namespace {

class Rows {
 public:
  Rows(const Summary& a, const Summary& b) : a_(a), b_(b) {}

  void Group(const std::string& name) { group_ = name; }
  template <typename Fn>
  void Add(const std::string& name, DiffUnit unit, DiffGoal goal, Fn value) {
    DiffRow row{
        group_, name, unit, goal, static_cast<double>(value(a_)), static_cast<double>(value(b_))};
    row.shown = row.a != 0 || row.b != 0;
    rows_.push_back(std::move(row));
  }
  // A number and the time of each cause that either trace has.
  template <typename Fn, typename Name>
  void Causes(Fn map_of, Name name_of, DiffGoal goal) {
    std::set<uint64_t> causes;
    for (const Summary* s : {&a_, &b_}) {
      for (const auto& [cause, h] : map_of(*s)) causes.insert(cause);
    }
    for (const uint64_t cause : causes) {
      const auto of = [&](const Summary& s) {
        const auto it = map_of(s).find(cause);
        return it == map_of(s).end() ? Histogram() : it->second;
      };
      Add(name_of(cause), DiffUnit::kNumber, DiffGoal::kNone,
          [&](const Summary& s) { return of(s).count(); });
      Add(name_of(cause) + ", time", DiffUnit::kNs, goal,
          [&](const Summary& s) { return of(s).sum(); });
    }
  }
  std::vector<DiffRow> Take() { return std::move(rows_); }

 private:
  const Summary& a_;
  const Summary& b_;
  std::string group_;
  std::vector<DiffRow> rows_;
};

double Bytes(const Summary& s) {
  double bytes = 0;
  for (const auto& [tier, link] : s.links()) bytes += static_cast<double>(link.bytes);
  return bytes;
}

double Share(double part, double whole) {
  return whole > 0 ? part / whole : 0;
}

std::string ValueText(double value, DiffUnit unit) {
  switch (unit) {
    case DiffUnit::kNs: return HumanNs(value);
    case DiffUnit::kBytes: return HumanBytes(value);
    case DiffUnit::kPercent: return fmt::format("{:.2f} %", value * 100);
    case DiffUnit::kSeconds: return fmt::format("{:.3f} s", value);
    case DiffUnit::kRate: return fmt::format("{:.1f}", value);
    case DiffUnit::kNumber: break;
  }
  return value == std::floor(value) ? Grouped(static_cast<uint64_t>(value))
                                    : fmt::format("{:.1f}", value);
}

std::string ChangeText(const DiffRow& row) {
  if (row.a == row.b) return "=";
  if (row.unit == DiffUnit::kPercent) return fmt::format("{:+.2f} pp", (row.b - row.a) * 100);
  if (row.a == 0) return "new";
  if (row.b == 0) return "gone";
  const double percent = 100 * (row.b - row.a) / row.a;
  return std::abs(percent) >= 1000 ? fmt::format("x {:.0f}", row.b / row.a)
                                   : fmt::format("{:+.1f} %", percent);
}

std::string Verdict(const DiffRow& row) {
  if (row.goal == DiffGoal::kNone || row.a == row.b) return "";
  return (row.b < row.a) == (row.goal == DiffGoal::kLess) ? "better" : "worse";
}

struct DiffOptions {
  std::string a, b;
  double fail_over = -1;
  bool json = false;
};

std::string FileName(const std::string& path) {
  return path.substr(path.find_last_of('/') + 1);
}

int RunDiff(const DiffOptions& options) {
  const auto reader_a = OpenTrace(options.a);
  const auto reader_b = OpenTrace(options.b);
  Summary a(*reader_a), b(*reader_b);
  reader_a->ForEach([&](const TraceEvent& e) { a.Add(e); });
  reader_b->ForEach([&](const TraceEvent& e) { b.Add(e); });
  const std::vector<DiffRow> rows = Diff(a, b);
  if (options.json) {
    WriteFile("-", DiffJson(rows).dump(2) + "\n");
  } else {
    std::string head;
    const auto about = [](const char* side, const TraceMeta& m) {
      return fmt::format("{}: {} {}, policy {}{}\n", side, FileName(m.model),
                         m.commit.empty() ? m.version : m.version + " (" + m.commit + ")", m.policy,
                         m.command.empty() ? "" : ", " + m.command);
    };
    head = about("A", reader_a->meta()) + about("B", reader_b->meta());
    WriteFile("-", head + DiffText(rows, "A", "B"));
  }
  if (options.fail_over < 0) return kExitOk;
  int status = kExitOk;
  for (const DiffRow& row : rows) {
    if (row.WorseBy() <= options.fail_over) continue;
    std::fprintf(stderr, "weir-trace: %s, %s: %s, was %s\n", row.group.c_str(), row.name.c_str(),
                 ValueText(row.b, row.unit).c_str(), ValueText(row.a, row.unit).c_str());
    status = kExitFound;
  }
  return status;
}

}  // namespace

double DiffRow::WorseBy() const {
  if (Verdict(*this) != "worse") return 0;
  return a == 0 ? std::numeric_limits<double>::infinity() : 100 * std::abs(b - a) / a;
}

std::vector<DiffRow> Diff(const Summary& a, const Summary& b) {
  using U = DiffUnit;
  using G = DiffGoal;
  Rows rows(a, b);
  rows.Group("steps");
  rows.Add("time", U::kSeconds, G::kNone, [](const Summary& s) { return s.Seconds(); });
  rows.Add("steps", U::kNumber, G::kNone, [](const Summary& s) { return s.steps(); });
  rows.Add("failed steps", U::kNumber, G::kLess, [](const Summary& s) { return s.failed_steps(); });
  rows.Add("tokens computed", U::kNumber, G::kNone, [](const Summary& s) { return s.tokens(); });
  rows.Add("tokens a second", U::kRate, G::kNone,
           [](const Summary& s) { return Share(static_cast<double>(s.tokens()), s.Seconds()); });
  rows.Add("generated a second", U::kRate, G::kMore,
           [](const Summary& s) { return Share(static_cast<double>(s.generated()), s.Seconds()); });
  rows.Add("tokens a step", U::kRate, G::kNone, [](const Summary& s) {
    return Share(static_cast<double>(s.tokens()), static_cast<double>(s.steps()));
  });
  for (const auto& [name, p] : {std::pair{"step p50", 0.5}, {"step p99", 0.99}}) {
    rows.Add(name, U::kNs, G::kNone, [p = p](const Summary& s) { return s.step().Percentile(p); });
  }
  rows.Group("stall");
  rows.Add("of step time", U::kPercent, G::kNone,
           [](const Summary& s) { return Share(s.stall().sum(), s.step().sum()); });
  rows.Add("stall", U::kNs, G::kLess, [](const Summary& s) { return s.stall().sum(); });
  rows.Add("longest", U::kNs, G::kNone, [](const Summary& s) { return s.stall().max(); });
  rows.Group("faults");
  rows.Causes(
      [](const Summary& s) -> const auto& { return s.faults(); }, FaultCauseName, G::kNone);
  rows.Group("bytes");
  rows.Add("streamed", U::kBytes, G::kNone, Bytes);
  rows.Add("streamed a token", U::kBytes, G::kNone,
           [](const Summary& s) { return Share(Bytes(s), static_cast<double>(s.tokens())); });
  rows.Add("link busy", U::kPercent, G::kNone, [](const Summary& s) {
    double busy = 0;
    for (const auto& [tier, link] : s.links()) busy += static_cast<double>(link.busy.ns()) * 1e-9;
    return Share(busy, s.Seconds());
  });
  rows.Group("KV blocks");
  rows.Add("capacity, mean", U::kRate, G::kNone,
           [](const Summary& s) { return s.kv().Mean(s.kv().capacity_ns); });
  rows.Add("capacity, most", U::kNumber, G::kNone,
           [](const Summary& s) { return s.kv().most_capacity; });
  rows.Add("used, mean", U::kRate, G::kNone,
           [](const Summary& s) { return s.kv().Mean(s.kv().used_ns); });
  rows.Add("used, most", U::kNumber, G::kNone, [](const Summary& s) { return s.kv().most_used; });
  rows.Add("hit in the cache", U::kNumber, G::kNone, [](const Summary& s) { return s.kv_hit(); });
  rows.Add("evicted from it", U::kNumber, G::kNone,
           [](const Summary& s) { return s.kv_evicted(); });
  rows.Group("plans");
  rows.Causes(
      [](const Summary& s) -> const auto& { return s.plans(); }, RemapCauseName, G::kNone);
  rows.Add("rolled back", U::kNumber, G::kLess, [](const Summary& s) { return s.rollbacks(); });
  rows.Add("decisions recorded", U::kNumber, G::kNone,
           [](const Summary& s) { return s.decisions(); });
  rows.Group("requests");
  for (const RequestEvent event : {RequestEvent::kFinished, RequestEvent::kPreempted,
                                   RequestEvent::kCancelled, RequestEvent::kFailed}) {
    const bool bad = event == RequestEvent::kPreempted || event == RequestEvent::kFailed;
    rows.Add(RequestEventName(static_cast<uint64_t>(event)), U::kNumber, bad ? G::kLess : G::kNone,
             [=](const Summary& s) { return s.requests(event); });
  }
  for (const auto& [name, p] :
       {std::pair{"first token after, p50", 0.5}, {"first token after, p99", 0.99}}) {
    rows.Add(name, U::kNs, G::kLess,
             [p = p](const Summary& s) { return s.first_token().Percentile(p); });
  }
  for (const auto& [name, p] :
       {std::pair{"finished after, p50", 0.5}, {"finished after, p99", 0.99}}) {
    rows.Add(name, U::kNs, G::kLess,
             [p = p](const Summary& s) { return s.whole_request().Percentile(p); });
  }
  rows.Add("prompt tokens cached", U::kNumber, G::kNone,
           [](const Summary& s) { return s.cached_tokens(); });
  rows.Add("waiting, most", U::kNumber, G::kNone,
           [](const Summary& s) { return s.kv().most_waiting; });
  return rows.Take();
}

std::string DiffText(const std::vector<DiffRow>& rows, const std::string& name_a,
                     const std::string& name_b) {
  TextTable table({"", "", name_a, name_b, "B against A", ""}, {0, 1, 5});
  std::string group;
  for (const DiffRow& row : rows) {
    if (!row.shown) continue;
    table.Add({row.group == group ? "" : row.group, row.name, ValueText(row.a, row.unit),
               ValueText(row.b, row.unit), ChangeText(row), Verdict(row)});
    group = row.group;
  }
  return table.ToString(0);
}

nlohmann::ordered_json DiffJson(const std::vector<DiffRow>& rows) {
  nlohmann::ordered_json root;
  for (const DiffRow& row : rows) {
    nlohmann::ordered_json item = {{"a", row.a}, {"b", row.b}};
    const std::string verdict = Verdict(row);
    if (!verdict.empty()) item["verdict"] = verdict;
    root[row.group][row.name] = std::move(item);
  }
  return root;
}

void AddDiffCommand(CLI::App& app, int* exit_status) {
  auto options = std::make_shared<DiffOptions>();
  CLI::App* command = app.add_subcommand("diff", "two traces side by side");
  command->add_option("a", options->a, "the trace to compare with")->required();
  command->add_option("b", options->b, "the other one")->required();
  command->add_flag("--json", options->json, "for programs; times in nanoseconds");
  command
      ->add_option("--fail-over", options->fail_over,
                   "exit status 1 when a measure that has a better side is worse by more than "
                   "so many per cent")
      ->check(CLI::NonNegativeNumber);
  command->footer(
      "Examples:\n"
      "  weir-trace diff before.trace after.trace\n"
      "  weir-trace diff --fail-over 5 before.trace after.trace > /dev/null");
  command->callback([options, exit_status] { *exit_status = RunDiff(*options); });
}

}  // namespace weir::trace_tool
