#include "bench/engine/overload_report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "engine/cli/bench_metrics.h"

namespace weir::overload {
namespace {

Json DistributionJson(const std::vector<double>& values) {
  const cli::Distribution d = cli::DistributionOf(values);
  return {{"count", d.count}, {"mean", d.mean}, {"p50", d.p50},
          {"p90", d.p90},     {"p99", d.p99},   {"max", d.max}};
}

void Append(std::vector<double>* to, const std::vector<double>& from) {
  to->insert(to->end(), from.begin(), from.end());
}

}  // namespace

Json LatencyJson(const Latencies& l) {
  return {{"ttft_ms", DistributionJson(l.ttft)},
          {"tpot_ms", DistributionJson(l.tpot)},
          {"itl_ms", DistributionJson(l.itl)}};
}

Json FiguresJson(const Figures& f) {
  return {{"seconds", f.seconds},
          {"tokens_per_s", f.tokens_per_s},
          {"prompt_tokens_per_s", f.prompt_tokens_per_s},
          {"requests_per_s", f.requests_per_s},
          {"running", f.running},
          {"step_ms", f.step_ms},
          {"step_p99_ms", f.step_p99_ms},
          {"steps", f.steps},
          {"decode_step_ms", f.decode_step_ms},
          {"prompt_steps", f.prompt_steps},
          {"prompt_step_ms", f.prompt_step_ms},
          {"stall_share", f.stall_share},
          {"waited_share", f.waited_share},
          {"away_gib", f.away_gib},
          {"kv_blocks", f.kv_blocks},
          {"streamed_gb_s", f.streamed_gb_s},
          {"preemptions", f.preemptions},
          {"border_moves", f.border_moves},
          {"border_refusals", f.border_refusals},
          {"border_ms", f.border_ms}};
}

void Append(Latencies* to, const Latencies& from) {
  Append(&to->ttft, from.ttft);
  Append(&to->tpot, from.tpot);
  Append(&to->itl, from.itl);
}

void Header(const char* title) {
  std::printf("%-34s %9s %6s %7s %8s %8s %6s %8s %8s %6s %7s %5s %9s %9s %8s %8s\n", title,
              "tokens/s", "gain", "running", "step ms", "p99 ms", "stall%", "away GiB", "KV blk",
              "GB/s", "preempt", "moves", "TTFT p50", "TTFT p99", "ITL p50", "ITL p99");
}

void Row(const std::string& name, const Figures& f, double base, const Latencies& l) {
  const cli::Distribution ttft = cli::DistributionOf(l.ttft), itl = cli::DistributionOf(l.itl);
  std::printf(
      "%-34s %9.0f %6.3f %7.1f %8.3f %8.3f %6.2f %8.2f %8.0f %6.1f %7llu %5llu %9.1f %9.1f %8.2f "
      "%8.2f\n",
      name.c_str(), f.tokens_per_s, base > 0 ? f.tokens_per_s / base : 0, f.running, f.step_ms,
      f.step_p99_ms, f.stall_share * 100, f.away_gib, f.kv_blocks, f.streamed_gb_s,
      static_cast<unsigned long long>(f.preemptions),
      static_cast<unsigned long long>(f.border_moves), ttft.p50, ttft.p99, itl.p50, itl.p99);
  std::fflush(stdout);
}

Json Beliefs(const EngineCore& core, const TidePolicy& tide) {
  constexpr uint32_t kAround = 3;
  const PolicySnapshot s = core.Snapshot();
  const uint32_t now = s.weights.granules_per_layer;
  Json borders = Json::array();
  std::printf("    believes (tokens/s at granules a layer):");
  for (uint32_t e = now - std::min(now, kAround);
       e <= std::min(now + kAround, s.weights.max_granules_per_layer); ++e) {
    const TidePolicy::Prospect p = tide.Predict(s, e);
    borders.push_back({{"granules_per_layer", e},
                       {"running", p.running},
                       {"step_ms", p.step_ns * 1e-6},
                       {"tokens_per_s", p.tokens_per_s}});
    std::printf(" %u%s %.0f", e, e == now ? "*" : "", p.tokens_per_s);
  }
  std::printf("; link %.0f GB/s, %.1f blocks beside output, %.0f tokens each\n",
              s.cost.link_bytes_per_ns, s.demand.blocks_beside_output, s.demand.output_per_request);
  return {{"granules_per_layer", now},
          {"borders", std::move(borders)},
          {"link_gb_s", s.cost.link_bytes_per_ns},
          {"fixed_ms", s.cost.fixed_ns * 1e-6},
          {"per_token_us", s.cost.per_token_ns * 1e-3},
          {"free_tokens", s.cost.free_tokens},
          {"per_context_ns", s.cost.per_context_ns},
          {"per_pair_ns", s.cost.per_pair_ns},
          {"copy_interference_ns", s.cost.copy_interference},
          {"blocks_beside_output", s.demand.blocks_beside_output},
          {"output_spread", s.demand.output_spread},
          {"prefill_per_request", s.demand.prefill_per_request},
          {"output_per_request", s.demand.output_per_request}};
}

Figures MeanOf(const std::vector<Figures>& all) {
  Figures mean;
  for (const Figures& f : all) {
    const auto n = static_cast<double>(all.size());
    for (double Figures::*const field :
         {&Figures::seconds, &Figures::tokens_per_s, &Figures::prompt_tokens_per_s,
          &Figures::requests_per_s, &Figures::running, &Figures::away_gib, &Figures::kv_blocks,
          &Figures::step_ms, &Figures::step_p99_ms, &Figures::decode_step_ms,
          &Figures::prompt_step_ms, &Figures::stall_share, &Figures::waited_share,
          &Figures::streamed_gb_s, &Figures::border_ms}) {
      mean.*field += f.*field / n;
    }
    for (uint64_t Figures::*const field :
         {&Figures::steps, &Figures::prompt_steps, &Figures::preemptions, &Figures::border_moves,
          &Figures::border_refusals}) {
      mean.*field += f.*field;
    }
  }
  return mean;
}

void Gains(const std::vector<Figures>& all, const std::vector<Figures>& resident, Json* row) {
  const auto n = static_cast<double>(all.size());
  double mean = 0, squares = 0;
  for (size_t r = 0; r < all.size(); ++r) {
    mean += all[r].tokens_per_s / resident[r].tokens_per_s / n;
  }
  for (size_t r = 0; r < all.size(); ++r) {
    squares += std::pow(all[r].tokens_per_s / resident[r].tokens_per_s - mean, 2);
  }
  const double deviation = all.size() > 1 ? std::sqrt(squares / (n - 1)) : 0;
  (*row)["gain"] = mean;
  (*row)["gain_deviation"] = deviation;
  if (all.size() > 1) std::printf("    gain %.3f, standard deviation %.3f\n", mean, deviation);
}

}  // namespace weir::overload
