#include "engine/cli/prompts.h"

#include <map>
#include <set>

#include <gtest/gtest.h>

namespace weir::cli {
namespace {

std::string ErrorOf(std::string_view text) {
  const auto parsed = ParsePrompts(text, "p.jsonl");
  EXPECT_FALSE(parsed.ok()) << text;
  return parsed.ok() ? "" : parsed.status().message();
}

TEST(Prompts, SharedTextsAreStoredOnce) {
  const auto parsed = ParsePrompts(
      "{\"define\": \"a\", \"text\": \"Shared.\"}\n\n"
      "{\"prefix\": \"a\", \"prompt\": \"One\", \"max_tokens\": 5}\r\n"
      "{\"system\": \"Own.\", \"prompt\": \"Two\"}\n{\"prompt\": \"Three\"}",
      "p.jsonl");
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  ASSERT_EQ(parsed->size(), 3U);
  EXPECT_EQ((*parsed)[0].system, "Shared.");
  EXPECT_EQ((*parsed)[0].max_tokens, 5U);
  EXPECT_EQ((*parsed)[0].line, 3U);
  EXPECT_EQ((*parsed)[1].system, "Own.");
  EXPECT_TRUE((*parsed)[2].system.empty());
}

TEST(Prompts, ErrorsNameTheLine) {
  EXPECT_NE(ErrorOf("{\"prompt\": \"a\"}\nnonsense").find("p.jsonl:2"), std::string::npos);
  EXPECT_NE(ErrorOf("[1]").find("p.jsonl:1: each line must be an object"), std::string::npos);
  EXPECT_NE(ErrorOf("{\"promt\": \"a\"}").find("Did you mean \"prompt\""), std::string::npos);
  EXPECT_NE(ErrorOf("{\"prefix\": \"x\", \"prompt\": \"a\"}").find("earlier line"),
            std::string::npos);
  EXPECT_NE(ErrorOf("{\"prompt\": 3}").find("must be text"), std::string::npos);
  EXPECT_NE(ErrorOf("{\"prompt\": \"a\", \"max_tokens\": -1}").find("max_tokens"),
            std::string::npos);
  EXPECT_NE(ErrorOf("{\"prompt\": \"a\", \"max_tokens\": 0}").find("max_tokens"),
            std::string::npos);
  EXPECT_NE(ErrorOf("{\"prompt\": \"\\ud800\"}").find("p.jsonl:1"), std::string::npos);
  EXPECT_NE(ErrorOf("{\"prompt\": \"\xff\"}").find("UTF-8"), std::string::npos);
  EXPECT_NE(ErrorOf("\n \n").find("no requests"), std::string::npos);
  EXPECT_NE(ErrorOf("{\"define\": \"a\", \"text\": \"x\"}\n{\"define\": \"a\", \"text\": \"y\"}")
                .find("twice"),
            std::string::npos);
}

TEST(Prompts, TheFileThatComesAlongHasThreeHundredInEightGroups) {
  const auto parsed = ReadPrompts("bench/prompts/default.jsonl");
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  EXPECT_EQ(parsed->size(), 300U);
  std::map<std::string, int> groups;
  std::set<std::string> prompts;
  for (const PromptEntry& p : *parsed) {
    if (!p.group.empty()) ++groups[p.group];
    EXPECT_TRUE(prompts.insert(p.prompt).second) << p.prompt;
  }
  EXPECT_EQ(groups.size(), 8U);
}

TEST(Prompts, MessagesAreJsonWhateverTheTextHolds) {
  EXPECT_EQ(MessagesJson("", "a\"b"), R"([{"content":"a\"b","role":"user"}])");
  EXPECT_EQ(
      MessagesJson("s", "\xff"),
      "[{\"content\":\"s\",\"role\":\"system\"},{\"content\":\"\xEF\xBF\xBD\",\"role\":\"user\"}]");
}

}  // namespace
}  // namespace weir::cli
