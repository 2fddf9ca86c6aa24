#include "engine/cli/api_keys.h"

#include <gtest/gtest.h>

namespace weir::cli {
namespace {

constexpr char kDigest[] =
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

std::string WhyNot(const std::string& text) {
  return ParseApiKeys(text, "keys").status().ToString();
}

TEST(ApiKeys, EveryLineIsATenant) {
  const auto keys = ParseApiKeys(
      "# ours\n\nsecret-one\n  anna  secret-two\r\nbert " + std::string(kDigest) + "\n", "keys");
  ASSERT_TRUE(keys.ok()) << keys.status().ToString();
  ASSERT_EQ(keys->size(), 3U);
  EXPECT_EQ((*keys)[1].tenant, "anna");
  EXPECT_EQ((*keys)[1].sha256, server::ApiKey::FromSecret("", "secret-two").sha256);
  EXPECT_EQ((*keys)[2].tenant, "bert");
  EXPECT_EQ((*keys)[2].sha256, server::ApiKey::FromSecret("", "test").sha256);
}

// They would share prefixes and a place in the queue.
TEST(ApiKeys, NoNameMakesAnUnnamedKeysTenantItsOwn) {
  for (const std::string name : {"key1", "key2", "1", "2"}) {
    const auto keys = ParseApiKeys(name + " secret-one\nsecret-two\n", "keys").value();
    EXPECT_NE(keys[0].tenant, keys[1].tenant);
  }
  const auto unnamed = ParseApiKeys("secret-one\nsecret-two\n", "keys").value();
  EXPECT_NE(unnamed[0].tenant, unnamed[1].tenant);
}

// Whoever read the file could send such a line as a key.
TEST(ApiKeys, ADigestWithoutANameIsNoKey) {
  EXPECT_NE(WhyNot(std::string(kDigest) + "\n").find("keys:1: a digest needs a name"),
            std::string::npos)
      << WhyNot(std::string(kDigest) + "\n");
}

TEST(ApiKeys, MessagesNameTheLineAndNotTheKey) {
  for (const std::string line : {"short", "anna short", "anna secret-one more", "anna sha256:12"}) {
    const std::string why = WhyNot("\n" + line + "\n");
    EXPECT_NE(why.find("keys:2: "), std::string::npos) << why;
    EXPECT_EQ(why.find("secret"), std::string::npos) << why;
  }
  EXPECT_NE(WhyNot("# none\n").find("no key in it"), std::string::npos);
}

}  // namespace
}  // namespace weir::cli
