"""Keeps the limits of memory: measures the workers while they work, and says who has to go.

Rule 1: nothing is measured while no task runs, and nothing at all without limits: an idle pool
makes no wake-ups.

Rule 2: this decides which task is to be stopped and when others have to wait, from figures and the
scheduler's records; the scheduler carries it out like any other event.

What counts is the anonymous memory of the worker processes themselves, see `memory`: mapped files
and shared memory are not charged to those who map them, programs that a task starts are not seen.

`max_memory_per_worker` (hard): a worker above it is stopped. The worker looks by itself after each
task (`worker.footprint`), so what is found here is the present task's doing.

`memory_limit` (of all workers together): *room* is what is left of it, or of what the machine or
the control group has available, whichever is less. Below a tenth of the limit there is *pressure*:
tasks are given out only while none runs, so that there is always progress. Below a twentieth we are
at the *brink*: one task is stopped, and no other until its memory is free again. It is the youngest
of those that can be retried, else the youngest: the least work is lost. Tasks that use little are
spared, as to end them would not help; and if the workers together use little, somebody else has
taken the memory, and it would not help to end any.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .. import memory
from ..task_options import MEMORY
from .deaths import Excess
from .model import READY, RETIRING

if TYPE_CHECKING:
    from ..options import PoolOptions
    from .port import Port
    from .scheduler import Scheduler

# How often to look, in seconds. A process takes new memory at 1 to 2 GB/s at most (measured: 1.6,
# that is how fast pages are zeroed), so it gets 80 MB above a limit before it is stopped. A look
# takes 10 us per worker, and 0.2 ms for the machine: below one per cent of a CPU.
INTERVAL = 0.05
# Room left, as parts of the limit, below which tasks wait, and below which one is stopped.
PRESSURE = 0.10
BRINK = 0.05


class Limits:
    """See the top of the file.

    Parameters
    ----------
    options : PoolOptions
        What the user allows.
    scheduler : Scheduler
        Of the pool.

    Attributes
    ----------
    needed : bool
        Whether there is anything to look at, ever.
    """

    def __init__(self, options: PoolOptions, scheduler: Scheduler) -> None:
        self.needed = options.max_memory_per_worker is not None or options.memory_limit is not None
        self._each = options.max_memory_per_worker
        self._all = options.memory_limit
        # Whether there is anything to look at, ever.
        self.needed = self._each is not None or self._all is not None
        self._scheduler = scheduler
        self._next: float | None = None
        self._victim: Port | None = None

    def due(self, now: float) -> float | None:
        """When to look next; None while there is nothing to see."""
        if not self._scheduler.busy:
            self._next = None
            self._scheduler.pressed = False
        elif self._next is None:
            self._next = now + INTERVAL
        return self._next

    def look(self, ports: Iterable[Port], now: float) -> None:
        """If it is time to, measure, and have stopped who has to be."""
        due = self.due(now)
        if due is None or now < due:
            return
        self._next = now + INTERVAL
        ports = list(ports)
        self._measure(ports)
        if self._each is not None:
            for port in ports:
                if port.footprint > self._each:
                    self._too_much(port, "max_memory_per_worker", self._each)
        if self._all is not None:
            self._look_at_all(ports, self._all)

    def _measure(self, ports: list[Port]) -> None:
        for port in ports:
            if port.process is not None:
                # One that has ended has given back all.
                port.footprint = memory.anonymous(port.process.pid) or 0

    def _look_at_all(self, ports: list[Port], limit: int) -> None:
        used = sum(port.footprint for port in ports)
        room = limit - used
        found = memory.total_and_available()
        if found is not None:
            room = min(room, found[1])
        self._scheduler.pressed = room < PRESSURE * limit
        if not self._scheduler.pressed:
            return
        for port in ports:
            worker = port.worker
            if worker.state == READY and not worker.line:
                if port.footprint > limit / 2 / self._scheduler.max_workers:
                    self._scheduler.recycle(worker, "memory_limit")
        victim = self._victim
        if victim is not None and victim.footprint and victim in ports:
            return  # its memory is about to be free
        self._victim = None
        if room < BRINK * limit and used > BRINK * limit:
            self._victim = self._choose(ports, used)
            if self._victim is not None:
                self._too_much(self._victim, "memory_limit", limit)

    def _choose(self, ports: list[Port], used: int) -> Port | None:
        """Whose task is to be stopped."""
        running = [port for port in ports if _is_running(port)]
        mean = used / max(1, len(running))
        large = [port for port in running if port.footprint >= mean / 2]
        return max(
            large,
            key=lambda port: (_can_be_retried(port), port.worker.head_since),
            default=None,
        )

    def _too_much(self, port: Port, option: str, limit: int) -> None:
        worker = port.worker
        if _is_running(port):
            port.excess = Excess(option, limit, port.footprint)
            self._scheduler.stop(worker.line[0], MEMORY)
        else:  # left over by a task, or taken by a thread of its
            self._scheduler.recycle(worker, option)


def _is_running(port: Port) -> bool:
    worker = port.worker
    return (
        worker.was_ready
        and worker.state != RETIRING
        and bool(worker.line)
        and worker.line[0].on_wire
        and worker.line[0].stop_wanted is None
    )


def _can_be_retried(port: Port) -> bool:
    control = port.worker.line[0].control
    if control is None:
        return False
    options = control.options
    return MEMORY in options.retry_on and len(control.attempts) < options.retries
