"""Who is to take the place of a worker that has to leave, so that its place is never cold.

A worker that has to leave for good (it uses too much memory, or has nearly run its number of tasks)
gets an *heir* first: a worker that starts, with its initializer and all, while the *elder* goes on
with its tasks. Until the elder goes, the heir is a *spare*: it is given nothing, and it does not
count as one of the pool's workers. Once the elder takes no more tasks, the heir has its place.

Guarantees:

- an elder that uses too much memory takes no more tasks once its heir is ready, not before;
- one whose number of tasks is limited gets its heir early enough that it is ready when the number
  is reached, as far as starts and tasks take as long as they did lately;
- spares, and workers that are at their last tasks, are never more than `max_workers` together, so
  a pool has at most twice as many processes as workers.

What does not belong here: what else decides about workers (see `scheduler`). Plain records, as
there: no clock and no I/O.
"""

from __future__ import annotations

from .model import Worker

# An heir starts when the tasks left to its elder will take this many times a usual start: starts
# vary more than tasks do, and an heir that waits costs only memory.
EARLY = 2.0


class Succession:
    """Elders and heirs; see the top of the file.

    Attributes
    ----------
    wanted : dict of Worker to None
        Workers that need an heir and have none, in the order in which they came to need one.
    spares : int
        How many heirs wait for their elders to go.
    """

    def __init__(self) -> None:
        self.wanted: dict[Worker, None] = {}
        self.spares = 0

    def adopt(self, elder: Worker, heir: Worker) -> None:
        """This worker, which is about to start, is to take the other's place."""
        del self.wanted[elder]
        elder.heir = heir
        heir.elder = elder
        self.spares += 1

    def part(self, heir: Worker) -> None:
        """The heir has taken its elder's place, or never will."""
        elder = heir.elder
        assert elder is not None
        elder.heir = heir.elder = None
        self.spares -= 1

    def needs_an_heir(
        self, worker: Worker, duration: float | None, usual_start: float | None
    ) -> bool:
        """Whether the worker will have to leave soon, as far as tasks and starts take that long."""
        if worker.cause is not None:
            return True
        if worker.budget < 0:
            return False
        tasks = worker.budget + len(worker.line)
        if tasks <= 1 or duration is None or usual_start is None:
            return tasks <= 1  # one ahead at least: it may be submitted at any time, and be short
        return (tasks - 1) * duration <= EARLY * usual_start
