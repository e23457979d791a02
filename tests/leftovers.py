"""What a piece of code may leave behind: child processes, threads and file descriptors.

`Snapshot()` notes what there is; `snapshot.leftovers()` waits, for a bounded time, until what came
since is gone, and describes what is not. The fixtures in `conftest` are made of these two.

Guarantee: the wait is for events (the end of a thread, the end of a process), never for a time, so
a test that leaves nothing behind is not slowed down, and a loaded machine does not make it fail.

Assumption: what takes longer than `BOUND` to end is not going to end.

Not counted: the helper processes that the standard library keeps for the life of the interpreter
once they are needed (resource tracker, fork server), with their descriptors; `loky.backend` has a
tracker of the same kind, and so has joblib. Nor the memory that `multiprocessing.heap` keeps for
its next customer.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator

import psutil

BOUND = 10.0  # seconds, for all threads together and again for all processes

# module, object in it, attribute with a process id, attribute with a descriptor
_HELPERS = (
    ("multiprocessing.resource_tracker", "_resource_tracker", "_pid", "_fd"),
    ("multiprocessing.forkserver", "_forkserver", "_forkserver_pid", "_forkserver_alive_fd"),
    ("loky.backend.resource_tracker", "_resource_tracker", "_pid", "_fd"),
    ("joblib.externals.loky.backend.resource_tracker", "_resource_tracker", "_pid", "_fd"),
)


class Snapshot:
    """The children, threads and descriptors of this process at one moment."""

    def __init__(self) -> None:
        self.processes = set(_children())
        self.threads = set(_threads())
        self.descriptors = _descriptors()

    def leftovers(self) -> list[str]:
        """Wait until what came since this snapshot is gone; return a line for each that is not."""
        gc.collect()  # a pool that sits in a reference cycle is waiting for just this
        # Threads first: those that look after processes collect them before they end, and we must
        # not do that in their place.
        threads = [thread for thread in _threads() if thread not in self.threads]
        deadline = time.monotonic() + BOUND
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        found = [f"thread {thread!r}" for thread in threads if thread.is_alive()]
        found += self.processes_left()
        opened = _descriptors()
        # By number and not by identity: what was open before may have been opened anew.
        if len(opened) > len(self.descriptors):
            found += [
                f"descriptor {number} -> {target}"
                for number, target in sorted(opened.items())
                if self.descriptors.get(number) != target
            ]
        return found

    def new_processes(self) -> list[psutil.Process]:
        """The processes that came since this snapshot and are still there, with no waiting."""
        return [process for process in _children() if process not in self.processes]

    def processes_left(self) -> list[str]:
        """Like `leftovers`, for processes only."""
        _, alive = psutil.wait_procs(self.new_processes(), timeout=BOUND)
        return [f"process {_describe(process)}" for process in alive]


def _children() -> list[psutil.Process]:
    helpers = {pid for pid, _ in _helpers()}
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        if child.pid in helpers:
            continue
        found.append(child)
        try:
            found += child.children(recursive=True)
        except psutil.NoSuchProcess:
            pass
    return found


def _threads() -> list[threading.Thread]:
    # A dummy stands for a thread that something else than `threading` started: it cannot be joined
    # and stays in the list when its thread ends.
    return [t for t in threading.enumerate() if not isinstance(t, threading._DummyThread)]


def _descriptors() -> dict[int, str]:
    helpers = {descriptor for _, descriptor in _helpers()}
    found = {}
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:  # not Linux: no descriptors are checked there
        return {}
    for name in names:
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the one that listed the directory
            continue
        if int(name) not in helpers and "/pym-" not in target:
            found[int(name)] = target
    return found


def _helpers() -> Iterator[tuple[object, object]]:
    for module, name, pid, descriptor in _HELPERS:
        helper = getattr(sys.modules.get(module), name, None)
        if helper is not None:
            yield getattr(helper, pid, None), getattr(helper, descriptor, None)


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} ({process.status()}): {' '.join(process.cmdline())}"
    except psutil.Error:
        return str(process)
