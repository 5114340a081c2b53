"""From paths to a file of results: decode ahead, run, add the rows, say how far it is."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.bundle.cgroup import decoding_share
from app.bundle.session import cpu_limit
from app.errors import NotFinite, kebab
from app.inference.results import Fields
from app.score import parquet
from app.score.batches import Batch, Batches
from app.score.operation import Operation
from app.score.paths import Problem
from app.score.problems import Problems
from app.score.progress import Progress
from app.score.rows import Csv, JsonLines, cells
from app.score.stop import Stop
from app.score.table import Table
from app.settings import Settings

PARQUET = ".parquet"
FORMS: dict[str, type[Csv] | type[JsonLines]] = {".csv": Csv, ".jsonl": JsonLines, PARQUET: JsonLines}
AGAIN = "go on with the same command"


def say(text: str) -> None:
    print(f"graft: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Run:
    given: Sequence[str]  # paths as they were given, of which these images are
    images: Sequence[str]
    unread: Sequence[Problem]  # folders
    out: Path
    strict: bool

    def score(self, operation: Operation, settings: Settings) -> int:
        """The exit status."""
        bundle = operation.bundle
        labels = bundle.manifest.classifier.labels if bundle.manifest.classifier else ()
        example = operation.example()
        gathers = self.out.suffix == PARQUET
        rows_file = self.out.with_name(f"{self.out.name}.partial.jsonl") if gathers else self.out
        turned = parquet.done(self.out, cells(example, labels)) if gathers else set()
        with Stop() as stop, Table(rows_file, FORMS[self.out.suffix](labels), cells(example, labels)) as table:
            done = {path for path in self.images if path in table.done or parquet.named(path) in turned}
            problems = Problems(self.out, self.given)
            problems.add(self.unread)
            already = f", {len(done):,} of them already" if done else ""
            model = f"{bundle.name}@{bundle.version} on {bundle.encoder.provider}"
            say(f"{len(self.images):,} images by {model} into {self.out}{already}")
            seen = self._add_all(operation, settings, table, problems, done, stop)
            if seen < len(self.images):
                assert stop.number is not None
                say(f"stopped at {seen:,} of {len(self.images):,} images, in {rows_file}: {AGAIN}")
                return 128 + stop.number
            if gathers:
                parquet.turn(rows_file, self.out, example, labels)
        made = len(self.images) - (problems.count - len(self.unread))
        told = f"; {problems.count:,} could not be: {problems.path}" if problems.count else ""
        say(f"{made:,} images scored{told}")
        print(self.out)
        return 1 if not made or (self.strict and problems.count) else 0

    def _add_all(
        self, operation: Operation, settings: Settings, table: Table, problems: Problems, done: set[str], stop: Stop
    ) -> int:
        """How many images have their row or their problem, when all have or a stop was asked for."""
        seen = len(done)
        progress = Progress(len(self.images), seen, sys.stderr)
        batches = Batches(
            operation.bundle,
            self.images,
            done,
            settings.max_batch,
            settings.threads or cpu_limit(),
            settings.max_pixels,
            settings.max_body_bytes,
            settings.decode_bytes(decoding_share()),
        )
        try:
            for batch in batches:
                rows, faults = scored(operation, batch)
                fresh = [row for row in rows if row["path"] not in done]
                found = [*batch.problems, *(each for each in faults if each.path not in done)]
                table.add(fresh)
                problems.add(found)
                seen += len(fresh) + len(found)
                progress.tell(seen)
                if stop.number is not None:
                    break
        finally:
            progress.clear()
        return seen


def scored(operation: Operation, batch: Batch) -> tuple[list[Fields], list[Problem]]:
    """Where a batch gives what is no number, each of its images is run alone: the one at fault is a problem."""
    if not batch.paths:
        return [], []
    try:
        return operation.rows(batch.paths, batch.images), []
    except NotFinite:
        rows, faults = [], []
        for path, image in zip(batch.paths, batch.images, strict=True):
            try:
                rows += operation.rows([path], image[None])
            except NotFinite as error:
                faults.append(Problem(path, kebab(type(error).__name__), str(error)))
        return rows, faults
