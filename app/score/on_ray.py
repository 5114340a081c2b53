"""The scorer on a cluster: `--ray ADDRESS`. Ray Data hands out blocks of images, those of a machine that died again.

Each block ends as one file, whose name follows from what is in the block: who scores it again, because nobody knows
that it was done, writes the same rows in the same place. So every image has its row, and has it once.
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
from app.bundle.cgroup import decoding_share
from app.bundle.session import cpu_limit
from app.bundle.store import load
from app.errors import CannotScore
from app.inference import providers
from app.inference.results import Fields
from app.score import parquet, storage
from app.score.batches import Batches
from app.score.operation import Operation
from app.score.paths import Problem
from app.score.problems import as_csv
from app.score.progress import Progress
from app.score.rows import cells
from app.score.run import AGAIN, say, scored
from app.settings import Settings

BATCHES = 64  # that make a block: what is scored again at most where a worker dies
ERRORS = "_errors.csv"  # readers of a folder of parquet pass over what begins so
_LOCAL_STORE = 200 << 20  # bytes; blocks hold paths, not images


def require() -> None:
    if importlib.util.find_spec("ray") is None:
        raise CannotScore("--ray needs Ray: pip install 'graft[ray]'")
    parquet.require()


@dataclass(frozen=True)
class Job:
    """All that a worker needs, sent to it; the bundle's files too, so that no machine needs the models folder."""

    name: str
    version: int
    files: tuple[tuple[str, bytes], ...]
    operation: tuple[str, int | None, float | None]  # name, top_k, false_alarm_rate
    out: str
    batch: int
    threads: int
    max_pixels: int
    max_bytes: int
    provider: str  # as the setting has it: each machine finds what it has
    decode_mb: int | None  # unset, this block's share of the machine that decodes it

    @property
    def block(self) -> int:
        return self.batch * BATCHES

    @property
    def memory(self) -> int:
        """Other blocks are scored on the same machine, as many as it has CPUs for."""
        if self.decode_mb is not None:
            return self.decode_mb * 1_000_000
        return decoding_share() * self.threads // max(self.threads, cpu_limit())

    def score(self, paths: Sequence[str], done: set[str]) -> tuple[list[Problem], str]:
        """One block → its file; the images that have no row, and the execution provider that the graphs ran on."""
        operation = _operation(self)
        problems: list[Problem] = []
        rows: list[Fields] = []
        reads = Batches(
            operation.bundle,
            paths,
            done,
            self.batch,
            self.threads,
            self.max_pixels,
            self.max_bytes,
            self.memory,
            storage.read,
        )
        for batch in reads:
            found, faults = scored(operation, batch)
            rows += [row for row in found if row["path"] not in done]
            problems += [*batch.problems, *(each for each in faults if each.path not in done)]
        if rows:
            classifier = operation.bundle.manifest.classifier
            data = parquet.as_file(rows, operation.example(), classifier.labels if classifier else ())
            storage.write(f"{self.out}/{self.part(paths)}", data)
        return problems, operation.bundle.encoder.provider

    def part(self, paths: Sequence[str]) -> str:
        told = json.dumps([self.name, self.version, self.operation, *paths])
        return f"part-{hashlib.sha256(told.encode()).hexdigest()[:24]}.parquet"


@lru_cache(1)
def _bundle(name: str, version: int, files: tuple[tuple[str, bytes], ...], threads: int, provider: str) -> Bundle:
    """Once for each process of a worker, verified there: it must reproduce itself on that machine."""
    with tempfile.TemporaryDirectory(prefix="graft-") as folder:
        place = Path(folder) / name / str(version)
        place.mkdir(parents=True)
        for file, data in files:
            (place / file).write_bytes(data)
        return load(place, threads, providers.choose(provider))


def _operation(job: Job) -> Operation:
    return Operation(_bundle(job.name, job.version, job.files, job.threads, job.provider), *job.operation)


def run(address: str, given: Sequence[str], out: str, operation: Operation, settings: Settings, strict: bool) -> int:
    """The exit status."""
    images, unread = storage.find_all(given)
    bundle = operation.bundle
    folder = settings.models.resolve() / bundle.name / str(bundle.version)
    job = Job(
        bundle.name,
        bundle.version,
        tuple((path.name, path.read_bytes()) for path in sorted(folder.iterdir()) if path.is_file()),
        (operation.name, operation.top_k, operation.false_alarm_rate),
        out if storage.is_remote(out) else str(Path(out).absolute()),
        settings.max_batch,
        settings.threads or 1,
        settings.max_pixels,
        settings.max_body_bytes,
        settings.provider,
        settings.decode_mb,
    )
    labels = bundle.manifest.classifier.labels if bundle.manifest.classifier else ()
    there = parquet.done_in(job.out, cells(operation.example(), labels))
    done = {path for path in images if parquet.named(path) in there}
    already = f", {len(done):,} of them already" if done else ""
    say(f"{len(images):,} images by {bundle.name}@{bundle.version} into {out}, on Ray at {address}{already}")
    problems, progress = list(unread), Progress(len(images), len(done), sys.stderr)
    seen, used = len(done), set[str]()
    for count, found, provider in _on_cluster(address, job, images, done):
        problems += found
        seen += count
        used.add(provider)
        progress.tell(seen)
    progress.clear()
    storage.write(f"{job.out}/{ERRORS}", as_csv(problems))  # those of an earlier run were tried again, and told anew
    made = len(images) - (len(problems) - len(unread))
    if used:
        say(f"the graphs ran on {', '.join(sorted(used))}")
    say(f"{made:,} images scored" + (f"; {len(problems):,} could not be: {out}/{ERRORS}" if problems else ""))
    print(out)
    return 1 if not made or (strict and problems) else 0


def gpus_each(provider: str, there: float) -> int:
    """That a task asks for, of a cluster that has so many. Ray hides them from tasks that ask for none."""
    if not providers.wants_gpu(provider):
        return 0
    if there >= 1:
        return 1
    if provider == "prefer-gpu":
        say("the cluster has no GPU: its CPUs score")
        return 0
    raise CannotScore(f"--provider {provider}: the cluster has no GPU; add a machine that has one, or prefer-gpu")


def reason(told: str) -> str:
    """Of all that Ray tells, the sentence that a worker raised; where it is none of ours, what comes last."""
    own: list[str] = re.findall(r"^app\.errors\.\w+: (.+)$", told, re.MULTILINE)
    return own[-1] if own else told.strip().splitlines()[-1]


def _on_cluster(
    address: str, job: Job, images: Sequence[str], done: set[str]
) -> Iterator[tuple[int, list[Problem], str]]:
    """For each block as it comes back: how many images were scored or tried, the problems among them, and on what."""
    import ray
    import ray.data

    blocks = [images[start : start + job.block] for start in range(0, len(images), job.block)]
    open_ = [(block, [path for path in block if path in done]) for block in blocks]
    waiting = [{"block": json.dumps(each)} for each in open_ if len(each[1]) < len(each[0])]
    if not waiting:
        return

    def score(batch: dict[str, Any]) -> dict[str, Any]:
        """Of one row, a block: its problems, as text."""
        paths, known = json.loads(str(batch["block"][0]))
        found, provider = job.score(paths, set(known))
        told = json.dumps([[each.path, each.kind, each.detail] for each in found])
        return {"images": [len(paths) - len(known)], "problems": [told], "provider": [provider]}

    own = {"include_dashboard": False, "object_store_memory": _LOCAL_STORE} if address == "local" else {}
    # Workers run this code, not what is installed there: both would have to be alike.
    env = {"py_modules": [str(Path(__file__).parents[1])]}
    ray.init(address, runtime_env=env, log_to_driver=False, logging_level="ERROR", **own)
    try:
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # how far it is, we say
        ray.data.DataContext.get_current().enable_progress_bars = False
        dataset = ray.data.from_items(waiting, override_num_blocks=len(waiting))
        gpus = gpus_each(job.provider, ray.cluster_resources().get("GPU", 0))
        # Tasks and not actors: an actor that died waits for a machine as large as the one that was lost.
        results = dataset.map_batches(score, batch_size=1, num_cpus=job.threads, num_gpus=gpus)
        for row in results.iter_rows():
            yield row["images"], [Problem(*each) for each in json.loads(row["problems"])], row["provider"]
    except ray.exceptions.RayError as error:
        raise CannotScore(f"on Ray: {reason(str(error))}; what was written stays; {AGAIN}") from error
    finally:
        ray.shutdown()
