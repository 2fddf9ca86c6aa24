// tokenizer.json bytes, then text: input is "<json>\0<text>". Whatever loads must encode any valid
// text, decode any ids, and detokenise step by step to the same text.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "engine/text/detokenizer.h"
#include "engine/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t cut = std::min(input.find('\0'), input.size());
  const std::string_view text =
      cut < input.size() ? input.substr(cut + 1) : std::string_view("Hello, w\u00f6rld 123\n <s>");
  const auto tokenizer = weir::Tokenizer::FromTokenizerJson(input.substr(0, cut), "");
  if (!tokenizer.ok()) return 0;
  const weir::Tokenizer& t = **tokenizer;
  const auto ids = t.Encode(text, {});
  if (!ids.ok()) return 0;
  const weir::DecodeOptions options{.skip_special_tokens = size % 2 == 0};
  weir::IncrementalDetokenizer detokenizer(&t, options);
  std::string streamed;
  for (const int32_t id : *ids) {
    if (id < 0 || id >= t.vocab_size()) std::abort();
    streamed += detokenizer.Push(id);
  }
  streamed += detokenizer.Flush();
  if (streamed != t.Decode(*ids, options)) std::abort();
  return 0;
}
