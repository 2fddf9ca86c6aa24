#include "engine/bench/trace_file.h"

#include <charconv>
#include <fstream>
#include <optional>
#include <sstream>
#include <utility>

#include "engine/model/json.h"

namespace weir::bench {
namespace {

constexpr uint64_t kMostTokens = 1ULL << 27U;
constexpr uint64_t kMostMs = 1'000ULL * 86'400 * 365 * 100;
constexpr std::string_view kAzureHeader = "TIMESTAMP,ContextTokens,GeneratedTokens";

std::optional<uint64_t> Number(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// Days since 1970-01-01 of the proleptic Gregorian calendar; nothing when there is no such day.
std::optional<uint64_t> Days(uint64_t year, uint64_t month, uint64_t day) {
  if (year < 1970 || year > 2200 || month < 1 || month > 12 || day < 1) return std::nullopt;
  const auto leap = [](uint64_t y) { return (y % 4 == 0 && y % 100 != 0) || y % 400 == 0; };
  constexpr uint64_t kLengths[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
  const auto length = [&](uint64_t m) {
    return kLengths[m - 1] + (m == 2 && leap(year) ? 1U : 0U);
  };
  if (day > length(month)) return std::nullopt;
  uint64_t days = day - 1;
  for (uint64_t y = 1970; y < year; ++y) days += leap(y) ? 366U : 365U;
  for (uint64_t m = 1; m < month; ++m) days += length(m);
  return days;
}

// "2023-11-16 18:15:46.6805900", "2024-05-10 00:00:00.009930+00:00" -> nanoseconds since 1970.
std::optional<TimeNs> Timestamp(std::string_view t) {
  if (t.ends_with("+00:00")) t.remove_suffix(6);
  if (t.size() < 19 || t.size() == 20 || t.size() > 29) return std::nullopt;
  if (t[4] != '-' || t[7] != '-' || (t[10] != ' ' && t[10] != 'T') || t[13] != ':' ||
      t[16] != ':') {
    return std::nullopt;
  }
  const auto year = Number(t.substr(0, 4)), month = Number(t.substr(5, 2));
  const auto day = Number(t.substr(8, 2)), hour = Number(t.substr(11, 2));
  const auto minute = Number(t.substr(14, 2)), second = Number(t.substr(17, 2));
  if (!year || !month || !day || !hour || !minute || !second) return std::nullopt;
  if (*hour > 23 || *minute > 59 || *second > 59) return std::nullopt;
  uint64_t fraction = 0;
  if (t.size() > 19) {
    const auto digits = Number(t.substr(20));
    if (t[19] != '.' || !digits) return std::nullopt;
    fraction = *digits;
    for (size_t i = t.size() - 20; i < 9; ++i) fraction *= 10;
  }
  const auto days = Days(*year, *month, *day);
  if (!days) return std::nullopt;
  return (((*days * 24 + *hour) * 60 + *minute) * 60 + *second) * 1'000'000'000 + fraction;
}

Status TokensStatus(std::string_view name, uint64_t tokens) {
  if (tokens >= 1 && tokens <= kMostTokens) return OkStatus();
  return InvalidArgument(std::string(name) + " is " + std::to_string(tokens) + "; accepted: 1 to " +
                         std::to_string(kMostTokens));
}

// |at_ns| is the file's own clock here; ParseTrace subtracts the first.
Result<TraceRequest> AzureLine(std::string_view line) {
  const size_t first = line.find(',');
  const size_t second = first == std::string_view::npos ? first : line.find(',', first + 1);
  if (second == std::string_view::npos) {
    return InvalidArgument("a line has three columns: " + std::string(kAzureHeader));
  }
  const auto at = Timestamp(line.substr(0, first));
  if (!at) {
    return InvalidArgument(
        "no timestamp in the first column; accepted: 2023-11-16 18:15:46.6805900");
  }
  const auto input = Number(line.substr(first + 1, second - first - 1));
  const auto output = Number(line.substr(second + 1));
  if (!input || !output) {
    return InvalidArgument("ContextTokens and GeneratedTokens must be whole numbers");
  }
  WEIR_TRY(TokensStatus("ContextTokens", *input));
  WEIR_TRY(TokensStatus("GeneratedTokens", *output));
  TraceRequest r;
  r.at_ns = *at;
  r.input_len = static_cast<uint32_t>(*input);
  r.output_len = static_cast<uint32_t>(*output);
  return r;
}

Result<uint64_t> Member(const nlohmann::json& object, const char* key, uint64_t most) {
  const auto it = object.find(key);
  if (it == object.end()) {
    return InvalidArgument(std::string("no \"") + key +
                           "\"; a line has timestamp, input_length, output_length, hash_ids");
  }
  if (!it->is_number_unsigned() || it->get<uint64_t>() > most) {
    return InvalidArgument(std::string("\"") + key + "\" must be a whole number from 0 to " +
                           std::to_string(most));
  }
  return it->get<uint64_t>();
}

Result<TraceRequest> MooncakeLine(std::string_view line) {
  const nlohmann::json json = WEIR_TRY(ParseJson(line));
  if (!json.is_object()) return InvalidArgument("a line is one JSON object");
  TraceRequest r;
  r.at_ns = WEIR_TRY(Member(json, "timestamp", kMostMs)) * 1'000'000;
  const uint64_t input = WEIR_TRY(Member(json, "input_length", kMostTokens));
  const uint64_t output = WEIR_TRY(Member(json, "output_length", kMostTokens));
  WEIR_TRY(TokensStatus("input_length", input));
  WEIR_TRY(TokensStatus("output_length", output));
  r.input_len = static_cast<uint32_t>(input);
  r.output_len = static_cast<uint32_t>(output);
  const auto ids = json.find("hash_ids");
  if (ids == json.end()) return r;
  const uint64_t blocks = (input + kMooncakeBlockTokens - 1) / kMooncakeBlockTokens;
  if (!ids->is_array() || ids->size() != blocks) {
    return InvalidArgument("\"hash_ids\" must be an array of one id for each 512 tokens: " +
                           std::to_string(blocks));
  }
  for (const nlohmann::json& id : *ids) {
    if (!id.is_number_unsigned()) {
      return InvalidArgument("\"hash_ids\" must hold whole numbers from 0");
    }
    r.hash_ids.push_back(id.get<uint64_t>());
  }
  return r;
}

}  // namespace

Result<std::vector<TraceRequest>> ParseTrace(TraceFormat format, std::string_view text,
                                             const std::string& path, uint64_t limit) {
  std::vector<TraceRequest> out;
  TimeNs first = 0;
  TimeNs last = 0;
  size_t number = 0;
  while (!text.empty() && (limit == 0 || out.size() < limit)) {
    ++number;
    const size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    const std::string place = path + ":" + std::to_string(number);
    if (format == TraceFormat::kAzure && number == 1) {
      if (line != kAzureHeader) {
        return InvalidArgument(place + ": the first line must be " + std::string(kAzureHeader));
      }
      continue;
    }
    if (line.empty()) continue;
    Result<TraceRequest> request =
        format == TraceFormat::kAzure ? AzureLine(line) : MooncakeLine(line);
    if (!request.ok()) return InvalidArgument(place + ": " + request.status().message());
    if (out.empty()) first = last = request->at_ns;
    if (request->at_ns < last) {
      return InvalidArgument(place + ": the time is before that of the request above");
    }
    last = request->at_ns;
    request->at_ns -= first;
    out.push_back(std::move(*request));
  }
  if (out.empty()) return InvalidArgument(path + ": no requests");
  return out;
}

Result<std::vector<TraceRequest>> ReadTrace(TraceFormat format, const std::string& path,
                                            uint64_t limit) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  if (!in || !(text << in.rdbuf())) return IoError("cannot read the trace file " + path);
  return ParseTrace(format, std::move(text).str(), path, limit);
}

}  // namespace weir::bench
