"""The public interface is the recorded one: routes, schemas, options, settings, metrics and the bundle's manifest.

`interface.json` was recorded before the modules moved into rooms. What it lists must stay as it is; new things may be
added. To record additions too, on a tree that passes this test:

    PYTHONPATH=.:tests python tests/test_interface.py > tests/interface.json
"""

import contextlib
import copy
import gc
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client.metrics import MetricWrapperBase
from support import save_tiny, serving

from app.__main__ import main as app
from app.bundle import SCHEMA_VERSION, Manifest
from app.main import create_app
from app.settings import PREFIX, Settings
from training.__main__ import main as training

FILE = Path(__file__).parent / "interface.json"
Json = dict[str, Any]

# Intended changes: place in the record → reason. A line for something that did not change fails the test.
_HEAD = "HEAD is answered for every GET by the middleware head, and no longer a method of single routes"
_KEYS = "a key on the command line is shown to everybody by ps: refused, with the name of the variable"
CHANGED: dict[str, str] = {
    "manifest > version": (
        "2 adds input.padding and provenance.weights, 3 graphs.patches, 4 input.tiles, 5 classifier.thresholds, "
        "6 index and codes, all optional; older bundles load unchanged"
    ),
    "routes > /": _HEAD,
    "routes > /docs": _HEAD,
    "routes > /models/{name}": _HEAD,
    "command line > python -m app > options > --api-keys": _KEYS,
    "command line > python -m app > options > --metrics-key": _KEYS,
}


def interface(models: Path) -> Json:
    with serving(Settings(models=models)) as client:
        description, page = client.get("/openapi.json").json(), client.get("/metrics").text
    application = create_app(Settings(models=models))
    return {
        "routes": routes(application),
        "operations": operations(description),
        "schemas": {name: properties(schema) for name, schema in description["components"]["schemas"].items()},
        "command line": {
            "python -m app": options(app, []),
            "python -m app score": options(app, ["score"]),
            "python -m training": options(training, []),
            **{f"python -m training {name}": options(training, [name]) for name in options(training, [])["commands"]},
        },
        "settings": {f"{PREFIX}{name.upper()}": str(field.default) for name, field in Settings.model_fields.items()},
        "metrics": metrics(page, labels_within(application.state.metrics)),
        "manifest": {
            "version": SCHEMA_VERSION,
            "manifest": properties(Manifest.model_json_schema()),
            **{name: properties(schema) for name, schema in Manifest.model_json_schema()["$defs"].items()},
        },
    }


def routes(within: Any, prefix: str = "") -> Json:
    """Path → methods; of a mounted folder the path alone."""
    found: Json = {}
    for route in within.routes:
        path = prefix + str(getattr(route, "path", ""))
        found[path] = sorted({*found.get(path, ()), *(getattr(route, "methods", None) or ())})
        inner = getattr(route, "original_router", route)  # FastAPI keeps what was included as it was
        found |= routes(inner, path) if getattr(inner, "routes", None) else {}
    return {path: methods for path, methods in found.items() if path}


def operations(description: Json) -> Json:
    """`POST /v1/classify` → its parameters, the bodies that it takes, and the bodies of its answers by status."""
    found = {}
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parameters = {f"{p['in']} {p['name']}": used(p.get("required")) for p in operation.get("parameters", ())}
            found[f"{method.upper()} {path}"] = {
                "parameters": parameters,
                "body": bodies(description, operation.get("requestBody", {})),
                "answers": {status: bodies(description, each) for status, each in operation["responses"].items()},
            }
    return found


def bodies(description: Json, holder: Json) -> Json:
    """Media type → the properties of its schema, whether it is written there or has a name."""
    found = {}
    for kind, body in holder.get("content", {}).items():
        schema = body.get("schema", {})
        named = schema.get("$ref", "").rpartition("/")[2]
        found[kind] = properties(description["components"]["schemas"][named] if named else schema)
    return found


def properties(schema: Json) -> Json:
    """Name → whether it is required; of an enumeration its values."""
    if "enum" in schema:
        return {str(value): "value" for value in schema["enum"]}
    return {name: used(name in schema.get("required", ())) for name in schema.get("properties", ())}


def used(required: object) -> str:
    return "required" if required else "optional"


def options(main: Callable[[Sequence[str]], int], command: list[str]) -> Json:
    """Read from --help: options with what they take, positional arguments, and the commands where there are some."""
    printed = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000"  # one line for each
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*command, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        os.environ |= {} if before is None else {"COLUMNS": before}
    text = printed.getvalue()
    usage = re.sub(
        r"\[[^\[\]]*(\[[^\[\]]*\][^\[\]]*)*\]", "", text.partition("\n\n")[0]
    )  # what need not be given, left out
    found: Json = {"options": {}, "positional": {}, "commands": {}}
    part = ""
    for line in text.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            part = line
        head = re.split(r"\s{2,}", line.strip())[0]
        if line.startswith("  -"):
            names = re.findall(r"(?<![\w-])--?[a-z][\w-]*", head)
            takes = re.sub(r"(?<![\w-])--?[a-z][\w-]*,?\s*", "", head)
            takes = "nothing" if not takes else takes.split()[-1] if takes.startswith("{") else "a value"
            found["options"] |= {n: ("required, " if n in usage.split() else "") + takes for n in names}
        elif part.startswith("positional") and re.match(r" {4}\S", line) and "COMMAND" in usage:
            found["commands"][head] = "command"
        elif part.startswith("positional") and re.match(r"  \S", line):
            found["positional"][head] = "required"
    return found


def metrics(page: str, labels: dict[str, list[str]]) -> Json:
    """Name → type and labels. Names are those of the page for Prometheus, which shows a label once it has values."""
    found = re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE)
    return {name: {"type": kind, "labels": labels.get(name.removesuffix("_total"), [])} for name, kind in found}


def labels_within(holder: object) -> dict[str, list[str]]:
    """Name → labels of every metric that is reached from the object, however it keeps them."""
    found: dict[str, list[str]] = {}
    left, seen = [holder], set[int]()
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, type):
            continue
        seen.add(id(each))
        if isinstance(each, MetricWrapperBase):
            found[each._name] = sorted(each._labelnames)
        elif isinstance(each, dict | list | tuple | set) or type(each).__module__.startswith(("app.", "prometheus_")):
            left += gc.get_referents(each)
    return found


def differences(recorded: Json, now: Json, place: str = "") -> Iterator[tuple[str, str]]:
    """(where, what) of all that was recorded and is missing or different now. What is new is not looked at."""
    for name, before in recorded.items():
        where = f"{place} > {name}" if place else name
        if name not in now:
            yield where, "is missing"
        elif isinstance(before, dict) and isinstance(now[name], dict):
            yield from differences(before, now[name], where)
        elif isinstance(before, list) and isinstance(now[name], list):
            yield from ((where, f"is without {each}") for each in before if each not in now[name])
        elif before != now[name]:
            yield where, f"was {before!r}, is {now[name]!r}"


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> Json:
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder)
    return interface(folder)


@pytest.fixture(scope="module")
def recorded() -> Json:
    return cast(Json, json.loads(FILE.read_text()))


def test_nothing_that_was_recorded_is_missing_or_different(recorded: Json, now: Json) -> None:
    found = dict(differences(recorded, now))
    assert found.keys() - CHANGED.keys() == set(), found
    assert CHANGED.keys() - found.keys() == set(), "these are as they were: take them out of CHANGED"


DOCTORED: list[Callable[[Json], object]] = [
    lambda it: it["routes"].pop("/v1/classify"),
    lambda it: it["routes"]["/v2/health/live"].remove("GET"),
    lambda it: it["operations"].pop("POST /v1/encode"),
    lambda it: it["operations"]["POST /v1/classify"]["parameters"].pop("query top_k"),
    lambda it: it["operations"]["POST /v1/classify"]["body"].pop("multipart/form-data"),
    lambda it: it["operations"]["POST /v1/classify"]["answers"].pop("429"),
    lambda it: it["operations"]["POST /v1/classify"]["answers"]["429"]["application/problem+json"].pop("detail"),
    lambda it: it["schemas"].pop("ClassifyResult"),
    lambda it: it["schemas"]["ClassifyResult"].pop("label"),
    lambda it: it["schemas"]["ClassifyResult"].update(label="optional"),
    lambda it: it["command line"]["python -m app"]["options"].pop("--max-body-mb"),
    lambda it: it["command line"]["python -m app score"]["options"].update({"--strict": "a value"}),
    lambda it: it["command line"]["python -m app score"]["options"].update({"--operation": "{predict,classify}"}),
    lambda it: it["command line"]["python -m training"]["commands"].pop("calibrate"),
    lambda it: it["command line"]["python -m training run"]["options"].pop("--resume"),
    lambda it: it["command line"]["python -m training run"]["positional"].pop("RECIPE"),
    lambda it: it["settings"].pop("GRAFT_PORT"),
    lambda it: it["settings"].update(GRAFT_PORT="8001"),
    lambda it: it["metrics"].pop("graft_requests_total"),
    lambda it: it["metrics"]["graft_requests_total"]["labels"].remove("status"),
    lambda it: it["metrics"]["graft_request_seconds"].update(type="gauge"),
    lambda it: it["manifest"].update(version=0),
    lambda it: it["manifest"]["Provenance"].pop("seed"),
    lambda it: it["manifest"]["Anomaly"].update(threshold="optional"),
]


@pytest.mark.parametrize("doctor", DOCTORED)
def test_what_vanishes_or_changes_is_noticed(doctor: Callable[[Json], object], recorded: Json) -> None:
    changed = copy.deepcopy(recorded)
    doctor(changed)
    assert len(list(differences(recorded, changed))) == 1


def test_what_is_new_is_allowed(recorded: Json) -> None:
    more = copy.deepcopy(recorded)
    more["routes"]["/v3"] = ["GET"]
    more["schemas"]["ClassifyResult"]["hint"] = "optional"
    more["command line"]["python -m training run"]["options"]["--quiet"] = "nothing"
    assert list(differences(recorded, more)) == []


def test_labels_are_found_though_the_collector_was_frozen(models: Path) -> None:
    """As the service does after start: gc.get_objects lists nothing that is frozen."""
    application = create_app(Settings(models=models))
    gc.freeze()
    try:
        assert labels_within(application.state.metrics)["graft_model_loads"] == ["model", "outcome"]
    finally:
        gc.unfreeze()


def test_no_path_of_a_machine_is_recorded() -> None:
    assert not re.search(r"/(home|root|tmp|usr|work|Users)/", FILE.read_text())


def text(value: Any, indent: str = "") -> str:
    """JSON, sorted; what holds no object of its own on one line."""
    if not isinstance(value, dict) or not any(isinstance(each, dict) for each in value.values()):
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    lines = [f"{indent}  {json.dumps(key)}: {text(value[key], indent + '  ')}" for key in sorted(value)]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        save_tiny(Path(folder))
        print(text(interface(Path(folder))))
