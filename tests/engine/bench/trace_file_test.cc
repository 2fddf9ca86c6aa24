#include "engine/bench/trace_file.h"

#include <gtest/gtest.h>

namespace weir::bench {
namespace {

constexpr const char* kAzure =
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-12-31 23:59:59.6805900,374,44\r\n"
    "2024-01-01 00:00:00.1,396,109\n"
    "2024-03-01 00:00:00+00:00,5,6";  // 2024 has a 29 February; no newline at the end
constexpr const char* kMooncake =
    "{\"timestamp\": 27, \"input_length\": 513, \"output_length\": 7, \"hash_ids\": [0, 9]}\n"
    "{\"timestamp\": 30, \"input_length\": 512, \"output_length\": 1, \"hash_ids\": [0]}\n";

std::string ErrorOf(TraceFormat format, const std::string& text) {
  const auto trace = ParseTrace(format, text, "t", 0);
  EXPECT_FALSE(trace.ok()) << text;
  return trace.ok() ? "" : trace.status().message();
}

TEST(TraceFile, AzureTimesCountFromTheFirstRequest) {
  const auto trace = ParseTrace(TraceFormat::kAzure, kAzure, "t", 0);
  ASSERT_TRUE(trace.ok()) << trace.status().message();
  ASSERT_EQ(trace->size(), 3U);
  EXPECT_EQ((*trace)[0].at_ns, 0U);
  EXPECT_EQ((*trace)[1].at_ns, 419'410'000U);
  EXPECT_EQ((*trace)[2].at_ns, 60ULL * 86'400 * 1'000'000'000 + 319'410'000U);
  EXPECT_EQ((*trace)[1].input_len, 396U);
  EXPECT_EQ((*trace)[1].output_len, 109U);
}

TEST(TraceFile, MooncakeKeepsItsHashIds) {
  const auto trace = ParseTrace(TraceFormat::kMooncake, kMooncake, "t", 0);
  ASSERT_TRUE(trace.ok()) << trace.status().message();
  ASSERT_EQ(trace->size(), 2U);
  EXPECT_EQ((*trace)[0].hash_ids, (std::vector<uint64_t>{0, 9}));
  EXPECT_EQ((*trace)[1].at_ns, 3'000'000U);
  EXPECT_EQ(ParseTrace(TraceFormat::kMooncake, kMooncake, "t", 1)->size(), 1U);
}

TEST(TraceFile, AMistakeNamesItsLine) {
  const std::string header = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
  const std::string good = "2023-11-16 18:15:46,1,1\n";
  for (const char* line :
       {"2023-11-16 18:15:47", "2023-02-29 18:15:47,1,1", "2023-11-16 24:15:47,1,1",
        "2023-11-16 18:15:47.,1,1", "2023-11-16 18:15:47,0,1", "2023-11-16 18:15:47,1,-1",
        "2023-11-16 18:15:47,1,1,1", "2023-11-16 18:15:47,99999999999,1",
        "2023-11-16 18:15:45,1,1"}) {
    EXPECT_EQ(ErrorOf(TraceFormat::kAzure, header + good + line).substr(0, 5), "t:3: ") << line;
  }
  EXPECT_EQ(ErrorOf(TraceFormat::kAzure, good).substr(0, 5), "t:1: ");
  EXPECT_EQ(ErrorOf(TraceFormat::kAzure, header), "t: no requests");
  const std::string first = "{\"timestamp\":5,\"input_length\":1,\"output_length\":1}\n";
  for (const char* line : {"{", "[]", "{\"timestamp\":5}", "{\"timestamp\":-5}",
                           "{\"timestamp\":5,\"input_length\":1,\"output_length\":0}",
                           "{\"timestamp\":4,\"input_length\":1,\"output_length\":1}",
                           "{\"timestamp\":5,\"input_length\":513,\"output_length\":1,"
                           "\"hash_ids\":[1]}",
                           "{\"timestamp\":5,\"input_length\":1,\"output_length\":1,"
                           "\"hash_ids\":[-1]}"}) {
    EXPECT_EQ(ErrorOf(TraceFormat::kMooncake, first + line).substr(0, 5), "t:2: ") << line;
  }
}

TEST(TraceFile, AMissingFileIsNamed) {
  const auto trace = ReadTrace(TraceFormat::kAzure, "/no/such/trace.csv", 0);
  EXPECT_NE(trace.status().message().find("/no/such/trace.csv"), std::string::npos);
}

}  // namespace
}  // namespace weir::bench
