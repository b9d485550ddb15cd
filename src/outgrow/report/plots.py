"""The geometry of the pages' two plots. Templates draw it as inline SVG, so that a page's colours apply.

Everything here is in user units of the SVG, which the page shows at about one pixel each: there is a wide
and a narrow version of a plot, so that its text is as large on a phone as on a desk.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]

WIDE, NARROW = 880.0, 370.0
LINE_GAP = 16
"""Least distance between two labels beside the lines: a line of text."""
NUM_STYLES = 8
"""Colours that the style sheet has, ``s0`` to ``s7``."""


@dataclass(frozen=True)
class Series:
    """A line and, over several seeds, the band around it: ``(x, low, high)``. ``style`` is a CSS class."""

    label: str
    points: tuple[Point, ...]
    band: tuple[tuple[float, float, float], ...] = ()
    style: str = "s0"


@dataclass(frozen=True)
class Level:
    """A horizontal line: something that was not trained."""

    label: str
    value: float
    style: str


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Label:
    x: float
    y: float
    text: str
    style: str


@dataclass(frozen=True)
class Curve:
    """One drawn series: ``line`` and ``band`` as SVG point lists, and marks that carry their values."""

    style: str
    line: str
    band: str
    marks: tuple[Label, ...]


@dataclass(frozen=True)
class LinePlot:
    kind: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...]
    levels: tuple[Label, ...]
    labels: tuple[Label, ...]
    """Beside the ends of the lines; only in the wide version, the narrow one has a legend below it."""


@dataclass(frozen=True)
class Effect:
    """One line of a dot plot: a difference per seed, their mean, and its interval if there is one."""

    label: str
    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    text: str
    style: str


@dataclass(frozen=True)
class DrawnEffect:
    y: float
    text_y: float
    effect: Effect
    dots: tuple[Label, ...]
    mean: float
    interval: tuple[float, float] | None
    caps: tuple[float, ...]
    """Ends of the interval that lie within the plot."""


@dataclass(frozen=True)
class DotPlot:
    kind: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    zero: float
    x_label: str
    x_ticks: tuple[Tick, ...]
    effects: tuple[DrawnEffect, ...]


def style(number: int) -> str:
    """The CSS class of the series ``number``."""
    return f"s{number % NUM_STYLES}"


def line_plots(
    series: Sequence[Series],
    levels: Sequence[Level] = (),
    *,
    x_label: str = "epoch",
    ceiling: float | None = None,
) -> tuple[LinePlot, LinePlot] | None:
    """The wide and the narrow version; None where nothing was measured.

    ``ceiling`` is a value that the axis need not pass: 100 for percent.
    """
    if not any(s.points for s in series):
        return None
    return (
        _line_plot("wide", series, levels, x_label, ceiling, width=WIDE, height=380.0),
        _line_plot("narrow", series, levels, x_label, ceiling, width=NARROW, height=300.0),
    )


def _line_plot(
    kind: str,
    series: Sequence[Series],
    levels: Sequence[Level],
    x_label: str,
    ceiling: float | None,
    *,
    width: float,
    height: float,
) -> LinePlot:
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points] + [level.value for level in levels]
    ys += [bound for s in series for _, low, high in s.band for bound in (low, high)]
    y_low, y_high, y_ticks = nice_axis(min(ys), max(ys))
    if ceiling is not None and y_high > ceiling >= max(ys):
        y_high = ceiling
        y_ticks = [tick for tick in y_ticks if tick <= ceiling]
    if y_low < 0 <= min(ys):
        y_low = 0.0
        y_ticks = [tick for tick in y_ticks if tick >= 0]
    names = [s.label for s in series] + [level.label for level in levels]
    # 6.6: the width of a letter at the labels' size
    margin = min(230.0, 24 + 6.6 * max(len(name) for name in names)) if kind == "wide" else 10.0
    left, right, top, bottom = 46.0, width - margin, 14.0, height - 40

    x_low, x_high = min(xs), max(xs)
    if x_high == x_low:
        x_low, x_high = x_low - 1, x_high + 1

    def at(x: float, y: float) -> Point:
        return (
            left + (right - left) * (x - x_low) / (x_high - x_low),
            bottom - (bottom - top) * (min(max(y, y_low), y_high) - y_low) / (y_high - y_low),
        )

    curves, ends = [], []
    for s in series:
        if not s.points:
            continue
        band = [at(x, high) for x, _, high in s.band] + [at(x, low) for x, low, _ in reversed(s.band)]
        marks = tuple(
            Label(*at(x, y), f"{s.label}, {x_label} {x:g}: {significant(y)}", s.style) for x, y in s.points
        )
        curves.append(Curve(s.style, _path([at(x, y) for x, y in s.points]), _path(band), marks))
        ends.append(Label(right + 10, at(*s.points[-1])[1], s.label, s.style))
    drawn = tuple(
        Label(right, at(x_high, level.value)[1], f"{level.label}: {level.value:.2f}", level.style)
        for level in levels
    )
    ends += [
        Label(right + 10, line.y, level.label, level.style) for line, level in zip(drawn, levels, strict=True)
    ]
    return LinePlot(
        kind=kind,
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_label=x_label,
        x_ticks=tuple(Tick(at(x, y_low)[0], f"{x:g}") for x in _integers(min(xs), max(xs), right - left)),
        y_ticks=tuple(Tick(at(x_low, y)[1], _number(y, y_ticks)) for y in y_ticks),
        curves=tuple(curves),
        levels=drawn,
        labels=tuple(spread(ends, top, bottom)) if kind == "wide" else (),
    )


def dot_plots(effects: Sequence[Effect], *, x_label: str) -> tuple[DotPlot, DotPlot] | None:
    """The wide and the narrow version of a plot of differences, zero always visible; None without any."""
    if not effects:
        return None
    return (
        _dot_plot("wide", effects, x_label, WIDE),
        _dot_plot("narrow", effects, x_label, NARROW),
    )


def _dot_plot(kind: str, effects: Sequence[Effect], x_label: str, width: float) -> DotPlot:
    values = [0.0, *(v for e in effects for v in e.values)]
    span = max(values) - min(values) or 1.0
    # an interval over two seeds may be a hundred times as wide as what it is about: then it runs out of the plot
    floor, roof = min(values) - 2 * span, max(values) + 2 * span
    bounds = values + [min(max(b, floor), roof) for e in effects for b in (e.low, e.high) if math.isfinite(b)]
    low, high, ticks = nice_axis(min(bounds), max(bounds))
    # beside the plot where there is room for names and numbers, above each line where there is not
    beside = kind == "wide"
    margin = min(230.0, 16.0 + 6.6 * max(len(e.label) for e in effects)) if beside else 12.0
    left, right, top, row = margin, width - (160.0 if beside else 12.0), 8.0, 38.0 if beside else 56.0
    bottom = top + row * len(effects)

    def at(value: float) -> float:
        return left + (right - left) * (min(max(value, low), high) - low) / (high - low)

    drawn = []
    for number, e in enumerate(effects):
        y = top + row * number + (14 if beside else 32)
        known = math.isfinite(e.low) and math.isfinite(e.high)
        drawn.append(
            DrawnEffect(
                y=y,
                text_y=y + 4 if beside else y - 14,
                effect=e,
                dots=tuple(Label(at(v), y + 11, f"{e.label}: {v:+.2f}", e.style) for v in e.values),
                mean=at(e.mean),
                interval=(at(e.low), at(e.high)) if known else None,
                caps=tuple(at(b) for b in (e.low, e.high) if low <= b <= high),
            )
        )
    return DotPlot(
        kind=kind,
        width=width,
        height=bottom + 42,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        zero=at(0.0),
        x_label=x_label,
        x_ticks=tuple(Tick(at(t), signed_tick(t, ticks)) for t in ticks),
        effects=tuple(drawn),
    )


def nice_axis(low: float, high: float, *, count: int = 6) -> tuple[float, float, list[float]]:
    """Round bounds around ``low`` and ``high``, and round ticks between them.

    >>> nice_axis(1.2, 9.6)
    (0.0, 10.0, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0])
    """
    if high <= low:
        pad = abs(low) / 10 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if power * factor >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [float(f"{number * step:.10g}") for number in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def spread(labels: Sequence[Label], top: float, bottom: float) -> list[Label]:
    """The labels in their order from top to bottom, a line of text apart, moved as little as that needs."""
    placed: list[Label] = []
    for label in sorted(labels, key=lambda one: one.y):
        y = max(label.y, placed[-1].y + LINE_GAP) if placed else max(label.y, top)
        placed.append(Label(label.x, y, label.text, label.style))
    limit = bottom
    for i in range(len(placed) - 1, -1, -1):
        if placed[i].y <= limit:
            break
        placed[i] = Label(placed[i].x, limit, placed[i].text, placed[i].style)
        limit -= LINE_GAP
    return placed


def significant(value: float) -> str:
    """Two decimals, or three digits of what is smaller than that."""
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"


def signed_tick(value: float, ticks: Sequence[float]) -> str:
    """A tick of differences: signed, with a true minus."""
    text = _number(abs(value), ticks)
    return text if value == 0 else ("\u2212" if value < 0 else "+") + text


def _number(value: float, ticks: Sequence[float]) -> str:
    """``value`` with as many decimals as its neighbours need."""
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=1.0)
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _integers(low: float, high: float, room: float) -> list[float]:
    """First, last, and round epochs between them."""
    step = nice_axis(low, high, count=max(2, int(room / 60)))[2]
    gap = max(1.0, step[1] - step[0])
    inner = [t for t in step if t == int(t) and low + 0.6 * gap <= t <= high - 0.6 * gap]
    return sorted({low, *inner, high})


def _path(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
