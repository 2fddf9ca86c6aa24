#include "engine/model/json.h"

#include <exception>
#include <iterator>
#include <unordered_set>
#include <utility>
#include <vector>

namespace weir {

namespace {

// Tells the SAX handler how far the lexer has read; nlohmann reports a position for its own errors
// only, not for ours.
struct CountingIterator {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  const char* at = nullptr;
  size_t* consumed = nullptr;

  reference operator*() const { return *at; }
  CountingIterator& operator++() {
    ++at;
    ++*consumed;
    return *this;
  }
  CountingIterator operator++(int) {
    CountingIterator old = *this;
    ++*this;
    return old;
  }
  bool operator==(const CountingIterator& other) const { return at == other.at; }
};

// Adapts nlohmann's SAX interface to JsonEvents and adds our rules.
class Handler {
 public:
  Handler(JsonEvents& events, const size_t& consumed) : events_(events), consumed_(consumed) {}

  Status TakeStatus() { return std::move(status_); }

  bool null() { return Take(events_.OnNull()); }
  bool boolean(bool v) { return Take(events_.OnBool(v)); }
  bool number_integer(int64_t v) { return Take(events_.OnNegative(v)); }
  bool number_unsigned(uint64_t v) { return Take(events_.OnUnsigned(v)); }
  bool number_float(double v, const std::string&) { return Take(events_.OnDouble(v)); }
  bool string(std::string& v) { return Take(events_.OnString(v)); }
  bool binary(nlohmann::json::binary_t&) { return Take(DataLoss("unexpected binary value")); }
  bool start_object(size_t) {
    if (!Enter()) return false;
    keys_.emplace_back();
    return Take(events_.OnStartObject());
  }
  bool key(std::string& k) {
    if (!keys_.back().insert(k).second) {
      return Take(DataLoss("duplicate key \"" + k.substr(0, 128) + "\""));
    }
    return Take(events_.OnKey(k));
  }
  bool end_object() {
    keys_.pop_back();
    --depth_;
    return Take(events_.OnEndObject());
  }
  bool start_array(size_t) { return Enter() && Take(events_.OnStartArray()); }
  bool end_array() {
    --depth_;
    return Take(events_.OnEndArray());
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception& error) {
    // nlohmann's text starts with "[json.exception...] parse error at line 1, column 2: ".
    std::string what = error.what();
    const size_t colon = what.find(": ");
    if (colon != std::string::npos) what.erase(0, colon + 2);
    status_ = DataLoss("JSON, byte " + std::to_string(position) + ": " + what.substr(0, 512));
    return false;
  }

 private:
  bool Enter() {
    if (++depth_ > kMaxJsonDepth) {
      return Take(DataLoss("more than " + std::to_string(kMaxJsonDepth) + " levels"));
    }
    return true;
  }
  bool Take(Status status) {
    if (status.ok()) return true;
    status_ = status.WithContext("JSON, byte " + std::to_string(consumed_));
    return false;
  }

  JsonEvents& events_;
  const size_t& consumed_;
  Status status_;
  int depth_ = 0;
  std::vector<std::unordered_set<std::string>> keys_;  // one set per open object
};

// Builds the tree. The stack holds pointers into it; they stay valid because a container only grows
// while it is on top of the stack.
class TreeBuilder : public JsonEvents {
 public:
  nlohmann::json Take() { return std::move(root_); }

  Status OnNull() override { return Add(nullptr); }
  Status OnBool(bool v) override { return Add(v); }
  Status OnUnsigned(uint64_t v) override { return Add(v); }
  Status OnNegative(int64_t v) override { return Add(v); }
  Status OnDouble(double v) override { return Add(v); }
  Status OnString(std::string& v) override { return Add(std::move(v)); }
  Status OnKey(std::string& k) override {
    key_ = std::move(k);
    return {};
  }
  Status OnStartObject() override { return Open(nlohmann::json::object()); }
  Status OnStartArray() override { return Open(nlohmann::json::array()); }
  Status OnEndObject() override { return Close(); }
  Status OnEndArray() override { return Close(); }

 private:
  nlohmann::json* Place(nlohmann::json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    nlohmann::json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    return &(parent[key_] = std::move(value));
  }
  Status Add(nlohmann::json value) {
    Place(std::move(value));
    return {};
  }
  Status Open(nlohmann::json value) {
    open_.push_back(Place(std::move(value)));
    return {};
  }
  Status Close() {
    open_.pop_back();
    return {};
  }

  nlohmann::json root_;
  std::vector<nlohmann::json*> open_;
  std::string key_;
};

}  // namespace

Status ParseJsonEvents(std::string_view text, JsonEvents& events) {
  size_t consumed = 0;
  Handler handler(events, consumed);
  try {
    const CountingIterator first{text.data(), &consumed};
    const CountingIterator last{text.data() + text.size(), &consumed};
    if (nlohmann::json::sax_parse(first, last, &handler)) return {};
  } catch (const std::bad_alloc&) {
    return NoMemory("out of memory while parsing JSON");
  } catch (const std::exception& error) {
    return DataLoss("JSON, byte " + std::to_string(consumed) + ": " + error.what());
  }
  Status status = handler.TakeStatus();
  return status.ok() ? DataLoss("JSON: malformed") : status;
}

Result<nlohmann::json> ParseJson(std::string_view text) {
  TreeBuilder builder;
  WEIR_TRY(ParseJsonEvents(text, builder));
  return builder.Take();
}

}  // namespace weir
