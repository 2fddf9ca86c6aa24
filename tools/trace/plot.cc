#include "tools/trace/plot.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tools/trace/chart.h"
#include "tools/trace/schema.h"
#include "tools/trace/text.h"

namespace weir::trace_tool {
namespace {

constexpr const char* kWeights = "#2f5d94";
constexpr const char* kRing = "#e2a03f";
constexpr const char* kKvUsed = "#2f8f5b";
constexpr const char* kKvCached = "#86c79f";
constexpr const char* kKvFree = "#d5ecdc";
constexpr const char* kScratch = "#9aa0a8";
constexpr const char* kFree = "#f4f5f7";
constexpr const char* kFaultColors[kFaultCauses] = {"#8a8f98", "#c8503c", "#e58a4f",
                                                    "#8e4a9e", "#40434a", "#d8b13a"};
constexpr const char* kLinkColors[] = {"#2f5d94", "#8e4a9e", "#c8503c", "#2f8f5b"};

// One series of numbers, from the columns.
template <typename Fn>
std::vector<double> Values(const Timeline& t, Fn value) {
  std::vector<double> out;
  for (const TimelineColumn& c : t.columns()) out.push_back(static_cast<double>(value(c)));
  return out;
}

double Most(const std::vector<Series>& stacked) {
  double most = 0;
  for (size_t i = 0; !stacked.empty() && i < stacked[0].values.size(); ++i) {
    double sum = 0;
    for (const Series& s : stacked) sum += s.values[i];
    most = std::max(most, sum);
  }
  return most;
}

// The part of KV's bytes that |blocks| of its blocks stand for.
double KvBytes(const TimelineColumn& c, uint64_t blocks, double granule) {
  const double all = static_cast<double>(c.granules[kOwnerKv]) * granule;
  return c.queue.capacity == 0
             ? 0
             : all * static_cast<double>(blocks) / static_cast<double>(c.queue.capacity);
}

// Weights grow from the bottom, KV from the top: what is between them is free.
std::vector<Series> MemorySeries(const Timeline& t, double granule) {
  const auto owned = [&](uint64_t owner) {
    return Values(t, [=](const TimelineColumn& c) {
      return static_cast<double>(c.granules[owner]) * granule;
    });
  };
  std::vector<Series> s;
  s.push_back({"step buffers", kScratch, owned(kOwnerScratch)});
  s.push_back({"weights at home", kWeights, owned(kOwnerWeights)});
  s.push_back({"ring of stripes", kRing, owned(kOwnerRing)});
  s.push_back({"free", kFree, owned(kOwnerNone)});
  s.push_back({"KV, free blocks", kKvFree, Values(t, [&](const TimelineColumn& c) {
                 const double all = static_cast<double>(c.granules[kOwnerKv]) * granule;
                 return all - KvBytes(c, c.queue.used, granule) -
                        KvBytes(c, c.queue.cached, granule);
               })});
  s.push_back({"KV, cached", kKvCached, Values(t, [&](const TimelineColumn& c) {
                 return KvBytes(c, c.queue.cached, granule);
               })});
  s.push_back({"KV, used", kKvUsed, Values(t, [&](const TimelineColumn& c) {
                 return KvBytes(c, c.queue.used, granule);
               })});
  return s;
}

class Page {
 public:
  Page(const Timeline& t, const TraceReader& reader) : t_(t), reader_(reader) {
    frame_.from_s = t.from_s();
    frame_.seconds = t.seconds();
    frame_.columns = t.columns().size();
    granule_ = static_cast<double>(reader.meta().granule_bytes);
  }

  std::string Svg() {
    Head();
    plot_top_ = y_ + 34;
    Memory();
    Residency();
    Faults();
    Throughput();
    Links();
    Requests();
    const double height = y_ + 8;
    return fmt::format(
               "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {0:.0f} {1:.0f}' "
               "width='{0:.0f}' height='{1:.0f}' font-family='system-ui, sans-serif' "
               "font-size='12' fill='#30343b'>\n"
               "<style>.title{{font-weight:600;font-size:13px}}.dim{{fill:#767c86}}"
               ".tick{{text-anchor:end;fill:#767c86;font-size:11px}}"
               ".grid{{stroke:#e4e6ea;stroke-width:1}}</style>\n"
               "<rect width='100%' height='100%' fill='white'/>\n",
               frame_.page_width(), height) +
           body_ + "</svg>\n";
  }

  const ChartFrame& frame() const { return frame_; }
  double plot_top() const { return plot_top_; }
  double plot_bottom() const { return y_; }

 private:
  // A panel of |height| below the last one.
  Chart Panel(const std::string& title, double height) {
    Chart chart(frame_, title, y_ + 34, height);
    y_ += 34 + height;
    return chart;
  }
  void Place(const Chart& chart, bool with_time = false) {
    body_ += chart.Svg(with_time);
    if (with_time) y_ += 22;
  }

  void Head() {
    const TraceMeta& m = reader_.meta();
    const std::string model = m.model.substr(m.model.find_last_of('/') + 1);
    body_ += fmt::format("<text x='24' y='32' font-size='19' font-weight='600'>{}</text>\n",
                         Escaped(model.empty() ? "a trace of weir" : model));
    body_ += fmt::format(
        "<text class='dim' x='24' y='52'>{}</text>\n",
        Escaped(fmt::format("{}{}{}, policy {}, {} on {}", m.program.empty() ? "weir" : m.program,
                            m.version.empty() ? "" : " " + m.version,
                            m.commit.empty() ? "" : " (" + m.commit + ")", m.policy, m.device,
                            m.host)));
    const double rate = t_.seconds() > 0 ? static_cast<double>(t_.output_tokens) / t_.seconds() : 0;
    std::string sums = fmt::format(
        "{:.1f} s, {} steps, {} tokens computed, {:.0f} generated a second; {} faults, {} of stall "
        "({} of step time); {} streamed",
        t_.seconds(), Grouped(t_.steps), Grouped(t_.tokens), rate, Grouped(t_.faults),
        HumanNs(t_.stall_ns), Percent(t_.stall_ns, t_.step_ns), HumanBytes(t_.streamed_bytes));
    body_ += fmt::format("<text x='24' y='71'>{}</text>\n", Escaped(sums));
    y_ = 78;
    for (const std::string& line : reader_.losses().Lines()) {
      y_ += 17;
      body_ += fmt::format("<text x='24' y='{:.0f}' fill='#c8503c'>missing: {}</text>\n", y_ - 5,
                           Escaped(line));
    }
  }

  void Memory() {
    Chart chart = Panel("Device memory: weights from below, KV from above", 210);
    const std::vector<Series> series = MemorySeries(t_, granule_);
    const double most = Most(series);
    if (most <= 0) {
      Place(chart.Scale(1, AxisUnit::kPercent)
                .LegendText("no record of granules:")
                .LegendText("recorded with --types?"));
      return;
    }
    chart.Scale(most, AxisUnit::kBytes).Stack(series);
    // The border itself: what weights and ring take.
    Series border{"border", "#111418", {}};
    Series kv_edge{"", "#14663b", {}};
    for (size_t i = 0; i < frame_.columns; ++i) {
      const double low = series[0].values[i] + series[1].values[i] + series[2].values[i];
      border.values.push_back(low);
      kv_edge.values.push_back(low + series[3].values[i]);
    }
    chart.Line(border, 1.6).Line(kv_edge, 1.0, false);
    for (const TimelinePlan& p : t_.plans()) Mark(chart, p);
    Place(chart);
  }

  // A tick on the upper edge for a plan that moved the border.
  void Mark(Chart& chart, const TimelinePlan& p) {
    const double x = frame_.XOfSeconds(reader_.SecondsOf(p.time_ns));
    const char* color = p.rolled_back ? "#c8503c" : p.cause == kPlanEvict ? kRing : kWeights;
    chart.Raw(fmt::format(
        "<path d='M{0:.1f},{1:.1f}l-4,-7h8z' fill='{2}'><title>{3} plan {4} at {5:.3f} s: {6} "
        "granules taken, {7} freed, {8}{9}</title></path>\n",
        x, chart.top(), color, RemapCauseName(p.cause), p.plan, reader_.SecondsOf(p.time_ns),
        p.taken, p.freed, HumanNs(static_cast<double>(p.duration_ns)),
        p.rolled_back ? ", rolled back" : ""));
  }

  void Residency() {
    const size_t layers = t_.layers();
    if (layers == 0) return;
    Chart chart = Panel("Weights at home, by layer (layer 0 below)",
                        std::clamp(static_cast<double>(layers) * 5, 90.0, 260.0));
    std::vector<std::vector<float>> cells;
    for (const TimelineColumn& c : t_.columns()) {
      cells.push_back(c.granules[kOwnerWeights] != 0 ? c.home : std::vector<float>{});
    }
    chart.HeatMap(cells, layers).LegendRamp("away", "at home");
    Place(chart);
  }

  void Faults() {
    Chart chart = Panel("Time spent waiting at gates, by cause of the fault", 84);
    std::vector<Series> series;
    for (size_t cause = 0; cause < kFaultCauses; ++cause) {
      Series s{FaultCauseName(cause), kFaultColors[cause], Values(t_, [&](const TimelineColumn& c) {
                 return c.stall_ns[cause] * 1e-9 / t_.column_s();
               })};
      if (*std::max_element(s.values.begin(), s.values.end()) > 0) series.push_back(std::move(s));
    }
    if (series.empty()) chart.LegendText("no fault");
    chart.Scale(std::clamp(Most(series) * 1.1, 0.01, 1.0), AxisUnit::kPercent).Stack(series);
    Place(chart);
  }

  void Throughput() {
    Chart chart = Panel("Tokens per second", 100);
    const std::vector<Series> series = {
        {"generated", "#2f8f5b",
         Values(t_, [&](const TimelineColumn& c) { return c.output_tokens / t_.column_s(); })},
        {"of prompts", "#b9c4d3",
         Values(t_, [&](const TimelineColumn& c) { return c.prompt_tokens / t_.column_s(); })}};
    chart.Scale(std::max(1.0, Most(series) * 1.05), AxisUnit::kNumber).Stack(series);
    Place(chart);
  }

  void Links() {
    std::map<uint64_t, double> tiers;
    for (const TimelineColumn& c : t_.columns()) {
      for (const auto& [tier, bytes] : c.link_bytes) tiers[tier] = std::max(tiers[tier], bytes);
    }
    Chart chart = Panel("Link to the device", 84);
    double most = 0;
    for (const auto& [tier, bytes] : tiers) most = std::max(most, bytes / t_.column_s());
    const double peak = reader_.meta().link_bytes_per_ns * 1e9;
    chart.Scale(std::max(1e6, most * 1.1), AxisUnit::kRate);
    for (const auto& [tier, bytes] : tiers) {
      chart.Line({"from " + TierName(tier), kLinkColors[tier % 4],
                  Values(t_, [&, tier = tier](const TimelineColumn& c) {
                    const auto it = c.link_bytes.find(tier);
                    return it == c.link_bytes.end() ? 0 : it->second / t_.column_s();
                  })});
    }
    if (tiers.empty()) chart.LegendText("nothing was streamed");
    if (peak > 0) chart.Level(peak, "#767c86", "measured peak " + HumanRate(peak));
    Place(chart);
  }

  void Requests() {
    Chart chart = Panel("Requests", 84);
    const std::vector<Series> series = {
        {"running", "#2f5d94", Values(t_, [](const TimelineColumn& c) { return c.queue.running; })},
        {"waiting", "#e2c08a",
         Values(t_, [](const TimelineColumn& c) { return c.queue.waiting; })}};
    chart.Scale(std::max(1.0, Most(series) * 1.05), AxisUnit::kNumber).Stack(series);
    Place(chart, /*with_time=*/true);
  }

  const Timeline& t_;
  const TraceReader& reader_;
  ChartFrame frame_;
  double granule_ = 0;
  double y_ = 0, plot_top_ = 0;
  std::string body_;
};

constexpr std::string_view kScript = R"JS(
const svg = document.querySelector('svg'), box = document.getElementById('v');
const line = document.createElementNS('http://www.w3.org/2000/svg', 'line');
for (const [k, v] of Object.entries({y1: F.top, y2: F.bottom, stroke: '#111418', 'stroke-width': 1,
  'stroke-dasharray': '2 3', visibility: 'hidden'})) line.setAttribute(k, v);
svg.appendChild(line);
const bytes = b => { let i = 0; while (b >= 1023.5 && i < 4) { b /= 1024; ++i; }
  return b.toFixed(b < 10 && i ? 2 : b < 100 && i ? 1 : 0) + ' ' + ['B', 'KiB', 'MiB', 'GiB', 'TiB'][i]; };
svg.addEventListener('mousemove', e => {
  const scale = svg.viewBox.baseVal.width / svg.getBoundingClientRect().width;
  const x = e.offsetX * scale, i = Math.floor((x - F.left) / F.width * D.length);
  const on = i >= 0 && i < D.length;
  box.style.display = on ? 'block' : 'none';
  line.setAttribute('visibility', on ? 'visible' : 'hidden');
  if (!on) return;
  line.setAttribute('x1', x); line.setAttribute('x2', x);
  const d = D[i], row = (k, v) => '<tr><td>' + k + '</td><td>' + v + '</td></tr>';
  box.innerHTML = '<b>' + (F.from + i * F.column).toFixed(3) + ' s</b><table>' +
    row('weights at home', bytes(d[0])) + row('away', bytes(d[1])) + row('ring', bytes(d[2])) +
    row('KV', bytes(d[3])) + row('free', bytes(d[4])) + row('KV blocks used', d[5]) +
    row('cached', d[6]) + row('free', d[7]) + row('stall', d[8] + ' %') +
    row('faults', d[9]) + row('tokens/s generated', d[10]) + row('of prompts', d[11]) +
    row('link', bytes(d[12]) + '/s') + row('running', d[13]) + row('waiting', d[14]) + '</table>';
  const right = e.clientX + 250 > innerWidth;
  box.style.left = (e.pageX + (right ? -box.offsetWidth - 16 : 16)) + 'px';
  box.style.top = Math.min(e.pageY + 12, scrollY + innerHeight - box.offsetHeight - 8) + 'px';
});
svg.addEventListener('mouseleave', () => { box.style.display = 'none';
  line.setAttribute('visibility', 'hidden'); });
)JS";

nlohmann::json Numbers(const Timeline& t, double granule) {
  const auto round1 = [](double v) { return std::round(v * 10) / 10; };
  auto rows = nlohmann::json::array();
  for (const TimelineColumn& c : t.columns()) {
    const auto owned = [&](uint64_t o) { return static_cast<double>(c.granules[o]) * granule; };
    double stall = 0;
    for (const double ns : c.stall_ns) stall += ns;
    double bytes = 0;
    for (const auto& [tier, b] : c.link_bytes) bytes += b;
    rows.push_back({owned(kOwnerWeights), c.evicted_bytes, owned(kOwnerRing), owned(kOwnerKv),
                    owned(kOwnerNone), c.queue.used, c.queue.cached, c.queue.free,
                    round1(stall * 1e-7 / t.column_s()), c.faults,
                    round1(c.output_tokens / t.column_s()), round1(c.prompt_tokens / t.column_s()),
                    std::round(bytes / t.column_s()), c.queue.running, c.queue.waiting});
  }
  return rows;
}

}  // namespace

std::string PlotSvg(const Timeline& timeline, const TraceReader& reader) {
  return "<?xml version='1.0' encoding='UTF-8'?>\n" + Page(timeline, reader).Svg();
}

std::string PlotHtml(const Timeline& timeline, const TraceReader& reader) {
  Page page(timeline, reader);
  const std::string svg = page.Svg();
  const nlohmann::json frame = {{"left", page.frame().left}, {"width", page.frame().width},
                                {"from", timeline.from_s()}, {"column", timeline.column_s()},
                                {"top", page.plot_top()},    {"bottom", page.plot_bottom() - 22}};
  std::string out =
      "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>\n"
      "<meta name='viewport' content='width=device-width'><title>weir: a trace</title>\n"
      "<style>body{margin:0;background:#fff}svg{display:block;max-width:100%;height:auto}"
      "#v{position:absolute;display:none;pointer-events:none;background:#fffffff2;"
      "border:1px solid #b9bec7;border-radius:5px;padding:6px 9px;"
      "font:12px system-ui,sans-serif;color:#30343b;box-shadow:0 2px 8px #0002}"
      "#v td:last-child{text-align:right;padding-left:14px;font-variant-numeric:tabular-nums}"
      "</style></head><body>\n" +
      svg + "<div id='v'></div>\n<script>\nconst F = " + frame.dump() +
      ";\nconst D = " + Numbers(timeline, static_cast<double>(reader.meta().granule_bytes)).dump() +
      ";\n";
  out += kScript;
  return out + "</script></body></html>\n";
}

}  // namespace weir::trace_tool
