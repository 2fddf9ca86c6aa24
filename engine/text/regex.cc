#include "engine/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <cstdint>

#include <pcre2.h>

namespace weir {
namespace {

constexpr size_t kMaxPatternBytes = 64 * 1024;
constexpr uint32_t kMatchLimit = 20'000'000;
constexpr uint32_t kDepthLimit = 100'000;
constexpr size_t kJitStackStart = 64 * 1024;
constexpr size_t kJitStackMax = 16 * 1024 * 1024;

// White_Space as the inside of a character class. PCRE2's own \s also has U+180E.
constexpr std::string_view kSpaceClass =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"
    "\\x{205f}\\x{3000}";

Result<std::string> TranslatePattern(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char next = pattern[++i];
      if (next == 's' || (next == 'S' && !in_class)) {
        if (!in_class) out += next == 's' ? "[" : "[^";
        out += kSpaceClass;
        if (!in_class) out += "]";
      } else {
        out += c;
        out += next;
      }
      continue;
    }
    if (in_class && ((c == '[' && !pattern.substr(i).starts_with("[:")) ||
                     pattern.substr(i).starts_with("&&"))) {
      return Unsupported("regular expression '" + std::string(pattern) +
                         "': nested character classes and && are not supported");
    }
    if (c == '[' && !in_class) {
      in_class = true;
      out += c;
      if (pattern.substr(i + 1).starts_with("^")) out += pattern[++i];
      if (pattern.substr(i + 1).starts_with("]")) out += pattern[++i];
      continue;
    }
    if (c == '[' && in_class) {  // a POSIX class: copy up to its end
      const size_t end = pattern.find(":]", i + 2);
      if (end == std::string_view::npos) {
        return InvalidArgument("regular expression '" + std::string(pattern) +
                               "': unterminated [: :]");
      }
      out += pattern.substr(i, end + 2 - i);
      i = end + 1;
      continue;
    }
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

}  // namespace

struct Regex::Code {
  explicit Code(pcre2_code* c) : code(c) {}
  ~Code() { pcre2_code_free(code); }
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;

  pcre2_code* code;
  bool jit = false;
};

Regex::Regex(std::unique_ptr<Code> code) : code_(std::move(code)) {}
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;
Regex::~Regex() = default;

Result<Regex> Regex::Compile(std::string_view pattern) {
  if (pattern.empty() || pattern.size() > kMaxPatternBytes) {
    return InvalidArgument("a regular expression has 1 to 65536 bytes, this one has " +
                           std::to_string(pattern.size()));
  }
  const std::string translated = WEIR_TRY(TranslatePattern(pattern));
  int error = 0;
  PCRE2_SIZE offset = 0;
  // Ruby's ^ and $ always match at line ends.
  const uint32_t flags = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()),
                                   translated.size(), flags, &error, &offset, nullptr);
  if (code == nullptr) {
    PCRE2_UCHAR text[256];
    pcre2_get_error_message(error, text, sizeof(text));
    return InvalidArgument("regular expression '" + std::string(pattern) +
                           "': " + reinterpret_cast<const char*>(text) + " at byte " +
                           std::to_string(offset));
  }
  auto holder = std::make_unique<Code>(code);
  holder->jit = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0;
  return Regex(std::move(holder));
}

Result<Regex> Regex::CompileLiteral(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    if (std::string_view("\\^$.[]|()?*+{}-#").find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return Compile(pattern);
}

struct Regex::Matcher::Impl {
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_jit_stack* stack = nullptr;
};

Regex::Matcher::Matcher() : impl_(std::make_unique<Impl>()) {
  if (impl_->context != nullptr) {
    pcre2_set_match_limit(impl_->context, kMatchLimit);
    pcre2_set_depth_limit(impl_->context, kDepthLimit);
  }
}

Regex::Matcher::~Matcher() {
  pcre2_match_data_free(impl_->data);
  pcre2_match_context_free(impl_->context);
  pcre2_jit_stack_free(impl_->stack);
}

Result<bool> Regex::Matcher::Find(const Regex& regex, std::string_view subject, size_t from,
                                  size_t* begin, size_t* end) {
  if (impl_->context == nullptr || impl_->data == nullptr) {
    return NoMemory("no memory for the state of a regular expression match");
  }
  const auto run = [&] {
    const auto* text = reinterpret_cast<PCRE2_SPTR>(subject.data());
    return regex.code_->jit ? pcre2_jit_match(regex.code_->code, text, subject.size(), from,
                                              PCRE2_NO_UTF_CHECK, impl_->data, impl_->context)
                            : pcre2_match(regex.code_->code, text, subject.size(), from,
                                          PCRE2_NO_UTF_CHECK, impl_->data, impl_->context);
  };
  int rc = run();
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT && impl_->stack == nullptr) {
    impl_->stack = pcre2_jit_stack_create(kJitStackStart, kJitStackMax, nullptr);
    pcre2_jit_stack_assign(impl_->context, nullptr, impl_->stack);
    rc = run();
  }
  if (rc == PCRE2_ERROR_NOMATCH) return false;
  if (rc < 0) {
    PCRE2_UCHAR message[256];
    pcre2_get_error_message(rc, message, sizeof(message));
    return InvalidArgument("the pre-tokenizer's regular expression failed at byte " +
                           std::to_string(from) +
                           " of the text: " + reinterpret_cast<const char*>(message));
  }
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(impl_->data);
  if (range[0] < from || range[1] < range[0]) {
    return InvalidArgument("the pre-tokenizer's regular expression matched backwards (\\K)");
  }
  *begin = range[0];
  *end = range[1];
  return true;
}

}  // namespace weir
