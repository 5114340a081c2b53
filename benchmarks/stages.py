"""Where one request's time goes in Graft: its stacks, sampled by py-spy under load, told by stage.

A sample belongs to the innermost of its frames that is of a stage; its share of all samples, times the time that one
request takes under that load, are the stage's microseconds. Nothing is instrumented, so code may move within a stage.
"""

import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import load
from benchmarks.home import Skipped, environment
from benchmarks.peers import SERVERS, running
from benchmarks.serving import LOAD_CORE, SERVER_CORE
from benchmarks.workloads import WORKLOADS

# stage → what its files' paths, or "path:function", hold; the first stage that has a frame takes it.
STAGES = {
    "multipart": ("python_multipart/", "api/form.py"),
    "body and its limits": ("api/payload.py", "api/bodies.py"),
    "decode": ("bundle/decode.py", "bundle/preprocess.py", "pyspng/", "PIL/"),
    "run of the graphs": ("bundle/session.py", "onnxruntime/"),
    "softmax, scoring": ("bundle/scoring.py", "inference/results.py", "inference/answer.py", "bundle/bundle.py"),
    "batcher, admission, predictor": ("app/inference/",),
    "deadline and disconnect": (
        "api/deadlines.py",
        "api/call.py:within_deadline",
        "api/call.py:_disconnect",
        "asyncio/tasks.py",
        "asyncio/futures.py",
    ),
    "call and its answer's shape": (
        "api/call.py",
        "api/routes/operations.py",
        "api/negotiation.py",
        "api/fast_path.py",
    ),
    "JSON (pydantic)": ("pydantic/", "app/api/schemas.py"),
    "metrics": ("app/telemetry/metrics.py", "app/telemetry/multiprocess.py", "prometheus_client/"),
    "request id, record, log": ("app/telemetry/requests.py", "app/telemetry/logs.py", "logging/", "uuid.py"),
    "changes of thread": ("anyio/", "threading.py", "concurrent/futures/", "starlette/concurrency.py", "queue.py"),
    "FastAPI's dependencies": ("fastapi/dependencies/", "fastapi/params", "fastapi/_compat"),
    "FastAPI, Starlette: routing, middleware, requests": ("fastapi/", "starlette/", "contextlib.py"),
    "connection: HTTP parsing and writing": ("uvicorn/", "app/serving/"),
}
# Frames in which a thread does nothing but wait: py-spy takes some for work.
IDLE = ("threading.py:Condition.wait", "threading.py:wait", "futures/thread.py:_worker")
OTHER = "event loop, waiting for the kernel"
DEFAULT_RATE = 400  # samples a second


def measure(seconds: float, connections: int = 32) -> dict[str, Any]:
    os.sched_setaffinity(0, {LOAD_CORE})
    python = environment("profile")
    workload = next(each for each in WORKLOADS if each.name == "png")
    server = next(each for each in SERVERS if each.name == "graft")
    requested = workload.requests(server.name)
    with tempfile.TemporaryDirectory() as folder:
        file, stacks = Path(folder) / "requests", Path(folder) / "stacks"
        load.write_requests(file, requested)
        with running(server, workload, requested[0], SERVER_CORE) as started:
            load.steady(started.port, file, connections, 2, LOAD_CORE)
            alone = load.steady(started.port, file, connections, seconds, LOAD_CORE)
            spy = [str(python.parent / "py-spy"), "record", "--pid", str(started.process.pid), "--format", "raw"]
            spy += ["--rate", str(DEFAULT_RATE), "--duration", str(round(5 * seconds)), "--full-filenames"]
            spy += ["--output", str(stacks)]
            watching = subprocess.Popen(spy, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            load.steady(started.port, file, connections, 5 * seconds + 1, LOAD_CORE)
            _, answer_text = watching.communicate(timeout=60)
            if watching.returncode or not stacks.exists():
                raise Skipped(
                    f"py-spy: {answer_text.strip().splitlines()[-1] if answer_text.strip() else 'it wrote nothing'}"
                )
            counted = Counter(
                {line.rpartition(" ")[0]: int(line.rpartition(" ")[2]) for line in stacks.read_text().splitlines()}
            )
    microseconds = 1e6 / alone.per_second
    return {
        "connections": connections,
        "per_second": alone.per_second,
        "microseconds": microseconds,
        "samples": sum(count for stack, count in counted.items() if not _idle(stack)),
        "stages": {name: share * microseconds for name, share in shares(counted, stage_of).items()},
        "functions": {name: share * microseconds for name, share in list(shares(counted, function_of).items())[:40]},
    }


def shares(stacks: Mapping[str, int], key: Any) -> dict[str, float]:
    """The largest first; together 1. What only waits is left out."""
    total: Counter[str] = Counter()
    for stack, count in stacks.items():
        if not _idle(stack):
            total[key(stack)] += count
    return {name: count / total.total() for name, count in total.most_common()}


def stage_of(stack: str) -> str:
    """`stack` as py-spy writes it: "name (path:line);name (path:line)", innermost last."""
    for name, path in reversed(list(_frames(stack))):
        if path.endswith("asyncio/runners.py"):  # within uvloop, and in no callback of it
            return OTHER
        for stage, parts in STAGES.items():
            if any(part in f"{path}:{name}" for part in parts):
                return stage
    return OTHER


def _idle(stack: str) -> bool:
    name, path = list(_frames(stack))[-1]
    return f"{path}:{name}".endswith(IDLE)


def function_of(stack: str) -> str:
    name, path = list(_frames(stack))[-1]
    return f"{name} ({'/'.join(Path(path).parts[-2:])})"


def _frames(stack: str) -> Iterable[tuple[str, str]]:
    for frame in stack.split(";"):
        name, _, where = frame.rpartition(" (")
        yield name or frame, where.rpartition(":")[0]


def table(found: Mapping[str, Any]) -> str:
    """Stages, then the functions that cost most in themselves."""
    lines = [
        f"### Where one request's time goes (`profile`, one PNG, multipart, c={found['connections']})",
        "",
        f"{found['per_second']:,.0f} requests/s: {found['microseconds']:.0f} µs each; {found['samples']:,} samples.",
        "",
        "| stage | µs | share |\n| --- | --- | --- |",
        *_rows(found["stages"], found["microseconds"]),
        "",
        "| function, without what it calls in Python | µs | share |\n| --- | --- | --- |",
        *_rows(dict(list(found["functions"].items())[:20]), found["microseconds"]),
    ]
    return "\n".join(lines) + "\n"


def _rows(parts: Mapping[str, float], whole: float) -> list[str]:
    return [f"| {name} | {cost:.1f} | {cost / whole:.1%} |" for name, cost in parts.items()]
