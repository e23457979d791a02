"""Compatibility only: the private attributes of an executor that callers of loky 3 know.

They are made when they are asked for (see `ProcessPoolExecutor.__getattr__`); nothing of our own
uses them. Which there are, and which are not, stands in docs/compatibility.md.

Rule 1: these are views. They read what any thread may read; whatever changes something is posted
to the pool, whose leader is the only one that touches processes.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pool.port import Port
    from .pool.supervisor import Supervisor
    from .process_executor import ProcessPoolExecutor

_PAUSE = 0.005  # between two looks at a process that somebody waits for, in seconds


class WorkerProcess:
    """A worker, with the methods that a `multiprocessing.Process` has.

    Attributes
    ----------
    pid : int
        Its process id.
    """

    def __init__(self, pool: Supervisor, port: Port) -> None:
        assert port.process is not None
        self._pool = pool
        self._process = port.process
        self.pid = self._process.pid

    @property
    def ident(self) -> int:
        """The process id, under its other name."""
        return self.pid

    @property
    def exitcode(self) -> int | None:
        """Exit code, minus the signal's number if a signal ended it; ``None`` while it runs.

        255 if nobody knows any more, as multiprocessing has it: somebody else took the status.
        """
        exit = self._process.exit
        if exit is None:
            return None
        return 255 if exit.code is None else exit.code

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.exit is None and not self._pool.is_closed()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, at most so many seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._pool.will_wait()
        while self.is_alive() and (deadline is None or time.monotonic() < deadline):
            time.sleep(_PAUSE)

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self._pool.post(self._process.signal, signal.SIGTERM)

    def kill(self) -> None:
        """End it, and what it has started, now."""
        self._pool.post(self._process.kill)

    def __repr__(self) -> str:
        state = "running" if self.is_alive() else f"exitcode={self.exitcode}"
        return f"<WorkerProcess pid={self.pid} {state}>"


class Flags:
    """The state of an executor. It can outlive the executor, whose collection it tells of."""

    def __init__(self, pool: Supervisor) -> None:
        self._pool = pool

    @property
    def broken(self) -> BaseException | None:
        """What `submit` raises if the pool is broken."""
        from .pool.deaths import error_for

        broken = self._pool.broken
        return None if broken is None else error_for(broken)

    @property
    def shutdown(self) -> bool:
        """Whether no calls are accepted any more, for whatever reason."""
        return self._pool.refusing

    @property
    def kill_workers(self) -> bool:
        """Whether it was shut down with its workers to be ended at once."""
        return self._pool.scheduler.killed


class ManagerThread:
    """The watching of the pool: alive as long as anything of it is left."""

    def __init__(self, pool: Supervisor) -> None:
        self._pool = pool

    def is_alive(self) -> bool:
        """Whether the pool has begun and something of it is left."""
        return self._pool.has_begun() and not self._pool.is_closed()

    def join(self, timeout: float | None = None) -> None:
        """Wait until every future is settled and every worker gone, at most so many seconds."""
        if self._pool.has_begun():
            self._pool.wait_closed(timeout)


def _context(executor: ProcessPoolExecutor) -> Any:
    from .backend.context import get_context

    return get_context(executor._options.start_method)


def _manager_thread(executor: ProcessPoolExecutor) -> ManagerThread | None:
    thread = ManagerThread(executor._pool)
    return thread if thread.is_alive() else None


def _processes(executor: ProcessPoolExecutor) -> dict[int, WorkerProcess]:
    pool = executor._pool
    workers = [WorkerProcess(pool, port) for port in pool.ports()]
    return {worker.pid: worker for worker in workers}


ATTRIBUTES: dict[str, Callable[[ProcessPoolExecutor], Any]] = {
    "_context": _context,
    "_env": lambda executor: executor._options.env,
    "_executor_manager_thread": _manager_thread,
    "_flags": lambda executor: Flags(executor._pool),
    "_initargs": lambda executor: executor._options.initargs,
    "_initializer": lambda executor: executor._options.initializer,
    "_processes": _processes,
    "_timeout": lambda executor: executor._options.timeout,
}
