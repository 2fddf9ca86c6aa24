// Appending JSON to a string, for replies that are made once a token.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace weir::server {

// |text| in quotes. |text| must be valid UTF-8; so is what is appended.
void AppendJsonString(std::string_view text, std::string* out);
// The shortest decimal form that reads back as |value|. What JSON cannot say (an infinity, NaN) is
// written as -9999, as other servers do for the log-probability of an impossible token.
void AppendJsonNumber(float value, std::string* out);
void AppendJsonNumber(int64_t value, std::string* out);
inline void AppendJsonNumber(uint64_t value, std::string* out) {
  AppendJsonNumber(static_cast<int64_t>(value), out);
}
inline void AppendJsonNumber(int32_t value, std::string* out) {
  AppendJsonNumber(static_cast<int64_t>(value), out);
}
inline void AppendJsonNumber(uint32_t value, std::string* out) {
  AppendJsonNumber(static_cast<int64_t>(value), out);
}
// [1,2,3]
void AppendJsonArray(std::span<const int32_t> values, std::string* out);

}  // namespace weir::server
