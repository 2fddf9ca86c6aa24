// Policies against each other in the same memory, under more requests than it has KV for.
//
//   weir_overload_bench MODEL [options]        (overload_options.cc lists them)
//
// For each ratio W/C the budget is weights / ratio plus the step buffers, and one engine serves all
// policies in turn: the same requests in the same order for each. --compress: of compressed weights
// (docs/gpu.md), in the budget of plain ones.
//   flood  requests always wait; tokens of --measure seconds after --warm seconds, --repeats times
//          from other requests on. In the first seconds sequences are young, hold little KV, and
//          had their prompts computed before it is measured: borders that are wide for them look
//          good. And a few dozen long requests more or less make a tenth of `resident`.
//   swing  --rounds times --phase seconds each of light load and of overload
//   light  --rounds turns of --phase seconds of light load, each beside a turn of `resident`, which
//          of the two comes first changing
// Light and overload are --light and --heavy times what `resident` sustains in a flood.
//
// The bound beside the gain (docs/policies.md): a step that reads all of C once takes C/(B - L)
// with E = L T bytes streamed in it, and holds C - W + E of KV; resident it takes C/B and holds
// C - W. B is given with --hbm (GB/s), L is what the engine measured. Prompts take their time
// whatever KV there is: after a flood the bound is said again with the share that they had of
// `resident`'s.
#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <memory>

#include <nlohmann/json.hpp>

#include "bench/engine/overload_options.h"
#include "bench/engine/overload_report.h"
#include "bench/engine/overload_run.h"
#include "engine/backend.h"
#include "engine/cli/bench_metrics.h"
#include "engine/open_model.h"
#include "policy/registry.h"
#include "policy/tide.h"

namespace weir::overload {
namespace {

double Bound(double capacity, double weights, double hbm, double link) {
  const double step = capacity / (hbm - link);
  const double kv = std::min(capacity - weights + link * step, capacity);
  return (kv / step) / ((capacity - weights) * hbm / capacity);
}

// Of |resident|'s time what its steps with prompts take beyond those without gets no shorter.
double BoundWithPrompts(double bound, const Figures& resident) {
  if (resident.steps == 0) return bound;
  const double more_ms = resident.prompt_step_ms - resident.decode_step_ms;
  const double with_prompts =
      static_cast<double>(resident.prompt_steps) / static_cast<double>(resident.steps);
  const double share = std::clamp(with_prompts * more_ms / resident.step_ms, 0.0, 1.0);
  return 1 / ((1 - share) / bound + share);
}

// One ratio: an engine for the policies with all weights at home while nothing is away, another for
// those that read the embedding in place from load on, and what was measured on them. Both are open
// at once, so the GPU has twice the budget in use; --algorithms gives both the same products.
class RatioBench {
 public:
  RatioBench(const Options& options, double ratio) : options_(options), ratio_(ratio) {}

  Status Run(Json* rows) {
    WEIR_TRY(Open());
    for (const Mode mode : options_.modes) {
      if (mode != Mode::kFlood && sustained_ <= 0) WEIR_TRY(MeasureSustained());
      switch (mode) {
        case Mode::kFlood: WEIR_TRY(Flood(rows)); break;
        case Mode::kSwing: WEIR_TRY(Swing(rows)); break;
        case Mode::kLight: WEIR_TRY(Light(rows)); break;
      }
    }
    return OkStatus();
  }

 private:
  Status Open() {
    EngineOptions& engine = engine_options_ = options_.engine;
    const Checkpoint checkpoint = WEIR_TRY(OpenCheckpoint(engine));
    MemoryOptions sizes;
    {
      // The same budget with --compress as without.
      EngineOptions plain = engine;
      plain.compress_weights = false;
      const auto backend = WEIR_TRY(MakeBackend(plain, checkpoint.config(),
                                                {.max_rows = engine.max_num_batched_tokens,
                                                 .max_sequences = engine.max_num_seqs,
                                                 .max_context = engine.max_model_len,
                                                 .vocab_size = checkpoint.config().vocab_size}));
      backend->Describe(&sizes);
    }
    const auto weights = static_cast<double>(sizes.weights.region_bytes);
    const double capacity = weights / ratio_;
    engine.hbm_budget = static_cast<uint64_t>(capacity) + sizes.scratch_bytes;
    WEIR_TRY(OpenFor("resident"));
    const double link = engine_->core().memory().link_bytes_per_ns();
    bound_ = Bound(capacity, weights, options_.hbm_gb_s, link);
    bench::WorkloadOptions workload = options_.workload;
    workload.vocab_size = engine_->model().vocab_size;
    workload.max_model_len = engine.max_model_len;
    workload_ = WEIR_TRY(bench::MakeWorkload(workload));
    std::printf(
        "\nW/C %.2f: %.2f GiB = weights %.2f + KV %.2f (and %.2f of step buffers), link %.0f "
        "GB/s, %s; bound %.2fx resident\n",
        ratio_, capacity / (1 << 30), weights / (1 << 30), (capacity - weights) / (1 << 30),
        static_cast<double>(sizes.scratch_bytes) / (1 << 30), link, engine_->info().device.c_str(),
        bound_);
    return OkStatus();
  }

  // Makes |engine_| the one for policy |name|.
  Status OpenFor(const std::string& name) {
    const std::unique_ptr<Policy> policy = WEIR_TRY(MakePolicy(name));
    std::unique_ptr<Engine>& engine = engines_[policy->lookup_in_place() ? 1 : 0];
    if (engine == nullptr) {
      engine_options_.policy = name;
      engine = WEIR_TRY(Engine::Open(engine_options_));
    }
    engine_ = engine.get();
    return OkStatus();
  }

  // Serves |load|(run) under |name| from an idle engine with nothing away, and leaves it so.
  template <typename Load>
  Status Under(const std::string& name, Load load, size_t first = 0) {
    const std::unique_ptr<Policy> policy = WEIR_TRY(MakePolicy(name));
    if (resident_ == nullptr) resident_ = WEIR_TRY(MakePolicy("resident"));
    WEIR_TRY(OpenFor(name));
    engine_->core().SetPolicy(*policy);
    LoadRun run(*engine_, workload_, salt_ += 1000, first);
    Status served = load(run);
    if (served.ok()) served = run.Stop();
    engine_->core().SetPolicy(*resident_);
    WEIR_TRY(std::move(served));
    for (int i = 0; i < 3; ++i) WEIR_TRY(engine_->Step());
    if (engine_->core().memory().view().evicted_granules == 0) return OkStatus();
    return BadState("weights did not come home: " + engine_->core().last_border_error().ToString());
  }

  Json Labels(Mode mode, const std::string& policy) const {
    return {{"mode", ModeName(mode)},
            {"ratio", ratio_},
            {"policy", policy},
            {"bound", bound_},
            {"compress_weights", options_.engine.compress_weights}};
  }

  Status MeasureFlood(LoadRun& run, Figures* figures) {
    WEIR_TRY(run.Flood(options_.warm_s));
    run.Mark();
    WEIR_TRY(run.Flood(options_.measure_s));
    *figures = WEIR_TRY(run.Take());
    return OkStatus();
  }

  // Requests a second that resident weights sustain.
  Status MeasureSustained() {
    Figures figures;
    const auto load = [&](LoadRun& run) { return MeasureFlood(run, &figures); };
    WEIR_TRY(Under("resident", load));
    return Sustained(figures);
  }
  Status Sustained(const Figures& resident) {
    // Of tokens: few requests end while it is measured.
    sustained_ = resident.tokens_per_s * static_cast<double>(workload_.requests.size()) /
                 static_cast<double>(std::max<uint64_t>(1, workload_.output_tokens));
    return sustained_ > 0 ? OkStatus() : BadState("no token was generated; measure for longer");
  }

  Status Flood(Json* rows) {
    Header("flood");
    std::vector<Figures> resident;
    for (const std::string& name : options_.policies) {
      std::vector<Figures> all;
      Latencies latencies;
      Json row = Labels(Mode::kFlood, name);
      for (uint32_t r = 0; r < options_.repeats; ++r) {
        Latencies own;
        const auto load = [&](LoadRun& run) -> Status {
          WEIR_TRY(MeasureFlood(run, &all.emplace_back()));
          if (!run.latencies().empty()) own = run.latencies()[0];
          const std::unique_ptr<Policy> policy = WEIR_TRY(MakePolicy(name));
          if (const auto* tide = dynamic_cast<const TidePolicy*>(policy.get())) {
            row["believes"].push_back(Beliefs(engine_->core(), *tide));
          }
          return OkStatus();
        };
        WEIR_TRY(Under(name, load, workload_.requests.size() * r / options_.repeats));
        if (name == "resident") resident = all;
        Row(name, all.back(), resident[r].tokens_per_s, own);
        row["repeats"].push_back(FiguresJson(all.back()));
        Append(&latencies, own);
      }
      const Figures mean = MeanOf(all);
      if (name == "resident") {
        WEIR_TRY(Sustained(mean));
        bound_with_prompts_ = BoundWithPrompts(bound_, mean);
        std::printf("    bound with the time that prompts take: %.2fx resident\n",
                    bound_with_prompts_);
      }
      row["bound_with_prompts"] = bound_with_prompts_;
      Gains(all, resident, &row);
      row.update(FiguresJson(mean));
      row.update(LatencyJson(latencies));
      rows->push_back(std::move(row));
    }
    return OkStatus();
  }

  Status Swing(Json* rows) {
    std::printf("arrivals: %.1f and %.1f requests/s in turn, %.1f s each, %u rounds\n",
                sustained_ * options_.light, sustained_ * options_.heavy, options_.phase_s,
                options_.rounds);
    Header("swing: light load, overload");
    double base = 0;
    for (const std::string& name : options_.policies) {
      Latencies latencies[2];
      std::vector<Figures> figures[2];
      double tokens = 0, seconds = 0;
      const auto load = [&](LoadRun& run) -> Status {
        for (uint32_t turn = 0; turn < 2 * options_.rounds; ++turn) {
          const size_t phase = turn % 2;
          run.Mark();
          WEIR_TRY(run.Stream(sustained_ * (phase == 0 ? options_.light : options_.heavy),
                              options_.phase_s, turn, phase));
          figures[phase].push_back(WEIR_TRY(run.Take()));
          tokens += figures[phase].back().tokens_per_s * figures[phase].back().seconds;
          seconds += figures[phase].back().seconds;
          for (size_t p = 0; p < run.latencies().size(); ++p) {
            Append(&latencies[p], run.latencies()[p]);
          }
        }
        return OkStatus();
      };
      WEIR_TRY(Under(name, load));
      const double rate = tokens / seconds;
      if (name == "resident") base = rate;
      Json row = Labels(Mode::kSwing, name);
      row["tokens_per_s"] = rate;
      for (size_t phase = 0; phase < 2; ++phase) {
        Json turns = Json::array();
        for (const Figures& f : figures[phase]) turns.push_back(FiguresJson(f));
        Json part = LatencyJson(latencies[phase]);
        part["turns"] = std::move(turns);
        row[phase == 0 ? "light" : "heavy"] = std::move(part);
        Row("  " + name, figures[phase].back(), 0, latencies[phase]);
      }
      std::printf("%-34s %9.0f %6.3f\n", name.c_str(), rate, base > 0 ? rate / base : 0);
      rows->push_back(std::move(row));
    }
    return OkStatus();
  }

  // One turn at light load; a fifth more before it is measured.
  Status LightTurn(const std::string& name, uint64_t seed, Figures* figures, Latencies* latencies) {
    return Under(name, [&](LoadRun& run) -> Status {
      const double rate = sustained_ * options_.light;
      WEIR_TRY(run.Stream(rate, options_.phase_s / 5, seed, 0));
      run.Mark();
      WEIR_TRY(run.Stream(rate, options_.phase_s, seed + 1, 0));
      *figures = WEIR_TRY(run.Take());
      if (!run.latencies().empty()) *latencies = run.latencies()[0];
      return OkStatus();
    });
  }

  Status Light(Json* rows) {
    std::printf("arrivals: %.1f requests/s, turns of %.1f s\n", sustained_ * options_.light,
                options_.phase_s);
    Header("light load");
    for (const std::string& name : options_.policies) {
      if (name == "resident" && options_.policies.size() > 1) continue;
      Latencies all[2];
      Figures figures[2];
      Json pairs = Json::array();
      for (uint32_t turn = 0; turn < options_.rounds; ++turn) {
        cli::Distribution ttft[2], itl[2];
        for (uint32_t i = 0; i < 2; ++i) {
          const size_t which = (i + turn) % 2;  // 0: resident
          Latencies latencies;
          WEIR_TRY(
              LightTurn(which == 0 ? "resident" : name, 2 * turn, &figures[which], &latencies));
          ttft[which] = cli::DistributionOf(latencies.ttft);
          itl[which] = cli::DistributionOf(latencies.itl);
          Append(&all[which], latencies);
        }
        const auto over = [](double a, double b) { return b > 0 ? a / b : 0; };
        pairs.push_back({{"ttft_mean", over(ttft[1].mean, ttft[0].mean)},
                         {"ttft_p50", over(ttft[1].p50, ttft[0].p50)},
                         {"itl_mean", over(itl[1].mean, itl[0].mean)},
                         {"itl_p50", over(itl[1].p50, itl[0].p50)},
                         {"itl_p99", over(itl[1].p99, itl[0].p99)}});
        std::printf("%-34s TTFT mean %.4f p50 %.4f, ITL mean %.4f p50 %.4f p99 %.4f of resident\n",
                    ("  " + name + ", turn " + std::to_string(turn + 1)).c_str(),
                    pairs.back()["ttft_mean"].get<double>(), pairs.back()["ttft_p50"].get<double>(),
                    pairs.back()["itl_mean"].get<double>(), pairs.back()["itl_p50"].get<double>(),
                    pairs.back()["itl_p99"].get<double>());
      }
      Row("resident", figures[0], figures[0].tokens_per_s, all[0]);
      Row(name, figures[1], figures[0].tokens_per_s, all[1]);
      Json row = Labels(Mode::kLight, name);
      row.update(FiguresJson(figures[1]));
      row.update(LatencyJson(all[1]));
      row["resident"] = LatencyJson(all[0]);
      row["pairs"] = std::move(pairs);
      rows->push_back(std::move(row));
    }
    return OkStatus();
  }

  const Options& options_;
  const double ratio_;
  std::unique_ptr<Policy> resident_;  // between runs
  EngineOptions engine_options_;
  std::array<std::unique_ptr<Engine>, 2> engines_;
  Engine* engine_ = nullptr;  // that of the policy in force
  bench::Workload workload_;
  double bound_ = 0, bound_with_prompts_ = 0;
  double sustained_ = 0;  // requests/s
  uint64_t salt_ = 0;
};

Status Run(const Options& options) {
  Json rows = Json::array();
  for (const double ratio : options.ratios) WEIR_TRY(RatioBench(options, ratio).Run(&rows));
  if (options.json.empty()) return OkStatus();
  std::ofstream out(options.json);
  out << Json{
      {"model", options.engine.model},
      {"dataset", std::string(bench::DatasetName(options.workload.dataset))},
      {"input_len", options.workload.input_len},
      {"output_len", options.workload.output_len},
      {"light", options.light},
      {"heavy", options.heavy},
      {"rows",
       rows}}.dump(1);
  return out.flush() ? OkStatus() : IoError("cannot write " + options.json);
}

}  // namespace
}  // namespace weir::overload

int main(int argc, char** argv) {
  const weir::Result<weir::overload::Options> options = weir::overload::ParseOptions(argc, argv);
  if (!options.ok()) {
    std::fprintf(stderr, "%s\n", options.status().message().c_str());
    return 2;
  }
  const weir::Status status = weir::overload::Run(*options);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
