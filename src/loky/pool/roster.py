"""The workers as the scheduler has them: in which state, how loaded, who may be given a task.

Rule 1: plain records, as the scheduler's: no clock, no I/O, no user code. What is decided about
workers is appended to the scheduler's `decisions`.

Rule 2: the scheduler reads the records, and changes in place what changes with every task (lines,
`busy`, who leaves a bucket to be given a task): a call per task is dear. What else becomes of a
worker goes through a method.

Guarantees, checked by the tests with the scheduler's invariants:

- a worker is in the bucket of its load exactly if it is ready, may be given more tasks, and is not
  held back: its line being taken back, its head slow, or lent to a submitter;
- `live` counts the workers that are starting or ready, without spares; it exceeds `max_workers` at
  no time but in a shrinking pool;
- work per change is constant. Resizes, ends of pools and looks at the clock may cost one pass.

What does not belong here: tasks and their fate (`scheduler`), and whose heir is whose
(`succession`).
"""

from __future__ import annotations

from typing import Any

from .model import (
    DRAINING,
    KILL,
    MAX_TASKS,
    READY,
    RECALL,
    RETIRE,
    RETIRING,
    START,
    STARTING,
    Worker,
)
from .pace import MAX_AHEAD, Pace
from .succession import Succession

# Behind a task that has run this long nothing stays queued that the channel can give back.
SLOW_HEAD_SECONDS = 2e-3


class Roster:
    """See the top of the file.

    Parameters
    ----------
    max_workers : int
        How many workers there may be at a time.
    max_tasks_per_child : int or None
        How many tasks each may be given; ``None``: no limit.
    pace : Pace
        How long tasks and starts take.
    decisions : list
        Where decisions go.
    can_recall : bool
        Whether the channels can take back unread tasks.

    Attributes
    ----------
    workers : dict of int to Worker
        All that have not ended.
    buckets : list of dict of Worker to None
        Ready workers that may be given tasks, by load; each bucket is an ordered set.
    starting : dict of Worker to None
        Starting workers, without spares.
    awaited : dict of Worker to None
        Those of them that may yet prove slow, in the order of being started.
    unborn : dict of Worker to None
        Those of them that may be given a task.
    live : int
        How many are starting or ready, without spares.
    draining : int
        How many do their last tasks.
    busy : int
        How many have a line that is not empty.
    floor : int
        How many are wanted whether or not there is work for them.
    start_after : float or None
        No worker is started before then.
    succession : Succession
        Elders, heirs and spares.
    now : float
        The time of the present event.
    """

    def __init__(
        self,
        max_workers: int,
        max_tasks_per_child: int | None,
        pace: Pace,
        decisions: list[tuple[Any, ...]],
        *,
        can_recall: bool,
    ) -> None:
        self.max_workers = max_workers
        self.workers: dict[int, Worker] = {}
        self.buckets: list[dict[Worker, None]] = [{} for _ in range(MAX_AHEAD + 3)]
        self.starting: dict[Worker, None] = {}
        self.awaited: dict[Worker, None] = {}
        self.unborn: dict[Worker, None] = {}
        self.live = 0
        self.draining = 0
        self.busy = 0
        self.floor = 0
        self.start_after: float | None = None
        self.succession = Succession()
        self.now = 0.0
        self._budget = -1 if max_tasks_per_child is None else max_tasks_per_child
        self._pace = pace
        self._decisions = decisions
        self._can_recall = can_recall
        self._begun = False
        self._next = 0

    # ------------------------------------------------------------------ starts

    def ensure(self, outstanding: int) -> None:
        """Start the workers that are wanted for that many tasks."""
        if not self._begun:
            self._begun = True
            self.floor = self.max_workers
        if self.start_after is not None and self.now < self.start_after:
            return
        wanted = min(self.max_workers, max(self.floor, outstanding))
        while self.live < wanted:
            worker = self._new()
            self.starting[worker] = None
            self.awaited[worker] = None
            self.unborn[worker] = None
            self.live += 1

    def start_heirs(self) -> None:
        """Start the heirs that are wanted, as far as there is room for them."""
        if self.start_after is not None and self.now < self.start_after:
            return
        succession = self.succession
        while succession.wanted and succession.spares + self.draining < self.max_workers:
            elder = next(iter(succession.wanted))
            succession.adopt(elder, self._new())

    def _new(self) -> Worker:
        worker = Worker(self._next, self.now, self._budget)
        self._next += 1
        self.workers[worker.id] = worker
        self._decisions.append((START, worker))
        return worker

    def ready(self, worker: Worker) -> None:
        """A worker that was starting is ready now."""
        worker.state = READY
        self.starting.pop(worker, None)
        self.awaited.pop(worker, None)
        self.unborn.pop(worker, None)
        self._pace.started(self.now - worker.started)
        if worker.elder is not None:
            if worker.elder.cause is not None:
                self.let_go(worker.elder)
            return
        if worker.budget == 0:
            self.unlive(worker, DRAINING)
        self.foresee(worker)
        self.enter(worker)

    def give_up_slow_starts(self) -> None:
        """Take back what was promised to workers that take much longer to start than usual."""
        slow = self._pace.slow_start()
        for worker in list(self.awaited):
            if self.now < worker.started + slow:
                break
            worker.slow = True  # it is given nothing more until it is ready
            del self.awaited[worker]
            self.unborn.pop(worker, None)
            if worker.line:
                self.recall(worker)

    # ------------------------------------------------------------------ places

    def enter(self, worker: Worker) -> None:
        """Put the worker into the bucket of its load, if it may be given a task."""
        held_back = worker.recalling or worker.slow or worker.lent
        if worker.state == READY and worker.budget and not held_back:
            self.buckets[len(worker.line)][worker] = None

    def place(self, worker: Worker) -> None:
        """Put a worker whose line became shorter where it belongs now."""
        if worker.recalling:
            return
        if worker.state == STARTING:
            if not (worker.line or worker.slow):
                self.unborn[worker] = None
        elif worker.state == DRAINING and not worker.line:
            self.retire(worker)
        elif worker.state == READY and not worker.budget and len(worker.line) < 2:
            if worker.line:
                self.unlive(worker, DRAINING)
            else:
                self.retire(worker)
        else:
            if not worker.line:
                worker.slow = False  # it had not even read its head: descheduled, not slow
            self.enter(worker)

    def recall(self, worker: Worker) -> None:
        """Take back what the worker has not read; until that is answered it gets nothing."""
        if self._can_recall and not worker.recalling and worker.state != RETIRING:
            self.buckets[len(worker.line)].pop(worker, None)
            worker.recalling = True
            self._decisions.append((RECALL, worker))

    def take_back_behind_slow_heads(self) -> None:
        """Take back what waits behind a task that runs for long: somebody else is faster."""
        for worker in self.workers.values():
            if len(worker.line) > 1 and not (worker.slow or worker.recalling):
                if self.now - worker.head_since >= SLOW_HEAD_SECONDS:
                    worker.slow = True
                    self.recall(worker)

    # ------------------------------------------------------------------ ends

    def resize(self, max_workers: int) -> None:
        """Have this many workers: more at once, fewer as they finish what they run."""
        self.max_workers = max_workers
        self.floor = max_workers if self._begun else 0
        excess = self.live - max_workers
        if excess > 0:
            alive = [
                w for w in self.workers.values() if w.state in (STARTING, READY) and w.elder is None
            ]
            # Least loss first: not yet born, idle, then least loaded; the youngest of equals.
            alive.sort(key=lambda w: (w.state == READY, len(w.line) + w.lent, -w.id))
            for worker in alive[:excess]:
                self._disinherit(worker)
                self.let_go(worker)

    def close(self) -> None:
        """From now on, workers are wanted only where there is work for them."""
        self._begun = True
        self.floor = 0

    def dismiss_idle(self, idle_timeout: float) -> None:
        """Let workers go that have been idle for this long."""
        idle = self.buckets[0]
        while idle:
            worker = next(iter(idle))
            if self.now < worker.idle_since + idle_timeout:
                break
            self._disinherit(worker)
            self.retire(worker)
            self.lower_floor()

    def lower_floor(self) -> None:
        """Do without those who are not there, unless there is work for them."""
        self.floor = min(self.floor, self.live)

    def unlive(self, worker: Worker, state: int) -> None:
        """Give the worker no more tasks, and move it to a state that does not count as live."""
        self.buckets[len(worker.line)].pop(worker, None)
        before = worker.state
        worker.state = state
        self.draining += (state == DRAINING) - (before == DRAINING)
        elder = worker.elder
        if elder is not None:
            self.succession.part(worker)
            self.foresee(elder)
        elif before in (STARTING, READY):
            self.live -= 1
            self.starting.pop(worker, None)
            self.awaited.pop(worker, None)
            self.unborn.pop(worker, None)
            self.succession.wanted.pop(worker, None)
            if worker.heir is not None:
                self._succeed(worker.heir)

    def retire(self, worker: Worker) -> None:
        """Ask the worker, which has nothing to do any more, to leave."""
        self.unlive(worker, RETIRING)
        if worker.cause is None and not worker.budget:
            worker.cause = MAX_TASKS
        self._decisions.append((RETIRE, worker))

    def let_go(self, worker: Worker) -> None:
        """Have the worker leave as soon as it has finished what it runs."""
        if worker.lent:
            self.unlive(worker, DRAINING)
        elif not worker.line:
            self.retire(worker)
        else:
            self.unlive(worker, DRAINING)
            self.recall(worker)

    def kill_all(self) -> None:
        """End every worker."""
        for worker in self.workers.values():
            self.unlive(worker, RETIRING)
            self._decisions.append((KILL, worker))

    # ------------------------------------------------------------------ succession

    def foresee(self, worker: Worker) -> None:
        """Note it if the worker needs an heir: `start_heirs` starts one when there is room."""
        if worker.state == READY and worker.elder is None and worker.heir is None:
            if self.succession.needs_an_heir(worker, self._pace.duration, self._pace.usual_start):
                self.succession.wanted[worker] = None

    def _succeed(self, heir: Worker) -> None:
        """The elder takes no more tasks: its heir is a worker like all others now."""
        self.succession.part(heir)
        if self.live >= self.max_workers:
            self.live += 1  # which retiring takes off again
            self.retire(heir)
            return
        self.live += 1
        if heir.state == STARTING:
            self.starting[heir] = None
            heir.slow = True  # it has been starting for a while: nothing is promised to it
        else:
            heir.idle_since = self.now
            self.foresee(heir)
            self.enter(heir)

    def _disinherit(self, worker: Worker) -> None:
        """The pool can do without the worker's place: its heir leaves too."""
        worker.cause = None
        if worker.heir is not None:
            self.retire(worker.heir)
