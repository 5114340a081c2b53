"""Memory and CPU that this process may use: the limits of its cgroup and of the groups above it.

    /proc/self/cgroup      the group of this process, in each hierarchy
    /proc/self/mountinfo   where each hierarchy is mounted, and which group is the root of that mount

Supports cgroup v1 and v2. The tightest limit of all groups counts.
"""

import os
from collections.abc import Iterator
from pathlib import Path

_FALLBACK = 4 << 30  # bytes, if the machine's memory is unknown
_NO_LIMIT = 1 << 60  # v1 writes "no limit" as a number near 2⁶³


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes of memory that this process may use; None without a limit."""
    limits = [limit for folder in _folders("memory", root) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def memory_left(root: Path = Path("/")) -> int | None:
    """Bytes that are still free; None without a limit. Cached files count as free."""
    left = [limit - _used(folder) for folder in _folders("memory", root) if (limit := _limit(folder)) is not None]
    return None if not left else max(0, min(left))


def total_memory(root: Path = Path("/")) -> int:
    """Bytes: the limit, or without one the machine's memory."""
    return memory_limit(root) or _machine_memory()


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPU time as a number of CPUs; None without a quota."""
    quotas = [quota for folder in _folders("cpu", root) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def _machine_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return _FALLBACK


def _limit(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        text = _read(folder / name)
        if text.isdigit() and int(text) < _NO_LIMIT:
            return int(text)
    return None


def _used(folder: Path) -> int:
    fields = dict(line.split() for line in _read(folder / "memory.stat").splitlines() if len(line.split()) == 2)
    cached = fields.get("total_inactive_file") or fields.get("inactive_file") or "0"
    for name in ("memory.current", "memory.usage_in_bytes"):
        text = _read(folder / name)
        if text.isdigit():
            return max(0, int(text) - int(cached))
    return 0


def _quota(folder: Path) -> float | None:
    words = _read(folder / "cpu.max").split() or [
        _read(folder / "cpu.cfs_quota_us"),
        _read(folder / "cpu.cfs_period_us"),
    ]
    try:
        quota, period = map(float, words)
    except ValueError:  # "max", or the files do not exist
        return None
    return quota / period if quota > 0 and period > 0 else None


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the groups that limit this process, from its own group upwards."""
    groups = [line.split(":", 2) for line in _read(root / "proc/self/cgroup").splitlines()]
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = [*after.split(" ", 2), "", ""][:3]
        mount_root, mount_point = before.split(" ")[3:5]
        if kind == "cgroup2":
            paths = [path for _, controllers, path in groups if not controllers]
        elif kind == "cgroup" and controller in options.split(","):
            paths = [path for _, controllers, path in groups if controller in controllers.split(",")]
        else:
            continue
        for path in paths:
            yield from _upwards(root / mount_point.lstrip("/"), mount_root.rstrip("/"), path)


def _upwards(mount_point: Path, mount_root: str, path: str) -> Iterator[Path]:
    """Folders from the group `path` up to the mount point, where the group `mount_root` is mounted."""
    below = path.removeprefix(mount_root) if path == mount_root or path.startswith(f"{mount_root}/") else ""
    folder = mount_point / below.lstrip("/")
    if ".." in folder.parts or not folder.is_dir():  # the group is outside this mount
        folder = mount_point
    yield folder
    while folder != mount_point:
        folder = folder.parent
        yield folder


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
