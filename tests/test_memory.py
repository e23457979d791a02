"""What is measured about memory: from made-up trees of /proc and /sys, and in earnest.

The real measurements allow for what else a process does: they compare with hundreds of megabytes.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loky import _cgroup_linux, _memory_linux, memory

PAGE = os.sysconf("SC_PAGE_SIZE")
MB = 1_000_000
V1_MOUNT = "33 25 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V2_MOUNT = "34 25 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


class Tree:
    """A folder that stands for the root of a file system."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)

    def write(self, files: dict[str, object]) -> Tree:
        for name, content in files.items():
            path = Path(self.root + name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(content))
        return self


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def machine(tree: Tree) -> Tree:
    return tree.write({"/proc/meminfo": "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 700 kB\n"})


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cgroup_linux, "_last_directories", {})
    monkeypatch.setattr(memory, "_chosen", None)


# Processes ---------------------------------------------------------------------------------------


def test_anonymous_memory_is_what_is_resident_and_of_no_file(tree: Tree) -> None:
    tree.write({"/proc/7/statm": "9000 500 120 1 0 300 0\n"})
    assert _memory_linux.anonymous(7, tree.root) == 380 * PAGE


def test_the_peak_is_the_high_water_mark(tree: Tree) -> None:
    tree.write(
        {"/proc/7/status": "Name:\tVmHWM:\nVmPeak:\t 90 kB\nVmHWM:\t    12 kB\nVmRSS:\t1 kB\n"}
    )
    assert _memory_linux.peak(7, tree.root) == 12 * 1024


def test_cpu_time_is_found_behind_any_name(tree: Tree) -> None:
    times = "S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0"
    tree.write({"/proc/7/stat": f"7 (a ) name (1) {times}\n"})
    ticks = os.sysconf("SC_CLK_TCK")
    assert _memory_linux.cpu_seconds(7, tree.root) == 300 / ticks


@pytest.mark.parametrize(
    "content", ["", "x", "1", "1 y z", "VmHWM:", "VmHWM: many kB", "7 (a) S 1"]
)
def test_what_makes_no_sense_is_unknown(tree: Tree, content: str) -> None:
    tree.write({f"/proc/7/{name}": content for name in ("statm", "status", "stat")})
    assert _memory_linux.anonymous(7, tree.root) is None
    assert _memory_linux.peak(7, tree.root) is None
    assert _memory_linux.cpu_seconds(7, tree.root) is None


def test_nothing_is_known_of_a_process_that_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert memory.anonymous(child.pid) is None
    assert memory.peak(child.pid) is None
    assert memory.cpu_seconds(child.pid) is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it depends on psutil's rights")
def test_of_this_process_only_what_it_allocates_counts_as_its_own() -> None:
    mine = os.getpid()

    def now() -> int:
        used = memory.anonymous(mine)
        assert used is not None
        return used

    size = 200 * MB
    before = now()
    own = b"x" * size
    assert size * 0.95 < now() - before < size * 1.2
    del own
    before = now()
    segment = shared_memory.SharedMemory(create=True, size=size)
    try:
        segment.buf[:size] = bytes(size)
        assert now() - before < size / 10, "shared memory counts as its own"
    finally:
        segment.close()
        segment.unlink()
    with mmap.mmap(-1, size) as shared:  # MAP_SHARED
        shared[:] = b"y" * size
        assert now() - before < size / 10, "a shared mapping counts as its own"
    peak = memory.peak(mine)
    assert peak is not None and peak > size
    seconds = memory.cpu_seconds(mine)
    assert seconds is not None and seconds > 0


# The machine and the control groups --------------------------------------------------------------


def test_without_control_groups_the_machine_counts(machine: Tree) -> None:
    assert _memory_linux.total_and_available(machine.root) == (1000 * 1024, 700 * 1024)


@pytest.mark.parametrize("content", ["", "MemTotal: 5 kB", "MemTotal: kB\nMemAvailable: 3 kB"])
def test_a_machine_that_does_not_say(tree: Tree, content: str) -> None:
    tree.write({"/proc/meminfo": content})
    assert _memory_linux.total_and_available(tree.root) is None


def group_v2(limit: object, used: int, stat: str = "") -> dict[str, object]:
    return {
        "/proc/self/cgroup": "0::/outer/job\n",
        "/proc/self/mountinfo": V2_MOUNT,
        "/sys/fs/cgroup/outer/memory.max": "max",
        "/sys/fs/cgroup/outer/memory.current": "1",
        "/sys/fs/cgroup/outer/job/memory.max": limit,
        "/sys/fs/cgroup/outer/job/memory.current": used,
        "/sys/fs/cgroup/outer/job/memory.stat": stat,
    }


def group_v1(limit: object, used: int, stat: str = "") -> dict[str, object]:
    return {
        "/proc/self/cgroup": "4:memory:/job\n1:cpu:/\n",
        "/proc/self/mountinfo": V1_MOUNT,
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712,
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": 1 << 40,
        "/sys/fs/cgroup/memory/job/memory.limit_in_bytes": limit,
        "/sys/fs/cgroup/memory/job/memory.usage_in_bytes": used,
        "/sys/fs/cgroup/memory/job/memory.stat": stat,
    }


@pytest.mark.parametrize("group", [group_v1, group_v2])
def test_a_control_group_leaves_less(machine: Tree, group: Any) -> None:
    machine.write(group(500_000, 300_000))
    assert _memory_linux.total_and_available(machine.root) == (500_000, 200_000)


@pytest.mark.parametrize(("group", "prefix"), [(group_v1, "total_"), (group_v2, "")])
def test_what_the_kernel_can_drop_is_available(machine: Tree, group: Any, prefix: str) -> None:
    stat = f"cache 7\n{prefix}active_file 20000\n{prefix}inactive_file 100000\nodd\n"
    machine.write(group(500_000, 300_000, stat))
    assert _memory_linux.total_and_available(machine.root) == (500_000, 320_000)


@pytest.mark.parametrize(
    ("group", "limit"), [(group_v2, "max"), (group_v1, (1 << 63) - PAGE), (group_v2, "")]
)
def test_a_control_group_without_a_limit(machine: Tree, group: Any, limit: object) -> None:
    machine.write(group(limit, 300_000))
    assert _memory_linux.total_and_available(machine.root) == (1000 * 1024, 700 * 1024)


def test_a_group_above_may_be_the_narrowest(machine: Tree) -> None:
    machine.write(group_v2(500_000, 100_000))
    machine.write(
        {
            "/sys/fs/cgroup/outer/memory.max": 450_000,
            "/sys/fs/cgroup/outer/memory.current": 420_000,
        }
    )
    assert _memory_linux.total_and_available(machine.root) == (450_000, 30_000)


def test_a_group_may_use_more_than_its_limit_for_a_moment(machine: Tree) -> None:
    machine.write(group_v2(100, 300))
    assert _memory_linux.total_and_available(machine.root) == (100, 0)


def test_the_kernel_s_victims_are_counted_in_the_own_group(machine: Tree) -> None:
    machine.write({"/proc/vmstat": "pgfault 9\noom_kill 80\n"})
    assert _memory_linux.oom_kills(machine.root) == 80
    machine.write(group_v2("max", 0))
    machine.write({"/sys/fs/cgroup/outer/memory.events": "oom 9\noom_kill 70\n"})
    assert _memory_linux.oom_kills(machine.root) == 70, "the nearest group that counts"
    machine.write({"/sys/fs/cgroup/outer/job/memory.events": "oom 9\noom_kill 6\n"})
    assert _memory_linux.oom_kills(machine.root) == 6
    machine.write({"/sys/fs/cgroup/outer/job/memory.events.local": "oom 9\noom_kill 5\n"})
    assert _memory_linux.oom_kills(machine.root) == 5
    machine.write(group_v1(500_000, 0))
    control = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"
    machine.write({"/sys/fs/cgroup/memory/job/memory.oom_control": control})
    assert _memory_linux.oom_kills(machine.root) == 3


def test_a_kernel_that_does_not_count_its_victims(machine: Tree) -> None:
    assert _memory_linux.oom_kills(machine.root) is None


plausible = st.sampled_from(
    ["0::/", "4:memory:/a", V1_MOUNT, V2_MOUNT, "oom_kill 3", "max", "1 2 3", "VmHWM: 3 kB"]
)
contents = st.one_of(
    st.text(), plausible, st.lists(plausible).map("\n".join), st.integers().map(str)
)


@given(st.data())
def test_no_content_makes_it_fail(data: st.DataObject) -> None:
    def read(path: str) -> str:
        return data.draw(contents, label=path)

    with (
        mock.patch.multiple(_cgroup_linux, read=read, _last_directories={}),
        mock.patch.object(_memory_linux, "read", read),
    ):
        for function in (_memory_linux.anonymous, _memory_linux.peak, _memory_linux.cpu_seconds):
            function(1, "/made/up")
        found = _memory_linux.total_and_available("/made/up")
        assert found is None or found[1] >= 0
        _memory_linux.oom_kills("/made/up")


# Which deaths the kernel has caused --------------------------------------------------------------


@pytest.fixture
def victims(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    kernel = SimpleNamespace(count=10)
    monkeypatch.setattr(memory, "oom_kills", lambda: kernel.count)
    yield kernel


def test_each_victim_explains_one_death(victims: SimpleNamespace) -> None:
    counter = memory.OomCounter()
    counter.begin()
    assert counter.explains_a_death() is False
    victims.count += 2
    counter.begin()  # changes nothing
    assert [counter.explains_a_death() for _ in range(3)] == [True, True, False]


def test_what_is_not_counted_explains_nothing(victims: SimpleNamespace) -> None:
    counter = memory.OomCounter()
    assert counter.explains_a_death() is None, "not begun"
    victims.count = None
    counter.begin()
    victims.count = 5
    assert counter.explains_a_death() is None
    victims.count = 10
    counter = memory.OomCounter()
    counter.begin()
    victims.count = None
    assert counter.explains_a_death() is None


# Other systems -----------------------------------------------------------------------------------


def test_elsewhere_psutil_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "beos")
    mine = os.getpid()
    used = memory.anonymous(mine)
    assert used is not None and used > MB
    assert memory.peak(mine) is None, "this psutil does not know it"
    seconds = memory.cpu_seconds(mine)
    assert seconds is not None and seconds > 0
    found = memory.total_and_available()
    assert found is not None and 0 < found[1] <= found[0]
    assert memory.oom_kills() is None
    memory.check_measurable("max_memory_per_worker")
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert memory.anonymous(child.pid) is None
    assert memory.cpu_seconds(child.pid) is None


def test_elsewhere_without_psutil_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "beos")
    monkeypatch.setitem(sys.modules, "psutil", None)
    mine = os.getpid()
    assert memory.anonymous(mine) is memory.peak(mine) is memory.cpu_seconds(mine) is None
    assert memory.total_and_available() is memory.oom_kills() is None
    with pytest.raises(ValueError, match=r"max_memory_per_worker.*pip install psutil"):
        memory.check_measurable("max_memory_per_worker")


def test_a_sandbox_without_proc_is_like_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory_linux, "anonymous", lambda pid: None)
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(ValueError, match="psutil"):
        memory.check_measurable("memory_limit")
