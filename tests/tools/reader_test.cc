#include "tools/trace/reader.h"

#include <cstring>

#include <gtest/gtest.h>

#include "tests/tools/trace_builder.h"
#include "tools/trace/schema.h"

namespace weir::trace_tool {
namespace {

std::unique_ptr<TraceReader> Read(const std::string& file) {
  return std::make_unique<TraceReader>(
      MemorySource(std::as_bytes(std::span(file.data(), file.size()))));
}
std::vector<TraceEvent> Events(TraceReader& reader) {
  std::vector<TraceEvent> events;
  reader.ForEach([&](const TraceEvent& e) { events.push_back(e); });
  return events;
}
std::string WhyNot(const std::string& file) {
  try {
    Read(file);
  } catch (const TraceError& e) {
    return e.what();
  }
  return "";
}

TEST(TraceReader, ReadsWhatWasWritten) {
  TraceBuilder builder;
  builder.Life();
  const std::string file = builder.File(10);
  const auto reader = Read(file);
  EXPECT_EQ(reader->records(), builder.size());
  EXPECT_FALSE(reader->losses().any());
  EXPECT_EQ(reader->meta().GateName(1), "layer 0 mlp");
  EXPECT_EQ(reader->meta().LayerOfSlot(5), 1);
  const auto events = Events(*reader);
  ASSERT_EQ(events.size(), builder.size());
  for (size_t i = 1; i < events.size(); ++i) {
    EXPECT_LE(events[i - 1].record.time_ns, events[i].record.time_ns);
  }
  // Every event says where in the file it lies.
  for (const TraceEvent& e : events) {
    EXPECT_EQ(std::memcmp(file.data() + e.offset, &e.record, sizeof e.record), 0);
  }
}

TEST(TraceReader, PutsThreadsInOrderOfTimeThoughTheFileHasThemOneAfterTheOther) {
  TraceBuilder builder;
  for (uint64_t i = 0; i < 100; ++i) builder.At(10 + 10 * i).Add(TraceType::kPressure, 0, {0, i});
  builder.Thread(1);
  for (uint64_t i = 0; i < 100; ++i) builder.At(15 + 10 * i).Add(TraceType::kPressure, 0, {1, i});
  const std::string file = builder.File(7);
  const auto events = Events(*Read(file));
  ASSERT_EQ(events.size(), 200U);
  for (size_t i = 0; i < events.size(); ++i) EXPECT_EQ(events[i].record.args[0], i % 2) << i;
}

TEST(TraceReader, AThreadKeepsItsOrderThoughItsClockGoesBack) {
  TraceBuilder builder;
  for (const uint64_t t : std::vector<uint64_t>{100, 50, 200})
    builder.At(t).Add(TraceType::kPressure, 0, {0, t});
  const std::string file = builder.File(1);
  const auto events = Events(*Read(file));
  ASSERT_EQ(events.size(), 3U);
  EXPECT_EQ(events[0].record.args[1], 100U);
  EXPECT_EQ(events[1].record.args[1], 50U);
}

TEST(TraceReader, ACopyComesBeforeTheGateThatItOpensAtTheSameNanosecond) {
  TraceBuilder builder;
  builder.Thread(0).At(100).Add(TraceType::kGatePass, 0, {0, 0, 0, 0});
  builder.Thread(1).At(100).Add(TraceType::kCopy, 2, {0, 0, 1, 5, 1, 2});
  const std::string file = builder.File();
  const auto events = Events(*Read(file));
  EXPECT_EQ(events[0].record.type, static_cast<uint16_t>(TraceType::kCopy));
}

TEST(TraceReader, RefusesWhatIsNoTraceAndSaysWhy) {
  TraceBuilder builder;
  const std::string good = builder.Life().File();
  EXPECT_NE(WhyNot("").find("empty"), std::string::npos);
  EXPECT_NE(WhyNot("ELF and so on").find("not a weir trace"), std::string::npos);
  EXPECT_NE(WhyNot(good.substr(0, 40)).find("inside its header"), std::string::npos);
  std::string other = good;
  other[8] = 9;
  EXPECT_NE(WhyNot(other).find("version 9"), std::string::npos);
}

TEST(TraceReader, AFileCutAnywhereIsReadUpToThere) {
  TraceBuilder builder;
  const std::string good = builder.Life().File(16);
  const uint64_t all = Read(good)->records();
  uint64_t before = 0;
  for (size_t size = 64; size <= good.size(); size += 61) {
    const std::string cut = good.substr(0, size);
    const auto reader = Read(cut);
    const auto events = Events(*reader);
    EXPECT_EQ(events.size(), reader->records());
    EXPECT_GE(reader->records(), before);
    before = reader->records();
  }
  EXPECT_LE(before, all);
  const std::string last = good.substr(0, good.size() - 1);
  const auto reader = Read(last);
  EXPECT_EQ(reader->records(), all - 1);
  EXPECT_TRUE(reader->losses().truncated);
}

TEST(TraceReader, ADamagedBlockIsLeftOutAndTheNextOneFound) {
  TraceBuilder builder;
  const std::string good = builder.Life().File(16);
  const uint64_t all = Read(good)->records();
  std::string bad = good;
  const uint64_t at = Events(*Read(good))[20].offset;
  bad[at + 9] = static_cast<char>(bad[at + 9] ^ 1);
  const auto reader = Read(bad);
  EXPECT_EQ(reader->losses().damaged_blocks, 1U);
  EXPECT_EQ(reader->losses().damaged_records, 16U);
  EXPECT_EQ(reader->records(), all - 16);
  EXPECT_EQ(Events(*reader).size(), all - 16);
}

TEST(TraceReader, MetadataOfAnyShapeIsNoReasonToStop) {
  for (const char* meta :
       {"", "[]", "{", "{\"regions\": 3, \"gates\": {\"a\": 1}, \"link\": {\"bytes_per_ns\": -1}}",
        "{\"weights\": {\"layers\": [[{\"offset\": 18446744073709551615, \"bytes\": 9}], 7, []]}}",
        "{\"granule_bytes\": 1e300, \"pools\": [{\"tier\": -4}], \"reasons\": [null, "
        "\"\\u001b[2J\"]}"}) {
    TraceBuilder builder;
    builder.meta = meta;
    const std::string file = builder.Life().File();
    const auto reader = Read(file);
    EXPECT_EQ(reader->records(), builder.size()) << meta;
    EXPECT_EQ(reader->meta().ReasonText(1).find('\x1b'), std::string::npos);
  }
}

TEST(TraceReader, TheGrownMetadataAtTheEndCounts) {
  TraceBuilder builder;
  std::string file = builder.Life().File();
  const std::string tail = R"({"reasons": ["a", "grown"]})";
  TraceFileHeader header;
  std::memcpy(&header, file.data(), sizeof header);
  header.tail_meta_offset = file.size();
  header.tail_meta_bytes = static_cast<uint32_t>(tail.size());
  std::memcpy(file.data(), &header, sizeof header);
  file += tail;
  const auto reader = Read(file);
  EXPECT_EQ(reader->meta().ReasonText(1), "grown");
  EXPECT_EQ(reader->records(), builder.size());
  EXPECT_FALSE(reader->losses().any());
}

TEST(TraceReader, LossesAreCountedWhereTheyAre) {
  TraceBuilder builder;
  builder.Add(TraceType::kDrop, 0, {7, 7}).Add(TraceType::kDrop, 0, {3, 10});
  const std::string file = builder.File();
  EXPECT_EQ(Read(file)->losses().drop_records, 2U);
  EXPECT_EQ(Read(file)->losses().dropped, 10U);
}

TEST(Schema, EveryTypeOfTheFormatHasItsName) {
  for (uint16_t type = 1; type < kTraceTypeLimit; ++type) {
    const std::string_view name = TraceTypeName(static_cast<TraceType>(type));
    EXPECT_EQ(FindType(type) != nullptr, !name.empty()) << type;
    if (!name.empty()) {
      EXPECT_EQ(TypeByName(name), static_cast<TraceType>(type));
    }
  }
}

}  // namespace
}  // namespace weir::trace_tool
