#include "engine/model/byte_source.h"

#include "tests/engine/model/model_file_builder.h"

namespace weir {
namespace {

TEST(ByteSource, CursorReadsAcrossItsBufferAndStopsAtTheLimit) {
  std::string bytes(700'000, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 31 % 251);
  const SpanSource source = AsSource(bytes);
  ByteCursor cursor(source, 600'000);
  std::string back(599'999, '\0');
  ASSERT_TRUE(cursor.Read(std::as_writable_bytes(std::span<char>(back.data(), 3))).ok());
  ASSERT_TRUE(
      cursor.Read(std::as_writable_bytes(std::span<char>(back.data() + 3, back.size() - 3))).ok());
  EXPECT_EQ(back, bytes.substr(0, back.size()));
  EXPECT_EQ(cursor.remaining(), 1u);
  EXPECT_FAILS(cursor.Value<uint16_t>(), StatusCode::kDataLoss, "truncated");
}

TEST(ByteSource, SpanBehindALargerSizeSaysTruncated) {
  const std::string bytes = "abcd";
  const SpanSource source(std::as_bytes(std::span<const char>(bytes.data(), 4)), 1000);
  EXPECT_EQ(source.size(), 1000u);
  std::byte out[8];
  EXPECT_FAILS(source.ReadAt(0, out), StatusCode::kDataLoss, "truncated");
  EXPECT_FAILS(source.ReadAt(~uint64_t{0}, out), StatusCode::kDataLoss, "truncated");
}

TEST(ByteSource, FileOpenRefusesWhatIsNotARegularFile) {
  const TempDir dir;
  EXPECT_FAILS(FileSource::Open(dir.path()), StatusCode::kInvalidArgument, "not a regular file");
  EXPECT_FAILS(FileSource::Open(dir.path() + "/none"), StatusCode::kNotFound, "none");
  EXPECT_FAILS(FileSource::Open("/dev/null"), StatusCode::kInvalidArgument, "not a regular file");
}

TEST(ByteSource, FileThatShrinksAfterOpenIsDataLoss) {
  const TempDir dir;
  const std::string path = dir.Write("f", std::string(100, 'x'));
  const auto file = FileSource::Open(path);
  ASSERT_TRUE(file.ok());
  std::filesystem::resize_file(path, 50);
  std::byte out[10];
  EXPECT_TRUE((*file)->ReadAt(40, out).ok());
  EXPECT_FAILS((*file)->ReadAt(45, out), StatusCode::kDataLoss, "truncated");
}

TEST(ByteSource, TextFileAboveItsCapIsRefusedBeforeItIsRead) {
  const TempDir dir;
  const std::string path = dir.Write("t", "hello");
  EXPECT_EQ(*ReadTextFile(path, 5), "hello");
  EXPECT_FAILS(ReadTextFile(path, 4), StatusCode::kInvalidArgument, "at most 4");
}

}  // namespace
}  // namespace weir
