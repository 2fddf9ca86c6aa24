#include "engine/text/text_pipeline.h"

#include <algorithm>

#include "engine/text/unicode.h"
#include "engine/text/utf8.h"

namespace weir {
namespace {

// Offsets into a chunk are 32 bit.
constexpr size_t kMaxNormalizedBytes = size_t{1} << 31;
constexpr const char* kTooLong = "the normalised text is longer than 2 GiB";

// \w of Rust's regular expressions (Unicode Technical Standard 18, annex C).
bool IsWord(char32_t c) {
  static const auto* word = new Result<Regex>(Regex::Compile(
      "[\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200c}\\x{200d}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}"
      "\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}]"));
  WEIR_CHECK(word->ok(), "the pattern is a constant");
  std::string text;
  AppendCodePoint(c, &text);
  Regex::Matcher matcher;
  size_t begin = 0;
  size_t end = 0;
  const auto found = matcher.Find(**word, text, 0, &begin, &end);
  return found.ok() && *found;
}

// Start of the character that ends at |end|.
size_t PreviousCharacter(std::string_view text, size_t end) {
  --end;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return end;
}

struct Match {
  uint32_t begin;
  uint32_t end;
  bool is_match;
};

// Hugging Face's NormalizedString::split, on the matches and gaps of one piece.
void AppendSplit(const std::vector<Match>& matches, SplitBehavior behavior,
                 std::vector<std::pair<uint32_t, uint32_t>>* out) {
  const size_t first = out->size();
  bool previous_match = false;
  const auto add = [&](const Match& m) { out->emplace_back(m.begin, m.end); };
  switch (behavior) {
    case SplitBehavior::kRemoved:
      for (const Match& m : matches) {
        if (!m.is_match) add(m);
      }
      break;
    case SplitBehavior::kIsolated:
      for (const Match& m : matches) add(m);
      break;
    case SplitBehavior::kContiguous:
      for (const Match& m : matches) {
        if (out->size() > first && m.is_match == previous_match) {
          out->back().second = m.end;
        } else {
          add(m);
        }
        previous_match = m.is_match;
      }
      break;
    case SplitBehavior::kMergedWithPrevious:
      for (const Match& m : matches) {
        if (m.is_match && !previous_match && out->size() > first) {
          out->back().second = m.end;
        } else {
          add(m);
        }
        previous_match = m.is_match;
      }
      break;
    case SplitBehavior::kMergedWithNext:
      for (size_t i = matches.size(); i-- > 0;) {
        const Match& m = matches[i];
        if (m.is_match && !previous_match && out->size() > first) {
          out->back().first = m.begin;
        } else {
          add(m);
        }
        previous_match = m.is_match;
      }
      std::reverse(out->begin() + static_cast<ptrdiff_t>(first), out->end());
      break;
  }
  // Empty pieces vanish.
  out->erase(std::remove_if(out->begin() + static_cast<ptrdiff_t>(first), out->end(),
                            [](const auto& r) { return r.first == r.second; }),
             out->end());
}

Status RunSplit(const SplitStep& step, Regex::Matcher* matcher, Pieces* pieces) {
  std::vector<std::pair<uint32_t, uint32_t>> out;
  out.reserve(pieces->ranges.size());
  const bool simple = step.behavior == SplitBehavior::kIsolated;
  std::vector<Match> matches;
  for (const auto& range : pieces->ranges) {
    const uint32_t begin = range.first;
    const uint32_t end = range.second;
    const std::string_view piece = pieces->text.substr(begin, end - begin);
    matches.clear();
    size_t done = 0;
    size_t pos = 0;
    while (pos <= piece.size()) {
      size_t b = 0;
      size_t e = 0;
      if (!WEIR_TRY(matcher->Find(step.regex, piece, pos, &b, &e))) break;
      const auto emit = [&](size_t from, size_t to, bool is_match) {
        const Match m{begin + static_cast<uint32_t>(from), begin + static_cast<uint32_t>(to),
                      is_match != step.invert};
        if (!simple) {
          matches.push_back(m);
        } else if (from < to) {
          out.emplace_back(m.begin, m.end);
        }
      };
      if (b > done) emit(done, b, false);
      emit(b, e, true);
      done = e;
      pos = e;
      if (b == e) {
        if (pos >= piece.size()) break;
        pos += Utf8Length(piece[pos]);
      } else if (pos == piece.size()) {
        break;
      }
    }
    if (done < piece.size()) {
      const Match m{begin + static_cast<uint32_t>(done), end, step.invert};
      if (simple) {
        out.emplace_back(m.begin, m.end);
      } else {
        matches.push_back(m);
      }
    }
    if (!simple) AppendSplit(matches, step.behavior, &out);
  }
  pieces->ranges = std::move(out);
  return {};
}

void RunDigits(const DigitsStep& step, Pieces* pieces) {
  std::vector<std::pair<uint32_t, uint32_t>> out;
  out.reserve(pieces->ranges.size());
  for (const auto& [begin, end] : pieces->ranges) {
    size_t open = begin;  // start of the piece being built
    bool open_is_digit = false;
    for (size_t pos = begin; pos < end;) {
      const size_t at = pos;
      const bool digit = IsUnicodeNumber(NextCodePoint(pieces->text, &pos));
      const bool cut = at > open && (digit != open_is_digit || (digit && step.individual));
      if (cut) {
        out.emplace_back(static_cast<uint32_t>(open), static_cast<uint32_t>(at));
        open = at;
      }
      open_is_digit = digit;
    }
    if (open < end) out.emplace_back(static_cast<uint32_t>(open), end);
  }
  pieces->ranges = std::move(out);
}

// Rewrites every piece with |rewrite(index, piece, out)| into a new text.
template <typename Rewrite>
Status RewritePieces(Pieces* pieces, std::deque<std::string>* arena, Rewrite rewrite) {
  std::string text;
  text.reserve(pieces->text.size() + 16);
  for (size_t i = 0; i < pieces->ranges.size(); ++i) {
    auto& [begin, end] = pieces->ranges[i];
    const size_t start = text.size();
    rewrite(i, pieces->text.substr(begin, end - begin), &text);
    if (text.size() > kMaxNormalizedBytes) return InvalidArgument(kTooLong);
    begin = static_cast<uint32_t>(start);
    end = static_cast<uint32_t>(text.size());
  }
  arena->push_back(std::move(text));
  pieces->text = arena->back();
  return {};
}

Status RunMetaspace(const MetaspaceStep& step, bool at_start, std::deque<std::string>* arena,
                    Pieces* pieces) {
  std::string mark;
  AppendCodePoint(step.replacement, &mark);
  WEIR_TRY(RewritePieces(pieces, arena, [&](size_t i, std::string_view piece, std::string* out) {
    using Prepend = MetaspaceStep::Prepend;
    const bool wanted =
        step.prepend == Prepend::kAlways || (step.prepend == Prepend::kFirst && at_start && i == 0);
    if (wanted && !piece.empty() && !piece.starts_with(' ') && !piece.starts_with(mark)) {
      *out += mark;
    }
    for (const char c : piece) {
      if (c == ' ') {
        *out += mark;
      } else {
        *out += c;
      }
    }
  }));
  if (!step.split) return {};
  std::vector<std::pair<uint32_t, uint32_t>> out;
  std::vector<Match> matches;
  for (const auto& [begin, end] : pieces->ranges) {
    const std::string_view piece = pieces->text.substr(begin, end - begin);
    matches.clear();
    size_t done = 0;
    for (size_t at = piece.find(mark); at != std::string_view::npos; at = piece.find(mark, done)) {
      const auto from = begin + static_cast<uint32_t>(at);
      if (at > done) matches.push_back({begin + static_cast<uint32_t>(done), from, false});
      matches.push_back({from, from + static_cast<uint32_t>(mark.size()), true});
      done = at + mark.size();
    }
    if (done < piece.size()) matches.push_back({begin + static_cast<uint32_t>(done), end, false});
    AppendSplit(matches, SplitBehavior::kMergedWithNext, &out);
  }
  pieces->ranges = std::move(out);
  return {};
}

Result<std::string> ReplaceRegex(const ReplaceNormalizer& step, std::string_view text,
                                 Regex::Matcher* matcher) {
  std::string out;
  size_t done = 0;
  size_t pos = 0;
  size_t begin = 0;
  size_t end = 0;
  while (pos <= text.size() && WEIR_TRY(matcher->Find(step.regex[0], text, pos, &begin, &end))) {
    out += text.substr(done, begin - done);
    out += step.content;
    if (out.size() > kMaxNormalizedBytes) return InvalidArgument(kTooLong);
    done = end;
    pos = end;
    if (begin == end) pos += pos < text.size() ? Utf8Length(text[pos]) : 1;
  }
  out += text.substr(done);
  return out;
}

}  // namespace

std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t done = 0;
  for (size_t at = from.empty() ? std::string_view::npos : text.find(from);
       at != std::string_view::npos; at = text.find(from, done)) {
    out += text.substr(done, at - done);
    out += to;
    done = at + from.size();
  }
  out += text.substr(done);
  return out;
}

void AddedTokenMatcher::Add(AddedToken token) {
  if (token.content.empty()) return;
  uint32_t node = 0;
  for (const char c : token.content) {
    const uint64_t key = (uint64_t{node} << 8) | static_cast<unsigned char>(c);
    auto [it, inserted] = edges_.try_emplace(key, static_cast<uint32_t>(token_of_node_.size()));
    if (inserted) token_of_node_.push_back(SIZE_MAX);
    node = it->second;
  }
  first_bytes_.set(static_cast<unsigned char>(token.content[0]));
  token_of_node_[node] = tokens_.size();
  tokens_.push_back(std::move(token));
}

size_t AddedTokenMatcher::LongestPrefix(std::string_view text, size_t* length) const {
  uint32_t node = 0;
  size_t best = SIZE_MAX;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto it = edges_.find((uint64_t{node} << 8) | static_cast<unsigned char>(text[i]));
    if (it == edges_.end()) break;
    node = it->second;
    if (token_of_node_[node] != SIZE_MAX) {
      best = token_of_node_[node];
      *length = i + 1;
    }
  }
  return best;
}

void AddedTokenMatcher::SplitText(std::string_view text, bool match_special,
                                  std::vector<Split>* out) const {
  size_t done = 0;
  size_t pos = 0;
  while (!tokens_.empty() && pos < text.size()) {
    if (!first_bytes_[static_cast<unsigned char>(text[pos])]) {
      ++pos;
      continue;
    }
    size_t length = 0;
    const size_t index = LongestPrefix(text.substr(pos), &length);
    if (index == SIZE_MAX) {
      ++pos;
      continue;
    }
    const AddedToken& token = tokens_[index];
    size_t begin = pos;
    size_t end = pos + length;
    pos = end;
    if (token.special && !match_special) continue;
    if (token.single_word) {
      size_t next = end;
      size_t before = begin > 0 ? PreviousCharacter(text, begin) : 0;
      if (begin > 0 && IsWord(NextCodePoint(text, &before))) continue;
      if (end < text.size() && IsWord(NextCodePoint(text, &next))) continue;
    }
    if (token.lstrip) {
      while (begin > done) {
        size_t at = PreviousCharacter(text, begin);
        const size_t start = at;
        if (!IsUnicodeSpace(NextCodePoint(text, &at))) break;
        begin = start;
      }
    }
    if (token.rstrip) {
      while (end < text.size()) {
        size_t at = end;
        if (!IsUnicodeSpace(NextCodePoint(text, &at))) break;
        end = at;
      }
      pos = std::max(pos, end);
    }
    if (begin > done) out->push_back({-1, done, begin});
    out->push_back({token.id, begin, end});
    done = end;
  }
  if (done < text.size()) out->push_back({-1, done, text.size()});
}

Result<std::string> Normalize(const std::vector<Normalizer>& steps, std::string text,
                              Regex::Matcher* matcher) {
  for (const Normalizer& step : steps) {
    if (std::holds_alternative<NfcNormalizer>(step)) {
      if (!IsQuicklyNfc(text)) text = NormalizeNfc(text);
    } else if (const auto* prepend = std::get_if<PrependNormalizer>(&step)) {
      if (!text.empty()) text.insert(0, prepend->text);
    } else if (const auto* replace = std::get_if<ReplaceNormalizer>(&step)) {
      const size_t growth = replace->content.size() / std::max<size_t>(replace->literal.size(), 1);
      if (replace->regex.empty() && text.size() * (growth + 1) > kMaxNormalizedBytes) {
        return InvalidArgument(kTooLong);
      }
      text = replace->regex.empty() ? ReplaceAll(text, replace->literal, replace->content)
                                    : WEIR_TRY(ReplaceRegex(*replace, text, matcher));
    }
    if (text.size() > kMaxNormalizedBytes) return InvalidArgument(kTooLong);
  }
  return text;
}

Status PreTokenize(const std::vector<PreTokenizerStep>& steps, bool at_start,
                   Regex::Matcher* matcher, std::deque<std::string>* arena, Pieces* pieces) {
  for (const PreTokenizerStep& step : steps) {
    if (const auto* split = std::get_if<SplitStep>(&step)) {
      WEIR_TRY(RunSplit(*split, matcher, pieces));
    } else if (const auto* digits = std::get_if<DigitsStep>(&step)) {
      RunDigits(*digits, pieces);
    } else if (const auto* metaspace = std::get_if<MetaspaceStep>(&step)) {
      WEIR_TRY(RunMetaspace(*metaspace, at_start, arena, pieces));
    } else {
      WEIR_TRY(RewritePieces(pieces, arena, [](size_t, std::string_view piece, std::string* out) {
        if (!piece.starts_with(' ')) *out += ' ';
        *out += piece;
      }));
    }
  }
  return {};
}

}  // namespace weir
