"""Figures about a pool: what it has done, what it is doing.

Rule 1: `take` reads the pool's records and is for the leader (`Supervisor.ask`); names of tasks are
made later, see `roll`.

Rule 2: nothing is counted for these figures alone where a task would have to pay for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..pool import outcome
from ..pool.model import SETTLE, Task
from .chronicle import WITHOUT_REPLACEMENT
from .roll import Entry, call_the_roll

if TYPE_CHECKING:
    from ..pool.supervisor import Supervisor

_STATES = ("new", "open", "closing", "closed", "abandoned")
_SETTLES = (outcome.deliver, outcome.settle, outcome.fail)


@dataclass(frozen=True)
class WorkerStats:
    """One worker.

    Attributes
    ----------
    pid : int
        Its process id.
    state : {"starting", "idle", "busy", "leaving"}
        What it is doing.
    task : str or None
        Name of the task that it runs.
    seconds : float
        For how long it has been in that state, with that task.
    tasks_done : int
        How many tasks it has answered.
    busy_seconds : float
        How long these have taken, and the present one so far.
    """

    pid: int
    state: str
    task: str | None
    seconds: float
    tasks_done: int
    busy_seconds: float


@dataclass(frozen=True)
class Stats:
    """What a pool has done since it was made, and is doing.

    Of the calls, ``submitted == completed + failed + cancelled + pending``.

    Attributes
    ----------
    state : {"new", "open", "closing", "closed", "broken", "abandoned"}
        Of the pool: ``"new"`` before the first call, ``"abandoned"`` in the child of a fork.
    max_workers : int
        How many workers there may be.
    submitted, completed, failed, cancelled : int
        Calls: all of them, those that returned something, those whose future has an exception, and
        those that were cancelled. A chunk of a `map` counts as one.
    pending : int
        Calls that are not over.
    queued : int
        Of the pending ones, those that no worker is running.
    retried : int
        How many times a call was tried again.
    started : int
        Worker processes that were started.
    ended : dict of str to int
        Worker processes that have ended, by cause: ``"crash"`` while running a task,
        ``"crash_idle"``, ``"crash_starting"``; stopped because of their task: ``"cancel"``,
        ``"timeout"``, ``"memory"``; replaced: ``"max_tasks_per_child"``, for the memory they used
        ``"memory_leak"``, ``"recycle_memory_per_worker"``, ``"max_memory_per_worker"``,
        ``"memory_limit"``; ``"not_needed"`` (idle for too long, or the pool was made smaller),
        ``"shutdown"``, ``"broken"``.
    busy_seconds, worker_seconds : float
        How long all workers have been running tasks, and how long they have existed. Two looks
        at these tell of the time between.
    bytes_sent, bytes_received : int
        Pickled tasks that went to the workers, and what came back.
    workers : tuple of WorkerStats
        The workers there are, the oldest first.
    """

    state: str
    max_workers: int
    submitted: int
    completed: int
    failed: int
    cancelled: int
    pending: int
    queued: int
    retried: int
    started: int
    ended: dict[str, int]
    busy_seconds: float
    worker_seconds: float
    bytes_sent: int
    bytes_received: int
    workers: tuple[WorkerStats, ...]

    @property
    def restarts(self) -> dict[str, int]:
        """Of the ended workers, those that had to be replaced, by cause."""
        return {
            cause: number
            for cause, number in self.ended.items()
            if cause not in WITHOUT_REPLACEMENT
        }

    @property
    def busy_fraction(self) -> float:
        """Share of the workers' time, from 0 to 1, that went into tasks."""
        if not self.worker_seconds:
            return 0.0
        return min(1.0, self.busy_seconds / self.worker_seconds)


def stats(pool: Supervisor) -> Stats:
    """Figures about this pool, whatever its state."""
    figures, entries = pool.ask(lambda: _take(pool))
    workers = tuple(
        WorkerStats(
            pid=entry.pid,
            state=entry.state,
            task=entry.task_name(),
            seconds=entry.seconds,
            tasks_done=entry.tasks_done,
            busy_seconds=entry.busy_seconds,
        )
        for entry in entries
    )
    return Stats(**figures, workers=workers)


def _take(pool: Supervisor) -> tuple[dict[str, Any], list[Entry]]:
    now = monotonic()
    scheduler = pool.scheduler
    chronicle = pool.chronicle
    entries = call_the_roll(pool)
    replies = chronicle.tasks_done + sum(entry.tasks_done for entry in entries)
    completed = chronicle.completed + replies - chronicle.replies
    pending = 0 if pool.is_closed() else scheduler.outstanding + _on_the_way(pool)
    running = sum(entry.is_running for entry in entries)
    ports = [entry.worker.port for entry in entries]
    broken = scheduler.broken is not None and pool.state < _STATES.index("abandoned")
    figures = {
        "state": "broken" if broken else _STATES[pool.state],
        "max_workers": scheduler.max_workers,
        "submitted": completed + chronicle.failed + chronicle.cancelled + pending,
        "completed": completed,
        "failed": chronicle.failed,
        "cancelled": chronicle.cancelled,
        "pending": pending,
        "queued": max(0, pending - running),
        "retried": scheduler.retried,
        "started": chronicle.started,
        "ended": dict(chronicle.ended),
        "busy_seconds": chronicle.busy_seconds + sum(entry.busy_seconds for entry in entries),
        "worker_seconds": chronicle.worker_seconds
        + sum(now - entry.worker.started for entry in entries),
        "bytes_sent": chronicle.bytes_sent + sum(port.bytes_sent for port in ports),
        "bytes_received": chronicle.bytes_received + sum(port.bytes_received for port in ports),
    }
    return figures, entries


def _on_the_way(pool: Supervisor) -> int:
    """Calls with a pending future that the scheduler has not seen yet, or has done with."""
    coming = sum(type(event) is Task for event in list(pool._inbox))
    endings = list(pool._endings)
    if pool._relay is not None:
        endings += pool._relay.held()
    leaving = sum(ending[0] in _SETTLES for ending in endings)
    decided = sum(decision[0] == SETTLE for decision in pool.scheduler.decisions)
    return coming + leaving + int(decided)
