"""gRPC beside HTTP under /v2: requests a second and the service's processor time, for one image's pixels as bytes.

`python -m benchmarks.rpc`, where `make install-grpc` and h2load (nghttp2) are. Rounds of both alternate.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from app.api.rpc.messages import message
from benchmarks.peers import free_port
from benchmarks.service import serving
from benchmarks.serving import LOAD_CORE, SERVER_CORE

MODEL, REQUESTS, REPETITIONS, CONCURRENCY = "fashion-mnist-seed", 4000, 5, 32
PIXELS = bytes(range(256)) * 3 + bytes(16)  # 28 × 28
WAYS = {  # connections × requests at once on each
    "HTTP": (CONCURRENCY, 1),
    "gRPC, 32 connections": (CONCURRENCY, 1),
    "gRPC, one connection": (1, CONCURRENCY),
}


def main() -> int:
    if shutil.which("h2load") is None:
        print("h2load makes the load: apt-get install nghttp2-client", file=sys.stderr)
        return 2
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    costs: dict[str, list[float]] = {way: [] for way in WAYS}
    port = free_port()
    settings = {"GRAFT_GRPC_PORT": str(port), "GRAFT_THREADS": "1", "GRAFT_TUNE": "off", "GRAFT_DEFAULT_MODEL": MODEL}
    os.sched_setaffinity(0, {SERVER_CORE})  # which the service inherits
    with tempfile.TemporaryDirectory() as folder, serving(**settings) as client:
        os.sched_setaffinity(0, {LOAD_CORE})
        [service] = psutil.Process().children()
        commands = _commands(Path(folder), str(client.base_url).rstrip("/"), port)
        for command in commands.values():
            _rate(command, REQUESTS // 4)  # warms it
        for _ in range(REPETITIONS):
            for way, command in commands.items():
                before = sum(service.cpu_times()[:2])
                rates[way].append(_rate(command, REQUESTS))
                costs[way].append(1e6 * (sum(service.cpu_times()[:2]) - before) / REQUESTS)
        assert 'operation="infer",status="4' not in client.get("/metrics").text, "over gRPC, errors look good to h2load"
    print("| way | requests/s | × HTTP | CPU µs a request |\n| --- | --- | --- | --- |")
    for way in WAYS:
        ratio = statistics.median(ours / http for ours, http in zip(rates[way], rates["HTTP"], strict=True))
        rate, cost = statistics.median(rates[way]), statistics.median(costs[way])
        print(f"| {way} | {rate:,.0f} | {ratio:.2f} | {cost:,.0f} |")
    return 0


def _commands(folder: Path, address: str, port: int) -> dict[str, list[str]]:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1]}
    output = {"name": "probabilities", "parameters": {"binary_data": True}}
    document = {"inputs": [tensor | {"parameters": {"binary_data_size": len(PIXELS)}}], "outputs": [output]}
    head = json.dumps(document).encode()
    (folder / "http").write_bytes(head + PIXELS)
    request = message("ModelInferRequest")(model_name=MODEL, raw_input_contents=[PIXELS])
    request.inputs.add(**tensor)
    request.outputs.add(name="probabilities")
    data = request.SerializeToString()
    (folder / "grpc").write_bytes(b"\0" + len(data).to_bytes(4, "big") + data)  # uncompressed, and its length
    length = f"inference-header-content-length: {len(head)}"
    http = ["-d", str(folder / "http"), "--h1", "-H", length, f"{address}/v2/models/{MODEL}/infer"]
    method = f"http://127.0.0.1:{port}/inference.GRPCInferenceService/ModelInfer"
    grpc = ["-d", str(folder / "grpc"), "-H", "content-type: application/grpc", "-H", "te: trailers", method]
    return {
        way: ["h2load", "-c", str(connections), "-m", str(at_once), *(http if way == "HTTP" else grpc)]
        for way, (connections, at_once) in WAYS.items()
    }


def _rate(command: list[str], requests: int) -> float:
    printed = subprocess.run([*command, "-n", str(requests)], capture_output=True, text=True, check=True).stdout
    good, rate = re.search(r"(\d+) 2xx", printed), re.search(r"([\d.]+) req/s", printed)
    if good is None or rate is None or int(good[1]) != requests:
        raise RuntimeError(printed)
    return float(rate[1])


if __name__ == "__main__":
    sys.exit(main())
