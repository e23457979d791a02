"""Tests of the resource tracker: its process, its clients, and what is left of programs.

Guarantee: no test waits for a time. A tracker that is stopped has done all it was told; a program's
output is at its end when its tracker, too, has ended.

Does not belong here: the bookkeeping (`test_backend_tracker_ledger`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import backend_helpers as helpers
import pytest
from backend_helpers import check_code, run_code

from loky.backend import resource_tracker
from loky.backend._resource_tracker_process import NOT_REMOVED
from loky.backend.resource_tracker import ResourceTracker

LONG = 30.0  # seconds; only a bug needs them


@pytest.fixture
def tracker() -> Iterator[ResourceTracker]:
    """A client with a tracker of its own."""
    tracker = ResourceTracker()
    yield tracker
    tracker._stop()


# A tracker ---------------------------------------------------------------------------------------


@pytest.fixture(params=["file", "folder", "semlock"])
def resource(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    rtype = request.param
    if rtype == "semlock":
        from _multiprocessing import SemLock

        name = f"/loky-test-{os.getpid()}"
        SemLock(1, 1, 1, name, False)
    else:
        path = tmp_path / "resource"
        name = str(path)
        path.touch() if rtype == "file" else path.joinpath("deep").mkdir(parents=True)
    yield name, rtype
    if exists(name, rtype):
        resource_tracker._CLEANUP_FUNCS[rtype](name)


def exists(name: str, rtype: str) -> bool:
    if rtype != "semlock":
        return os.path.exists(name)
    from _multiprocessing import SemLock

    try:
        SemLock._rebuild(0, 1, 1, name)
    except FileNotFoundError:
        return False
    return True


def test_real_resources_are_removed(tracker: ResourceTracker, resource: tuple[str, str]) -> None:
    tracker.register(*resource)
    tracker.register(*resource)
    tracker.maybe_unlink(*resource)
    tracker.maybe_unlink(*resource)
    tracker._stop()
    assert not exists(*resource)
    assert tracker._exitcode == 0


def test_unregistered_resources_stay(tracker: ResourceTracker, resource: tuple[str, str]) -> None:
    tracker.register(*resource)
    tracker.register(*resource)
    tracker.unregister(*resource)
    tracker._stop()
    assert exists(*resource)
    assert tracker._exitcode == 0


def test_odd_names(tracker: ResourceTracker, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a:b", " c ", "d\ne", "ü", os.fsdecode(b"\xff"))]
    for path in paths:
        path.touch()
        tracker.register(path, "file")  # paths as well as strings
        tracker.maybe_unlink(str(path), "file")
    tracker._stop()
    assert os.listdir(tmp_path) == []


def test_name_that_no_line_holds(tracker: ResourceTracker) -> None:
    with pytest.raises(ValueError, match="msg too long"):
        tracker.register("x" * 5000, "file")
    assert tracker._fd is None, "not even started"


def test_life(tracker: ResourceTracker) -> None:
    assert (tracker._fd, tracker._pid) == (None, None)
    assert not tracker._check_alive()
    tracker.ensure_running()
    fd, pid = tracker._fd, tracker._pid
    assert fd is not None and pid is not None
    tracker.ensure_running()
    assert (tracker.getfd(), tracker._pid) == (fd, pid)
    assert tracker._check_alive()
    tracker._stop()
    assert (tracker._fd, tracker._pid, tracker._exitcode) == (None, None, 0)
    tracker._stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tracker_ignores_signals(tracker: ResourceTracker, number: int) -> None:
    tracker.ensure_running()
    assert tracker._pid is not None
    os.kill(tracker._pid, number)  # perhaps before it has got as far as to ignore it
    tracker._stop()
    assert tracker._exitcode == 0


def test_tracker_has_a_session_of_its_own(tracker: ResourceTracker) -> None:
    tracker.ensure_running()
    assert tracker._pid is not None
    assert os.getsid(tracker._pid) == tracker._pid != os.getsid(0)


def test_signal_mask_is_restored(tracker: ResourceTracker) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        tracker.ensure_running()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGTERM}
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def kill(tracker: ResourceTracker) -> None:
    assert tracker._pid is not None
    os.kill(tracker._pid, signal.SIGKILL)
    # Waits for its end and leaves the status to the client.
    os.waitid(os.P_PID, tracker._pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize("collected", [False, True], ids=["", "collected by somebody else"])
def test_dead_tracker_is_replaced(
    tracker: ResourceTracker, tmp_path: Path, collected: bool
) -> None:
    tracker.ensure_running()
    pid = tracker._pid
    kill(tracker)
    assert not tracker._check_alive()
    if collected:
        os.waitpid(pid or 0, 0)
    file = tmp_path / "file"
    file.touch()
    with pytest.warns(UserWarning, match="resource_tracker: process died unexpectedly") as caught:
        tracker.register(file, "file")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert tracker._pid not in (None, pid)
    tracker.maybe_unlink(file, "file")
    tracker._stop()
    assert not file.exists(), "the new one was told"


def test_closed_by_somebody_else(tracker: ResourceTracker) -> None:
    tracker.ensure_running()
    assert tracker._fd is not None
    os.close(tracker._fd)
    with pytest.warns(UserWarning, match="died unexpectedly"):
        tracker.ensure_running()


def test_tracker_that_cannot_be_started(
    tracker: ResourceTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    monkeypatch.setitem(sys.modules, "multiprocessing.spawn", None)
    before = set(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None
    with pytest.raises(FileNotFoundError):
        tracker.register("a", "dummy")
    if before is not None:
        assert set(os.listdir("/proc/self/fd")) == before
    monkeypatch.undo()
    tracker.ensure_running()
    tracker._stop()
    assert tracker._exitcode == 0, "what could not be sent is not sent later"


def test_executable_of_multiprocessing_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from multiprocessing import spawn

    monkeypatch.setattr(spawn, "_python_exe", "/another/python")
    assert resource_tracker._command(3)[0] == "/another/python"
    assert "resource_tracker" in resource_tracker._command(3)[-1], "known by that to many"


# One tracker for many ----------------------------------------------------------------------------


def test_calls_from_finalizers(
    tracker: ResourceTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call strikes at every point of another one at which it can: while something is written."""
    files = [tmp_path / name for name in "abcd"]
    for file in files:
        file.touch()
    pending = list(files)
    write_to = ResourceTracker._write_to

    def write_and_be_interrupted(self: ResourceTracker, fd: int, message: bytes) -> bool:
        if pending:
            file = pending.pop()
            self.register(file, "file")
            self.maybe_unlink(file, "file")
        return write_to(self, fd, message)

    monkeypatch.setattr(ResourceTracker, "_write_to", write_and_be_interrupted)
    tracker.ensure_running()
    tracker.ensure_running()
    assert not pending
    tracker._stop()
    assert tracker._exitcode == 0
    assert os.listdir(tmp_path) == []


def test_calls_from_finalizers_while_the_tracker_is_started(
    tracker: ResourceTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = ResourceTracker._launch
    started: list[ResourceTracker] = []

    def launch_and_be_interrupted(self: ResourceTracker) -> None:
        started.append(self)
        if len(started) == 1:
            self.register("a", "dummy")
            self.unregister("a", "dummy")
        launch(self)

    monkeypatch.setattr(ResourceTracker, "_launch", launch_and_be_interrupted)
    tracker.ensure_running()
    assert len(started) == 1
    tracker._stop()
    assert tracker._exitcode == 0


def test_interrupted_call_does_not_block_the_next(
    tracker: ResourceTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.ensure_running()

    def interrupted(*args: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ResourceTracker, "_write_to", interrupted)
        tracker.register("a", "dummy")
    tracker.ensure_running()
    tracker._stop()
    assert tracker._exitcode == 0


def test_threads(tracker: ResourceTracker, tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def use(number: int) -> None:
        barrier.wait(LONG)
        file = tmp_path / f"file {number}"
        file.touch()
        for _ in range(50):
            tracker.register(file, "file")
        for _ in range(50):
            tracker.maybe_unlink(file, "file")

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    tracker._stop()
    assert tracker._exitcode == 0
    assert os.listdir(tmp_path) == []


def test_adopted_tracker(tracker: ResourceTracker, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    tracker.register(file, "file")
    other = ResourceTracker()
    other.adopt(os.dup(tracker.getfd()))
    other.maybe_unlink(file, "file")
    other._stop()
    assert other._fd is not None, "not the other's to stop"
    os.close(other._fd)
    other._fd = None
    tracker._stop()
    assert not file.exists()


def test_located_tracker(tracker: ResourceTracker, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    tracker.register(file, "file")
    other = ResourceTracker()
    answers = [os.dup(tracker.getfd()), None]
    other.locate = lambda: answers.pop(0)
    other.maybe_unlink(file, "file")
    assert answers == [None], "asked once"
    assert other._pid is None
    assert other._fd is not None
    os.close(other._fd)
    other._fd = None
    other.ensure_running()
    assert other._pid is not None, "and when there is none, it starts one"
    other._stop()
    tracker._stop()
    assert not file.exists()


def test_worker_and_parent_count_together(tmp_path: Path) -> None:
    from loky.backend.context import ctx_loky

    file = tmp_path / "file"
    file.touch()
    resource_tracker.register(file, "file")
    resource_tracker.register(file, "file")
    for _ in range(2):
        assert file.exists()
        process = ctx_loky.Process(target=helpers.unlink_reference, args=(str(file),))
        process.start()
        process.join(LONG)
        assert process.exitcode == 0
        process.close()
    resource_tracker._resource_tracker._stop()
    assert not file.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_forked_child_shares_the_tracker() -> None:
    resource_tracker.ensure_running()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            found = resource_tracker._resource_tracker
            resource_tracker.ensure_running()
            os.write(write_end, repr((helpers.identify(found._fd), found._pid)).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end) as file:
        answer = file.read()
    os.waitpid(pid, 0)
    assert answer == repr((helpers.identify(resource_tracker.getfd()), None))


def test_fork_while_another_thread_uses_the_tracker() -> None:
    """The child would wait for ever for the lock of a thread that it does not have."""
    check_code("""
        import os, threading
        from loky.backend import resource_tracker
        from loky.backend.resource_tracker import _resource_tracker as tracker
        tracker.ensure_running()
        held, let_go = threading.Event(), threading.Event()
        def hold():
            with tracker._lock:
                held.set()
                let_go.wait()
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        import warnings
        warnings.simplefilter("ignore")  # of forking with threads
        pid = os.fork()
        if pid == 0:
            tracker.ensure_running()
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        let_go.set()
        thread.join()
        assert status == 0
    """)


# The end of programs -----------------------------------------------------------------------------


def test_nothing_is_left_of_a_program_that_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").touch()
    done = run_code(f"""
        import os, signal
        from loky.backend import resource_tracker
        resource_tracker.register({str(folder)!r}, "folder")
        resource_tracker.register({str(folder / "inner")!r}, "folder")
        resource_tracker.register({str(folder / "inner" / "file")!r}, "file")
        os.killpg(os.setsid() or 0, signal.SIGKILL)
    """)
    assert done.returncode == -signal.SIGKILL
    assert not folder.exists()
    assert "There appear to be 1 leaked file" in done.stderr
    assert "There appear to be 2 leaked folder" in done.stderr
    assert "Error" not in done.stderr


def test_program_waits_for_its_tracker(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    program = subprocess.run(
        [
            *(sys.executable, "-X", "dev", "-c"),
            f"from loky.backend.resource_tracker import register; register({str(file)!r}, 'file')",
        ],
        stderr=subprocess.DEVNULL,  # so that its end is the program's alone
    )
    assert program.returncode == 0
    assert not file.exists()


def test_leaks_can_be_silenced(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    check_code(
        f"from loky.backend import resource_tracker as r; r.register({str(file)!r}, 'file')",
        PYTHONWARNINGS="ignore:resource_tracker:UserWarning",
    )
    assert not file.exists()


def test_main_as_a_program() -> None:
    """The format of the pipe and the exit codes are those of multiprocessing's tracker."""
    read_end, write_end = os.pipe()
    code = f"from loky.backend.resource_tracker import main; main({read_end})"
    with subprocess.Popen(
        [sys.executable, "-c", code], pass_fds=[read_end], stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(read_end)
        os.write(write_end, b"PROBE:0:noop\nREGISTER:test-resource:noop\n")
        os.close(write_end)
        _, err = process.communicate()
    assert process.returncode == NOT_REMOVED
    assert "noop should never be registered" in err


def test_verbose_tracker(tmp_path: Path) -> None:
    done = run_code("""
        from loky.backend import resource_tracker
        resource_tracker.VERBOSE = True
        resource_tracker.register("a", "dummy")
        resource_tracker.maybe_unlink("a", "dummy")
    """)
    assert "[ResourceTracker] decremented refcount of dummy a (current 0)" in done.stderr


def test_files_that_windows_still_holds() -> None:
    check_code("""
        import os, subprocess, sys, time
        from types import ModuleType
        from unittest import mock
        winapi = mock.MagicMock()
        sys.modules["_winapi"], sys.modules["msvcrt"] = winapi, ModuleType("msvcrt")
        pauses, answers = [], [PermissionError(), PermissionError(), None]
        with mock.patch.multiple(sys, platform="win32"), mock.patch.multiple(
            time, sleep=pauses.append
        ), mock.patch.object(os, "unlink", side_effect=answers) as unlink:
            from loky.backend import _win32
            _win32.remove_file("name")
            assert len(pauses) == 2 and unlink.call_count == 3
            unlink.side_effect = PermissionError("held for good")
            try:
                _win32.remove_file("name")
            except PermissionError:
                pass
            else:
                raise AssertionError("silently given up")
            assert unlink.call_count == 13
    """)
