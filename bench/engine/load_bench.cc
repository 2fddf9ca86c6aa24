// Loading: GB/s from disk to weights, with and without a backing copy, beside the disk's own rate.
//
//   weir_load_bench [CONFIG.json] [--layers N] [--directory DIR] [--device cuda|cpu] [--peer N]
//                   [--backing none,host,peer] [--rounds N] [--packed]
//
// A checkpoint of the shape's size is made up in DIR once and kept there. Each round reads it in
// each way in turn, so that a disk that changes its mind shows: past the page cache into pinned
// memory and no further (what the disk gives), then into a fresh driver's weights, with each
// backing. "memory" is the time until loading may begin (reserve, map, pin), "load" from the first
// read to the sealed weights; the rate is the file's bytes over both. --packed: as the CPU's
// kernels want the weights, which is what `weir run` loads on a CPU; otherwise as the file has
// them, through staging memory, which is what a GPU loads. Before each reading the disk rests for
// two seconds: disks of virtual machines give more after a rest.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "bench/engine/synthetic_checkpoint.h"
#include "engine/memory.h"
#include "engine/staged_upload.h"
#include "engine/weight_loader.h"
#include "vmm/host_driver.h"
#if defined(WEIR_HAVE_CUDA)
#include "vmm/cuda_driver.h"
#endif

namespace weir {
namespace {

struct Args {
  std::string config = "bench/models/llama-3.2-1b.json";
  uint32_t layers = 0;
  std::string directory = "/tmp/weir-load-bench";
  bool cuda = false;
  int peer = -1;
  std::vector<std::string> backings{"none", "host"};
  uint32_t rounds = 3;
  bool packed = false;
};

bool Parse(int argc, char** argv, Args* args) {
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag[0] != '-') {
      args->config = flag;
      continue;
    }
    if (flag == "--packed") {
      args->packed = true;
      continue;
    }
    if (i + 1 >= argc) return false;
    const std::string value = argv[++i];
    if (flag == "--layers") {
      args->layers = static_cast<uint32_t>(std::strtoul(value.c_str(), nullptr, 10));
    } else if (flag == "--directory") {
      args->directory = value;
    } else if (flag == "--device") {
      args->cuda = value == "cuda";
      if (!args->cuda && value != "cpu") return false;
    } else if (flag == "--peer") {
      args->peer = std::atoi(value.c_str());
    } else if (flag == "--rounds") {
      args->rounds = static_cast<uint32_t>(std::strtoul(value.c_str(), nullptr, 10));
    } else if (flag == "--backing") {
      args->backings.clear();
      std::istringstream in(value);
      for (std::string one; std::getline(in, one, ',');) args->backings.push_back(one);
    } else {
      return false;
    }
  }
  for (const std::string& backing : args->backings) {
    if (backing != "none" && backing != "host" && backing != "peer") return false;
  }
  return args->rounds > 0 && !args->backings.empty() && !(args->packed && args->cuda);
}

Result<std::unique_ptr<Driver>> MakeDriver(const Args& args) {
  if (!args.cuda) {
    HostDriver::Options host;
    host.populate = HostPopulate::kOnSetAccess;
    host.huge_pages = true;
    return std::unique_ptr<Driver>(WEIR_TRY(HostDriver::Create(host)));
  }
#if defined(WEIR_HAVE_CUDA)
  CudaDriverOptions cuda;
  cuda.peer_device = args.peer;
  return CreateCudaDriver(cuda);
#else
  return Unsupported("this build has no CUDA driver");
#endif
}

constexpr auto kRest = std::chrono::seconds(2);

class Stopwatch {
 public:
  double Lap() {
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - std::exchange(from_, now)).count();
  }

 private:
  std::chrono::steady_clock::time_point from_ = std::chrono::steady_clock::now();
};

// Seconds to read all of |checkpoint|'s files as the loader reads them, and no further.
Result<double> ReadOnly(const Args& args, const Checkpoint& checkpoint) {
  const StagedUploadOptions as;
  const auto driver = WEIR_TRY(MakeDriver(args));
  Staging staging;
  WEIR_TRY(staging.Make(*driver, as.buffer_bytes * as.buffers));
  const auto ring = WEIR_TRY(FileRing::Create({.depth = as.buffers, .fixed = staging.span()}));
  Stopwatch watch;
  for (const std::string& path : checkpoint.files()) {
    const UploadFile file = WEIR_TRY(UploadFile::Open(path));
    if (file.direct() < 0) return Unsupported("O_DIRECT on " + path);
    std::vector<FileRequest> requests(as.buffers);
    const uint64_t pieces = file.bytes() / as.buffer_bytes;  // the rest is no block's
    for (uint64_t i = 0; i < pieces; ++i) {
      FileRequest& request = requests[i % as.buffers];
      if (i >= as.buffers) WEIR_TRY(ring->Wait(&request));
      request = FileRequest{};
      request.fd = file.direct();
      request.offset = i * as.buffer_bytes;
      request.buffer = staging.span().subspan(i % as.buffers * as.buffer_bytes, as.buffer_bytes);
      WEIR_TRY(ring->Submit(&request));
    }
    WEIR_TRY(ring->Wait(nullptr));
  }
  return watch.Lap();
}

struct Loaded {
  double memory_s = 0;
  double load_s = 0;
  double seconds() const { return memory_s + load_s; }
};

Result<Loaded> Load(const Args& args, const Checkpoint& checkpoint, const std::string& backing) {
  const auto driver = WEIR_TRY(MakeDriver(args));
  const WeightMap map =
      WeightMap::Make(checkpoint.config(), args.packed ? WeightFormat::kCpu : WeightFormat::kCuda);
  MemoryOptions m;
  m.scratch_bytes = 64 * kMiB;
  m.kv_block_bytes = 2 * kMiB;
  m.kv_wanted_bytes = 64 * kMiB;
  m.weights = map.layout;
  m.backing = backing == "none"   ? BackingTier::kNone
              : backing == "host" ? BackingTier::kHost
                                  : BackingTier::kPeer;
  Loaded loaded;
  Stopwatch watch;
  const auto memory = WEIR_TRY(Memory::Create(*driver, m));
  loaded.memory_s = watch.Lap();
  const WeightLoadReport report = WEIR_TRY(LoadWeights(checkpoint, map, memory->weights(), {}, {},
                                                       args.packed ? nullptr : driver.get()));
  loaded.load_s = watch.Lap();
  if (!args.packed && !report.staged) return Unsupported(report.staging_reason);
  if (report.io_mode != FileRing::Mode::kIoUring) return Unsupported(report.io_mode_reason);
  if (!memory->backing_refusal().ok()) return memory->backing_refusal();
  return loaded;
}

Status Run(const Args& args) {
  const Checkpoint checkpoint =
      WEIR_TRY(OpenSyntheticCheckpoint(args.config, args.layers, args.directory));
  const auto bytes = static_cast<double>(checkpoint.stored_bytes());
  std::printf("%s, %.2f GB, %s%s\n", args.config.c_str(), bytes * 1e-9,
              WEIR_TRY(MakeDriver(args))->properties().device.c_str(),
              args.packed ? ", packed for the CPU" : "");
  const std::string shortcoming = WEIR_TRY(MakeDriver(args))->properties().host_tier_shortcoming;
  if (!shortcoming.empty()) std::printf("%s\n", shortcoming.c_str());
  std::printf("round  %-8s  memory s  load s  in all s   GB/s  of the disk\n", "what");
  for (uint32_t round = 1; round <= args.rounds; ++round) {
    const auto drop = [&]() -> Status {
      for (const std::string& path : checkpoint.files()) WEIR_TRY(DropFromPageCache(path));
      std::this_thread::sleep_for(kRest);
      return OkStatus();
    };
    WEIR_TRY(drop());
    const double disk_s = WEIR_TRY(ReadOnly(args, checkpoint));
    std::printf("%5u  %-8s  %8s  %6s  %8.3f  %5.2f\n", round, "disk", "", "", disk_s,
                bytes / disk_s * 1e-9);
    for (const std::string& backing : args.backings) {
      WEIR_TRY(drop());
      const Loaded loaded = WEIR_TRY(Load(args, checkpoint, backing));
      std::printf("%5u  %-8s  %8.3f  %6.3f  %8.3f  %5.2f  %.2f\n", round, backing.c_str(),
                  loaded.memory_s, loaded.load_s, loaded.seconds(), bytes / loaded.seconds() * 1e-9,
                  disk_s / loaded.seconds());
      std::fflush(stdout);
    }
  }
  return OkStatus();
}

}  // namespace
}  // namespace weir

int main(int argc, char** argv) {
  weir::Args args;
  if (!weir::Parse(argc, argv, &args)) {
    std::fprintf(stderr,
                 "usage: %s [CONFIG.json] [--layers N] [--directory DIR] [--device cuda|cpu]\n"
                 "          [--peer N] [--backing none,host,peer] [--rounds N] [--packed]\n",
                 argv[0]);
    return 2;
  }
  const weir::Status run = weir::Run(args);
  if (run.ok()) return 0;
  std::fprintf(stderr, "%s\n", run.ToString().c_str());
  return 1;
}
