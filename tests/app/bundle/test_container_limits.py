"""Limits of containers in cgroup v1 and v2: of the group itself, of groups above it, and below another mount root."""

from pathlib import Path

import pytest

from app.bundle.container_limits import cpu_quota, memory_left, memory_limit

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = [
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
]
NONE_V1 = 9223372036854771712


def write_files(root: Path, groups: list[str], mounts: list[str], files: dict[str, object]) -> Path:
    files = {"proc/self/cgroup": "\n".join(groups), "proc/self/mountinfo": "\n".join(mounts), **files}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


def test_without_a_container_there_is_no_limit(tmp_path: Path) -> None:
    assert (memory_limit(tmp_path), memory_left(tmp_path), cpu_quota(tmp_path)) == (None, None, None)


@pytest.mark.parametrize("content", ["max", "garbage", ""])
def test_a_limit_that_is_not_a_number_is_ignored(tmp_path: Path, content: str) -> None:
    files = {"sys/fs/cgroup/a/memory.max": content, "sys/fs/cgroup/a/cpu.max": content}
    root = write_files(tmp_path, ["0::/a"], [V2], files)
    assert (memory_limit(root), memory_left(root), cpu_quota(root)) == (None, None, None)


def test_the_tightest_limit_of_all_groups_above_counts(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/pod/graft/memory.max": 512 << 20,
        "sys/fs/cgroup/pod/memory.max": 256 << 20,
        "sys/fs/cgroup/pod/memory.current": 100 << 20,
        "sys/fs/cgroup/pod/memory.stat": f"anon 1\ninactive_file {30 << 20}",
        "sys/fs/cgroup/pod/graft/cpu.max": "150000 100000",
        "sys/fs/cgroup/pod/cpu.max": "max 100000",
    }
    root = write_files(tmp_path, ["0::/pod/graft"], [V2], files)
    assert memory_limit(root) == 256 << 20
    assert memory_left(root) == (256 - 100 + 30) << 20
    assert cpu_quota(root) == 1.5


def test_in_a_container_its_group_is_the_root_of_the_mount(tmp_path: Path) -> None:
    """Without a cgroup namespace, /proc/self/cgroup has the path on the host."""
    mounted = [line.replace(" / /sys", " /docker/4f2a /sys") for line in V1]
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": 512 << 20,
        "sys/fs/cgroup/memory/memory.usage_in_bytes": 112 << 20,
        "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": 200000,
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": 100000,
    }
    groups = ["4:memory:/docker/4f2a", "3:cpu,cpuacct:/docker/4f2a", "0::/docker/4f2a"]
    root = write_files(tmp_path, groups, mounted, files)
    assert (memory_limit(root), memory_left(root), cpu_quota(root)) == (512 << 20, 400 << 20, 2.0)


def test_in_v1_a_large_number_means_no_limit_and_minus_one_no_quota(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": NONE_V1,
        "sys/fs/cgroup/memory/memory.limit_in_bytes": NONE_V1,
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": -1,
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": 100000,
    }
    root = write_files(tmp_path, ["4:memory:/job", "3:cpu,cpuacct:/job"], V1, files)
    assert (memory_limit(root), cpu_quota(root)) == (None, None)


@pytest.mark.parametrize("path", ["/../../other", "/elsewhere"])
def test_a_group_outside_the_mount_is_not_searched_elsewhere(tmp_path: Path, path: str) -> None:
    root = write_files(tmp_path, [f"0::{path}"], [V2], {"sys/fs/cgroup/memory.max": 64 << 20, "other/memory.max": 1})
    assert memory_limit(root) == 64 << 20


def test_the_limits_of_this_process_can_be_read() -> None:
    limit, left = memory_limit(), memory_left()
    assert (limit is None) == (left is None)
    assert limit is None or limit > 1 << 20
