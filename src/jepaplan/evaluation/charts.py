"""Charts as SVG strings in the page's colours: rates with intervals, learning curves, shares of a whole."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from jepaplan.types import InputError

WIDTH, HEIGHT = 360.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 8.0, 10.0, 26.0
MOST_POINTS = 240  # per curve: more would not be seen


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One quantity over training."""

    name: str
    x: tuple[float, ...]  # updates
    y: tuple[float, ...]


def read_curves(metrics: Path, stage: str | None = None) -> tuple[Curve, ...]:
    """All numbers of a `metrics.jsonl` as curves over `update`, of one training stage if it is named."""
    if not metrics.is_file():
        raise InputError(f"there are no metrics at {metrics}; `jepaplan train` writes them into a run folder")
    found: dict[str, list[tuple[float, float]]] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        row = _row(line)
        if "update" not in row or (stage is not None and row.get("stage") != stage):
            continue
        for name, value in row.items():
            if name != "update" and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append((float(row["update"]), float(value)))
    return tuple(
        Curve(name=name, x=tuple(x for x, _ in points), y=tuple(y for _, y in points))
        for name, points in found.items()
        if len(points) > 1
    )


def curve_chart(curves: Sequence[Curve], title: str) -> str:
    """Curves over one pair of axes, logarithmic if the values are positive and span a factor of thirty."""
    shown = [_thinned(curve) for curve in curves if len(curve.x) > 1]
    if not shown:
        raise InputError(f"the chart {title!r} needs a curve of at least two points")
    values = [y for curve in shown for y in curve.y]
    logarithmic = min(values) > 0 and max(values) / min(values) > 30
    vertical = _Axis.fit(values, logarithmic, HEIGHT - BOTTOM, TOP)
    horizontal = _Axis.fit([x for curve in shown for x in curve.x], False, LEFT, WIDTH - RIGHT, exact=True)
    parts = [_grid(vertical, horizontal)]
    for number, curve in enumerate(shown):
        points = " ".join(
            f"{horizontal.at(x):.1f},{vertical.at(y):.1f}" for x, y in zip(curve.x, curve.y, strict=True)
        )
        parts.append(f'<polyline class="curve c{number % 6}" points="{points}"/>')
    return _svg("".join(parts), f"{title}: " + "; ".join(_in_words(curve) for curve in curves if curve.x))


def interval_bar(rate: float, low: float, high: float, kind: str) -> str:
    """A rate between 0 and 1 with its interval, as a thin bar for a table cell."""
    return (
        '<svg class="interval" viewBox="-2 0 104 12" preserveAspectRatio="none" aria-hidden="true">'
        '<line class="track" x1="0" x2="100" y1="6" y2="6"/>'
        f'<line class="range {escape(kind)}" x1="{100 * low:.1f}" x2="{100 * high:.1f}" y1="6" y2="6"/>'
        f'<line class="rate {escape(kind)}" x1="{100 * rate:.1f}" x2="{100 * rate:.1f}" y1="0.5" y2="11.5"/>'
        "</svg>"
    )


def share_bar(shares: Mapping[str, float]) -> str:
    """Positive parts of a whole as one stacked bar, with its words."""
    total = sum(max(share, 0.0) for share in shares.values())
    if total <= 0:
        return ""
    pieces, at = [], 0.0
    for number, (name, share) in enumerate(shares.items()):
        width = 100 * max(share, 0.0) / total
        label = f"{name}: {width:.0f}%"
        pieces.append(
            f'<rect class="share f{number % 6}" x="{at:.2f}" width="{width:.2f}" y="0" height="10">'
            f"<title>{escape(label)}</title></rect>"
        )
        at += width
    words = ", ".join(f"{name} {100 * max(share, 0.0) / total:.0f}%" for name, share in shares.items())
    return (
        f'<svg class="shares" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(words)}">{"".join(pieces)}</svg>'
    )


def number(value: float | int) -> str:
    """A number as a person would write it: three digits that matter."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.3g}"


@dataclass(frozen=True)
class _Axis:
    """A scale from values to the coordinates between `begin` and `end`."""

    low: float
    high: float
    logarithmic: bool
    begin: float
    end: float
    ticks: tuple[float, ...]

    @classmethod
    def fit(
        cls, values: Sequence[float], logarithmic: bool, begin: float, end: float, exact: bool = False
    ) -> "_Axis":
        low, high = min(values), max(values)
        if logarithmic:
            first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
            every = max(1, round((last - first) / 4))
            return cls(low, high, True, begin, end, tuple(10.0**k for k in range(first, last + 1, every)))
        high = high if high > low else low + (abs(low) or 1.0)
        step = _round_step((high - low) / 4)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if not exact:
            first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
            low, high = first * step, last * step
        return cls(low, high, False, begin, end, tuple(k * step for k in range(first, last + 1)))

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)

    def seen(self) -> list[float]:
        return [
            tick for tick in self.ticks if self.low <= tick * (1 + 1e-9) and tick <= self.high * (1 + 1e-9)
        ]


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)


def _grid(vertical: _Axis, horizontal: _Axis) -> str:
    parts = []
    for tick in vertical.seen():
        y = vertical.at(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in horizontal.seen():
        x = horizontal.at(tick)
        anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{number(tick)}</text>')
    return "".join(parts)


def _svg(shapes: str, description: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" '
        f'aria-label="{escape(description)}">'
        f"{shapes}</svg>"
    )


def _in_words(curve: Curve) -> str:
    return f"{curve.name} from {number(curve.y[0])} to {number(curve.y[-1])}"


def _thinned(curve: Curve) -> Curve:
    """At most MOST_POINTS points, each the mean of its neighbours, so that noise does not hide the course."""
    size = math.ceil(len(curve.x) / MOST_POINTS)
    starts = range(0, len(curve.x), size)
    return Curve(
        name=curve.name,
        x=tuple(sum(part) / len(part) for part in (curve.x[i : i + size] for i in starts)),
        y=tuple(sum(part) / len(part) for part in (curve.y[i : i + size] for i in starts)),
    )


def _row(line: str) -> dict[str, float | str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return {}  # the last line of a run that was interrupted
    return row if isinstance(row, dict) else {}
