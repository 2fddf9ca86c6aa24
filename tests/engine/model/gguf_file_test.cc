#include "engine/model/tensor_file.h"
#include "tests/engine/model/model_file_builder.h"

namespace weir {
namespace {

Result<GgufFile> Parse(const std::string& bytes) {
  return GgufFile::Parse(AsSource(bytes));
}

GgufBuilder TwoTensors() {
  GgufBuilder b;
  b.String("general.architecture", "llama").U32("llama.block_count", 2);
  b.Tensor("a", {2, 3}, 0, FloatBytes({1, 2, 3, 4, 5, 6}));
  b.Tensor("q", {2, 32}, 3, std::string(40, 'q'));
  return b;
}

TEST(Gguf, TensorsAndMetadataAreFoundWhereTheyWereWritten) {
  const std::string bytes = TwoTensors().Build();
  const auto file = Parse(bytes);
  ASSERT_TRUE(file.ok()) << file.status().ToString();
  EXPECT_EQ(file->version(), 3u);
  EXPECT_EQ(file->alignment(), 32u);
  const TensorInfo* a = file->Find("a");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->shape, (std::vector<uint64_t>{2, 3})) << "outermost first";
  float last = 0;
  std::memcpy(&last, bytes.data() + a->offset + 20, 4);
  EXPECT_EQ(last, 6.0f);
  const TensorInfo* q = file->Find("q");
  ASSERT_NE(q, nullptr);
  EXPECT_EQ(q->dtype, DType::kQ4_1);
  EXPECT_EQ(q->bytes, 40u);
  EXPECT_EQ(bytes.substr(q->offset, 40), std::string(40, 'q'));
  EXPECT_EQ(file->Find("b"), nullptr);
  GgufBuilder v2 = TwoTensors();
  v2.version = 2;
  EXPECT_TRUE(Parse(v2.Build()).ok());
}

TEST(Gguf, MetadataIsTyped) {
  GgufBuilder b;
  b.U32("u", 7).I32("i", -3).I32("p", 3).F32("f", 0.5f).Bool("b", 1).String("s", "text");
  b.Raw("u64", 10, std::string(8, '\xff'));
  b.Strings("list", {"x", "", "yz"});
  b.Array<int32_t>("ints", 5, {1, -2})
      .Array<float>("floats", 6, {1.5f})
      .Array<int32_t>("none", 5, {});
  b.Array<uint8_t>("bytes", 0, {1, 2});
  const auto file = Parse(b.Build());
  ASSERT_TRUE(file.ok()) << file.status().ToString();
  EXPECT_EQ(**file->Uint("u"), 7u);
  EXPECT_EQ(**file->Uint("p"), 3u);
  EXPECT_EQ(**file->Float("f"), 0.5);
  EXPECT_EQ(**file->Bool("b"), true);
  EXPECT_EQ(**file->String("s"), "text");
  EXPECT_EQ(**file->Strings("list"), (std::vector<std::string>{"x", "", "yz"}));
  EXPECT_EQ(**file->Ints("ints"), (std::vector<int32_t>{1, -2}));
  EXPECT_EQ(**file->Floats("floats"), std::vector<float>{1.5f});
  EXPECT_TRUE((*file->Ints("none"))->empty());
  EXPECT_EQ(*file->Uint("absent"), std::nullopt);
  EXPECT_EQ(*file->Strings("absent"), nullptr);
  EXPECT_FAILS(file->Uint("i"), StatusCode::kInvalidArgument, "metadata key i");
  EXPECT_FAILS(file->Uint("u64"), StatusCode::kInvalidArgument, "[0, 2^32)");
  EXPECT_FAILS(file->Uint("f"), StatusCode::kInvalidArgument, "metadata key f");
  EXPECT_FAILS(file->String("u"), StatusCode::kInvalidArgument, "a string");
  EXPECT_FAILS(file->Ints("bytes"), StatusCode::kInvalidArgument, "32-bit integers");
  EXPECT_FAILS(file->Floats("ints"), StatusCode::kInvalidArgument, "32-bit floats");
  EXPECT_FAILS(file->Strings("ints"), StatusCode::kInvalidArgument, "array of strings");
  EXPECT_FAILS(file->Bool("u"), StatusCode::kInvalidArgument, "boolean");
}

TEST(Gguf, EveryTruncationIsAnError) {
  const std::string bytes = TwoTensors().Build();
  for (size_t n = 0; n < bytes.size(); ++n) {
    EXPECT_FALSE(Parse(bytes.substr(0, n)).ok()) << n << " of " << bytes.size();
  }
}

TEST(Gguf, OtherMagicsAndVersionsAreRefused) {
  EXPECT_FAILS(Parse(std::string(64, 'x')), StatusCode::kDataLoss, "not a GGUF file");
  for (const uint32_t version : {0u, 1u, 4u}) {
    GgufBuilder b = TwoTensors();
    b.version = version;
    EXPECT_FAILS(Parse(b.Build()), StatusCode::kUnsupported, "accepted: 2, 3");
  }
  GgufBuilder big = TwoTensors();
  big.version = 0x03000000;
  EXPECT_FAILS(Parse(big.Build()), StatusCode::kUnsupported, "big-endian");
}

TEST(Gguf, CountsAreComparedWithTheBytesLeftBeforeAllocating) {
  for (const uint64_t extra : {uint64_t{1000}, uint64_t{1} << 40, ~uint64_t{0} - 10}) {
    GgufBuilder tensors = TwoTensors();
    tensors.extra_tensor_count = extra;
    EXPECT_FAILS(Parse(tensors.Build()), StatusCode::kDataLoss, "tensors, more than the bytes");
    GgufBuilder values = TwoTensors();
    values.extra_value_count = extra;
    EXPECT_FAILS(Parse(values.Build()), StatusCode::kDataLoss, "metadata values, more than");
  }
  for (const uint32_t element_type : {0u, 5u, 8u, 10u, 12u}) {
    std::string array;
    AppendValue(array, element_type);
    AppendValue<uint64_t>(array, uint64_t{1} << 61);
    EXPECT_FAILS(Parse(GgufBuilder().Raw("k", 9, array).Build()), StatusCode::kDataLoss,
                 "more than the bytes that are left");
  }
  std::string text;
  AppendValue<uint64_t>(text, ~uint64_t{0});
  EXPECT_FAILS(Parse(GgufBuilder().Raw("k", 8, text).Build()), StatusCode::kDataLoss,
               "a string claims");
}

TEST(Gguf, MalformedMetadataIsRefused) {
  EXPECT_FAILS(Parse(GgufBuilder().U32("k", 1).U32("k", 2).Build()), StatusCode::kDataLoss,
               "duplicate metadata key k");
  EXPECT_FAILS(Parse(GgufBuilder().U32("", 1).Build()), StatusCode::kDataLoss, "empty");
  EXPECT_FAILS(Parse(GgufBuilder().Raw("k", 13, "12345678").Build()), StatusCode::kDataLoss,
               "unknown value type 13");
  EXPECT_FAILS(Parse(GgufBuilder().Bool("k", 2).Build()), StatusCode::kDataLoss, "boolean");
  EXPECT_FAILS(Parse(GgufBuilder().Array<uint8_t>("k", 13, {1}).Build()), StatusCode::kDataLoss,
               "unknown element type");
  EXPECT_FAILS(Parse(GgufBuilder().Array<uint8_t>("k", 9, {1}).Build()), StatusCode::kUnsupported,
               "array of arrays");
  EXPECT_FAILS(Parse(GgufBuilder().U32(std::string(70'000, 'k'), 1).Build()), StatusCode::kDataLoss,
               "a metadata key claims");
}

TEST(Gguf, AlignmentIsAPowerOfTwoFrom8To65536) {
  for (const uint32_t bad : {0u, 1u, 4u, 24u, 131072u, 1u << 31}) {
    EXPECT_FAILS(Parse(GgufBuilder().U32("general.alignment", bad).Build()), StatusCode::kDataLoss,
                 "general.alignment");
  }
  for (const uint32_t good : {8u, 64u, 65536u}) {
    GgufBuilder b;
    b.alignment = good;
    b.U32("general.alignment", good);
    b.Tensor("a", {1}, 0, FloatBytes({1})).Tensor("b", {1}, 0, FloatBytes({2}));
    const std::string bytes = b.Build();
    const auto file = Parse(bytes);
    ASSERT_TRUE(file.ok()) << file.status().ToString();
    float value = 0;
    std::memcpy(&value, bytes.data() + file->Find("b")->offset, 4);
    EXPECT_EQ(value, 2.0f);
  }
  EXPECT_FAILS(Parse(GgufBuilder().String("general.alignment", "32").Build()),
               StatusCode::kInvalidArgument, "general.alignment");
}

TEST(Gguf, ImpossibleTensorsAreRefused) {
  const std::string data(256, '\0');
  const auto tensor = [&](const std::string& name, const std::vector<uint64_t>& shape,
                          uint32_t type) {
    return Parse(GgufBuilder().Tensor(name, shape, type, data).Build());
  };
  EXPECT_TRUE(tensor("t", {2, 32}, 0).ok());
  EXPECT_FAILS(tensor("", {1}, 0), StatusCode::kDataLoss, "name is empty");
  EXPECT_FAILS(tensor(std::string(65, 't'), {1}, 0), StatusCode::kDataLoss, "name claims 65");
  EXPECT_FAILS(tensor("t", {}, 0), StatusCode::kDataLoss, "0 dimensions");
  EXPECT_FAILS(tensor("t", {1, 1, 1, 1, 1}, 0), StatusCode::kDataLoss, "5 dimensions");
  EXPECT_FAILS(tensor("t", {0, 4}, 0), StatusCode::kDataLoss, "dimension of 0");
  EXPECT_FAILS(tensor("t", {~uint64_t{0}}, 0), StatusCode::kDataLoss, "dimension of");
  EXPECT_FAILS(tensor("t", {1ull << 48, 1ull << 48}, 0), StatusCode::kDataLoss, "too large");
  EXPECT_FAILS(tensor("t", {1ull << 32, 1ull << 32, 1ull << 32, 1ull << 32}, 0),
               StatusCode::kDataLoss, "too large");
  EXPECT_FAILS(tensor("t", {1ull << 40}, 0), StatusCode::kDataLoss, "past the end");
  EXPECT_FAILS(tensor("t", {2, 33}, 8), StatusCode::kDataLoss, "not whole Q8_0 blocks");
  EXPECT_FAILS(tensor("blk.0.attn_q.weight", {1, 256}, 12), StatusCode::kUnsupported,
               "tensor blk.0.attn_q.weight has type Q4_K (accepted: F32, F16, BF16, Q8_0, Q4_0, "
               "Q4_1)");
  EXPECT_FAILS(tensor("t", {1}, 4'000'000'000u), StatusCode::kUnsupported, "number 4000000000");
  EXPECT_FAILS(Parse(GgufBuilder().Tensor("t", {1}, 0, data).Tensor("t", {1}, 0, data).Build()),
               StatusCode::kDataLoss, "duplicate tensor t");
}

TEST(Gguf, OffsetsAreAlignedInsideTheFileAndDisjoint) {
  const auto at = [](uint64_t first, uint64_t second) {
    GgufBuilder b;
    b.RawTensor("a", {32}, 0, first).RawTensor("b", {32}, 0, second);
    return Parse(b.Build() + std::string(256, '\0'));
  };
  EXPECT_TRUE(at(0, 128).ok());
  EXPECT_TRUE(at(128, 0).ok());
  EXPECT_FAILS(at(0, 96), StatusCode::kDataLoss, "overlap");
  EXPECT_FAILS(at(0, 0), StatusCode::kDataLoss, "overlap");
  EXPECT_FAILS(at(0, 129), StatusCode::kDataLoss, "multiple of the alignment");
  EXPECT_FAILS(at(0, 160), StatusCode::kDataLoss, "tensor b ends past the end");
  EXPECT_FAILS(at(~uint64_t{0} - 31, 0), StatusCode::kDataLoss, "past the end");
}

TEST(Gguf, ControlCharactersOfNamesDoNotReachMessages) {
  const auto file = Parse(GgufBuilder().Tensor("t\n\x1b[31m", {1}, 0, "").Build());
  EXPECT_FAILS(file, StatusCode::kDataLoss, "tensor t??[31m");
}

}  // namespace
}  // namespace weir
