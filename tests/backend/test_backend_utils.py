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


class Member:
    """One process of a family."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.pid = connection.recv()

    def has_ended(self) -> bool:
        """Wait for the end of the process, which nobody else may ever collect."""
        if not self.connection.poll(LONG):
            return False
        with pytest.raises(EOFError):
            self.connection.recv()
        return True


@pytest.fixture
def family() -> Any:
    """A process with a child and a grandchild, none of which ends by itself."""
    ours, theirs = zip(*(ctx_loky.Pipe(duplex=False) for _ in range(3)), strict=True)
    process = ctx_loky.Process(target=helpers.start_family, args=("loky", *theirs))
    process.start()
    for connection in theirs:
        connection.close()
    members = [Member(connection) for connection in ours]
    yield process, members
    for member in members:
        # Not reused: they have the test's process or one another for parents, who wait for none.
        if not member.connection.poll(0):
            os.kill(member.pid, signal.SIGKILL)
        assert member.has_ended()
        member.connection.close()
    process.join(LONG)
    process.close()


@pytest.mark.parametrize("use_psutil", [True, False])
def test_family_is_killed(family: Any, use_psutil: bool) -> None:
    process, members = family
    kill_process_tree(process, use_psutil=use_psutil)
    assert process.exitcode == -signal.SIGKILL
    assert all(member.has_ended() for member in members)


def test_processes_are_stopped_before_their_children_are_looked_up(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They could start more of them afterwards."""
    process, _ = family
    children = _posix._children
    stopped: list[int] = []

    def look(pid: int) -> list[int]:
        if pid == process.pid:
            found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
            assert found is not None
            stopped.append(found.si_status)
        return children(pid)

    monkeypatch.setattr(_posix, "_children", look)
    kill_process_tree(process)
    assert stopped == [signal.SIGSTOP]


def test_older_name(family: Any) -> None:
    process, members = family
    with pytest.warns(DeprecationWarning, match="use kill_process_tree") as caught:
        recursive_terminate(process)
    assert caught[0].filename == __file__
    assert all(member.has_ended() for member in members)


def test_interrupted_killing_leaves_none_stopped(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, (_, child, grandchild) = family
    children = _posix._children

    def interrupted(pid: int) -> list[int]:
        if pid == child.pid:
            raise KeyboardInterrupt
        return children(pid)

    monkeypatch.setattr(_posix, "_children", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kill_process_tree(process)
    process.join(LONG)
    assert process.exitcode == -signal.SIGKILL
    assert child.has_ended()
    assert psutil.Process(grandchild.pid).status() != psutil.STATUS_STOPPED


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
    process, (parent, spared, grandchild) = family
    kill = os.kill

    def refuse(pid: int, number: int) -> None:
        if pid == spared.pid:
            raise PermissionError("not yours")
        kill(pid, number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", refuse)
        with pytest.warns(UserWarning, match="not yours"):
            kill_process_tree(process)
    assert parent.has_ended() and grandchild.has_ended()
    assert not spared.connection.poll(0)


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
