"""Tests of `loky.backend.synchronize`: semaphores work across processes and do not stay behind.

Does not belong here: the algorithms, which are multiprocessing's.
"""

from __future__ import annotations

import gc
import os
import signal
from _multiprocessing import SemLock as CSemLock
from typing import Any

import backend_helpers as helpers
import pytest
from backend_helpers import check_code, run_code

from loky.backend import resource_tracker, synchronize
from loky.backend.context import ctx_loky
from loky.backend.synchronize import (
    BoundedSemaphore,
    Condition,
    Event,
    Lock,
    RLock,
    Semaphore,
    SemLock,
    sem_unlink,
)

LONG = 30.0  # seconds; only a bug needs them

KINDS = [Lock, RLock, Semaphore, BoundedSemaphore, Condition, Event]

pytestmark = pytest.mark.usefixtures("no_leftovers")


def start(target: Any, *args: Any) -> Any:
    process = ctx_loky.Process(target=target, args=args)
    process.start()
    return process


def finish(process: Any) -> None:
    process.join(LONG)
    assert process.exitcode == 0
    process.close()


def exists(name: str) -> bool:
    try:
        CSemLock._rebuild(0, synchronize.SEMAPHORE, 1, name)
    except FileNotFoundError:
        return False
    return True


# What they do ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_context_makes_them(kind: type) -> None:
    assert type(getattr(ctx_loky, kind.__name__)()) is kind
    assert isinstance(kind(), getattr(synchronize._multiprocessing, kind.__name__))
    assert kind.__name__ in repr(kind())


def test_lock() -> None:
    lock = Lock()
    with lock:
        assert not lock.acquire(False)
        assert not lock.acquire(timeout=0.01)
    with pytest.raises(ValueError, match="released too many times"):
        lock.release()


def test_rlock() -> None:
    lock = RLock()
    with lock, lock:
        pass
    with pytest.raises(AssertionError, match="not owned by thread"):
        lock.release()


def test_semaphores() -> None:
    semaphore, bounded = Semaphore(2), BoundedSemaphore(2)
    for each in (semaphore, bounded):
        assert each.acquire() and each.acquire() and not each.acquire(False)
        each.release()
        each.release()
    semaphore.release()
    assert semaphore.get_value() == 3
    with pytest.raises(ValueError, match="released too many times"):
        bounded.release()
    assert ctx_loky.BoundedSemaphore(3).get_value() == 3


def test_lock_between_processes() -> None:
    lock, held, let_go = Lock(), Event(), Event()
    process = start(helpers.hold, lock, held, let_go)
    assert held.wait(LONG)
    assert not lock.acquire(False)
    assert "SomeOtherProcess" in repr(lock)
    let_go.set()
    finish(process)
    assert lock.acquire(False)
    lock.release()


def test_event_between_processes() -> None:
    ours, theirs = Event(), Event()
    process = start(helpers.set_when_set, ours, theirs)
    assert not theirs.is_set()
    ours.set()
    assert theirs.wait(LONG)
    finish(process)
    theirs.clear()
    assert not theirs.wait(0.01)


@pytest.mark.parametrize("lock", [None, Lock, RLock])
def test_condition_between_processes(lock: Any) -> None:
    condition, came = Condition(lock and lock()), Semaphore(0)
    with condition:
        process = start(helpers.notify, condition, came)
        assert condition.wait_for(lambda: came.get_value() == 1, LONG)
        assert not condition.wait(0.01)
    finish(process)


@pytest.mark.parametrize("kind", KINDS)
def test_can_be_passed_on_by_a_process_that_got_it(kind: type) -> None:
    shared = kind()
    finish(start(helpers.pass_on, shared))


# What is left of them ----------------------------------------------------------------------------


def test_names() -> None:
    lock = Lock()
    assert lock.name is None
    name = lock._semlock.name
    assert name.startswith(f"/loky-{os.getpid()}-")
    assert len(name) <= 30, "macOS has no room for more"
    assert exists(name)
    del lock
    gc.collect()
    assert not exists(name)


def test_name_of_the_callers() -> None:
    name = f"/loky-test-{os.getpid()}"
    lock = SemLock(synchronize.SEMAPHORE, 1, 1, name)
    assert lock.name == name
    with pytest.raises(FileExistsError):
        SemLock(synchronize.SEMAPHORE, 1, 1, name)
    del lock
    gc.collect()
    assert not exists(name)


def test_name_that_is_taken_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Lock()
    names = iter([first._semlock.name, f"/loky-test-{os.getpid()}"])
    monkeypatch.setattr(SemLock, "_make_name", staticmethod(lambda: next(names)))
    assert Lock()._semlock.name == f"/loky-test-{os.getpid()}"


def test_no_name_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Lock()
    monkeypatch.setattr(SemLock, "_make_name", staticmethod(lambda: first._semlock.name))
    with pytest.raises(FileExistsError, match="cannot find name"):
        Lock()


def test_removed_by_somebody_else(capfd: pytest.CaptureFixture[str]) -> None:
    lock = Lock()
    sem_unlink(lock._semlock.name)
    del lock
    gc.collect()
    assert capfd.readouterr().err == ""


def test_tracker_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, ...]] = []
    for name in ("register", "unregister"):
        monkeypatch.setattr(
            resource_tracker, name, lambda *args, name=name: told.append((name, *args))
        )
    lock = Lock()
    name = lock._semlock.name
    del lock
    gc.collect()
    assert told == [("register", name, "semlock"), ("unregister", name, "semlock")]


def test_program_that_ends_well_leaves_none() -> None:
    out = check_code("""
        from loky.backend.synchronize import Event, Lock
        event, lock = Event(), Lock()
        print(lock._semlock.name)
    """)
    assert not exists(out.strip())


def test_program_that_is_killed_leaves_none() -> None:
    done = run_code("""
        import os, signal
        from loky.backend.synchronize import Lock
        lock = Lock()
        print(lock._semlock.name, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    # All have ended who could write there, so the tracker has as well.
    assert done.returncode == -signal.SIGKILL
    assert not exists(done.stdout.strip())
    assert "resource_tracker: There appear to be 1 leaked semlock objects" in done.stderr
