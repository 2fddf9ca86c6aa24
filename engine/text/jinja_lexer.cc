#include "engine/text/jinja_lexer.h"

#include <algorithm>
#include <array>

#include "engine/text/jinja_value.h"
#include "engine/text/utf8.h"

namespace weir::jinja {
namespace {

// \r\n and \r become \n; one newline at the end goes.
std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

bool IsNameStart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}
bool IsDigit(char c) {
  return c >= '0' && c <= '9';
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : text_(NormalizeNewlines(source)) {}

  std::vector<Token> Run() {
    while (pos_ < text_.size()) LexData();
    Add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void FailAt(const std::string& message) const { throw Error{message, line_}; }

  void Add(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }

  bool At(std::string_view what) const {
    return std::string_view(text_).substr(pos_).starts_with(what);
  }

  // Moves to |to|, counting lines.
  void Advance(size_t to) {
    line_ += static_cast<size_t>(std::count(text_.begin() + static_cast<ptrdiff_t>(pos_),
                                            text_.begin() + static_cast<ptrdiff_t>(to), '\n'));
    line_starting_ = to > pos_ ? text_[to - 1] == '\n' : line_starting_;
    pos_ = to;
  }

  void SkipSpace() {
    size_t at = pos_;
    while (at < text_.size()) {
      size_t next = at;
      if (!IsPythonSpace(NextCodePoint(text_, &next))) break;
      at = next;
    }
    Advance(at);
  }

  // Literal text before the tag at |tag|, stripped as |sign| ('-', '+' or 0) and the rules say.
  void AddData(size_t tag, char sign, bool is_output) {
    std::string data = text_.substr(pos_, tag - pos_);
    if (sign == '-') {
      data = Strip(data, nullptr, StripSide::kRight);
    } else if (sign != '+' && !is_output) {
      const size_t newline = data.rfind('\n');
      const size_t start = newline == std::string::npos ? 0 : newline + 1;
      if ((start > 0 || line_starting_) &&
          data.find_first_not_of(" \t", start) == std::string::npos) {
        data.resize(start);
      }
    }
    if (!data.empty()) Add(TokenKind::kData, std::move(data));
    Advance(tag);
  }

  // Consumes the end of a comment or block at |pos_| + its sign; |end| is "%}" or "#}".
  void FinishTag(std::string_view end, bool trim_newline) {
    const char sign = text_[pos_];
    const bool signed_end = sign == '-' || sign == '+';
    Advance(pos_ + end.size() + (signed_end ? 1 : 0));
    if (sign == '-') {
      SkipSpace();
    } else if (sign != '+' && trim_newline && pos_ < text_.size() && text_[pos_] == '\n') {
      Advance(pos_ + 1);
    }
  }

  void LexData() {
    size_t tag = pos_;
    while (true) {
      tag = text_.find('{', tag);
      if (tag == std::string::npos || tag + 1 >= text_.size()) {
        Add(TokenKind::kData, text_.substr(pos_));
        Advance(text_.size());
        return;
      }
      if (text_[tag + 1] == '{' || text_[tag + 1] == '%' || text_[tag + 1] == '#') break;
      ++tag;
    }
    const char kind = text_[tag + 1];
    char sign = tag + 2 < text_.size() ? text_[tag + 2] : '\0';
    if (sign != '-' && sign != '+') sign = '\0';
    AddData(tag, sign, kind == '{');
    if (kind == '#') {
      LexComment();
    } else if (kind == '%' && LexRaw(tag + 2 + (sign != 0 ? 1 : 0))) {
      return;
    } else {
      Add(kind == '{' ? TokenKind::kOutputBegin : TokenKind::kBlockBegin, "");
      Advance(tag + 2 + (sign != 0 ? 1 : 0));
      LexExpression(kind == '{');
    }
  }

  void LexComment() {
    const size_t end = text_.find("#}", pos_ + 2);
    if (end == std::string::npos) FailAt("missing end of comment tag");
    const bool signed_end = end > pos_ + 2 && (text_[end - 1] == '-' || text_[end - 1] == '+');
    Advance(signed_end ? end - 1 : end);
    FinishTag("#}", true);
  }

  // "raw %}" at |at|: everything up to endraw is data.
  bool LexRaw(size_t at) {
    const auto skip = [&](size_t i) {
      while (i < text_.size() && IsPythonSpace(static_cast<unsigned char>(text_[i]))) ++i;
      return i;
    };
    at = skip(at);
    if (text_.compare(at, 3, "raw") != 0) return false;
    at = skip(at + 3);
    if (text_.compare(at, 2, "%}") != 0 && text_.compare(at, 3, "-%}") != 0) return false;
    Advance(at);
    FinishTag("%}", false);
    for (size_t tag = text_.find("{%", pos_); tag != std::string::npos;
         tag = text_.find("{%", tag + 2)) {
      size_t name = tag + 2;
      char sign = name < text_.size() ? text_[name] : '\0';
      if (sign == '-' || sign == '+') {
        ++name;
      } else {
        sign = '\0';
      }
      name = skip(name);
      if (text_.compare(name, 6, "endraw") != 0) continue;
      const size_t end = skip(name + 6);
      if (text_.compare(end, 2, "%}") != 0 && text_.compare(end, 3, "-%}") != 0 &&
          text_.compare(end, 3, "+%}") != 0) {
        continue;
      }
      AddData(tag, sign, false);
      Advance(end);
      FinishTag("%}", true);
      return true;
    }
    FailAt("missing end of raw directive");
  }

  void LexExpression(bool output) {
    const std::string_view end = output ? "}}" : "%}";
    std::string open;  // brackets
    while (true) {
      SkipSpace();
      if (pos_ >= text_.size()) FailAt("unexpected end of template in a tag");
      const bool signed_end = (text_[pos_] == '-' || (text_[pos_] == '+' && !output)) &&
                              std::string_view(text_).substr(pos_ + 1).starts_with(end);
      if (open.empty() && (signed_end || At(end))) {
        Add(output ? TokenKind::kOutputEnd : TokenKind::kBlockEnd, "");
        FinishTag(end, !output);
        return;
      }
      LexToken(&open);
    }
  }

  void LexToken(std::string* open) {
    const char c = text_[pos_];
    if (IsNameStart(c)) {
      size_t end = pos_;
      while (end < text_.size() && (IsNameStart(text_[end]) || IsDigit(text_[end]))) ++end;
      Add(TokenKind::kName, text_.substr(pos_, end - pos_));
      Advance(end);
    } else if (IsDigit(c)) {
      LexNumber();
    } else if (c == '"' || c == '\'') {
      LexString();
    } else {
      LexOperator(open);
    }
  }

  void LexNumber() {
    size_t end = pos_;
    bool is_float = false;
    const auto digits = [&] {
      while (end < text_.size() && (IsDigit(text_[end]) || text_[end] == '_')) ++end;
    };
    digits();
    if (end + 1 < text_.size() && text_[end] == '.' && IsDigit(text_[end + 1])) {
      is_float = true;
      ++end;
      digits();
    }
    if (end < text_.size() && (text_[end] == 'e' || text_[end] == 'E')) {
      size_t exponent = end + 1;
      if (exponent < text_.size() && (text_[exponent] == '+' || text_[exponent] == '-')) ++exponent;
      if (exponent < text_.size() && IsDigit(text_[exponent])) {
        is_float = true;
        end = exponent;
        digits();
      }
    }
    std::string number = text_.substr(pos_, end - pos_);
    number.erase(std::remove(number.begin(), number.end(), '_'), number.end());
    Add(is_float ? TokenKind::kFloat : TokenKind::kInteger, std::move(number));
    Advance(end);
  }

  void LexString() {
    const char quote = text_[pos_];
    std::string value;
    size_t at = pos_ + 1;
    while (true) {
      if (at >= text_.size()) FailAt("a string is not closed");
      const char c = text_[at++];
      if (c == quote) break;
      if (c != '\\') {
        value += c;
        continue;
      }
      if (at >= text_.size()) FailAt("a string is not closed");
      at = LexEscape(at, &value);
    }
    Add(TokenKind::kString, std::move(value));
    Advance(at);
  }

  // The escape whose letter is at |at|; Python's rules. Returns the offset behind it.
  size_t LexEscape(size_t at, std::string* value) {
    const char c = text_[at++];
    size_t hex = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (hex > 0) {
      char32_t code = 0;
      for (; hex > 0; --hex, ++at) {
        const char d = at < text_.size() ? text_[at] : ' ';
        const char32_t lower = static_cast<char32_t>(d | 0x20);
        const bool letter = lower >= 'a' && lower <= 'f';
        if (!IsDigit(d) && !letter) FailAt("a truncated escape in a string");
        code = code * 16 + (IsDigit(d) ? static_cast<char32_t>(d - '0') : lower - 'a' + 10);
      }
      if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
        FailAt("an escape that is no character in a string");
      }
      AppendCodePoint(code, value);
      return at;
    }
    if (c >= '0' && c <= '7') {
      char32_t code = static_cast<char32_t>(c - '0');
      for (int i = 0; i < 2 && at < text_.size() && text_[at] >= '0' && text_[at] <= '7'; ++i) {
        code = code * 8 + static_cast<char32_t>(text_[at++] - '0');
      }
      AppendCodePoint(code, value);
      return at;
    }
    constexpr std::string_view kLetters = "abfnrtv\\'\"";
    constexpr std::string_view kValues = "\a\b\f\n\r\t\v\\'\"";
    const size_t index = kLetters.find(c);
    if (c == '\n') return at;  // a continued line
    if (index == std::string_view::npos) {
      *value += '\\';
      *value += c;
    } else {
      *value += kValues[index];
    }
    return at;
  }

  void LexOperator(std::string* open) {
    constexpr std::array<std::string_view, 6> kPairs = {"//", "**", "==", "!=", ">=", "<="};
    for (const auto pair : kPairs) {
      if (At(pair)) {
        Add(TokenKind::kOperator, std::string(pair));
        Advance(pos_ + 2);
        return;
      }
    }
    const char c = text_[pos_];
    if (std::string_view("+-*/%~[](){}<>=.:|,;").find(c) == std::string_view::npos) {
      FailAt(std::string("unexpected character '") + c + "'");
    }
    if (c == '(' || c == '[' || c == '{') open->push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
    if (c == ')' || c == ']' || c == '}') {
      if (open->empty() || open->back() != c) FailAt(std::string("unexpected '") + c + "'");
      open->pop_back();
    }
    Add(TokenKind::kOperator, std::string(1, c));
    Advance(pos_ + 1);
  }

  std::string text_;
  size_t pos_ = 0;
  size_t line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> Tokenize(std::string_view source) {
  return Lexer(source).Run();
}

}  // namespace weir::jinja
