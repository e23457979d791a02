"""Tests of `leftovers`: the check that other tests rely on must see what it is there to see.

Guarantee: nothing made here outlives its test.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import leftovers
import pytest
from leftovers import Snapshot


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests know that what they look for will not go away."""
    monkeypatch.setattr(leftovers, "BOUND", 0.01)


def start_child() -> subprocess.Popen[bytes]:
    """Start a process that runs until its standard input is closed."""
    command = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def test_nothing_left() -> None:
    assert Snapshot().leftovers() == []


def test_process_left(impatient: None) -> None:
    before = Snapshot()
    with start_child() as child:
        (line,) = before.processes_left()
        assert f"process {child.pid} " in line
        assert "sys.stdin.read" in line
    assert before.leftovers() == []


def test_process_that_was_there_before(impatient: None) -> None:
    with start_child():
        assert Snapshot().leftovers() == []


def test_process_that_is_ending_is_waited_for() -> None:
    before = Snapshot()
    child = start_child()
    assert child.stdin is not None
    child.stdin.close()  # which lets it end, some time after this
    assert before.leftovers() == []
    assert child.wait() == 0


def test_thread_left(impatient: None) -> None:
    before = Snapshot()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="the one that stays")
    thread.start()
    try:
        (line,) = before.leftovers()
        assert "the one that stays" in line
    finally:
        end.set()
    thread.join()
    assert before.leftovers() == []


def test_thread_that_is_ending_is_waited_for() -> None:
    before = Snapshot()
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    threading.Timer(0.0, end.set).start()  # its own thread is one more to wait for
    assert before.leftovers() == []
    assert not thread.is_alive()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc/self/fd")
def test_descriptor_left() -> None:
    before = Snapshot()
    read, write = os.pipe()
    try:
        lines = before.leftovers()
        assert len(lines) == 2
        assert all("-> pipe:" in line for line in lines)
    finally:
        os.close(read)
        os.close(write)
    assert before.leftovers() == []


def test_helpers_of_the_standard_library_are_not_counted() -> None:
    code = """
from leftovers import Snapshot
before = Snapshot()
from multiprocessing import resource_tracker
resource_tracker.ensure_running()
assert resource_tracker._resource_tracker._pid is not None
print(before.leftovers())
"""
    if sys.platform == "win32":
        pytest.skip("there is no such helper")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=os.path.dirname(__file__),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
