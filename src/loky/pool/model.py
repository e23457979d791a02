"""What the scheduler is about: tasks, workers, verdicts, and its decisions. Plain data.

Rule 1: records only. Whatever changes them is in `scheduler.py`; the fields that a comment or a
docstring calls the driver's are the driver's to change.

Rule 2: nothing is imported here but plain data: the scheduler, its driver, the facade and the
simulator all share these records.

Decisions are tuples, the first item says which::

    (START, worker)            start a process for it
    (SEND, worker, task)       pickle the task and put it into the worker's channel
    (RECALL, worker)           take back what it has not read; answer with `recalled`
    (RETIRE, worker)           ask it to leave; it has nothing to do any more
    (KILL, worker)             end it now, with its process group
    (STOP, worker, task)       end it politely, because of this task, then as KILL does
    (SETTLE, task, verdict)    the task is over without a result, see the verdicts below
"""

from __future__ import annotations

from collections import deque
from typing import Any

from ..task_options import CRASH, TaskOptions

START, SEND, RECALL, RETIRE, KILL, SETTLE, STOP = range(7)

# States of a task. NEW: the scheduler has not seen it, and after an interrupt it never may.
# DELAYED: it waits, but is not to be handed out yet. HELD: its attempt is over, and the driver has
# to say whether it was the last, see `Scheduler.hold`.
PENDING, ASSIGNED, DONE, NEW, DELAYED, HELD = range(6)

# Why a worker leaves for good, if not for the memory that it uses.
MAX_TASKS = "max_tasks_per_child"

# Why a running task is stopped; the causes that tasks can be retried for are `task_options`'.
CANCEL = "cancel"

# States of a worker.
STARTING, READY, DRAINING, RETIRING, GONE = range(5)


class Cancelled:
    """Verdict: the task was cancelled before any worker read it, or its worker was stopped."""


class Refused:
    """Verdict: the executor was shut down with this task still to do."""


class Lost:
    """Verdict: the worker that ran the task ended.

    Attributes
    ----------
    worker : Worker
        Who ran it.
    exit : object
        How it ended, as the driver reported it.
    seconds : float
        How long the task had been at the head of the worker's line, in seconds.
    cause : {"crash", "timeout", "memory"}
        ``"crash"``: nobody here ended the worker.
    """

    __slots__ = ("cause", "exit", "seconds", "worker")

    def __init__(self, worker: Worker, exit: Any, seconds: float, cause: str = CRASH) -> None:
        self.worker = worker
        self.exit = exit
        self.seconds = seconds
        self.cause = cause


# Why a pool is broken by the first death: what the policy "break" asks for.
BREAKS = "crash_policy is 'break'"


class Broken:
    """Verdict, and the state of a broken pool: nothing will run any more, and why."""

    __slots__ = ("cause", "reason")

    def __init__(self, reason: str, cause: Any = None) -> None:
        self.reason = reason
        self.cause = cause


CANCELLED = Cancelled()
REFUSED = Refused()


class Control:
    """How a task is to be treated, where that is not as all are, and what has become of it.

    Attributes
    ----------
    options : TaskOptions
        What the user wants.
    attempts : list
        How earlier attempts ended: a `Lost` each, or whatever the driver reported (an exception).
    """

    __slots__ = ("attempts", "options")

    def __init__(self, options: TaskOptions) -> None:
        self.options = options
        self.attempts: list[Any] = []


class Task:
    """A call on its way. The scheduler owns `state`, `worker` and `turn`, the driver the rest."""

    __slots__ = (
        "args",
        "cancel_wanted",
        "control",
        "fn",
        "future",
        "id",
        "kwargs",
        "message",
        "on_wire",
        "sketch",  # of arguments that were dropped once they were pickled; else it is not set
        "state",
        "stop_wanted",
        "turn",
        "worker",
    )

    def __init__(self, id: int, fn: Any, args: Any, kwargs: Any, future: Any) -> None:
        self.id = id
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.future = future
        self.control: Control | None = None
        self.state = NEW
        self.worker: Worker | None = None
        self.turn = 0  # counts its SEND decisions: of two about the same task, the latest holds
        self.sketch: Any
        self.message: Any = None  # pickled, and certainly unread by anybody
        self.on_wire = False  # is in the channel of `worker`; false again without a worker
        self.cancel_wanted = False  # settle as cancelled if it turns out to be unread
        self.stop_wanted: str | None = None  # and end its worker if it runs; for this reason

    def __repr__(self) -> str:
        state = ("pending", "assigned", "done", "new", "delayed", "held")[self.state]
        return f"<Task {self.id} {state}>"


class Worker:
    """A worker as the scheduler sees it. `port` belongs to the driver."""

    __slots__ = (
        "budget",
        "busy_seconds",
        "busy_since",
        "cause",
        "doomed",
        "elder",
        "head_since",
        "heir",
        "id",
        "idle_since",
        "lent",
        "line",
        "port",
        "quits",
        "recalling",
        "slow",
        "started",
        "state",
        "tasks_done",
        "was_ready",
    )

    def __init__(self, id: int, now: float, budget: int) -> None:
        self.id = id
        self.state = STARTING
        self.started = now
        self.line: deque[Task] = deque()  # in the order in which it will run them
        self.budget = budget  # tasks it may still be given; -1: no limit
        self.head_since = now  # when line[0] can first have been running
        self.idle_since = now
        self.lent = False  # a submitter may be sending to it by itself
        self.was_ready = False
        self.recalling = False
        self.slow = False  # its head runs longer than usual: nothing is queued behind it
        self.doomed: Task | None = None  # the running task that is to be stopped
        self.tasks_done = 0  # for people, as is the next
        self.busy_seconds = 0.0  # with tasks, until it was last without
        self.busy_since = now
        self.cause: str | None = None  # why it has to leave for good: the name of an option
        self.quits = False  # it leaves by itself, and has read nothing that is in its line
        self.heir: Worker | None = None  # see `succession`
        self.elder: Worker | None = None
        self.port: Any = None

    def __repr__(self) -> str:
        state = ("starting", "ready", "draining", "retiring", "gone")[self.state]
        return f"<Worker {self.id} {state} load {len(self.line)}>"
