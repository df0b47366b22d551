"""Plots as SVG that take their colours from the page, so that one picture reads in light and in dark.

matplotlib draws with stand-in colours that are then replaced: text and axes by ``currentColor``, lines by CSS variables
(--series-1 .. --series-6, --faint). Text stays text, escaped by matplotlib, and never goes through its TeX parser.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.timer import EXCLUDED_TAGS
from reports.collect import Run, finite
from reports.render import clean, number_text

MAX_RUNS = 6
MAX_BARS = 24
MAX_POINTS = 2000
_LOG_FROM = 20  # runs whose steps differ by more than this would be dots on two edges
_INK, _FAINT = "#010203", "#0a0b0c"
SERIES = tuple(f"#1000{n:02x}" for n in range(1, MAX_RUNS + 1))
_MAX_LABEL = 27
_COLORS = {
    "light": ("#0969da", "#bc4c00", "#1a7f37", "#bf3989", "#8250df", "#7d5a00"),
    "dark": ("#6cb6ff", "#f69d50", "#57ab5a", "#e275ad", "#b083f0", "#c69026"),
}
_FAINT_COLORS = {"light": "#8c959f", "dark": "#656e78"}
PALETTE = {
    theme: ";".join([*(f"--series-{n}:{c}" for n, c in enumerate(colors, start=1)), f"--faint:{_FAINT_COLORS[theme]}"])
    for theme, colors in _COLORS.items()
}


@dataclass(frozen=True)
class Plot:
    """One picture: a name for its file, a title, a caption, and the SVG to put inside a page."""

    name: str
    title: str
    caption: str
    svg: str

    @property
    def standalone(self) -> str:
        """The SVG as a file of its own, with the palette for light and dark inside."""
        style = (
            f"<style>svg{{font-family:sans-serif;color:#1f2328;{PALETTE['light']}}}"
            f"@media (prefers-color-scheme:dark){{svg{{color:#d1d7e0;{PALETTE['dark']}}}}}</style>"
        )
        return '<?xml version="1.0" encoding="utf-8"?>\n' + re.sub(r"(<svg[^>]*>)", rf"\1{style}", self.svg, count=1)


def make_plots(runs: Sequence[Run]) -> list[Plot]:
    """The plots that the runs have numbers for: loss, step times, seconds of each run, seconds inside runs."""
    made = (loss_curve(runs), step_times(runs), run_seconds(runs), stage_seconds(runs))
    return [plot for plot in made if plot is not None]


def loss_curve(runs: Sequence[Run]) -> Plot | None:
    """Loss of every step against its index, for the first six runs that have losses; validation losses dashed."""
    having = _having(runs, lambda run: _losses(run, evaluated=False) if run.kind.startswith("train") else [])
    if not having:
        return None
    figure, axes = new_figure(2.7)
    lost = validated = 0
    for color, (run, points) in zip(SERIES, having, strict=False):
        lost += sum("eval" not in (step.get("tags") or ()) for step in run.rows("steps")) - len(points)
        x, y = zip(*_thinned(points), strict=True)
        marker = "o" if len(x) <= 40 else ""
        axes.plot(x, y, color=color, linewidth=1.4, marker=marker, markersize=3, label=short_label(run.label))
        if checks := _losses(run, evaluated=True):
            validated += 1
            axes.plot(*zip(*checks, strict=True), color=color, linestyle="--", marker="s", markersize=3.5)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(axes, len(having[:MAX_RUNS]))
    caption = f"Loss of each step as recorded, not smoothed.{_first(having)}"
    caption += " Dashed, squares: validation loss, at fixed time steps with fixed noise." if validated else ""
    caption += f" {lost} steps have no finite loss and are not drawn." if lost else ""
    return finished("loss", "Training loss", caption, figure)


def step_times(runs: Sequence[Run]) -> Plot | None:
    """Seconds of every counted step, one row per run, with the median; tagged steps (compile, ...) are left out."""
    having = _having(runs, lambda run: _points(run, "seconds", counted=True))
    if not having:
        return None
    shown = [(run, [y for _, y in points]) for run, points in having[:MAX_RUNS]]
    figure, axes = new_figure(0.9 + 0.5 * len(shown))
    left_out = 0
    for row, (color, (run, seconds)) in enumerate(zip(SERIES, shown, strict=False)):
        left_out += len(run.rows("steps")) - len(seconds)
        values = [y for _, y in _thinned(list(enumerate(seconds)))]
        # A golden-ratio sequence spreads points evenly without a random generator, so the file is reproducible.
        heights = [row + 0.5 * ((0.618034 * i) % 1 - 0.5) for i in range(len(values))]
        axes.plot(values, heights, "o", color=color, markersize=3.2, alpha=0.65, markeredgewidth=0)
        axes.plot([_median(seconds)] * 2, [row - 0.36, row + 0.36], color=_INK, linewidth=1.6)
    _names(axes, [run.label for run, _ in shown])
    every = [value for _, seconds in shown for value in seconds]
    wide = min(every) > 0 and max(every) / min(every) > _LOG_FROM
    axes.set_xscale("log" if wide else "linear")
    axes.set_xlabel("seconds per step" + (", log scale" if wide else ""))
    caption = f"Each dot is a step, the bar is the median.{_first(having)}"
    caption += f" {left_out} tagged or unmeasured steps are left out." if left_out else ""
    return finished("step-times", "Step times", caption, figure)


def run_seconds(runs: Sequence[Run]) -> Plot | None:
    """Wall seconds of each run, as bars."""
    bars = [(run.label, run.number("seconds")) for run in runs if run.kind != "pipeline"]
    return _bars("run-seconds", "Wall time of each run", [(name, s) for name, s in bars if s is not None], len(bars))


def stage_seconds(runs: Sequence[Run]) -> Plot | None:
    """Seconds of each timed stage inside the runs, as bars."""
    bars = [
        (f"{run.label} / {stage.get('name', '')}", finite(stage.get("seconds")))
        for run in runs
        if run.kind != "pipeline"
        for stage in run.rows("stages")
    ]
    return _bars("stages", "Stage breakdown", [(name, s) for name, s in bars if s is not None], len(bars))


def _bars(name: str, title: str, bars: list[tuple[str, float]], total: int) -> Plot | None:
    if not bars:
        return None
    longest = sorted(range(len(bars)), key=lambda i: -bars[i][1])[:MAX_BARS]
    shown = [bars[i] for i in sorted(longest)]
    figure, axes = new_figure(0.75 + 0.27 * len(shown))
    seconds = [value for _, value in shown]
    axes.barh(range(len(shown)), seconds, height=0.62, color=SERIES[0])
    for row, value in enumerate(seconds):
        axes.annotate(
            f"{number_text(value)} s", (value, row), (4, 0), textcoords="offset points", va="center", color=_INK
        )
    axes.set_xlim(0, (max(seconds) or 1) * 1.28)
    _names(axes, [label for label, _ in shown])
    axes.set_xlabel("seconds")
    left_out = f" The {len(shown)} longest of {total}." if len(shown) < total else ""
    return finished(name, title, f"Wall seconds as recorded.{left_out}", figure)


def _having(runs: Sequence[Run], points: Callable[[Run], list]) -> list[tuple[Run, list]]:
    """The runs that have points, with them."""
    return [(run, found) for run in runs if run.data["steps"] and (found := points(run))]


def _points(run: Run, key: str, *, counted: bool = False) -> list[tuple[float, float]]:
    points = []
    for position, step in enumerate(run.rows("steps")):
        value, index = finite(step.get(key)), finite(step.get("index"))
        if value is not None and not (counted and EXCLUDED_TAGS & set(step.get("tags") or ())):
            points.append((position if index is None else index, value))
    return points


def _losses(run: Run, *, evaluated: bool) -> list[tuple[float, float]]:
    """(step, loss) of the validations, or of all other steps."""
    steps = [step for step in run.rows("steps") if ("eval" in (step.get("tags") or ())) == evaluated]
    pairs = [(finite(step.get("index")), finite(step.get("loss"))) for step in steps]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _thinned(points: list[tuple[float, Any]]) -> list[tuple[float, Any]]:
    stride = -(-len(points) // MAX_POINTS)
    return points[::stride]


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _first(having: Sequence) -> str:
    return f" The first {MAX_RUNS} of {len(having)} runs." if len(having) > MAX_RUNS else ""


def short_label(text: str) -> str:
    """A run's name, its middle left out where it is long."""
    shown = " ".join(clean(text).split()) or "(no name)"
    if len(shown) > _MAX_LABEL:  # both ends tell names apart, the middle does less
        half = (_MAX_LABEL - 1) // 2
        shown = f"{shown[:half]}…{shown[-half:]}"
    return " " + shown if shown.startswith("_") else shown  # matplotlib hides labels that start with an underscore


def new_figure(height: float) -> tuple[Figure, Axes]:
    """A figure of our width and ``height`` inches with one pair of axes in our style."""
    figure = Figure(figsize=(4.3, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=9.5, color=_FAINT)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    axes.grid(color=_FAINT, alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)))
    for tick in axes.set_yticklabels([short_label(name) for name in names]):
        tick.set_parse_math(False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def add_legend(axes: Axes, count: int, *, below: bool = False) -> None:
    """A legend where there is more than one line; ``below`` the axes where bars fill them."""
    if count > 1:
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": 2} if below else {}
        handles, labels = axes.get_legend_handles_labels()
        made_by: Any = axes.figure if below else axes
        legend = made_by.legend(handles, labels, frameon=False, fontsize=9.5, labelcolor=_INK, **place)
        for text in legend.get_texts():
            text.set_parse_math(False)


def finished(name: str, title: str, caption: str, figure: Figure) -> Plot:
    """The figure as a plot that a page can hold."""
    out = StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10, "axes.unicode_minus": False}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a glyph missing in our font is the browser's to draw
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return Plot(name, title, caption, _page_svg(out.getvalue(), name, title))


def _page_svg(svg: str, name: str, title: str) -> str:
    """The <svg> element alone: colours and font from the page, ids that no other plot has, a title for screen readers.

    Only markup is rewritten: a run may be named like a colour or an id, and its name must stay as it is.
    """
    prefix = "p" + hashlib.sha256(name.encode()).hexdigest()[:6] + "-"

    def markup(found: re.Match[str]) -> str:
        tag = re.sub(r'\sid="', f' id="{prefix}', found.group())
        tag = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\1{prefix}", tag)
        tag = re.sub(r"font-family: [^;\"]*", "font-family: inherit", tag)
        tag = tag.replace(_INK, "currentColor").replace(_FAINT, "var(--faint)")
        for number, color in enumerate(SERIES, start=1):
            tag = tag.replace(color, f"var(--series-{number})")
        return tag

    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg[svg.index("<svg") :], count=1, flags=re.DOTALL)
    svg = re.sub(r"<[^<>]*>", markup, svg)
    return re.sub(r"<svg ", f'<svg role="img" aria-label="{title}" ', svg, count=1).strip()
