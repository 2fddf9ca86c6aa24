// Chat messages -> prompt text.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "vmm/status.h"

namespace weir {

// What a template sees. JSON members hold text, so that callers choose their own JSON library.
struct ChatInputs {
  std::string messages_json = "[]";  // an array; `messages`
  std::string tools_json;            // an array, or empty: `tools` is none
  std::string documents_json;        // an array, or empty: `documents` is none
  bool add_generation_prompt = false;
  std::string bos_token;
  std::string eos_token;
  std::string extra_json;              // an object whose members become variables, or empty;
                                       // they may not replace the variables above
  std::optional<int64_t> now_seconds;  // since 1970, for strftime_now; the clock if unset
};

struct ChatTemplateLimits {
  size_t source_bytes = size_t{1} << 20;
  size_t input_bytes = size_t{16} << 20;   // all JSON together
  size_t output_bytes = size_t{16} << 20;  // also of any one string on the way
  uint64_t steps = 20'000'000;             // expressions and statements; texts cost by length
  uint32_t depth = 250;                    // nested blocks, expressions and macro calls
};

// Represents one parsed chat template: a sandboxed sub-set of Jinja 2 with Hugging Face's settings
// (trim_blocks, lstrip_blocks, loop controls, tojson without ASCII or HTML escapes,
// raise_exception, strftime_now). It sees the inputs and nothing else: no files, no attributes of
// anything but JSON, no mutation. Immutable; any thread may render.
//
// Accepted: output, if/elif/else, for (else, inline if, loop.*), set (blocks, namespaces), macro,
// call, filter, with, raw, break, continue, generation. Not accepted: include, import, extends,
// recursive loops, * and ** arguments, string formatting with %.
class ChatTemplate {
 public:
  // kInvalidArgument with the line of the error.
  static Result<ChatTemplate> Parse(std::string_view source);
  static Result<ChatTemplate> Parse(std::string_view source, const ChatTemplateLimits& limits);

  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  // Valid UTF-8. kInvalidArgument: an input is not JSON of the right shape, the template called
  // raise_exception (its message, with the line), used something undefined, or exceeded a limit.
  Result<std::string> Render(const ChatInputs& inputs) const;

 private:
  struct Impl;
  explicit ChatTemplate(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace weir
