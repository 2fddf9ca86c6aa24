#include "engine/cli/report.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace weir::cli {
namespace {

JobResult Job(const std::string& label, std::vector<int32_t> tokens) {
  JobResult job;
  job.label = label;
  job.policy = label;
  job.wall_ns = 1'000'000'000;
  RequestRecord r;
  r.submitted = r.finished = true;
  r.reason = FinishReason::kStop;
  r.prompt_tokens = 4;
  r.tokens = std::move(tokens);
  r.text = "caf\xC3";  // what a token that ends inside a character leaves
  r.submitted_ns = 1;
  r.first_token_ns = r.last_token_ns = 2;
  job.requests.push_back(std::move(r));
  StepRecord step;
  step.step_ns = 1'000'000;
  step.running = 1;
  step.kv_capacity = 8;
  job.steps.push_back(step);
  return job;
}

RunReport Report(JobResult a, JobResult b) {
  RunReport report;
  report.model = "m.gguf";
  report.prompts.resize(1);
  report.jobs.push_back(std::move(a));
  report.jobs.push_back(std::move(b));
  return report;
}

TEST(Report, IdenticalTokensPass) {
  const RunReport report = Report(Job("tide", {1, 2}), Job("resident", {1, 2}));
  EXPECT_TRUE(report.Passed());
  const std::string text = ReportText(report);
  EXPECT_NE(text.find("identical in all 1 requests"), std::string::npos) << text;
  EXPECT_NE(text.find("tide"), std::string::npos);
  const auto json = ReportJson(report);
  EXPECT_TRUE(json["tokens_identical"].get<bool>());
  EXPECT_TRUE(json["passed"].get<bool>());
  EXPECT_EQ(json["jobs"]["tide"]["output_tokens"], 2);
  EXPECT_EQ(json["jobs"]["tide"]["series"][0].size(),
            json["jobs"]["tide"]["series_columns"].size());
}

TEST(Report, OtherTokensFailAndAreNamed) {
  const RunReport report = Report(Job("tide", {1, 2}), Job("resident", {1, 3}));
  EXPECT_FALSE(report.Passed());
  EXPECT_NE(ReportText(report).find("DIFFERENT in 1 of 1 requests (#1)"), std::string::npos);
  EXPECT_FALSE(ReportJson(report)["tokens_identical"].get<bool>());
}

TEST(Report, AFailedRequestFailsTheRunWithItsReason) {
  JobResult failed = Job("resident", {});
  failed.requests[0].reason = FinishReason::kError;
  failed.requests[0].error = "no memory: too\nlong";
  const RunReport report = Report(Job("tide", {1}), std::move(failed));
  EXPECT_FALSE(report.Passed());
  EXPECT_NE(ReportText(report).find("resident request #1 failed: no memory: too long"),
            std::string::npos);
  EXPECT_EQ(ReportJson(report)["failed_requests"], 1);
}

TEST(Report, AnInterruptedRunDoesNotPass) {
  RunReport report = Report(Job("tide", {1}), Job("resident", {1}));
  report.jobs[1].cancelled = true;
  EXPECT_FALSE(report.Passed());
}

TEST(Report, AnswersAreJsonEvenWhenTheirTextIsNotUtf8) {
  const RunReport report = Report(Job("tide", {1}), Job("resident", {1}));
  const auto line = nlohmann::json::parse(OutputsJsonl(report), nullptr, false);
  ASSERT_FALSE(line.is_discarded());
  EXPECT_EQ(line["text"], "caf\xEF\xBF\xBD");
}

}  // namespace
}  // namespace weir::cli
