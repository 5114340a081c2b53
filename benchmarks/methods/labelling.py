"""What `graft-train label` chooses, held against images drawn at random; and how many exchanged labels it finds.

Images are chosen from nine tenths of a pool, another draw for each seed: `clothing`'s training part, half of
`neu-surface`. The labels are the true ones; a linear head on the codes learns them, and is measured on the other part.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.bars import Bar
from training.data import named
from training.data.folder import Survey
from training.label.choose import choose
from training.label.codes import Codes, codes_of, copies, encoder
from training.label.pool import Pool, read_pool
from training.learning.inference import in_batches
from training.learning.linear import head_on
from training.measure.intervals import student

SEEDS = 10
ROUNDS = (20, 30, 50, 100)  # images asked, round after round
EXCHANGED = 0.05


@dataclass(frozen=True)
class Part:
    codes: Codes
    labels: np.ndarray  # (N,) the true ones
    kinds: list[str]

    def take(self, rows: np.ndarray) -> "Part":
        codes = replace(
            self.codes,
            pool=Pool(Survey(Path()), ("",) * len(rows)),
            codes=self.codes.codes[rows],
            thumbnails=self.codes.thumbnails[rows],
        )
        return Part(codes, self.labels[rows], self.kinds)

    def given(self, labels: np.ndarray) -> Codes:
        """With these labels, -1 where there is none."""
        named_ = tuple(self.kinds[label] if label >= 0 else "" for label in labels)
        return replace(self.codes, pool=Pool(Survey(Path()), named_))


def measure(out: Path) -> Iterator[Bar]:
    for name in ("clothing", "neu-surface"):
        pool, test = _parts(name, out)
        yield from _chosen(name, pool, test)
        yield from _exchanged(name, pool)


def _parts(name: str, out: Path) -> tuple[Part, Part]:
    bundle, folder = encoder(None, True, out), named.root() / name
    if (folder / "test").is_dir():
        return _read(folder / "train", bundle, out), _read(folder / "test", bundle, out)
    whole = _read(folder, bundle, out)
    order = np.random.default_rng(0).permutation(len(whole.labels))
    half = len(order) // 2
    return whole.take(order[:half]), whole.take(order[half:])


def _read(folder: Path, bundle: object, out: Path) -> Part:
    codes = codes_of(bundle, read_pool(str(folder), out), out)  # type: ignore[arg-type]
    kinds = sorted(set(codes.pool.labels))
    return Part(codes, np.array([kinds.index(label) for label in codes.pool.labels]), kinds)


def _chosen(name: str, whole: Part, test: Part) -> Iterator[Bar]:
    reached: dict[int, list[tuple[float, float]]] = {}
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        pool = whole.take(rng.permutation(len(whole.labels))[: 9 * len(whole.labels) // 10])
        group, random = copies(pool.codes), rng.permutation(len(pool.labels))
        known = np.full(len(pool.labels), -1)
        for asked in ROUNDS:
            for each in choose(pool.given(known), group, asked, check=False).chosen:
                known[each.row] = pool.labels[each.row]
            count = int((known >= 0).sum())
            both = _accuracy(pool, test, np.flatnonzero(known >= 0)), _accuracy(pool, test, random[:count])
            reached.setdefault(count, []).append(both)
    for count, pairs in reached.items():
        chosen, drawn = np.mean(pairs, axis=0)
        gain = student([100 * (one - other) for one, other in pairs])
        print(f"        {name}, {count} labels: chosen {chosen:.4f}, at random {drawn:.4f}", flush=True)
        yield Bar(f"{name}, {count} labels, points gained, lower end of the interval", gain.low, 0, 1)


def _accuracy(pool: Part, test: Part, rows: np.ndarray) -> float:
    head = head_on(pool.codes.codes[rows], pool.labels[rows], classes=len(pool.kinds))
    return float(np.mean(in_batches(head, test.codes.codes).argmax(axis=1) == test.labels))


def _exchanged(name: str, pool: Part) -> Iterator[Bar]:
    first, found = [], []
    for seed in range(SEEDS):
        rng, labels = np.random.default_rng(seed), pool.labels.copy()
        wrong = rng.choice(len(labels), round(EXCHANGED * len(labels)), replace=False)
        labels[wrong] = (labels[wrong] + rng.integers(1, len(pool.kinds), len(wrong))) % len(pool.kinds)
        choice = choose(pool.given(labels), copies(pool.codes), len(wrong), check=True)
        hits = np.isin([each.row for each in choice.chosen], wrong)
        first.append(float(hits[:20].mean()))
        found.append(float(hits.sum() / len(wrong)))
    yield Bar(f"{name}, {EXCHANGED:.0%} of labels exchanged: share of mistakes in the first 20", np.mean(first), 0.9, 1)
    yield Bar("the same: share of the mistakes in as many lines as there are mistakes", np.mean(found), 0.7, 0.9)
