// weir-trace record: attaches to a running weir process and writes what happens into a file.
#define XXH_INLINE_ALL
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "tools/trace/attach.h"
#include "tools/trace/commands.h"
#include "tools/trace/error.h"
#include "tools/trace/schema.h"

namespace weir::trace_tool {
namespace {

std::atomic<bool> g_stop{false};

// Represents the file being written; its layout is trace_format.h's.
class File {
 public:
  File(const std::string& path, uint64_t mask) : path_(path) {
    fd_ = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd_ < 0 || fchmod(fd_, 0600) != 0) Fail();
    std::memcpy(header_.magic, kTraceFileMagic, sizeof(header_.magic));
    header_.mask = mask;
    header_.start_ns = MonotonicNs();
    header_.start_unix_ns =
        static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                  std::chrono::system_clock::now().time_since_epoch())
                                  .count());
  }
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void Begin(const std::string& metadata) {
    header_.meta_bytes = static_cast<uint32_t>((metadata.size() + 63) / 64 * 64);
    std::string text = metadata;
    text.resize(header_.meta_bytes, ' ');
    Write(&header_, sizeof(header_), 0);
    Write(text.data(), text.size(), sizeof(header_));
    at_ = sizeof(header_) + text.size();
  }
  void Append(std::span<const TraceRecord> records, uint64_t lost) {
    do {
      const auto block = records.first(std::min<size_t>(records.size(), kMostTraceBlockRecords));
      WriteBlock(block, std::exchange(lost, 0));
      records = records.subspan(block.size());
    } while (!records.empty());
  }
  void Close(const std::string& metadata) {
    Write(metadata.data(), metadata.size(), at_);
    header_.tail_meta_offset = at_;
    header_.tail_meta_bytes = static_cast<uint32_t>(metadata.size());
    Write(&header_, sizeof(header_), 0);
  }

 private:
  void WriteBlock(std::span<const TraceRecord> records, uint64_t lost) {
    TraceBlockHeader block;
    block.records = static_cast<uint32_t>(records.size());
    block.lost = lost;
    block.checksum = XXH3_64bits(records.data(), records.size_bytes());
    Write(&block, sizeof(block), at_);
    Write(records.data(), records.size_bytes(), at_ + sizeof(block));
    at_ += sizeof(block) + records.size_bytes();
  }
  [[noreturn]] void Fail() { throw TraceError(path_ + ": " + std::strerror(errno)); }
  void Write(const void* data, size_t bytes, uint64_t at) {
    const auto* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t n = pwrite(fd_, from, bytes, static_cast<off_t>(at));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) Fail();
      from += n;
      bytes -= static_cast<size_t>(n);
      at += static_cast<uint64_t>(n);
    }
  }
  std::string path_;
  int fd_ = -1;
  TraceFileHeader header_;
  uint64_t at_ = 0;
};

struct RecordOptions {
  int pid = 0;
  std::string path = "weir.wtrace";
  double duration_s = 0;
  std::vector<std::string> types;
};

uint64_t MaskOf(const std::vector<std::string>& types) {
  uint64_t mask = 0;
  for (const std::string& name : types) {
    const auto type = TypeByName(name);
    if (!type) throw TraceError("--types: " + UnknownType(name));
    mask |= uint64_t{1} << static_cast<unsigned>(*type);
  }
  // Losses and the state at the beginning are always told.
  return types.empty() ? ~uint64_t{0} : mask | uint64_t{7} << 60;
}

void Record(const RecordOptions& options) {
  const uint64_t mask = MaskOf(options.types);
  TraceSegmentView segment(options.pid);
  RingLease lease(segment, mask);
  File file(options.path, mask);
  file.Begin(segment.Metadata());
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, [](int) { g_stop = true; });
  const uint64_t begin = MonotonicNs();
  const auto limit = static_cast<uint64_t>(options.duration_s * 1e9);
  uint64_t total = 0;
  uint64_t lost = 0;
  std::string why;
  std::vector<TraceRecord> block;
  for (bool last = false; !last;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    const bool alive = segment.alive();
    last = !alive || g_stop || (limit != 0 && MonotonicNs() - begin >= limit);
    if (!alive) why = "; process " + std::to_string(options.pid) + " has ended";
    if (last && alive) lease.Stop();
    block.clear();
    if (!lease.Drain(&block)) {
      why = "; the process took its rings back: this recorder was too slow";
      last = true;
    }
    const uint64_t lost_now = lease.Lost();
    if (!block.empty() || lost_now > lost) file.Append(block, lost_now - std::min(lost, lost_now));
    lost = std::max(lost, lost_now);
    total += block.size();
  }
  file.Close(segment.Metadata());
  std::fprintf(stderr, "weir-trace: %s: %llu events, %llu lost, %.1f s%s\n", options.path.c_str(),
               static_cast<unsigned long long>(total), static_cast<unsigned long long>(lost),
               static_cast<double>(MonotonicNs() - begin) / 1e9, why.c_str());
}

}  // namespace

void AddRecordCommand(CLI::App& app, int* exit_status) {
  auto options = std::make_shared<RecordOptions>();
  CLI::App* command = app.add_subcommand("record", "attach to a running weir and write a trace");
  command->add_option("-p,--pid", options->pid, "of the weir process")
      ->required()
      ->check(CLI::PositiveNumber);
  command->add_option("-o,--output", options->path, "trace to write [weir.wtrace]");
  command->add_option("--duration", options->duration_s, "seconds; 0: until Ctrl-C")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--types", options->types, "only these event types: map,copy,...")
      ->delimiter(',');
  command->footer(
      "Examples:\n"
      "  weir-trace record -p $(pgrep -x weir) -o run.trace     until Ctrl-C or the process's end\n"
      "  weir-trace record -p 4711 --duration 10 --types fault_major,step_end,queue");
  command->callback([options, exit_status] {
    Record(*options);
    *exit_status = kExitOk;
  });
}

}  // namespace weir::trace_tool
