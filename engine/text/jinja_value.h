// The values of chat templates: JSON values plus what Jinja adds, with Python's semantics.
//
// Inside this engine an error is the exception jinja::Error; ChatTemplate turns it into a Status.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace weir::jinja {

// Thrown by the lexer, parser and evaluator; never leaves ChatTemplate.
struct Error {
  std::string message;
  size_t line = 0;  // 0: filled in by the innermost node that knows
};
[[noreturn]] void Fail(std::string message);

class Value;
struct List;
struct Dict;
class Object;

struct Undefined {
  std::string name;  // what was looked for, for messages
};
struct None {};

// Represents one value. Strings, lists and dicts are shared and immutable; Objects (namespaces,
// macros, loops, functions) belong to the evaluator, which outlives all values.
class Value {
 public:
  Value() : data_(Undefined{}) {}
  Value(None) : data_(None{}) {}               // NOLINT
  Value(Undefined u) : data_(std::move(u)) {}  // NOLINT
  Value(bool b) : data_(b) {}                  // NOLINT
  Value(int64_t i) : data_(i) {}               // NOLINT
  Value(double d) : data_(d) {}                // NOLINT
  Value(std::string s)                         // NOLINT
      : data_(std::make_shared<const std::string>(std::move(s))) {}
  Value(const char* s) : Value(std::string(s)) {}                      // NOLINT
  Value(Object* object) : data_(object) {}                             // NOLINT
  Value(std::shared_ptr<const List> list) : data_(std::move(list)) {}  // NOLINT
  Value(std::shared_ptr<const Dict> dict) : data_(std::move(dict)) {}  // NOLINT

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_int() const { return std::holds_alternative<int64_t>(data_); }
  bool is_float() const { return std::holds_alternative<double>(data_); }
  bool is_number() const { return is_int() || is_float() || is_bool(); }
  bool is_string() const { return std::holds_alternative<StringPtr>(data_); }
  bool is_list() const { return std::holds_alternative<std::shared_ptr<const List>>(data_); }
  bool is_dict() const { return std::holds_alternative<std::shared_ptr<const Dict>>(data_); }
  bool is_object() const { return std::holds_alternative<Object*>(data_); }

  const std::string& undefined_name() const { return std::get<Undefined>(data_).name; }
  // Of an int or a bool.
  int64_t integer() const {
    return is_bool() ? int64_t{std::get<bool>(data_)} : std::get<int64_t>(data_);
  }
  // Of any number.
  double number() const {
    return is_float() ? std::get<double>(data_) : static_cast<double>(integer());
  }
  bool boolean() const { return std::get<bool>(data_); }
  const std::string& string() const { return *std::get<StringPtr>(data_); }
  const List& list() const { return *std::get<std::shared_ptr<const List>>(data_); }
  const Dict& dict() const { return *std::get<std::shared_ptr<const Dict>>(data_); }
  Object* object() const { return std::get<Object*>(data_); }

  // "string", "list", ... for messages.
  const char* TypeName() const;
  // Nesting of lists and dicts below this value; 0 for everything else.
  uint32_t depth() const;
  // About how many bytes the value is when written out; what working on it costs.
  uint64_t weight() const;

 private:
  using StringPtr = std::shared_ptr<const std::string>;
  std::variant<Undefined, None, bool, int64_t, double, StringPtr, std::shared_ptr<const List>,
               std::shared_ptr<const Dict>, Object*>
      data_;
};

// kGenerator is what filters such as map return in Python: always true, without a length.
enum class ListKind : uint8_t { kList, kTuple, kGenerator, kView };

struct List {
  std::vector<Value> items;
  ListKind kind = ListKind::kList;
  uint32_t depth = 1;
  uint64_t weight = 8;
};
struct Dict {
  std::vector<std::pair<Value, Value>> items;  // insertion order
  uint32_t depth = 1;
  uint64_t weight = 8;

  const Value* Find(const Value& key) const;
};

// These fail if the nesting or the weight would exceed its limit. (A list may hold one list twice,
// so that a few steps could make a value of exponential size.)
inline constexpr uint32_t kMaxValueDepth = 128;
inline constexpr uint64_t kMaxValueWeight = uint64_t{64} << 20;
Value MakeList(std::vector<Value> items, ListKind kind = ListKind::kList);
// Of two items with one key the last wins, at the place of the first.
Value MakeDict(std::vector<std::pair<Value, Value>> items);
// For items that are known to have distinct keys.
Value MakeDistinctDict(std::vector<std::pair<Value, Value>> items);

// Arguments of a call.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // The argument at |index| or called |name|; null if not given.
  const Value* Find(size_t index, std::string_view name) const;
};

class Evaluator;

// Something with behaviour: a namespace, a loop, a macro, a function.
class Object {
 public:
  virtual ~Object() = default;
  virtual std::string Describe() const = 0;
  // Undefined if there is no such attribute.
  virtual Value Attribute(std::string_view) const { return {}; }
  virtual bool IsCallable() const { return false; }
  virtual Value Call(Evaluator&, const Arguments&) { Fail(Describe() + " is not callable"); }
};

bool Truthy(const Value& value);
bool Equal(const Value& a, const Value& b);
// a < b; fails for types that have no order.
bool Less(const Value& a, const Value& b);
// str(value) and repr(value).
std::string ToText(const Value& value);
std::string Repr(const Value& value);
std::string FormatFloat(double value);
// One line of text about the length of |value| (characters, items).
int64_t Length(const Value& value);
// The items of anything iterable: characters, items, keys; none for undefined.
std::vector<Value> Iterate(const Value& value);
std::vector<std::string> SplitCharacters(std::string_view text);

struct JsonStyle {
  int indent = -1;  // -1: one line
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
// json.dumps(value).
std::string ToJson(const Value& value, const JsonStyle& style);

// str.isspace for one character, and str.strip and its halves. |chars| empty: white space.
bool IsPythonSpace(char32_t c);
enum class StripSide : uint8_t { kLeft, kRight, kBoth };
std::string Strip(std::string_view text, const std::string* chars, StripSide side);

std::string ToUpper(std::string_view text);
std::string ToLower(std::string_view text);
// First character to title case, the rest to lower case.
std::string Capitalize(std::string_view text);
bool IsCased(char32_t c);

}  // namespace weir::jinja
