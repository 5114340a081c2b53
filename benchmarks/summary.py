"""What was saved of each workload → medians, ratios, tables, bars and a plot."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.bars import Bar
from benchmarks.peers import SERVERS
from benchmarks.serving import DISTURBED
from benchmarks.workloads import WORKLOADS
from training.report.charts import colour

TITLES = {server.name: server.title for server in SERVERS}
ORDER = [server.name for server in SERVERS]
OWN = ("floor", "graft", "graft-int8")  # who are nobody's peer
BEHIND_BARS = (
    "png", "params", "png-raw", "params-raw", "jpeg-small", "many", "jpeg-12mp", "resnet", "lite0", "photo", "default",
    "memory",
)  # fmt: skip
REFERENCE = {"resnet": "c=8", "lite0": "c=8"}  # the load that ratios are told of; elsewhere the highest up to 32


class Middle(NamedTuple):
    """Medians over the repetitions; errors are added up."""

    per_second: float
    p50_ms: float
    p99_ms: float
    health_p99_ms: float
    cpu_us: float  # of all its processes, for one request
    others: float  # the most of its core that went to others
    errors: int


class Results:
    """Of one workload, by server and load."""

    def __init__(self, saved: Mapping[str, Any]) -> None:
        self.name, self.title, self.images = saved["workload"], saved["title"], saved["images"]
        self.skipped: dict[str, str] = saved["skipped"]
        cells: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for each in saved["rounds"]:
            cells.setdefault((each["server"], each["load"]), []).append(each)
        self.cells = {key: _middle(rounds) for key, rounds in cells.items()}
        self._rates = {
            key: {each["repetition"]: each["per_second"] for each in rounds} for key, rounds in cells.items()
        }
        self.servers = sorted({server for server, _ in cells}, key=ORDER.index)
        self.loads = list(dict.fromkeys(load for _, load in cells if load != "burst"))
        self._starts = saved["starts"]
        self._raw = saved["raw"]

    @property
    def reference(self) -> str:
        wanted = REFERENCE.get(self.name)
        usual = [load for load in self.loads if int(load[2:]) <= 32] or self.loads
        return wanted if wanted in self.loads else usual[-1]

    def ratio(self, server: str, other: str, load: str) -> float | None:
        """Of rates: the median of each repetition's own, as a machine may be slower in one than in the next."""
        return _ratio(self._rates.get((server, load), {}), self._rates.get((other, load), {}))

    def ratio_to_raw(self, server: str, load: str) -> float | None:
        """Of images per second, to those of onnxruntime alone at its best batch."""
        if not self.raw:
            return None
        alone = {index: each[str(self.raw[0])] / self.images for index, each in enumerate(self._raw)}
        return _ratio(self._rates.get((server, load), {}), alone)

    def of(self, server: str, what: str) -> float | None:
        """`startup_s` or `memory_mb`"""
        found = [each[what] for each in self._starts if each["server"] == server]
        return statistics.median(found) if found else None

    @property
    def raw(self) -> tuple[int, float] | None:
        """(batch, images per second) where onnxruntime alone is fastest."""
        if not self._raw:
            return None
        rates = {int(batch): statistics.median(each[batch] for each in self._raw) for batch in self._raw[0]}
        return max(rates.items(), key=lambda item: item[1])


def _middle(rounds: Sequence[Mapping[str, Any]]) -> Middle:
    def median(name: str) -> float:
        return statistics.median(each.get(name, 0.0) for each in rounds)

    errors = sum(each["errors"] for each in rounds)
    others = max(each.get("others", 0.0) for each in rounds)
    middles = (median(name) for name in ("per_second", "p50_ms", "p99_ms", "health_p99_ms", "cpu_us"))
    return Middle(*middles, others, errors)


def _ratio(rates: Mapping[int, float], others: Mapping[int, float]) -> float | None:
    both = [rate / others[repetition] for repetition, rate in rates.items() if others.get(repetition)]
    return statistics.median(both) if both else None


def read(folder: Path) -> tuple[list[Results], dict[str, Any] | None]:
    """(workloads, memory) that were saved there."""
    found = [Results(json.loads(path.read_text())["outcome"]) for path in _saved(folder)]
    memory = folder / "memory.json"
    return found, json.loads(memory.read_text())["outcome"] if memory.exists() else None


def _saved(folder: Path) -> list[Path]:
    paths = [folder / f"{workload.name}.json" for workload in WORKLOADS]
    return [path for path in paths if path.exists()]


def table(results: Results) -> str:
    """Requests per second, × naive in brackets; the rest at the reference load."""
    at, burst = results.reference, any(load == "burst" for _, load in results.cells)
    head = ["server", *results.loads, "of the floor", f"p50 / p99 ms, {at}", "/healthz p99 ms", "CPU µs"]
    head += ["burst p50 / p99 ms"] if burst else []
    head += ["errors", "RSS MB", "first answer s"]
    lines = [f"### {results.title} (`{results.name}`)", "", _row(head), _row(["---"] * len(head))]
    lines += [_row(_server(results, server, burst)) for server in results.servers]
    if results.images > 1:
        lines += ["", f"{results.images} images in each request."]
    if results.raw:
        batch, rate = results.raw
        lines += ["", f"onnxruntime alone, one core, its best batch ({batch}): {_rate(rate)} images/s."]
    others = max((middle.others for middle in results.cells.values()), default=0.0)
    if others > DISTURBED:
        lines += ["", f"Disturbed: other processes took up to {others:.0%} of the server's core."]
    left = [f"{TITLES[name]}: {why}" for name, why in results.skipped.items() if why != "does not do this"]
    return "\n".join([*lines, *(f"\nSkipped: {each}" for each in left)]) + "\n"


def overview(found: Sequence[Results]) -> str:
    """A row for each workload, at its reference load."""
    head = ["request", "at", "naive, requests/s", "Graft", "best peer", "Graft, p50 / p99 ms", "naive, CPU µs", "Graft"]
    lines = [_row(head), _row(["---"] * len(head))]
    for results in found:
        at = results.reference
        naive, graft = (results.cells.get((name, at)) for name in ("naive", "graft"))
        peers = {
            name: cell for (name, load), cell in results.cells.items() if load == at and name not in (*OWN, "naive")
        }
        best = max(peers, key=lambda name: peers[name].per_second, default=None)
        lines.append(
            _row(
                [
                    f"{results.title} (`{results.name}`)",
                    at,
                    _rate(naive.per_second) if naive else "",
                    _rate_and_ratio(results, "graft", at),
                    f"{TITLES[best]} {_rate_and_ratio(results, best, at)}" if best else "",
                    f"{graft.p50_ms:.2f} / {graft.p99_ms:.2f}" if graft else "",
                    f"{naive.cpu_us:,.0f}" if naive else "",
                    f"{graft.cpu_us:,.0f}" if graft else "",
                ]
            )
        )
    return "\n".join(lines) + "\n"


def _rate_and_ratio(results: Results, server: str, load: str) -> str:
    """Requests per second, × naive in brackets."""
    cell, ratio = results.cells.get((server, load)), results.ratio(server, "naive", load)
    return (_rate(cell.per_second) if cell else "") + (f" ({ratio:.2f}×)" if ratio else "")


def _server(results: Results, server: str, burst: bool) -> list[str]:
    """Its row; what was not measured is left empty."""
    at, row = results.cells.get((server, results.reference)), [TITLES[server]]
    row += [_rate_and_ratio(results, server, load) for load in results.loads]
    floor = results.ratio(server, "floor", results.reference)
    row.append(f"{floor:.1%}" if floor else "")
    row += [f"{at.p50_ms:.2f} / {at.p99_ms:.2f}", f"{at.health_p99_ms:.1f}", f"{at.cpu_us:,.0f}"] if at else [""] * 3
    if burst:
        middle = results.cells.get((server, "burst"))
        row.append(f"{middle.p50_ms:.1f} / {middle.p99_ms:.1f}" if middle else "")
    errors = sum(middle.errors for (name, _), middle in results.cells.items() if name == server)
    memory, startup = results.of(server, "memory_mb"), results.of(server, "startup_s")
    return [*row, str(errors), f"{memory:.0f}" if memory else "", f"{startup:.2f}" if startup else ""]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def bars(found: Sequence[Results], memory: Mapping[str, Any] | None) -> list[Bar]:
    """Those of which there are numbers."""
    named = {results.name: results for results in found}
    bars = []
    for what, name, load, bar, goal in (
        ("one PNG, multipart, c=32, × naive", "png", "c=32", 6.0, 9.0),
        ("the same with `model` and `top_k`, × naive", "params", "c=32", 5.5, 8.0),
        ("one PNG, raw body, c=32, × naive", "png-raw", "c=32", 4.5, 7.0),
        ("the same with `top_k`, × naive", "params-raw", "c=32", 4.2, 6.0),
        ("one 64×64 JPEG, raw, with `model` and `top_k`, c=32, × naive", "jpeg-small", "c=32", 4.0, 6.0),
        ("one PNG, multipart, a lone client, × naive", "png", "c=1", 2.6, 3.5),
        ("64 PNGs in one request, c=8, × naive", "many", "c=8", 4.5, 6.0),
        ("12-megapixel JPEG, c=8, × naive", "jpeg-12mp", "c=8", 4.0, 6.0),
    ):
        ratio = named[name].ratio("graft", "naive", load) if name in named else None
        if ratio is not None:
            bars.append(Bar(what, ratio, bar, goal))
    if "png" in named and ("graft", "burst") in named["png"].cells:
        burst = named["png"].cells["graft", "burst"].p99_ms
        bars.append(Bar("burst of 128 new connections, p99 in ms", burst, 40, 25, False))
    for name, network in (("resnet", "ResNet-18"), ("lite0", "EfficientNet-Lite0")):
        if name in named:
            bars += _of_network(named[name], network)
    meanwhile = [cell.health_p99_ms for r in found for (server, _), cell in r.cells.items() if server == "graft"]
    worst = max(meanwhile, default=0.0)
    if worst:
        bars.append(Bar("/healthz under the heaviest of these, p99 in ms", worst, 10, 5, False))
    if "default" in named:
        results = named["default"]
        best = max((results.ratio_to_raw("graft", load) or 0.0 for load in results.loads), default=0.0)
        if best:
            bars.append(Bar("default model, of raw onnxruntime at its best batch", best, 0.85, 0.92))
    if memory is not None:
        requested = f"after {memory['requests']:,} requests"
        bars.append(Bar(f"resident memory in MB, seed model, {requested}", memory["after_mb"], 120, 100, False))
        bars.append(Bar("its growth in MB over the last half", memory["growth_mb"], 1, 0, False))
    startup = named["png"].of("graft", "startup_s") if "png" in named else None
    if startup is not None:
        bars.append(Bar("seconds from start to the first answer", startup, 0.5, 0.35, False))
    return bars


def _of_network(results: Results, network: str) -> Iterator[Bar]:
    graft = results.cells.get(("graft", "c=8"))
    if graft is None:
        return
    of_raw = results.ratio_to_raw("graft", "c=8")
    if of_raw:
        yield Bar(f"{network} at 224², c=8, of raw onnxruntime at its best batch", of_raw, 0.93, 0.98)
    others = [results.cells[name, "c=8"].p99_ms for name in results.servers if name not in OWN]
    if others:
        yield Bar(f"{network}, c=8, p99 against the best peer's", graft.p99_ms / min(others), 1.1, 1.0, False)


_WIDTH, _LEFT, _BAR, _GAP = 760, 300, 15, 12


def plot(found: Sequence[Results]) -> str:
    """Each workload's servers as bars, × naive at the reference load; the floor is told, not drawn."""
    drawn = [
        (results, [name for name in results.servers if name != "floor" and results.ratio(name, "naive", at)], at)
        for results in found
        for at in [results.reference]
    ]
    most = max((r.ratio(name, "naive", at) or 0 for r, names, at in drawn for name in names), default=1.0)
    parts, y = [], 10
    for results, names, at in drawn:
        for index, name in enumerate(names):
            ratio = results.ratio(name, "naive", at) or 0.0
            wide = ratio / most * (_WIDTH - _LEFT - 150)
            rate = _rate(results.cells[name, at].per_second)
            middle = y + _BAR - 4
            if index == 0:
                parts.append(f'<text x="{_LEFT - 8}" y="{middle}" text-anchor="end">{escape(results.title)}</text>')
            if index == 1:
                floor = results.ratio("floor", "naive", at)
                output = f"{at}; the floor {floor:.1f}×" if floor else at
                parts.append(f'<text x="{_LEFT - 8}" y="{middle}" text-anchor="end" opacity=".6">{output}</text>')
            fill = colour(ORDER.index(name) - 1)
            parts.append(f'<rect x="{_LEFT}" y="{y}" width="{wide:.1f}" height="{_BAR - 2}" fill="{fill}"/>')
            parts.append(f'<text x="{_LEFT + wide + 5:.1f}" y="{middle}">{TITLES[name]} {ratio:.2f}× ({rate}/s)</text>')
            y += _BAR
        y += _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" font-family="sans-serif" font-size="11" '
        f'role="img" aria-label="requests per second against the naive app">'
        f'<rect width="{_WIDTH}" height="{y}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
