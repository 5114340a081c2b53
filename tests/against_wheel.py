"""Builds the wheel, unpacks it apart, and runs tests against it in a copy of the tree that has no sources.

`make test-wheel` runs this; what the wheel forgets to carry, they miss: the whole service, every module, the recipes,
a run from images to a bundle. How workers live and die, and training in all its modes, is the same code from wherever
it comes, and takes minutes.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("app", "training")
TESTS = [
    *(f"tests/app/{part}" for part in ("bundle", "score", "test_main.py", "api/test_fast_path.py")),
    *(f"tests/app/api/routes/test_{module}.py" for module in ("models", "openapi", "operations", "pages")),
    *("tests/test_architecture.py", "tests/test_interface.py", "tests/test_models.py"),
    *(f"tests/training/{part}" for part in ("data", "measure", "publish", "report", "score", "test_recipe.py")),
]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        work, built, unpacked = (Path(folder) / name for name in ("tree", "dist", "site"))
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)], cwd=ROOT, check=True
        )
        [wheel] = built.glob("graft-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if not name.startswith(tuple(f"{package}/" for package in PACKAGES)) and (ROOT / name).is_file():
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                (work / name).write_bytes((ROOT / name).read_bytes())
        environment = {**os.environ, "PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"}
        options = ["-q", "-p", "no:cacheprovider", "-n", "auto", "--dist", "loadfile"]
        command = [sys.executable, "-m", "pytest", *options, *(sys.argv[1:] or TESTS)]
        return subprocess.run(command, cwd=work, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
