"""Charts as inline SVG. Colours, dashes and fonts are classes of the page's style sheet, for both themes.

matplotlib's SVG is twenty times as large, and knows neither themes nor a text for those who do not see it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from slime_bench.report.published import Stat
from slime_bench.report.rows import NOTHING
from slime_bench.report.table import stat_text

STYLES = 7
"""Line styles of the style sheet: a colour and a dash pattern each."""
_WIDTH, _HEIGHT = 320, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 30
_BASE, _CEILING = 232, 12
"""Of bars and points: y of the lower and upper end of the scale."""
_ROOM = 1000
"""Pixels that bars and points fill where they can."""


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """An element; texts and values are escaped. A `_` in an attribute's name stands for a hyphen: `class_` is class."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    written = "".join(f' {key}="{escape(value)}"' for key, value in given.items())
    return Markup(f"<{name}{written}>{''.join(map(escape, children))}</{name}>")


def _canvas(key: str, width: float, height: float, title: str, description: str, *parts: str, **more: str) -> Markup:
    """An SVG with a title and a description, for those who do not see it."""
    words = [tag("title", title, id=f"{key}t"), tag("desc", description, id=f"{key}d")]
    return tag(
        "svg", *words, *parts, viewBox=f"0 0 {width} {height}", width=width, height=height, role="img",
        aria_labelledby=f"{key}t {key}d", **more,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- lines


@dataclass(frozen=True)
class Series:
    """One line; `style` is an index into the style sheet's, None for the bold line of a mean."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int | None


def line_chart(title: str, description: str, lines: Sequence[Series], x_label: str) -> Markup:
    """A chart with axes; its y axis is logarithmic where positive values span more than two decades."""
    points = [(x, y) for line in lines for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    if not points:
        return Markup("")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    log = min(ys) > 0 and math.log10(max(ys) / min(ys)) > 2
    low, high = (math.log10(min(ys)), math.log10(max(ys))) if log else (min(ys), max(ys))
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a constant, up to the last bits of its mean
        half = abs(high) / 10 or 0.5
        low, high = low - half, high + half
    left, right = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1

    def place(x: float, y: float) -> tuple[float, float]:
        value = math.log10(y) if log else y
        across = _LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)
        return round(across, 1), round(_HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    ticks = [10.0**power for power in range(math.ceil(low), math.floor(high) + 1)] if log else ticks_in(low, high)
    parts = []
    for tick in ticks:
        _, y = place(left, tick)
        parts.append(tag("line", class_="grid", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y))
        parts.append(tag("text", number(tick), x=_LEFT - 4, y=y + 3.5, class_="end"))
    for tick in ticks_in(left, right):
        x, _ = place(tick, 10.0**low if log else low)
        parts.append(tag("text", number(tick), x=x, y=_HEIGHT - _BOTTOM + 13, class_="mid"))
    parts.append(tag("text", x_label, x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 3, class_="mid"))
    for line in lines:
        kind = f"line {'mean' if line.style is None else f'c{line.style % STYLES}'}"
        where = [place(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        name = tag("title", line.name)
        if len(where) == 1:
            parts.append(tag("circle", name, class_=kind, cx=where[0][0], cy=where[0][1], r=2.5))
        else:
            parts.append(tag("polyline", name, class_=kind, points=" ".join(f"{x:g},{y:g}" for x, y in where)))
    last = "; ".join(f"{line.name} ends at {number(line.y[-1])}" for line in lines if line.y)
    words = f"{description}{', logarithmic scale' if log else ''}. {last}."
    key = hashlib.sha256(f"{title}|{description}".encode()).hexdigest()[:10]
    scale = Markup(' <span class="quiet">(log)</span>') if log else ""
    chart = _canvas(f"s{key}", _WIDTH, _HEIGHT, title, words, *parts, class_="chart")
    return tag("figure", tag("figcaption", title, scale), chart, class_="panel")


def ticks_in(low: float, high: float) -> list[float]:
    """About four round values in [low, high]."""
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(each) for each in found if low <= each <= high]


def number(value: float) -> str:
    """A tick's text, short."""
    plain = f"{value:.3g}"
    if len(plain) > 6:  # 0.000105 does not fit beside the axis
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        plain = f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"
    return plain.replace("e-0", "e-").replace("e+0", "e")


# --------------------------------------------------------------------------------------------------- bars and points


class _Scale:
    """Percent -> y, with grid lines and error bars."""

    def __init__(self, ticks: Sequence[float] = range(0, 101, 20)) -> None:
        self.ticks, self.low, self.high = ticks, ticks[0], ticks[-1]

    def __call__(self, value: float) -> float:
        return round(_BASE - (value - self.low) / (self.high - self.low) * (_BASE - _CEILING), 1)

    def grid(self, left: float, right: float) -> list[Markup]:
        lines = [tag("line", class_="grid", x1=left, x2=right, y1=self(each), y2=self(each)) for each in self.ticks]
        return [*lines, tag("line", class_="axis", x1=left, x2=right, y1=_BASE, y2=_BASE)]

    def texts(self, x: float) -> list[Markup]:
        return [tag("text", f"{each:g}", class_="end", x=x, y=self(each) + 4) for each in self.ticks]

    def error(self, x: float, found: Stat, half: int = 3) -> list[Markup]:
        if found.mean is None or found.std is None:
            return []
        up, down = self(min(self.high, found.mean + found.std)), self(max(self.low, found.mean - found.std))
        ends = f"M{x - half:g} {up}H{x + half:g}M{x:g} {up}V{down}M{x - half:g} {down}H{x + half:g}"
        return [tag("path", class_="error", d=ends)]


@dataclass(frozen=True)
class Bar:
    """Bars of one row: a letter, its label, the style, and its numbers by class, the average under an empty name."""

    key: str
    label: str
    style: int
    published: bool
    stats: Mapping[str, Stat]


def bars(key: str, rows: Sequence[Bar], columns: Sequence[str]) -> Markup:
    """Bars of all rows for each class and for the average, and a legend. A class is an SVG of its own, to be hidden."""
    scale, names, height = _Scale(), [*columns, ""], _BASE + 36
    width = max(11, min(40, (_ROOM / len(names) - 18) / max(len(rows), 1)))

    def look(row: Bar) -> dict[str, object]:
        if not row.published:
            return {"class_": f"bar b{row.style}"}
        return {"class_": "bar paper", "fill": f"url(#{key}-hatch{row.style})"}

    def group(name: str) -> Markup:
        label = name or "average"
        whole = math.ceil(max(width * len(rows) + 18, len(label) * 7 + 6))
        start = (whole - width * len(rows)) / 2
        parts = scale.grid(0, whole)
        if not name:
            parts.append(tag("line", class_="axis", x1=0, x2=0, y1=_CEILING, y2=_BASE + 30, stroke_dasharray="2 3"))
        for index, row in enumerate(rows):
            x, found = round(start + index * width, 1), row.stats.get(name, NOTHING)
            middle = round(x + width / 2, 1)
            parts.append(tag("text", row.key, class_="mid", x=middle, y=_BASE + 12, font_size=9))
            if found.mean is not None:
                title = tag("title", f"{row.label}, {label}: {stat_text(found)}")
                top = scale(found.mean)
                size = {"x": round(x + 1, 1), "y": top, "width": round(width - 2, 1)}
                size["height"] = round(max(0.5, _BASE - top), 1)
                parts += [tag("rect", title, **look(row), **size), *scale.error(middle, found)]
        parts.append(tag("text", label, class_="mid strong", x=whole / 2, y=_BASE + 28))
        own = {"viewBox": f"0 0 {whole} {height}", "width": whole, "height": height, "aria_hidden": "true"}
        return tag("svg", *parts, **own, data_column=name or None)

    hatches = [
        tag(
            "pattern", tag("path", d="M-1 1l2-2M0 6l6-6M5 7l2-2", class_=f"c{style}", stroke_width=1.6),
            id=f"{key}-hatch{style}", width=6, height=6, patternUnits="userSpaceOnUse",
        )
        for style in sorted({row.style for row in rows if row.published})
    ]  # fmt: skip
    words = "; ".join(f"{row.key} {row.label}: average {stat_text(row.stats.get('', NOTHING))}" for row in rows)
    title, words = "IoU in percent for each class", f"{words}. The table has every number."
    axis = _canvas(f"{key}-", 34, height, title, words, tag("defs", *hatches), *scale.texts(29))
    boxes = [tag("rect", x=1, y=1, width=12, height=12, **look(row)) for row in rows]
    legend = [_keyed(box, f"{row.key}  {row.label}") for box, row in zip(boxes, rows, strict=True)]
    legend.append(tag("span", "error bars: ± sample standard deviation over the seeds"))
    return tag("div", axis, *map(group, names), class_="bars") + tag("div", *legend, class_="legend")


@dataclass(frozen=True)
class Point:
    """One setting of an ablation: ours and the paper's."""

    label: str
    default: bool
    ours: Stat
    theirs: Stat


def points(key: str, settings: Sequence[Point], name: str, paper: str) -> Markup:
    """The settings in their order, and a legend. name: what is shown. paper: what the paper's points are called."""
    from matplotlib.ticker import MaxNLocator

    stats = [each for one in settings for each in (one.ours, one.theirs)]
    ends = [each.mean + sign * (each.std or 0) for each in stats if each.mean is not None for sign in (-1, 1)]
    low, high = min(ends, default=0.0) - 0.5, max(ends, default=100.0) + 0.5
    # Multiples of a step that divides 100, the outer ones around all points.
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10], integer=True).tick_values(max(0, low), min(100, high))
    scale = _Scale([float(each) for each in ticks])
    longest = max(len(one.label) for one in settings)
    tilted = longest * 6.4 > 120 or len(settings) > 8
    left, height = 40, _BASE + (min(30 + longest * 3.4, 130) if tilted else 26)
    each = max(62 if tilted else min(longest * 6.4 + 16, 140), min(130, (_ROOM - left - 24) / len(settings)))
    width = math.ceil(left + each * len(settings) + 24)
    parts = [*scale.grid(left, width), *scale.texts(left - 5)]
    for index, one in enumerate(settings):
        x = round(left + each * (index + 0.5), 1)
        for who, found, at in (("ours", one.ours, x - 7), ("paper", one.theirs, x + 7)):
            if found.mean is not None:
                title, y = tag("title", f"{who}, {one.label}: {stat_text(found)}"), scale(found.mean)
                parts += scale.error(at, found, 4)
                diamond = tag("path", title, class_="diamond", d=f"M{at:g} {y - 6:g}l6 6l-6 6l-6-6z")
                circle = tag("circle", title, class_="dot", cx=round(at, 1), cy=y, r=5)
                parts.append(circle if who == "ours" else diamond)
        kind = f"{'end' if tilted else 'mid'}{' strong' if one.default else ''}"
        turned = f"rotate(-30 {x} {_BASE + 14})" if tilted else None
        text = one.label + (" (default)" if one.default else "")
        parts.append(tag("text", text, class_=kind, x=x, y=_BASE + 16, transform=turned))
    words = "; ".join(f"{one.label}: ours {stat_text(one.ours)}, paper {stat_text(one.theirs)}" for one in settings)
    chart = _canvas(f"{key}-", width, round(height), f"IoU in percent by setting: {name}", f"{words}.", *parts)
    legend = [_keyed(tag("circle", class_="dot", cx=7, cy=7, r=5), "ours, ± sample standard deviation over the seeds")]
    if paper:
        legend.append(_keyed(tag("path", class_="diamond", d="M7 1l6 6l-6 6l-6-6z"), paper))
    return chart + tag("div", *legend, class_="legend")


def _keyed(mark: Markup, text: str) -> Markup:
    return tag("span", tag("svg", mark, width=14, height=14, class_="key", aria_hidden="true"), text)


# ----------------------------------------------------------------------------------------------------- learning curves

Curve = tuple[list[int], list[float]]


def thinned(curve: Curve, most: int) -> Curve:
    """The curve as means of blocks of equal length, where it has more than `most` points."""
    steps, values = curve
    block = -(-len(steps) // most)
    if block <= 1:
        return curve
    places = range(0, len(steps), block)
    means = [sum(values[place : place + block]) / len(values[place : place + block]) for place in places]
    return [steps[min(place + block // 2, len(steps) - 1)] for place in places], means


def mean_curve(curves: Iterable[Curve]) -> Curve:
    """The mean over curves at the steps that all of them have."""
    tables = [dict(zip(*curve, strict=True)) for curve in curves]
    steps = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    return steps, [sum(table[step] for table in tables) / len(tables) for step in steps]
