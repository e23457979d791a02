"""When the time of running tasks is up.

Guarantee: adding, asking and expiring cost no more than the logarithm of the number of workers,
however many tasks have come and gone: entries of tasks that have ended meanwhile are thrown away,
and none keeps its task alive.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from .model import Task, Worker

# Outdated entries are swept out when there are this many entries, and at least twice as many as
# were left the last time.
SWEEP = 64


class Deadlines:
    """See the top of the file. Nothing is watched if `heap` is empty."""

    def __init__(self) -> None:
        # When; number and turn of the task, by which an entry of an earlier attempt is told from
        # one of this; who runs it.
        self.heap: list[tuple[float, int, int, Worker]] = []
        self._sweep_at = SWEEP

    def start(self, task: Task, now: float) -> None:
        """The task can be running from now on: count its time."""
        control = task.control
        if control is not None and control.options.timeout is not None:
            worker = task.worker
            assert worker is not None
            heappush(self.heap, (now + control.options.timeout, task.id, task.turn, worker))
            if len(self.heap) >= self._sweep_at:
                self.heap = [entry for entry in self.heap if _task_of(entry) is not None]
                heapify(self.heap)
                self._sweep_at = max(SWEEP, 2 * len(self.heap))

    def next(self) -> float | None:
        """When the next one is due."""
        heap = self.heap
        while heap and _task_of(heap[0]) is None:
            heappop(heap)
        return heap[0][0] if heap else None

    def expired(self, now: float) -> Iterator[Task]:
        """Those that are due by now, once."""
        while (due := self.next()) is not None and due <= now:
            task = _task_of(heappop(self.heap))
            assert task is not None
            yield task


def _task_of(entry: tuple[float, int, int, Worker]) -> Task | None:
    """The task of an entry, if it is still the attempt that the entry is about."""
    _, number, turn, worker = entry
    if worker.line:
        task = worker.line[0]
        if task.id == number and task.turn == turn and task.stop_wanted is None:
            return task
    return None
