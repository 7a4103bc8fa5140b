"""Charts as SVG text. Colours are classes of the stylesheet, so that they follow the reader's light or dark theme; no style is inline.

Every chart is an image with a sentence that says what it shows, and its bars and lines carry titles: nothing is told by colour alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT = 560, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 26  # room for axis labels


class Line(NamedTuple):
    """points: one value for each place, NaN where there is none. kind: class of the stylesheet."""

    label: str
    kind: str
    values: np.ndarray


class Level(NamedTuple):
    """A horizontal (or, in a histogram, vertical) line to compare with."""

    label: str
    kind: str
    value: float


@dataclass(frozen=True)
class Frame:
    """Maps values to the drawing. x: 0 to `places`. y: lowest to highest."""

    places: int
    lowest: float
    highest: float

    def x(self, place: float | int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * place / max(self.places, 1e-12)

    def y(self, value: float | int) -> float:
        share = (value - self.lowest) / max(self.highest - self.lowest, 1e-12)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max(share, 0.0), 1.0)


def stacked_bars(series: Mapping[str, Sequence[int]], labels: Sequence[str], *, description: str) -> Markup:
    """A bar for each label, made of the series in their order from below. A series' name is its class too."""
    totals = [sum(column) for column in zip(*series.values(), strict=True)]
    frame = Frame(len(labels), 0.0, _round_up(float(max([*totals, 1]))))
    width = frame.x(1) - frame.x(0)
    parts = [*_horizontal_axis(frame, whole=True), *_labels_below(frame, labels)]
    for place, label in enumerate(labels):
        below, title = (
            0,
            f"{label}: " + (", ".join(f"{values[place]} {name}" for name, values in series.items() if values[place]) or "none"),
        )
        bars = []
        for name, values in series.items():
            if values[place]:
                top, bottom = frame.y(below + values[place]), frame.y(below)
                bars.append(
                    Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>').format(
                        f"fill-{name}", _number(frame.x(place) + 0.1 * width), _number(top),
                        _number(0.8 * width), _number(bottom - top),
                    )
                )  # fmt: skip
                below += values[place]
        if bars:
            parts.append(Markup("<g><title>{}</title>{}</g>").format(title, Markup("").join(bars)))
    return _svg(parts, description)


def lines(series: Sequence[Line], levels: Sequence[Level], labels: Sequence[str], *, description: str, counts: bool = False) -> Markup:
    """Lines over places, with gaps where a value is missing, and horizontal lines to compare them with. counts: whole numbers from 0."""
    values = np.concatenate([*[line.values for line in series], [level.value for level in levels]])
    frame = Frame(len(labels), 0.0, _round_up(max(float(values.max()), 1.0))) if counts else Frame(len(labels), *_bounds(values))
    parts = [*_horizontal_axis(frame, whole=counts), *_labels_below(frame, labels)]
    for level in levels:
        y = _number(frame.y(level.value))
        parts.append(
            Markup('<g><title>{}: {}</title><line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/></g>').format(
                level.label, short(level.value), f"line-{level.kind}", LEFT, WIDTH - RIGHT, y, y
            )
        )
    for line in series:
        for run in _runs(line.values):
            points = " ".join(f"{_number(frame.x(place + 0.5))},{_number(frame.y(line.values[place]))}" for place in run)
            parts.append(Markup('<polyline class="{}" points="{}"/>').format(f"line-{line.kind}", points))
        for place in np.flatnonzero(np.isfinite(line.values)):
            parts.append(
                Markup('<circle class="{}" cx="{}" cy="{}" r="2.5"><title>{}, {}: {}</title></circle>').format(
                    f"fill-{line.kind}", _number(frame.x(place + 0.5)), _number(frame.y(line.values[place])), labels[place], line.label,
                    short(float(line.values[place])),
                )
            )  # fmt: skip
    return _svg(parts, description)


def histogram(recent: np.ndarray, benign: np.ndarray, threshold: Level | None, *, description: str, bins: int = 32) -> Markup:
    """Shares of recent scores as bars and of benign ones as an outline, over the same bins; what lies outside stands in the outer bins."""
    edges = np.linspace(*_histogram_range(recent, benign, threshold), bins + 1)
    shares = [_shares(np.clip(scores, edges[0], edges[-1]), edges) for scores in (recent, benign)]
    frame = Frame(bins, 0.0, _round_up(float(max(shares[0].max(), shares[1].max(), 0.01)) * 100) / 100)
    parts = [*_horizontal_axis(frame, percent=True)]
    for place, share in enumerate(shares[0]):
        if share:
            parts.append(
                Markup('<rect class="fill-recent" x="{}" y="{}" width="{}" height="{}"><title>{} to {}: {} of recent queries</title></rect>').format(
                    _number(frame.x(place) + 0.5), _number(frame.y(share)), _number(frame.x(1) - frame.x(0) - 1.0),
                    _number(frame.y(0.0) - frame.y(share)), short(edges[place]), short(edges[place + 1]), f"{share:.1%}",
                )
            )  # fmt: skip
    corners = [(place + side, share) for place, share in enumerate(shares[1]) for side in (0, 1)]
    points = " ".join(f"{_number(frame.x(x))},{_number(frame.y(share))}" for x, share in corners)
    parts.append(Markup('<polyline class="line-benign" points="{}"/>').format(points))
    scale = bins / (edges[-1] - edges[0])
    for tick in _ticks(edges[0], edges[-1], 6):
        parts.append(_text_at(frame.x((tick - edges[0]) * scale), HEIGHT - 8, short(tick), "middle"))
    if threshold is not None:
        x = _number(frame.x((threshold.value - edges[0]) * scale))
        parts.append(
            Markup('<g><title>{}: {}</title><line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/></g>').format(
                threshold.label, short(threshold.value), f"line-{threshold.kind}", x, x, TOP, HEIGHT - BOTTOM
            )
        )
    return _svg(parts, description)


def ranges(rows: Mapping[str, tuple[float, float, float]], *, description: str) -> Markup:
    """One horizontal bar a row: up to the first value in full colour, to the second in half, to the third faint. All in seconds."""
    longest = max([values[-1] for values in rows.values()] or [1.0])
    height = 26 * len(rows) + 6
    parts = []
    for place, (name, values) in enumerate(rows.items()):
        y = 6 + 26 * place
        bars = [
            Markup('<rect class="fill-latency level-{}" x="96" y="{}" width="{}" height="14"/>').format(
                level, y, _number(max(1.0, (WIDTH - 96 - 200) * value / max(longest, 1e-12)))
            )
            for level, value in reversed(list(enumerate(values)))
        ]
        title = f"{name}: median {seconds(values[0])}, 95 % {seconds(values[1])}, 99 % {seconds(values[2])}"
        parts.append(Markup("<g><title>{}</title>{}</g>").format(title, Markup("").join(bars)))
        parts.append(_text_at(88, y + 11, name, "end"))
        parts.append(_text_at(WIDTH - 4, y + 11, " / ".join(seconds(value) for value in values), "end"))
    return _svg(parts, description, height=height)


def seconds(value: float) -> str:
    """A time for people: 0.21 ms, 35 ms, 1.2 s."""
    if value >= 1.0:
        return f"{value:.3g} s"
    return f"{1000 * value:.0f} ms" if value >= 0.01 else f"{1000 * value:.2g} ms"


def short(value: float) -> str:
    """A number in as few characters as it can be told by."""
    return f"{value:.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


# ---------------------------------------------------------------------- parts


def _svg(parts: Sequence[Markup], description: str, *, height: int = HEIGHT) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, description, Markup("").join(parts)
    )


def _horizontal_axis(frame: Frame, *, whole: bool = False, percent: bool = False) -> Iterator[Markup]:
    """Grid lines with their values."""
    for tick in _ticks(frame.lowest, frame.highest, 4):
        if whole and tick != int(tick):
            continue
        y = _number(frame.y(tick))
        yield Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, y, y)
        text = f"{tick:.0%}" if percent else f"{int(tick):,}" if whole else short(tick)
        yield _text_at(LEFT - 6, frame.y(tick) + 4, text, "end")


def _labels_below(frame: Frame, labels: Sequence[str]) -> Iterator[Markup]:
    step = max(1, math.ceil(len(labels) / 6))
    for place in range(0, len(labels), step):
        if frame.x(place + 0.5) < WIDTH - RIGHT - 14:
            yield _text_at(frame.x(place + 0.5), HEIGHT - 8, labels[place], "middle")


def _text_at(x: float | int, y: float | int, text: str, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(_number(x), _number(y), anchor, text)


def _runs(values: np.ndarray) -> list[np.ndarray]:
    """Places of neighbouring finite values."""
    places = np.flatnonzero(np.isfinite(values))
    return [run for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(run) > 1]


def _bounds(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    lowest, highest = float(finite.min()), float(finite.max())
    margin = 0.08 * (highest - lowest) or max(abs(highest), 1.0) * 0.1
    return lowest - margin, highest + margin


def _histogram_range(recent: np.ndarray, benign: np.ndarray, threshold: Level | None) -> tuple[float, float]:
    """Around the benign scores and twice as far beyond the threshold: suspicious scores have no end."""
    known = benign if len(benign) else recent
    lowest, middle, highest = (float(value) for value in np.quantile(known, (0.001, 0.5, 0.999))) if len(known) else (0.0, 0.5, 1.0)
    reach = max(highest, middle if threshold is None else threshold.value) - middle
    return lowest, middle + 2.0 * (reach if reach > 0 else max(abs(middle), 1.0))


def _shares(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.histogram(scores, edges)[0] / max(len(scores), 1)


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20 ... at or above."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if value <= factor * power * (1.0 + 1e-9))


def _ticks(lowest: float, highest: float, most: int) -> list[float]:
    """Round numbers between the ends, at most `most` and one."""
    step = _round_up(max(highest - lowest, 1e-12) / most)
    first = math.ceil(lowest / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, math.floor(highest / step + 1e-9) + 1)]


def _number(value: float | int) -> str:
    return f"{value:.1f}"
