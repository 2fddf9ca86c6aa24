// What a weir process writes into its trace file, read back.
#include "vmm/trace_file.h"

#include <cstdio>

#include <gtest/gtest.h>

#include "tools/trace/reader.h"

namespace weir::trace_tool {
namespace {

// After a stall all rings are full, and together they hold more than a reader takes for a block.
TEST(TraceFile, AnyNumberOfRecordsAtOnceCanBeReadBack) {
  const std::string path = ::testing::TempDir() + "/weir_trace_file_test";
  std::vector<TraceRecord> records(kMostTraceBlockRecords * 2 + 1);
  for (size_t i = 0; i < records.size(); ++i) {
    records[i].time_ns = i;
    records[i].type = static_cast<uint16_t>(TraceType::kPressure);
    records[i].args[1] = i;
  }
  auto file = TraceFileWriter::Create(path, 0, ~uint64_t{0}, "{}").value();
  ASSERT_TRUE(file->Append(records, 3).ok());
  ASSERT_TRUE(file->Append({}, 2).ok());
  ASSERT_TRUE(file->Close("{}").ok());

  TraceReader reader(OpenFile(path));
  EXPECT_EQ(reader.losses().skipped_bytes, 0U);
  EXPECT_EQ(reader.losses().ring_lost, 5U);
  ASSERT_EQ(reader.records(), records.size());
  uint64_t next = 0;
  reader.ForEach([&](const TraceEvent& e) { EXPECT_EQ(e.record.args[1], next++); });
  EXPECT_EQ(next, records.size());
  std::remove(path.c_str());
}

}  // namespace
}  // namespace weir::trace_tool
