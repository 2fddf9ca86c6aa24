#include "engine/model/text_files.h"

#include "tests/engine/model/model_file_builder.h"

namespace weir {
namespace {

Result<ModelTextFiles> OfGguf(const GgufBuilder& builder) {
  const std::string bytes = builder.Build();
  const auto file = GgufFile::Parse(AsSource(bytes));
  EXPECT_TRUE(file.ok()) << file.status().ToString();
  return ReadGgufTextFiles(*file);
}

TEST(TextFiles, DirectoryWithNothingHasNothing) {
  const TempDir dir;
  const auto files = FindTextFiles(dir.path());
  ASSERT_TRUE(files.ok());
  EXPECT_EQ(files->tokenizer_json_path, "");
  EXPECT_EQ(files->chat_template, "");
  EXPECT_FALSE(files->gguf_tokenizer.has_value());
}

TEST(TextFiles, TemplateComesFromTheJinjaFileBeforeTheConfig) {
  const TempDir dir;
  dir.Write("tokenizer.json", "{}");
  dir.Write("tokenizer_config.json", R"({"chat_template":"from config"})");
  EXPECT_EQ(FindTextFiles(dir.path())->chat_template, "from config");
  EXPECT_EQ(FindTextFiles(dir.path())->tokenizer_json_path, dir.path() + "/tokenizer.json");
  dir.Write("chat_template.jinja", "from jinja");
  EXPECT_EQ(FindTextFiles(dir.path())->chat_template, "from jinja");
}

TEST(TextFiles, ListOfTemplatesGivesTheDefaultOne) {
  const TempDir dir;
  const auto with = [&](const char* config) {
    dir.Write("tokenizer_config.json", config);
    return FindTextFiles(dir.path());
  };
  EXPECT_EQ(with(R"({"chat_template":[{"name":"tool_use","template":"t"},
                                      {"name":"default","template":"d"}]})")
                ->chat_template,
            "d");
  EXPECT_EQ(with(R"({"chat_template":[1,{"name":"default"}]})")->chat_template, "");
  EXPECT_EQ(with(R"({"chat_template":null})")->chat_template, "");
  EXPECT_FAILS(with(R"({"chat_template":7})"), StatusCode::kInvalidArgument, "chat_template");
  EXPECT_FAILS(with("{"), StatusCode::kDataLoss, "tokenizer_config.json");
  EXPECT_FAILS(with("[]"), StatusCode::kDataLoss, "not a JSON object");
}

TEST(TextFiles, GgufTokenizerIsReadAsWritten) {
  GgufBuilder b;
  b.String("tokenizer.ggml.model", "gpt2").String("tokenizer.ggml.pre", "smollm");
  b.Strings("tokenizer.ggml.tokens", {"<s>", "a", "b", "ab"})
      .Strings("tokenizer.ggml.merges", {"a b"});
  b.Array<float>("tokenizer.ggml.scores", 6, {0, -1, -2, -3});
  b.Array<int32_t>("tokenizer.ggml.token_type", 5, {3, 1, 1, 1});
  b.U32("tokenizer.ggml.bos_token_id", 0).U32("tokenizer.ggml.eos_token_id", 3);
  b.I32("tokenizer.ggml.padding_token_id", -1).U32("tokenizer.ggml.unknown_token_id", 0xffffffffu);
  b.Bool("tokenizer.ggml.add_bos_token", 0).String("tokenizer.chat_template", "{{ x }}");
  const auto files = OfGguf(b);
  ASSERT_TRUE(files.ok()) << files.status().ToString();
  EXPECT_EQ(files->chat_template, "{{ x }}");
  const GgufTokenizer& t = *files->gguf_tokenizer;
  EXPECT_EQ(t.model, "gpt2");
  EXPECT_EQ(t.pre, "smollm");
  EXPECT_EQ(t.tokens.size(), 4u);
  EXPECT_EQ(t.merges, std::vector<std::string>{"a b"});
  EXPECT_EQ(t.scores[3], -3.0f);
  EXPECT_EQ(t.token_types[0], 3);
  EXPECT_EQ(t.bos_id, 0);
  EXPECT_EQ(t.eos_id, 3);
  EXPECT_EQ(t.pad_id, std::nullopt);
  EXPECT_EQ(t.unk_id, std::nullopt);
  EXPECT_EQ(t.add_bos, false);
  EXPECT_EQ(t.add_eos, std::nullopt);
}

TEST(TextFiles, GgufTokenizerThatContradictsItselfIsRefused) {
  const auto base = [] {
    GgufBuilder b;
    b.Strings("tokenizer.ggml.tokens", {"a", "b"});
    return b;
  };
  EXPECT_FAILS(OfGguf(base().U32("tokenizer.ggml.eos_token_id", 2)), StatusCode::kInvalidArgument,
               "outside the vocabulary of 2");
  EXPECT_FAILS(OfGguf(base().Array<float>("tokenizer.ggml.scores", 6, {1})),
               StatusCode::kInvalidArgument, "scores has 1 entries");
  EXPECT_FAILS(OfGguf(base().Array<int32_t>("tokenizer.ggml.token_type", 5, {1, 1, 1})),
               StatusCode::kInvalidArgument, "token_type has 3 entries");
  EXPECT_FAILS(OfGguf(base().U32("tokenizer.ggml.add_bos_token", 1)), StatusCode::kInvalidArgument,
               "boolean");
}

}  // namespace
}  // namespace weir
