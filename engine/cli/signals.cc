#include "engine/cli/signals.h"

#include <atomic>
#include <cerrno>
#include <csignal>

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "vmm/check.h"

namespace weir::cli {
namespace {

volatile std::sig_atomic_t g_interrupted = 0;

extern "C" void OnInterrupt(int) {
  if (g_interrupted != 0) _exit(130);
  g_interrupted = 1;
}

std::atomic<int> g_terminations{0};
std::atomic<int> g_termination_event{-1};

extern "C" void OnTermination(int) {
  const int saved = errno;
  ++g_terminations;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(g_termination_event, &one, sizeof(one));
  errno = saved;
}

}  // namespace

void CatchTermination() {
  g_termination_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  WEIR_CHECK(g_termination_event >= 0, "an event for signals");
  struct sigaction action = {};
  action.sa_handler = OnTermination;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, nullptr);
}

int Terminations() {
  return g_terminations;
}

void AwaitTermination(int timeout_ms) {
  pollfd event = {.fd = g_termination_event, .events = POLLIN, .revents = 0};
  if (poll(&event, 1, timeout_ms) <= 0) return;
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t read_bytes = read(g_termination_event, &count, sizeof(count));
}

void CatchInterrupts() {
  struct sigaction action = {};
  action.sa_handler = OnInterrupt;
  sigemptyset(&action.sa_mask);
  action.sa_flags = 0;  // no SA_RESTART: a read at the prompt comes back
  sigaction(SIGINT, &action, nullptr);
}

bool Interrupted() {
  return g_interrupted != 0;
}
void ClearInterrupt() {
  g_interrupted = 0;
}

}  // namespace weir::cli
