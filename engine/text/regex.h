// The regular expressions of tokenizer files, run by PCRE2 with JIT and limits.
//
// Tokenizer files write Oniguruma (Ruby) syntax; the sub-set that pre-tokenizers use is also PCRE2
// syntax except for the meaning of \s, which is rewritten to White_Space when compiling.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "vmm/status.h"

namespace weir {

// Represents one compiled pattern; immutable, shared by threads. Matching needs a Matcher, which
// holds the mutable state and belongs to one thread.
class Regex {
 public:
  // kInvalidArgument if the pattern does not compile; kUnsupported for Oniguruma-only syntax.
  static Result<Regex> Compile(std::string_view pattern);
  // A pattern that matches exactly |text|.
  static Result<Regex> CompileLiteral(std::string_view text);

  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;
  ~Regex();

  class Matcher {
   public:
    Matcher();
    ~Matcher();
    Matcher(const Matcher&) = delete;
    Matcher& operator=(const Matcher&) = delete;

    // Searches |subject| (valid UTF-8) from byte |from| (a character boundary). False: no match.
    // kInvalidArgument: the match took more steps than the limit allows.
    Result<bool> Find(const Regex& regex, std::string_view subject, size_t from, size_t* begin,
                      size_t* end);

   private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
  };

 private:
  struct Code;
  explicit Regex(std::unique_ptr<Code> code);
  std::unique_ptr<Code> code_;
};

}  // namespace weir
