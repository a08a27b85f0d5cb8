"""The report's figures, as SVG text that goes into a page as it is: same input, same bytes."""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alula.report_profile import OperatorRow, Profile
from hw.spec.isa import Unit
from sim.trace import UNIT_NAMES

UNITS = {unit: UNIT_NAMES[unit] for unit in (Unit.RD, Unit.MX, Unit.VU, Unit.LD, Unit.ST)}
"""Rows from the top."""
FAMILIES = (
    (("norm",), ("#8c96a3", "#5f6b7a", "#b4bcc6")),
    (("attn",), ("#2f6db5", "#6ea3dc", "#174a84", "#9cc3ec")),
    (("cache", "scores", "softmax", "values"), ("#1f8a70", "#63c2a6", "#0f5c4a", "#a3dcc9")),
    (("mlp", "linear_"), ("#d9822b", "#f0b061", "#a85b12")),
    (("head",), ("#8a4fa3",)),
    (("",), ("#a3484f", "#c98a8e", "#7a2f35")),
)
"""Colours by what an operator's name holds; the last family takes the rest."""
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa4b1",
    "axes.labelcolor": "#3b4654",
    "xtick.color": "#5f6b7a",
    "ytick.color": "#3b4654",
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": "#1d2733",
}
WIDTH = 10.2
"""Inches."""
BINS, FINEST = 360, 1600
"""Intervals of a course over time; a window over FINEST is the shortest gap that is drawn."""
INK, MUTED, ACCENT = "#1d2733", "#9aa4b1", "#2f6db5"


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for every operator."""
    used: dict[tuple[str, ...], int] = {}
    out = {}
    for name in names:
        shades = next(shades for keys, shades in FAMILIES if any(key in name for key in keys))
        out[name] = shades[used.get(shades, 0) % len(shades)]
        used[shades] = used.get(shades, 0) + 1
    return out


def draw(
    profile: Profile,
    rows: Sequence[OperatorRow],
    window: tuple[int, int],
    whole: tuple[float, float],
    causes: Sequence[tuple[str, int, str]],
    part: str,
) -> dict[str, Figure]:
    """Every figure by name; `svg` makes them text. part: what the cycles of the window are."""
    return {
        "layer": layer_timeline(profile, window),
        "run": run_timeline(profile, window),
        "roofline": roofline(rows, profile, whole),
        "stalls": stalls(causes, profile.cycles),
        "bandwidth": bandwidth(profile, window, part),
    }


def svg(figure: Figure, name: str) -> str:
    """The figure without XML header and metadata; identifiers begin with `name`, so that figures can share a page."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    body = text.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", body)
    return re.sub(r"<svg ", f'<svg role="img" aria-label="{name}" ', body, count=1).strip()


def _figure(height: float, rows: int = 1, **options) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, 1, squeeze=False, **options)[:, 0])


def _cycle_axis(axes: Axes, first: int, last: int) -> None:
    axes.set_xlim(first, last)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("cycle")


def layer_timeline(profile: Profile, window: tuple[int, int]) -> Figure:
    """Instructions of each unit between two cycles, by operator."""
    figure, (axes,) = _figure(2.9)
    shade = list(colours(profile.names).values())
    first, last = window
    for row, unit in enumerate(reversed(UNITS)):
        track = profile.tracks[unit].cut(first, last)
        bars = _merged(track, (last - first) / FINEST)
        axes.broken_barh(
            [(start, end - start) for start, end, _ in bars],
            (row - 0.36, 0.72),
            facecolors=[shade[operator] for _, _, operator in bars],
            linewidth=0,
        )
        for start, end, operator in bars:
            name = profile.names[operator].rpartition(".")[2]
            if end - start > 0.0105 * len(name) * (last - first):
                axes.text((start + end) / 2, row, name, ha="center", va="center", color="white", fontsize=7.5)
    axes.set_yticks(range(len(UNITS)), list(reversed(UNITS.values())))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e3e7ec", linewidth=0.6)
    axes.set_axisbelow(True)
    _cycle_axis(axes, first, last)
    return figure


def _merged(track, shortest: float) -> list[tuple[float, float, int]]:
    """Bars of a track: neighbours of one operator become one where the gap could not be seen."""
    bars: list[tuple[float, float, int]] = []
    for start, end, operator in zip(track.start.tolist(), track.end.tolist(), track.operator.tolist(), strict=True):
        if bars and bars[-1][2] == operator and start - bars[-1][1] < shortest:
            bars[-1] = bars[-1][0], end, operator
        else:
            bars.append((start, max(end, start + shortest), operator))
    return bars


def run_timeline(profile: Profile, window: tuple[int, int]) -> Figure:
    """Share of time each unit works over the whole run; the layer that is shown in detail is marked."""
    figure, rows = _figure(3.3, len(UNITS), sharex=True)
    edges = np.linspace(0, profile.cycles, BINS + 1)
    for axes, (unit, label) in zip(rows, UNITS.items(), strict=True):
        share = profile.busy_shares(unit, edges)
        axes.fill_between(edges, [*share, share[-1]], step="post", color=ACCENT, alpha=0.85, linewidth=0)
        axes.axvspan(*window, color="#f0b061", alpha=0.4, linewidth=0)
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        axes.set_ylabel(label, rotation=0, ha="right", va="center")
        busy = profile.tracks[unit]
        axes.text(
            1.005,
            0.5,
            f"{(busy.end - busy.start).sum() / profile.cycles:.0%}",
            transform=axes.transAxes,
            va="center",
            color=INK,
        )
        axes.tick_params(axis="x", length=0)
    _cycle_axis(rows[-1], 0, profile.cycles)
    return figure


def bandwidth(profile: Profile, window: tuple[int, int], part: str) -> Figure:
    """Channel reads over time in the whole run and in its part, against the peak."""
    figure, rows = _figure(3.9, 2)
    config, peak = profile.config, profile.peak_bytes_per_cycle
    for axes, (first, last), title in zip(rows, ((0, profile.cycles), window), ("whole run", part), strict=True):
        edges = np.linspace(first, last, BINS + 1)
        moved = profile.channel_bytes_per_cycle(edges) * config.clock_hz / 1e9
        axes.fill_between(edges, [*moved, moved[-1]], step="post", color=ACCENT, alpha=0.8, linewidth=0)
        ceiling = peak * config.clock_hz / 1e9
        axes.axhline(ceiling, color="#a3484f", linewidth=1, linestyle=(0, (4, 3)))
        axes.set_ylim(0, 1.12 * ceiling if moved.max() > ceiling / 5 else 1.3 * max(moved.max(), ceiling / 1000))
        axes.set_ylabel("GB/s at the clock")
        axes.set_title(f"{title}: {moved.mean():.4g} GB/s on average, ceiling {ceiling:.4g} GB/s")
        _cycle_axis(axes, first, last)
    rows[0].axvspan(*window, color="#f0b061", alpha=0.4, linewidth=0)
    rows[0].set_xlabel("")
    return figure


def roofline(rows: Sequence[OperatorRow], profile: Profile, whole: tuple[float, float]) -> Figure:
    """Operators under the ceilings of memory and array, by what the array multiplied.

    whole: (MACs a byte, MACs a cycle) of the run.
    """
    figure, (axes,) = _figure(4.1)
    config, peak = profile.config, profile.peak_bytes_per_cycle
    shade = colours([row.name for row in rows])
    points = [row for row in rows if row.array_macs and row.channel_bytes and row.moving_cycles]
    intensity = [row.array_macs / row.channel_bytes for row in points] + [whole[0]]
    ridge = config.macs_per_cycle / peak
    low, high = min([*intensity, ridge]) / 3, max([*intensity, ridge]) * 4
    span = np.array([low, ridge, high])
    roof = np.minimum(span * peak, config.macs_per_cycle)
    axes.plot(span, roof, color=INK, linewidth=1.6)
    axes.fill_between(span, roof, roof[0] / 1e6, color="#eef2f7", linewidth=0)
    total = sum(row.cycles for row in rows) or 1
    look: dict[str, Any] = {"alpha": 0.9, "edgecolor": "white", "linewidth": 0.7, "zorder": 3}
    for row in points:
        axes.scatter(
            row.array_macs / row.channel_bytes,
            row.array_macs / row.moving_cycles,
            s=30 + 900 * row.cycles / total,
            color=shade[row.name],
            label=row.name,
            **look,
        )
    axes.scatter(*whole, marker="D", s=46, color="white", edgecolor=INK, linewidth=1.4, label="the whole run", zorder=4)
    rates = [row.array_macs / row.moving_cycles for row in points] + [whole[1]]
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(min(rates) / 2.5, config.macs_per_cycle * 2.2))
    axes.text(
        high / 1.1,
        config.macs_per_cycle * 1.12,
        f"array: {config.macs_per_cycle:,} MACs a cycle",
        ha="right",
        color=INK,
    )
    axes.text(
        0.02, 0.93, f"memory: {peak:,.6g} bytes a cycle from the channels (slope)", transform=axes.transAxes, color=INK
    )
    axes.set_xlabel("MACs of the array a byte read from the channels")
    axes.set_ylabel("MACs of the array a cycle")
    axes.grid(which="major", color="#e3e7ec", linewidth=0.6)
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    for handle in legend.legend_handles:
        handle.set_sizes([34])  # type: ignore[union-attr]
    return figure


def stalls(causes: Sequence[tuple[str, int, str]], cycles: int) -> Figure:
    """(counter, cycles, meaning): bars as a share of the run."""
    figure, (axes,) = _figure(0.55 + 0.29 * len(causes))
    shown = list(reversed(causes))
    share = [100 * value / cycles for _, value, _ in shown]
    hue = {"stall": "#2f6db5", "wait": "#1f8a70"}
    axes.barh(range(len(shown)), share, height=0.62, color=[hue.get(n.split("_")[0], "#d9822b") for n, _, _ in shown])
    axes.set_yticks(range(len(shown)), [name for name, _, _ in shown])
    axes.set_xlim(0, max(100, *share) * 1.02)
    for at, (value, (_, counted, _)) in enumerate(zip(share, shown, strict=True)):
        inside = value > 80
        axes.text(
            value + (-1 if inside else 1),
            at,
            f"{value:.1f} %   {counted:,}",
            va="center",
            fontsize=8.5,
            ha="right" if inside else "left",
            color="white" if inside else INK,
        )
    axes.set_xlabel("share of the run's cycles, %")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e3e7ec", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure
