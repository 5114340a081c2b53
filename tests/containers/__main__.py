"""The Dockerfile and the compose file, for real: `make container-test`. The last line is the verdict, as JSON.

Exit code 77 with the reason where no engine can run, 1 where a bar is missed. The tree is copied as a clone would
have it. Docker Hub is not needed: engine.py says what stands in for its images, and Grafana's is not run.
"""

import asyncio
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import yaml
from containers.engine import Engine, NoEngineError, sh
from load import Answer, Load, post
from PIL import Image
from support import ROOT, draw_folder
from test_documents import README, SETS, blocks, numbers, shape

SKIPPED = 77  # as automake has it
MOST_MB, MOST_READY_S = 350, 2.0
UNPRIVILEGED = "--read-only --cap-drop ALL --security-opt no-new-privileges --user 10001 --memory 512m --pids-limit 128"
SAMPLE = ROOT / "app/web/samples/t-shirt.png"
OBSERVED = ("graft", "prometheus")
QUIET = ("graft_drift_", "graft_estimated_accuracy")  # bundles without references have none of these


def main() -> int:
    try:
        with Engine() as engine:
            verdict = check(engine)
    except NoEngineError as reason:
        print(f"container-test is skipped: {reason}")
        return SKIPPED
    good = verdict["image_mb"] <= MOST_MB and verdict["ready_s"] <= MOST_READY_S and verdict["lost"] == 0
    good = good and all(verdict[name] for name in ("answers", "compose", "unprivileged", "trained"))
    print(json.dumps(verdict))
    return 0 if good else 1


def check(engine: Engine) -> dict[str, Any]:
    tree = clone(engine.work / "clone")
    compose = yaml.safe_load((tree / "docker-compose.yml").read_text())
    [python] = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", (tree / "Dockerfile").read_text(), re.MULTILINE)
    engine.import_python(python)
    say(f"Debian's Python stands in for {python}: {engine.megabytes(python):.0f} MB")
    engine.build(tree, "graft")
    verdict: dict[str, Any] = {"image_mb": round(engine.megabytes("graft"), 1)}
    say(f"built: {verdict['image_mb']} MB")
    with running(engine, *shlex.split(UNPRIVILEGED)):  # the first reads the image from the disk
        pass
    times = []
    for _ in range(3):
        with running(engine, *shlex.split(UNPRIVILEGED)) as (_, _, seconds):
            times.append(seconds)
    verdict["ready_s"] = round(statistics.median(times), 2)
    say(f"ready, from `docker run` on: {', '.join(f'{s:.2f}' for s in times)} s")
    limits = compose["x-service"]["environment"]
    settings = [f"-e{name}={of_default(limits[name])}" for name in ("GRAFT_MAX_PIXELS", "GRAFT_MAX_BODIES_MB")]
    with running(engine, *shlex.split(UNPRIVILEGED), *settings) as (container, address, _):
        verdict["answers"] = truly("every curl is answered", lambda: curls(address))
        pixels = int(of_default(limits["GRAFT_MAX_PIXELS"]))
        verdict["unprivileged"] = truly("unprivileged", lambda: unprivileged(engine, container, address, pixels))
    verdict["lost"] = lost_by_a_stop(engine)
    verdict["unprivileged"] &= truly("models are overridden by a mount", lambda: mounted(engine))
    verdict["trained"] = truly("training", lambda: trained(engine, tree))
    promtool = engine.import_prometheus(python, compose["services"]["prometheus"]["image"])
    verdict["compose"] = truly("rules", lambda: rules(promtool, tree / "deploy/prometheus"))
    verdict["compose"] &= truly("compose", lambda: composed(engine, tree))
    named = ("image_mb", "ready_s", "answers", "lost", "compose", "unprivileged", "trained")
    return {name: verdict[name] for name in named}


def say(text: str) -> None:
    print(text, flush=True)


def truly(what: str, hold: Callable[[], str]) -> bool:
    try:
        say(f"{what}: yes. {hold()}")
    except (AssertionError, RuntimeError, httpx.HTTPError) as error:
        say(f"{what}: NO. {error!r}")
        return False
    return True


def clone(target: Path) -> Path:
    listed = sh("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def of_default(value: str) -> str:
    """16 of `${NAME:-16}`."""
    return re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", value)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait(address: str, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{address}/readyz", timeout=2).status_code == 200:
                return
        time.sleep(0.02)
    raise AssertionError(f"{address} is not ready after {seconds:g} s")


@contextlib.contextmanager
def running(engine: Engine, *options: str) -> Iterator[tuple[str, str, float]]:
    """(container, address, seconds until it was ready)"""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    start = time.monotonic()
    container = engine.docker("run", "-d", "-p", f"127.0.0.1:{port}:8000", *options, "graft").strip()
    try:
        try:
            wait(address)
        except AssertionError:
            say(engine.docker("logs", container))
            raise
        yield container, address, time.monotonic() - start
    finally:
        engine.docker("rm", "-f", container)


def curls(address: str) -> str:
    """README's and the protocol page's, which must get the replies that the pages show."""
    host = address.removeprefix("http://")
    requested = 0
    for page, read in ((README, lambda value: value), ((ROOT / "docs/v2.md").read_text(), numbers)):
        for curl in (block for block in blocks(page, "sh") if block.startswith("curl")):
            command = curl.replace("127.0.0.1:8000", host).replace("curl ", "curl -sS ", 1)
            done = json.loads(sh("sh", "-c", command, cwd=ROOT))
            assert read(done) == shape(read(json.loads(blocks(page, "json")[0])))
            requested += 1
    assert requested >= 2
    return f"{requested} of them, with the replies of the pages"


def unprivileged(engine: Engine, container: str, address: str, pixels: int) -> str:
    side = int(pixels**0.5)
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 60).convert("RGB").save(buffer, "JPEG", quality=60)

    def send(_: int) -> int:
        answer = httpx.post(f"{address}/v1/predict", files={"image": buffer.getvalue()}, timeout=120)
        return answer.status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(send, range(24))) == {200}
    state = engine.inspect(container)
    assert state["State"]["OOMKilled"] is False  # type: ignore[index]
    assert state["HostConfig"]["ReadonlyRootfs"] is True  # type: ignore[index]
    output = engine.docker("exec", container, "python", "-c", "import os; print(os.getuid(), os.getgroups())")
    assert output.split()[0] == "10001", output
    status = engine.docker("exec", container, "python", "-c", "print(open('/proc/1/status').read())")
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE), status
    most = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    for refused in (["sh", "-c", "true"], ["python", "-c", "open('/graft/x', 'w')"], ["pip", "--version"]):
        try:
            engine.docker("exec", container, *refused)
        except RuntimeError:
            continue
        raise AssertionError(f"{refused} works")
    until = time.monotonic() + 30
    while health(engine, container) != "healthy":
        assert time.monotonic() < until, "its HEALTHCHECK does not call it healthy"
        time.sleep(0.5)
    assert most, status
    return f"8 at once with {side * side / 1e6:.0f} megapixels each took {int(most[1]) / 1000:.0f} MB at most"


def health(engine: Engine, container: str) -> str:
    return str(engine.inspect(container)["State"]["Health"]["Status"])  # type: ignore[index]


def mounted(engine: Engine) -> str:
    folder = engine.work / "other-models/other"
    shutil.copytree(ROOT / "models/fashion-mnist-seed", folder)
    with running(engine, *shlex.split(UNPRIVILEGED), "-v", f"{folder.parent}:/graft/models:ro") as (_, address, _):
        names = [model["name"] for model in httpx.get(f"{address}/v1/models").json()["models"]]
        assert names == ["other"], names
    return "it serves what was mounted alone"


def trained(engine: Engine, tree: Path) -> str:
    """By the page's command a folder of drawn images becomes a bundle, and the service names one of them."""
    [torch] = re.findall(r"^torch==\S+", (tree / "requirements/train.txt").read_text(), re.MULTILINE)
    with engine.index_of(torch) as index:
        engine.build(tree, "graft-train", "--target", "train", "--build-arg", f"PIP_EXTRA_INDEX_URL={index}")
    folders = {name: engine.work / "training" / name.lower() for name in ("DATA", "MODELS", "RUNS")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    drawn = draw_folder(folders["DATA"] / "drawn", 40, 0)
    owner = 1000  # USER_AND_GROUP's default
    for path in (*folders.values(), *folders["DATA"].rglob("*")):
        os.chown(path, owner, owner)
    [line] = re.findall(r"^docker (compose run .*)$", (tree / "docs/containers.md").read_text(), re.MULTILINE)
    command = [word for word in shlex.split(line) if word != "--build"]
    changes = {"name": "drawn", "source": "/data/drawn", "target": "/data/drawn"}
    sets = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    start = time.monotonic()
    places = {name: str(folder) for name, folder in folders.items()}
    engine.docker(*command, *sets, *SETS, environment=places, cwd=tree)
    seconds = time.monotonic() - start
    assert (folders["MODELS"] / "drawn/1/manifest.json").stat().st_uid == owner
    with running(engine, *shlex.split(UNPRIVILEGED), "-v", f"{folders['MODELS']}:/graft/models:ro") as (_, address, _):
        image = next(drawn.rglob("*.png")).read_bytes()
        [result] = httpx.post(f"{address}/v1/classify", files={"image": image}).raise_for_status().json()["results"]
        assert set(result["probabilities"]) == {folder.name for folder in drawn.iterdir()}
    return f"{engine.megabytes('graft-train'):.0f} MB with {torch}, a bundle after {seconds:.0f} s, and it is served"


def lost_by_a_stop(engine: Engine) -> int:
    """Requests that a stop under load leaves without a good answer: over kept connections, and over new ones.

    They go to the container's own address: a published port's proxy accepts what no service will ever see.
    """
    request = post("/v1/predict", SAMPLE.read_bytes(), "image/png")
    bad: list[int] = []

    def on_answer(_: int, answer: Answer) -> None:
        if answer.status != 200:
            bad.append(answer.status)

    async def stop_under(loads: list[Load], container: str) -> None:
        clients = asyncio.gather(*(load.run() for load in loads))
        await asyncio.sleep(3)
        await asyncio.to_thread(engine.docker, "stop", "-t", "15", container)
        for load in loads:
            load.stopped = True
        await clients

    lost = answered = 0
    for _ in range(3):
        with running(engine, *shlex.split(UNPRIVILEGED)) as (container, _, _):
            networks: Any = engine.inspect(container)["NetworkSettings"]
            address = f"http://{networks['Networks']['bridge']['IPAddress']}:8000"
            loads = [Load(address, [request], 16, kept=kept, on_answer=on_answer) for kept in (True, False)]
            asyncio.run(stop_under(loads, container))
            state: Any = engine.inspect(container)["State"]
            assert state["ExitCode"] == 0, state
        lost += sum(len(load.lost) for load in loads)
        answered += sum(load.answered for load in loads)
    say(f"stopped three times under load: {answered:,} answered, {lost} lost, {len(bad)} answered with a problem")
    return lost + len(bad)


def rules(promtool: Path, folder: Path) -> str:
    sh(promtool, "check", "config", "prometheus.yml", cwd=folder)
    sh(promtool, "test", "rules", "rules_test.yml", cwd=folder)
    return sh(promtool, "check", "rules", "rules.yml", cwd=folder).split("SUCCESS: ")[1].strip()


def composed(engine: Engine, tree: Path) -> str:
    """The service and Prometheus as a clean clone brings them up; every query of the dashboard is put to the latter."""
    address, prometheus = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    ports = {"PORT": address.rpartition(":")[2], "PROMETHEUS_PORT": prometheus.rpartition(":")[2]}

    def compose(*arguments: str) -> str:
        return engine.docker("compose", *arguments, environment=ports, cwd=tree)

    compose("--profile", "*", "config", "--quiet")
    try:
        start = time.monotonic()
        compose("up", "-d", "--no-build", "--wait", *OBSERVED)
        seconds = time.monotonic() - start
        curls(address)
        for _ in range(4):  # drift is told of after 400 images
            files = [("image", SAMPLE.read_bytes())] * 128
            assert httpx.post(f"{address}/v1/predict", files=files, timeout=60).status_code == 200
        assert httpx.post(f"{address}/v1/classify", content=b"no", headers={"content-type": "image/png"}).is_error
        until = time.monotonic() + 90
        while empty := unanswered(tree, prometheus):
            assert time.monotonic() < until, f"Prometheus has nothing to say to {empty}"
            httpx.post(f"{address}/v1/predict", files={"image": SAMPLE.read_bytes()})
            time.sleep(1)
        assert requested(prometheus, 'up{job="graft"}')[0]["value"][1] == "1"
        output = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"]
        loaded = [rule for group in output for rule in group["rules"]]
        assert loaded
        assert {rule["health"] for rule in loaded} <= {"ok", "unknown"}, loaded
        return f"up after {seconds:.1f} s; {len(queries(tree))} queries answered, {len(loaded)} rules loaded"
    except BaseException:
        say(compose("--profile", "*", "logs", "--tail", "30"))
        raise
    finally:
        compose("--profile", "*", "down", "-v")


def queries(tree: Path) -> list[str]:
    board = json.loads((tree / "deploy/grafana/dashboards/graft.json").read_text())
    return [
        target["expr"].replace("$__rate_interval", "1m") for panel in board["panels"] for target in panel["targets"]
    ]


def requested(prometheus: str, query: str) -> list[Any]:
    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": query})
    assert answer.status_code == 200, f"{query}: {answer.text}"
    return list(answer.json()["data"]["result"])


def unanswered(tree: Path, prometheus: str) -> list[str]:
    with contextlib.suppress(httpx.TransportError):
        wanted = [query for query in queries(tree) if not any(name in query for name in QUIET)]
        return [query for query in wanted if not requested(prometheus, query)]
    return ["anything"]


if __name__ == "__main__":
    os.environ.pop("MAKEFLAGS", None)
    sys.exit(main())
