#include "engine/cli/config.h"

#include <fstream>
#include <set>
#include <sstream>

#include <gtest/gtest.h>

namespace weir::cli {
namespace {

std::string FileText(const std::string& path) {
  std::ifstream in(path);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

std::string ErrorOf(std::string_view toml) {
  Config config;
  const Status status = config.ApplyToml(toml, "weir.toml");
  EXPECT_FALSE(status.ok()) << toml;
  return status.message();
}

bool Contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

TEST(Config, AFlagWinsOverTheEnvironmentOverTheFileOverTheDefault) {
  Config config;
  const OptionInfo& seqs = *FindOption("scheduler", "max_num_seqs");
  EXPECT_EQ(config.settings().engine.max_num_seqs, 64U);
  EXPECT_EQ(config.SourceOf(seqs), "default");
  ASSERT_TRUE(config.SetDefault("scheduler.max_num_seqs", "48", "default of run").ok());
  EXPECT_EQ(config.SourceOf(seqs), "default of run");
  ASSERT_TRUE(config.ApplyToml("[scheduler]\n\nmax_num_seqs = 7", "a.toml").ok());
  EXPECT_EQ(config.settings().engine.max_num_seqs, 7U);
  EXPECT_EQ(config.SourceOf(seqs), "a.toml:3");
  ASSERT_TRUE(config.ApplyEnvironment({{"WEIR_SCHEDULER_MAX_NUM_SEQS", "8"}}).ok());
  EXPECT_EQ(config.settings().engine.max_num_seqs, 8U);
  EXPECT_EQ(config.SourceOf(seqs), "environment WEIR_SCHEDULER_MAX_NUM_SEQS");
  ASSERT_TRUE(config.ApplyFlag(seqs, "9").ok());
  EXPECT_EQ(config.settings().engine.max_num_seqs, 9U);
  EXPECT_EQ(config.SourceOf(seqs), "flag --max-num-seqs");
}

TEST(Config, AnUnknownKeyIsAnErrorWithItsLineAndTheNearestName) {
  const std::string error = ErrorOf("[memory]\nhbm_budgt = \"1GiB\"\n");
  EXPECT_TRUE(Contains(error, "weir.toml:2")) << error;
  EXPECT_TRUE(Contains(error, "Did you mean \"hbm_budget\"")) << error;
}

TEST(Config, AnUnknownSectionIsAnErrorWithItsLineAndTheNearestName) {
  const std::string error = ErrorOf("\n[shceduler]\nmax_num_seqs = 1\n");
  EXPECT_TRUE(Contains(error, "weir.toml:2")) << error;
  EXPECT_TRUE(Contains(error, "\"scheduler\"")) << error;
}

TEST(Config, AnUnknownVariableOfOneOfOurSectionsIsAnError) {
  Config config;
  const Status status = config.ApplyEnvironment({{"WEIR_MEMORY_HBM_BUDGE", "1"}});
  EXPECT_TRUE(Contains(status.message(), "WEIR_MEMORY_HBM_BUDGET")) << status.message();
  EXPECT_TRUE(config.ApplyEnvironment({{"WEIR_SMOLLM2_GGUF", "x"}, {"HOME", "/"}}).ok());
}

TEST(Config, AWrongTypeNamesWhatIsAccepted) {
  EXPECT_TRUE(Contains(ErrorOf("[scheduler]\nmax_num_seqs = \"many\""), "1 to 65536"));
  EXPECT_TRUE(Contains(ErrorOf("[memory]\nbacking = true"), "host, peer, nvme or none"));
  EXPECT_TRUE(Contains(ErrorOf("[memory]\nbacking = \"disk\""), "host, peer, nvme or none"));
  EXPECT_TRUE(Contains(ErrorOf("[memory]\nenable_prefix_caching = 1"), "true or false"));
  EXPECT_TRUE(Contains(ErrorOf("[memory]\nhbm_budget = 1.5"), "a size"));
  EXPECT_TRUE(Contains(ErrorOf("[sampling]\ntemperature = 9.0"), "0 to 2"));
  EXPECT_TRUE(Contains(ErrorOf("memory = 3"), "[memory]"));
  EXPECT_TRUE(Contains(ErrorOf("[memory]\na = 1\na = 2"), "weir.toml:3"));
  EXPECT_TRUE(Contains(ErrorOf("[memory\n"), "weir.toml:1"));
}

TEST(Config, SizesComeAsTextOrAsBytes) {
  Config config;
  ASSERT_TRUE(config.ApplyToml("[memory]\nhbm_budget = \"300MiB\"\ngranule = 65536", "c").ok());
  EXPECT_EQ(config.settings().engine.hbm_budget, 300U << 20U);
  EXPECT_EQ(config.settings().budget_mode, BudgetMode::kBytes);
  EXPECT_EQ(config.settings().engine.granule, 65536U);
}

// What the engine refuses is refused before a model is loaded.
TEST(Config, SamplingTakesWhatTheEngineTakes) {
  for (const char* text : {"top_p = 0", "top_p = 0.0", "top_p = 1.1", "repetition_penalty = 0"}) {
    Config config;
    const Status status = config.ApplyToml("[sampling]\n" + std::string(text), "c");
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << text;
  }
  Config config;
  ASSERT_TRUE(config.ApplyToml("[sampling]\ntop_p = 1e-9\nrepetition_penalty = 0.01", "c").ok());
  EXPECT_TRUE(ValidateSampling(config.settings().sampling, 10).ok());
}

TEST(Config, TheEchoReadsBackToTheSameSettings) {
  Config config;
  ASSERT_TRUE(config
                  .ApplyToml("[model]\npath = 'a \"b\"\\c'\n[memory]\nhbm_budget = \"1536MiB\"\n"
                             "kv_cache_dtype = \"f32\"\nenable_prefix_caching = false\n"
                             "[sampling]\ntemperature = 1\ntop_p = 0.3\nseed = 7\n"
                             "[log]\nformat = \"json\"",
                             "c")
                  .ok());
  Config copy;
  const Status status = copy.ApplyToml(config.ToToml(), "echo");
  ASSERT_TRUE(status.ok()) << status.message() << "\n" << config.ToToml();
  for (const OptionInfo& o : OptionTable()) {
    EXPECT_EQ(o.get(copy.settings()), o.get(config.settings())) << o.name();
    EXPECT_FALSE(copy.IsDefault(o)) << o.name();
  }
  EXPECT_EQ(copy.settings().engine.model, "a \"b\"\\c");
  EXPECT_EQ(copy.settings().sampling.seed, 7U);
}

TEST(Config, EveryOptionHasItsOwnNamesAndReadsItsDefaultBack) {
  std::set<std::string> flags;
  for (const OptionInfo& o : OptionTable()) {
    EXPECT_TRUE(flags.insert(o.flag).second) << o.flag;
    EXPECT_FALSE(o.help.empty()) << o.name();
    Settings settings;
    const std::string before = o.get(settings);
    const Status status = o.set(settings, before);
    EXPECT_TRUE(status.ok()) << o.name() << ": " << status.message();
    EXPECT_EQ(o.get(settings), before) << o.name();
  }
}

TEST(Config, ThePageAndTheExampleAreThoseOfTheTable) {
  EXPECT_EQ(FileText("docs/configuration.md"), ConfigurationPage())
      << "weir config docs > docs/configuration.md";
  EXPECT_EQ(FileText("weir.example.toml"), ExampleToml())
      << "weir config example > weir.example.toml";
}

TEST(Config, TheExampleIsAcceptedWithAllItsValues) {
  std::string text;
  std::istringstream lines(ExampleToml());
  for (std::string line; std::getline(lines, line);) {
    const bool setting =
        line.starts_with("# ") && Contains(line, " = ") && line.find(' ', 2) == line.find(" = ");
    text += (setting ? line.substr(2) : line) + "\n";
  }
  Config config;
  const Status status = config.ApplyToml(text, "weir.example.toml");
  EXPECT_TRUE(status.ok()) << status.message();
  for (const OptionInfo& o : OptionTable()) EXPECT_FALSE(config.IsDefault(o)) << o.name();
}

}  // namespace
}  // namespace weir::cli
