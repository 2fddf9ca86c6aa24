#!/usr/bin/env python3
"""Draws what weir_overload_bench measured: gain over `resident` by W/C, beside the bound.

    python3 bench/engine/plot_overload.py overload.json docs/img/overload.svg
"""

import html
import json
import sys

WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 44, 56
COLOURS = ["#9aa5b1", "#7fb3d5", "#3d7ea6", "#d9534f", "#e8a33d", "#6b8e5a"]


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1]) as f:
        data = json.load(f)
    ratios, policies = [], []
    value = {}
    for row in data["rows"]:
        if row["ratio"] not in ratios:
            ratios.append(row["ratio"])
        if row["policy"] not in policies:
            policies.append(row["policy"])
        value[row["ratio"], row["policy"]] = row
    ratios.sort()
    gain = {
        key: row["tokens_per_s"] / value[key[0], "resident"]["tokens_per_s"]
        for key, row in value.items()
    }
    top = max(list(gain.values()) + [row["bound"] for row in value.values()]) * 1.1
    plot_w, plot_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def y(v):
        return TOP + plot_h * (1 - v / top)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="18" font-size="14" fill="#1f2933">Output tokens/s over resident, '
        "requests always waiting</text>",
    ]
    step = 0.5
    tick = 0.0
    while tick <= top:
        out.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
            f'stroke="{"#52606d" if tick == 1 else "#e4e7eb"}"/>'
            f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end" fill="#52606d">'
            f"{tick:.1f}×</text>"
        )
        tick += step
    group = plot_w / len(ratios)
    bar = group * 0.8 / len(policies)
    for i, ratio in enumerate(ratios):
        x0 = LEFT + group * i + group * 0.1
        for j, policy in enumerate(policies):
            g = gain[ratio, policy]
            x = x0 + bar * j
            tokens = value[ratio, policy]["tokens_per_s"]
            out.append(
                f'<rect x="{x:.1f}" y="{y(g):.1f}" width="{bar * 0.9:.1f}" '
                f'height="{y(0) - y(g):.1f}" fill="{COLOURS[j % len(COLOURS)]}">'
                f"<title>{html.escape(policy)}: {tokens:.0f} tokens/s</title></rect>"
                f'<text x="{x + bar * 0.45:.1f}" y="{y(g) - 4:.1f}" text-anchor="middle" '
                f'font-size="10" fill="#1f2933">{g:.2f}</text>'
            )
        bound = value[ratio, "resident"]["bound"]
        out.append(
            f'<line x1="{x0 - 4:.1f}" x2="{x0 + bar * len(policies):.1f}" y1="{y(bound):.1f}" '
            f'y2="{y(bound):.1f}" stroke="#1f2933" stroke-dasharray="5 3"/>'
            f'<text x="{LEFT + group * (i + 0.5):.1f}" y="{HEIGHT - BOTTOM + 18}" '
            f'text-anchor="middle" fill="#1f2933">weights / HBM {ratio:.2f}</text>'
        )
    x = LEFT
    for j, policy in enumerate(policies + ["bound"]):
        if policy == "bound":
            out.append(
                f'<line x1="{x}" x2="{x + 14}" y1="{HEIGHT - 17}" y2="{HEIGHT - 17}" '
                'stroke="#1f2933" stroke-dasharray="5 3"/>'
            )
        else:
            out.append(
                f'<rect x="{x}" y="{HEIGHT - 23}" width="12" height="12" '
                f'fill="{COLOURS[j % len(COLOURS)]}"/>'
            )
        out.append(
            f'<text x="{x + 18}" y="{HEIGHT - 13}" fill="#1f2933">{html.escape(policy)}</text>'
        )
        x += 34 + 6.6 * len(policy)
    out.append("</svg>")
    with open(sys.argv[2], "w") as f:
        f.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
