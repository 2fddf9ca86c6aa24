// Parts of answers that depend on a tokenizer.
#include "engine/server/api_format.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/engine/text/text_test_util.h"

namespace weir::server {
namespace {

// A character of several tokens is one character of the text.
TEST(LogprobList, OffsetsArePlacesInTheText) {
  const auto tokenizer = LoadFixture("smollm");
  ASSERT_NE(tokenizer, nullptr);
  const std::vector<int32_t> ids = *tokenizer->Encode("a\U00010348\u00e9b", {});
  ASSERT_GE(ids.size(), 6U);  // "a", four bytes, ..., "b"
  LogprobList list(kCompletions, tokenizer.get(), 0);
  for (const int32_t id : ids) list.Add({.token = id, .logprob = -1});
  std::string text;
  list.Take(&text);
  const auto offsets = nlohmann::json::parse(text)["text_offset"];
  EXPECT_EQ(offsets[0], 0U);
  EXPECT_EQ(offsets[1], 1U);
  EXPECT_EQ(offsets[5], 2U);
  EXPECT_EQ(offsets.back(), 3U) << text;
}

}  // namespace
}  // namespace weir::server
