#include "tools/trace/live_view.h"

#include <algorithm>
#include <numeric>

namespace weir::trace_tool {

uint64_t LiveSums::stall() const {
  return std::accumulate(stall_ns.begin(), stall_ns.end(), uint64_t{0});
}

uint64_t LiveSums::in() const {
  return std::accumulate(in_bytes.begin(), in_bytes.end(), uint64_t{0});
}

LiveSums& LiveSums::operator+=(const LiveSums& o) {
  steps += o.steps;
  output_tokens += o.output_tokens;
  prompt_tokens += o.prompt_tokens;
  step_ns += o.step_ns;
  faults += o.faults;
  plans += o.plans;
  plan_ns += o.plan_ns;
  finished += o.finished;
  for (size_t i = 0; i < stall_ns.size(); ++i) stall_ns[i] += o.stall_ns[i];
  for (size_t i = 0; i < in_bytes.size(); ++i) in_bytes[i] += o.in_bytes[i];
  out_bytes += o.out_bytes;
  return *this;
}

LiveView::LiveView(TraceMeta meta) : meta_(std::move(meta)), state_(meta_) {}

void LiveView::SetMeta(TraceMeta meta) {
  meta_.reasons = std::move(meta.reasons);
}

void LiveView::Advance(uint64_t bucket) {
  if (newest_ == 0) newest_ = bucket;
  for (size_t n = 0; newest_ < bucket; ++n) {
    if (n > kBuckets) {
      newest_ = bucket;
      break;
    }
    ++newest_;
    LiveSums& fresh = buckets_[newest_ % kBuckets];
    fresh = {};
    fresh.kv_used = state_.queue().used;
    fresh.running = state_.queue().running;
    fresh.waiting = state_.queue().waiting;
  }
}

// Null: longer ago than a minute, or in the future.
LiveSums* LiveView::Bucket(uint64_t time_ns) {
  const uint64_t bucket = time_ns / kBucketNs;
  if (bucket > newest_ || newest_ - bucket >= kBuckets) return nullptr;
  return &buckets_[bucket % kBuckets];
}

void LiveView::SetNow(uint64_t now_ns) {
  if (first_ns_ == 0) first_ns_ = now_ns;
  now_ns_ = std::max(now_ns_, now_ns);
  Advance(now_ns_ / kBucketNs);
}

void LiveView::Add(std::vector<TraceRecord>* records) {
  std::stable_sort(
      records->begin(), records->end(),
      [](const TraceRecord& a, const TraceRecord& b) { return a.time_ns < b.time_ns; });
  for (const TraceRecord& r : *records) {
    state_.Add(r);
    Count(r);
  }
  records_ += records->size();
}

void LiveView::Count(const TraceRecord& r) {
  const auto type = static_cast<TraceType>(r.type);
  switch (type) {
    case TraceType::kStepBegin: open_steps_.Begin(r); return;
    case TraceType::kPolicyDecision: decision_ = r; return;
    case TraceType::kPressure: pressure_ = r.cause; return;
    case TraceType::kSnapshotEnd: told_ = true; return;
    default: break;
  }
  LiveSums* sums = Bucket(r.time_ns);
  if (sums == nullptr) return;
  switch (type) {
    case TraceType::kStepEnd: {
      const std::optional<TraceRecord> begun = open_steps_.End(r.args[0]);
      const uint64_t prompt = begun ? std::min(begun->args[3], r.args[2]) : 0;
      ++sums->steps;
      sums->step_ns += r.args[3];
      sums->prompt_tokens += prompt;
      sums->output_tokens += r.args[2] - prompt;
      break;
    }
    case TraceType::kFaultMajor:
    case TraceType::kFaultMinor:
      ++sums->faults;
      sums->stall_ns[r.cause < kFaultCauses ? r.cause : 0] += r.args[3];
      if (r.args[3] >= worst_.args[3] || r.time_ns > worst_.time_ns + kBucketNs * kBuckets) {
        worst_ = r;
      }
      break;
    case TraceType::kCopy:
    case TraceType::kFill: sums->in_bytes[std::min<size_t>(r.cause, 3)] += r.args[3]; break;
    case TraceType::kWriteBack: sums->out_bytes += r.args[3]; break;
    case TraceType::kPlanCommit:
      if (r.args[0] == 0) break;  // a state being told
      ++sums->plans;
      sums->plan_ns += r.args[3];
      plan_ = r;
      break;
    case TraceType::kRequest:
      if (r.cause == static_cast<uint8_t>(RequestEvent::kFinished)) ++sums->finished;
      break;
    case TraceType::kQueue:
      sums->kv_used = r.args[2];
      sums->running = r.args[0];
      sums->waiting = r.args[1];
      break;
    default: break;
  }
}

LiveSums LiveView::Recent() const {
  LiveSums sums;
  for (const LiveSums& s : History(kRateBuckets)) sums += s;
  return sums;
}

std::vector<LiveSums> LiveView::History(size_t n) const {
  std::vector<LiveSums> history;
  n = std::min({n, kBuckets - 1, static_cast<size_t>(newest_)});
  for (size_t i = n; i >= 1; --i) history.push_back(buckets_[(newest_ - i) % kBuckets]);
  return history;
}

}  // namespace weir::trace_tool
