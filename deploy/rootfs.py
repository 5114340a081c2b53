"""Copies this Python and some folders, with every library that they link to, into an empty root: all of an image.

    python rootfs.py TARGET FOLDER…

The last stage of the Dockerfile starts from it: no shell, no package manager. `ldd` misses libraries that compiled code
opens by name; the service needs one of those, libgcc, which BY_NAME lists.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

# Parts of the standard library and of packages that only developers need, by name or by ending.
LEFT_OUT = {"test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data", "f2py"}
LEFT_OUT |= {"site-packages", "dist-packages"}  # of the base's own Python, below its standard library
ENDS = re.compile(r".*\.(pyi|pxd|a|h|hpp|c|pyx)$|config-.*")
BY_NAME = ("libgcc_s.so.1",)
ETC = {
    "passwd": "root:x:0:0::/:/nonexistent\ngraft:x:10001:10001::/graft:/nonexistent\n",
    "group": "root:x:0:\ngraft:x:10001:\n",
    "nsswitch.conf": "hosts: files dns\n",
}


def main(target: Path, folders: list[Path]) -> None:
    target.mkdir()
    library = Path(sysconfig.get_path("stdlib"))
    for top in Path("/").iterdir():  # where /lib is a link to usr/lib, it is one here
        if top.is_symlink():
            (target / top.name).symlink_to(os.readlink(top))
    for folder in folders:
        copy_folder(folder, target, left_out=LEFT_OUT - {"site-packages"})
    copy_folder(library, target, left_out=LEFT_OUT)
    for link in chain(Path(sys.executable)):
        copy_file(link, target)
    programs = [path for path in target.rglob("*") if path.is_file() and not path.is_symlink() and is_elf(path)]
    for needed in libraries(programs):
        if not needed.is_relative_to(target):  # what a package carries itself was copied with it
            copy_file(needed, target, follow=True)
    for name, text in ETC.items():
        (target / "etc").mkdir(exist_ok=True)
        (target / "etc" / name).write_text(text)
    shutil.copy("/etc/ld.so.cache", target / "etc")
    (target / "tmp").mkdir(mode=0o1777)
    (target / "tmp").chmod(0o1777)


def copy_folder(folder: Path, target: Path, left_out: set[str]) -> None:
    def ignored(_: str, names: list[str]) -> set[str]:
        return {name for name in names if name in left_out or ENDS.fullmatch(name)}

    shutil.copytree(
        folder, target / folder.relative_to("/"), symlinks=True, ignore=ignored, ignore_dangling_symlinks=True
    )


def copy_file(path: Path, target: Path, follow: bool = False) -> None:
    copied = target / path.relative_to("/")
    if not os.path.lexists(copied):
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copied, follow_symlinks=follow)


def chain(path: Path) -> Iterator[Path]:
    """A path, and where it leads, link by link."""
    yield path
    while path.is_symlink():
        path = Path(os.path.normpath(path.parent / os.readlink(path)))
        yield path


def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def libraries(programs: Iterable[Path]) -> set[Path]:
    """What they link to; the loader itself is among it."""
    found: set[Path] = set()
    for program in programs:
        listed = said("ldd", program)
        found |= {Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listed, re.MULTILINE)}
    found |= {Path(path) for path in re.findall(r"=> (\S+)", said("ldconfig", "-p")) if Path(path).name in BY_NAME}
    return {path.parent.resolve() / path.name for path in found}  # `/lib/x` and `/usr/lib/x` are one file


def said(*command: str | Path) -> str:
    """Standard output, whatever the exit code: ldd refuses what is linked to nothing."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603 - names of our own


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
