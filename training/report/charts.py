"""Charts as SVG text: lines, histograms, points, intervals. On a page they inherit the text colour."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 560, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 20, 12, 40
_TITLE = 24  # pixels, in a file
# Safe for colour-blind readers (Okabe and Ito), in this order; then they repeat.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#a6761d", "#7570b3", "#66a61e", "#e7298a")


@dataclass(frozen=True)
class Series:
    """`low` and `high`, if given, are the ends of each point's interval."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


@dataclass(frozen=True)
class _Chart:
    """A chart, for a page or for a file."""

    title: str
    height: int
    parts: str
    names: Sequence[str]

    def figure(self) -> str:
        keys = "".join(
            f'<span><i style="background:{colour(index)}"></i>{escape(name)}</span>'
            for index, name in enumerate(self.names)
        )
        return (
            f'<figure><figcaption>{escape(self.title)}</figcaption><svg viewBox="0 0 {WIDTH} {self.height}" role="img" '
            f'aria-label="{escape(self.title)}">{self.parts}</svg><div class="keys">{keys}</div></figure>'
        )

    def file(self) -> str:
        """Title on top, legend at the bottom, black on white."""
        keys = "".join(
            f'<circle cx="{x}" cy="{self.height + _TITLE + 10}" r="4" fill="{colour(index)}"/>'
            f'<text x="{x + 8}" y="{self.height + _TITLE + 14}">{escape(name)}</text>'
            for index, name in enumerate(self.names)
            for x in [_LEFT + index * (WIDTH - _LEFT) // len(self.names)]
        )
        high = self.height + _TITLE + 24
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {high}" role="img" '
            f'aria-label="{escape(self.title)}" font-family="system-ui,sans-serif" font-size="11" color="black">'
            f'<rect width="{WIDTH}" height="{high}" fill="white"/><text x="{_LEFT}" y="18" font-size="13" '
            f'font-weight="600">{escape(self.title)}</text><g transform="translate(0 {_TITLE})">{self.parts}</g>'
            f"{keys}</svg>\n"
        )


def lines(title: str, series: Sequence[Series], across: str, up: str, log_x: bool = False) -> str:
    """A line through the points of each series, as HTML."""
    return _lines(title, series, across, up=up, log_x=log_x).figure()


def lines_file(title: str, series: Sequence[Series], across: str, up: str, log_x: bool = False) -> str:
    """The same as a file of its own."""
    return _lines(title, series, across, up=up, log_x=log_x).file()


def _lines(title: str, series: Sequence[Series], across: str, up: str, log_x: bool) -> _Chart:
    shown = [(np.log10(s.x) if log_x else np.asarray(s.x, float), s) for s in series]
    values = [v for s in series for v in (*s.y, *s.low, *s.high)]
    frame = _Frame((_least(x for xs, _ in shown for x in xs), _most(x for xs, _ in shown for x in xs)), _padded(values))
    parts = []
    for index, (xs, s) in enumerate(shown):
        at = [frame.at(x, y) for x, y in zip(xs, s.y, strict=True)]
        stroke = colour(index)
        parts += [
            f'<path d="M{x:.1f} {frame.at(0, low)[1]:.1f}V{frame.at(0, high)[1]:.1f}" stroke="{stroke}"/>'
            for (x, _), low, high in zip(at, s.low, s.high, strict=False)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{stroke}"/>' for x, y in at]
    marks = sorted({x for s in series for x in s.x})
    ticks = [(float(np.log10(m)) if log_x else m, f"{m:g}") for m in (marks if log_x else _ticks(*frame.x))]
    return _chart(title, frame, parts, ticks=ticks, across=across, up=up, names=[s.name for s in series])


def histogram(title: str, groups: dict[str, np.ndarray], across: str, threshold: float | None = None) -> str:
    """The share of each group in the same bins, overlaid; a dashed line marks the threshold."""
    return _histogram(title, groups, across, threshold).figure()


def histogram_file(title: str, groups: dict[str, np.ndarray], across: str, threshold: float | None = None) -> str:
    """The same as a file of its own."""
    return _histogram(title, groups, across, threshold).file()


def _histogram(title: str, groups: dict[str, np.ndarray], across: str, threshold: float | None) -> _Chart:
    everything = np.concatenate(list(groups.values()))
    low, high = np.quantile(everything, [0.0, 0.995])
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    edges = np.linspace(low, high if high > low else low + 1, 61)
    shares = {
        name: np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / max(1, len(values))
        for name, values in groups.items()
    }
    frame = _Frame(
        (float(edges[0]), float(edges[-1])), (0.0, float(max(s.max() for s in shares.values())) * 1.05 or 1.0)
    )
    parts = []
    for index, share in enumerate(shares.values()):
        steps = [frame.at(edges[0], 0)]
        for left, right, value in zip(edges, edges[1:], share, strict=False):
            steps += [frame.at(left, value), frame.at(right, value)]
        steps.append(frame.at(edges[-1], 0))
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in steps)
        parts.append(f'<polygon points="{path}" fill="{colour(index)}" fill-opacity=".35" stroke="{colour(index)}"/>')
    if threshold is not None:
        x = frame.at(threshold, 0)[0]
        side, anchor = (4, "start") if x < WIDTH / 2 else (-4, "end")
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}" stroke="currentColor" '
            f'stroke-dasharray="5 4"/><text x="{x + side:.1f}" y="{_TOP + 10}" text-anchor="{anchor}">'
            f"threshold {threshold:.2f}</text>"
        )
    ticks = [(tick, f"{tick:g}") for tick in _ticks(*frame.x)]
    return _chart(title, frame, parts, ticks=ticks, across=across, up="share", names=list(groups))


def points(title: str, at: np.ndarray, group: np.ndarray, names: Sequence[str]) -> str:
    """(N, 2) points, coloured by group."""
    frame = _Frame(_padded(at[:, 0]), _padded(at[:, 1]), height=380)
    placed = [(*frame.at(x, y), colour(int(g))) for (x, y), g in zip(at, group, strict=True)]
    parts = [f'<circle cx="{x:.0f}" cy="{y:.0f}" r="2.5" fill="{c}" fill-opacity=".6"/>' for x, y, c in placed]
    return _chart(title, frame, parts, ticks=[], across="first direction", up="second", names=list(names)).figure()


class _Frame:
    """Values → pixels."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], height: int = HEIGHT) -> None:
        self.x = x if x[1] > x[0] else (x[0] - 0.5, x[0] + 0.5)
        self.y, self.height = y, height

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), self.height - _BOTTOM - up * (self.height - _TOP - _BOTTOM)


def _chart(
    title: str,
    frame: _Frame,
    parts: list[str],
    ticks: Sequence[tuple[float, str]],
    across: str,
    up: str,
    names: Sequence[str],
) -> _Chart:
    bottom = frame.height - _BOTTOM
    axes = [
        f'<path d="M{_LEFT} {_TOP}V{bottom}H{WIDTH - _RIGHT}" fill="none" stroke="currentColor" stroke-opacity=".4"/>',
        f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2:.0f}" y="{frame.height - 6}" text-anchor="middle">'
        f"{escape(across)}</text>",
        f'<text x="12" y="{(_TOP + bottom) / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 12 {(_TOP + bottom) / 2:.0f})">{escape(up)}</text>',
    ]
    axes += [
        f'<text x="{frame.at(tick, 0)[0]:.1f}" y="{bottom + 15}" text-anchor="middle">{label}</text>'
        for tick, label in ticks
    ]
    if ticks:  # without ticks across, neither axis has numbers
        axes += [
            f'<text x="{_LEFT - 6}" y="{frame.at(0, tick)[1] + 4:.1f}" text-anchor="end">{tick:g}</text>'
            f'<path d="M{_LEFT} {frame.at(0, tick)[1]:.1f}H{WIDTH - _RIGHT}" stroke="currentColor" '
            'stroke-opacity=".1"/>'
            for tick in _ticks(*frame.y)
        ]
    return _Chart(title, frame.height, "".join([*axes, *parts]), names)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between the two."""
    step = 10.0 ** np.floor(np.log10((high - low) / 4))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    first = np.ceil(low / step) * step
    return [float(f"{tick:.6g}") + 0.0 for tick in np.arange(first, high + step * 1e-6, step)]


def _padded(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    margin = 0.05 * (high - low) or max(0.5, abs(high) * 0.05)
    return low - margin, high + margin


def _least(values: object) -> float:
    return float(min(values))  # type: ignore[call-overload]


def _most(values: object) -> float:
    return float(max(values))  # type: ignore[call-overload]
