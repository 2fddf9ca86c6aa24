// EngineOptions: what a user can choose about an engine. Names follow vLLM and llama.cpp where they
// have one. Every field: meaning, unit, default, what 0 does.
#pragma once

#include <cstdint>
#include <string>

namespace weir {

enum class DeviceKind : uint8_t { kAuto, kCpu, kCuda };
enum class KvCacheDtype : uint8_t { kBf16, kF32 };
enum class BackingChoice : uint8_t { kHost, kNvme, kNone, kPeer };
// Which kernel attends for sequences with one new row on a GPU; kAuto: our own where it takes the
// shape.
enum class DecodeAttentionUse : uint8_t { kAuto, kFlashInfer };

// Recording of events (vmm/trace_format.h).
struct TraceOptions {
  bool attach = true;                // let a recorder of the same user attach (weir-trace record)
  std::string file;                  // record everything into it from the start; empty: no
  uint32_t ring_records = 1U << 16;  // of 64 bytes, for each thread that emits; a power of two
  // For the metadata: what the program is and does. No prompt and no key may be in it.
  std::string command, version, commit;
};

struct EngineOptions {
  // Model: a Hugging Face directory, a .gguf file, or with dummy_weights a config.json.
  std::string model;
  bool dummy_weights = false;  // made-up weights of the model's shape, for benchmarks
  uint64_t dummy_seed = 0;
  // The largest matrices (gate and up) lie in memory without loss in 0.758 of their bytes; on
  // Hopper GPUs.
  bool compress_weights = false;

  DeviceKind device = DeviceKind::kAuto;
  uint32_t device_index = 0;  // of the GPU
  uint32_t peer_index = 1;    // of the GPU that holds evicted weights, for BackingChoice::kPeer
  // Of CudaCompute: what an earlier engine of this process chose (its algorithms()), so that both
  // compute the same bits; empty: choose by timing.
  std::string gemm_algorithms;
  // A file that keeps such choices between processes; empty: none. Read if it is there and of this
  // GPU and library, then written.
  std::string gemm_algorithm_file;
  DecodeAttentionUse decode_attention = DecodeAttentionUse::kAuto;
  uint32_t threads = 0;  // compute threads on the CPU; 0: one per core

  // Memory. Sizes in bytes.
  uint64_t hbm_budget = 0;      // everything weir takes of the device; 0: weights + all KV wanted
  uint64_t kv_cache_bytes = 0;  // KV wanted when no budget is given; 0: from the limits below
  uint64_t granule = 0;         // 0: chosen from device and model
  BackingChoice backing = BackingChoice::kHost;  // where evicted weights live
  std::string backing_directory = "/tmp";        // of BackingChoice::kNvme
  uint32_t ring_slots = 2;
  KvCacheDtype kv_cache_dtype = KvCacheDtype::kBf16;
  bool enable_prefix_caching = true;
  bool scrub_kv = true;  // zero KV blocks that go from one tenant (key, cache_salt) to another

  // Scheduling.
  uint32_t max_model_len = 0;  // tokens of prompt + output; 0: what the model was made for
  uint32_t max_num_seqs = 64;  // sequences running at once
  uint32_t max_num_batched_tokens = 512;  // tokens computed in one step

  std::string policy = "tide";  // name or name{key=value; ...}; see docs/policies.md

  TraceOptions trace;

  // Debugging.
  bool verify_stripes = false;  // checksum every stripe that arrives
  bool poison_freed = false;    // NaN in every granule that is given back
};

}  // namespace weir
