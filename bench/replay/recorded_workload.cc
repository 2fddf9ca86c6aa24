#include "bench/replay/recorded_workload.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <optional>
#include <unordered_map>

#include "tools/trace/busy_time.h"
#include "tools/trace/open_steps.h"

namespace weir::replay {
namespace {

using trace_tool::BusyTime;
using trace_tool::OpenSteps;
using trace_tool::TraceError;
using trace_tool::TraceEvent;
using trace_tool::TraceReader;

constexpr uint64_t kMostTokens = 1U << 24;  // of one request; more is damage

constexpr uint64_t Mix(uint64_t x) {  // splitmix64's finaliser
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// --- Least squares without negative coefficients
// ----------------------------------------------------

constexpr size_t kTerms = 4;
using Vector = std::array<double, kTerms>;

// Represents the normal equations of a fit, added up sample by sample.
class NonNegativeFit {
 public:
  void Add(const Vector& x, double y) {
    for (size_t i = 0; i < kTerms; ++i) {
      for (size_t k = 0; k < kTerms; ++k) a_[i][k] += x[i] * x[k];
      b_[i] += x[i] * y;
    }
  }
  // The best of all sets of terms whose solution has no negative one: 2^kTerms is few.
  Vector Solve() const {
    Vector best{};
    double best_gain = 0;
    for (unsigned set = 1; set < (1U << kTerms); ++set) {
      const auto solution = SolveSet(set);
      if (!solution) continue;
      double gain = 0;  // the squared error is |y|^2 - gain
      for (size_t i = 0; i < kTerms; ++i) gain += (*solution)[i] * b_[i];
      if (gain > best_gain * (1 + 1e-12)) {
        best_gain = gain;
        best = *solution;
      }
    }
    return best;
  }

 private:
  std::optional<Vector> SolveSet(unsigned set) const {
    std::vector<size_t> terms;
    for (size_t i = 0; i < kTerms; ++i) {
      if ((set >> i & 1) != 0) terms.push_back(i);
    }
    const size_t n = terms.size();
    std::vector<std::vector<double>> m(n, std::vector<double>(n + 1));
    for (size_t i = 0; i < n; ++i) {
      for (size_t k = 0; k < n; ++k) m[i][k] = a_[terms[i]][terms[k]];
      m[i][n] = b_[terms[i]];
    }
    for (size_t c = 0; c < n; ++c) {  // Gauss-Jordan; the matrix is positive semidefinite
      if (m[c][c] < 1e-9 * a_[terms[c]][terms[c]] || m[c][c] <= 0) return std::nullopt;
      for (size_t r = 0; r < n; ++r) {
        if (r == c) continue;
        const double f = m[r][c] / m[c][c];
        for (size_t k = c; k <= n; ++k) m[r][k] -= f * m[c][k];
      }
    }
    Vector out{};
    for (size_t i = 0; i < n; ++i) {
      out[terms[i]] = m[i][n] / m[i][i];
      if (!(out[terms[i]] >= 0)) return std::nullopt;
    }
    return out;
  }
  std::array<Vector, kTerms> a_{};
  Vector b_{};
};

// --- Going along the trace
// ----------------------------------------------------

struct StepSeen {
  Vector terms{};
  double compute_ns = 0;
};

class Builder {
 public:
  explicit Builder(RecordedWorkload* out) : w_(*out) {}

  void Add(const TraceRecord& r) {
    switch (static_cast<TraceType>(r.type)) {
      case TraceType::kSnapshotBegin: in_snapshot_ = true; break;
      case TraceType::kSnapshotEnd: in_snapshot_ = false; break;
      case TraceType::kRequest: OnRequest(r); break;
      case TraceType::kKvAlloc:
        for (uint64_t i = 0; i < Count(r.args[2]); ++i) owner_[r.args[1] + i] = r.args[0];
        break;
      case TraceType::kKvHit: OnHit(r); break;
      case TraceType::kPromptBlocks: OnPrompt(r); break;
      case TraceType::kKvMove:
        if (const auto it = owner_.find(r.args[0]); it != owner_.end()) {
          owner_[r.args[1]] = it->second;
        }
        break;
      case TraceType::kKvEvict:
        for (uint64_t i = 0; i < Count(r.args[1]); ++i) owner_.erase(r.args[0] + i);
        break;
      case TraceType::kPolicyDecision: {
        if (r.cause >= kPlacementNames.size()) break;  // of a later version
        const auto placement = static_cast<Placement>(r.cause);
        const uint64_t least_slots = placement == Placement::kLayer ? 1 : 2;
        w_.decisions.push_back(
            {.time_ns = r.time_ns,
             .placement = placement,
             .amount = static_cast<uint32_t>(r.args[1]),
             .ring_slots = static_cast<uint32_t>(std::max(least_slots, r.args[4]))});
        break;
      }
      case TraceType::kPlanBegin: operations_ = r.args[1]; break;
      case TraceType::kPlanCommit:
        if (r.args[0] != 0 && operations_ != 0 && r.args[3] != 0) {
          plan_ns_ += static_cast<double>(r.args[3]);
          plan_ops_ += static_cast<double>(operations_);
        }
        paused_ = false;
        break;
      case TraceType::kCopy:
      case TraceType::kFill:
        if (r.args[5] > r.args[4]) {
          copy_bytes_ += static_cast<double>(r.args[3]);
          copying_.Add(r.args[4], r.args[5]);
        }
        break;
      case TraceType::kStepBegin:
        if (paused_ && open_steps_.empty() && r.cause == static_cast<uint8_t>(StepKind::kServing)) {
          pauses_.push_back(static_cast<double>(r.time_ns - paused_at_));
        }
        open_steps_.Begin(r);
        break;
      case TraceType::kStepEnd: OnStep(r); break;
      case TraceType::kStepFailed: (void)open_steps_.End(r.args[0]); break;
      case TraceType::kQueue:
        if (r.args[0] == 0) paused_ = false;  // nothing runs: what follows is waiting
        break;
      default: break;
    }
  }

  void Finish() {
    if (!pauses_.empty()) {
      const auto middle = pauses_.begin() + static_cast<ptrdiff_t>(pauses_.size() / 2);
      std::nth_element(pauses_.begin(), middle, pauses_.end());
      w_.pause_ns = *middle;
    }
    if (plan_ops_ > 0) w_.op_ns = plan_ns_ / plan_ops_;
    if (const uint64_t ns = copying_.ns(); ns > 0) {
      w_.link_bytes_per_s = copy_bytes_ / static_cast<double>(ns) * 1e9;
    }
    Fit();
    KeepRequests();
    MakePrompts();
  }

 private:
  static uint64_t Count(uint64_t n) { return std::min<uint64_t>(n, 1U << 20); }

  RecordedRequest* Find(uint64_t id) {
    const auto it = index_.find(id);
    return it == index_.end() ? nullptr : &w_.requests[it->second];
  }

  void OnRequest(const TraceRecord& r) {
    const auto event = static_cast<RequestEvent>(r.cause);
    RecordedRequest* q = Find(r.args[0]);
    if (q == nullptr) {
      if (event != RequestEvent::kAdded) return;  // began before the recording
      index_[r.args[0]] = w_.requests.size();
      q = &w_.requests.emplace_back();
      q->id = r.args[0];
      q->added_ns = r.time_ns;
    }
    q->prompt_tokens = std::min(r.args[1], kMostTokens);
    q->cached_tokens = r.args[2];
    q->output_tokens = std::min(r.args[3], kMostTokens);
    q->preemptions = r.args[4];
    q->max_tokens = std::min(r.args[5], kMostTokens);
    switch (event) {
      case RequestEvent::kScheduled:
        if (const auto it = hits_.find(r.args[0]); it != hits_.end()) {
          // More than the prompts share: it goes on where an answer ended.
          if (r.args[2] > q->shared_tokens && r.args[4] == 0) {
            q->prefix_of = it->second;
            q->shared_tokens = r.args[2];
          }
          hits_.erase(it);
        }
        if (r.args[2] != 0 && q->prefix_of < 0 && !in_snapshot_ && r.args[4] == 0) {
          ++w_.unknown_prefixes;
        }
        break;
      case RequestEvent::kFirstToken: q->first_token_ns = r.time_ns; break;
      case RequestEvent::kFinished:
      case RequestEvent::kCancelled:
      case RequestEvent::kFailed: q->ended_ns = r.time_ns; break;
      default: break;
    }
  }

  // Whoever computed the deepest of the shared blocks shares all of the prefix: a block is only
  // found behind the ones before it. Of several the last to come has the deepest.
  void OnHit(const TraceRecord& r) {
    if (in_snapshot_) return;
    for (uint64_t i = 0; i < Count(r.args[1]); ++i) {
      const auto it = owner_.find(r.args[3] + i);
      if (it == owner_.end()) continue;
      const auto found = index_.find(it->second);
      if (found == index_.end() || it->second == r.args[0]) continue;
      int64_t& best = hits_.try_emplace(r.args[0], -1).first->second;
      best = std::max(best, static_cast<int64_t>(found->second));
    }
  }

  // The deepest block that an earlier prompt had as well says how long a beginning they share,
  // whether or not it was in the cache.
  void OnPrompt(const TraceRecord& r) {
    const auto found = index_.find(r.args[0]);
    if (found == index_.end()) return;
    RecordedRequest& q = w_.requests[found->second];
    for (uint64_t k = 0; k < 4 && r.args[2 + k] != 0; ++k) {
      const auto [it, is_new] = prompts_.try_emplace(r.args[2 + k], found->second);
      const uint64_t tokens = (r.args[1] + k + 1) * 16;
      if (is_new || it->second == found->second || tokens <= q.shared_tokens) continue;
      q.prefix_of = static_cast<int64_t>(it->second);
      q.shared_tokens = tokens;
    }
  }

  void OnStep(const TraceRecord& r) {
    paused_ = r.cause == static_cast<uint8_t>(StepKind::kServing);
    paused_at_ = r.time_ns;
    const std::optional<TraceRecord> begun = open_steps_.End(r.args[0]);
    if (!begun || r.args[3] < r.args[4]) return;
    steps_.push_back({{1, static_cast<double>(begun->args[2]), static_cast<double>(begun->args[4]),
                       static_cast<double>(r.args[5])},
                      static_cast<double>(r.args[3] - r.args[4])});
  }

  void Fit() {
    // Weighted by 1 / time: long steps do not drown the short ones, and the sum stays right.
    NonNegativeFit fit;
    for (const StepSeen& s : steps_) {
      if (s.compute_ns <= 0) continue;
      Vector x = s.terms;
      const double weight = 1 / std::sqrt(s.compute_ns);
      for (double& v : x) v *= weight;
      fit.Add(x, s.compute_ns * weight);
    }
    const Vector c = fit.Solve();
    w_.fit = {c[0], c[1], c[2], c[3], 0, steps_.size()};
    double off = 0, sum = 0;
    for (const StepSeen& s : steps_) {
      off += std::abs(w_.fit.Ns(s.terms[1], s.terms[2], s.terms[3]) - s.compute_ns);
      sum += s.compute_ns;
    }
    if (sum > 0) w_.fit.error = off / sum;
  }

  // Those that can be replayed; who shares a prefix with one that cannot shares it no more.
  void KeepRequests() {
    std::vector<RecordedRequest> kept;
    std::vector<int64_t> moved(w_.requests.size(), -1);
    for (size_t i = 0; i < w_.requests.size(); ++i) {
      RecordedRequest q = std::move(w_.requests[i]);
      if (q.ended_ns == 0) q.output_tokens = std::max(q.output_tokens, q.max_tokens);
      if (q.output_tokens == 0 || q.prompt_tokens == 0) {
        ++w_.left_out;
        continue;
      }
      if (q.prefix_of >= 0) q.prefix_of = moved[static_cast<size_t>(q.prefix_of)];
      moved[i] = static_cast<int64_t>(kept.size());
      w_.end_ns = std::max(w_.end_ns, q.ended_ns);
      kept.push_back(std::move(q));
    }
    w_.requests = std::move(kept);
    if (!w_.requests.empty()) w_.begin_ns = w_.requests.front().added_ns;
  }

  void MakePrompts() {
    for (size_t i = 0; i < w_.requests.size(); ++i) {
      RecordedRequest& q = w_.requests[i];
      q.prompt.reserve(q.prompt_tokens);
      if (q.prefix_of >= 0) {
        const RecordedRequest& other = w_.requests[static_cast<size_t>(q.prefix_of)];
        const uint64_t most = std::min(
            {q.shared_tokens, q.prompt_tokens - 1, other.prompt_tokens + other.output_tokens});
        q.prompt.assign(other.prompt.begin(),
                        other.prompt.begin() +
                            static_cast<ptrdiff_t>(std::min(most, uint64_t{other.prompt.size()})));
        while (q.prompt.size() < most) {
          q.prompt.push_back(NextToken(q.prompt.back(), q.prompt.size() - 1));
        }
      }
      for (uint64_t p = q.prompt.size(); p < q.prompt_tokens; ++p) {
        q.prompt.push_back(static_cast<int32_t>(Mix(Mix(i + 1) ^ p) % kVocab));
      }
    }
  }

  RecordedWorkload& w_;
  std::unordered_map<uint64_t, size_t> index_;    // request -> its place
  std::unordered_map<uint64_t, uint64_t> owner_;  // block -> request that computed it
  std::unordered_map<uint64_t, size_t> prompts_;  // fingerprint -> the first request that has it
  std::unordered_map<uint64_t, int64_t> hits_;    // request about to run -> whose prefix it shares
  std::vector<StepSeen> steps_;
  std::vector<double> pauses_;
  OpenSteps open_steps_;
  uint64_t operations_ = 0, paused_at_ = 0;
  double plan_ns_ = 0, plan_ops_ = 0, copy_bytes_ = 0;
  BusyTime copying_;  // copies of two lanes, and of one fill, run at the same time
  bool paused_ = false, in_snapshot_ = false;
};

}  // namespace

int32_t NextToken(int32_t token, uint64_t position) {
  return static_cast<int32_t>(Mix(static_cast<uint64_t>(token) ^ (position << 20)) % kVocab);
}

RecordedWorkload RecordedWorkload::FromTrace(TraceReader& reader) {
  RecordedWorkload w;
  const trace_tool::TraceMeta& m = reader.meta();
  if (m.layers.empty() || m.granule_bytes == 0 || m.block_bytes == 0 ||
      !m.pool_granules.contains(0) || m.weights_region < 0) {
    throw TraceError(
        "the metadata does not tell the memory's layout (pools, weights.layers, kv, "
        "granule_bytes): nothing to simulate");
  }
  Builder builder(&w);
  reader.ForEach([&](const TraceEvent& event) { builder.Add(event.record); });
  builder.Finish();
  if (w.requests.empty()) {
    throw TraceError(
        "no request with a known output was recorded; a replay needs the record types request, "
        "step_begin and step_end, kv_alloc and kv_hit (record without --types)");
  }
  if (w.fit.steps == 0) {
    throw TraceError("no step was recorded from begin to end: what a step costs is not known");
  }
  return w;
}

}  // namespace weir::replay
