"""Imports run one way, as drawn here; every file's are read, those inside functions too."""

import ast
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
    "app.serving.listener": set(),
    "app.serving.memory": set(),
    "app.serving.healthcheck": set(),
    "app.serving.workers": {"app.serving.listener", "app.telemetry"},
    "app.serving": {"app", "app.main", "app.api", "app.bundle", "app.serving.listener", "app.serving.memory", *LEAVES},
    "app.__main__": {"app", "app.score", "app.serving", "app.serving.workers", *LEAVES},
    "app": {"app.serving.healthcheck"},
    "training": {"app.bundle"},
}

# Package of others → the only places of ours that may import it.
KEPT_TO = {
    "fastapi": ("app.main", "app.api"),
    "starlette": ("app.main", "app.api"),
    "uvicorn": ("app.serving",),
    "python_multipart": ("app.api.multipart",),
    "onnxruntime": ("app.bundle.session", "training.publish.quantise"),
    "pyspng": ("app.bundle.decode",),
    "PIL": ("app.bundle",),
    "pyarrow": ("app.score.parquet", "app.score.storage"),
    "ray": ("app.score.on_ray",),
    "torch": ("training",),
    "onnx": ("training.publish.onnx", "training.score.prototypes"),
    "httpx": ("training.data.download", "training.commands"),
    "rich": ("training.progress",),
    "pydantic_settings": ("app.settings",),
    "prometheus_client": ("app.telemetry.metrics",),
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
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
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


@pytest.mark.parametrize("name", sorted(FOUND))
def test_imports_run_one_way(name: str) -> None:
    own = home(name)
    for imported in imports(FOUND[name], set(FOUND)):
        if inside(imported, "app") or inside(imported, "training"):
            target = home(imported)
            assert target == own or target in MAY_IMPORT[own], f"{name} imports {imported}"
        places = KEPT_TO.get(imported.split(".")[0])
        if places is not None:
            assert any(inside(name, place) for place in places), f"{name} imports {imported}"
        if inside(imported, "onnxruntime") and name == "training.publish.quantise":
            assert inside(imported, "onnxruntime.quantization")


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
            said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert said.get("allow_pickle") == "False", f"{name}:{node.lineno}"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"eval", "exec", "compile", "__import__"}, f"{name}:{node.lineno}"
