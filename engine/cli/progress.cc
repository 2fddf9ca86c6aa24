#include "engine/cli/progress.h"

#include <chrono>
#include <cstdio>

#include <unistd.h>

#include "engine/cli/size_text.h"

namespace weir::cli {
namespace {

constexpr uint64_t kTerminalIntervalNs = 150'000'000;
constexpr uint64_t kPlainIntervalNs = 10'000'000'000;

uint64_t Now() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::steady_clock::now().time_since_epoch())
                                   .count());
}

}  // namespace

Progress::Progress(bool quiet) : terminal_(isatty(STDERR_FILENO) == 1), quiet_(quiet) {
  interval_ns_ = terminal_ ? kTerminalIntervalNs : kPlainIntervalNs;
  last_ns_ = terminal_ ? 0 : Now();  // what is over soon needs no line
}

bool Progress::Due() const {
  return !quiet_ && Now() - last_ns_ >= interval_ns_;
}

void Progress::Update(std::string_view line) {
  if (!Due()) return;
  last_ns_ = Now();
  if (terminal_) {
    std::fprintf(stderr, "\r\033[K%s", OneLine(line, 160).c_str());
    std::fflush(stderr);
    shown_ = true;
  } else {
    std::fprintf(stderr, "%s\n", OneLine(line, 160).c_str());
  }
}

void Progress::Clear() {
  if (!shown_) return;
  std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
  shown_ = false;
}

Engine::ProgressFn Progress::ForLoading() {
  return [this](std::string_view phase, uint64_t done, uint64_t total) {
    std::string line(phase);
    if (total > 1) {
      line += " " + std::to_string(done * 100 / total) + " % of " + HumanSize(total);
    }
    Update(line);
  };
}

}  // namespace weir::cli
