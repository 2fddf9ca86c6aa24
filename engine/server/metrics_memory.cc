// The part of GET /metrics that is about memory, the server and the process.
#include <array>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>

#include <dirent.h>
#include <unistd.h>

#include "engine/server/metrics.h"

namespace weir::server {
namespace {

using Type = Exposition::Type;

double Number(uint64_t n) {
  return static_cast<double>(n);
}

double Seconds(TimeNs ns) {
  return static_cast<double>(ns) / 1e9;
}

void Gauge(Exposition& out, const char* name, const char* help, double value) {
  out.Family(name, Type::kGauge, help);
  out.Sample(value);
}

void CounterOf(Exposition& out, const char* name, const char* help, double value) {
  out.Family(name, Type::kCounter, help);
  out.Sample(value);
}

uint64_t OpenDescriptors() {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir("/proc/self/fd"), closedir);
  if (!folder) return 0;
  uint64_t n = 0;
  while (readdir(folder.get()) != nullptr) ++n;
  return n >= 3 ? n - 3 : 0;  // ".", "..", and the folder itself
}

}  // namespace

void ServerMetrics::RenderMemory(Exposition& out, const AsyncStats& stats) const {
  const MemoryView& memory = stats.memory;
  Gauge(out, "weir_budget_bytes", "Device memory weir takes.", Number(options_.budget_bytes));
  Gauge(out, "weir_weight_bytes", "Weights of the model, wherever they are.",
        Number(options_.weight_bytes));
  Gauge(out, "weir_evicted_bytes", "Weights away from device memory.", Number(stats.evicted_bytes));
  Gauge(out, "weir_evicted_granules_per_layer", "Where the border is: granules lent by each layer.",
        memory.granules_per_layer);
  Gauge(out, "weir_granule_bytes", "Size of a granule.", Number(memory.granule_bytes));
  out.Family("weir_granules", Type::kGauge, "Granules by state; the states add up to the budget.");
  out.Sample({{"state", "free"}}, memory.pool.free);
  out.Sample({{"state", "pinned"}}, memory.pool.pinned);
  out.Sample({{"state", "mapped"}}, memory.pool.mapped);
  out.Sample({{"state", "retiring"}}, memory.pool.retiring);
  out.Family("weir_granules_by_owner", Type::kGauge, "Granules by what they hold.");
  for (size_t owner = 1; owner < kOwnerCount; ++owner) {
    out.Sample({{"owner", std::string(OwnerName(static_cast<Owner>(owner)))}},
               memory.pool.by_owner[owner]);
  }
  out.Family("weir_kv_blocks", Type::kGauge, "KV blocks of 16 tokens mapped now, by state.");
  out.Sample({{"state", "free"}}, stats.blocks.free);
  out.Sample({{"state", "cached"}}, stats.blocks.cached);
  out.Sample({{"state", "used"}}, stats.blocks.used);
  Gauge(out, "weir_kv_blocks_capacity", "KV blocks mapped now.", stats.blocks.capacity);
  Gauge(out, "weir_kv_extents", "Extents of KV mapped now.", memory.kv_extents);
  Gauge(out, "weir_leaked_kv_blocks", "KV blocks used by nobody when last idle: a defect if not 0.",
        Number(stats.leaked_blocks));
  CounterOf(out, "weir_prefix_cache_evicted_blocks_total",
            "Cached KV blocks given up for other use.", Number(stats.prefix_evicted_blocks));
  CounterOf(out, "weir_scrub_bytes_total", "KV zeroed because it went from one tenant to another.",
            Number(stats.core.scrubbed_blocks * stats.kv_block_bytes));
}

void ServerMetrics::RenderPager(Exposition& out, const AsyncStats& stats) const {
  const WeightPagerStats& pager = stats.pager;
  const Labels policy = {{"policy", options_.policy}};
  out.Family("weir_border_moves_total", Type::kCounter, "Moves of the border.");
  out.Sample(policy, Number(stats.core.border_moves));
  CounterOf(out, "weir_border_split_moves_total",
            "Steps behind whose gates not all that moved had room.",
            Number(pager.split_transitions));
  out.Family("weir_policy_fallback_total", Type::kCounter,
             "Wishes of the policy that were clipped or failed.");
  out.Sample(policy, Number(stats.core.border_refusals));
  CounterOf(out, "weir_border_seconds_total", "Time spent moving the border.",
            Seconds(stats.core.border_ns));
  CounterOf(out, "weir_granules_remapped_total", "Granules that changed their mapping.",
            Number(pager.granules_remapped));
  out.Family("weir_page_faults_total", Type::kCounter,
             "Gates reached: major before their weights had arrived, prefetch_hit after.");
  const LinkReport& link = stats.link;
  const std::string tier(TierName(link.tier));
  out.Sample({{"kind", "major"}, {"tier", tier}}, Number(pager.faults));
  out.Sample({{"kind", "prefetch_hit"}, {"tier", tier}},
             Number(pager.gate_arrivals - std::min(pager.gate_arrivals, pager.faults)));
  // The whole batch waits at a gate, so some and full are one.
  out.Family("weir_pressure_stall_seconds_total", Type::kCounter,
             "Time in which some or all of the batch waited for weights (PSI).");
  out.Sample({{"scope", "some"}}, Seconds(pager.stall_ns));
  out.Sample({{"scope", "full"}}, Seconds(pager.stall_ns));
  out.Family("weir_migrated_bytes_total", Type::kCounter, "Bytes moved, by where and why.");
  out.Sample({{"src", tier}, {"dst", "hbm"}, {"cause", "stream"}}, Number(pager.bytes_copied));
  out.Sample({{"src", "hbm"}, {"dst", "hbm"}, {"cause", "kv_move"}},
             Number(stats.kv_blocks_moved * stats.kv_block_bytes));
  CounterOf(out, "weir_copy_repairs_total", "Stripes fetched again after a failed or lost copy.",
            Number(pager.repairs));
  out.Family("weir_link_troubles_total", Type::kCounter,
             "Times the link to the backing copy became slow, its copies failed and weights came "
             "home (held), of those by reading them anew from the checkpoint (reread), or weights "
             "could not come home (lost).");
  out.Sample({{"tier", tier}, {"kind", "slow"}}, Number(link.slow));
  out.Sample({{"tier", tier}, {"kind", "held"}}, Number(link.held));
  out.Sample({{"tier", tier}, {"kind", "reread"}}, Number(link.reread));
  out.Sample({{"tier", tier}, {"kind", "lost"}}, Number(link.lost));
  Gauge(out, "weir_weights_held_home",
        "1 while weights stay in device memory because copies of them failed, until the link is "
        "tried again.",
        link.state == LinkState::kHeld ? 1 : 0);
  CounterOf(out, "weir_steps_total", "Steps that succeeded.", Number(stats.core.steps));
  CounterOf(out, "weir_failed_steps_total", "Steps that failed and were tried again.",
            Number(stats.core.failed_steps));
  CounterOf(out, "weir_compute_seconds_total", "Time inside steps' compute.",
            Seconds(stats.core.compute_ns));
  CounterOf(out, "weir_recomputed_tokens_total", "KV thrown away by preemption, in tokens.",
            Number(stats.scheduler.recomputed_tokens));
}

void ServerMetrics::RenderServer(Exposition& out, const AsyncStats& stats,
                                 const HttpStats& http) const {
  out.Family("weir_health", Type::kGauge, "1 for the state the server is in.");
  constexpr std::array kNames = {"starting", "ready", "not_ready", "draining", "failed"};
  for (size_t i = 0; i < kNames.size(); ++i) {
    out.Sample({{"state", kNames[i]}}, static_cast<size_t>(stats.health) == i ? 1 : 0);
  }
  Gauge(out, "weir_queued_prompt_tokens", "Prompt tokens in front of the engine.",
        Number(stats.queued_tokens));
  Gauge(out, "weir_requests_unfinished", "Requests known, waiting and running.", stats.unfinished);
  Gauge(out, "weir_http_connections", "Open connections.", Number(http.connections));
  Gauge(out, "weir_http_body_bytes", "Bodies of requests that arrived and were not read yet.",
        Number(http.body_bytes));
  CounterOf(out, "weir_http_accepted_total", "Connections accepted.", Number(http.accepted));
  CounterOf(out, "weir_http_requests_total", "HTTP requests read.", Number(http.requests));
  CounterOf(out, "weir_http_rejected_total",
            "Requests and connections the server refused by itself: malformed, too large, too "
            "slow, too many.",
            Number(http.rejected));
}

void RenderProcess(Exposition& out) {
  std::ifstream statm("/proc/self/statm");
  uint64_t virtual_pages = 0;
  uint64_t resident_pages = 0;
  statm >> virtual_pages >> resident_pages;
  const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  Gauge(out, "process_resident_memory_bytes", "Resident memory.", Number(resident_pages * page));
  Gauge(out, "process_virtual_memory_bytes", "Virtual memory.", Number(virtual_pages * page));
  Gauge(out, "process_open_fds", "Open file descriptors.", Number(OpenDescriptors()));
  timespec cpu = {};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
  CounterOf(out, "process_cpu_seconds_total", "CPU time, user and system.",
            static_cast<double>(cpu.tv_sec) + static_cast<double>(cpu.tv_nsec) / 1e9);
}

}  // namespace weir::server
