#include "engine/cli/signals.h"

#include <csignal>

#include <unistd.h>

namespace weir::cli {
namespace {

volatile std::sig_atomic_t g_interrupted = 0;

extern "C" void OnInterrupt(int) {
  if (g_interrupted != 0) _exit(130);
  g_interrupted = 1;
}

}  // namespace

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
