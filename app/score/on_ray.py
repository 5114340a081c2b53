"""The scorer on a cluster: `--ray ADDRESS`. Ray Data distributes blocks of images, and retries those of a lost machine.

Each block becomes one file, whose name is a hash of the block's contents: a block that is scored twice is written to
the same place. So every image has exactly one row.
"""

import hashlib
import importlib.util
import json
import logging
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.bundle.bundle import Bundle
from app.bundle.session import cpu_limit
from app.bundle.sets import SetOptions
from app.bundle.store import load
from app.errors import CannotScore
from app.inference import providers
from app.inference.decoding import default_memory
from app.inference.results import Fields
from app.score import parquet, storage
from app.score.batches import Batches, Budget
from app.score.formats import cells
from app.score.operation import BoundOperation
from app.score.paths import FileProblem
from app.score.problems import as_csv
from app.score.progress import Progress
from app.score.run import AGAIN, say, score_batch
from app.settings import Settings

BATCHES = 64  # in a block, the most that is lost with a worker
ERRORS = "_errors.csv"  # readers of parquet folders ignore names with a leading underscore
_LOCAL_STORE = 200 << 20  # bytes; blocks contain paths, not images


def require() -> None:
    found = importlib.util.find_spec("ray")
    if found is None or found.origin is None:  # a folder of that name is no package
        raise CannotScore("--ray needs Ray: pip install 'graft[ray]'")
    parquet.require()


@dataclass(frozen=True)
class Job:
    """All that is sent to a worker. The bundle's files are included, so that workers need no models folder."""

    name: str
    version: int
    files: tuple[tuple[str, bytes], ...]
    operation: tuple[str, int | None, float | None, SetOptions | None]  # name, top_k, false_alarm_rate, sets
    out: str
    batch: int
    threads: int
    max_pixels: int
    max_bytes: int
    provider: str  # the setting's value, which each machine resolves for itself
    decode_mb: int | None  # unset, this block's share of the machine that decodes it

    @property
    def block(self) -> int:
        return self.batch * BATCHES

    @property
    def memory(self) -> int:
        """Other blocks are scored on the same machine, as many as it has CPUs for."""
        if self.decode_mb is not None:
            return self.decode_mb * 1_000_000
        return default_memory() * self.threads // max(self.threads, cpu_limit())

    def score(self, paths: Sequence[str], done: set[str]) -> tuple[list[FileProblem], str]:
        """Writes the block's file. Returns the images without a row, and the execution provider of the graphs."""
        operation = _operation(self)
        problems: list[FileProblem] = []
        rows: list[Fields] = []
        reads = Batches(
            operation.bundle,
            paths=paths,
            done=done,
            size=self.batch,
            threads=self.threads,
            max_pixels=self.max_pixels,
            max_bytes=self.max_bytes,
            budget=Budget(self.memory),
            sized=operation.needs_sizes,
            read=storage.read,
        )
        for batch in reads:
            results, batch_problems = score_batch(operation, batch, done)
            rows += [result.row for result in results]
            problems += [*batch.problems, *batch_problems]
        if rows:
            classifier = operation.bundle.manifest.classifier
            data = parquet.as_file(rows, operation.example(), classifier.labels if classifier else ())
            storage.write(f"{self.out}/{self.part(paths)}", data)
        return problems, operation.bundle.encoder.provider

    def part(self, paths: Sequence[str]) -> str:
        contents = json.dumps([self.name, self.version, self.operation, *paths])
        return f"part-{hashlib.sha256(contents.encode()).hexdigest()[:24]}.parquet"


@lru_cache(1)
def _bundle(name: str, version: int, files: tuple[tuple[str, bytes], ...], threads: int, provider: str) -> Bundle:
    """Loaded once per worker process, and verified: it must reproduce its golden pairs on that machine."""
    with tempfile.TemporaryDirectory(prefix="graft-") as temporary:
        folder = Path(temporary) / name / str(version)
        folder.mkdir(parents=True)
        for file, data in files:
            (folder / file).write_bytes(data)
        return load(folder, threads, providers.choose(provider))


def _operation(job: Job) -> BoundOperation:
    return BoundOperation(
        _bundle(job.name, job.version, files=job.files, threads=job.threads, provider=job.provider), *job.operation
    )


def run(
    address: str, paths: Sequence[str], out: str, operation: BoundOperation, settings: Settings, strict: bool
) -> int:
    """Scores the images under `paths` into the folder `out`. Returns the exit status."""
    images, unread = storage.find_all(paths)
    bundle = operation.bundle
    folder = settings.models.resolve() / bundle.name / str(bundle.version)
    job = Job(
        name=bundle.name,
        version=bundle.version,
        files=tuple((path.name, path.read_bytes()) for path in sorted(folder.iterdir()) if path.is_file()),
        operation=(operation.name, operation.top_k, operation.false_alarm_rate, operation.sets),
        out=out if storage.is_remote(out) else str(Path(out).absolute()),
        batch=settings.max_batch,
        threads=settings.threads or 1,
        max_pixels=settings.max_pixels,
        max_bytes=settings.max_body_bytes,
        provider=settings.provider,
        decode_mb=settings.decode_mb,
    )
    labels = bundle.manifest.classifier.labels if bundle.manifest.classifier else ()
    scored_before = parquet.scored_paths_in(job.out, cells(operation.example(), labels))
    done = {path for path in images if parquet.utf8_path(path) in scored_before}
    already = f", {len(done):,} of them already scored" if done else ""
    say(f"{len(images):,} images by {bundle.name}@{bundle.version} into {out}, on Ray at {address}{already}")
    problems, progress = list(unread), Progress(len(images), len(done), sys.stderr)
    seen, used = len(done), set[str]()
    for count, block_problems, provider in _on_cluster(address, job, images, done):
        problems += block_problems
        seen += count
        used.add(provider)
        progress.tell(seen)
    progress.clear()
    storage.write(f"{job.out}/{ERRORS}", as_csv(problems))  # replaces an earlier run's list: its files were retried
    rows = len(images) - (len(problems) - len(unread))
    if used:
        say(f"the graphs ran on {', '.join(sorted(used))}")
    say(f"{rows:,} images scored" + (f"; {len(problems):,} failed, see {out}/{ERRORS}" if problems else ""))
    print(out)
    return 1 if not rows or (strict and problems) else 0


def gpus_each(provider: str, available: float) -> int:
    """GPUs that each task requests from a cluster with `available` of them. Ray hides them from tasks without one."""
    if not providers.wants_gpu(provider):
        return 0
    if available >= 1:
        return 1
    if provider == "prefer-gpu":
        say("the cluster has no GPU; scoring on its CPUs")
        return 0
    raise CannotScore(f"--provider {provider}: the cluster has no GPU; add a machine with one, or use prefer-gpu")


def reason(text: str) -> str:
    """The message of our own exception in Ray's error text; its last line if there is none."""
    own: list[str] = re.findall(r"^app\.errors\.\w+: (.+)$", text, re.MULTILINE)
    return own[-1] if own else text.strip().splitlines()[-1]


def _on_cluster(
    address: str, job: Job, images: Sequence[str], done: set[str]
) -> Iterator[tuple[int, list[FileProblem], str]]:
    """Yields for each block as it ends: how many images were tried, their problems, and the execution provider."""
    import ray
    import ray.data

    blocks = [images[start : start + job.block] for start in range(0, len(images), job.block)]
    with_done = [(block, [path for path in block if path in done]) for block in blocks]
    waiting = [
        {"block": json.dumps([block, done_paths])} for block, done_paths in with_done if len(done_paths) < len(block)
    ]
    if not waiting:
        return

    def score(batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of one row: a block and its done paths, as JSON."""
        paths, done_paths = json.loads(str(batch["block"][0]))
        problems, provider = job.score(paths, set(done_paths))
        listed = json.dumps([[problem.path, problem.kind, problem.detail] for problem in problems])
        return {"images": [len(paths) - len(done_paths)], "problems": [listed], "provider": [provider]}

    own = {"include_dashboard": False, "object_store_memory": _LOCAL_STORE} if address == "local" else {}
    # Workers run this code, not the version that is installed there, which may differ.
    env = {"py_modules": [str(Path(__file__).parents[1])]}
    ray.init(address, runtime_env=env, log_to_driver=False, logging_level="ERROR", **own)
    try:
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # Progress reports instead
        ray.data.DataContext.get_current().enable_progress_bars = False
        dataset = ray.data.from_items(waiting, override_num_blocks=len(waiting))
        gpus = gpus_each(job.provider, ray.cluster_resources().get("GPU", 0))
        # Tasks, not actors: a lost actor would wait for another machine of the same size.
        results = dataset.map_batches(score, batch_size=1, num_cpus=job.threads, num_gpus=gpus)
        for row in results.iter_rows():
            yield row["images"], [FileProblem(*fields) for fields in json.loads(row["problems"])], row["provider"]
    except ray.exceptions.RayError as error:
        raise CannotScore(f"on Ray: {reason(str(error))}; the rows written so far are kept; {AGAIN}") from error
    finally:
        ray.shutdown()
