"""Images → a file of results: decode, run, append the rows, report the progress."""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.bundle.session import cpu_limit
from app.errors import NotFinite
from app.inference.decoding import default_memory
from app.score import parquet
from app.score.batches import Batch, Batches, Budget
from app.score.formats import FORMATS, PARQUET, cells
from app.score.maps import Maps
from app.score.operation import BoundOperation, Result
from app.score.paths import FileProblem, problem_of
from app.score.problems import ProblemsFile
from app.score.progress import Progress
from app.score.stop import Stop
from app.score.table import Table
from app.settings import Settings

AGAIN = "run the same command again to resume"


def say(text: str) -> None:
    print(f"graft: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Run:
    paths: Sequence[str]  # as on the command line
    images: Sequence[str]  # the files under `paths`
    unread: Sequence[FileProblem]  # folders under `paths` that cannot be read
    out: Path
    strict: bool
    maps: Path | None = None  # the folder of maps, if they are drawn

    def score(self, operation: BoundOperation, settings: Settings) -> int:
        """Returns the exit status."""
        bundle = operation.bundle
        labels = bundle.manifest.classifier.labels if bundle.manifest.classifier else ()
        example = operation.example()
        to_parquet = self.out.suffix == PARQUET
        rows_file = self.out.with_name(f"{self.out.name}.partial.jsonl") if to_parquet else self.out
        converted = parquet.scored_paths(self.out, cells(example, labels)) if to_parquet else set()
        with Stop() as stop, Table(rows_file, FORMATS[self.out.suffix](labels), cells(example, labels)) as table:
            done = {path for path in self.images if path in table.done or parquet.utf8_path(path) in converted}
            problems = ProblemsFile(self.out, self.paths)
            problems.add(self.unread)
            already = f", {len(done):,} of them already scored" if done else ""
            model = f"{bundle.name}@{bundle.version} on {bundle.encoder.provider}"
            say(f"{len(self.images):,} images by {model} into {self.out}{already}")
            seen = self._add_all(operation, settings, table=table, problems=problems, done=done, stop=stop)
            if seen < len(self.images):
                assert stop.number is not None
                say(f"stopped at {seen:,} of {len(self.images):,} images, in {rows_file}; {AGAIN}")
                return 128 + stop.number
            if to_parquet:
                parquet.append_rows(rows_file, self.out, example, labels)
        rows = len(self.images) - (problems.count - len(self.unread))
        failed = f"; {problems.count:,} failed, see {problems.path}" if problems.count else ""
        say(f"{rows:,} images scored{failed}")
        print(self.out)
        return 1 if not rows or (self.strict and problems.count) else 0

    def _add_all(
        self,
        operation: BoundOperation,
        settings: Settings,
        table: Table,
        problems: ProblemsFile,
        done: set[str],
        stop: Stop,
    ) -> int:
        """Scores until all images are done or `stop` was requested. Returns how many have a row or a problem."""
        seen = len(done)
        progress = Progress(len(self.images), seen, sys.stderr)
        budget = Budget(settings.decode_bytes(default_memory()))
        maps = None
        if self.maps is not None:
            self.maps.mkdir(exist_ok=True)
            maps = Maps(
                self.maps,
                out=self.out,
                spec=operation.bundle.manifest.input,
                max_pixels=settings.max_pixels,
                max_bytes=settings.max_body_bytes,
                budget=budget,
            )
        batches = Batches(
            operation.bundle,
            paths=self.images,
            done=done,
            size=settings.max_batch,
            threads=settings.threads or cpu_limit(),
            max_pixels=settings.max_pixels,
            max_bytes=settings.max_body_bytes,
            budget=budget,
            sized=operation.needs_sizes,
        )
        try:
            for batch in batches:
                results, faults = score_batch(operation, batch, done)
                results, undrawn = self._draw(results, maps)
                new_problems = [*batch.problems, *faults, *undrawn]
                table.add([result.row for result in results])  # after their maps: a finished row has its map
                problems.add(new_problems)
                seen += len(results) + len(new_problems)
                progress.tell(seen)
                if stop.number is not None:
                    break
        finally:
            progress.clear()
        return seen

    def _draw(self, results: list[Result], maps: Maps | None) -> tuple[list[Result], list[FileProblem]]:
        """Writes the maps of these results. Returns those that have one, and the problems of the others."""
        if maps is None:
            return results, []
        drawn, problems = [], []
        for result in results:
            assert result.map is not None
            problem = maps.write(result.row, result.map)
            if problem is None:
                drawn.append(result)
            else:
                problems.append(problem)
        return drawn, problems


def score_batch(
    operation: BoundOperation, batch: Batch, done: Collection[str]
) -> tuple[list[Result], list[FileProblem]]:
    """The results and problems of a batch without those in `done`.

    If it raises NotFinite, each image runs alone, to find the one at fault.
    """
    if not batch.paths:
        return [], []
    results: list[Result] = []
    faults: list[FileProblem] = []
    try:
        results = operation.score(batch.paths, batch.images, batch.sizes)
    except NotFinite:
        for index, path in enumerate(batch.paths):
            one = slice(index, index + 1)
            try:
                results += operation.score([path], batch.images[one], batch.sizes[one])
            except NotFinite as error:
                faults.append(problem_of(path, error))
    return [each for each in results if each.row["path"] not in done], [
        fault for fault in faults if fault.path not in done
    ]
