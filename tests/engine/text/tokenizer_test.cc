#include "engine/text/tokenizer.h"

#include <chrono>
#include <thread>

#include "engine/text/unicode.h"
#include "tests/engine/text/text_test_util.h"

namespace weir {
namespace {

using Json = nlohmann::json;

class TokenizerFamily : public testing::TestWithParam<std::string> {};

TEST_P(TokenizerFamily, GivesTheIdsAndTextsOfHuggingFaceTokenizers) {
  const auto tokenizer = LoadFixture(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  const auto cases = ReadCases(GetParam());
  ASSERT_GE(cases.size(), 100u);
  for (const Json& c : cases) {
    const auto text = c["text"].get<std::string>();
    const auto want = c["ids"].get<std::vector<int32_t>>();
    const auto got = tokenizer->Encode(text, {.add_special_tokens = c["special"].get<bool>()});
    ASSERT_TRUE(got.ok()) << got.status().ToString();
    EXPECT_EQ(*got, want) << c.dump();
    EXPECT_EQ(tokenizer->Decode(want, {.skip_special_tokens = c["skip"].get<bool>()}),
              c["decoded"].get<std::string>())
        << c.dump();
  }
}

TEST_P(TokenizerFamily, TokenizesAMegabyteOfOneCharacterWithoutRecursionOrQuadraticTime) {
  const auto tokenizer = LoadFixture(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  for (const std::string unit : {"a", " ", "1", "\n", "=", "\u00e9", "\u4e2d", "\u0301", " a"}) {
    std::string text;
    while (text.size() < 1'000'000) text += unit;
    const auto start = std::chrono::steady_clock::now();
    const auto ids = tokenizer->Encode(text, {});
    const auto elapsed = std::chrono::steady_clock::now() - start;
    ASSERT_TRUE(ids.ok()) << ids.status().ToString();
    // The goal is 100 ms in a release build; quadratic behaviour takes minutes. The bound leaves
    // room for sanitizers and a loaded machine.
    EXPECT_LT(std::chrono::duration<double>(elapsed).count(), 5.0) << "run of '" << unit << "'";
  }
}

TEST_P(TokenizerFamily, EncodesTheSameFromManyThreads) {
  const auto tokenizer = LoadFixture(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  const auto cases = ReadCases(GetParam());
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (const Json& c : cases) {
        const auto got = tokenizer->Encode(c["text"].get<std::string>(),
                                           {.add_special_tokens = c["special"].get<bool>()});
        if (!got.ok() || *got != c["ids"].get<std::vector<int32_t>>()) ++wrong[t];
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

INSTANTIATE_TEST_SUITE_P(All, TokenizerFamily, testing::ValuesIn(Families()),
                         [](const auto& family) { return family.param; });

TEST(TokenizerProperty, ByteLevelDecodingUndoesEncoding) {
  constexpr uint64_t kSeed = 20240131;
  for (const std::string family : {"smollm", "llama3", "tekken"}) {
    const auto tokenizer = LoadFixture(family);
    ASSERT_NE(tokenizer, nullptr);
    std::mt19937_64 random(kSeed);
    for (int i = 0; i < 3000; ++i) {
      const std::string text = RandomText(&random, 60);
      const auto ids = tokenizer->Encode(text, {.add_special_tokens = false});
      ASSERT_TRUE(ids.ok()) << ids.status().ToString();
      ASSERT_EQ(tokenizer->Decode(*ids, {}), text)
          << family << ", seed " << kSeed << ", text " << i;
      for (const int32_t id : *ids) ASSERT_LT(id, tokenizer->vocab_size());
    }
  }
}

TEST(TokenizerProperty, SentencePieceDecodingUndoesEncoding) {
  constexpr uint64_t kSeed = 7;
  const auto tokenizer = LoadFixture("llama2");
  ASSERT_NE(tokenizer, nullptr);
  std::mt19937_64 random(kSeed);
  for (int i = 0; i < 3000; ++i) {
    const std::string text = RandomText(&random, 60);
    if (text.find("\u2581") != std::string::npos) continue;  // indistinguishable from a space
    const auto ids = tokenizer->Encode(text, {.add_special_tokens = false});
    ASSERT_TRUE(ids.ok());
    ASSERT_EQ(tokenizer->Decode(*ids, {}), text) << "seed " << kSeed << ", text " << i;
  }
}

TEST(TokenizerErrors, InvalidUtf8IsRejectedWithTheByteOffset) {
  const auto tokenizer = LoadFixture("smollm");
  ASSERT_NE(tokenizer, nullptr);
  for (const auto& [text, offset] :
       std::vector<std::pair<std::string, std::string>>{{"abc\xff", "3"},
                                                        {"\xc0\x80", "0"},
                                                        {"ok \xe4\xb8", "3"},
                                                        {"12345678\xed\xa0\x80", "8"},
                                                        {"\xf4\x90\x80\x80", "0"}}) {
    const auto ids = tokenizer->Encode(text, {});
    ASSERT_FALSE(ids.ok());
    EXPECT_EQ(ids.status().code(), StatusCode::kInvalidArgument);
    EXPECT_NE(ids.status().message().find("offset " + offset), std::string::npos)
        << ids.status().message();
  }
}

TEST(TokenizerErrors, AnUnknownComponentIsNamedWithTheAcceptedOnes) {
  const std::string good = ReadFixture("smollm.json");
  const auto expect = [&](const char* key, Json value, const std::string& name) {
    Json doc = Json::parse(good);
    doc[key] = std::move(value);
    const auto tokenizer = Tokenizer::FromTokenizerJson(doc.dump(), "");
    ASSERT_FALSE(tokenizer.ok());
    EXPECT_EQ(tokenizer.status().code(), StatusCode::kUnsupported);
    EXPECT_NE(tokenizer.status().message().find(name), std::string::npos);
    EXPECT_NE(tokenizer.status().message().find("accepted"), std::string::npos)
        << tokenizer.status().message();
  };
  expect("normalizer", {{"type", "BertNormalizer"}}, "BertNormalizer");
  expect("pre_tokenizer", {{"type", "Whitespace"}}, "Whitespace");
  expect("decoder", {{"type", "WordPiece"}}, "WordPiece");
  expect("post_processor", {{"type", "RobertaProcessing"}}, "RobertaProcessing");
  expect("model", {{"type", "Unigram"}, {"vocab", Json::array()}}, "Unigram");
}

TEST(TokenizerErrors, BrokenFilesAreErrorsNotCrashes) {
  for (
      const char* text :
      {"", "{", "[]", "null", "{}", R"({"model":{}})", R"({"model":{"type":"BPE","vocab":{}}})",
       R"({"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":-1},"merges":[]}})",
       R"({"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":4000000000},"merges":[]}})",
       R"({"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":0,"b":0},"merges":[]}})",
       R"({"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}})",
       R"({"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":0},"merges":[1]}})",
       R"({"decoder":{"type":"ByteLevel"},"pre_tokenizer":{"type":"Split","pattern":{"Regex":"("}},
            "model":{"type":"BPE","vocab":{"a":0},"merges":[]}})"}) {
    EXPECT_FALSE(Tokenizer::FromTokenizerJson(text, "").ok()) << text;
  }
  EXPECT_FALSE(Tokenizer::FromTokenizerJson(ReadFixture("smollm.json"), "{").ok());
}

TEST(Tokenizer, ControlTokensAreParsedOnlyWhenAsked) {
  const auto tokenizer = LoadFixture("smollm");
  ASSERT_NE(tokenizer, nullptr);
  const auto id = tokenizer->TokenToId("<|im_start|>");
  ASSERT_TRUE(id.has_value());
  EXPECT_TRUE(tokenizer->IsSpecial(*id));
  const auto parsed = tokenizer->Encode("<|im_start|>", {});
  EXPECT_EQ(*parsed, std::vector<int32_t>{*id});
  const auto plain = tokenizer->Encode("<|im_start|>", {.parse_special_tokens = false});
  EXPECT_GT(plain->size(), 1u);
  EXPECT_EQ(tokenizer->Decode(*plain, {.skip_special_tokens = true}), "<|im_start|>");
}

TEST(Tokenizer, TheConfigNamesBosAndEos) {
  const auto tokenizer = Tokenizer::FromTokenizerJson(
      ReadFixture("llama3.json"),
      R"({"bos_token":"<|begin_of_text|>","eos_token":{"content":"<|eot_id|>"},"pad_token":null})");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  const Tokenizer& t = **tokenizer;
  EXPECT_EQ(t.bos_id(), t.TokenToId("<|begin_of_text|>"));
  EXPECT_EQ(t.eos_ids(), std::vector<int32_t>{*t.TokenToId("<|eot_id|>")});
  EXPECT_FALSE(t.pad_id().has_value());
  EXPECT_EQ(t.Piece(-1), "");
  EXPECT_EQ(t.Piece(t.vocab_size()), "");
  EXPECT_EQ(t.Decode(std::vector<int32_t>{-5, t.vocab_size(), INT32_MAX}, {}), "");
}

TEST(Tokenizer, AJsonFileWithoutPostProcessorObeysAddBosToken) {
  Json doc = Json::parse(ReadFixture("llama2.json"));
  doc["post_processor"] = nullptr;
  const auto tokenizer = Tokenizer::FromTokenizerJson(
      doc.dump(), R"({"bos_token":"<s>","eos_token":"</s>","add_bos_token":true})");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  EXPECT_EQ((*tokenizer)->Encode("x", {})->front(), 1);
}

// A spec with the vocabulary of a fixture, as a GGUF converter would write it.
TokenizerSpec SpecOf(const std::string& family, const std::string& model, const std::string& pre) {
  const Json doc = Json::parse(ReadFixture(family + ".json"));
  TokenizerSpec spec;
  spec.model = model;
  spec.pre = pre;
  spec.tokens.resize(doc["model"]["vocab"].size());
  for (const auto& [piece, id] : doc["model"]["vocab"].items())
    spec.tokens[id.get<size_t>()] = piece;
  spec.token_types.assign(spec.tokens.size(), static_cast<int32_t>(TokenType::kNormal));
  const auto set_type = [&](size_t id, TokenType type) {
    spec.token_types[id] = static_cast<int32_t>(type);
  };
  for (const Json& added : doc["added_tokens"]) {
    const auto id = added["id"].get<size_t>();
    if (id >= spec.tokens.size()) {
      spec.tokens.resize(id + 1);
      spec.token_types.resize(id + 1);
    }
    spec.tokens[id] = added["content"];
    set_type(id, added["special"].get<bool>() ? TokenType::kControl : TokenType::kUserDefined);
  }
  size_t rank = 0;
  spec.scores.assign(spec.tokens.size(), -1e9f);
  for (const Json& merge : doc["model"]["merges"]) {
    const std::string text = merge.is_string()
                                 ? merge.get<std::string>()
                                 : merge[0].get<std::string>() + " " + merge[1].get<std::string>();
    spec.merges.push_back(text);
    std::string joined = text;
    joined.erase(joined.find(' '), 1);
    const auto id = doc["model"]["vocab"][joined].get<size_t>();
    spec.scores[id] = -static_cast<float>(rank++);
  }
  for (size_t i = 0; i < spec.tokens.size(); ++i) {
    if (spec.tokens[i].size() == 6 && spec.tokens[i].starts_with("<0x")) {
      set_type(i, TokenType::kByte);
    }
  }
  return spec;
}

TEST(TokenizerSpec, ByteLevelSpecsEqualTheirTokenizerJson) {
  for (const auto& [family, pre] :
       std::vector<std::pair<std::string, std::string>>{{"smollm", "smollm"},
                                                        {"llama3", "llama-bpe"},
                                                        {"qwen2", "qwen2"},
                                                        {"tekken", "tekken"}}) {
    const auto tokenizer = Tokenizer::FromSpec(SpecOf(family, "gpt2", pre));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
    const auto reference = LoadFixture(family);
    for (const Json& c : ReadCases(family)) {
      const auto text = c["text"].get<std::string>();
      EXPECT_EQ(*(*tokenizer)->Encode(text, {.add_special_tokens = false}),
                *reference->Encode(text, {.add_special_tokens = false}))
          << family << ": " << c.dump();
    }
  }
}

TEST(TokenizerSpec, SentencePieceSpecsEqualTheirTokenizerJson) {
  TokenizerSpec spec = SpecOf("llama2", "llama", "");
  spec.bos_id = 1;
  spec.eos_id = 2;
  spec.unk_id = 0;
  const auto tokenizer = Tokenizer::FromSpec(spec);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  size_t compared = 0;
  for (const Json& c : ReadCases("llama2")) {
    const auto text = c["text"].get<std::string>();
    // A byte token written out is that token for Hugging Face and plain text for sentencepiece.
    if (text.find("<0x") != std::string::npos) continue;
    const auto got = (*tokenizer)->Encode(text, {.add_special_tokens = c["special"].get<bool>()});
    ASSERT_TRUE(got.ok());
    EXPECT_EQ(*got, c["ids"].get<std::vector<int32_t>>()) << c.dump();
    ++compared;
  }
  EXPECT_GT(compared, 100u);
}

TEST(TokenizerSpec, RejectsWhatItCannotHonour) {
  const TokenizerSpec good = SpecOf("smollm", "gpt2", "smollm");
  const auto code = [](const TokenizerSpec& spec) {
    return Tokenizer::FromSpec(spec).status().code();
  };
  EXPECT_TRUE(Tokenizer::FromSpec(good).ok());
  TokenizerSpec spec = good;
  spec.pre = "martian";
  const auto unknown = Tokenizer::FromSpec(spec);
  EXPECT_EQ(unknown.status().code(), StatusCode::kUnsupported);
  EXPECT_NE(unknown.status().message().find("smollm"), std::string::npos);
  spec = good;
  spec.model = "bert";
  EXPECT_EQ(code(spec), StatusCode::kUnsupported);
  spec = good;
  spec.token_types.pop_back();
  EXPECT_EQ(code(spec), StatusCode::kInvalidArgument);
  spec = good;
  spec.bos_id = static_cast<int32_t>(spec.tokens.size());
  EXPECT_EQ(code(spec), StatusCode::kInvalidArgument);
  spec = good;
  spec.merges.push_back("no such");
  EXPECT_EQ(code(spec), StatusCode::kInvalidArgument);
  spec = good;
  spec.tokens[5] = "\xff";
  EXPECT_EQ(code(spec), StatusCode::kInvalidArgument);
  spec = SpecOf("llama2", "llama", "");
  spec.scores.pop_back();
  EXPECT_EQ(code(spec), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(TokenizerSpec{}), StatusCode::kUnsupported);
}

TEST(Unicode, NormalizesToFormC) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"e\u0301", "\u00e9"},
      {"A\u030a", "\u00c5"},
      {"\u212b", "\u00c5"},
      {"\u1100\u1161\u11a8", "\uac01"},
      {"\u0958", "\u0915\u093c"},
      {"q\u0307\u0323", "q\u0323\u0307"},
      {"\u1e9b\u0323", "\u1e9b\u0323"},
      {"\u0344", "\u0308\u0301"},
      {"abc", "abc"},
      {"a\u0315\u0300\u05ae\u0062", "\u00e0\u05ae\u0315\u0062"},
  };
  for (const auto& [from, to] : cases) EXPECT_EQ(NormalizeNfc(from), to) << from;
}

}  // namespace
}  // namespace weir
