#include "engine/cli/report.h"

#include <algorithm>
#include <functional>
#include <utility>

#include <nlohmann/json.hpp>

#include "engine/cli/size_text.h"

namespace weir::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kSparkBuckets = 24;
constexpr size_t kLabelWidth = 34;
constexpr size_t kColumnWidth = 26;

double KvCapacity(const StepRecord& r) {
  return r.kv_capacity;
}
double Running(const StepRecord& r) {
  return r.running;
}
double Away(const StepRecord& r) {
  return r.evicted_granules;
}

// Of UTF-8 text whose characters are one column wide.
size_t Columns(std::string_view text) {
  size_t n = 0;
  for (const char c : text) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80 ? 1 : 0;
  return n;
}

std::string Padded(std::string text, size_t columns) {
  const size_t n = Columns(text);
  if (n < columns) text.append(columns - n, ' ');
  return text;
}

struct Column {
  const JobResult& job;
  JobSummary summary;
};

// Represents the lines of the table.
class Table {
 public:
  explicit Table(const std::vector<Column>& columns) : columns_(columns) {}
  void Row(std::string_view label, const std::function<std::string(const Column&)>& cell) {
    out_ += "  " + Padded(std::string(label), kLabelWidth);
    for (const Column& c : columns_) out_ += Padded(cell(c), kColumnWidth);
    while (out_.back() == ' ') out_.pop_back();
    out_ += '\n';
  }
  void Gap() { out_ += '\n'; }
  std::string Take() { return std::move(out_); }

 private:
  const std::vector<Column>& columns_;
  std::string out_;
};

std::string Three(const Percentiles& p, double scale, int digits) {
  if (p.count == 0) return "-";
  return Fixed(p.p50 * scale, digits) + " / " + Fixed(p.p90 * scale, digits) + " / " +
         Fixed(p.p99 * scale, digits);
}

std::string Blocks(uint64_t blocks, const JobResult& job) {
  return Grouped(blocks) + " (" + HumanSize(blocks * job.info.kv_block_bytes) + ")";
}

void SpeedRows(Table& t) {
  t.Row("output tokens/s", [](const Column& c) { return Fixed(c.summary.output_per_s, 1); });
  t.Row("prompt + output tokens/s",
        [](const Column& c) { return Fixed(c.summary.total_per_s, 1); });
  t.Row("wall time, s", [](const Column& c) { return Fixed(c.summary.wall_s, 1); });
  t.Row("time to first token, s (50/90/99)",
        [](const Column& c) { return Three(c.summary.ttft_ms, 1e-3, 2); });
  t.Row("between tokens, ms (50/90/99)",
        [](const Column& c) { return Three(c.summary.gap_ms, 1, 0); });
  t.Row("request latency, s (50/90/99)",
        [](const Column& c) { return Three(c.summary.latency_ms, 1e-3, 2); });
  t.Gap();
  t.Row("running at once, mean / peak", [](const Column& c) {
    return Fixed(c.summary.mean_running, 1) + " / " + std::to_string(c.summary.peak_running);
  });
  t.Row("  over time", [](const Column& c) {
    return Sparkline(OverTime(c.job.steps, kSparkBuckets, Running), 0);
  });
}

void MemoryRows(Table& t, double kv_top, double away_top) {
  t.Row("KV capacity at start, blocks",
        [](const Column& c) { return Blocks(c.summary.kv_start, c.job); });
  t.Row("KV capacity at its peak",
        [](const Column& c) { return Blocks(c.summary.kv_peak, c.job); });
  t.Row("  over time", [kv_top](const Column& c) {
    return Sparkline(OverTime(c.job.steps, kSparkBuckets, KvCapacity), kv_top);
  });
  t.Row("weights away at the peak",
        [](const Column& c) { return HumanSize(c.summary.away_peak * c.job.info.granule_bytes); });
  t.Row("  over time", [away_top](const Column& c) {
    return away_top > 0 ? Sparkline(OverTime(c.job.steps, kSparkBuckets, Away), away_top)
                        : std::string("-");
  });
  t.Row("border moves", [](const Column& c) { return Grouped(c.job.core.border_moves); });
  t.Row("granules remapped",
        [](const Column& c) { return Grouped(c.job.pager.granules_remapped); });
  t.Row("weights streamed", [](const Column& c) {
    if (c.job.pager.bytes_copied == 0) return std::string("0");
    return HumanSize(c.job.pager.bytes_copied) + ", " +
           HumanSize(static_cast<uint64_t>(c.summary.streamed_per_s)) + "/s";
  });
  t.Row("gates passed / faults", [](const Column& c) {
    return Grouped(c.job.pager.gate_arrivals) + " / " + Grouped(c.job.pager.faults);
  });
  t.Row("stalled in gates", [](const Column& c) {
    return Fixed(static_cast<double>(c.job.pager.stall_ns) / 1e9, 2) + " s, " +
           Fixed(c.summary.stall_share * 100, 1) + " % of steps";
  });
  t.Gap();
  t.Row("steps / mean step, ms", [](const Column& c) {
    return Grouped(c.job.steps.size()) + " / " + Fixed(c.summary.step_ms, 1);
  });
  t.Row("preemptions / tokens redone", [](const Column& c) {
    return Grouped(c.job.preemptions) + " / " + Grouped(c.job.recomputed_tokens);
  });
  t.Row("prompt tokens from prefix cache",
        [](const Column& c) { return Fixed(c.summary.prefix_hit_rate * 100, 1) + " %"; });
  t.Row("prompt tokens computed",
        [](const Column& c) { return Grouped(c.job.core.prompt_tokens_computed); });
  t.Row("requests ended / failed", [](const Column& c) {
    return Grouped(c.summary.requests - c.summary.failed) + " / " + Grouped(c.summary.failed);
  });
}

std::string Header(const RunReport& report, const std::vector<Column>& columns) {
  const EngineInfo& info = report.jobs.front().info;
  uint64_t groups = 0;
  std::vector<std::string> seen;
  for (const PromptEntry& p : report.prompts) {
    if (p.group.empty() || std::find(seen.begin(), seen.end(), p.group) != seen.end()) continue;
    seen.push_back(p.group);
    ++groups;
  }
  const JobSummary& s = columns.front().summary;
  return "model    " + OneLine(report.model, 200) + "\ndevice   " + info.device + "\nprompts  " +
         Grouped(report.prompts.size()) + " (" + std::to_string(groups) + " shared prefixes), " +
         Grouped(s.prompt_tokens) + " prompt tokens, " + Grouped(s.output_tokens) +
         " generated\nbudget   " + HumanSize(info.budget_bytes) + ": weights " +
         HumanSize(info.weight_bytes) + ", step buffers " + HumanSize(info.scratch_bytes) +
         ", the rest for KV" +
         (report.kv_wanted_bytes > 0 ? " (wanted: " + HumanSize(report.kv_wanted_bytes) + ")"
                                     : "") +
         "\n";
}

std::string Verdict(const RunReport& report) {
  std::string out;
  for (size_t i = 1; i < report.jobs.size(); ++i) {
    const JobResult& other = report.jobs[i];
    const TokenComparison c = CompareTokens(report.jobs.front(), other);
    out += "tokens of " + report.jobs.front().label + " and " + other.label + ": ";
    if (c.compared == 0) {
      out += "nothing to compare\n";
      continue;
    }
    if (c.different == 0) {
      out += "identical in all " + Grouped(c.compared) + " requests\n";
      continue;
    }
    if (!report.TokensMustAgree()) {
      out += "other in " + Grouped(c.different) + " of " + Grouped(c.compared) +
             " requests: on this device rounding depends on the batch a token is computed in, and "
             "the two runs batched differently\n";
      continue;
    }
    out += "DIFFERENT in " + Grouped(c.different) + " of " + Grouped(c.compared) + " requests (";
    for (size_t k = 0; k < c.first.size(); ++k) {
      out += (k > 0 ? ", " : "") + std::string("#") + std::to_string(c.first[k] + 1);
    }
    out += ")\n";
  }
  if (report.jobs.size() > 1) {
    const JobSummary a = Summarise(report.jobs[0]);
    const JobSummary b = Summarise(report.jobs[1]);
    if (b.output_per_s > 0 && a.mean_running > 0 && b.mean_running > 0) {
      out += report.jobs[0].label + " against " + report.jobs[1].label + ": " +
             Fixed(a.output_per_s / b.output_per_s, 2) + " x output tokens/s, " +
             Fixed(a.mean_running / b.mean_running, 2) + " x requests running at once, " +
             Fixed(a.ttft_ms.p50 / std::max(b.ttft_ms.p50, 1e-9), 2) +
             " x median time to first "
             "token\n";
    }
  }
  for (const JobResult& job : report.jobs) {
    size_t shown = 0;
    for (size_t i = 0; i < job.requests.size() && shown < 5; ++i) {
      if (job.requests[i].error.empty()) continue;
      out += job.label + " request #" + std::to_string(i + 1) +
             " failed: " + OneLine(job.requests[i].error, 300) + "\n";
      ++shown;
    }
    if (job.cancelled) out += job.label + " was interrupted\n";
  }
  return out;
}

Json PercentilesJson(const Percentiles& p) {
  return {{"p50", p.p50}, {"p90", p.p90}, {"p99", p.p99}, {"count", p.count}};
}

Json RequestJson(const RequestRecord& r) {
  Json j = {{"prompt_tokens", r.prompt_tokens},
            {"cached_tokens", r.cached_tokens},
            {"output_tokens", r.tokens.size()},
            {"finish_reason", std::string(FinishReasonName(r.reason))}};
  if (!r.tokens.empty()) {
    j["ttft_ms"] = static_cast<double>(r.first_token_ns - r.submitted_ns) / 1e6;
    j["latency_ms"] = static_cast<double>(r.last_token_ns - r.submitted_ns) / 1e6;
  }
  if (!r.error.empty()) j["error"] = r.error;
  j["tokens"] = r.tokens;
  j["text"] = r.text;
  return j;
}

Json JobJson(const JobResult& job) {
  const JobSummary s = Summarise(job);
  Json j;
  j["policy"] = job.policy;
  j["budget_bytes"] = job.info.budget_bytes;
  j["granule_bytes"] = job.info.granule_bytes;
  j["open_s"] = static_cast<double>(job.open_ns) / 1e9;
  j["wall_s"] = s.wall_s;
  j["requests"] = s.requests;
  j["failed"] = s.failed;
  j["cancelled"] = job.cancelled;
  j["prompt_tokens"] = s.prompt_tokens;
  j["output_tokens"] = s.output_tokens;
  j["output_tokens_per_s"] = s.output_per_s;
  j["total_tokens_per_s"] = s.total_per_s;
  j["requests_per_s"] = s.requests_per_s;
  j["ttft_ms"] = PercentilesJson(s.ttft_ms);
  j["time_between_tokens_ms"] = PercentilesJson(s.gap_ms);
  j["latency_ms"] = PercentilesJson(s.latency_ms);
  j["running"] = {{"mean", s.mean_running}, {"peak", s.peak_running}};
  j["kv_blocks"] = {{"start", s.kv_start},
                    {"peak", s.kv_peak},
                    {"end", s.kv_end},
                    {"mean", s.kv_mean},
                    {"bytes_each", job.info.kv_block_bytes},
                    {"moved", job.kv_blocks_moved}};
  j["border"] = {{"moves", job.core.border_moves},
                 {"refusals", job.core.border_refusals},
                 {"granules_remapped", job.pager.granules_remapped},
                 {"peak_evicted_bytes", s.away_peak * job.info.granule_bytes}};
  j["streaming"] = {{"bytes", job.pager.bytes_copied},
                    {"bytes_per_s", s.streamed_per_s},
                    {"gate_arrivals", job.pager.gate_arrivals},
                    {"faults", job.pager.faults},
                    {"stall_s", static_cast<double>(job.pager.stall_ns) / 1e9},
                    {"stall_share", s.stall_share},
                    {"repairs", job.pager.repairs}};
  j["prefix_cache"] = {{"queried_tokens", job.prefix.queried_tokens},
                       {"hit_tokens", job.prefix.hit_tokens},
                       {"hit_rate", s.prefix_hit_rate},
                       {"evicted_blocks", job.prefix.evicted_blocks}};
  j["preemptions"] = job.preemptions;
  j["recomputed_tokens"] = job.recomputed_tokens;
  j["prompt_tokens_computed"] = job.core.prompt_tokens_computed;
  j["steps"] = job.steps.size();
  j["failed_steps"] = job.core.failed_steps;
  j["mean_step_ms"] = s.step_ms;
  Json series = Json::array();
  for (const StepRecord& r : job.steps) {
    series.push_back({r.start_ns - job.steps.front().start_ns, r.step_ns, r.stall_ns, r.rows,
                      r.running, r.waiting, r.kv_used, r.kv_cached, r.kv_capacity,
                      r.evicted_granules});
  }
  j["series_columns"] = {"start_ns", "step_ns", "stall_ns",  "rows",        "running",
                         "waiting",  "kv_used", "kv_cached", "kv_capacity", "evicted_granules"};
  j["series"] = std::move(series);
  Json requests = Json::array();
  for (const RequestRecord& r : job.requests) requests.push_back(RequestJson(r));
  j["request"] = std::move(requests);
  return j;
}

}  // namespace

bool RunReport::TokensMustAgree() const {
  return std::all_of(jobs.begin(), jobs.end(),
                     [](const JobResult& job) { return job.info.schedule_invariant; });
}

bool RunReport::Passed() const {
  for (const JobResult& job : jobs) {
    if (job.cancelled || Summarise(job).failed > 0) return false;
    if (TokensMustAgree() && CompareTokens(jobs.front(), job).different > 0) return false;
  }
  return !jobs.empty();
}

std::string ReportText(const RunReport& report) {
  std::vector<Column> columns;
  double kv_top = 0;
  double away_top = 0;
  for (const JobResult& job : report.jobs) {
    columns.push_back({job, Summarise(job)});
    kv_top = std::max(kv_top, static_cast<double>(columns.back().summary.kv_peak));
    away_top = std::max(away_top, static_cast<double>(columns.back().summary.away_peak));
  }
  Table table(columns);
  table.Row("", [](const Column& c) { return c.job.label; });
  SpeedRows(table);
  MemoryRows(table, kv_top, away_top);
  return Header(report, columns) + "\n" + table.Take() + "\n" + Verdict(report);
}

Json ReportJson(const RunReport& report) {
  Json j;
  j["model"] = report.model;
  j["prompts_file"] = report.prompts_path;
  j["prompts"] = report.prompts.size();
  j["chat_template"] = report.chat_template;
  j["request_rate"] = report.request_rate;
  j["expected_tokens_per_request"] = report.expected_tokens;
  j["kv_wanted_bytes"] = report.kv_wanted_bytes;
  if (!report.jobs.empty()) {
    const EngineInfo& info = report.jobs.front().info;
    j["device"] = info.device;
    j["driver"] = info.driver;
    j["weight_bytes"] = info.weight_bytes;
    j["scratch_bytes"] = info.scratch_bytes;
    j["max_model_len"] = info.max_model_len;
  }
  uint64_t failed = 0;
  uint64_t different = 0;
  Json jobs = Json::object();
  for (const JobResult& job : report.jobs) {
    failed += Summarise(job).failed;
    different += CompareTokens(report.jobs.front(), job).different;
    jobs[job.label] = JobJson(job);
  }
  j["passed"] = report.Passed();
  j["failed_requests"] = failed;
  j["tokens_identical"] = different == 0;
  j["requests_with_other_tokens"] = different;
  j["jobs"] = std::move(jobs);
  return j;
}

std::string OutputsJsonl(const RunReport& report) {
  std::string out;
  const JobResult& job = report.jobs.front();
  for (size_t i = 0; i < job.requests.size(); ++i) {
    const Json line = {{"index", i + 1},
                       {"prefix", report.prompts[i].group},
                       {"prompt", report.prompts[i].prompt},
                       {"text", job.requests[i].text},
                       {"finish_reason", std::string(FinishReasonName(job.requests[i].reason))}};
    out += line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  }
  return out;
}

}  // namespace weir::cli
