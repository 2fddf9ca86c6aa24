#include "engine/text/detokenizer.h"

#include "tests/engine/text/text_test_util.h"

namespace weir {
namespace {

TEST(IncrementalDetokenizer, ConcatenatesToTheDecodingOfTheWhole) {
  constexpr uint64_t kSeed = 11;
  std::mt19937_64 random(kSeed);
  for (const std::string& family : Families()) {
    const auto tokenizer = LoadFixture(family);
    ASSERT_NE(tokenizer, nullptr);
    for (int i = 0; i < 1000; ++i) {
      std::vector<int32_t> ids;
      if (i % 2 == 0) {  // the ids of a text, or any ids: ill-formed bytes in the middle
        ids = *tokenizer->Encode(RandomText(&random, 30), {});
      } else {
        for (size_t n = random() % 40; n > 0; --n) {
          ids.push_back(
              static_cast<int32_t>(random() % static_cast<uint64_t>(tokenizer->vocab_size() + 2)) -
              1);
        }
      }
      const DecodeOptions options{.skip_special_tokens = i % 3 == 0};
      IncrementalDetokenizer detokenizer(tokenizer.get(), options);
      std::string text;
      for (const int32_t id : ids) {
        const std::string part = detokenizer.Push(id);
        ASSERT_EQ(FindInvalidUtf8(part), part.size());
        ASSERT_LE(detokenizer.pending_bytes(), 3u);
        text += part;
      }
      text += detokenizer.Flush();
      ASSERT_EQ(text, tokenizer->Decode(ids, options)) << family << ", seed " << kSeed << ", " << i;
    }
  }
}

TEST(IncrementalDetokenizer, AfterAPromptGivesWhatDecodingBothHasBeyondThePrompt) {
  constexpr uint64_t kSeed = 12;
  std::mt19937_64 random(kSeed);
  for (const std::string& family : Families()) {
    const auto tokenizer = LoadFixture(family);
    ASSERT_NE(tokenizer, nullptr);
    for (int i = 0; i < 1000; ++i) {
      const auto prompt = *tokenizer->Encode(RandomText(&random, 10), {});
      const auto ids = *tokenizer->Encode(RandomText(&random, 10), {});
      std::vector<int32_t> both = prompt;
      both.insert(both.end(), ids.begin(), ids.end());
      const DecodeOptions options{.skip_special_tokens = i % 3 != 0};
      IncrementalDetokenizer detokenizer(tokenizer.get(), options);
      detokenizer.Continue(prompt);
      std::string text = tokenizer->Decode(prompt, options);
      for (const int32_t id : ids) text += detokenizer.Push(id);
      text += detokenizer.Flush();
      ASSERT_EQ(text, tokenizer->Decode(both, options))
          << family << ", seed " << kSeed << ", " << i;
    }
  }
}

TEST(IncrementalDetokenizer, HoldsBackAnIncompleteCharacterAndFlushesIt) {
  const auto tokenizer = LoadFixture("smollm");
  ASSERT_NE(tokenizer, nullptr);
  const auto ids = *tokenizer->Encode("\U00010348", {});  // rare: four byte tokens
  ASSERT_EQ(ids.size(), 4u);
  IncrementalDetokenizer detokenizer(tokenizer.get(), {});
  EXPECT_EQ(detokenizer.Push(ids[0]), "");
  EXPECT_EQ(detokenizer.Push(ids[1]), "");
  EXPECT_EQ(detokenizer.Push(ids[2]), "");
  EXPECT_EQ(detokenizer.Push(ids[3]), "\U00010348");
  EXPECT_EQ(detokenizer.Push(ids[0]), "");
  EXPECT_EQ(detokenizer.Flush(), "\ufffd");
  EXPECT_EQ(detokenizer.Flush(), "");
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBecomeAStopString) {
  StopMatcher matcher({"STOP", "END."}, StopText::kExclude);
  EXPECT_EQ(matcher.Push("hello S"), "hello ");
  EXPECT_EQ(matcher.Push("T"), "");
  EXPECT_EQ(matcher.Push("AND E"), "STAND ");
  EXPECT_EQ(matcher.Push("ND"), "");
  EXPECT_FALSE(matcher.matched());
  EXPECT_EQ(matcher.Push(".more"), "");
  EXPECT_TRUE(matcher.matched());
  EXPECT_EQ(matcher.matched_stop(), "END.");
  EXPECT_EQ(matcher.Push("x"), "");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcher, IncludesTheStopStringWhenAsked) {
  StopMatcher matcher({"\n\n"}, StopText::kInclude);
  EXPECT_EQ(matcher.Push("a\n"), "a");
  EXPECT_EQ(matcher.Push("\nb"), "\n\n");
  EXPECT_TRUE(matcher.matched());
}

TEST(StopMatcher, WithoutStopStringsEverythingPasses) {
  StopMatcher matcher({"", ""}, StopText::kExclude);
  EXPECT_EQ(matcher.Push("abc"), "abc");
  EXPECT_EQ(matcher.Flush(), "");
  EXPECT_FALSE(matcher.matched());
}

TEST(StopMatcher, AgreesWithASearchInTheWholeTextHoweverItIsCut) {
  constexpr uint64_t kSeed = 5;
  std::mt19937_64 random(kSeed);
  for (int i = 0; i < 20000; ++i) {
    const auto word = [&](size_t longest) {
      std::string w;
      for (size_t n = 1 + random() % longest; n > 0; --n) w += "ab"[random() % 2];
      return w;
    };
    const std::vector<std::string> stops = {word(5), word(5), word(7)};
    const std::string text = word(24);
    size_t end = std::string::npos;
    size_t length = 0;
    for (const auto& stop : stops) {
      const size_t at = text.find(stop);
      if (at == std::string::npos) continue;
      const size_t stop_end = at + stop.size();
      if (stop_end < end || (stop_end == end && stop.size() > length)) {
        end = stop_end;
        length = stop.size();
      }
    }
    const std::string want = end == std::string::npos ? text : text.substr(0, end - length);
    StopMatcher matcher(stops, StopText::kExclude);
    std::string got;
    for (size_t pos = 0; pos < text.size();) {
      const size_t n = std::min<size_t>(1 + random() % 4, text.size() - pos);
      got += matcher.Push(std::string_view(text).substr(pos, n));
      ASSERT_EQ(want.compare(0, got.size(), got), 0) << "seed " << kSeed << ", case " << i;
      pos += n;
    }
    got += matcher.Flush();
    ASSERT_EQ(got, want) << "seed " << kSeed << ", case " << i;
    ASSERT_EQ(matcher.matched(), end != std::string::npos);
  }
}

}  // namespace
}  // namespace weir
