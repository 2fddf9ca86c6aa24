// weir run: the main job. The same prompts under the chosen policy and under `resident`, in a
// budget too small for them, compared.
#include <cstdio>
#include <fstream>
#include <utility>

#include <nlohmann/json.hpp>

#include "engine/cli/command_line.h"
#include "engine/cli/job.h"
#include "engine/cli/logging.h"
#include "engine/cli/model_sizes.h"
#include "engine/cli/report.h"
#include "engine/cli/signals.h"
#include "engine/cli/size_text.h"

namespace weir::cli {
namespace {

constexpr size_t kExcerpts = 10;
constexpr size_t kExcerptBytes = 100;
// Tokens a chat template adds to a request, for the estimate of its length.
constexpr double kTemplateTokens = 16;

Status WriteFile(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  if (!(out << text) || !out.flush()) return IoError("cannot write " + OneLine(path, 300));
  return OkStatus();
}

// Mean tokens of a request at its end, if every request uses its max_tokens.
Result<double> ExpectedTokens(const ModelSizes& sizes, const std::vector<PromptEntry>& prompts,
                              const SamplingParams& sampling) {
  if (!sizes.tokenizer) return Unsupported("this model has no tokenizer: weir run needs text");
  double sum = 0;
  for (const PromptEntry& p : prompts) {
    const std::vector<int32_t> tokens = WEIR_TRY(
        sizes.tokenizer->Encode(p.system + "\n\n" + p.prompt, {.add_special_tokens = true}));
    sum += static_cast<double>(tokens.size()) + (sizes.has_chat_template ? kTemplateTokens : 0);
    sum += p.max_tokens != 0 ? p.max_tokens : sampling.max_tokens;
  }
  const double mean = sum / static_cast<double>(prompts.size());
  return std::min(mean, static_cast<double>(sizes.max_model_len));
}

// Represents the main job being done.
class MainJob {
 public:
  MainJob(const Config& config, const RunOptions& options)
      : options_(options), settings_(config.settings()), progress_(options.quiet) {}

  Status Prepare() {
    report_.prompts_path = options_.prompts.empty() ? DefaultPromptsPath() : options_.prompts;
    report_.prompts = WEIR_TRY(ReadPrompts(report_.prompts_path));
    if (options_.limit != 0 && options_.limit < report_.prompts.size()) {
      report_.prompts.resize(options_.limit);
    }
    report_.model = settings_.engine.model;
    report_.request_rate = options_.request_rate;
    const ModelSizes sizes = WEIR_TRY(MeasureModel(settings_.engine));
    settings_.engine.max_model_len = sizes.max_model_len;
    report_.chat_template = sizes.has_chat_template;
    report_.expected_tokens = WEIR_TRY(ExpectedTokens(sizes, report_.prompts, settings_.sampling));
    const TightBudget tight =
        MakeTightBudget(sizes, settings_.engine, report_.expected_tokens, options_.kv_share);
    report_.kv_wanted_bytes = tight.kv_wanted_bytes;
    if (settings_.budget_mode == BudgetMode::kAuto) {
      report_.tight_budget = true;
      settings_.engine.hbm_budget = tight.bytes;
    }
    Announce(sizes, tight);
    return OkStatus();
  }

  Status Run() {
    const std::string first = settings_.engine.policy;
    WEIR_TRY(Pass(first.substr(0, first.find('{')), settings_.engine, /*excerpts=*/true));
    if (!options_.only && first != "resident" && !Interrupted()) {
      EngineOptions resident = settings_.engine;
      resident.policy = "resident";
      resident.trace.file.clear();
      WEIR_TRY(Pass("resident", resident, /*excerpts=*/false));
    }
    if (options_.verify && !Interrupted()) {
      EngineOptions all = settings_.engine;
      all.policy = "resident";
      all.trace.file.clear();
      all.hbm_budget = 0;
      WEIR_TRY(Pass("no budget", all, /*excerpts=*/false));
    }
    return OkStatus();
  }

  Status Report() {
    if (report_.jobs.empty()) return OkStatus();
    std::printf("\n%s", ReportText(report_).c_str());
    std::fflush(stdout);
    if (!options_.json.empty()) {
      const std::string text =
          ReportJson(report_).dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
      WEIR_TRY(WriteFile(options_.json, text + "\n"));
    }
    if (!options_.out.empty()) WEIR_TRY(WriteFile(options_.out, OutputsJsonl(report_)));
    return OkStatus();
  }

  bool Passed() const { return report_.Passed(); }

 private:
  void Announce(const ModelSizes& sizes, const TightBudget& tight) const {
    const EngineOptions& e = settings_.engine;
    if (!report_.chat_template) {
      std::printf("note: the model has no chat template; prompts go in as plain text\n");
    }
    std::printf("%zu prompts, up to %u at once, about %.0f tokens each: KV wanted %s\n",
                report_.prompts.size(), e.max_num_seqs, report_.expected_tokens,
                HumanSize(tight.kv_wanted_bytes).c_str());
    std::printf("hbm_budget %s%s: weights %s, step buffers %s\n", HumanSize(e.hbm_budget).c_str(),
                report_.tight_budget ? (" (auto: weights, step buffers, " +
                                        Fixed(options_.kv_share * 100, 0) + " % of the KV wanted)")
                                           .c_str()
                                     : "",
                HumanSize(sizes.weight_bytes).c_str(), HumanSize(sizes.scratch_bytes).c_str());
    std::fflush(stdout);
  }

  Status Pass(const std::string& label, const EngineOptions& engine, bool excerpts) {
    JobOptions job;
    job.label = label;
    job.request_rate = options_.request_rate;
    job.arrival_seed = options_.arrival_seed;
    job.progress = &progress_;
    size_t shown = 0;
    if (excerpts) {
      job.on_finished = [&](size_t index, const RequestRecord& record) {
        if (options_.quiet || (!options_.verbose && ++shown > kExcerpts)) return;
        Show(index, record);
      };
    }
    std::printf("\n== policy %s\n", label.c_str());
    std::fflush(stdout);
    JobResult result = WEIR_TRY(RunJob(engine, report_.prompts, settings_.sampling, job));
    const JobSummary s = Summarise(result);
    std::printf("%s: %s requests in %s s, %s output tokens/s\n", label.c_str(),
                Grouped(s.requests - s.failed).c_str(), Fixed(s.wall_s, 1).c_str(),
                Fixed(s.output_per_s, 1).c_str());
    std::fflush(stdout);
    report_.jobs.push_back(std::move(result));
    return OkStatus();
  }

  void Show(size_t index, const RequestRecord& record) {
    progress_.Clear();
    const PromptEntry& prompt = report_.prompts[index];
    if (options_.verbose) {
      std::printf("-- #%zu %s\n%s\n", index + 1, OneLine(prompt.prompt, 200).c_str(),
                  record.error.empty() ? record.text.c_str() : record.error.c_str());
    } else {
      const std::string& text = record.error.empty() ? record.text : record.error;
      std::printf("#%-3zu %s\n     -> %s\n", index + 1,
                  OneLine(prompt.prompt, kExcerptBytes).c_str(),
                  OneLine(text, kExcerptBytes).c_str());
    }
    std::fflush(stdout);
  }

  const RunOptions& options_;
  Settings settings_;
  Progress progress_;
  RunReport report_;
};

}  // namespace

int RunCommand(const Config& config, const RunOptions& options) {
  MainJob job(config, options);
  if (const Status prepared = job.Prepare(); !prepared.ok()) return Fail(prepared, kExitUsage);
  CatchInterrupts();
  const Status run = job.Run();
  if (const Status reported = job.Report(); !reported.ok()) return Fail(reported, kExitFailed);
  if (!run.ok()) {
    // Before the first request these are about what was asked for.
    const bool usage =
        run.code() == StatusCode::kNoMemory || run.code() == StatusCode::kInvalidArgument ||
        run.code() == StatusCode::kNotFound || run.code() == StatusCode::kUnsupported;
    return Fail(run, usage ? kExitUsage : kExitFailed);
  }
  if (Interrupted()) return kExitInterrupted;
  return job.Passed() ? kExitOk : kExitFailed;
}

}  // namespace weir::cli
