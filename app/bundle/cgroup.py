"""What the container lets this process use: memory and CPU, by the limits of its own cgroup and of those above it.

    /proc/self/cgroup      which group it is in, for each hierarchy
    /proc/self/mountinfo   where that hierarchy is mounted, and which of its groups the mount shows as its root

cgroup v1 and v2. A group is bound by its own limits and by those of every group above it: the tightest one counts.
"""

import os
from collections.abc import Iterator
from pathlib import Path

_SHARE = 0.55  # the rest is for the models, for requests' bodies, and for the processes themselves
_SOME = 4 << 30  # bytes of a machine that does not say
_NO_LIMIT = 1 << 60  # v1 has no word for "none" but a number near 2⁶³


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that this process may have in memory; None without a limit."""
    limits = [limit for folder in _folders("memory", root) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def memory_left(root: Path = Path("/")) -> int | None:
    """Bytes that it may still take; None without a limit. What was read from files is given back when it is needed."""
    left = [limit - _used(folder) for folder in _folders("memory", root) if (limit := _limit(folder)) is not None]
    return None if not left else max(0, min(left))


def decoding_share(root: Path = Path("/")) -> int:
    """Bytes that decoding may take where nobody has said how many: of the container's memory, or of the machine's."""
    return int(_SHARE * (memory_limit(root) or _machine()))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time; None without a quota."""
    quotas = [quota for folder in _folders("cpu", root) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def _machine() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return _SOME


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
    except ValueError:  # "max", or no such files
        return None
    return quota / period if quota > 0 and period > 0 else None


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """Of the groups that bound this process by the controller, from its own upwards."""
    groups = [line.split(":", 2) for line in _read(root / "proc/self/cgroup").splitlines()]
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = [*after.split(" ", 2), "", ""][:3]
        shown, mounted = before.split(" ")[3:5]
        if kind == "cgroup2":
            own = [path for _, controllers, path in groups if not controllers]
        elif kind == "cgroup" and controller in options.split(","):
            own = [path for _, controllers, path in groups if controller in controllers.split(",")]
        else:
            continue
        for path in own:
            yield from _upwards(root / mounted.lstrip("/"), shown.rstrip("/"), path)


def _upwards(mounted: Path, shown: str, path: str) -> Iterator[Path]:
    """From the group down at `path` to the root of the mount, which shows the group `shown`."""
    below = path.removeprefix(shown) if path == shown or path.startswith(f"{shown}/") else ""
    folder = mounted / below.lstrip("/")
    if ".." in folder.parts or not folder.is_dir():  # of a group that this mount does not show
        folder = mounted
    yield folder
    while folder != mounted:
        folder = folder.parent
        yield folder


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
