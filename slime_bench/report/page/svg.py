"""Small charts as inline SVG. Colours, dashes and fonts are classes of the page's style sheet, for both themes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 320, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 30
STYLES = 7
"""Line styles of the style sheet: a colour and a dash pattern each."""
_DECADES = 2.0


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
    log = min(ys) > 0 and math.log10(max(ys) / min(ys)) > _DECADES
    low, high = (math.log10(min(ys)), math.log10(max(ys))) if log else (min(ys), max(ys))
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a constant, up to the last bits of its mean
        half = abs(high) / 10 or 0.5
        low, high = low - half, high + half
    left, right = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1

    def place(x: float, y: float) -> tuple[float, float]:
        value = math.log10(y) if log else y
        across = _LEFT + (x - left) / (right - left) * (WIDTH - _LEFT - _RIGHT)
        return round(across, 1), round(HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM), 1)

    ticks = [10.0**power for power in range(math.ceil(low), math.floor(high) + 1)] if log else nice_ticks(low, high)
    parts = []
    for tick in ticks:
        _, y = place(left, tick)
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_LEFT, WIDTH - _RIGHT, y, y))
        parts.append(Markup('<text x="{}" y="{}" class="end">{}</text>').format(_LEFT - 4, y + 3.5, number(tick)))
    for tick in nice_ticks(left, right, 4):
        x, _ = place(tick, 10.0**low if log else low)
        parts.append(Markup('<text x="{}" y="{}" class="mid">{}</text>').format(x, HEIGHT - _BOTTOM + 13, number(tick)))
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(Markup('<text x="{}" y="{}" class="mid">{}</text>').format(middle, HEIGHT - 3, x_label))
    for line in lines:
        kind = "mean" if line.style is None else f"c{line.style % STYLES}"
        where = [place(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        if len(where) == 1:
            dot = Markup('<circle class="line {}" cx="{}" cy="{}" r="2.5"><title>{}</title></circle>')
            parts.append(dot.format(kind, *where[0], line.name))
        else:
            path = " ".join(f"{x:g},{y:g}" for x, y in where)
            text = Markup('<polyline class="line {}" points="{}"><title>{}</title></polyline>')
            parts.append(text.format(kind, path, line.name))
    last = "; ".join(f"{line.name} ends at {number(line.y[-1])}" for line in lines if line.y)
    words = f"{description}{', logarithmic scale' if log else ''}. {last}."
    key = hashlib.sha256(f"{title}|{description}".encode()).hexdigest()[:10]
    head = Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-labelledby="{k}t {k}d">'
        '<title id="{k}t">{t}</title><desc id="{k}d">{d}</desc>'
    ).format(w=WIDTH, h=HEIGHT, k=f"s{key}", t=title, d=words)
    scale = Markup(' <span class="quiet">(log)</span>') if log else Markup("")
    return Markup('<figure class="panel"><figcaption>{}{}</figcaption>{}{}</svg></figure>').format(
        title, scale, head, Markup("").join(parts)
    )


def nice_ticks(low: float, high: float, number: int = 4) -> list[float]:
    """About `number` round values in [low, high]."""
    raw = (high - low) / max(number, 1)
    if not raw > 0 or not math.isfinite(raw):
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's text, short."""
    plain = f"{value:.3g}"
    if len(plain) > 6:  # 0.000105 does not fit beside the axis
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        plain = f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"
    return plain.replace("e-0", "e-").replace("e+0", "e")
