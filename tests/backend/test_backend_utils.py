"""Tests of `loky.backend.utils`: families are killed whole, and exit codes have names."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from types import SimpleNamespace
from typing import Any

import backend_helpers as helpers
import psutil
import pytest

from loky.backend import _posix, utils
from loky.backend.context import ctx_loky
from loky.backend.utils import (
    _format_exitcodes,
    get_exitcodes_terminated_worker,
    kill_process_tree,
    recursive_terminate,
)

LONG = 30.0  # seconds; only a bug needs them

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.fixture
def family() -> Any:
    """A process with a child and a grandchild, none of which ends by itself."""
    pids = ctx_loky.SimpleQueue()
    process = ctx_loky.Process(target=helpers.start_family, args=(2, pids, "loky"))
    process.start()
    members = [psutil.Process(pids.get()) for _ in range(3)]
    yield process, members
    for member in members:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            pass
    process.join(LONG)
    process.close()
    pids.close()


def all_gone(members: list[psutil.Process]) -> bool:
    # Those that nobody waits for, in a container without an init process, stay as zombies.
    _, alive = psutil.wait_procs(members, timeout=0)
    deadline = psutil.time.monotonic() + LONG
    while psutil.time.monotonic() < deadline:
        alive = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not alive:
            return True
    return False


@pytest.mark.parametrize("use_psutil", [True, False])
def test_family_is_killed(family: Any, use_psutil: bool) -> None:
    process, members = family
    kill_process_tree(process, use_psutil=use_psutil)
    assert process.exitcode == -signal.SIGKILL
    assert all_gone(members)


def test_older_name(family: Any) -> None:
    process, members = family
    with pytest.warns(DeprecationWarning, match="use kill_process_tree") as caught:
        recursive_terminate(process)
    assert caught[0].filename == __file__
    assert all_gone(members)


def test_interrupted_killing_leaves_none_stopped(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, members = family
    children = _posix._children
    calls: list[int] = []

    def interrupted(pid: int) -> list[int]:
        calls.append(pid)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return children(pid)

    monkeypatch.setattr(_posix, "_children", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kill_process_tree(process)
    process.join(LONG)
    assert process.exitcode == -signal.SIGKILL
    for member in members:
        if member.is_running():
            assert member.status() != psutil.STATUS_STOPPED


def test_family_that_cannot_be_found(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    process, _ = family

    def fail(pid: int) -> None:
        raise OSError("no such thing here")

    monkeypatch.setattr(_posix, "kill_tree", fail)
    with pytest.warns(UserWarning, match="Failed to kill subprocesses.*no such thing here"):
        kill_process_tree(process)
    assert process.exitcode == -signal.SIGKILL


def test_one_that_may_not_be_killed_does_not_save_the_others(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, members = family
    spared = members[1].pid
    kill = os.kill

    def refuse(pid: int, number: int) -> None:
        if pid == spared:
            raise PermissionError("not yours")
        kill(pid, number)

    monkeypatch.setattr(os, "kill", refuse)
    with pytest.warns(UserWarning, match="not yours"):
        kill_process_tree(process)
    monkeypatch.undo()
    assert members[1].is_running()
    assert all_gone([members[0], members[2]])


def test_process_that_has_ended_is_only_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    process = ctx_loky.Process(target=helpers.leave, args=(3,))
    process.start()
    process.join(LONG)

    def fail(pid: int) -> None:
        raise AssertionError("its process id may be another's now")

    monkeypatch.setattr(_posix, "kill_tree", fail)
    kill_process_tree(process)
    assert process.exitcode == 3
    process.close()


def test_descendant_that_is_gone_already() -> None:
    process = ctx_loky.Process(target=helpers.leave, args=(0,))
    process.start()
    process.join(LONG)
    _posix.kill_tree(2**22 + 1)  # more than there can be
    process.close()


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="no /proc")
def test_processes_from_proc() -> None:
    assert (os.getpid(), os.getppid()) in list(_posix._processes_from_proc())


@pytest.mark.skipif(shutil.which("ps") is None, reason="no ps")
def test_processes_from_ps() -> None:
    assert (os.getpid(), os.getppid()) in list(_posix._processes_from_ps())


# Exit codes --------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
def test_exit_codes_in_words() -> None:
    codes = [-signal.SIGKILL, 1, None, 0, 255, -123]
    assert _format_exitcodes(codes) == (
        "{SIGKILL(-9), EXIT(1), EXIT(0), UNKNOWN(255), UNKNOWN(-123)}"
    )
    assert _format_exitcodes([]) == "{}"


def test_exit_codes_of_workers() -> None:
    workers = {1: SimpleNamespace(exitcode=None), 2: SimpleNamespace(exitcode=-signal.SIGSEGV)}
    assert get_exitcodes_terminated_worker(workers) == "{SIGSEGV(-11)}"


def test_exit_code_that_comes_late() -> None:
    answers = [None, None, 1]

    class Worker:
        @property
        def exitcode(self) -> int | None:
            return answers.pop(0)

    assert get_exitcodes_terminated_worker({1: Worker()}) == "{EXIT(1)}"


def test_exit_code_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.1, 0.2, 0.3])
    pauses: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: next(times), sleep=pauses.append)
    monkeypatch.setattr(utils, "time", clock)
    assert get_exitcodes_terminated_worker({1: SimpleNamespace(exitcode=None)}) == "{}"
    assert len(pauses) == 2


def test_psutil_is_passed_on() -> None:
    assert utils.psutil is psutil
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = utils.nothing
