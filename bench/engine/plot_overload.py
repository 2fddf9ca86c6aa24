#!/usr/bin/env python3
"""Draws what weir_overload_bench measured, as panels of one picture.

    python3 bench/engine/plot_overload.py overload.json... overload.svg [--panels N]

Of a flood, by W/C: gain over `resident` beside the bound, KV capacity, time at gates, TTFT and ITL.
Of a swing: tokens/s of all, and the latencies of light load and of overload. At light load:
latencies over those of `resident`. Beside rows of plain weights those of compressed ones are named
so, and gains are over plain `resident`. --panels: only so many, the first ones.
"""

import argparse
import html
import json

WIDTH, PANEL, LEFT, RIGHT, TOP, BOTTOM, LEGEND = 720, 230, 64, 16, 34, 28, 20
COLOURS = ["#9aa5b1", "#7fb3d5", "#3d7ea6", "#e8a33d", "#6b8e5a", "#8a6fa8", "#c9a9a6", "#5f7f8f",
           "#d9534f"]


def nice_step(top):
    step = 10.0 ** -6
    for factor in (2, 2.5, 2) * 20:
        if top / step <= 5:
            break
        step *= factor
    return step


class Panel:
    """Bars of |policies| in |groups|: value[group][policy], and a mark over each group or None."""

    def __init__(self, title, groups, policies, value, form="{:.2f}", marks=None):
        self.title, self.groups, self.policies = title, groups, policies
        self.value, self.form, self.marks = value, form, marks

    def draw(self, offset, colour):
        top = max([v for g in self.groups for v in self.value[g].values()] + [1e-9])
        top = max([top] + list((self.marks or {}).values())) * 1.12
        height = PANEL - TOP - BOTTOM

        def y(v):
            return offset + TOP + height * (1 - v / top)

        out = [f'<text x="{LEFT}" y="{offset + 20}" font-size="14" fill="#1f2933">'
               f"{html.escape(self.title)}</text>"]
        step, tick = nice_step(top), 0.0
        while tick <= top:
            out.append(
                f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
                f'stroke="#e4e7eb"/><text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end" '
                f'fill="#52606d">{tick:g}</text>')
            tick += step
        group = (WIDTH - LEFT - RIGHT) / len(self.groups)
        bar = group * 0.84 / len(self.policies)
        for i, g in enumerate(self.groups):
            x0 = LEFT + group * (i + 0.08)
            for j, policy in enumerate(self.policies):
                if policy not in self.value[g]:
                    continue
                v, x = self.value[g][policy], x0 + bar * j
                text = self.form.format(v)
                out.append(
                    f'<rect x="{x:.1f}" y="{y(v):.1f}" width="{bar * 0.9:.1f}" '
                    f'height="{y(0) - y(v):.1f}" fill="{colour[policy]}">'
                    f"<title>{html.escape(policy)}: {text}</title></rect>"
                    f'<text x="{x + bar * 0.45:.1f}" y="{y(v) - 3:.1f}" text-anchor="middle" '
                    f'font-size="8" fill="#1f2933">{text}</text>')
            if self.marks and g in self.marks:
                m = y(self.marks[g])
                out.append(f'<line x1="{x0 - 4:.1f}" x2="{x0 + group * 0.86:.1f}" y1="{m:.1f}" '
                           f'y2="{m:.1f}" stroke="#1f2933" stroke-dasharray="5 3"/>')
            out.append(f'<text x="{LEFT + group * (i + 0.5):.1f}" y="{offset + PANEL - 12}" '
                       f'text-anchor="middle" fill="#1f2933">{html.escape(str(g))}</text>')
        return out


def by_ratio(rows, policies, of):
    groups, value = [], {}
    for row in rows:
        group = f"W/C {row['ratio']:.2f}"
        if group not in value:
            groups.append(group)
            value[group] = {}
        value[group][row["policy"]] = of(row)
    return groups, value


def flood_panels(rows, policies):
    groups, rate = by_ratio(rows, policies, lambda r: r["tokens_per_s"])
    gain = {g: {p: v / rate[g]["resident"] for p, v in rate[g].items()} for g in groups}
    bound = {f"W/C {r['ratio']:.2f}": r["bound"] for r in rows}
    panels = [Panel("Output tokens/s over resident, requests always waiting (dashed: the bound)",
                    groups, policies, gain, marks=bound)]
    for title, of, form in [
        ("KV capacity, blocks", lambda r: r["kv_blocks"], "{:.0f}"),
        ("Time at gates, % of the steps", lambda r: 100 * r["stall_share"], "{:.1f}"),
        ("Time to first token, ms, 50 %", lambda r: r["ttft_ms"]["p50"], "{:.0f}"),
        ("Time to first token, ms, 99 %", lambda r: r["ttft_ms"]["p99"], "{:.0f}"),
        ("Between tokens, ms, 50 %", lambda r: r["itl_ms"]["p50"], "{:.1f}"),
        ("Between tokens, ms, 99 %", lambda r: r["itl_ms"]["p99"], "{:.1f}"),
    ]:
        panels.append(Panel(title, groups, policies, by_ratio(rows, policies, of)[1], form))
    return panels


def swing_panels(rows, policies):
    groups, rate = by_ratio(rows, policies, lambda r: r["tokens_per_s"])
    panels = [Panel("Swinging load: output tokens/s of all", groups, policies, rate, "{:.0f}")]
    for phase in ("light", "heavy"):
        for name, key in (("time to first token", "ttft_ms"), ("between tokens", "itl_ms")):
            value = {
                f"{g}, {q} %": {r["policy"]: r[phase][key][f"p{q}"] for r in rows
                                if f"W/C {r['ratio']:.2f}" == g}
                for g in groups for q in (50, 99)
            }
            panels.append(Panel(f"Swinging load, {phase}: {name}, ms", list(value), policies,
                                value, "{:.1f}"))
    return panels


def light_panels(rows, policies):
    value = {}
    for row in rows:
        for name, key in (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms"), ("ITL", "itl_ms")):
            for q in ("p50", "p99"):
                base = row["resident"][key][q]
                group = f"{row['ratio']:.2f} {name} {q}"
                value.setdefault(group, {})[row["policy"]] = row[key][q] / base if base else 0
    return [Panel("Light load: latency over resident (W/C, what, percentile)", list(value),
                  policies, value, "{:.3f}", {g: 1 for g in value})]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", nargs="+")
    parser.add_argument("svg")
    parser.add_argument("--panels", type=int)
    args = parser.parse_args()
    if not args.svg.endswith(".svg"):
        parser.error(f"the picture comes last and is an .svg, not {args.svg}")
    rows = []
    for name in args.json:
        with open(name) as f:
            rows += json.load(f)["rows"]
    if not all(row["compress_weights"] for row in rows):
        for row in rows:
            row["policy"] += ", compressed weights" if row["compress_weights"] else ""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    panels = []
    for mode, make in (("flood", flood_panels), ("swing", swing_panels), ("light", light_panels)):
        of_mode = [row for row in rows if row["mode"] == mode]
        if of_mode:
            panels += make(of_mode, policies)
    panels = panels[:args.panels]
    colour = {p: COLOURS[i % len(COLOURS)] for i, p in enumerate(policies)}
    height = PANEL * len(panels) + LEGEND * len(policies) + 8
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
           'font-family="system-ui, sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>']
    for i, panel in enumerate(panels):
        out += panel.draw(PANEL * i, colour)
    for i, policy in enumerate(policies):
        y = PANEL * len(panels) + LEGEND * i
        out.append(f'<rect x="{LEFT}" y="{y}" width="12" height="12" fill="{colour[policy]}"/>'
                   f'<text x="{LEFT + 18}" y="{y + 10}" fill="#1f2933">{html.escape(policy)}</text>')
    out.append("</svg>")
    with open(args.svg, "w") as f:
        f.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
