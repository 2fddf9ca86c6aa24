// weir-trace record: attaches to a running weir process and writes what happens into a file. The
// protocol with the process is in vmm/trace_format.h, "The segment".
#define XXH_INLINE_ALL
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include <CLI/CLI.hpp>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "tools/trace/commands.h"
#include "tools/trace/error.h"
#include "tools/trace/schema.h"

namespace weir::trace_tool {
namespace {

std::atomic<bool> g_stop{false};

uint64_t NowNs() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

bool Alive(int pid) {
  return kill(pid, 0) == 0 || errno == EPERM;
}

// Represents the mapped segment of a process.
class Segment {
 public:
  explicit Segment(int pid) {
    const std::string folder = "/proc/" + std::to_string(pid) + "/fd";
    const std::string who = "process " + std::to_string(pid);
    if (!Alive(pid)) throw TraceError("there is no " + who);
    std::error_code error;
    int fd = -1;
    for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
      std::error_code ignored;
      const std::string target = std::filesystem::read_symlink(entry.path(), ignored).string();
      if (!target.starts_with(std::string("/memfd:") + kTraceSegmentName + " ")) continue;
      fd = open(entry.path().c_str(), O_RDWR | O_CLOEXEC);
      break;
    }
    if (error) {
      throw TraceError(who +
                       " belongs to another user, or cannot be looked into: " + error.message());
    }
    if (fd < 0) {
      throw TraceError(who +
                       " is not a weir process that can be attached to (is trace.attach off?)");
    }
    struct stat info {};
    const bool sized =
        fstat(fd, &info) == 0 && static_cast<uint64_t>(info.st_size) >= sizeof(TraceSegmentHeader);
    bytes_ = static_cast<uint64_t>(info.st_size);
    void* at =
        sized ? mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    close(fd);
    if (at == MAP_FAILED) throw TraceError(who + ": its trace rings cannot be mapped");
    base_ = static_cast<char*>(at);
    Check(who);
  }
  ~Segment() { munmap(base_, bytes_); }
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  TraceSegmentHeader& header() { return *reinterpret_cast<TraceSegmentHeader*>(base_); }
  TraceRing& ring(uint32_t i) { return reinterpret_cast<TraceRing*>(base_ + rings_)[i]; }
  const TraceRecord* records(uint32_t i) const {
    return reinterpret_cast<const TraceRecord*>(base_ + records_) + uint64_t{i} * capacity_;
  }
  uint32_t rings() { return std::min(header().rings_used.load(std::memory_order_acquire), count_); }
  uint64_t capacity() const { return capacity_; }

  std::string Metadata() {
    TraceSegmentHeader& h = header();
    for (int i = 0; i < 1000; ++i) {
      const uint64_t before = h.meta_sequence.load(std::memory_order_acquire);
      const uint64_t bytes = std::min<uint64_t>(h.meta_bytes.load(), meta_capacity_);
      std::string json(base_ + meta_, bytes);
      std::atomic_thread_fence(std::memory_order_acquire);
      if (before % 2 == 0 && before == h.meta_sequence.load(std::memory_order_relaxed)) {
        return json.empty() ? "{}" : json;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return "{}";
  }

 private:
  // What is fixed is copied, so that later writes by the process cannot lead us astray.
  void Check(const std::string& who) {
    const TraceSegmentHeader& h = header();
    if (std::memcmp(h.magic, kTraceSegmentMagic, sizeof(h.magic)) != 0) {
      throw TraceError(who + " has not finished making its trace rings; try again");
    }
    if (h.version != kTraceVersion || h.record_bytes != sizeof(TraceRecord)) {
      throw TraceError(who + " writes trace version " + std::to_string(h.version) +
                       "; this weir-trace reads " + std::to_string(kTraceVersion));
    }
    count_ = h.ring_count;
    capacity_ = h.ring_records;
    rings_ = h.rings_offset;
    records_ = h.records_offset;
    meta_ = h.meta_offset;
    meta_capacity_ = h.meta_capacity;
    const auto fits = [this](uint64_t at, uint64_t size) {
      return at <= bytes_ && size <= bytes_ - at;
    };
    if (count_ > 4096 || capacity_ == 0 || (capacity_ & (capacity_ - 1)) != 0 ||
        capacity_ > (1U << 30) || !fits(rings_, count_ * sizeof(TraceRing)) ||
        !fits(records_, count_ * capacity_ * sizeof(TraceRecord)) || !fits(meta_, meta_capacity_)) {
      throw TraceError(who + ": its trace rings have an impossible layout");
    }
  }

  char* base_ = nullptr;
  uint64_t bytes_ = 0, capacity_ = 0, rings_ = 0, records_ = 0, meta_ = 0, meta_capacity_ = 0;
  uint32_t count_ = 0;
};

// Represents the file being written; its layout is trace_format.h's.
class File {
 public:
  File(const std::string& path, uint64_t mask) : path_(path) {
    fd_ = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd_ < 0 || fchmod(fd_, 0600) != 0) Fail();
    std::memcpy(header_.magic, kTraceFileMagic, sizeof(header_.magic));
    header_.mask = mask;
    header_.start_ns = NowNs();
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
  void Append(const std::vector<TraceRecord>& records, uint64_t lost) {
    TraceBlockHeader block;
    block.records = static_cast<uint32_t>(records.size());
    block.lost = lost;
    block.checksum = XXH3_64bits(records.data(), records.size() * sizeof(TraceRecord));
    Write(&block, sizeof(block), at_);
    Write(records.data(), records.size() * sizeof(TraceRecord), at_ + sizeof(block));
    at_ += sizeof(block) + records.size() * sizeof(TraceRecord);
  }
  void Close(const std::string& metadata) {
    Write(metadata.data(), metadata.size(), at_);
    header_.tail_meta_offset = at_;
    header_.tail_meta_bytes = static_cast<uint32_t>(metadata.size());
    Write(&header_, sizeof(header_), 0);
  }

 private:
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

// Represents the lease on a process's rings, and what has been read from them.
class Recorder {
 public:
  Recorder(Segment& segment, uint64_t mask) : s_(segment), h_(segment.header()) {
    const uint64_t deadline = NowNs() + kTraceLeaseNs + kTraceLeaseNs / 4;
    mine_ = (NowNs() << 32) | static_cast<uint32_t>(getpid());
    for (;;) {
      uint64_t holder = h_.lease.load(std::memory_order_acquire);
      const bool expired = NowNs() - h_.heartbeat_ns.load() > kTraceLeaseNs;
      if ((holder == 0 || expired) && h_.lease.compare_exchange_strong(holder, mine_)) break;
      if (NowNs() > deadline) {
        throw TraceError("is already being recorded by process " +
                         std::to_string(static_cast<uint32_t>(holder)));
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    h_.heartbeat_ns.store(NowNs());
    for (uint32_t i = 0; i < s_.rings(); ++i) s_.ring(i).tail.store(s_.ring(i).head.load());
    session_ = h_.session.fetch_add(1) + 1;
    lost_without_ring_ = h_.lost_without_ring.load();
    h_.wanted_mask.store(mask, std::memory_order_release);
  }
  ~Recorder() {
    uint64_t mine = mine_;
    if (h_.lease.load() == mine) h_.wanted_mask.store(0);
    h_.lease.compare_exchange_strong(mine, 0);
  }
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  // False: the process has taken the lease back.
  bool Drain(std::vector<TraceRecord>* out) {
    if (h_.lease.load(std::memory_order_acquire) != mine_) return false;
    h_.heartbeat_ns.store(NowNs(), std::memory_order_release);
    for (uint32_t i = 0; i < s_.rings(); ++i) {
      TraceRing& ring = s_.ring(i);
      const uint64_t head = ring.head.load(std::memory_order_acquire);
      uint64_t tail = ring.tail.load(std::memory_order_relaxed);
      if (head - tail > s_.capacity()) tail = head;  // somebody wrote nonsense
      for (; tail != head; ++tail) out->push_back(s_.records(i)[tail & (s_.capacity() - 1)]);
      ring.tail.store(tail, std::memory_order_release);
    }
    return true;
  }
  uint64_t Lost() {
    uint64_t n = h_.lost_without_ring.load() - lost_without_ring_;
    for (uint32_t i = 0; i < s_.rings(); ++i) {
      if (s_.ring(i).session.load() == session_) n += s_.ring(i).lost.load();
    }
    return n;
  }
  // Asks for no more, and waits a moment until the process has noticed.
  void Stop() {
    h_.wanted_mask.store(0, std::memory_order_release);
    for (int i = 0; i < 30 && h_.active_mask.load(std::memory_order_acquire) != 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }

 private:
  Segment& s_;
  TraceSegmentHeader& h_;
  uint64_t mine_ = 0, lost_without_ring_ = 0;
  uint32_t session_ = 0;
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
    if (!type) throw TraceError("--types: there is no event type \"" + name + "\"");
    mask |= uint64_t{1} << static_cast<unsigned>(*type);
  }
  // Losses and the state at the beginning are always told.
  return types.empty() ? ~uint64_t{0} : mask | uint64_t{7} << 60;
}

void Record(const RecordOptions& options) {
  const uint64_t mask = MaskOf(options.types);
  Segment segment(options.pid);
  File file(options.path, mask);
  Recorder recorder(segment, mask);
  file.Begin(segment.Metadata());
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, [](int) { g_stop = true; });
  const uint64_t begin = NowNs();
  const auto limit = static_cast<uint64_t>(options.duration_s * 1e9);
  uint64_t total = 0;
  uint64_t lost = 0;
  const char* why = "";
  std::vector<TraceRecord> block;
  for (bool last = false; !last;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    const bool dead = !Alive(options.pid);
    const bool closed = segment.header().closed.load(std::memory_order_acquire) != 0;
    last = dead || closed || g_stop || (limit != 0 && NowNs() - begin >= limit);
    if (dead || closed) why = "; the process has ended";
    if (last && !dead && !closed) recorder.Stop();
    block.clear();
    if (!recorder.Drain(&block)) {
      why = "; the process took its rings back: this recorder was too slow";
      last = true;
    }
    const uint64_t lost_now = recorder.Lost();
    if (!block.empty() || lost_now > lost) file.Append(block, lost_now - std::min(lost, lost_now));
    lost = std::max(lost, lost_now);
    total += block.size();
  }
  file.Close(segment.Metadata());
  std::fprintf(stderr, "weir-trace: %s: %llu events, %llu lost, %.1f s%s\n", options.path.c_str(),
               static_cast<unsigned long long>(total), static_cast<unsigned long long>(lost),
               static_cast<double>(NowNs() - begin) / 1e9, why);
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
  command->callback([options, exit_status] {
    Record(*options);
    *exit_status = kExitOk;
  });
}

}  // namespace weir::trace_tool
