// Token ids -> text as they arrive, and stop strings over that text.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"

namespace weir {

// Represents the decoding of one sequence so far. Owned by the sequence, one thread at a time; the
// tokenizer must outlive it. Everything it returns is valid UTF-8, and without Continue() the
// concatenation of all Push() results and one Flush() is Tokenizer::Decode of the whole sequence.
class IncrementalDetokenizer {
 public:
  IncrementalDetokenizer(const Tokenizer* tokenizer, DecodeOptions options)
      : tokenizer_(tokenizer), options_(options) {}

  // What comes goes on from the text of |prompt|: it is what Tokenizer::Decode of both has beyond
  // that of |prompt|, also the space that a tokenizer drops in front of a whole text. Before the
  // first Push().
  void Continue(std::span<const int32_t> prompt);
  // The text that |id| completes; "" while a character is incomplete. O(bytes of the token).
  std::string Push(int32_t id);
  // The incomplete character at the end, if any, as U+FFFD. Push() may follow.
  std::string Flush();
  // Bytes held back: 0 to 3.
  size_t pending_bytes() const { return pending_.size(); }

 private:
  const Tokenizer* tokenizer_;
  DecodeOptions options_;
  Tokenizer::DecodeState state_;
  std::string pending_;
};

enum class StopText : uint8_t { kExclude, kInclude };

// Represents the search for stop strings in one stream of text. Holds back text that may turn out
// to be the start of a stop string, so what it has returned never contains a part of one.
//
// States: searching, then matched (for good). The stop string whose end comes first wins, of those
// that end together the longest. O(stops) a byte (Knuth-Morris-Pratt, 1977).
class StopMatcher {
 public:
  // Empty strings in |stops| are ignored.
  StopMatcher(std::vector<std::string> stops, StopText stop_text);

  // The part of the stream that may be shown now. Once matched: "".
  std::string Push(std::string_view text);
  // The stream ended: what was held back. Once matched: "".
  std::string Flush();

  bool matched() const { return matched_ >= 0; }
  // Only if matched().
  const std::string& matched_stop() const { return stops_[static_cast<size_t>(matched_)].text; }

 private:
  struct Stop {
    std::string text;
    std::vector<size_t> fallback;  // of the prefix of length i + 1: its longest proper border
    size_t length = 0;             // of the prefix that the stream ends with
  };
  std::vector<Stop> stops_;
  StopText stop_text_;
  std::string held_;
  int matched_ = -1;
};

}  // namespace weir
