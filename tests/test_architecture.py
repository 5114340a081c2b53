"""Imports run one way, as drawn here; every file's are read, those inside functions too."""

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

import app
import training

PARENT = Path(app.__file__).parents[1]
LEAVES = {"app.errors", "app.settings", "app.telemetry"}

# Module or package → what of ours it may import, besides itself. serving → main → api → inference → bundle → errors.
MAY_IMPORT = {
    "app.errors": set(),
    "app.telemetry": set(),
    "app.settings": {"app.errors"},
    "app.bundle": {"app.errors"},
    "app.inference": {"app.bundle", *LEAVES},
    "app.api": {"app.inference", "app.bundle", *LEAVES},
    "app.main": {"app", "app.api", "app.inference", "app.bundle", *LEAVES},
    "app.score": {"app.inference", "app.bundle", *LEAVES},
    "app.serving.stop_listening": set(),
    "app.serving.memory": set(),
    "app.serving.healthcheck": set(),
    "app.serving.workers": {"app.serving.stop_listening", "app.telemetry"},
    "app.serving": {
        "app",
        "app.main",
        "app.api",
        "app.bundle",
        "app.serving.stop_listening",
        "app.serving.memory",
        *LEAVES,
    },
    "app.__main__": {"app", "app.score", "app.serving", "app.serving.workers", *LEAVES},
    "app": {"app.serving.healthcheck"},
    "training": set(),
}

# The rooms of training, from the ground up: each may import those before it, and of the service app.bundle alone.
ROOMS = (
    *("errors", "malloc", "ranks", "progress", "recipe"),
    *("data", "networks"),
    "measure",  # a bundle over a set
    "score",  # what anomaly score and prototypes need to be fitted
    "learning",  # everything that changes weights
    "publish",  # weights → proven bundle
    "compare",  # arms and their results
    "report",  # is handed results
    "shots",
    "feedback",  # what people said of answers → the next version
    "label",  # which images to label, or whose labels to check
    "search",  # what recipes reach on folds of the training images
    "tracking",  # runs beside each other
    "run",
    "auto",  # a folder in, a bundle out
    *("commands", "__main__"),
)
MAY_IMPORT |= {
    f"training.{room}": {"app.bundle", "training", *(f"training.{lower}" for lower in ROOMS[:number])}
    for number, room in enumerate(ROOMS)
}
MAY_IMPORT["training.recipe"] = {"app.bundle", "training.errors"}

# Room → its modules that other rooms import. Every other module is private to its room.
OPEN = {
    "data": {
        *("checks", "download", "folder", "folds", "imageset", "inspection", "masks", "material", "pictures"),
        *("named", "read", "resolution", "splits", "storage", "table"),
    },
    "networks": {"autoencoder", "dense", "encoded", "graph", "head", "spans", "unet", "weights"},
    "measure": {
        "clusters",
        "components",
        "defects",
        "detection",
        "domains",
        "encodings",
        "intervals",
        "likelihood",
        "maps",
        "metrics",
        "outputs",
        "probes",
        "review",
        "sets",
        "several",
        "drawn_domains",
        "tiled",
    },
    "score": {
        *("anomaly", "codes", "correction", "distances", "drift", "evidence", "examples", "label_thresholds"),
        *("latent_map", "marks", "patches", "prototypes", "reference", "sets", "temperature", "thresholds"),
    },
    "learning": {
        *("distil", "finetune", "generate", "inference", "journal", "label_loss", "linear"),
        *("normalisation", "pretrain", "stages", "teacher", "workshop"),
    },
    "publish": {
        "base",
        "card",
        "crossed",
        "deliver",
        "draft",
        "provenance",
        "recalibrate",
        "reindex",
        "renew",
        "revise",
    },
    "compare": {"arms", "bench", "results"},
    "report": {"charts", "comparison", "gather", "sections"},
    "shots": {"bases", "graft"},
    "feedback": {"learn"},
    "label": {"label"},
    "search": {"crossing", "race", "tune"},
    "auto": {"build", "contenders", "look"},
    "tracking": {"index", "listing"},
}

# Work where torch is not installed: nothing that they import at their head leads to it.
WITHOUT_TORCH = (
    "training.__main__",
    "training.data",
    "training.score",
    "training.shots",
    "training.feedback",
    "training.tracking",
)

# Package of others → the only places of ours that may import it.
KEPT_TO = {
    "fastapi": ("app.main", "app.api"),
    "starlette": ("app.main", "app.api"),
    "uvicorn": ("app.serving",),
    "python_multipart": ("app.api.multipart",),
    "grpc": ("app.api.rpc",),
    "grpc_health": ("app.api.rpc",),
    "grpc_reflection": ("app.api.rpc",),
    "google": ("app.api.rpc",),
    "opentelemetry": ("app.telemetry.spans",),
    "onnxruntime": ("app.bundle.session", "training.publish.quantise"),
    "pyspng": ("app.bundle.decode",),
    "simplejpeg": ("app.bundle.decode",),
    "PIL": ("app.bundle",),
    "pyarrow": ("app.score.parquet", "app.score.storage"),
    "ray": ("app.score.on_ray",),
    "torch": (
        *("training.ranks", "training.networks", "training.learning", "training.publish", "training.search"),
        "training.auto",
        *("training.measure.likelihood", "training.measure.probes", "training.compare.methods"),
    ),
    "onnx": (
        *("training.networks.graph", "training.publish.quantise"),
        *(
            "training.score.correction",
            "training.score.evidence",
            "training.score.marks",
            "training.score.patches",
            "training.score.prototypes",
        ),
        "training.score.onnx_model",
    ),
    "optuna": ("training.search",),
    "httpx": ("training.data.download", "training.commands"),
    "rich": ("training.progress",),
    "pydantic_settings": ("app.settings",),
    "prometheus_client": ("app.telemetry.metrics", "app.telemetry.multiprocess"),
}


def modules() -> dict[str, Path]:
    found = {}
    for package in (app, training):
        for path in Path(package.__file__ or "").parent.rglob("*.py"):
            parts = path.relative_to(PARENT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: set[str]) -> set[str]:
    """Full names; `from app.api.routes import health` is of app.api.routes.health where that is a module."""
    return imports_of(ast.walk(ast.parse(path.read_text())), known)


def imports_of(nodes: Iterable[ast.AST], known: set[str]) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import: {ast.unparse(node)}"
            assert node.module
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in known else node.module)
    return found


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def home(name: str) -> str:
    """The longest entry of MAY_IMPORT that the module belongs to."""
    return max((entry for entry in MAY_IMPORT if inside(name, entry)), key=len)


FOUND = modules()


def allowed(name: str, imported: str) -> bool:
    """Whether the module may import the other one, of ours or of others."""
    if inside(imported, "app") or inside(imported, "training"):
        own, target = home(name), home(imported)
        return target == own or target in MAY_IMPORT[own]
    if inside(imported, "onnxruntime") and name == "training.publish.quantise":
        return inside(imported, "onnxruntime.quantization")
    places = KEPT_TO.get(imported.split(".")[0])
    return places is None or any(inside(name, place) for place in places)


@pytest.mark.parametrize("name", sorted(FOUND))
def test_imports_run_one_way(name: str) -> None:
    for imported in imports(FOUND[name], set(FOUND)):
        assert allowed(name, imported), f"{name} imports {imported}"


@pytest.mark.parametrize(
    ("name", "imported"),
    [
        ("training.measure.metrics", "training.score.anomaly"),  # a room above
        ("training.compare.results", "training.report.charts"),
        ("training.publish.deliver", "training.report.sections"),
        ("training.report.sections", "training.run"),
        ("training.recipe", "training.progress"),
        ("training.data.folder", "app.inference"),  # of the service all but app.bundle
        ("training.shots.graft", "torch"),
        ("training.publish.quantise", "onnxruntime"),
        ("app.bundle.store", "training.recipe"),
        ("app.inference.batcher", "fastapi"),
    ],
)
def test_an_import_that_breaks_the_rules_is_found(name: str, imported: str) -> None:
    assert not allowed(name, imported)


def used_from_outside(known: dict[str, set[str]]) -> dict[str, set[str]]:
    """Room of training → those of its modules that others import; `known` are imports by module."""
    used: dict[str, set[str]] = {}
    for importer, imported in known.items():
        for name in imported & known.keys():
            room, _, module = name.removeprefix("training.").partition(".")
            if room in ROOMS and module and not inside(importer, f"training.{room}"):
                used.setdefault(room, set()).add(module)
    return used


def test_a_module_is_private_to_its_room_unless_another_room_uses_it() -> None:
    known = {name: imports(path, set(FOUND)) for name, path in FOUND.items()}
    assert used_from_outside(known) == OPEN
    known["training.run"].add("training.report.html")
    assert used_from_outside(known)["report"] == OPEN["report"] | {"html"}


def imports_at_its_head(name: str) -> set[str]:
    """Neither those inside functions nor those for the type checker."""
    tree = ast.parse(FOUND[name].read_text())
    kept = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    packages = {name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)}  # each runs its __init__
    return imports_of(kept, set(FOUND)) | packages


@pytest.mark.parametrize("name", [name for name in FOUND if any(inside(name, room) for room in WITHOUT_TORCH)])
def test_what_works_without_torch_never_imports_it(name: str) -> None:
    reached, left = {}, {name: name}
    while left:
        module, way = left.popitem()
        reached[module] = way
        assert module.split(".")[0] != "torch", way
        if module in FOUND:
            left |= {each: f"{way} → {each}" for each in imports_at_its_head(module) if each not in reached}


# Callees that take any number of arguments; torch.nn's layers take theirs in an order that everybody knows.
ANY_NUMBER = {"_route", "documented", "failures", "parsed", "in_context", "Context().run", "log.info", "log.log"}


@pytest.mark.parametrize("name", sorted(FOUND))
def test_no_call_has_five_arguments_without_names(name: str) -> None:
    for node in ast.walk(ast.parse(FOUND[name].read_text())):
        if isinstance(node, ast.Call) and sum(not isinstance(each, ast.Starred) for each in node.args) > 4:
            callee = ast.unparse(node.func)
            assert callee in ANY_NUMBER or callee.startswith("nn."), f"{name}:{node.lineno}: {callee}"


def test_every_rule_is_about_something_that_is_there() -> None:
    used = {imported.split(".")[0] for path in FOUND.values() for imported in imports(path, set(FOUND))}
    assert set(KEPT_TO) <= used
    assert {home(name) for name in FOUND} == set(MAY_IMPORT)


def test_tests_mirror_the_source() -> None:
    """A test file is named after the module that it tests."""
    tests = Path(__file__).parent
    for folder in ("app", "training"):
        for path in (tests / folder).rglob("test_*.py"):
            tested = ".".join((*path.relative_to(tests).parts[:-1], path.stem.removeprefix("test_")))
            assert tested in FOUND, path


WALL_CLOCKS = {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "datetime.now", "datetime.utcnow"}
SERVED = sorted(name for name in FOUND if inside(name, "app"))


@pytest.mark.parametrize("name", SERVED)
def test_no_deadline_hangs_on_a_clock_that_is_set(name: str) -> None:
    """A step of the wall clock moves nothing: it is read for the log alone, by logging itself."""
    tree = ast.parse(FOUND[name].read_text())
    named = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "time"]
    assert not WALL_CLOCKS & {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not WALL_CLOCKS & {f"time.{alias.name}" for node in named for alias in node.names}


@pytest.mark.parametrize("name", SERVED)
def test_nothing_that_is_served_is_unpickled(name: str) -> None:
    """A pickle runs what its maker wrote; arrays are read without, and said to be."""
    tree = ast.parse(FOUND[name].read_text())
    roots = {each.split(".")[0] for each in imports(FOUND[name], set(FOUND))}
    assert not {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch"} & roots
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"np.load", "np.save", "np.fromfile", "numpy.load"}:
            text = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert text.get("allow_pickle") == "False", f"{name}:{node.lineno}"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"eval", "exec", "compile", "__import__"}, f"{name}:{node.lineno}"
