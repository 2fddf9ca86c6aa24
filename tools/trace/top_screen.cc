#include "tools/trace/top_screen.h"

#include <algorithm>
#include <array>
#include <memory>

#include <fmt/format.h>

#include "tools/trace/schema.h"
#include "tools/trace/text.h"

namespace weir::trace_tool {
namespace {

constexpr size_t kLabel = 9;

// How an owner is shown: its colour of the 256, its letter where there is no colour.
struct Paint {
  int color;
  char letter;
};
constexpr Paint kOwnerPaint[] = {{238, '.'}, {25, 'W'}, {214, 'R'}, {35, 'K'}, {245, 's'}};
constexpr Paint kCached{115, 'c'};
constexpr Paint kKvFree{194, '-'};

Paint PaintOf(uint64_t owner) {
  return owner < std::size(kOwnerPaint) ? kOwnerPaint[owner] : Paint{133, '?'};
}

// Represents one line being put together; knows how many columns it takes.
class Line {
 public:
  explicit Line(const ScreenOptions& o) : o_(o) {}
  size_t left() const { return o_.width - columns_; }

  Line& Text(std::string_view text, int color = -1) {
    std::string fitting;
    for (size_t i = 0; i < text.size();) {
      size_t end = i + 1;
      while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) ++end;
      if (left() == 0) break;
      fitting += text.substr(i, end - i);
      ++columns_;
      i = end;
    }
    if (!o_.color || color < 0) {
      out_ += fitting;
    } else {
      out_ += fmt::format("\x1b[38;5;{}m{}\x1b[0m", color, fitting);
    }
    return *this;
  }
  Line& Label(std::string_view label) {
    std::string text(label.substr(0, kLabel - 1));
    text.resize(kLabel, ' ');
    if (o_.color) out_ += "\x1b[1m";
    Text(text);
    if (o_.color) out_ += "\x1b[0m";
    return *this;
  }
  // |n| cells of one kind.
  Line& Cells(size_t n, Paint paint) {
    n = std::min(n, left());
    if (n == 0) return *this;
    columns_ += n;
    if (o_.color) {
      out_ += fmt::format("\x1b[48;5;{}m{}\x1b[0m", paint.color, std::string(n, ' '));
    } else {
      out_ += std::string(n, paint.letter);
    }
    return *this;
  }
  // Shares 0..1 as bars of eight heights.
  Line& Bars(const std::vector<double>& shares, const std::vector<int>& colors) {
    constexpr std::string_view kUnicode[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    constexpr std::string_view kAscii[] = {" ", ".", ":", "-", "=", "+", "*", "%", "#"};
    for (size_t i = 0; i < shares.size() && left() > 0; ++i) {
      const double share = std::clamp(shares[i], 0.0, 1.0);
      auto level = static_cast<size_t>(share * 8 + 0.5);
      if (share > 0 && level == 0) level = 1;
      Text(o_.unicode ? kUnicode[level] : kAscii[level], colors.empty() ? -1 : colors[i]);
    }
    return *this;
  }
  std::string Take() { return std::move(out_); }

 private:
  const ScreenOptions& o_;
  std::string out_;
  size_t columns_ = 0;
};

class Screen {
 public:
  Screen(const LiveView& view, const ScreenOptions& o)
      : v_(view), o_(o), recent_(view.Recent()), wide_(o.width >= 110) {}

  std::vector<std::string> Draw() {
    Head();
    if (!v_.told() && v_.records() == 0) {
      lines_.push_back("");
      Add(Line(o_).Text("waiting for the process to take its next step and tell its state..."));
      return std::move(lines_);
    }
    const size_t rest = 15;  // lines that are always there
    MemoryMap(o_.height > rest + 3 ? std::min<size_t>(o_.height - rest, wide_ ? 8 : 6) : 1);
    Layers();
    Kv();
    lines_.push_back("");
    Rates();
    Policy();
    if (lines_.size() > o_.height) lines_.resize(o_.height);
    return std::move(lines_);
  }

 private:
  void Add(Line& line) { lines_.push_back(line.Take()); }
  void Add(Line&& line) { lines_.push_back(line.Take()); }
  double PerSecond(uint64_t n) const { return static_cast<double>(n) / LiveView::recent_s(); }
  std::string Size(uint64_t granules) const {
    return HumanBytes(static_cast<double>(granules * v_.meta().granule_bytes));
  }

  void Head() {
    const TraceMeta& m = v_.meta();
    std::string model = m.model.substr(m.model.find_last_of('/') + 1);
    std::string text = fmt::format("weir {}  {}", m.pid, model);
    if (wide_) {
      text += fmt::format("  policy {}  {} on {}  {}", m.policy, m.device, m.host, m.command);
    }
    Add(Line(o_).Text(text, 39));
    Line line(o_);
    line.Text(
        fmt::format("watched for {:.0f} s, {} events, ", v_.seconds(), Grouped(v_.records())));
    if (v_.lost() != 0) {
      line.Text(fmt::format("{} lost: numbers are too small", Grouped(v_.lost())), 203);
    } else {
      line.Text("none lost");
    }
    if (v_.pressure() != 0 && v_.pressure() < 4) {
      line.Text(
          ", short: " + CauseName(CauseKind::kPressureLevel, static_cast<uint8_t>(v_.pressure())),
          214);
    }
    Add(line);
  }

  // Every cell stands for the same number of granules and shows the owner of most of them.
  void MemoryMap(size_t rows) {
    const MemoryState& s = v_.state();
    const uint64_t n = s.granules();
    Line head(o_);
    head.Label("memory");
    if (n == 0) {
      Add(head.Text("no record of granules"));
      return;
    }
    const uint64_t cells = std::min<uint64_t>(n, rows * o_.width);
    const uint64_t each = (n + cells - 1) / cells;
    head.Text(fmt::format("{} in {} granules; a cell is {}", Size(n), Grouped(n), Size(each)));
    Add(head);
    const auto owners = s.owners();
    for (uint64_t at = 0; at < n;) {
      Line line(o_);
      while (line.left() > 0 && at < n) {
        size_t run = 0;
        const uint64_t owner = Majority(owners, at, each);
        while (line.left() > run && at < n && Majority(owners, at, each) == owner) {
          ++run;
          at += each;
        }
        line.Cells(run, PaintOf(owner));
      }
      Add(line);
    }
    auto legend = std::make_unique<Line>(o_);
    for (const uint64_t owner : {kOwnerWeights, kOwnerRing, kOwnerKv, kOwnerScratch, kOwnerNone}) {
      const std::string name = owner == kOwnerNone ? "free" : v_.meta().OwnerName(owner);
      const std::string text = fmt::format(" {} {}  ", name, Size(s.GranulesOf(owner)));
      if (legend->left() + 2 < text.size() + 1) {
        Add(*legend);
        legend = std::make_unique<Line>(o_);
      }
      legend->Cells(1, PaintOf(owner)).Text(text);
    }
    Add(*legend);
  }

  static uint64_t Majority(std::span<const uint8_t> owners, uint64_t at, uint64_t each) {
    std::array<uint32_t, MemoryState::kOwners> count{};
    for (uint64_t i = at; i < std::min<uint64_t>(at + each, owners.size()); ++i) ++count[owners[i]];
    return static_cast<uint64_t>(std::max_element(count.begin(), count.end()) - count.begin());
  }

  void Layers() {
    const auto& layers = v_.state().layers();
    if (layers.empty()) return;
    Line line(o_);
    const double away = static_cast<double>(v_.state().evicted_bytes());
    const std::string text = away > 0 ? HumanBytes(away) + " away" : "all at home";
    line.Label("layers");
    const size_t room =
        o_.width > kLabel + text.size() + 6 ? o_.width - kLabel - text.size() - 2 : 4;
    const size_t each = (layers.size() + room - 1) / room;
    std::vector<double> shares;
    std::vector<int> colors;
    for (size_t i = 0; i < layers.size(); i += each) {
      uint64_t home = 0, slots = 0;
      for (size_t k = i; k < std::min(i + each, layers.size()); ++k) {
        home += layers[k].home;
        slots += layers[k].slots;
      }
      shares.push_back(slots == 0 ? 1 : static_cast<double>(home) / static_cast<double>(slots));
      colors.push_back(shares.back() > 0.999 ? 33 : shares.back() > 0.5 ? 110 : 214);
    }
    Add(line.Bars(shares, colors).Text("  " + text));
    if (o_.height < 24) return;
    const auto [least, most] = std::minmax_element(shares.begin(), shares.end());
    Add(Line(o_).Text(
        std::string(kLabel, ' ') +
        fmt::format("at home: {:.0f} % to {:.0f} % of a layer", *least * 100, *most * 100)));
  }

  void Kv() {
    const MemoryState::Queue& q = v_.state().queue();
    Line line(o_);
    line.Label("KV");
    const std::string text =
        fmt::format("  {} used {} cached {} free of {}", q.used, q.cached, q.free, q.capacity);
    const size_t room = o_.width - kLabel > text.size() + 8 ? o_.width - kLabel - text.size() : 8;
    if (q.capacity != 0) {
      const auto cells = [&](uint64_t n) {
        const double share = static_cast<double>(n) / static_cast<double>(q.capacity);
        return static_cast<size_t>(static_cast<double>(room) * std::min(share, 1.0) + 0.5);
      };
      const size_t used = std::min(room, cells(q.used));
      const size_t held = std::min(room, std::max(used, cells(q.used + q.cached)));
      line.Cells(used, kOwnerPaint[kOwnerKv])
          .Cells(held - used, kCached)
          .Cells(room - held, kKvFree);
    }
    Add(line.Text(text));
  }

  // A line of a number and its history.
  template <typename Fn>
  void Rate(std::string_view label, const std::string& text, Fn value, double scale, int color) {
    Line line(o_);
    line.Label(label);
    const size_t number = wide_ ? 64 : o_.width >= 76 ? 44 : 34;
    std::string padded = text;
    if (DisplayWidth(padded) < number)
      padded.resize(padded.size() + number - DisplayWidth(padded), ' ');
    line.Text(padded).Text(" ");
    std::vector<double> values;
    for (const LiveSums& s : v_.History(line.left())) values.push_back(value(s));
    double most = scale;
    if (most <= 0) {
      for (const double x : values) most = std::max(most, x);
    }
    for (double& x : values) x = most > 0 ? x / most : 0;
    if (values.size() < line.left())
      values.insert(values.begin(), line.left() - values.size(), 0.0);
    line.Bars(values, std::vector<int>(values.size(), color));
    Add(line);
  }

  void Rates() {
    const LiveSums& r = recent_;
    const double step_ms =
        r.steps == 0 ? 0 : static_cast<double>(r.step_ns) * 1e-6 / static_cast<double>(r.steps);
    std::string tokens = fmt::format("{:.0f}/s made, {:.0f}/s of prompts",
                                     PerSecond(r.output_tokens), PerSecond(r.prompt_tokens));
    if (wide_) tokens += fmt::format("; {:.1f} steps/s of {:.1f} ms", PerSecond(r.steps), step_ms);
    Rate(
        "tokens", tokens,
        [](const LiveSums& s) { return static_cast<double>(s.output_tokens + s.prompt_tokens); }, 0,
        35);
    if (!wide_) {
      Add(Line(o_).Label("steps").Text(
          fmt::format("{:.1f}/s, {:.1f} ms each", PerSecond(r.steps), step_ms)));
    }
    std::string stall = fmt::format("{:.1f} % of the time, {:.0f} faults/s",
                                    PerSecond(r.stall()) * 1e-7, PerSecond(r.faults));
    if (wide_ && r.stall() > 0) {
      const size_t cause = static_cast<size_t>(
          std::max_element(r.stall_ns.begin(), r.stall_ns.end()) - r.stall_ns.begin());
      stall += fmt::format("; most {}", FaultCauseName(cause));
    }
    Rate(
        "stall", stall, [](const LiveSums& s) { return static_cast<double>(s.stall()); },
        static_cast<double>(LiveView::kBucketNs), 203);
    const double peak = v_.meta().link_bytes_per_ns * 1e9;
    const double in = PerSecond(r.in());
    std::string link = HumanRate(in);
    if (peak > 0) link += fmt::format(", {} of the peak", Percent(in, peak));
    if (wide_) {
      for (size_t tier = 0; tier < r.in_bytes.size(); ++tier) {
        if (r.in_bytes[tier] != 0) {
          link += fmt::format(" (from {})", TierName(tier));
        }
      }
    }
    Rate(
        "link in", link, [](const LiveSums& s) { return static_cast<double>(s.in()); }, peak * 0.5,
        110);
    Rate(
        "link out", HumanRate(PerSecond(r.out_bytes)),
        [](const LiveSums& s) { return static_cast<double>(s.out_bytes); }, peak * 0.5, 110);
    const MemoryState::Queue& q = v_.state().queue();
    std::string queue = fmt::format("{} running, {} waiting", q.running, q.waiting);
    if (wide_) queue += fmt::format(", {:.1f}/s finished", PerSecond(r.finished));
    Rate(
        "queue", queue,
        [](const LiveSums& s) { return static_cast<double>(s.running + s.waiting); }, 0, 180);
    Rate(
        "KV used", fmt::format("{} blocks", q.used),
        [](const LiveSums& s) { return static_cast<double>(s.kv_used); },
        static_cast<double>(q.capacity), 35);
  }

  std::string Ago(uint64_t time_ns) const {
    const uint64_t ns = v_.now_ns() > time_ns ? v_.now_ns() - time_ns : 0;
    return fmt::format("{:.0f} s ago", static_cast<double>(ns) * 1e-9);
  }

  void Policy() {
    if (const TraceRecord& f = v_.worst_fault(); f.type != 0) {
      Add(Line(o_).Label("worst").Text(
          fmt::format("{} at {}, {}, {}", HumanNs(static_cast<double>(f.args[3])),
                      v_.meta().GateName(f.args[0]), FaultCauseName(f.cause), Ago(f.time_ns))));
    }
    if (const TraceRecord& p = v_.last_plan(); p.type != 0) {
      Add(Line(o_).Label("plan").Text(
          fmt::format("{}: {} taken, {} freed in {}, {}", RemapCauseName(p.cause), p.args[1],
                      p.args[2], HumanNs(static_cast<double>(p.args[3])), Ago(p.time_ns))));
    }
    const TraceRecord& d = v_.last_decision();
    if (d.type == 0) return;
    Add(Line(o_).Label("policy").Text(
        fmt::format("{}{} away (was {}), {}: {}", d.args[1], d.cause == 0 ? " a layer" : " layers",
                    d.args[2], Ago(d.time_ns), v_.meta().ReasonText(d.args[5]))));
  }

  const LiveView& v_;
  const ScreenOptions& o_;
  const LiveSums recent_;
  const bool wide_;
  std::vector<std::string> lines_;
};

}  // namespace

std::vector<std::string> TopScreen(const LiveView& view, const ScreenOptions& options) {
  ScreenOptions o = options;
  o.width = std::max<size_t>(40, o.width);
  return Screen(view, o).Draw();
}

}  // namespace weir::trace_tool
