"""The way out: tasks that were assigned are pickled and put into their workers' channels, in order.

Rule 1: for the leader only. Reducers run through `as_user`, after which somebody else may lead:
nothing that was read before it may be relied on, and what comes of it goes through `_encoded`.

Rule 2: nothing here blocks: what does not fit into a channel waits in its port's backlog.

Guarantees:

- the tasks of a worker are sent in the order in which they were assigned to it;
- one that was taken back meanwhile is not sent, and one that cannot be sent gives its place to the
  next;
- reducers are called by one thread at a time: while a deposed leader is still inside one
  (`encoding`), other tasks that need one are set aside, and the rest goes past them.

What does not belong here: who gets what (the scheduler says so), how a call becomes bytes
(`outcome`), and news for the workers (`port`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from ..future import RUNNING as FUTURE_RUNNING
from ..options import PoolOptions
from . import outcome
from .model import ASSIGNED, READY, Task, Worker
from .port import Port, WorkerSettings
from .scheduler import Scheduler


class Sending:
    """See the top of the file.

    Parameters
    ----------
    options : PoolOptions
        The pool's.
    scheduler : Scheduler
        Is told what was sent, and what cannot be.
    settings : WorkerSettings
        What workers have to know before their next task.
    endings : deque
        Where ends of tasks wait to be told.
    as_user : callable
        Runs what may be the user's code; whether the calling thread still leads afterwards.
    apply : callable
        Carries out what the scheduler has decided, at the time it is given.

    Attributes
    ----------
    outbox : deque
        What is to be sent: worker, task, and the task's `turn` when that was decided.
    encoding : Task or None
        Is being pickled by code of the user's.
    """

    def __init__(
        self,
        options: PoolOptions,
        scheduler: Scheduler,
        settings: WorkerSettings,
        endings: deque[tuple[Callable[..., None], Any, Any]],
        as_user: Callable[..., bool],
        apply: Callable[[float], None],
    ) -> None:
        self.outbox: deque[tuple[Worker, Task, int]] = deque()
        self.encoding: Task | None = None
        self._options = options
        self._scheduler = scheduler
        self._settings = settings
        self._endings = endings
        self._as_user = as_user
        self._apply = apply

    def send_out(self) -> bool:
        """Pickle and send what is to be sent; false if somebody else leads now."""
        self._settings.refresh()
        outbox = self.outbox
        while outbox:
            worker, task, turn = outbox[0]
            if task.worker is not worker or task.turn != turn or task.on_wire:
                outbox.popleft()  # taken back meanwhile
                continue
            if not task.future._taken and not task.future._take():
                outbox.popleft()
                self._drop(task)
                continue
            if task.message is None and (task is self.encoding or not outcome.encode_plain(task)):
                if self.encoding is not None:
                    # Reducers are called by one thread at a time. A replacement of each worker
                    # that had to leave it unread would be dearer than the wait.
                    if self._options.max_tasks_per_child is not None:
                        break
                    outbox.popleft()
                    self._scheduler.set_aside(task)
                    now = monotonic()
                    self._scheduler.dispatch(now)
                    self._apply(now)
                    continue
                self.encoding = task
                reducers = self._options.job_reducers
                if not self._as_user(outcome.encode, task, reducers, self._encoded):
                    return False
                continue
            outbox.popleft()
            self._send(worker, task)
        return True

    def flush(self, port: Port) -> None:
        """The worker has read something: send what its channel had no room for."""
        waiting = list(port.backlog)
        port.backlog.clear()
        for task in waiting:
            if task.worker is port.worker and task.state == ASSIGNED and not task.on_wire:
                self._send(port.worker, task)

    def _send(self, worker: Worker, task: Task) -> None:
        port: Port = worker.port
        if port.backlog:
            port.backlog.append(task)
            return
        try:
            sent = port.send(task)
        except OSError as error:  # no descriptors or buffers left in the system
            self._endings.append((outcome.fail, task, error))
            self._drop(task)
            return
        if not sent:
            port.backlog.append(task)
            return
        task.on_wire = True
        task.message = None
        if task.control is not None:
            self._scheduler.sent(worker, task, monotonic())
        if worker.state == READY and worker.line[0] is task:
            task.future._state = FUTURE_RUNNING

    def _encoded(self, task: Task, error: BaseException | None) -> None:
        self.encoding = None
        if error is not None:
            self._endings.append((outcome.fail, task, error))
            self._drop(task)

    def _drop(self, task: Task) -> None:
        """An assigned task will not be sent: give its place to the next one."""
        self._scheduler.dropped(task)
        # The leader may be past its own dispatch; what this one decides keeps it from sleeping.
        self._scheduler.dispatch(monotonic())
