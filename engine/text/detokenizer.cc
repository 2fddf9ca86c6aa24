#include "engine/text/detokenizer.h"

#include <algorithm>
#include <utility>

#include "engine/text/utf8.h"

namespace weir {

void IncrementalDetokenizer::Continue(std::span<const int32_t> prompt) {
  std::string text;
  for (const int32_t id : prompt) {
    tokenizer_->DecodeStep(id, options_, &state_, &text);
    if (!state_.at_start && state_.strip_left == 0) return;  // the rest makes no difference
  }
}

std::string IncrementalDetokenizer::Push(int32_t id) {
  tokenizer_->DecodeStep(id, options_, &state_, &pending_);
  // Keep the tail that more bytes may complete: it starts in the last three bytes.
  size_t keep = pending_.size();
  for (size_t back = 1; back <= std::min<size_t>(3, pending_.size()); ++back) {
    const size_t at = pending_.size() - back;
    if ((static_cast<unsigned char>(pending_[at]) & 0xC0) == 0x80) continue;
    size_t length = 0;
    const auto kind = ClassifyUtf8(std::string_view(pending_).substr(at), &length);
    if (kind == Utf8Prefix::kIncomplete) keep = at;
    break;
  }
  std::string text;
  AppendLossyUtf8(std::string_view(pending_).substr(0, keep), &text);
  pending_.erase(0, keep);
  return text;
}

std::string IncrementalDetokenizer::Flush() {
  std::string text;
  AppendLossyUtf8(pending_, &text);
  pending_.clear();
  return text;
}

StopMatcher::StopMatcher(std::vector<std::string> stops, StopText stop_text)
    : stop_text_(stop_text) {
  for (std::string& text : stops) {
    if (text.empty()) continue;
    std::vector<size_t> fallback(text.size(), 0);
    for (size_t i = 1, k = 0; i < text.size(); ++i) {
      while (k > 0 && text[i] != text[k]) k = fallback[k - 1];
      if (text[i] == text[k]) ++k;
      fallback[i] = k;
    }
    stops_.push_back({std::move(text), std::move(fallback), 0});
  }
}

std::string StopMatcher::Push(std::string_view text) {
  if (matched()) return {};
  for (const char c : text) {
    held_ += c;
    for (size_t i = 0; i < stops_.size(); ++i) {
      Stop& stop = stops_[i];
      while (stop.length > 0 && stop.text[stop.length] != c) {
        stop.length = stop.fallback[stop.length - 1];
      }
      if (stop.text[stop.length] == c) ++stop.length;
      const bool longer =
          !matched() || stop.text.size() > stops_[static_cast<size_t>(matched_)].text.size();
      if (stop.length == stop.text.size() && longer) matched_ = static_cast<int>(i);
    }
    if (matched()) {
      if (stop_text_ == StopText::kExclude) held_.resize(held_.size() - matched_stop().size());
      return std::exchange(held_, {});
    }
  }
  size_t keep = 0;
  for (const Stop& stop : stops_) keep = std::max(keep, stop.length);
  std::string ready = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return ready;
}

std::string StopMatcher::Flush() {
  return matched() ? std::string() : std::exchange(held_, {});
}

}  // namespace weir
