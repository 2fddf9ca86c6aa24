#include "engine/model/tensor_file.h"
#include "tests/engine/model/model_file_builder.h"

namespace weir {
namespace {

Result<SafetensorsFile> Parse(const std::string& bytes) {
  return SafetensorsFile::Parse(AsSource(bytes));
}
// A header over |data_bytes| bytes of data.
Result<SafetensorsFile> ParseHeader(const std::string& header, size_t data_bytes) {
  return Parse(SafetensorsBytes(header, std::string(data_bytes, '\0')));
}

TEST(Safetensors, TensorsAreFoundWhereTheyWereWritten) {
  const std::string bytes = SafetensorsBuilder()
                                .Add("b", "F32", {2, 3}, FloatBytes({1, 2, 3, 4, 5, 6}))
                                .Add("a", "BF16", {4}, std::string(8, 'x'))
                                .Add("scalar", "F16", {}, "ab")
                                .Build();
  const auto file = Parse(bytes);
  ASSERT_TRUE(file.ok()) << file.status().ToString();
  ASSERT_EQ(file->tensors().size(), 3u);
  EXPECT_EQ(file->tensors()[0].name, "a");
  const TensorInfo& b = **file->Find("b");
  EXPECT_EQ(b.dtype, DType::kF32);
  EXPECT_EQ(b.shape, (std::vector<uint64_t>{2, 3}));
  EXPECT_EQ(b.bytes, 24u);
  float value = 0;
  std::memcpy(&value, bytes.data() + b.offset + 20, 4);
  EXPECT_EQ(value, 6.0f);
  EXPECT_FAILS(file->Find("c"), StatusCode::kNotFound, "\"c\"");
}

TEST(Safetensors, EmptyFileMetadataAndTrailingSpacesAreLegal) {
  EXPECT_TRUE(ParseHeader("{}", 0).ok());
  EXPECT_TRUE(ParseHeader("{}        ", 0).ok());
  const auto file = ParseHeader(R"({"__metadata__":{"format":"pt"},
      "e":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]}})",
                                0);
  ASSERT_TRUE(file.ok()) << file.status().ToString();
  EXPECT_EQ(file->metadata().at("format"), "pt");
}

TEST(Safetensors, ForeignDTypesAreReportedOnlyWhenAskedFor) {
  const auto file = Parse(SafetensorsBuilder()
                              .Add("ids", "I64", {2}, std::string(16, '\0'))
                              .Add("w", "F32", {1}, std::string(4, '\0'))
                              .Build());
  ASSERT_TRUE(file.ok()) << file.status().ToString();
  EXPECT_TRUE(file->Contains("ids"));
  EXPECT_FAILS(file->Find("ids"), StatusCode::kUnsupported, "I64");
  EXPECT_FAILS(ParseHeader(R"({"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}})", 4),
               StatusCode::kUnsupported, "unknown dtype \"Q9\"");
}

TEST(Safetensors, HeaderLengthIsCheckedBeforeItIsBelieved) {
  for (const uint64_t length :
       {uint64_t{0}, uint64_t{1}, uint64_t{100}, kMaxSafetensorsHeaderBytes + 1, ~uint64_t{0}}) {
    std::string bytes;
    AppendValue(bytes, length);
    bytes += "{}";
    EXPECT_FAILS(Parse(bytes), StatusCode::kDataLoss, "the header claims");
  }
  // A file that would be large enough: the cap still holds.
  std::string bytes;
  AppendValue<uint64_t>(bytes, kMaxSafetensorsHeaderBytes + 1);
  bytes.resize(1u << 20, ' ');
  EXPECT_FAILS(SafetensorsFile::Parse(SpanSource(
                   std::as_bytes(std::span<const char>(bytes.data(), bytes.size())), 1ull << 40)),
               StatusCode::kDataLoss, "2 to 100000000");
  EXPECT_FAILS(Parse("abc"), StatusCode::kDataLoss, "truncated");
}

TEST(Safetensors, HeadersOfAnotherFormAreRefused) {
  const char* const bad[] = {
      " {}",
      "[]",
      R"({"a":1})",
      R"({"a":[]})",
      R"({"a":{}})",
      R"({"a":{"dtype":"F32","shape":[1]}})",
      R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})",
      R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})",
      R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})",
      R"({"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}})",
      R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})",
      R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})",
      R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})",
      R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}})",
      R"({"a":{"dtype":4,"shape":[1],"data_offsets":[0,4]}})",
      R"({"a":{"dtype":{"F32":1},"shape":[1],"data_offsets":[0,4]}})",
      R"({"":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
      R"({"__metadata__":"x"})",
      R"({"__metadata__":{"x":1}})",
      R"({"__metadata__":{"x":{}}})",
      R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}x)",
      R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})"};
  for (const char* header : bad) {
    SCOPED_TRACE(header);
    EXPECT_FAILS(ParseHeader(header, 4), StatusCode::kDataLoss, "");
  }
}

TEST(Safetensors, DuplicateNamesAreRefused) {
  EXPECT_FAILS(ParseHeader(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                               "a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                           8),
               StatusCode::kDataLoss, "duplicate key \"a\"");
}

TEST(Safetensors, ShapeTimesDTypeMustFillTheExtent) {
  for (const char* header : {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})",
                             R"({"a":{"dtype":"F16","shape":[1],"data_offsets":[0,4]}})",
                             R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,4]}})"}) {
    EXPECT_FAILS(ParseHeader(header, 4), StatusCode::kDataLoss, "does not fill");
  }
  // 2^32 * 2^32 wraps to 0, 2^62 * 4 wraps to 0.
  EXPECT_FAILS(
      ParseHeader(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})",
                  0),
      StatusCode::kDataLoss, "impossible shape");
  EXPECT_FAILS(
      ParseHeader(R"({"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0),
      StatusCode::kDataLoss, "impossible shape");
}

TEST(Safetensors, TensorsTileTheDataWithoutHolesOrOverlaps) {
  const auto two = [](int b1, int e1, int b2, int e2, size_t bytes) {
    const auto entry = [](const char* name, int b, int e) {
      return "\"" + std::string(name) + "\":{\"dtype\":\"U8\",\"shape\":[" + std::to_string(e - b) +
             "],\"data_offsets\":[" + std::to_string(b) + "," + std::to_string(e) + "]}";
    };
    return ParseHeader("{" + entry("a", b1, e1) + "," + entry("b", b2, e2) + "}", bytes);
  };
  EXPECT_TRUE(two(0, 4, 4, 8, 8).ok());
  EXPECT_TRUE(two(4, 8, 0, 4, 8).ok());
  EXPECT_FAILS(two(0, 4, 3, 8, 8), StatusCode::kDataLoss, "overlap");
  EXPECT_FAILS(two(0, 4, 0, 4, 4), StatusCode::kDataLoss, "overlap");
  EXPECT_FAILS(two(0, 8, 2, 4, 8), StatusCode::kDataLoss, "overlap");
  EXPECT_FAILS(two(0, 4, 5, 8, 8), StatusCode::kDataLoss, "hole");
  EXPECT_FAILS(two(1, 4, 4, 8, 8), StatusCode::kDataLoss, "hole");
  EXPECT_FAILS(two(0, 4, 4, 8, 9), StatusCode::kDataLoss, "the tensors end at data offset 8");
  EXPECT_FAILS(two(0, 4, 4, 8, 7), StatusCode::kDataLoss, "data section has 7 bytes");
  EXPECT_FAILS(ParseHeader(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[4,3]}})", 4),
               StatusCode::kDataLoss, "data_offsets [4, 3]");
}

TEST(Safetensors, HugeHeaderOfNumbersIsStoppedAtTheFirstOneTooMany) {
  std::string header = R"({"a":{"dtype":"F32","shape":[)";
  for (int i = 0; i < 1'000'000; ++i) header += "0,";
  EXPECT_FAILS(ParseHeader(header + "0]}}", 0), StatusCode::kDataLoss, "more than 8 numbers");
}

TEST(Safetensors, ShardsAreJoinedByTheirIndex) {
  const TempDir dir;
  dir.Write("m-1.safetensors", SafetensorsBuilder().Add("a", "F32", {1}, FloatBytes({1})).Build());
  dir.Write("m-2.safetensors", SafetensorsBuilder()
                                   .Add("b", "F32", {1}, FloatBytes({2}))
                                   .Add("spare", "F32", {1}, FloatBytes({3}))
                                   .Build());
  const auto open = [&](const std::string& index) {
    return SafetensorsFile::Open(dir.Write("model.safetensors.index.json", index));
  };
  const auto file = open(
      R"({"metadata":{"total_size":8,"x":[1,{}]},"weight_map":{"a":"m-1.safetensors",
          "b":"m-2.safetensors"}})");
  ASSERT_TRUE(file.ok()) << file.status().ToString();
  EXPECT_EQ(file->files().size(), 2u);
  EXPECT_EQ((*file->Find("a"))->file_index, 0u);
  EXPECT_EQ((*file->Find("b"))->file_index, 1u);
  EXPECT_FALSE(file->Contains("spare"));

  EXPECT_FAILS(open(R"({"weight_map":{"a":"m-2.safetensors"}})"), StatusCode::kDataLoss,
               "not in its shard m-2.safetensors");
  EXPECT_FAILS(open(R"({"weight_map":{"a":"m-3.safetensors"}})"), StatusCode::kNotFound, "m-3");
  for (const char* shard : {"../m-1.safetensors", "/m-1.safetensors", "sub/m-1.safetensors", "..",
                            "", "model.safetensors.index.json"}) {
    EXPECT_FAILS(open(R"({"weight_map":{"a":")" + std::string(shard) + "\"}}"),
                 StatusCode::kDataLoss, "without directories");
  }
  for (const char* index : {"{}", R"({"weight_map":{}})", R"({"weight_map":[{"a":"b"}]})",
                            R"({"weight_map":{"a":1}})", R"({"weight_map":{"a":{}}})", "[]", "7"}) {
    EXPECT_FAILS(open(index), StatusCode::kDataLoss, "");
  }
}

TEST(Safetensors, OpenNamesTheFileInErrors) {
  const TempDir dir;
  const std::string path = dir.Write("x.safetensors", "nonsense");
  EXPECT_FAILS(SafetensorsFile::Open(path), StatusCode::kDataLoss, path);
}

}  // namespace
}  // namespace weir
