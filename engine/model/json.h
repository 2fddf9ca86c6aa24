// Strict JSON: what every JSON file of a model goes through.
//
// Stricter than the parser underneath: duplicate keys, more than 64 levels and invalid UTF-8 are
// errors, and every error names the byte where it was noticed. No exception leaves these functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "vmm/status.h"

namespace weir {

inline constexpr int kMaxJsonDepth = 64;

// Represents a consumer of JSON events, for documents whose shape is fixed and that may be too
// large for a tree. Each handler's default refuses the event; an error stops the parse and gets the
// byte position in front. Duplicate keys and depth are checked before the handler sees the event.
class JsonEvents {
 public:
  virtual ~JsonEvents() = default;
  virtual Status OnNull() { return Unexpected("null"); }
  virtual Status OnBool(bool) { return Unexpected("a boolean"); }
  virtual Status OnUnsigned(uint64_t) { return Unexpected("a number"); }
  virtual Status OnNegative(int64_t) { return Unexpected("a negative number"); }
  virtual Status OnDouble(double) { return Unexpected("a fractional number"); }
  virtual Status OnString(std::string&) { return Unexpected("a string"); }
  virtual Status OnKey(std::string&) { return Unexpected("a key"); }
  virtual Status OnStartObject() { return Unexpected("an object"); }
  virtual Status OnEndObject() { return {}; }
  virtual Status OnStartArray() { return Unexpected("an array"); }
  virtual Status OnEndArray() { return {}; }

 protected:
  static Status Unexpected(std::string_view what) {
    return DataLoss("unexpected " + std::string(what));
  }
};

// Runs |events| over |text|. Errors are kDataLoss: "JSON, byte 17: duplicate key \"a\"".
Status ParseJsonEvents(std::string_view text, JsonEvents& events);

// The tree of |text|. Meant for configuration files: the caller bounds text.size().
Result<nlohmann::json> ParseJson(std::string_view text);

}  // namespace weir
