"""The tasks that no worker has, in the order in which they are to be handed out.

Guarantees:

- tasks of a higher priority come first, equal ones in the order in which they were added; but
  nothing waits for ever: of `OVERTAKES` tasks handed out while others wait at lower priorities, one
  is the oldest of those others;
- without priorities in use, `first` is a plain queue and costs no more than one;
- a task that waits out a delay comes up when that is over, at its old place among its equals.

What does not belong here: who gets a task. Like all of the scheduler, no clock and no I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush

from .model import DELAYED, PENDING, Task

# So many tasks may overtake one that waits at a lower priority. Large enough that a backlog of
# urgent work is hardly slowed down (0.1 %), small enough that at 1,000 tasks a second nobody
# starves.
OVERTAKES = 1000


class Waiting:
    """See the top of the file.

    Attributes
    ----------
    first : deque of Task
        Those of the highest priority, and in front those whose turn has come all the same. When
        there are `others`, call `serve` before taking from it. Those that are not PENDING any
        more were settled while they waited: whoever takes one subtracts it from `dead`.
    level : int
        The priority of `first`.
    others : dict of int to deque of Task
        Those of lower priorities. Empty as a rule. When there are any, whoever takes one of `first`
        adds it to `overtaken`, unless it comes back: it has overtaken the others before.
    overtaken : int
        How many were taken while others waited at lower priorities, since one of those was let go.
    overtakes : int
        How many may be, see `OVERTAKES`.
    delayed : list
        Those that are not to be handed out before a certain time: a heap.
    aside : deque of Task
        Waiting as well, until something that they need is free; see `set_aside`.
    """

    def __init__(self) -> None:
        self.first: deque[Task] = deque()
        self.others: dict[int, deque[Task]] = {}
        self.aside: deque[Task] = deque()
        self.dead = 0  # in `first` and `others`, but settled
        self.level = 0
        self.overtaken = 0
        self.overtakes = OVERTAKES
        self._brought: Task | None = None  # the last that came back from aside
        self.delayed: list[tuple[float, int, Task]] = []

    # ------------------------------------------------------------------ in and out

    def add(self, task: Task) -> None:
        """Queue a task behind its equals."""
        task.state = PENDING
        control = task.control
        if self.level == (0 if control is None else control.options.priority):
            self.first.append(task)
        else:
            self._of(task).append(task)

    def put_back(self, task: Task) -> None:
        """Queue a task before its equals: it has had its turn before."""
        task.state = PENDING
        control = task.control
        if self.level == (0 if control is None else control.options.priority):
            self.first.appendleft(task)
        else:
            self._of(task).appendleft(task)

    def _of(self, task: Task) -> deque[Task]:
        """Where the tasks of this priority wait, which is not the one of `first`."""
        priority = 0 if task.control is None else task.control.options.priority
        if not self.first and not self.others:
            self.level = priority
            return self.first
        if priority > self.level:
            if self.first:
                self.others[self.level] = self.first
            self.first = self.others.pop(priority, deque())
            self.level = priority
            return self.first
        return self.others.setdefault(priority, deque())

    def serve(self) -> deque[Task]:
        """Where the next task is to be taken from, to be asked before each one."""
        if not self.first:
            self.level = max(self.others)
            self.first = self.others.pop(self.level)
        elif self.overtaken >= self.overtakes:
            self.overtaken = 0
            self._let_the_oldest_go_first()
        return self.first

    def _let_the_oldest_go_first(self) -> None:
        for level, queue in list(self.others.items()):
            while queue and queue[0].state != PENDING:
                queue.popleft()
                self.dead -= 1
            if not queue:
                del self.others[level]
        if self.others:
            # The oldest by number: numbers are given in the order of submission.
            level = min(self.others, key=lambda level: self.others[level][0].id)
            self.first.appendleft(self.others[level].popleft())
            if not self.others[level]:
                del self.others[level]

    def settled(self, task: Task) -> None:
        """This waiting task is about to be settled: it is forgotten when its turn comes."""
        if task.state != PENDING:  # it waits elsewhere, where the dead need no counting
            return
        self.dead += 1
        if self.dead > 1000 and self.dead * 2 > len(self.first) + sum(
            map(len, self.others.values())
        ):
            for queue in (self.first, *self.others.values()):
                alive = [one for one in queue if one.state == PENDING and one is not task]
                queue.clear()
                queue.extend(alive)
            self.others = {level: queue for level, queue in self.others.items() if queue}
            self.dead = 0

    # ------------------------------------------------------------------ aside

    def set_aside(self, task: Task) -> None:
        """Keep this one apart until `bring_back`."""
        task.state = DELAYED
        if task is self._brought:  # somebody was faster; it keeps its place
            self._brought = None
            self.aside.appendleft(task)
        else:
            self.aside.append(task)

    def may_bring_back(self) -> bool:
        """Whether `bring_back` would do something."""
        brought = self._brought
        return bool(self.aside) and (brought is None or brought.state != PENDING)

    def bring_back(self) -> None:
        """Queue what was set aside, before its equals.

        One at a time, as that is how the driver pickles them: were all of them brought back, each
        slow one would have the rest set aside anew.
        """
        while self.may_bring_back():
            task = self.aside.popleft()
            if task.state == DELAYED:
                self._brought = task
                self.put_back(task)

    # ------------------------------------------------------------------ delayed

    def delay(self, task: Task, until: float) -> None:
        """Queue this one before its equals, but not before that time."""
        task.state = DELAYED
        heappush(self.delayed, (until, task.id, task))

    def due(self) -> float | None:
        """When the next delay ends."""
        delayed = self.delayed
        while delayed and delayed[0][2].state != DELAYED:  # cancelled meanwhile
            heappop(delayed)
        return delayed[0][0] if delayed else None

    def end_delays(self, now: float) -> None:
        """Queue those whose delay is over."""
        while (due := self.due()) is not None and due <= now:
            self.put_back(heappop(self.delayed)[2])

    # ------------------------------------------------------------------ all of them

    def __iter__(self) -> Iterator[Task]:
        for queue in (self.first, *self.others.values()):
            yield from (task for task in queue if task.state == PENDING)
        yield from (task for task in self.aside if task.state == DELAYED)
        yield from (task for _, _, task in sorted(self.delayed) if task.state == DELAYED)

    def clear(self) -> None:
        """Forget them all."""
        self.first.clear()
        self.others.clear()
        self.aside.clear()
        self.delayed.clear()
        self.dead = 0
