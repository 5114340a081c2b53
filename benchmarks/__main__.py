"""`make bench`: Graft beside what people use today, and beside the floor, on one core: docs/performance.md."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import bars, load, memory, page, sessions, stages, summary
from benchmarks.home import RESULTS, ROOT, Made, Skipped, environment, machine, made
from benchmarks.peers import SERVERS, USUAL
from benchmarks.serving import LOAD_CORE, SERVER_CORE, Plan, measure
from benchmarks.workloads import WORKLOADS

BESIDE = {
    "memory": "Graft's resident memory over a million requests",
    "sessions": "onnxruntime's own settings against one another, and what memory they keep",
    "profile": "where one request's time goes in Graft",
    "decoders": "image libraries against one another",
}
PAGE = ROOT / "docs" / "performance.md"
RESULTS_PAGE = ROOT / "benchmarks" / "results.md"  # everything else
WITH_RAW = ("default", "resnet", "lite0", "png")  # beside which onnxruntime alone is measured


def main() -> int:
    given = _parser().parse_args()
    names = [workload.name for workload in WORKLOADS]
    only = _chosen("--only", given.only, [*names, *BESIDE], names)
    servers = _chosen("--servers", given.servers, [s.name for s in SERVERS], _usual(given.peers))
    plan = Plan(
        [server for server in SERVERS if server.name in servers],
        given.seconds,
        given.repetitions,
        [int(number) for number in given.concurrency.split(",")] if given.concurrency else (),
    )
    for server in SERVERS:
        if server.name not in servers:
            print(f"{server.title}: not asked for (PEERS=all, or SERVERS={server.name})", file=sys.stderr)
    try:
        if set(only) != {"decoders"}:
            load.wrk()
            _require_cores()
        for name in only:
            print(f"{name}:", file=sys.stderr)
            if name == "decoders":
                subprocess.run([environment("decoders"), "-m", "benchmarks.decoders"], cwd=ROOT, check=True)
                continue
            _save(given.out / f"{name}.json", name, _outcome(name, plan, given.requests))
    except Skipped as skipped:
        print(f"make bench: {skipped}", file=sys.stderr)
        return 2
    if set(only) != {"decoders"}:
        report(given.out, only, (PAGE, RESULTS_PAGE) if given.doc else None)
    return 0


def _outcome(name: str, plan: Plan, requests: int) -> dict[str, Any]:
    beside: dict[str, Callable[[], dict[str, Any]]] = {
        "memory": lambda: memory.measure(requests),
        "sessions": lambda: sessions.measure(plan.seconds, plan.repetitions),
        "profile": lambda: stages.measure(plan.seconds, *plan.concurrency[:1]),
    }
    if name in beside:
        return beside[name]()
    workload = next(each for each in WORKLOADS if each.name == name)
    return asdict(measure(workload, plan, name in WITH_RAW))


def _usual(peers: str) -> list[str]:
    return [server.name for server in SERVERS] if peers == "all" else list(USUAL)


def _chosen(flag: str, given: str, possible: list[str], usual: list[str]) -> list[str]:
    if given == "all":
        return possible
    names = [name for name in given.split(",") if name] or usual
    unknown = [name for name in names if name not in possible]
    if unknown:
        sys.exit(f"make bench: {flag} has no {unknown[0]!r}; there are: {', '.join(possible)}")
    return [name for name in possible if name in names]


def _require_cores() -> None:
    needed = {SERVER_CORE, LOAD_CORE}
    if not needed <= os.sched_getaffinity(0):
        raise Skipped(f"the server and the load need a core each ({needed}); this process may use too few")


def _save(file: Path, name: str, outcome: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"name": name, **made()._asdict(), "outcome": outcome}, indent=1))


def report(folder: Path, only: list[str], pages: tuple[Path, Path] | None) -> None:
    """`only` was measured just now; bars and overview are of all that was measured so far."""
    found, remembered = summary.read(folder)
    workloads = {results.name: summary.table(results) for results in found}
    beside = {
        name: table(json.loads((folder / f"{name}.json").read_text())["outcome"])
        for name, table in (("sessions", sessions.table), ("profile", stages.table))
        if (folder / f"{name}.json").exists()
    }
    together = {
        "bars": bars.table(summary.bars(found, remembered), digits=2),
        "workloads": summary.overview(found),
    }
    every = [*together.values(), *workloads.values(), *beside.values()]
    (folder / "report.md").write_text("\n".join([machine(), "", *every]))
    (folder / "plot.svg").write_text(summary.plot(found))
    for name, table in (workloads | beside).items():
        if name in only:
            print(table)
    print(together["bars"])
    print(
        f"{folder / 'report.md'} and plot.svg have all that was measured so far; *.json every number", file=sys.stderr
    )
    if pages is None:
        return
    behind = {"bars": summary.BEHIND_BARS, "workloads": tuple(workloads)}
    for path, tables in zip(pages, (together, workloads | beside), strict=True):
        for name, table in tables.items():
            if name in together or name in only:
                page.write(path, name, table, _made(folder, behind.get(name, (name,))))
        print(f"{path}: written", file=sys.stderr)


def _made(folder: Path, names: Sequence[str]) -> list[Made]:
    saved = [json.loads(path.read_text()) for name in names if (path := folder / f"{name}.json").exists()]
    return [Made(*(each[field] for field in Made._fields)) for each in saved]


def _parser() -> argparse.ArgumentParser:
    workloads = "\n".join(f"  {each.name:10} {each.title}" for each in WORKLOADS)
    beside = "\n".join(f"  {name:10} {what}" for name, what in BESIDE.items())
    servers = "\n".join(f"  {each.name:10} {each.title}" for each in SERVERS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Graft beside its peers: each server on one core, wrk on the other, answers checked first.",
        epilog=f"workloads (all of them, unless some are named):\n{workloads}\nonly where named:\n{beside}\n"
        f"servers:\n{servers}\n\nEvery option is also a variable of make: `make bench ONLY=png SERVERS=naive,graft "
        "CONCURRENCY=32 SECONDS=2 REPETITIONS=1` takes half a minute.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", metavar="NAMES", help="workloads by commas, or all: with those below")
    parser.add_argument("--servers", default="", metavar="NAMES", help=f"by commas (default: {','.join(USUAL)})")
    parser.add_argument("--peers", default="", metavar="all", help="every server that can be installed here")
    parser.add_argument(
        "--concurrency", default="", metavar="NUMBERS", help="by commas, in place of each workload's own"
    )
    parser.add_argument("--seconds", type=float, default=3, help="of one measurement (default: 3; whole seconds)")
    parser.add_argument("--repetitions", type=int, default=3, help="interleaved (default: 3)")
    parser.add_argument("--requests", type=int, default=1_000_000, help="of the memory measurement (default: 1000000)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="(default: .bench/results)")
    parser.add_argument(
        "--doc", action="store_true", help="write tables into docs/performance.md and benchmarks/results.md"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
