#include "engine/text/jinja_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "engine/text/unicode_tables.h"
#include "engine/text/utf8.h"

namespace weir::jinja {
namespace {

bool IsPrintable(char32_t c) {
  const auto* end = kUnprintableRanges + kUnprintableRangeCount;
  const auto* it = std::lower_bound(kUnprintableRanges, end, c,
                                    [](const CodePointRange& r, char32_t v) { return r.last < v; });
  return c < 0x7F ? c >= 0x20 : it == end || it->first > c;
}

std::string ReprString(const std::string& text) {
  const char quote =
      text.find('\'') != std::string::npos && text.find('"') == std::string::npos ? '"' : '\'';
  std::string out(1, quote);
  for (size_t pos = 0; pos < text.size();) {
    const size_t start = pos;
    const char32_t c = NextCodePoint(text, &pos);
    char escape[12];
    if (c == static_cast<unsigned char>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (IsPrintable(c)) {
      out += text.substr(start, pos - start);
    } else {
      const char* format = c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x";
      std::snprintf(escape, sizeof(escape), format, static_cast<unsigned>(c));
      out += escape;
    }
  }
  return out + quote;
}

std::string ReprList(const List& list) {
  std::string out = list.kind == ListKind::kTuple ? "(" : "[";
  if (list.kind == ListKind::kGenerator) return "<generator>";
  if (list.kind == ListKind::kView) out = "dict_view([";
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (i > 0) out += ", ";
    out += Repr(list.items[i]);
  }
  if (list.kind == ListKind::kTuple && list.items.size() == 1) out += ",";
  if (list.kind == ListKind::kView) return out + "])";
  return out + (list.kind == ListKind::kTuple ? ")" : "]");
}

void AppendJsonString(const std::string& text, bool ensure_ascii, std::string* out) {
  *out += '"';
  for (size_t pos = 0; pos < text.size();) {
    const size_t start = pos;
    const char32_t c = NextCodePoint(text, &pos);
    char escape[16];
    switch (c) {
      case '"': *out += "\\\""; continue;
      case '\\': *out += "\\\\"; continue;
      case '\n': *out += "\\n"; continue;
      case '\r': *out += "\\r"; continue;
      case '\t': *out += "\\t"; continue;
      case '\b': *out += "\\b"; continue;
      case '\f': *out += "\\f"; continue;
      default: break;
    }
    if (c < 0x20 || (ensure_ascii && c > 0x7E && c < 0x10000)) {
      std::snprintf(escape, sizeof(escape), "\\u%04x", static_cast<unsigned>(c));
      *out += escape;
    } else if (ensure_ascii && c >= 0x10000) {
      std::snprintf(escape, sizeof(escape), "\\u%04x\\u%04x",
                    static_cast<unsigned>(0xD800 + ((c - 0x10000) >> 10)),
                    static_cast<unsigned>(0xDC00 + ((c - 0x10000) & 0x3FF)));
      *out += escape;
    } else {
      out->append(text, start, pos - start);
    }
  }
  *out += '"';
}

std::string JsonKey(const Value& key) {
  if (key.is_string()) return key.string();
  if (key.is_bool()) return key.boolean() ? "true" : "false";
  if (key.is_none()) return "null";
  if (key.is_int() || key.is_float()) return ToText(key);
  Fail(std::string("a key of type ") + key.TypeName() + " cannot be written as JSON");
}

void AppendNewline(const JsonStyle& style, size_t level, std::string* out) {
  if (style.indent < 0) return;
  *out += '\n';
  out->append(level * static_cast<size_t>(style.indent), ' ');
}

void AppendJson(const Value& value, const JsonStyle& style, size_t level, std::string* out) {
  if (value.is_string()) {
    AppendJsonString(value.string(), style.ensure_ascii, out);
  } else if (value.is_none()) {
    *out += "null";
  } else if (value.is_bool()) {
    *out += value.boolean() ? "true" : "false";
  } else if (value.is_int()) {
    *out += std::to_string(value.integer());
  } else if (value.is_float()) {
    const double d = value.number();
    *out += std::isnan(d)   ? "NaN"
            : std::isinf(d) ? (d > 0 ? "Infinity" : "-Infinity")
                            : FormatFloat(d);
  } else if (value.is_list() && value.list().kind <= ListKind::kTuple) {
    const auto& items = value.list().items;
    *out += '[';
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) *out += style.item_separator;
      AppendNewline(style, level + 1, out);
      AppendJson(items[i], style, level + 1, out);
    }
    if (!items.empty()) AppendNewline(style, level, out);
    *out += ']';
  } else if (value.is_dict()) {
    std::vector<std::pair<std::string, const Value*>> items;
    for (const auto& [key, item] : value.dict().items) items.emplace_back(JsonKey(key), &item);
    if (style.sort_keys) {
      std::stable_sort(items.begin(), items.end(),
                       [](const auto& a, const auto& b) { return a.first < b.first; });
    }
    *out += '{';
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) *out += style.item_separator;
      AppendNewline(style, level + 1, out);
      AppendJsonString(items[i].first, style.ensure_ascii, out);
      *out += style.key_separator;
      AppendJson(*items[i].second, style, level + 1, out);
    }
    if (!items.empty()) AppendNewline(style, level, out);
    *out += '}';
  } else {
    Fail(std::string("a value of type ") + value.TypeName() + " cannot be written as JSON");
  }
}

// Adds |value| to the depth and weight of a container that holds it.
void Account(const Value& value, uint32_t* depth, uint64_t* weight) {
  *depth = std::max(*depth, value.depth() + 1);
  *weight += value.weight();
  if (*depth > kMaxValueDepth) Fail("values nest deeper than " + std::to_string(kMaxValueDepth));
  if (*weight > kMaxValueWeight) Fail("a value is larger than 64 MiB");
}

}  // namespace

void Fail(std::string message) {
  throw Error{std::move(message), 0};
}

const char* Value::TypeName() const {
  if (is_undefined()) return "undefined";
  if (is_none()) return "none";
  if (is_bool()) return "boolean";
  if (is_int()) return "integer";
  if (is_float()) return "float";
  if (is_string()) return "string";
  if (is_list()) return "list";
  return is_dict() ? "mapping" : "object";
}

uint32_t Value::depth() const {
  if (is_list()) return list().depth;
  return is_dict() ? dict().depth : 0;
}

uint64_t Value::weight() const {
  if (is_string()) return string().size() + 8;
  if (is_list()) return list().weight;
  return is_dict() ? dict().weight : 8;
}

const Value* Dict::Find(const Value& key) const {
  for (const auto& [k, v] : items) {
    if (Equal(k, key)) return &v;
  }
  return nullptr;
}

Value MakeList(std::vector<Value> items, ListKind kind) {
  uint32_t depth = 1;
  uint64_t weight = 8;
  for (const Value& item : items) Account(item, &depth, &weight);
  return Value(std::make_shared<const List>(List{std::move(items), kind, depth, weight}));
}

Value MakeDistinctDict(std::vector<std::pair<Value, Value>> items) {
  uint32_t depth = 1;
  uint64_t weight = 8;
  for (const auto& [key, item] : items) {
    Account(key, &depth, &weight);
    Account(item, &depth, &weight);
  }
  return Value(std::make_shared<const Dict>(Dict{std::move(items), depth, weight}));
}

Value MakeDict(std::vector<std::pair<Value, Value>> items) {
  std::vector<std::pair<Value, Value>> distinct;
  for (auto& item : items) {
    const auto same = std::find_if(distinct.begin(), distinct.end(),
                                   [&](const auto& d) { return Equal(d.first, item.first); });
    if (same == distinct.end()) {
      distinct.push_back(std::move(item));
    } else {
      same->second = std::move(item.second);
    }
  }
  return MakeDistinctDict(std::move(distinct));
}

const Value* Arguments::Find(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [n, value] : named) {
    if (n == name) return &value;
  }
  return nullptr;
}

bool Truthy(const Value& value) {
  if (value.is_undefined() || value.is_none()) return false;
  if (value.is_bool()) return value.boolean();
  if (value.is_int()) return value.integer() != 0;
  if (value.is_float()) return value.number() != 0;
  if (value.is_string()) return !value.string().empty();
  if (value.is_list())
    return value.list().kind == ListKind::kGenerator || !value.list().items.empty();
  return value.is_dict() ? !value.dict().items.empty() : true;
}

bool Equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    return a.is_float() || b.is_float() ? a.number() == b.number() : a.integer() == b.integer();
  }
  if (a.is_string() && b.is_string()) return a.string() == b.string();
  if (a.is_list() && b.is_list()) {
    const bool tuple = a.list().kind == ListKind::kTuple;
    if (tuple != (b.list().kind == ListKind::kTuple)) return false;
    return std::equal(a.list().items.begin(), a.list().items.end(), b.list().items.begin(),
                      b.list().items.end(), Equal);
  }
  if (a.is_dict() && b.is_dict()) {
    if (a.dict().items.size() != b.dict().items.size()) return false;
    return std::all_of(a.dict().items.begin(), a.dict().items.end(), [&](const auto& item) {
      const Value* other = b.dict().Find(item.first);
      return other != nullptr && Equal(item.second, *other);
    });
  }
  if (a.is_object() && b.is_object()) return a.object() == b.object();
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

bool Less(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    return a.is_float() || b.is_float() ? a.number() < b.number() : a.integer() < b.integer();
  }
  if (a.is_string() && b.is_string()) return a.string() < b.string();  // UTF-8 keeps the order
  if (a.is_list() && b.is_list()) {
    const auto& x = a.list().items;
    const auto& y = b.list().items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!Equal(x[i], y[i])) return Less(x[i], y[i]);
    }
    return x.size() < y.size();
  }
  Fail(std::string("'<' is not supported between ") + a.TypeName() + " and " + b.TypeName());
}

std::string FormatFloat(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  const auto result =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  const std::string_view text(buffer, static_cast<size_t>(result.ptr - buffer));
  const size_t e = text.find('e');
  int exponent = 0;
  std::from_chars(text.data() + e + (text[e + 1] == '+' ? 2 : 1), text.data() + text.size(),
                  exponent);
  if (exponent < -4 || exponent >= 16) return std::string(text);  // 1e-05, 1.5e+20
  std::string digits(text.substr(0, e));
  std::string sign;
  if (digits[0] == '-') {
    sign = "-";
    digits.erase(0, 1);
  }
  digits.erase(std::remove(digits.begin(), digits.end(), '.'), digits.end());
  if (exponent < 0) {
    return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  }
  const auto whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string ToText(const Value& value) {
  if (value.is_string()) return value.string();
  if (value.is_undefined()) return {};
  return Repr(value);
}

std::string Repr(const Value& value) {
  if (value.is_string()) return ReprString(value.string());
  if (value.is_none()) return "None";
  if (value.is_undefined()) return "Undefined";
  if (value.is_bool()) return value.boolean() ? "True" : "False";
  if (value.is_int()) return std::to_string(value.integer());
  if (value.is_float()) return FormatFloat(value.number());
  if (value.is_list()) return ReprList(value.list());
  if (value.is_object()) return value.object()->Describe();
  std::string out = "{";
  for (const auto& [key, item] : value.dict().items) {
    if (out.size() > 1) out += ", ";
    out += Repr(key) + ": " + Repr(item);
  }
  return out + "}";
}

int64_t Length(const Value& value) {
  if (value.is_undefined()) return 0;
  if (value.is_string()) {
    return std::count_if(value.string().begin(), value.string().end(),
                         [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
  }
  if (value.is_list() && value.list().kind != ListKind::kGenerator) {
    return static_cast<int64_t>(value.list().items.size());
  }
  if (value.is_dict()) return static_cast<int64_t>(value.dict().items.size());
  Fail(std::string("a value of type ") + value.TypeName() + " has no length");
}

std::vector<Value> Iterate(const Value& value) {
  std::vector<Value> items;
  if (value.is_list()) return value.list().items;
  if (value.is_undefined()) return items;
  if (value.is_string()) {
    for (auto& c : SplitCharacters(value.string())) items.emplace_back(std::move(c));
    return items;
  }
  if (!value.is_dict())
    Fail(std::string("a value of type ") + value.TypeName() + " is not iterable");
  for (const auto& [key, item] : value.dict().items) items.push_back(key);
  return items;
}

std::string ToJson(const Value& value, const JsonStyle& style) {
  std::string out;
  AppendJson(value, style, 0, &out);
  return out;
}

}  // namespace weir::jinja
