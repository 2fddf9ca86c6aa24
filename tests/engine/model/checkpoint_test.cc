#include "engine/model/checkpoint.h"

#include <cmath>
#include <cstdlib>
#include <functional>

#include "engine/model/convert.h"
#include "engine/model/json.h"
#include "tests/engine/model/model_file_builder.h"

namespace weir {
namespace {

ModelConfig TinyConfig() {
  ModelConfig config;
  config.vocab_size = 40;
  config.hidden_size = 32;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.intermediate_size = 48;
  config.max_position = 64;
  config.tie_word_embeddings = false;
  return config;
}

// Calls |visit| for every stored part of |config|'s model.
void ForEachStored(const ModelConfig& config,
                   const std::function<void(TensorRole, uint32_t)>& visit) {
  for (uint32_t i = 0; i < kTensorRoleCount; ++i) {
    const auto role = static_cast<TensorRole>(i);
    if (!HasRole(config, role)) continue;
    if (role == TensorRole::kLmHead && config.tie_word_embeddings) continue;
    for (uint32_t layer = 0; layer < (IsLayerRole(role) ? config.num_layers : 1); ++layer) {
      visit(role, layer);
    }
  }
}

// Different numbers everywhere, exact in every format that is not quantised.
std::vector<float> Weights(const ModelConfig& config, TensorRole role, uint32_t layer) {
  size_t n = 1;
  for (const uint64_t dim : ShapeOfRole(config, role)) n *= dim;
  std::vector<float> out(n);
  for (size_t i = 0; i < n; ++i) {
    out[i] = static_cast<float>(i) + 0x1p-6f * static_cast<float>(role) +
             0x1p-12f * static_cast<float>(layer);
  }
  return out;
}

std::string ConfigJson(const ModelConfig& config) {
  nlohmann::json out = {{"model_type", ModelFamilyName(config.family)},
                        {"vocab_size", config.vocab_size},
                        {"hidden_size", config.hidden_size},
                        {"num_hidden_layers", config.num_layers},
                        {"num_attention_heads", config.num_heads},
                        {"num_key_value_heads", config.num_kv_heads},
                        {"head_dim", config.head_dim},
                        {"intermediate_size", config.intermediate_size},
                        {"max_position_embeddings", config.max_position},
                        {"tie_word_embeddings", config.tie_word_embeddings},
                        {"attention_bias", config.o_bias},
                        {"mlp_bias", config.mlp_bias}};
  return out.dump();
}

void WriteHf(const TempDir& dir, const ModelConfig& config, const std::string& skip = "",
             const std::string& prefix = "model.") {
  SafetensorsBuilder builder;
  ForEachStored(config, [&](TensorRole role, uint32_t layer) {
    std::string name = HfTensorName(role, layer);
    if (name == skip) return;
    if (name.starts_with("model.")) name = prefix + name.substr(6);
    builder.Add(name, "F32", ShapeOfRole(config, role), FloatBytes(Weights(config, role, layer)));
  });
  dir.Write("config.json", ConfigJson(config));
  dir.Write("model.safetensors", builder.Build());
}

// llama.cpp's permutation: [heads, 2, half, rest] -> [heads, half, 2, rest].
std::vector<float> Permuted(const std::vector<float>& in, size_t head_dim, size_t cols) {
  std::vector<float> out(in.size());
  const size_t half = head_dim / 2;
  for (size_t head = 0; head < in.size() / cols / head_dim; ++head) {
    for (size_t s = 0; s < 2; ++s) {
      for (size_t j = 0; j < half; ++j) {
        const size_t from = (head * head_dim + s * half + j) * cols;
        const size_t to = (head * head_dim + 2 * j + s) * cols;
        std::copy_n(&in[from], cols, &out[to]);
      }
    }
  }
  return out;
}

// The metadata of a model; without tensors.
GgufBuilder TinyMetadata(const ModelConfig& config) {
  const std::string arch(ModelFamilyName(config.family));
  GgufBuilder b;
  b.String("general.architecture", arch);
  b.U32(arch + ".block_count", config.num_layers)
      .U32(arch + ".context_length", config.max_position);
  b.U32(arch + ".embedding_length", config.hidden_size);
  b.U32(arch + ".feed_forward_length", config.intermediate_size);
  b.U32(arch + ".attention.head_count", config.num_heads);
  b.U32(arch + ".attention.head_count_kv", config.num_kv_heads);
  b.U32(arch + ".attention.key_length", config.head_dim);
  b.U32(arch + ".vocab_size", config.vocab_size);
  b.F32(arch + ".attention.layer_norm_rms_epsilon", 1e-6f);
  return b;
}

GgufBuilder TinyGguf(const ModelConfig& config, const std::string& skip = "") {
  GgufBuilder b = TinyMetadata(config);
  ForEachStored(config, [&](TensorRole role, uint32_t layer) {
    const std::string name = GgufTensorName(role, layer);
    if (name == skip) return;
    const auto shape = ShapeOfRole(config, role);
    std::vector<float> weights = Weights(config, role, layer);
    const bool rope = role == TensorRole::kQ || role == TensorRole::kK ||
                      role == TensorRole::kQBias || role == TensorRole::kKBias;
    if (rope && config.family == ModelFamily::kLlama) {
      weights = Permuted(weights, config.head_dim, shape.size() == 2 ? shape[1] : 1);
    }
    b.Tensor(name, shape, 0, FloatBytes(weights));
  });
  return b;
}

void ExpectWeights(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  ForEachStored(config, [&](TensorRole role, uint32_t layer) {
    SCOPED_TRACE(HfTensorName(role, layer));
    const auto source = checkpoint.Find(role, static_cast<int>(layer));
    ASSERT_TRUE(source.ok()) << source.status().ToString();
    const std::vector<float> want = Weights(config, role, layer);
    std::vector<float> got(want.size());
    const Status read = checkpoint.ReadRowsAsFloat(*source, 0, source->rows(), got);
    ASSERT_TRUE(read.ok()) << read.ToString();
    EXPECT_EQ(got, want);
    // Any row range, in particular one that starts and ends inside heads.
    const uint64_t first = source->rows() / 3;
    const uint64_t rows = source->rows() - first - (source->rows() > 4 ? 3 : 0);
    std::vector<float> part(static_cast<size_t>(rows * source->cols()));
    ASSERT_TRUE(checkpoint.ReadRowsAsFloat(*source, first, rows, part).ok());
    EXPECT_TRUE(std::equal(part.begin(), part.end(),
                           want.begin() + static_cast<std::ptrdiff_t>(first * source->cols())));
  });
}

TEST(Checkpoint, HfDirectoryGivesTheWeightsOfEveryRole) {
  for (const bool biased : {false, true}) {
    const TempDir dir;
    ModelConfig config = TinyConfig();
    config.attention_bias = config.o_bias = config.mlp_bias = biased;
    WriteHf(dir, config);
    const auto checkpoint = Checkpoint::Open(dir.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
    EXPECT_EQ(checkpoint->format(), CheckpointFormat::kSafetensors);
    ASSERT_EQ(checkpoint->files().size(), 1u);
    EXPECT_GT(checkpoint->stored_bytes(), 0u);
    ExpectWeights(*checkpoint);
  }
}

TEST(Checkpoint, HfDirectoryOfTheBareDecoderIsAccepted) {
  const TempDir dir;
  ModelConfig config = TinyConfig();
  config.tie_word_embeddings = true;
  WriteHf(dir, config, "", "");
  const auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
  ExpectWeights(*checkpoint);
}

TEST(Checkpoint, GgufRopeRowsComeBackInHfOrder) {
  for (const ModelFamily family : {ModelFamily::kLlama, ModelFamily::kQwen2, ModelFamily::kQwen3}) {
    SCOPED_TRACE(ModelFamilyName(family));
    const TempDir dir;
    ModelConfig config = TinyConfig();
    config.family = family;
    config.attention_bias = family != ModelFamily::kQwen3;
    config.o_bias = config.mlp_bias = family == ModelFamily::kLlama;
    config.qk_norm = family == ModelFamily::kQwen3;
    const std::string path = dir.Write("m.gguf", TinyGguf(config).Build());
    const auto checkpoint = Checkpoint::Open(path);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
    EXPECT_EQ(checkpoint->format(), CheckpointFormat::kGguf);
    EXPECT_EQ(checkpoint->Find(TensorRole::kQ, 1)->transform,
              family == ModelFamily::kLlama ? RowTransform::kUnpermuteRope : RowTransform::kNone);
    EXPECT_EQ(checkpoint->Find(TensorRole::kV, 1)->transform, RowTransform::kNone);
    ExpectWeights(*checkpoint);
    EXPECT_TRUE(Checkpoint::Open(dir.path()).ok()) << "a directory with one .gguf file";
    dir.Write("n.gguf", "");
    EXPECT_FAILS(Checkpoint::Open(dir.path()), StatusCode::kInvalidArgument, "2 .gguf files");
  }
}

TEST(Checkpoint, StoredRowIsAPermutationThatUndoesLlamaCpps) {
  TensorSource source;
  source.transform = RowTransform::kUnpermuteRope;
  source.rope_head_dim = 8;
  const std::vector<uint64_t> want = {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15};
  for (uint64_t row = 0; row < want.size(); ++row) EXPECT_EQ(StoredRow(source, row), want[row]);
}

TEST(Checkpoint, TiedOutputIsTheEmbedding) {
  const TempDir dir;
  ModelConfig config = TinyConfig();
  config.tie_word_embeddings = true;
  const auto gguf = Checkpoint::Open(dir.Write("m.gguf", TinyGguf(config).Build()));
  ASSERT_TRUE(gguf.ok()) << gguf.status().ToString();
  EXPECT_TRUE(gguf->config().tie_word_embeddings) << "output.weight is absent";
  EXPECT_EQ(gguf->Find(TensorRole::kLmHead)->info.name, "token_embd.weight");
  const auto untied = Checkpoint::Open(dir.Write("u.gguf", TinyGguf(TinyConfig()).Build()));
  EXPECT_FALSE(untied->config().tie_word_embeddings);
  EXPECT_EQ(untied->Find(TensorRole::kLmHead)->info.name, "output.weight");
}

TEST(Checkpoint, MissingTensorIsNamedWithItsShape) {
  const ModelConfig config = TinyConfig();
  ForEachStored(config, [&](TensorRole role, uint32_t layer) {
    const TempDir dir;
    const std::string hf = HfTensorName(role, layer);
    WriteHf(dir, config, hf);
    EXPECT_FAILS(Checkpoint::Open(dir.path()), StatusCode::kNotFound, hf);
    EXPECT_FAILS(Checkpoint::Open(dir.path()), StatusCode::kNotFound,
                 "shape " + ShapeString(ShapeOfRole(config, role)) + " expected");
    // A GGUF file without output.weight is a tied model, not a broken one.
    if (role == TensorRole::kLmHead) return;
    const std::string gguf = GgufTensorName(role, layer);
    EXPECT_FAILS(Checkpoint::Open(dir.Write("m.gguf", TinyGguf(config, gguf).Build())),
                 StatusCode::kNotFound, gguf);
  });
}

TEST(Checkpoint, TensorOfAnotherShapeIsNamedWithBothShapes) {
  const TempDir dir;
  WriteHf(dir, TinyConfig());
  ModelConfig other = TinyConfig();
  other.intermediate_size = 50;
  dir.Write("config.json", ConfigJson(other));
  EXPECT_FAILS(Checkpoint::Open(dir.path()), StatusCode::kInvalidArgument,
               "model.layers.0.mlp.gate_proj.weight has shape [48, 32], the configuration asks for "
               "[50, 32]");
}

TEST(Checkpoint, TensorsTheConfigurationDoesNotMentionAreNotSilentlyDropped) {
  const TempDir dir;
  ModelConfig config = TinyConfig();
  config.attention_bias = config.o_bias = true;
  WriteHf(dir, config);
  dir.Write("config.json", ConfigJson(TinyConfig()));
  EXPECT_FAILS(Checkpoint::Open(dir.path()), StatusCode::kInvalidArgument,
               "self_attn.q_proj.bias is in the file");
}

TEST(Checkpoint, QuantisedVectorsAreUnsupported) {
  ModelConfig config = TinyConfig();
  GgufBuilder b = TinyGguf(config, "blk.1.attn_norm.weight");
  b.Tensor("blk.1.attn_norm.weight", {32}, 8, std::string(34, '\0'));
  const TempDir dir;
  EXPECT_FAILS(Checkpoint::Open(dir.Write("m.gguf", b.Build())), StatusCode::kUnsupported,
               "blk.1.attn_norm.weight is Q8_0");
}

TEST(Checkpoint, QuantisedPermutedRowsAreReadWholeAndUnpermuted) {
  ModelConfig config = TinyConfig();
  GgufBuilder b = TinyGguf(config, "blk.0.attn_q.weight");
  std::string rows;
  for (char r = 0; r < 32; ++r) {
    rows.append("\x00\x3c", 2);  // scale 1
    rows.append(32, r);
  }
  b.Tensor("blk.0.attn_q.weight", {32, 32}, 8, rows);
  const TempDir dir;
  const auto checkpoint = Checkpoint::Open(dir.Write("m.gguf", b.Build()));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
  const TensorSource q = *checkpoint->Find(TensorRole::kQ, 0);
  std::vector<std::byte> raw(34);
  for (uint64_t row = 0; row < 32; ++row) {
    std::vector<float> values(32);
    ASSERT_TRUE(checkpoint->ReadRowsAsFloat(q, row, 1, values).ok());
    EXPECT_EQ(values[31], static_cast<float>(StoredRow(q, row)));
    ASSERT_TRUE(checkpoint->ReadRows(q, row, 1, raw).ok());
    EXPECT_EQ(std::to_integer<uint64_t>(raw[33]), StoredRow(q, row));
  }
}

TEST(Checkpoint, GgufHyperParametersAreValidated) {
  const TempDir dir;
  const auto open = [&](const std::function<void(GgufBuilder&)>& add, ModelConfig config) {
    GgufBuilder b = TinyGguf(config);
    add(b);
    return Checkpoint::Open(dir.Write("m.gguf", b.Build()));
  };
  const auto nothing = [](GgufBuilder&) {};
  for (uint32_t ModelConfig::*field :
       {&ModelConfig::num_layers, &ModelConfig::num_heads, &ModelConfig::num_kv_heads,
        &ModelConfig::head_dim, &ModelConfig::max_position, &ModelConfig::hidden_size,
        &ModelConfig::intermediate_size, &ModelConfig::vocab_size}) {
    for (const uint32_t value : {0u, 0xffffffffu}) {
      ModelConfig config = TinyConfig();
      config.*field = value;
      GgufBuilder b = TinyMetadata(config);
      b.Tensor("token_embd.weight", {40, 32}, 0, std::string(40 * 32 * 4, '\0'));
      EXPECT_FAILS(Checkpoint::Open(dir.Write("m.gguf", b.Build())), StatusCode::kInvalidArgument,
                   "");
    }
  }
  EXPECT_FAILS(open([](GgufBuilder& b) { b.U32("llama.expert_count", 8); }, TinyConfig()),
               StatusCode::kUnsupported, "mixture-of-experts");
  EXPECT_FAILS(open([](GgufBuilder& b) { b.U32("llama.rope.dimension_count", 4); }, TinyConfig()),
               StatusCode::kUnsupported, "llama.rope.dimension_count is 4");
  EXPECT_FAILS(
      open([](GgufBuilder& b) { b.U32("llama.attention.sliding_window", 16); }, TinyConfig()),
      StatusCode::kUnsupported, "sliding window of 16");
  EXPECT_FAILS(
      open([](GgufBuilder& b) { b.String("llama.rope.scaling.type", "longrope"); }, TinyConfig()),
      StatusCode::kUnsupported, "accepted: none, linear, yarn");
  EXPECT_FAILS(open([](GgufBuilder& b) { b.U32("split.count", 2); }, TinyConfig()),
               StatusCode::kUnsupported, "merge them first");
  EXPECT_FAILS(open([](GgufBuilder& b) { b.U32("tokenizer.ggml.eos_token_id", 40); }, TinyConfig()),
               StatusCode::kInvalidArgument, "outside the vocabulary of 40");
  EXPECT_FAILS(open(
                   [](GgufBuilder& b) {
                     b.Strings("tokenizer.ggml.tokens", std::vector<std::string>(41, "x"));
                   },
                   TinyConfig()),
               StatusCode::kInvalidArgument, "tokens has 41 entries, the vocabulary 40");
  ModelConfig mistral = TinyConfig();
  mistral.family = ModelFamily::kMistral;
  EXPECT_FAILS(open(nothing, mistral), StatusCode::kUnsupported, "accepted: llama, qwen2, qwen3");
  EXPECT_FAILS(Checkpoint::Open(dir.Write("m.gguf", GgufBuilder().Build())),
               StatusCode::kInvalidArgument, "general.architecture is missing");
}

TEST(Checkpoint, GgufRopeScalingAndDivisorsAreRead) {
  const TempDir dir;
  GgufBuilder yarn = TinyGguf(TinyConfig());
  yarn.String("llama.rope.scaling.type", "yarn").F32("llama.rope.scaling.factor", 4.0f);
  yarn.U32("llama.rope.scaling.original_context_length", 16).F32("llama.rope.freq_base", 5e5f);
  const auto a = Checkpoint::Open(dir.Write("a.gguf", yarn.Build()));
  ASSERT_TRUE(a.ok()) << a.status().ToString();
  EXPECT_EQ(a->config().rope.kind, RopeKind::kYarn);
  EXPECT_EQ(a->config().rope.original_max_position, 16u);
  EXPECT_EQ(a->config().rope.theta, 5e5);
  EXPECT_FLOAT_EQ(RopeAttentionScale(a->config()), 1.0f + 0.1f * std::log(4.0f));

  GgufBuilder divided = TinyGguf(TinyConfig());
  divided.Tensor("rope_freqs.weight", {4}, 0, FloatBytes({1, 1, 2, 8}));
  const auto b = Checkpoint::Open(dir.Write("b.gguf", divided.Build()));
  ASSERT_TRUE(b.ok()) << b.status().ToString();
  EXPECT_EQ(b->config().rope.divisors, (std::vector<float>{1, 1, 2, 8}));

  GgufBuilder zero = TinyGguf(TinyConfig());
  zero.Tensor("rope_freqs.weight", {4}, 0, FloatBytes({1, 1, 0, 8}));
  EXPECT_FAILS(Checkpoint::Open(dir.Write("c.gguf", zero.Build())), StatusCode::kInvalidArgument,
               "rope divisor");
  GgufBuilder shape = TinyGguf(TinyConfig());
  shape.Tensor("rope_freqs.weight", {8}, 0, FloatBytes(std::vector<float>(8, 1)));
  EXPECT_FAILS(Checkpoint::Open(dir.Write("d.gguf", shape.Build())), StatusCode::kDataLoss,
               "rope_freqs.weight is F32 [8]");
}

TEST(Checkpoint, PerLayerCountsAreAcceptedOnlyIfTheyAgree) {
  const TempDir dir;
  const auto open = [&](const std::vector<int32_t>& list) {
    GgufBuilder b = TinyGguf(TinyConfig());
    b.Array<int32_t>("llama.attention.value_length", 5, list);
    return Checkpoint::Open(dir.Write("m.gguf", b.Build()));
  };
  EXPECT_TRUE(open({8, 8}).ok());
  EXPECT_FAILS(open({8, 4}), StatusCode::kUnsupported, "differs between layers");
  EXPECT_FAILS(open({}), StatusCode::kInvalidArgument, "empty array");
}

TEST(Checkpoint, DummyIsReproducibleAndSane) {
  ModelConfig config = TinyConfig();
  config.attention_bias = true;
  const auto one = Checkpoint::Dummy(config, 1);
  ASSERT_TRUE(one.ok()) << one.status().ToString();
  EXPECT_TRUE(one->files().empty());
  EXPECT_EQ(one->stored_bytes(), 0u);
  const auto same = Checkpoint::Dummy(config, 1);
  const auto other = Checkpoint::Dummy(config, 2);
  const auto rows = [](const Checkpoint& c, TensorRole role, int layer) {
    const TensorSource source = *c.Find(role, layer);
    std::vector<float> out(static_cast<size_t>(source.rows() * source.cols()));
    EXPECT_TRUE(c.ReadRowsAsFloat(source, 0, source.rows(), out).ok());
    return out;
  };
  EXPECT_EQ(rows(*one, TensorRole::kQ, 1), rows(*same, TensorRole::kQ, 1));
  EXPECT_NE(rows(*one, TensorRole::kQ, 1), rows(*other, TensorRole::kQ, 1));
  EXPECT_NE(rows(*one, TensorRole::kQ, 1), rows(*one, TensorRole::kQ, 0));
  EXPECT_NE(rows(*one, TensorRole::kGate, 1), rows(*one, TensorRole::kUp, 1));
  EXPECT_EQ(rows(*one, TensorRole::kAttnNorm, 0), std::vector<float>(32, 1.0f));
  EXPECT_NE(rows(*one, TensorRole::kQBias, 0), std::vector<float>(32, 1.0f));
  std::vector<std::byte> raw(128);
  EXPECT_FAILS(one->ReadRows(*one->Find(TensorRole::kQ, 0), 0, 1, raw),
               StatusCode::kInvalidArgument, "made up");
  config.num_kv_heads = 3;
  EXPECT_FAILS(Checkpoint::Dummy(config, 1), StatusCode::kInvalidArgument, "multiple");
}

TEST(Checkpoint, PartsTheModelDoesNotHaveAreNotFound) {
  const auto c = Checkpoint::Dummy(TinyConfig(), 1);
  EXPECT_FAILS(c->Find(TensorRole::kQBias, 0), StatusCode::kNotFound, "q_proj.bias");
  EXPECT_FAILS(c->Find(TensorRole::kQ, 2), StatusCode::kNotFound, "layer 2");
  EXPECT_FAILS(c->Find(TensorRole::kQ, -1), StatusCode::kNotFound, "layer -1");
}

TEST(Checkpoint, RowsOutsideATensorAndBuffersOfTheWrongSizeAreRefused) {
  const TempDir dir;
  WriteHf(dir, TinyConfig());
  const auto c = Checkpoint::Open(dir.path());
  ASSERT_TRUE(c.ok());
  const TensorSource q = *c->Find(TensorRole::kQ, 0);
  std::vector<float> row(32);
  EXPECT_FAILS(c->ReadRowsAsFloat(q, 32, 1, row), StatusCode::kInvalidArgument, "rows [32, +1)");
  EXPECT_FAILS(c->ReadRowsAsFloat(q, ~uint64_t{0}, 1, row), StatusCode::kInvalidArgument, "rows [");
  EXPECT_FAILS(c->ReadRowsAsFloat(q, 0, 2, row), StatusCode::kInvalidArgument, "64 are needed");
  EXPECT_TRUE(c->ReadRowsAsFloat(q, 32, 0, {}).ok());
}

TEST(Checkpoint, PathsThatAreNoModelSayWhatIsAccepted) {
  const TempDir dir;
  EXPECT_FAILS(Checkpoint::Open(dir.path() + "/none"), StatusCode::kNotFound, "no such model");
  EXPECT_FAILS(Checkpoint::Open(dir.path()), StatusCode::kNotFound, "neither config.json nor");
  EXPECT_FAILS(Checkpoint::Open(dir.Write("model.safetensors", "")), StatusCode::kInvalidArgument,
               "name the directory");
  std::filesystem::remove(dir.path() + "/model.safetensors");
  dir.Write("config.json", ConfigJson(TinyConfig()));
  dir.Write("pytorch_model.bin", "");
  EXPECT_FAILS(Checkpoint::Open(dir.path()), StatusCode::kNotFound, "convert it to safetensors");
  dir.Write("config.json", "{}");
  EXPECT_FAILS(Checkpoint::Open(dir.path()), StatusCode::kInvalidArgument, "model_type is missing");
}

// The models other tests use as oracles: all of them open, in both containers.
TEST(Checkpoint, FixtureModelsOpen) {
  const std::filesystem::path root = "tests/fixtures/models";
  if (!std::filesystem::exists(root)) GTEST_SKIP() << root << " is not there";
  int opened = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    const bool hf = entry.path().filename() == "config.json";
    if (!hf && entry.path().extension() != ".gguf") continue;
    const auto path = hf ? entry.path().parent_path() : entry.path();
    const auto checkpoint = Checkpoint::Open(path.string());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
    ++opened;
  }
  EXPECT_GT(opened, 0);
}

TEST(Checkpoint, RealSmolLm2FileIsRead) {
  const char* path = std::getenv("WEIR_SMOLLM2_GGUF");
  if (path == nullptr) GTEST_SKIP() << "WEIR_SMOLLM2_GGUF does not name a SmolLM2-135M GGUF file";
  const auto c = Checkpoint::Open(path);
  ASSERT_TRUE(c.ok()) << c.status().ToString();
  EXPECT_EQ(c->config().num_layers, 30u);
  EXPECT_EQ(c->config().num_heads, 9u);
  EXPECT_EQ(c->config().num_kv_heads, 3u);
  EXPECT_EQ(c->config().rope.theta, 100000.0);
  EXPECT_TRUE(c->config().tie_word_embeddings);
  EXPECT_EQ(c->text_files().gguf_tokenizer->tokens.size(), 49152u);
  EXPECT_EQ(c->text_files().gguf_tokenizer->merges.size(), 48900u);
  EXPECT_FALSE(c->text_files().chat_template.empty());
  // gguf-py and numpy: row 33 of layer 3's q after undoing the permutation, and of the embedding.
  std::vector<float> row(576);
  ASSERT_TRUE(c->ReadRowsAsFloat(*c->Find(TensorRole::kQ, 3), 33, 1, row).ok());
  EXPECT_FLOAT_EQ(row[0], -0.05465698f);
  EXPECT_FLOAT_EQ(row[1], 0.22494507f);
  EXPECT_FLOAT_EQ(row[31], -0.10125732f);
  ASSERT_TRUE(c->ReadRowsAsFloat(*c->Find(TensorRole::kLmHead), 33, 1, row).ok());
  EXPECT_FLOAT_EQ(row[0], -0.03739929f);
}

}  // namespace
}  // namespace weir
