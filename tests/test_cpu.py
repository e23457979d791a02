"""Tests of `loky.cpu`: every limit on its own, how they combine, and that nothing makes them fail.

Guarantee: the result does not depend on the machine. Trees of /proc and /sys are made in a
temporary folder, C libraries are small fakes, and what is asked of the real system is compared with
what the real system says elsewhere.

Does not belong here: how `python -m loky info` prints any of this (`test_cli`).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import loky
from loky import _cgroup_linux, _cpu_linux, _cpu_posix, _cpu_windows, cpu

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct"


class Tree:
    """A folder that stands for the root of a file system."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)

    def write(self, files: dict[str, str]) -> Tree:
        for name, content in files.items():
            path = Path(self.root + name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return self

    def quota(self) -> int | None:
        """What the control groups allow; None where they set no limit."""
        without = 1_000_000
        count = cpu._cpu_count_cgroup(without, root=self.root)
        return None if count == without else count


class FakePlatform:
    def __init__(
        self,
        affinity: set[int] | None = None,
        quota: tuple[int, str] | None = None,
        physical: int | Exception = 1,
    ) -> None:
        self._affinity = affinity
        self._quota = quota
        self._physical = physical
        self.asked_for_cores: list[object] = []

    def affinity(self) -> set[int] | None:
        return self._affinity

    def cgroup_quota(self, root: str = "") -> tuple[int, str] | None:
        return self._quota

    def physical_cores(self, cpus: object, root: str = "") -> int:
        self.asked_for_cores.append(cpus)
        if isinstance(self._physical, Exception):
            raise self._physical
        return self._physical


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing found or complained about by another test counts in this one."""
    monkeypatch.setattr(cpu, "physical_cores_cache", {})
    monkeypatch.setattr(cpu, "_warned", set())
    monkeypatch.setattr(_cgroup_linux, "_last_directories", {})
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT", raising=False)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Replace the machine: machine(cpus, affinity=..., quota=..., physical=..., system=...)."""

    def replace(cpus: int | None, system: str = "linux", **limits) -> FakePlatform:
        limits.setdefault("affinity", set(range(cpus or 1)))
        platform = FakePlatform(**limits)
        monkeypatch.setattr(os, "cpu_count", lambda: cpus)
        monkeypatch.setattr(cpu, "_platform", lambda: platform)
        monkeypatch.setattr(cpu.sys, "platform", system)
        return platform

    return replace


# Control groups ----------------------------------------------------------------------------------


def v2(tree: Tree, group: str, quotas: dict[str, str]) -> Tree:
    """Make a version 2 hierarchy: the group of the process, and the content of cpu.max by group."""
    files = {f"/sys/fs/cgroup{name}/cpu.max": content for name, content in quotas.items()}
    files["/proc/self/cgroup"] = f"0::{group}\n"
    files["/proc/self/mountinfo"] = V2_MOUNT + "\n"
    return tree.write(files)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("100001 100000\n", 2),
        ("20000 100000\n", 1),
        ("1000 1000000\n", 1),
        ("1000000 250000", 4),
        ("max 100000\n", None),
        ("max\n", None),
        ("", None),
        ("\n", None),
        ("200000", None),
        ("200000 100000 7", None),
        ("200000 0", None),
        ("0 100000", None),
        ("-1 100000", None),
        ("two 100000", None),
        ("2e5 1e5", None),
        ("\0\0", None),
    ],
)
def test_cgroup_v2_content(tree: Tree, content: str, expected: int | None) -> None:
    assert v2(tree, "/job", {"/job": content}).quota() == expected


def test_cgroup_v2_group_above_is_the_tighter_one(tree: Tree) -> None:
    quotas = {
        "": "max 100000",
        "/user.slice": "300000 100000",
        "/user.slice/job": "max 100000",
        "/user.slice/job/step": "800000 100000",
    }
    assert v2(tree, "/user.slice/job/step", quotas).quota() == 3


def test_cgroup_v2_own_group_is_the_tighter_one(tree: Tree) -> None:
    assert v2(tree, "/a/b", {"/a": "800000 100000", "/a/b": "200000 100000"}).quota() == 2


def test_cgroup_v2_siblings_do_not_count(tree: Tree) -> None:
    assert v2(tree, "/a/b", {"/a/c": "100000 100000", "/ab": "100000 100000"}).quota() is None


def test_cgroup_v2_quota_at_the_mount_point(tree: Tree) -> None:
    # What a container with its own cgroup namespace sees.
    assert v2(tree, "/", {"": "300000 100000"}).quota() == 3


def test_cgroup_v2_process_outside_of_its_namespace(tree: Tree) -> None:
    v2(tree, "/../other", {"": "300000 100000", "/other": "100000 100000"})
    tree.write({"/sys/fs/other/cpu.max": "100000 100000"})  # no group: not even below the mount
    assert tree.quota() == 3


def test_cgroup_v2_mount_that_shows_groups_above_the_namespace(tree: Tree) -> None:
    mount = V2_MOUNT.replace(" / /sys/fs/cgroup ", " /../.. /mnt/groups ")
    files = {"/mnt/groups/cpu.max": "300000 100000", "/mnt/groups/job/cpu.max": "100000 100000"}
    v2(tree, "/job", {"": "100000 100000"}).write({"/proc/self/mountinfo": mount} | files)
    assert tree.quota() == 3


def test_cgroup_mount_of_the_own_group_only(tree: Tree) -> None:
    # A container without a cgroup namespace: the group's path is one of the host, and the mount
    # starts at that group.
    tree.write(
        {
            "/proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n",
            "/proc/self/mountinfo": V1_MOUNT.replace(" / ", " /docker/abc ", 1),
            "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
            "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        }
    )
    assert tree.quota() == 3


def test_cgroup_mount_of_another_group_does_not_count(tree: Tree) -> None:
    other = V2_MOUNT.replace(" / /sys/fs/cgroup ", " /jobs/other /mnt/other ")
    v2(tree, "/jobs/mine", {"/jobs/mine": "400000 100000"})
    tree.write(
        {
            "/proc/self/mountinfo": f"{other}\n{V2_MOUNT}\n",
            "/mnt/other/cpu.max": "100000 100000",
        }
    )
    assert tree.quota() == 4


def test_cgroup_mount_whose_name_begins_like_the_group_does_not_count(tree: Tree) -> None:
    other = V2_MOUNT.replace(" / /sys/fs/cgroup ", " /jobs/mi /mnt/other ")
    v2(tree, "/jobs/mine", {"/jobs/mine": "400000 100000"})
    tree.write(
        {
            "/proc/self/mountinfo": f"{other}\n{V2_MOUNT}\n",
            "/mnt/other/cpu.max": "100000 100000",
        }
    )
    assert tree.quota() == 4


def test_cgroup_names_with_separators_in_them(tree: Tree) -> None:
    tree.write(
        {
            "/proc/self/cgroup": "0::/job - 1:2\n",
            "/proc/self/mountinfo": V2_MOUNT.replace("/sys/fs/cgroup", "/my\\040-\\040groups"),
            "/my - groups/job - 1:2/cpu.max": "200000 100000",
        }
    )
    assert tree.quota() == 2


def v1(tree: Tree, quota: str, period: str) -> Tree:
    return tree.write(
        {
            "/proc/self/cgroup": "11:cpuset:/\n5:cpu,cpuacct:/a/b\n",
            "/proc/self/mountinfo": V1_MOUNT + "\n",
            "/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": quota,
            "/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": period,
        }
    )


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [
        ("350000\n", "100000\n", 4),
        ("20000\n", "100000\n", 1),
        ("-1\n", "100000\n", None),
        ("", "100000\n", None),
        ("100000", "", None),
        ("100000", "0", None),
        ("100000", "max", None),
    ],
)
def test_cgroup_v1_content(tree: Tree, quota: str, period: str, expected: int | None) -> None:
    assert v1(tree, quota, period).quota() == expected


def test_cgroup_v1_cpuset_alone_is_no_quota_hierarchy(tree: Tree) -> None:
    tree.write(
        {
            "/proc/self/cgroup": "11:cpuset:/a\n5:cpu:/\n",
            "/proc/self/mountinfo": "\n".join(
                [
                    "31 30 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset",
                    "32 30 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu",
                ]
            ),
        }
    )
    # Neither the other hierarchy's files nor its name for our group are ours.
    for place in ("cpuset", "cpuset/a", "cpu/a"):
        tree.write(
            {
                f"/sys/fs/cgroup/{place}/cpu.cfs_quota_us": "100000",
                f"/sys/fs/cgroup/{place}/cpu.cfs_period_us": "100000",
            }
        )
    assert tree.quota() is None


def test_cgroup_hybrid_takes_the_smallest_of_both_versions(tree: Tree) -> None:
    v1(tree, "500000", "100000")
    tree.write(
        {
            "/proc/self/cgroup": "5:cpu,cpuacct:/a/b\n0::/init.scope\n",
            "/proc/self/mountinfo": f"{V1_MOUNT}\n"
            + V2_MOUNT.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified"),
        }
    )
    assert tree.quota() == 5
    tree.write({"/sys/fs/cgroup/unified/init.scope/cpu.max": "400000 100000"})
    assert tree.quota() == 4


@pytest.mark.parametrize(
    "files",
    [
        {"/sys/fs/cgroup/cpu.max": "300000 100000"},
        {
            "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000",
            "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        {
            "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000",
            "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    ],
)
def test_cgroup_without_proc_the_usual_places_are_read(tree: Tree, files: dict[str, str]) -> None:
    assert tree.write(files).quota() == 3


def test_cgroup_mount_point_that_is_no_path(tree: Tree) -> None:
    tree.write({"/proc/self/cgroup": "0::/job\n"})
    tree.write({"/proc/self/mountinfo": V2_MOUNT.replace("/sys/fs/cgroup", "/sys\0")})
    assert _cpu_linux.cgroup_quota(tree.root) is None


def test_cgroup_nothing_at_all(tree: Tree) -> None:
    assert tree.quota() is None


def test_cgroup_quota_is_read_at_every_call(tree: Tree) -> None:
    assert v2(tree, "/job", {"/job": "200000 100000"}).quota() == 2
    assert v2(tree, "/job", {"/job": "600000 100000"}).quota() == 6


def test_cgroup_process_moved_to_another_group(tree: Tree) -> None:
    v2(tree, "/one", {"/one": "200000 100000", "/two": "600000 100000"})
    assert tree.quota() == 2
    tree.write({"/proc/self/cgroup": "0::/two\n"})
    assert tree.quota() == 6


def test_cgroup_reason_names_the_file(tree: Tree) -> None:
    v2(tree, "/job", {"/job": "150000 100000"})
    limit = cpu._cgroup_limit(tree.root)
    assert limit.value == 2
    assert f"{tree.root}/sys/fs/cgroup/job/cpu.max" in limit.reason
    assert "150000" in limit.reason


def test_cgroup_error_nobody_thought_of(machine) -> None:
    platform = machine(4)
    platform.cgroup_quota = mock.Mock(side_effect=RuntimeError("surprise"))
    explained = cpu.explain_cpu_count()
    assert explained.count == 4
    (limit,) = [limit for limit in explained.limits if limit.name == "cgroup quota"]
    assert limit.value is None
    assert "surprise" in limit.reason


plausible = st.sampled_from(
    ["0::/", "0::/a/../b", "5:cpu:/a", "0::", V2_MOUNT, V1_MOUNT, "1 2", "max max", " - cgroup2 "]
)
contents = st.one_of(
    st.text(), plausible, st.lists(plausible).map("\n".join), st.integers().map(str)
)


@given(st.data())
def test_cgroup_no_content_makes_it_fail(data: st.DataObject) -> None:
    def read(path: str) -> str:
        return data.draw(contents, label=path)

    with (
        mock.patch.multiple(_cgroup_linux, read=read, _last_directories={}),
        mock.patch.object(_cpu_linux, "_read", read),
    ):
        limit = _cpu_linux.cgroup_quota(root="/made/up")
    assert limit is None or limit[0] >= 1


# The environment variable ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3", 3), (" 3\n", 3), ("1", 1), ("0", 1), ("-2", 1), ("100", 8), ("", 8), ("  ", 8)],
)
def test_environment(machine, monkeypatch, text: str, expected: int) -> None:
    machine(8)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", text)
    assert cpu.cpu_count() == expected


@pytest.mark.parametrize("text", ["four", "4.0", "4 cores", "0x4"])
def test_environment_bad_value_is_ignored_with_one_warning(machine, monkeypatch, text: str) -> None:
    machine(8)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", text)
    with pytest.warns(UserWarning) as caught:
        assert cpu.cpu_count() == 8
        assert cpu.cpu_count() == 8
        assert cpu.cpu_count(only_physical_cores=True) == 1
    (warning,) = caught
    assert f"LOKY_MAX_CPU_COUNT={text!r}" in str(warning.message)
    assert "whole number" in str(warning.message)
    assert warning.filename == __file__


def test_environment_number_that_python_refuses_to_convert(machine, monkeypatch) -> None:
    machine(8)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "9" * 10_000)
    with pytest.warns(UserWarning, match="LOKY_MAX_CPU_COUNT='9999") as caught:
        assert cpu.cpu_count() == 8
    assert len(str(caught[0].message)) < 300


def test_environment_second_bad_value_is_told_too(machine, monkeypatch) -> None:
    machine(8)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "many")
    with pytest.warns(UserWarning, match="many"):
        cpu.cpu_count()
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "few")
    with pytest.warns(UserWarning, match="few"):
        cpu.explain_cpu_count()


@pytest.mark.parametrize("text", ["0", "-2"])
def test_environment_below_one_is_explained(machine, monkeypatch, text: str) -> None:
    machine(8)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", text)
    (limit,) = cpu.explain_cpu_count().decisive
    assert limit.value == 1
    assert f"{text}, which counts as 1" in limit.reason


def test_environment_is_read_at_every_call(machine, monkeypatch) -> None:
    machine(8)
    assert cpu.cpu_count() == 8
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "5")
    assert cpu.cpu_count() == 5
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "6")
    assert cpu.cpu_count() == 6


# How the limits combine --------------------------------------------------------------------------


def test_smallest_limit_wins_and_says_so(machine, monkeypatch) -> None:
    machine(16, affinity=set(range(12)), quota=(6, "the file"), physical=8)
    explained = cpu.explain_cpu_count()
    assert explained.count == cpu.cpu_count() == 6
    assert [limit.name for limit in explained.decisive] == ["cgroup quota"]
    assert explained.decisive[0].reason == "the file"
    assert {limit.name: limit.value for limit in explained.limits} == {
        "machine": 16,
        "affinity": 12,
        "cgroup quota": 6,
        "LOKY_MAX_CPU_COUNT": None,
    }
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "3")
    assert cpu.explain_cpu_count().count == 3
    machine(16, affinity={1, 2, 3, 7}, quota=(6, ""))
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT")
    explained = cpu.explain_cpu_count()
    assert explained.count == 4
    assert "1-3,7" in explained.decisive[0].reason


@pytest.mark.parametrize("found", [None, 0])
def test_machine_that_does_not_know_its_cpus(machine, found) -> None:
    machine(found)
    assert cpu.cpu_count() == 1


def test_result_is_never_below_one(machine) -> None:
    machine(4, affinity=set(), quota=(0, ""))
    assert cpu.cpu_count() == 1


def test_windows_is_capped(machine) -> None:
    machine(128, system="win32", physical=64)
    assert cpu.cpu_count() == 61
    assert cpu.cpu_count(only_physical_cores=True) == 61


def test_affinity_that_cannot_be_seen_on_linux_is_told_once(machine, monkeypatch) -> None:
    machine(4, affinity=None)
    with pytest.warns(UserWarning, match="affinity") as caught:
        assert cpu.cpu_count() == 4
        assert cpu._cpu_count_affinity(4) == 4
    assert len(caught) == 1
    monkeypatch.setattr(cpu, "_warned", set())
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")  # the way out that the warning names
    assert cpu.cpu_count() == 2


def test_no_affinity_elsewhere_is_normal(machine) -> None:
    machine(4, system="darwin", affinity=None)
    assert cpu.cpu_count() == 4


def test_platform_errors_in_affinity_are_no_limit(machine) -> None:
    platform = machine(4, system="win32")
    platform.affinity = mock.Mock(side_effect=OSError("no"))
    assert cpu.cpu_count() == 4


# Physical cores ----------------------------------------------------------------------------------


def test_physical_cores_are_one_more_limit(machine, monkeypatch) -> None:
    machine(8, affinity=set(range(8)), physical=4)
    assert cpu.cpu_count() == 8
    assert cpu.cpu_count(only_physical_cores=True) == 4
    machine(8, affinity=set(range(8)), physical=4, quota=(3, ""))
    assert cpu.cpu_count(only_physical_cores=True) == 3
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")
    assert cpu.cpu_count(only_physical_cores=True) == 2


def test_physical_cores_of_the_affinity_on_linux_of_the_machine_elsewhere(machine) -> None:
    platform = machine(8, affinity={0, 1}, physical=1)
    cpu.cpu_count(only_physical_cores=True)
    assert platform.asked_for_cores == [{0, 1}]
    platform = machine(8, affinity={0, 1}, physical=1, system="win32")
    cpu.cpu_count(only_physical_cores=True)
    assert platform.asked_for_cores == [None]


def test_physical_cores_are_remembered_for_each_affinity(machine) -> None:
    platform = machine(8, affinity={0, 1}, physical=1)
    cpu.cpu_count(only_physical_cores=True)
    cpu.cpu_count(only_physical_cores=True)
    assert platform.asked_for_cores == [{0, 1}]
    platform._affinity = {0, 2}
    cpu.cpu_count(only_physical_cores=True)
    assert platform.asked_for_cores == [{0, 1}, {0, 2}]


@pytest.mark.parametrize("physical", [OSError("unreadable"), 0, -1])
def test_physical_cores_not_found_is_told_once(machine, physical) -> None:
    machine(8, affinity={0, 1, 2, 3}, physical=physical)
    match = "Could not find the number of physical cores"
    with pytest.warns(UserWarning, match=match) as caught:
        assert cpu.cpu_count(only_physical_cores=True) == 4
        assert cpu.cpu_count(only_physical_cores=True) == 4
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert cpu._count_physical_cores({0, 1, 2, 3}) == ("not found", None)


def test_physical_cores_not_found_is_not_told_to_who_set_a_number(machine, monkeypatch) -> None:
    machine(8, affinity={0, 1, 2, 3}, physical=OSError("unreadable"))
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cpu.cpu_count(only_physical_cores=True) == 3


def test_count_physical_cores_returns_the_reason_once(machine) -> None:
    reason = OSError("unreadable")
    machine(8, physical=reason)
    assert cpu._count_physical_cores() == ("not found", reason)
    assert cpu._count_physical_cores() == ("not found", None)


# Topology on Linux -------------------------------------------------------------------------------


def sysfs(siblings: dict[int, str], name: str = "core_cpus_list") -> dict[str, str]:
    base = "/sys/devices/system/cpu"
    files = {f"{base}/cpu{n}/topology/{name}": text + "\n" for n, text in siblings.items()}
    files[f"{base}/online"] = ",".join(map(str, siblings)) + "\n"
    return files


def cpuinfo(*cpus: tuple[int, int, int]) -> dict[str, str]:
    """(processor, package, core) of each CPU."""
    block = "processor\t: {}\nmodel name\t: A: B\nphysical id\t: {}\ncore id\t\t: {}\n"
    return {"/proc/cpuinfo": "\n".join(block.format(*each) for each in cpus) + "\n"}


SMT = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}


@pytest.mark.parametrize(
    ("cpus", "expected"), [({0, 1, 2, 3}, 2), ({0, 2}, 1), ({0, 1}, 2), ({3}, 1), (None, 2)]
)
@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
def test_sysfs_siblings_are_one_core(tree: Tree, cpus, expected: int, name: str) -> None:
    tree.write(sysfs(SMT, name))
    assert _cpu_linux.physical_cores(cpus, tree.root) == expected


def test_sysfs_goes_before_cpuinfo(tree: Tree) -> None:
    tree.write(sysfs(SMT) | cpuinfo((0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0)))
    assert _cpu_linux.physical_cores({0, 1, 2, 3}, tree.root) == 2


def test_sysfs_online_ranges(tree: Tree) -> None:
    tree.write(sysfs({n: str(n) for n in range(6)}))
    tree.write({"/sys/devices/system/cpu/online": "0-2,5\n"})
    assert _cpu_linux.physical_cores(None, tree.root) == 4


def test_cpuinfo_core_numbers_repeat_in_every_package(tree: Tree) -> None:
    tree.write(cpuinfo((0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1)))
    assert _cpu_linux.physical_cores(None, tree.root) == 4
    assert _cpu_linux.physical_cores({0, 2}, tree.root) == 2


def test_cpuinfo_siblings_are_one_core(tree: Tree) -> None:
    tree.write(cpuinfo((0, 0, 0), (1, 0, 0), (2, 0, 1), (3, 0, 1)))
    assert _cpu_linux.physical_cores({0, 1, 2, 3}, tree.root) == 2
    assert _cpu_linux.physical_cores({2, 3}, tree.root) == 1


def test_cpuinfo_answers_when_sysfs_is_incomplete(tree: Tree) -> None:
    tree.write(sysfs({0: "0", 1: "1"}) | cpuinfo((0, 0, 0), (1, 0, 1), (2, 0, 2)))
    assert _cpu_linux.physical_cores({0, 1, 2}, tree.root) == 3


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"/proc/cpuinfo": ""},
        {"/proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 50.00\n\nHardware\t: a board\n"},
        cpuinfo((7, 0, 0)),
        cpuinfo((0, 0, 0)),
        {"/sys/devices/system/cpu/online": "none\n"},
    ],
)
def test_topology_unknown_raises(tree: Tree, files: dict[str, str]) -> None:
    tree.write(files)
    with pytest.raises(LookupError, match="/proc/cpuinfo"):
        _cpu_linux.physical_cores({0, 1}, tree.root)


# Other systems, on fakes -------------------------------------------------------------------------


class FakeLibC:
    def __init__(self, value: int, width: int = 4, result: int = 0) -> None:
        self._bytes = value.to_bytes(width, sys.byteorder)
        self._result = result
        self.names: list[bytes] = []

    def sysctlbyname(self, name, answer, size, new, new_size) -> int:
        self.names.append(name)
        padded = self._bytes.ljust(len(answer), b"\xff")  # no more than the size says is valid
        ctypes.memmove(answer, padded, len(answer))
        size._obj.value = len(self._bytes)
        return self._result


@pytest.mark.parametrize(
    ("system", "name"),
    [
        ("darwin", b"hw.physicalcpu"),
        ("freebsd14", b"kern.smp.cores"),
        ("freebsd", b"kern.smp.cores"),
    ],
)
@pytest.mark.parametrize("width", [2, 4, 8])
def test_sysctl(system: str, name: bytes, width: int) -> None:
    libc = FakeLibC(12, width)
    assert _cpu_posix.physical_cores({0}, libc=libc, platform=system) == 12
    assert libc.names == [name]


def test_sysctl_that_fails() -> None:
    with pytest.raises(OSError, match=r"hw\.physicalcpu"):
        _cpu_posix.physical_cores(None, libc=FakeLibC(0, result=-1), platform="darwin")


def test_system_that_nobody_knows() -> None:
    with pytest.raises(NotImplementedError, match="plan9"):
        _cpu_posix.physical_cores(None, platform="plan9")


def record(size: int, relation: int = 0) -> bytes:
    return relation.to_bytes(4, "little") + size.to_bytes(4, "little") + bytes(size - 8)


class FakeFunction:
    """What ctypes makes of a function of a library: callable, with types to set."""

    def __init__(self, function) -> None:
        self._function = function

    def __call__(self, *args):
        return self._function(*args)


class FakeKernel32:
    def __init__(self, records: bytes = b"", ours: int = 0, all_cpus: int = 0, ok: int = 1) -> None:
        def inquire(relation, answer, length):
            assert relation == 0
            if answer is None:
                length._obj.value = len(records)
                return 0
            ctypes.memmove(answer, records, len(records))
            return ok

        def get_mask(process, our_mask, all_mask):
            assert process == 4711
            our_mask._obj.value, all_mask._obj.value = ours, all_cpus
            return ok

        self.GetLogicalProcessorInformationEx = FakeFunction(inquire)
        self.GetProcessAffinityMask = FakeFunction(get_mask)
        self.GetCurrentProcess = FakeFunction(lambda: 4711)


def test_windows_counts_records_of_any_length() -> None:
    kernel32 = FakeKernel32(record(48) + record(64) + record(48))
    assert _cpu_windows.physical_cores(None, kernel32=kernel32) == 3


@pytest.mark.parametrize("data", [record(48)[:-1], record(48) + b"abc", (0).to_bytes(8, "little")])
def test_windows_broken_records(data: bytes) -> None:
    with pytest.raises(OSError, match="broken"):
        _cpu_windows.physical_cores(None, kernel32=FakeKernel32(data))


@pytest.mark.parametrize("kernel32", [FakeKernel32(), FakeKernel32(record(48), ok=0)])
def test_windows_call_that_fails(kernel32: FakeKernel32) -> None:
    with pytest.raises(OSError, match="failed"):
        _cpu_windows.physical_cores(None, kernel32=kernel32)


@pytest.mark.parametrize(
    ("ours", "all_cpus", "expected"),
    [(0b0101, 0b1111, {0, 2}), (1 << 40, (1 << 64) - 1, {40}), (0b11, 0b11, None), (0, 0, None)],
)
def test_windows_affinity(ours: int, all_cpus: int, expected: set[int] | None) -> None:
    assert _cpu_windows.affinity(kernel32=FakeKernel32(ours=ours, all_cpus=all_cpus)) == expected


def test_windows_affinity_call_that_fails() -> None:
    assert _cpu_windows.affinity(kernel32=FakeKernel32(ours=1, all_cpus=3, ok=0)) is None


def test_affinity_falls_back_to_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = mock.Mock()
    fake.Process.return_value.cpu_affinity.return_value = [4, 5]
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setitem(sys.modules, "psutil", fake)
    monkeypatch.setattr(_cpu_posix.sys, "platform", "freebsd14")
    assert _cpu_posix.affinity() == {4, 5}
    monkeypatch.setattr(_cpu_posix.sys, "platform", "darwin")
    assert _cpu_posix.affinity() is None


def test_affinity_without_any_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setitem(sys.modules, "psutil", None)  # makes the import fail
    assert _cpu_posix.affinity() is None


# The real system ---------------------------------------------------------------------------------


def run_python(code: str, *flags: str) -> str:
    source = os.path.dirname(os.path.dirname(os.path.abspath(loky.__file__)))
    environment = os.environ | {"PYTHONPATH": source}
    command = [sys.executable, *flags, "-c", code]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def test_real_counts_are_sane() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no topology here is no failure of ours
        logical, physical = loky.cpu_count(), loky.cpu_count(only_physical_cores=True)
    assert type(logical) is int
    assert type(physical) is int
    assert 1 <= physical <= logical <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cannot bind a process here")
def test_real_affinity() -> None:
    code = """
import os
cpus = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, cpus[:1])
from loky import cpu_count
print(cpu_count(), cpu_count(only_physical_cores=True))
os.sched_setaffinity(0, cpus)
print(cpu_count() <= len(cpus))
"""
    assert run_python(code).split() == ["1", "1", "True"]


def test_importing_is_cheap() -> None:
    code = """
import os, sys
before = set(sys.modules)
import loky.cpu
print(*sorted(set(sys.modules) - before))
"""
    # Without `site`, so that what it happens to import on this machine hides nothing.
    assert set(run_python(code, "-S").split()) <= {"__future__", "loky", "loky.cpu"}


def test_counting_starts_no_process_and_imports_little() -> None:
    code = """
import sys
from loky import cpu_count
cpu_count(only_physical_cores=True)
print(*sorted({"ctypes", "multiprocessing", "psutil", "subprocess"} & set(sys.modules)))
"""
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("other systems need ctypes for this")
    assert run_python(code, "-S").split() == []
