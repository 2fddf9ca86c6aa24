// The tests of chat templates (jinja2/tests.py) and the methods of Python's str, dict and list that
// do not change their object.
#include <algorithm>

#include "engine/text/jinja_eval.h"
#include "engine/text/utf8.h"

namespace weir::jinja {
namespace {

bool IsInteger(const Value& v) {
  return v.is_int();
}

bool IsIterable(const Value& v) {
  return v.is_string() || v.is_list() || v.is_dict() || v.is_undefined();
}

bool IsSequence(const Value& v) {
  return v.is_string() || v.is_dict() || v.is_undefined() ||
         (v.is_list() && v.list().kind <= ListKind::kTuple);
}

int64_t IntegerOf(const Value& v, const char* what) {
  if (!v.is_int() && !v.is_bool()) Fail(std::string(what) + " takes an integer");
  return v.integer();
}

const Value& Operand(const Arguments& arguments, const std::string& name) {
  if (arguments.positional.empty()) Fail("test '" + name + "' needs an argument");
  return arguments.positional[0];
}

// Comparing tests: returns -1 if |name| is none.
int CompareTest(const std::string& name, const Value& input, const Arguments& arguments) {
  const auto is = [&](std::string_view a, std::string_view b, std::string_view c) {
    return name == a || name == b || name == c;
  };
  if (is("eq", "equalto", "==")) return Equal(input, Operand(arguments, name));
  if (is("ne", "!=", "!=")) return !Equal(input, Operand(arguments, name));
  if (is("lt", "lessthan", "<")) return Less(input, Operand(arguments, name));
  if (is("gt", "greaterthan", ">")) return Less(Operand(arguments, name), input);
  if (is("le", "<=", "<=")) return !Less(Operand(arguments, name), input);
  if (is("ge", ">=", ">=")) return !Less(input, Operand(arguments, name));
  return -1;
}

std::string PythonTitle(std::string_view text) {
  std::string out;
  bool in_word = false;
  for (const std::string& c : SplitCharacters(text)) {
    size_t pos = 0;
    const bool cased = IsCased(NextCodePoint(c, &pos));
    out += in_word ? ToLower(c) : Capitalize(c);
    in_word = cased;
  }
  return out;
}

Value ToList(std::vector<std::string> parts, Evaluator& evaluator) {
  std::vector<Value> items;
  for (auto& part : parts) items.push_back(evaluator.Text(std::move(part)));
  return MakeList(std::move(items));
}

// The strings of an argument that is one or a tuple of them.
std::vector<std::string> Alternatives(const Value* value, const char* what) {
  std::vector<std::string> result;
  if (value != nullptr && value->is_string()) return {value->string()};
  if (value == nullptr || !value->is_list()) Fail(std::string(what) + " takes a string or a tuple");
  for (const Value& item : value->list().items) result.push_back(ToText(item));
  return result;
}

template <typename Predicate>
bool AllCharacters(const std::string& text, Predicate predicate) {
  size_t pos = 0;
  while (pos < text.size()) {
    if (!predicate(NextCodePoint(text, &pos))) return false;
  }
  return !text.empty();
}

bool IsAsciiDigit(char32_t c) {
  return c >= '0' && c <= '9';
}
bool IsLetter(char32_t c) {
  return IsCased(c) || c >= 0x370;
}

int64_t CharacterIndex(std::string_view text, size_t byte) {
  return byte == std::string_view::npos ? -1 : Length(Value(std::string(text.substr(0, byte))));
}

const std::string& StringArgument(const Arguments& arguments, size_t index, std::string_view name) {
  const Value* value = arguments.Find(index, name);
  if (value == nullptr || !value->is_string()) {
    Fail("argument '" + std::string(name) + "' is a string");
  }
  return value->string();
}

int64_t CountArgument(const Arguments& arguments, size_t index, std::string_view name) {
  const Value* value = arguments.Find(index, name);
  return value == nullptr ? -1 : IntegerOf(*value, "a count");
}

Value CallSplit(Evaluator& evaluator, const std::string& text, const Arguments& arguments,
                bool from_right) {
  const Value* separator = arguments.Find(0, "sep");
  const int64_t count = CountArgument(arguments, 1, "maxsplit");
  if (separator != nullptr && separator->is_string() && separator->string().empty()) {
    Fail("empty separator");
  }
  const bool words = separator == nullptr || separator->is_none();
  if (!words && !separator->is_string()) Fail("split takes a string");
  if (!from_right || count < 0) {
    return ToList(words ? SplitWords(text, count) : SplitOn(text, separator->string(), count),
                  evaluator);
  }
  if (words) Fail("rsplit needs a separator");
  std::vector<std::string> parts;
  std::string_view rest = text;
  for (int64_t i = 0; i < count; ++i) {
    const size_t at = rest.rfind(separator->string());
    if (at == std::string_view::npos) break;
    parts.emplace_back(rest.substr(at + separator->string().size()));
    rest = rest.substr(0, at);
  }
  parts.emplace_back(rest);
  std::reverse(parts.begin(), parts.end());
  return ToList(std::move(parts), evaluator);
}

Value Partition(Evaluator& evaluator, const std::string& text, const std::string& separator,
                bool from_right) {
  if (separator.empty()) Fail("empty separator");
  const size_t at = from_right ? text.rfind(separator) : text.find(separator);
  std::vector<Value> parts;
  if (at == std::string::npos) {
    parts = {evaluator.Text(from_right ? "" : text), Value(""),
             evaluator.Text(from_right ? text : "")};
  } else {
    parts = {evaluator.Text(text.substr(0, at)), Value(separator),
             evaluator.Text(text.substr(at + separator.size()))};
  }
  return MakeList(std::move(parts), ListKind::kTuple);
}

size_t CountOf(std::string_view text, std::string_view what) {
  if (what.empty()) return SplitCharacters(text).size() + 1;
  size_t count = 0;
  for (size_t at = text.find(what); at != std::string_view::npos;
       at = text.find(what, at + what.size())) {
    ++count;
  }
  return count;
}

Value CallStringMethod(Evaluator& evaluator, const std::string& text, const std::string& name,
                       const Arguments& arguments) {
  evaluator.Charge(1 + text.size() / 16);
  if (name == "split" || name == "rsplit") {
    return CallSplit(evaluator, text, arguments, name == "rsplit");
  }
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const Value* chars = arguments.Find(0, "chars");
    if (chars != nullptr && !chars->is_none() && !chars->is_string())
      Fail(name + " takes a string");
    const StripSide side = name == "strip"    ? StripSide::kBoth
                           : name == "lstrip" ? StripSide::kLeft
                                              : StripSide::kRight;
    const bool given = chars != nullptr && chars->is_string();
    return evaluator.Text(Strip(text, given ? &chars->string() : nullptr, side));
  }
  if (name == "startswith" || name == "endswith") {
    for (const auto& part : Alternatives(arguments.Find(0, "prefix"), name.c_str())) {
      if (name == "startswith" ? text.starts_with(part) : text.ends_with(part)) return true;
    }
    return false;
  }
  if (name == "replace") {
    return evaluator.Text(ReplaceText(evaluator, text, StringArgument(arguments, 0, "old"),
                                      StringArgument(arguments, 1, "new"),
                                      CountArgument(arguments, 2, "count")));
  }
  if (name == "upper") return evaluator.Text(ToUpper(text));
  if (name == "lower" || name == "casefold") return evaluator.Text(ToLower(text));
  if (name == "title") return evaluator.Text(PythonTitle(text));
  if (name == "capitalize") return evaluator.Text(Capitalize(text));
  if (name == "splitlines") {
    const Value* keep = arguments.Find(0, "keepends");
    return ToList(SplitLines(text, keep != nullptr && Truthy(*keep)), evaluator);
  }
  if (name == "join") {
    const Value* list = arguments.Find(0, "iterable");
    if (list == nullptr) Fail("join takes a list");
    std::string joined;
    bool first = true;
    for (const Value& item : Iterate(*list)) {
      if (!item.is_string()) Fail("join takes a list of strings");
      evaluator.Charge(1 + (text.size() + item.weight()) / 16);
      if (!first) joined += text;
      first = false;
      joined += item.string();
    }
    return evaluator.Text(std::move(joined));
  }
  if (name == "partition" || name == "rpartition") {
    return Partition(evaluator, text, StringArgument(arguments, 0, "sep"), name == "rpartition");
  }
  if (name == "find" || name == "rfind" || name == "index") {
    const std::string& what = StringArgument(arguments, 0, "sub");
    const size_t at = name == "rfind" ? text.rfind(what) : text.find(what);
    if (name == "index" && at == std::string::npos) Fail("substring not found");
    return CharacterIndex(text, at);
  }
  if (name == "count") {
    return static_cast<int64_t>(CountOf(text, StringArgument(arguments, 0, "sub")));
  }
  if (name == "removeprefix" || name == "removesuffix") {
    const std::string& part = StringArgument(arguments, 0, "prefix");
    const bool prefix = name == "removeprefix";
    if (part.empty() || !(prefix ? text.starts_with(part) : text.ends_with(part)))
      return Value(text);
    return evaluator.Text(prefix ? text.substr(part.size())
                                 : text.substr(0, text.size() - part.size()));
  }
  if (name == "isdigit" || name == "isdecimal" || name == "isnumeric") {
    return AllCharacters(text, IsAsciiDigit);
  }
  if (name == "isalpha") return AllCharacters(text, IsLetter);
  if (name == "isalnum") {
    return AllCharacters(text, [](char32_t c) { return IsLetter(c) || IsAsciiDigit(c); });
  }
  if (name == "isspace") return AllCharacters(text, IsPythonSpace);
  if (name == "isupper") return ToUpper(text) == text && ToLower(text) != text;
  if (name == "islower") return ToLower(text) == text && ToUpper(text) != text;
  Fail("no string method '" + name + "'");
}

constexpr std::string_view kStringMethods[] = {
    "split",    "rsplit",     "strip",   "lstrip",       "rstrip",       "startswith",
    "endswith", "replace",    "upper",   "lower",        "title",        "capitalize",
    "casefold", "splitlines", "join",    "partition",    "rpartition",   "find",
    "rfind",    "index",      "count",   "removeprefix", "removesuffix", "isdigit",
    "isalpha",  "isalnum",    "isspace", "isupper",      "islower",      "isdecimal",
    "isnumeric"};
constexpr std::string_view kDictMethods[] = {"get", "items", "keys", "values", "copy"};
constexpr std::string_view kListMethods[] = {"index", "count", "copy"};

template <size_t N>
bool IsOneOf(const std::string_view (&names)[N], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

Value CallDictMethod(Evaluator& evaluator, const Value& object, const std::string& name,
                     const Arguments& arguments) {
  const Dict& dict = object.dict();
  evaluator.Charge(1 + dict.items.size());
  if (name == "get") {
    if (arguments.positional.empty()) Fail("get needs a key");
    if (const Value* value = dict.Find(arguments.positional[0])) return *value;
    return arguments.positional.size() > 1 ? arguments.positional[1] : Value(None{});
  }
  if (name == "copy") return object;
  std::vector<Value> items;
  for (const auto& [key, value] : dict.items) {
    if (name == "items") {
      items.push_back(MakeList({key, value}, ListKind::kTuple));
    } else {
      items.push_back(name == "keys" ? key : value);
    }
  }
  return MakeList(std::move(items), ListKind::kView);
}

Value CallListMethod(Evaluator& evaluator, const Value& object, const std::string& name,
                     const Arguments& arguments) {
  evaluator.Charge(1 + object.weight() / 16);
  if (name == "copy") return object;
  if (arguments.positional.empty()) Fail(name + " needs an item");
  const auto& items = object.list().items;
  int64_t count = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!Equal(items[i], arguments.positional[0])) continue;
    if (name == "index") return static_cast<int64_t>(i);
    ++count;
  }
  if (name == "index") Fail("the item is not in the list");
  return count;
}

}  // namespace

bool ApplyTest(Evaluator& evaluator, const std::string& name, const Value& v,
               const Arguments& arguments) {
  evaluator.Charge(1);
  if (name == "defined") return !v.is_undefined();
  if (name == "undefined") return v.is_undefined();
  if (name == "none") return v.is_none();
  if (name == "string") return v.is_string();
  if (name == "mapping") return v.is_dict();
  if (name == "iterable") return IsIterable(v);
  if (name == "sequence") return IsSequence(v);
  if (name == "number") return v.is_number();
  if (name == "integer") return IsInteger(v);
  if (name == "float") return v.is_float();
  if (name == "boolean") return v.is_bool();
  if (name == "true") return v.is_bool() && v.boolean();
  if (name == "false") return v.is_bool() && !v.boolean();
  if (name == "callable") return v.is_object() && v.object()->IsCallable();
  if (name == "even" || name == "odd") {
    const int64_t n = IntegerOf(v, "even/odd");
    return (n % 2 == 0) == (name == "even");
  }
  if (name == "divisibleby") {
    const int64_t by = IntegerOf(Operand(arguments, name), "divisibleby");
    if (by == 0) Fail("division by zero");
    return by == -1 || IntegerOf(v, "divisibleby") % by == 0;
  }
  if (name == "in") return Contains(evaluator, Operand(arguments, name), v);
  if (name == "sameas") {
    const Value& other = Operand(arguments, name);
    return std::string_view(v.TypeName()) == other.TypeName() && Equal(v, other);
  }
  if (name == "upper") return ToUpper(ToText(v)) == ToText(v) && ToLower(ToText(v)) != ToText(v);
  if (name == "lower") return ToLower(ToText(v)) == ToText(v) && ToUpper(ToText(v)) != ToText(v);
  const int compared = CompareTest(name, v, arguments);
  if (compared >= 0) return compared != 0;
  Fail("no test named '" + name +
       "'; accepted: defined, undefined, none, string, mapping, iterable, sequence, number, "
       "integer, "
       "float, boolean, true, false, callable, even, odd, divisibleby, in, sameas, upper, lower, "
       "eq, "
       "equalto, ne, lt, lessthan, gt, greaterthan, le, ge");
}

bool IsMethod(const Value& object, std::string_view name) {
  if (object.is_string()) return IsOneOf(kStringMethods, name);
  if (object.is_dict()) return IsOneOf(kDictMethods, name);
  return object.is_list() && object.list().kind <= ListKind::kTuple && IsOneOf(kListMethods, name);
}

Value CallMethod(Evaluator& evaluator, const Value& object, const std::string& name,
                 const Arguments& arguments) {
  if (object.is_string()) return CallStringMethod(evaluator, object.string(), name, arguments);
  if (object.is_dict()) return CallDictMethod(evaluator, object, name, arguments);
  return CallListMethod(evaluator, object, name, arguments);
}

std::vector<std::string> SplitOn(std::string_view text, std::string_view separator, int64_t count) {
  std::vector<std::string> parts;
  while (count != 0) {
    const size_t at = text.find(separator);
    if (at == std::string_view::npos) break;
    parts.emplace_back(text.substr(0, at));
    text.remove_prefix(at + separator.size());
    if (count > 0) --count;
  }
  parts.emplace_back(text);
  return parts;
}

std::vector<std::string> SplitWords(std::string_view text, int64_t count) {
  std::vector<std::string> words;
  size_t pos = 0;
  const auto skip = [&](bool spaces) {
    while (pos < text.size()) {
      size_t next = pos;
      if (IsPythonSpace(NextCodePoint(text, &next)) != spaces) break;
      pos = next;
    }
  };
  for (skip(true); pos < text.size(); skip(true)) {
    if (count >= 0 && static_cast<int64_t>(words.size()) == count) {
      words.emplace_back(Strip(text.substr(pos), nullptr, StripSide::kRight));
      break;
    }
    const size_t start = pos;
    skip(false);
    words.emplace_back(text.substr(start, pos - start));
  }
  return words;
}

std::vector<std::string> SplitLines(std::string_view text, bool keep_ends) {
  std::vector<std::string> lines;
  size_t start = 0;
  for (size_t pos = 0; pos < text.size();) {
    const size_t at = pos;
    const char32_t c = NextCodePoint(text, &pos);
    const bool breaks = (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 ||
                        c == 0x2028 || c == 0x2029;
    if (!breaks) continue;
    if (c == '\r' && pos < text.size() && text[pos] == '\n') ++pos;
    lines.emplace_back(text.substr(start, (keep_ends ? pos : at) - start));
    start = pos;
  }
  if (start < text.size()) lines.emplace_back(text.substr(start));
  return lines;
}

std::string ReplaceText(Evaluator& evaluator, std::string_view text, std::string_view from,
                        std::string_view to, int64_t count) {
  std::string out;
  const auto pay = [&] { evaluator.Charge(1 + to.size() / 16); };
  if (from.empty()) {  // between all characters
    for (size_t pos = 0; pos <= text.size();) {
      if (count != 0) {
        pay();
        out += to;
        if (count > 0) --count;
      }
      if (pos == text.size()) break;
      const size_t length = Utf8Length(text[pos]);
      out += text.substr(pos, length);
      pos += length;
    }
    return out;
  }
  size_t done = 0;
  while (count != 0) {
    const size_t at = text.find(from, done);
    if (at == std::string_view::npos) break;
    pay();
    out += text.substr(done, at - done);
    out += to;
    done = at + from.size();
    if (count > 0) --count;
  }
  out += text.substr(done);
  return out;
}

}  // namespace weir::jinja
