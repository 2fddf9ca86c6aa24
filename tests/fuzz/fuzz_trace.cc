// Any bytes as a trace. The first byte chooses: the rest is a whole file, or it is metadata and
// records that are given a header and checksums, since random bytes never have the right ones.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "tools/trace/check.h"
#include "tools/trace/error.h"
#include "tools/trace/live_view.h"
#include "tools/trace/perfetto.h"
#include "tools/trace/plot.h"
#include "tools/trace/reader.h"
#include "tools/trace/script.h"
#include "tools/trace/summary.h"
#include "tools/trace/top_screen.h"

namespace {

using weir::TraceBlockHeader;
using weir::TraceFileHeader;
using weir::TraceRecord;

template <typename T>
void Append(const T& value, std::vector<std::byte>* out) {
  const auto bytes = std::as_bytes(std::span(&value, 1));
  out->insert(out->end(), bytes.begin(), bytes.end());
}

// |input|: two bytes of metadata length, the metadata, records of 16 bytes: time step, type, cause,
// thread, and small arguments, which reach more of the checker than 64 random bytes would.
std::vector<std::byte> MakeFile(std::span<const uint8_t> input) {
  TraceFileHeader header;
  std::memcpy(header.magic, weir::kTraceFileMagic, sizeof(header.magic));
  header.mask = ~uint64_t{0};
  size_t meta = 0;
  if (input.size() >= 2) {
    meta = std::min<size_t>(input[0] + 256U * input[1], input.size() - 2);
    input = input.subspan(2);
  }
  header.meta_bytes = static_cast<uint32_t>(meta);
  std::vector<std::byte> file;
  Append(header, &file);
  for (const uint8_t byte : input.first(meta)) file.push_back(std::byte{byte});
  file.resize((file.size() + 63) / 64 * 64);
  input = input.subspan(meta);
  std::vector<TraceRecord> records;
  uint64_t now = 0;
  for (; input.size() >= 16; input = input.subspan(16)) {
    TraceRecord r;
    r.time_ns = now += input[0];
    r.type = input[1] % weir::kTraceTypeLimit;
    r.cause = input[2];
    r.thread = input[3] % 4;
    for (size_t i = 0; i < 6; ++i) {
      r.args[i] = input[4 + 2 * i] == 0xff ? ~uint64_t{input[5 + 2 * i]}
                                           : input[4 + 2 * i] + (uint64_t{input[5 + 2 * i]} << 8);
    }
    records.push_back(r);
  }
  TraceBlockHeader block;
  block.records = static_cast<uint32_t>(records.size());
  block.checksum = XXH3_64bits(records.data(), records.size() * sizeof(TraceRecord));
  Append(block, &file);
  for (const TraceRecord& r : records) Append(r, &file);
  return file;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::span<const uint8_t> input(data + 1, size - 1);
  std::vector<std::byte> file;
  if (data[0] % 2 == 0) {
    const auto bytes = std::as_bytes(input);
    file.assign(bytes.begin(), bytes.end());
  } else {
    file = MakeFile(input);
  }
  try {
    weir::trace_tool::TraceReader reader(weir::trace_tool::MemorySource(file));
    weir::trace_tool::InvariantChecker checker(reader.meta(), reader.header().mask);
    weir::trace_tool::Summary summary(reader);
    size_t exported = 0;
    weir::trace_tool::ChromeTraceWriter chrome(
        reader, [&](std::string_view text) { exported += text.size(); });
    weir::trace_tool::LiveView live(reader.meta());
    std::vector<TraceRecord> records;
    reader.ForEach([&](const weir::trace_tool::TraceEvent& event) {
      checker.Add(event);
      summary.Add(event);
      chrome.Add(event);
      records.push_back(event.record);
      (void)weir::trace_tool::EventLine(event, reader);
      (void)weir::trace_tool::EventJson(event, reader);
    });
    checker.Finish(data[0] % 4 == 1);
    (void)summary.Text("cause");
    (void)summary.Json().dump();
    chrome.Finish();
    live.SetNow(records.empty() ? 1 : records.front().time_ns);
    live.Add(&records);
    live.SetNow(live.now_ns() + 1'000'000'000);
    (void)weir::trace_tool::TopScreen(live, {.width = 60, .height = 30});
    const weir::trace_tool::Timeline timeline(reader, {.columns = 20});
    (void)weir::trace_tool::PlotHtml(timeline, reader);
  } catch (const weir::trace_tool::TraceError&) {
    // Refused, with a reason.
  }
  return 0;
}
