"""Images → a file of results: decode, run, append the rows, report the progress."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.bundle.session import cpu_limit
from app.errors import NotFinite, kebab
from app.inference.decoding import default_memory
from app.inference.results import Fields
from app.score import parquet
from app.score.batches import Batch, Batches
from app.score.formats import FORMATS, PARQUET, cells
from app.score.operation import BoundOperation
from app.score.paths import FileProblem
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
        batches = Batches(
            operation.bundle,
            paths=self.images,
            done=done,
            size=settings.max_batch,
            threads=settings.threads or cpu_limit(),
            max_pixels=settings.max_pixels,
            max_bytes=settings.max_body_bytes,
            memory=settings.decode_bytes(default_memory()),
        )
        try:
            for batch in batches:
                rows, faults = score_batch(operation, batch)
                new_rows = [row for row in rows if row["path"] not in done]
                new_problems = [*batch.problems, *(fault for fault in faults if fault.path not in done)]
                table.add(new_rows)
                problems.add(new_problems)
                seen += len(new_rows) + len(new_problems)
                progress.tell(seen)
                if stop.number is not None:
                    break
        finally:
            progress.clear()
        return seen


def score_batch(operation: BoundOperation, batch: Batch) -> tuple[list[Fields], list[FileProblem]]:
    """The rows and problems of a batch. If it raises NotFinite, each image runs alone, to find the one at fault."""
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
                faults.append(FileProblem(path, kebab(type(error).__name__), str(error)))
        return rows, faults
