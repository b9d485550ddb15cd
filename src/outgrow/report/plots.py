"""Plots for pages and run folders, drawn by matplotlib.

    line_plot(series, levels, name=..., title=...)    # scores or losses by epoch, for a page
    dot_plot(effects, name=..., title=...)            # differences by seed, for a page
    draw_lines(axis, series, levels)                  # the same lines on an axis of a picture

A page has a wide and a narrow version of each plot, so that text has the same size on a phone and on a desktop.
Lengths are in points, the units of the SVG, about one pixel each.
"""

import math
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from outgrow.report.palette import LIGHT
from outgrow.report.svg import inline_svg, titled

LINES = ("-", "--", ":", "-.")
"""Line styles for colours that repeat."""
LEVEL_DASHES = {"teacher": (0, (5, 3.5)), "corrected": (0, (1, 2))}

WIDE, NARROW = 880.0, 370.0
LINE_GAP = 16.0
"""Smallest distance between two names beside the lines: one line of text."""
LETTER = 6.6
"""Width of a letter."""
MAX_NAME = 30
"""Most letters of a name in a plot; tables have the whole name."""
MAX_MARKS = 60
"""Lines with more points than this have no markers."""
STYLE = {
    "axes.autolimit_mode": "round_numbers",
    "axes.axisbelow": True,
    "axes.edgecolor": "none",
    "axes.formatter.useoffset": False,
    "axes.labelcolor": LIGHT["soft"],
    "axes.xmargin": 0,
    "axes.ymargin": 0,
    "font.size": 12.5,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 1,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "outgrow",
    "text.color": LIGHT["soft"],
    "text.parse_math": False,
    "xtick.color": LIGHT["soft"],
    "xtick.major.size": 0,
    "xtick.major.pad": 8,
    "ytick.color": LIGHT["soft"],
    "ytick.major.size": 0,
    "ytick.major.pad": 8,
}
_SETTINGS = threading.Lock()


@dataclass(frozen=True)
class Series:
    """A line and, for several seeds, the band around it: ``(epoch, low, high)``. ``colour`` is a palette name."""

    label: str
    points: Sequence[tuple[int, float]]
    band: Sequence[tuple[int, float, float]] = ()
    colour: str = "s0"
    lead: bool = False
    """Whether it is drawn thicker, as the main line."""


@dataclass(frozen=True)
class Level:
    """A horizontal line, for a value that does not depend on the epoch."""

    label: str
    value: float
    colour: str


@dataclass(frozen=True)
class Effect:
    """One row of a dot plot: a difference per seed, their mean, and its interval if there is one."""

    label: str
    values: Sequence[float]
    mean: float
    low: float
    high: float
    text: str
    colour: str = "s0"


class Key(NamedTuple):
    """A line of a legend: its label, the palette's name of its colour, and how it is drawn."""

    label: str
    colour: str
    dashed: bool | None = None
    """None for the colour's own style: levels of a teacher are dashed."""


@dataclass(frozen=True)
class Plot:
    """Both versions as inline SVG, and the legend. It is shown below the narrow version, below both with ``named=False``:
    the wide one then has no names beside its lines."""

    wide: Markup
    narrow: Markup
    legend: Sequence[Key] = ()
    named: bool = True


def teacher_levels(own: float | None, corrected: float | None) -> list[Level]:
    """The teacher's score and, if it differs, the score after correction."""
    levels = [] if own is None else [Level("teacher", own, "teacher")]
    if corrected is not None and corrected != own:
        levels.append(Level("teacher, corrected", corrected, "corrected"))
    return levels


def line_plot(
    series: Sequence[Series],
    levels: Sequence[Level] = (),
    *,
    name: str,
    title: str,
    ceiling: float | None = None,
) -> Plot | None:
    """Lines by epoch; None without series. ``name`` must be unique on a page.

    The axis does not extend above ``ceiling`` if all data are below it; 100 for percent.
    """
    if not series:
        return None
    ends = [f"{one.label} {significant(one.points[-1][1])}" for one in series]
    ends += [f"{level.label} {level.value:.2f} across" for level in levels]
    named: list[Series | Level] = [*series, *levels]
    description = f"Line plot by epoch. At the end: {', '.join(ends)}."

    def drawn(kind: str, width: float, height: float) -> Markup:
        with new_figure(width, height) as figure:
            beside = names_width(named) if kind == "wide" else 10.0
            axis = add_axis(figure, 46.0, width - beside, 14.0, height - 42)
            draw_lines(axis, series, levels, ceiling=ceiling, names=kind == "wide")
            axis.set_xlabel("epoch", labelpad=4)
            return inline_svg(figure, kind, f"{name}-{kind}", title, description)

    return Plot(
        drawn("wide", WIDE, 380.0),
        drawn("narrow", NARROW, 300.0),
        [Key(one.label, one.colour) for one in named],
    )


def draw_lines(
    axis: Any,
    series: Sequence[Series],
    levels: Sequence[Level] = (),
    *,
    ceiling: float | None = None,
    names: bool = True,
) -> None:
    """Draw on an axis of :func:`new_figure`; with ``names``, labels are placed beside the ends of the lines."""
    for one in series:
        if one.band:
            axis.fill_between(
                *zip(*one.band, strict=True), color=LIGHT[one.colour], alpha=0.11, lw=0, clip_on=False
            )
    for level in levels:
        axis.axhline(
            level.value, color=LIGHT[level.colour], ls=LEVEL_DASHES[level.colour], lw=1.5, clip_on=False
        )
    for number, one in enumerate(series):
        marked = len(one.points) <= MAX_MARKS
        again = sum(other.colour == one.colour for other in series[:number])
        axis.plot(
            *zip(*one.points, strict=True),
            color=LIGHT[one.colour],
            ls=LINES[again % len(LINES)],
            lw=2.8 if one.lead else 1.8,
            marker="o" if marked else "",
            ms=4.8,
            mew=0,
            clip_on=False,
            gid=titled(f"{one.label}, epoch {x:g}: {significant(y)}" for x, y in one.points if marked),
        )
    axis.grid(axis="y", clip_on=False)
    axis.xaxis.set_major_locator(round_ticks(integer=True))
    axis.yaxis.set_major_locator(round_ticks())
    epochs = [x for one in series for x, _ in one.points]
    pad = 1 if len(set(epochs)) == 1 else 0  # a single epoch gets one epoch of margin on each side
    axis.set_xlim(min(epochs) - pad, max(epochs) + pad)
    floor, roof = axis.dataLim.intervaly
    low, high = axis.get_ylim()
    axis.set_ylim(
        max(low, 0) if floor >= 0 else low, min(high, ceiling) if ceiling and roof <= ceiling else high
    )
    if names:
        _names_beside(axis, series, levels)


def _names_beside(axis: Any, series: Sequence[Series], levels: Sequence[Level]) -> None:
    ends = [(one.points[-1][1], one) for one in series] + [(level.value, level) for level in levels]
    ends.sort(key=lambda end: end[0])
    low, high = axis.get_ylim()
    height = axis.get_window_extent().height * 72 / axis.figure.dpi
    places = spread([height * (value - low) / (high - low) for value, _ in ends], LINE_GAP, height)
    for place, (_, one) in zip(places, ends, strict=True):
        axis.annotate(
            short(one.label),
            (1, 0),
            xycoords="axes fraction",
            xytext=(10, place),
            textcoords="offset points",
            va="center",
            color=LIGHT[one.colour],
            weight="bold" if getattr(one, "lead", False) else "normal",
        )


def calibration_plot(
    lines: Sequence[tuple[str, Sequence[tuple[float, float]], str]], *, name: str, title: str
) -> Plot | None:
    """Accuracy by confidence, both in percent, with the diagonal. A line is a label, points and a colour.

    None if no line has points.
    """
    lines = [line for line in lines if line[1]]
    if not lines:
        return None
    description = "Line plot of accuracy by confidence. " + "; ".join(
        f"{label}: {', '.join(f'{x:.0f} to {y:.0f}' for x, y in points)}" for label, points, _ in lines
    )

    def drawn(kind: str, width: float, height: float) -> Markup:
        with new_figure(width, height) as figure:
            axis = add_axis(figure, 46.0, min(width - 10.0, height + 120.0), 14.0, height - 42)
            axis.plot([0, 100], [0, 100], color=LIGHT["soft"], ls=LEVEL_DASHES["teacher"], lw=1.2)
            for number, (label, points, colour) in enumerate(lines):
                axis.plot(
                    *zip(*points, strict=True),
                    color=LIGHT[colour],
                    lw=2.8 if number == 0 else 1.8,
                    marker="o",
                    ms=4.8,
                    mew=0,
                    clip_on=False,
                    gid=titled(f"{label}: {x:.0f} % sure, {y:.0f} % right" for x, y in points),
                )
            axis.grid(clip_on=False)
            axis.set_xlim(0, 100)
            axis.set_ylim(0, 100)
            axis.set_xlabel("probability of the top class (%)", labelpad=4)
            return inline_svg(figure, kind, f"{name}-{kind}", title, description)

    return Plot(
        drawn("wide", WIDE, 380.0),
        drawn("narrow", NARROW, 340.0),
        [Key(label, colour) for label, _, colour in lines],
        named=False,
    )


def recall_plot(
    lines: Sequence[tuple[str, Sequence[tuple[float, float]], str, str]], *, name: str, title: str
) -> Plot | None:
    """Precision by recall, both in percent. A line is a label, points, a colour and a line style.

    None if no line has points.
    """
    lines = [line for line in lines if line[1]]
    if not lines:
        return None
    ends = (f"{label}: mean {sum(y for _, y in points) / len(points):.1f}" for label, points, *_ in lines)
    description = f"Line plot of precision by recall. {'; '.join(ends)}"

    def drawn(kind: str, width: float, height: float) -> Markup:
        with new_figure(width, height) as figure:
            axis = add_axis(figure, 46.0, min(width - 10.0, height + 120.0), 14.0, height - 42)
            for _, points, colour, style in lines:
                axis.plot(*zip(*points, strict=True), color=LIGHT[colour], ls=style, lw=2.0, clip_on=False)
            axis.grid(clip_on=False)
            axis.set_xlim(0, 100)
            axis.set_ylim(0, 100)
            axis.set_xlabel("recall (%)", labelpad=4)
            return inline_svg(figure, kind, f"{name}-{kind}", title, description)

    return Plot(
        drawn("wide", WIDE, 380.0),
        drawn("narrow", NARROW, 340.0),
        [Key(label, colour, style != "-") for label, _, colour, style in lines],
        named=False,
    )


def dot_plot(effects: Sequence[Effect], *, name: str, title: str, x_label: str) -> Plot | None:
    """Differences by seed, with means and intervals; the axis always includes zero. None without effects."""
    if not effects:
        return None
    description = f"Dot plot of {x_label}. Means: {', '.join(f'{e.label} {e.text}' for e in effects)}."
    return Plot(
        _dot_plot("wide", effects, name, title, description, x_label),
        _dot_plot("narrow", effects, name, title, description, x_label),
    )


def _dot_plot(
    kind: str, effects: Sequence[Effect], name: str, title: str, description: str, x_label: str
) -> Markup:
    # names and numbers are beside the plot in the wide version, above each row in the narrow one
    wide = kind == "wide"
    width, row = (WIDE, 38.0) if wide else (NARROW, 56.0)
    height = 8 + row * len(effects) + 46
    with new_figure(width, height) as figure:
        left, right = (names_width(effects), width - 160.0) if wide else (12.0, width - 12.0)
        axis = add_axis(figure, left, right, 8.0, height - 46)
        axis.set_ylim(row * len(effects), 0)
        axis.set_xlim(*_dot_range(effects))
        axis.xaxis.set_major_locator(round_ticks())
        axis.xaxis.set_major_formatter(lambda value, _: signed_tick(value))
        axis.set_yticks([])
        axis.grid(axis="x", clip_on=False)
        axis.axvline(0, color=LIGHT["ink"], lw=1.25, zorder=1)
        axis.set_xlabel(x_label, labelpad=4)
        for number, e in enumerate(effects):
            y = row * number + (14 if wide else 32)
            shade = LIGHT[e.colour]
            if math.isfinite(e.low) and math.isfinite(e.high):
                axis.plot([e.low, e.high], [y, y], color=shade, lw=2, marker="|", ms=10, mew=2)
            axis.plot(e.mean, y, "D", color=shade, ms=7, mew=0)
            axis.plot(
                e.values,
                [y + 11] * len(e.values),
                "o",
                mfc=LIGHT["paper"],
                mec=shade,
                mew=1.6,
                ms=8,
                clip_on=False,
                gid=titled(f"{e.label}: {value:+.2f}" for value in e.values),
            )
            at = {"xycoords": axis.get_yaxis_transform(), "textcoords": "offset points", "va": "center"}
            at["bbox"] = None if wide else {"fc": LIGHT["paper"], "lw": 0, "pad": 2}
            up = 0 if wide else 18
            axis.annotate(short(e.label), (0, y), xytext=(-left, up), color=LIGHT["ink"], **at)
            axis.annotate(e.text, (1, y), xytext=(width - right, up), ha="right", **at)
        return inline_svg(figure, kind, f"{name}-{kind}", title, description)


def _dot_range(effects: Sequence[Effect]) -> tuple[float, float]:
    """Round bounds of the axis. An interval over two seeds can be a hundred times as wide as the differences; it is
    then cut off at the edge."""
    values = [0.0, *(value for e in effects for value in e.values)]
    span = max(values) - min(values) or 1.0
    floor, roof = min(values) - 2 * span, max(values) + 2 * span
    bounds = values + [min(max(b, floor), roof) for e in effects for b in (e.low, e.high) if math.isfinite(b)]
    low, high = min(bounds), max(bounds)
    ticks = round_ticks().tick_values(low, high if high > low else low + 1)
    return float(ticks[0]), float(ticks[-1])


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Any]:
    """A figure of that size in points. Draw and save it inside: only there our style applies, and no other."""
    from matplotlib import style
    from matplotlib.figure import Figure

    # matplotlib's settings are global: take a lock, and restore them afterwards
    with _SETTINGS, style.context(["default", STYLE]), warnings.catch_warnings():
        # browsers have fonts for letters that matplotlib's font lacks
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=(width / 72, height / 72))  # not pyplot.figure, which notebooks display
        yield figure


def round_ticks(*, integer: bool = False) -> Any:
    """A few ticks at 1, 2, or 5 times a power of ten."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(6, steps=[1, 2, 5, 10], integer=integer)


def add_axis(figure: Any, left: float, right: float, top: float, bottom: float) -> Any:
    """An axis with edges in points from the figure's upper left corner."""
    width, height = figure.get_size_inches() * 72
    return figure.add_axes(
        (left / width, 1 - bottom / height, (right - left) / width, (bottom - top) / height)
    )


def names_width(named: Sequence[Series | Level | Effect]) -> float:
    """The width of names beside a plot, in points."""
    return 24 + LETTER * max(len(short(one.label)) for one in named)


def short(name: str) -> str:
    """A name, shortened to fit beside a plot.

    >>> short("a" * 40) == "a" * 29 + "\u2026"
    True
    """
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "\u2026"


def spread(places: Sequence[float], gap: float, top: float) -> list[float]:
    """Ascending positions between 0 and ``top``, at least ``gap`` apart, moved as little as possible.

    >>> spread([10.0, 50.0, 51.0, 52.0], 16.0, 100.0)
    [10.0, 50.0, 66.0, 82.0]
    """
    placed: list[float] = []
    for place in places:
        placed.append(max(place, placed[-1] + gap) if placed else max(place, 0.0))
    for i in range(len(placed) - 1, -1, -1):
        if placed[i] <= top:
            break
        placed[i], top = top, top - gap
    return placed


def significant(value: float) -> str:
    """Two decimals, or three significant digits for values below 0.1."""
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"


def signed_tick(value: float) -> str:
    """A tick label of differences: signed, with U+2212 as the minus.

    >>> signed_tick(2.0), signed_tick(-0.5), signed_tick(0.0)
    ('+2', '\u22120.5', '0')
    """
    return "0" if value == 0 else f"{value:+.10g}".replace("-", "\u2212")
