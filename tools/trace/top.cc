// `weir-trace top`: a running process, live.
#include <atomic>
#include <chrono>
#include <clocale>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <langinfo.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "tools/trace/attach.h"
#include "tools/trace/commands.h"
#include "tools/trace/live_view.h"
#include "tools/trace/top_screen.h"

namespace weir::trace_tool {
namespace {

std::atomic<bool> g_stop{false};

struct TopOptions {
  int pid = 0;
  double interval_s = 1;
  uint64_t frames = 0;
  size_t width = 0, height = 0;
  std::string color = "auto";
  bool ascii = false;
};

// Represents the terminal while top has it: another screen, no cursor, keys without Enter. Nothing
// of that where stdout is no terminal; then frames follow each other.
class Terminal {
 public:
  Terminal() : screen_(isatty(STDOUT_FILENO) == 1), keys_(isatty(STDIN_FILENO) == 1) {
    if (screen_) Put("\x1b[?1049h\x1b[?25l\x1b[2J");
    keys_ = keys_ && screen_ && tcgetattr(STDIN_FILENO, &before_) == 0;
    if (!keys_) return;
    termios raw = before_;
    raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    raw.c_cc[VMIN] = 0;
    raw.c_cc[VTIME] = 0;
    tcsetattr(STDIN_FILENO, TCSANOW, &raw);
  }
  ~Terminal() {
    if (keys_) tcsetattr(STDIN_FILENO, TCSANOW, &before_);
    if (screen_) Put("\x1b[?25h\x1b[?1049l");
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  bool screen() const { return screen_; }
  void Size(size_t* width, size_t* height) const {
    winsize size{};
    if (!screen_ || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return;
    *width = size.ws_col;
    *height = size.ws_row;
  }
  void Show(const std::vector<std::string>& lines) const {
    std::string out = screen_ ? "\x1b[H" : "";
    for (size_t i = 0; i < lines.size(); ++i) {
      out += lines[i] + (screen_ ? "\x1b[K" : "");
      if (!screen_ || i + 1 < lines.size()) out += screen_ ? "\r\n" : "\n";
    }
    Put(out + (screen_ ? "\x1b[J" : "\n"));
  }
  // Waits until a key is pressed or the time is up. True: q, to end.
  bool WaitForQuit(int ms) const {
    if (!keys_) {
      std::this_thread::sleep_for(std::chrono::milliseconds(ms));
      return false;
    }
    pollfd in{STDIN_FILENO, POLLIN, 0};
    if (poll(&in, 1, ms) <= 0) return false;
    char key = 0;
    return read(STDIN_FILENO, &key, 1) == 1 && (key == 'q' || key == 'Q' || key == 4);
  }

 private:
  static void Put(const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }
  const bool screen_;
  bool keys_;
  termios before_{};
};

ScreenOptions ScreenOf(const TopOptions& options, const Terminal& terminal, bool utf8) {
  ScreenOptions screen;
  terminal.Size(&screen.width, &screen.height);
  if (options.width != 0) screen.width = options.width;
  if (options.height != 0) screen.height = options.height;
  const char* const no_color = std::getenv("NO_COLOR");
  screen.color = options.color == "always" || (options.color == "auto" && terminal.screen() &&
                                               (no_color == nullptr || *no_color == 0));
  screen.unicode = utf8 && !options.ascii;
  return screen;
}

int RunTop(const TopOptions& options) {
  std::setlocale(LC_CTYPE, "");
  const bool utf8 = std::string_view(nl_langinfo(CODESET)) == "UTF-8";
  constexpr uint64_t kTypes[] = {60, 61, 62};  // losses and the state at the beginning
  uint64_t mask = 0;
  for (const uint64_t type : kTypes) mask |= uint64_t{1} << type;
  for (const TraceType type :
       {TraceType::kMap, TraceType::kUnmap, TraceType::kCreate, TraceType::kPlanCommit,
        TraceType::kGranuleState, TraceType::kOwner, TraceType::kFill, TraceType::kCopy,
        TraceType::kFaultMajor, TraceType::kFaultMinor, TraceType::kWriteBack,
        TraceType::kPlacement, TraceType::kTransition, TraceType::kStepBegin, TraceType::kStepEnd,
        TraceType::kQueue, TraceType::kRequest, TraceType::kPolicyDecision, TraceType::kPressure}) {
    mask |= uint64_t{1} << static_cast<unsigned>(type);
  }
  TraceSegmentView segment(options.pid);
  RingLease lease(segment, mask);
  std::string problem;
  LiveView view(TraceMeta::Parse(segment.Metadata(), &problem));
  for (const int signal : {SIGINT, SIGTERM, SIGHUP})
    std::signal(signal, [](int) { g_stop = true; });
  const auto interval = static_cast<uint64_t>(options.interval_s * 1e9);
  std::vector<TraceRecord> records;
  std::vector<std::string> last;
  std::string why;
  {
    Terminal terminal;
    uint64_t next = 0;
    for (uint64_t frames = 0; why.empty();) {
      const bool alive = segment.alive();
      records.clear();
      if (!lease.Drain(&records))
        why = "the process took its rings back: this program was too slow";
      view.SetNow(MonotonicNs());
      view.Add(&records);
      view.SetLost(lease.Lost());
      if (!alive) why = fmt::format("process {} has ended", options.pid);
      // Counted pictures wait until the process has told its state.
      const bool early = options.frames != 0 && !view.told() && view.seconds() < 5;
      if ((MonotonicNs() >= next && !early) || !why.empty()) {
        next = MonotonicNs() + interval;
        view.SetMeta(TraceMeta::Parse(segment.Metadata(), &problem));
        last = TopScreen(view, ScreenOf(options, terminal, utf8));
        terminal.Show(last);
        if (options.frames != 0 && ++frames >= options.frames) break;
      }
      if (!why.empty() || g_stop || terminal.WaitForQuit(50) || g_stop) break;
    }
    if (terminal.screen() && !why.empty()) g_stop = false;
  }
  // The last picture stays on the terminal's own screen.
  if (isatty(STDOUT_FILENO) == 1) {
    for (const std::string& line : last) std::printf("%s\n", line.c_str());
  }
  if (!why.empty()) {
    std::fflush(stdout);
    std::fprintf(stderr, "weir-trace: %s after %.1f s of watching\n", why.c_str(), view.seconds());
  }
  return kExitOk;
}

}  // namespace

void AddTopCommand(CLI::App& app, int* exit_status) {
  auto options = std::make_shared<TopOptions>();
  CLI::App* command = app.add_subcommand("top", "watch a running weir; q ends");
  command->add_option("-p,--pid", options->pid, "of the weir process")
      ->required()
      ->check(CLI::PositiveNumber);
  command->add_option("--interval", options->interval_s, "seconds between pictures [1]")
      ->check(CLI::Range(0.1, 60.0));
  command->add_option("-n,--frames", options->frames, "end after so many pictures; 0: never");
  command->add_option("--width", options->width, "columns; 0: the terminal's")
      ->check(CLI::Range(0, 1000));
  command->add_option("--height", options->height, "lines; 0: the terminal's")
      ->check(CLI::Range(0, 1000));
  command
      ->add_option("--color", options->color,
                   "auto (not with NO_COLOR or into a pipe), always, never")
      ->check(CLI::IsMember({"auto", "always", "never"}));
  command->add_flag("--ascii", options->ascii, "no characters but ASCII");
  command->footer(
      "Examples:\n"
      "  weir-trace top -p $(pgrep -x weir)\n"
      "  weir-trace top -p 4711 -n 1 --width 100 --height 30 > state.txt\n"
      "Without colour the map's letters are W weights, R ring, K KV, s step buffers, . free.");
  command->callback([options, exit_status] { *exit_status = RunTop(*options); });
}

}  // namespace weir::trace_tool
