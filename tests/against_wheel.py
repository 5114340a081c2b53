"""What packaging alone can break: builds the wheel, installs it apart from the sources, and tests what came of it.

`make test-wheel` runs this, in three steps:

1. Every file of `app/` and `training/` that git knows is in the wheel, byte for byte, and nothing else is.
2. The installed commands start, away from the repository.
3. In a copy of the tree without sources, the tests run that need files beside the code or the package's own place: the
   service as a process and its pages, the public interface, the recipes, and a run from images to a bundle's report.

The other tests would find the same files here as in the tree, where `make test` has run them. Arguments replace the
tests of the third step.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("app", "training")
COMMANDS = {"graft-serve": "--models", "graft-train": "compare"}  # → what its help names
TESTS = [
    "tests/app/test_main.py",  # the service as a process, the folder of models
    "tests/app/api/routes/test_pages.py",  # pages, scripts, stylesheets, samples
    "tests/test_interface.py",  # routes, settings and options of every command
    "tests/training/test_recipe.py",  # the recipes, and those of the committed bundles
    "tests/training/report",  # a whole run, its bundle, its report with the stylesheet
]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        work, built, site = (Path(folder) / name for name in ("tree", "dist", "site"))
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)]
        subprocess.run(build, cwd=ROOT, check=True)
        [wheel] = built.glob("graft-*.whl")
        complaints = [*differences(wheel), *failures(wheel, site)]
        copy_tree(work)
        environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        options = ["-q", "-p", "no:cacheprovider", "-n", "auto", "--dist", "loadfile", "--durations=20"]
        command = [sys.executable, "-m", "pytest", *options, *(sys.argv[1:] or TESTS)]
        status = subprocess.run(command, cwd=work, env=environment).returncode
        for line in complaints:
            print(line, file=sys.stderr)
        return status or bool(complaints)


def tracked() -> list[str]:
    """The files that git knows or would add, as they are now."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def packaged(name: str) -> bool:
    return name.startswith(tuple(f"{package}/" for package in PACKAGES))


def differences(wheel: Path) -> list[str]:
    """What the wheel lacks, has changed or should not have, a line each."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {name: (ROOT / name).read_bytes() for name in tracked() if packaged(name)}
    return [
        f"{name}: {'missing from the wheel' if name not in files else 'only in the wheel'}"
        if (name in files) != (name in wanted)
        else f"{name}: not the same in the wheel"
        for name in sorted(files.keys() | wanted.keys())
        if files.get(name) != wanted.get(name)
    ]


def failures(wheel: Path, site: Path) -> list[str]:
    """Installs the wheel into `site`; the commands that do not print their help, a line each."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-index", "--no-deps", "--target", str(site), str(wheel)], check=True)
    found = []
    for name, word in COMMANDS.items():
        command = [sys.executable, str(site / "bin" / name), "--help"]
        environment = {**os.environ, "PYTHONPATH": str(site)}
        done = subprocess.run(command, cwd=site.parent, env=environment, capture_output=True, text=True)
        if done.returncode or word not in done.stdout:
            found.append(f"{name} --help: exit {done.returncode}: {done.stderr.strip() or done.stdout}")
    return found


def copy_tree(work: Path) -> None:
    for name in tracked():
        if not packaged(name):
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_bytes((ROOT / name).read_bytes())


if __name__ == "__main__":
    sys.exit(main())
