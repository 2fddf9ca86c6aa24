// Chat templates, stage 1: source text -> tokens, with Hugging Face's white space rules
// (trim_blocks and lstrip_blocks on, one trailing newline dropped).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weir::jinja {

enum class TokenKind : uint8_t {
  kData,         // literal text
  kBlockBegin,   // {%
  kBlockEnd,     // %}
  kOutputBegin,  // {{
  kOutputEnd,    // }}
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind;
  std::string text;  // of a string: its value
  size_t line;
};

// Throws Error.
std::vector<Token> Tokenize(std::string_view source);

}  // namespace weir::jinja
