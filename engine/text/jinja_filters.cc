// The filters of chat templates, after jinja2/filters.py.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "engine/text/jinja_eval.h"
#include "engine/text/utf8.h"

namespace weir::jinja {
namespace {

// What a filter gets: its input and arguments, and the evaluator that pays.
struct FilterCall {
  Evaluator& evaluator;
  const std::string& name;
  const Value& input;
  const Arguments& arguments;

  const Value* Find(size_t index, std::string_view argument) const {
    return arguments.Find(index, argument);
  }
  bool Flag(size_t index, std::string_view argument, bool fallback = false) const {
    const Value* value = Find(index, argument);
    return value == nullptr ? fallback : Truthy(*value);
  }
  int64_t Integer(size_t index, std::string_view argument, int64_t fallback) const {
    const Value* value = Find(index, argument);
    if (value == nullptr || value->is_none()) return fallback;
    if (!value->is_int() && !value->is_bool()) {
      Fail("filter '" + name + "': argument '" + std::string(argument) + "' is not an integer");
    }
    return value->integer();
  }
  std::string String(size_t index, std::string_view argument, std::string fallback) const {
    const Value* value = Find(index, argument);
    return value == nullptr ? fallback : ToText(*value);
  }
  Value Text(std::string text) const { return evaluator.Text(std::move(text)); }
};

// environment's make_attrgetter: a dotted path, numbers are indices.
Value GetPath(Evaluator& evaluator, Value value, const Value& path, const Value* fallback) {
  std::vector<std::string> parts;
  if (path.is_string()) {
    parts = SplitOn(path.string(), ".", -1);
  } else {
    return evaluator.GetItem(value, path);
  }
  for (const std::string& part : parts) {
    const bool digits = !part.empty() && part.size() < 18 &&
                        part.find_first_not_of("0123456789") == std::string::npos;
    if (digits) {
      int64_t index = 0;
      std::from_chars(part.data(), part.data() + part.size(), index);
      value = evaluator.GetItem(value, Value(index));
    } else {
      value = evaluator.GetItem(value, Value(part));
    }
    if (value.is_undefined() && fallback != nullptr) value = *fallback;
  }
  return value;
}

Value SortKey(const FilterCall& call, const Value& item, const Value* attribute,
              bool case_sensitive) {
  Value key = attribute == nullptr || attribute->is_none()
                  ? item
                  : GetPath(call.evaluator, item, *attribute, nullptr);
  return key.is_string() && !case_sensitive ? Value(ToLower(key.string())) : key;
}

void SortBy(Evaluator& evaluator, std::vector<std::pair<Value, Value>>* keyed, bool reverse) {
  evaluator.Charge(keyed->size() * 8);
  if (reverse) std::reverse(keyed->begin(), keyed->end());
  // An exception may leave std::sort's range in any order, which nobody looks at then. "Less" must
  // be an order even for NaN, hence the bounded insertion of std::stable_sort (merge sort).
  std::stable_sort(keyed->begin(), keyed->end(),
                   [](const auto& a, const auto& b) { return Less(a.first, b.first); });
  if (reverse) std::reverse(keyed->begin(), keyed->end());
}

Value Sort(const FilterCall& call) {
  const bool case_sensitive = call.Flag(1, "case_sensitive");
  const Value* attribute = call.Find(2, "attribute");
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : Iterate(call.input)) {
    Value key = SortKey(call, item, attribute, case_sensitive);
    keyed.emplace_back(std::move(key), std::move(item));
  }
  SortBy(call.evaluator, &keyed, call.Flag(0, "reverse"));
  std::vector<Value> items;
  for (auto& [key, item] : keyed) items.push_back(std::move(item));
  return MakeList(std::move(items));
}

Value DictSort(const FilterCall& call) {
  if (!call.input.is_dict()) Fail("dictsort takes a mapping");
  const std::string by = call.String(1, "by", "key");
  if (by != "key" && by != "value") Fail("dictsort: 'by' is 'key' or 'value'");
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, item] : call.input.dict().items) {
    keyed.emplace_back(
        SortKey(call, by == "key" ? key : item, nullptr, call.Flag(0, "case_sensitive")),
        MakeList({key, item}, ListKind::kTuple));
  }
  SortBy(call.evaluator, &keyed, call.Flag(2, "reverse"));
  std::vector<Value> items;
  for (auto& [key, item] : keyed) items.push_back(std::move(item));
  return MakeList(std::move(items));
}

Value Unique(const FilterCall& call) {
  const Value* attribute = call.Find(1, "attribute");
  std::vector<Value> keys;
  std::vector<Value> items;
  for (Value& item : Iterate(call.input)) {
    Value key = SortKey(call, item, attribute, call.Flag(0, "case_sensitive"));
    call.evaluator.Charge(keys.size());
    if (std::any_of(keys.begin(), keys.end(), [&](const Value& k) { return Equal(k, key); })) {
      continue;
    }
    keys.push_back(std::move(key));
    items.push_back(std::move(item));
  }
  return MakeList(std::move(items), ListKind::kGenerator);
}

Value Extreme(const FilterCall& call) {
  const bool want_less = call.name == "min";
  const Value* attribute = call.Find(1, "attribute");
  const bool case_sensitive = call.Flag(0, "case_sensitive");
  const std::vector<Value> items = Iterate(call.input);
  if (items.empty()) return Undefined{"an item of an empty sequence"};
  size_t best = 0;
  Value best_key = SortKey(call, items[0], attribute, case_sensitive);
  for (size_t i = 1; i < items.size(); ++i) {
    Value key = SortKey(call, items[i], attribute, case_sensitive);
    if (want_less ? Less(key, best_key) : Less(best_key, key)) {
      best = i;
      best_key = std::move(key);
    }
  }
  return items[best];
}

Arguments Rest(const Arguments& arguments, size_t from) {
  Arguments rest;
  for (size_t i = from; i < arguments.positional.size(); ++i) {
    rest.positional.push_back(arguments.positional[i]);
  }
  rest.named = arguments.named;
  return rest;
}

Value Map(const FilterCall& call) {
  std::vector<Value> items = Iterate(call.input);
  call.evaluator.Charge(items.size());
  if (call.arguments.positional.empty()) {
    const Value* attribute = call.Find(SIZE_MAX, "attribute");
    if (attribute == nullptr) Fail("map needs a filter or an attribute");
    const Value* fallback = call.Find(SIZE_MAX, "default");
    for (Value& item : items) item = GetPath(call.evaluator, item, *attribute, fallback);
  } else {
    const std::string filter = ToText(call.arguments.positional[0]);
    const Arguments rest = Rest(call.arguments, 1);
    for (Value& item : items) item = ApplyFilter(call.evaluator, filter, item, rest);
  }
  return MakeList(std::move(items), ListKind::kGenerator);
}

// select, reject, selectattr, rejectattr.
Value Select(const FilterCall& call) {
  const bool by_attribute = call.name.ends_with("attr");
  const bool keep = call.name.starts_with("select");
  const auto& positional = call.arguments.positional;
  const size_t test_at = by_attribute ? 1 : 0;
  if (by_attribute && positional.empty()) Fail(call.name + " needs an attribute");
  const bool has_test = positional.size() > test_at;
  const std::string test = has_test ? ToText(positional[test_at]) : "";
  const Arguments rest = Rest(call.arguments, test_at + 1);
  std::vector<Value> items;
  for (Value& item : Iterate(call.input)) {
    call.evaluator.Charge(1);
    const Value subject =
        by_attribute ? GetPath(call.evaluator, item, positional[0], nullptr) : item;
    const bool holds = has_test ? ApplyTest(call.evaluator, test, subject, rest) : Truthy(subject);
    if (holds == keep) items.push_back(std::move(item));
  }
  return MakeList(std::move(items), ListKind::kGenerator);
}

Value Join(const FilterCall& call) {
  const std::string separator = call.String(0, "d", "");
  const Value* attribute = call.Find(1, "attribute");
  std::string text;
  bool first = true;
  for (const Value& item : Iterate(call.input)) {
    if (!first) text += separator;
    first = false;
    const Value part =
        attribute == nullptr ? item : GetPath(call.evaluator, item, *attribute, nullptr);
    call.evaluator.Charge(1 + (part.weight() + separator.size()) / 16);
    text += ToText(part);
  }
  return call.Text(std::move(text));
}

Value Indent(const FilterCall& call) {
  const Value* width = call.Find(0, "width");
  const bool first = call.Flag(1, "first");
  const bool blank = call.Flag(2, "blank");
  const int64_t spaces = width != nullptr && width->is_string() ? 0 : call.Integer(0, "width", 4);
  if (spaces > 1024) Fail("indent by more than 1024");
  const std::string margin =
      width != nullptr && width->is_string()
          ? width->string()
          : std::string(static_cast<size_t>(std::max<int64_t>(spaces, 0)), ' ');
  std::string text;
  size_t line_number = 0;
  for (const std::string& line : SplitLines(ToText(call.input) + "\n", false)) {
    call.evaluator.Charge(1 + margin.size() / 16);
    if (line_number > 0) text += "\n";
    if (line_number > 0 ? blank || !line.empty() : first) text += margin;
    text += line;
    ++line_number;
  }
  return call.Text(std::move(text));
}

// jinja2's title: capitalises behind white space and -({[<.
Value Title(const FilterCall& call) {
  std::string text;
  std::string word;
  const auto flush = [&] {
    if (word.empty()) return;
    const size_t head = Utf8Length(word[0]);
    text += ToUpper(std::string_view(word).substr(0, head));
    text += ToLower(std::string_view(word).substr(head));
    word.clear();
  };
  for (const std::string& c : SplitCharacters(ToText(call.input))) {
    size_t pos = 0;
    const char32_t code = NextCodePoint(c, &pos);
    if (IsPythonSpace(code) ||
        (c.size() == 1 && std::string_view("-({[<").find(c[0]) != std::string_view::npos)) {
      flush();
      text += c;
    } else {
      word += c;
    }
  }
  flush();
  return call.Text(std::move(text));
}

std::optional<int64_t> ParseInteger(std::string text, int64_t base) {
  text = Strip(text, nullptr, StripSide::kBoth);
  text.erase(std::remove(text.begin(), text.end(), '_'), text.end());
  if (text.starts_with('+')) text.erase(0, 1);
  if (base == 16 && (text.starts_with("0x") || text.starts_with("0X"))) text.erase(0, 2);
  int64_t value = 0;
  const auto result =
      std::from_chars(text.data(), text.data() + text.size(), value, static_cast<int>(base));
  if (text.empty() || result.ec != std::errc() || result.ptr != text.data() + text.size())
    return std::nullopt;
  return value;
}

std::optional<double> ParseFloat(const std::string& raw) {
  const std::string text = Strip(raw, nullptr, StripSide::kBoth);
  if (text.empty() || text.find_first_not_of("0123456789+-.eE") != std::string::npos)
    return std::nullopt;
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  return end == text.c_str() + text.size() ? std::optional(value) : std::nullopt;
}

std::optional<int64_t> TruncateToInteger(double value) {
  if (!(value > -9.2e18 && value < 9.2e18)) return std::nullopt;
  return static_cast<int64_t>(value);
}

Value ToInteger(const FilterCall& call) {
  const Value* given = call.Find(0, "default");
  const Value fallback = given == nullptr ? Value(int64_t{0}) : *given;
  const int64_t base = call.Integer(1, "base", 10);
  if (base < 2 || base > 36) Fail("int: a base is 2 to 36");
  const Value& input = call.input;
  if (input.is_undefined()) Fail("'" + input.undefined_name() + "' is undefined");
  if (input.is_int() || input.is_bool()) return input.integer();
  std::optional<int64_t> value;
  if (input.is_float()) value = TruncateToInteger(input.number());
  if (input.is_string()) {
    value = ParseInteger(input.string(), base);
    if (!value) {
      if (const auto number = ParseFloat(input.string())) value = TruncateToInteger(*number);
    }
  }
  return value ? Value(*value) : fallback;
}

Value ToFloat(const FilterCall& call) {
  const Value* given = call.Find(0, "default");
  const Value& input = call.input;
  if (input.is_undefined()) Fail("'" + input.undefined_name() + "' is undefined");
  if (input.is_number()) return input.number();
  if (input.is_string()) {
    if (const auto number = ParseFloat(input.string())) return *number;
  }
  return given == nullptr ? Value(0.0) : *given;
}

Value Round(const FilterCall& call) {
  const int64_t precision = call.Integer(0, "precision", 0);
  const std::string method = call.String(1, "method", "common");
  if (!call.input.is_number()) Fail("round takes a number");
  if (precision < 0 || precision > 100) Fail("round: a precision is 0 to 100");
  if (method == "common") {
    if (!call.input.is_float()) return call.input.integer();
    const double value = call.input.number();
    if (!std::isfinite(value)) return value;
    char buffer[512];
    std::snprintf(buffer, sizeof(buffer), "%.*f", static_cast<int>(precision), value);
    return std::strtod(buffer, nullptr);
  }
  if (method != "ceil" && method != "floor") Fail("round: a method is common, ceil or floor");
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double scaled = call.input.number() * scale;
  return (method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale;
}

Value Abs(const FilterCall& call) {
  if (!call.input.is_number()) Fail("abs takes a number");
  if (call.input.is_float()) return std::fabs(call.input.number());
  if (call.input.integer() == INT64_MIN) Fail("integer overflow");
  return call.input.integer() < 0 ? -call.input.integer() : call.input.integer();
}

Value Sum(const FilterCall& call) {
  const Value* attribute = call.Find(0, "attribute");
  double real = 0;
  int64_t whole = 0;
  bool is_float = false;
  for (const Value& item : Iterate(call.input)) {
    const Value part = attribute == nullptr || attribute->is_none()
                           ? item
                           : GetPath(call.evaluator, item, *attribute, nullptr);
    if (!part.is_number()) Fail("sum takes numbers");
    if (part.is_float()) {
      is_float = true;
    } else if (__builtin_add_overflow(whole, part.integer(), &whole)) {
      Fail("integer overflow");
    }
    real += part.number();
  }
  return is_float ? Value(real) : Value(whole);
}

Value Escape(const FilterCall& call) {
  std::string text;
  for (const char c : ToText(call.input)) {
    switch (c) {
      case '&': text += "&amp;"; break;
      case '<': text += "&lt;"; break;
      case '>': text += "&gt;"; break;
      case '\'': text += "&#39;"; break;
      case '"': text += "&#34;"; break;
      default: text += c;
    }
  }
  return call.Text(std::move(text));
}

// Hugging Face replaces jinja2's own tojson: nothing is escaped for HTML.
Value ToJsonFilter(const FilterCall& call) {
  JsonStyle style;
  style.ensure_ascii = call.Flag(0, "ensure_ascii");
  const Value* indent = call.Find(1, "indent");
  if (indent != nullptr && !indent->is_none()) {
    style.indent = static_cast<int>(std::clamp<int64_t>(call.Integer(1, "indent", 0), 0, 64));
    style.item_separator = ",";
  }
  const Value* separators = call.Find(2, "separators");
  if (separators != nullptr && !separators->is_none()) {
    const auto parts = Iterate(*separators);
    if (parts.size() != 2) Fail("tojson: separators are two strings");
    style.item_separator = ToText(parts[0]);
    style.key_separator = ToText(parts[1]);
    if (style.item_separator.size() + style.key_separator.size() > 64)
      Fail("tojson: long separators");
  }
  style.sort_keys = call.Flag(3, "sort_keys");
  call.evaluator.Charge(call.input.weight() / 4);
  return call.Text(ToJson(call.input, style));
}

Value Default(const FilterCall& call) {
  const Value* fallback = call.Find(0, "default_value");
  const bool use = call.input.is_undefined() || (call.Flag(1, "boolean") && !Truthy(call.input));
  if (!use) return call.input;
  return fallback == nullptr ? Value("") : *fallback;
}

Value First(const FilterCall& call) {
  const auto items = Iterate(call.input);
  return items.empty() ? Value(Undefined{"first item of an empty sequence"}) : items.front();
}

Value Last(const FilterCall& call) {
  if (call.input.is_list() && call.input.list().kind == ListKind::kGenerator) {
    Fail("last: a generator cannot be reversed");
  }
  const auto items = Iterate(call.input);
  return items.empty() ? Value(Undefined{"last item of an empty sequence"}) : items.back();
}

Value Reverse(const FilterCall& call) {
  if (call.input.is_string()) {
    std::string text;
    auto characters = SplitCharacters(call.input.string());
    for (auto it = characters.rbegin(); it != characters.rend(); ++it) text += *it;
    return call.Text(std::move(text));
  }
  auto items = Iterate(call.input);
  std::reverse(items.begin(), items.end());
  return MakeList(std::move(items), ListKind::kGenerator);
}

Value Items(const FilterCall& call) {
  std::vector<Value> items;
  if (call.input.is_undefined()) return MakeList({}, ListKind::kGenerator);
  if (!call.input.is_dict()) Fail("items takes a mapping");
  for (const auto& [key, item] : call.input.dict().items) {
    items.push_back(MakeList({key, item}, ListKind::kTuple));
  }
  return MakeList(std::move(items), ListKind::kGenerator);
}

Value Trim(const FilterCall& call) {
  const Value* chars = call.Find(0, "chars");
  const std::string set = chars == nullptr ? "" : ToText(*chars);
  const bool given = chars != nullptr && !chars->is_none();
  return call.Text(Strip(ToText(call.input), given ? &set : nullptr, StripSide::kBoth));
}

Value Replace(const FilterCall& call) {
  const Value* from = call.Find(0, "old");
  const Value* to = call.Find(1, "new");
  if (from == nullptr || to == nullptr) Fail("replace needs what to replace, and by what");
  return call.Text(ReplaceText(call.evaluator, ToText(call.input), ToText(*from), ToText(*to),
                               call.Integer(2, "count", -1)));
}

using Filter = Value (*)(const FilterCall&);
constexpr std::pair<std::string_view, Filter> kFilters[] = {
    {"abs", Abs},
    {"attr",
     [](const FilterCall& c) {
       return c.evaluator.GetAttribute(c.input, c.String(0, "name", ""));
     }},
    {"capitalize", [](const FilterCall& c) { return c.Text(Capitalize(ToText(c.input))); }},
    {"count", [](const FilterCall& c) { return Value(Length(c.input)); }},
    {"d", Default},
    {"default", Default},
    {"dictsort", DictSort},
    {"e", Escape},
    {"escape", Escape},
    {"first", First},
    {"float", ToFloat},
    {"forceescape", Escape},
    {"indent", Indent},
    {"int", ToInteger},
    {"items", Items},
    {"join", Join},
    {"last", Last},
    {"length", [](const FilterCall& c) { return Value(Length(c.input)); }},
    {"list", [](const FilterCall& c) { return MakeList(Iterate(c.input)); }},
    {"lower", [](const FilterCall& c) { return c.Text(ToLower(ToText(c.input))); }},
    {"map", Map},
    {"max", Extreme},
    {"min", Extreme},
    {"reject", Select},
    {"rejectattr", Select},
    {"replace", Replace},
    {"reverse", Reverse},
    {"round", Round},
    {"safe", [](const FilterCall& c) { return c.Text(ToText(c.input)); }},
    {"select", Select},
    {"selectattr", Select},
    {"sort", Sort},
    {"string", [](const FilterCall& c) { return c.Text(ToText(c.input)); }},
    {"sum", Sum},
    {"title", Title},
    {"tojson", ToJsonFilter},
    {"trim", Trim},
    {"unique", Unique},
    {"upper", [](const FilterCall& c) { return c.Text(ToUpper(ToText(c.input))); }},
};

}  // namespace

Value ApplyFilter(Evaluator& evaluator, const std::string& name, const Value& input,
                  const Arguments& arguments) {
  evaluator.Charge(1 + input.weight() / 16);
  for (const auto& [n, filter] : kFilters) {
    if (n == name) return filter({evaluator, name, input, arguments});
  }
  std::string known;
  for (const auto& [n, filter] : kFilters) known += (known.empty() ? "" : ", ") + std::string(n);
  Fail("no filter named '" + name + "'; accepted: " + known);
}

}  // namespace weir::jinja
