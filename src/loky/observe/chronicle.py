"""What has happened in one pool: counted, and told to those who want to know.

Rule 1: the leader calls this, one short method per event; `task_ended` alone may come from any
thread that settles a future.

Rule 2: no code of the user's runs here: what is told to the logger is put with the other endings,
which are for the user (`pool.telling`).

Rule 3: nothing is counted per task here that succeeds on the short way: the scheduler counts each
worker's tasks, and those of them that went another way are counted here.
"""

from __future__ import annotations

from _thread import RLock
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any

from ..pool.model import MAX_TASKS, RETIRING, STARTING
from . import events

if TYPE_CHECKING:
    from ..pool.launcher import ExitInfo
    from ..pool.model import Worker
    from ..pool.port import Port
    from ..pool.scheduler import Scheduler

# Why workers end. The first three by themselves, the next three were stopped because of their task.
CRASH, CRASH_IDLE, CRASH_STARTING = "crash", "crash_idle", "crash_starting"
CANCEL, TIMEOUT, MEMORY = "cancel", "timeout", "memory"
NOT_NEEDED, SHUTDOWN, BROKEN = "not_needed", "shutdown", "broken"
# These cost the pool a worker that it has no use for any more; all others are replaced.
WITHOUT_REPLACEMENT = frozenset({NOT_NEEDED, SHUTDOWN, BROKEN})
# These happen in the ordinary course of things.
_ORDINARY = frozenset({MAX_TASKS, NOT_NEEDED, SHUTDOWN})

_numbers = count(1)


class Chronicle:
    """See the top of the file.

    Parameters
    ----------
    scheduler : Scheduler
        Of the pool.
    endings : deque
        Where what may run code of the user's is put.
    """

    def __init__(self, scheduler: Scheduler, endings: deque[Any]) -> None:
        self.number = next(_numbers)
        self.completed = 0  # other than on the short way, see rule 3
        self.replies = 0  # of workers, that did not go the short way
        self.failed = 0
        self.cancelled = 0
        self.started = 0
        self.ended: dict[str, int] = {}  # workers, by cause
        # Of workers that are gone:
        self.tasks_done = 0
        self.busy_seconds = 0.0
        self.worker_seconds = 0.0
        self.bytes_sent = 0
        self.bytes_received = 0
        self._scheduler = scheduler
        self._endings = endings
        self._counting = RLock()  # re-entrant: finalizers settle futures
        self._told_of_the_break = False
        self._told_of_the_end = False

    # ------------------------------------------------------------------ tasks

    def task_ended(self, error: BaseException | None, *, cancelled: bool) -> None:
        """A future got its end, other than on the short way."""
        with self._counting:
            if cancelled:
                self.cancelled += 1
            elif error is not None:
                self.failed += 1
            else:
                self.completed += 1

    # ------------------------------------------------------------------ workers

    def worker_started(self, port: Port) -> None:
        """A process was started."""
        self.started += 1
        if events.is_wanted(events.DEBUG):
            self._tell(events.DEBUG, "worker started", "worker %d has been started", _pid(port))

    def worker_ready(self, port: Port, now: float) -> None:
        """A worker has run its initializer."""
        if events.is_wanted(events.DEBUG):
            seconds = now - port.worker.started
            self._tell(
                events.DEBUG,
                "worker ready",
                "worker %d is ready after %.3g s",
                _pid(port),
                seconds,
                seconds=seconds,
            )

    def worker_killed(self, port: Port, reason: str) -> None:
        """A worker is about to be ended."""
        self._tell_if_broken()
        if events.is_wanted(events.INFO):
            text = "worker %d is being ended: %s"
            self._tell(events.INFO, "worker killed", text, _pid(port), reason, reason=reason)

    def worker_ended(self, port: Port, exit: ExitInfo, now: float) -> None:
        """A worker is gone; the scheduler does not know yet."""
        worker = port.worker
        cause = self._cause(worker)
        self.ended[cause] = self.ended.get(cause, 0) + 1
        self.busy_seconds += worker.busy_seconds
        if worker.line and worker.state != STARTING:
            self.busy_seconds += max(0.0, now - worker.busy_since)
        self.tasks_done += worker.tasks_done
        self.worker_seconds += now - worker.started
        self.bytes_sent += port.bytes_sent
        self.bytes_received += port.bytes_received
        level = events.DEBUG if cause in _ORDINARY else events.INFO
        if events.is_wanted(level):
            name = "worker recycled" if cause == worker.cause else "worker ended"
            text = "worker %d has ended (%s): %s"
            self._tell(level, name, text, _pid(port), exit, cause, reason=cause, exitcode=exit.code)

    def _cause(self, worker: Worker) -> str:
        if worker.doomed is not None:
            return worker.doomed.stop_wanted or CANCEL
        if worker.state == STARTING:
            return CRASH_STARTING
        if worker.quits and worker.cause is not None:
            return worker.cause
        if worker.state != RETIRING:
            return CRASH if worker.line else CRASH_IDLE
        if self._scheduler.broken is not None:
            return BROKEN
        if worker.cause is not None:
            return worker.cause
        return SHUTDOWN if self._scheduler.closing else NOT_NEEDED

    # ------------------------------------------------------------------ the pool

    def pool_resized(self, max_workers: int) -> None:
        """Another number of workers was asked for."""
        if events.is_wanted(events.INFO):
            text = "the pool shall have %d workers at most"
            self._tell(events.INFO, "pool resized", text, max_workers, max_workers=max_workers)

    def pool_closed(self) -> bool:
        """All is over; whether there is something to tell before the pool is closed."""
        if self._told_of_the_end or not events.is_wanted(events.INFO):
            return False
        self._told_of_the_end = True
        self._tell_if_broken()
        self._tell(events.INFO, "pool closed", "the pool is closed")
        return True

    def _tell_if_broken(self) -> None:
        broken = self._scheduler.broken
        if broken is None or self._told_of_the_break:
            return
        self._told_of_the_break = True
        if events.is_wanted(events.INFO):
            text = "the pool is broken: %s"
            self._tell(events.INFO, "pool broken", text, broken.reason, reason=broken.reason)

    def _tell(self, level: int, event: str, text: str, *arguments: Any, **fields: Any) -> None:
        fields.update(event=event, pool=self.number)
        if event.startswith("worker"):
            fields["pid"] = arguments[0]
        text = f"pool %d: {text}"
        self._endings.append((events.emit, level, (text, (self.number, *arguments), fields)))


def _pid(port: Port) -> int:
    assert port.process is not None
    return port.process.pid
