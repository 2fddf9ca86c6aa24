#include "engine/link_watch.h"

#include <algorithm>
#include <cstdio>

#include "vmm/trace.h"

namespace weir {
namespace {

constexpr TimeNs kLeastBackoffNs = 1'000'000'000;
constexpr TimeNs kMostBackoffNs = 60'000'000'000;
// So many steps in a row, each of which stood longer than the link has any reason to make it: while
// a gate is waited at its copy is under way, so a sound link makes nobody stand for longer than its
// bytes take. Twice that, and what starting each copy may cost, is beyond doubt.
constexpr uint32_t kSlowSteps = 8;
constexpr double kSlowFactor = 2;
constexpr double kCopyStartNs = 20'000;
constexpr double kLeastStall = 0.1;  // of a step, to matter
// Slow below a half, good again from here on: what lies between changes nothing.
constexpr double kGoodShare = 0.75;

std::string GigabytesPerSecond(double bytes_per_ns) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g GB/s", bytes_per_ns);
  return text;
}

}  // namespace

std::string_view LinkStateName(LinkState state) {
  switch (state) {
    case LinkState::kGood: return "good";
    case LinkState::kSlow: return "slow";
    case LinkState::kHeld: return "held";
    case LinkState::kLost: return "lost";
  }
  return "?";
}

void LinkWatch::SetExpected(Tier tier, double bytes_per_ns) {
  report_.tier = tier;
  report_.expected_bytes_per_ns = bytes_per_ns;
}

bool LinkWatch::ObserveStep(const LinkSample& s, double learnt, TimeNs now) {
  const double expected = report_.expected_bytes_per_ns;
  if (!good() || expected <= 0 || s.bytes == 0) return false;
  const auto stall = static_cast<double>(s.stall_ns);
  const auto step = static_cast<double>(s.step_ns);
  const double explained = kSlowFactor * static_cast<double>(s.bytes) / expected +
                           kCopyStartNs * static_cast<double>(s.copies);
  if (stall <= explained || stall < kLeastStall * step) {
    slow_in_a_row_ = 0;
    return false;
  }
  if (slow_in_a_row_++ == 0) {
    // Not measured by this one, in whose middle the link may have become slow.
    slow_bytes_ = slow_ns_ = 0;
    learnt_before_ = learnt;
  } else {
    slow_bytes_ += static_cast<double>(s.bytes);
    slow_ns_ += step;
  }
  if (slow_in_a_row_ < kSlowSteps) return false;
  slow_in_a_row_ = 0;
  report_.measured_bytes_per_ns = slow_bytes_ / slow_ns_;
  ++report_.slow;
  Enter(LinkState::kSlow,
        "the link to tier " + std::string(TierName(report_.tier)) + " gives " +
            GigabytesPerSecond(report_.measured_bytes_per_ns) + ", " +
            GigabytesPerSecond(expected) + " expected",
        now);
  Trace(LinkTrouble::kSlow);
  return true;
}

void LinkWatch::Held(const Status& cause, uint64_t reread_bytes, TimeNs now) {
  ++report_.held;
  report_.measured_bytes_per_ns = 0;
  std::string text =
      "copies from tier " + std::string(TierName(report_.tier)) + " fail: " + cause.ToString();
  if (reread_bytes > 0) {
    ++report_.reread;
    text += "; " + std::to_string(reread_bytes) + " bytes were read anew from the checkpoint";
  }
  Enter(LinkState::kHeld, std::move(text), now);
  if (reread_bytes > 0) Trace(LinkTrouble::kReread);
  Trace(LinkTrouble::kHeld);
}

void LinkWatch::Lost(const Status& cause, TimeNs now) {
  ++report_.lost;
  report_.measured_bytes_per_ns = 0;
  Enter(LinkState::kLost,
        "weights in tier " + std::string(TierName(report_.tier)) +
            " cannot be read: " + cause.ToString(),
        now);
  Trace(LinkTrouble::kLost);
}

bool LinkWatch::OnProbe(const Result<double>& rate, TimeNs now) {
  report_.measured_bytes_per_ns = rate.ok() ? *rate : 0;
  const bool fast = rate.ok() && *rate >= kGoodShare * expected_of_probe_;
  if (fast || (rate.ok() && report_.state == LinkState::kLost)) {
    ++report_.recovered;
    report_.state = LinkState::kGood;
    good_since_ = now;
    slow_in_a_row_ = 0;
    Trace(LinkTrouble::kRecovered);
    return true;
  }
  Double();
  retry_at_ = now + report_.backoff_ns;
  Trace(LinkTrouble::kProbeFailed);
  return false;
}

void LinkWatch::Enter(LinkState state, std::string cause, TimeNs now) {
  // A trouble soon after the one before, or out of it, is the same one.
  const bool anew = report_.backoff_ns == 0 || (good() && now - good_since_ >= kMostBackoffNs);
  if (anew) {
    report_.backoff_ns = kLeastBackoffNs;
  } else {
    Double();
  }
  report_.state = state;
  report_.cause = std::move(cause);
  retry_at_ = now + report_.backoff_ns;
}

void LinkWatch::Double() {
  report_.backoff_ns = std::min(2 * report_.backoff_ns, kMostBackoffNs);
}

void LinkWatch::Trace(LinkTrouble cause) const {
  TraceEmit(TraceType::kLink, static_cast<uint8_t>(cause), report_.tier,
            static_cast<uint64_t>(report_.measured_bytes_per_ns * 1e9),
            static_cast<uint64_t>(report_.expected_bytes_per_ns * 1e9),
            report_.state == LinkState::kGood ? TimeNs{0} : report_.backoff_ns);
}

}  // namespace weir
