"""The way back: what workers send is taken in, the scheduler is told, and futures get their ends.

Rule 1: for the leader only, but for what is posted to it.

Rule 2: no user code. A future is settled here if what it gets is plain and nobody has a callback;
all other ends are left for `telling`, and whether an exception is worth another attempt is looked
at there as well. Waiters are woken in `tell`, when it suits the leader, and before it runs anything
of the user's.

Guarantees:

- a finished result survives its worker: all that a dead one has sent is read before anything else
  is decided about it;
- what a worker says that is about no task at the head of its line is ignored: that was settled
  already.

What does not belong here: what a death means (`scheduler`), what is known of one (`crew`), and how
bytes become results (`outcome`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from ..future import PENDING as FUTURE_PENDING
from ..future import RUNNING as FUTURE_RUNNING
from ..future import Future
from ..observe.chronicle import Chronicle
from ..wire import pickling, protocol
from . import outcome
from .crew import Crew
from .deaths import InitFailed
from .model import ASSIGNED, Broken, Task
from .port import Port
from .scheduler import Scheduler
from .sending import Sending


class Receiving:
    """See the top of the file.

    Parameters
    ----------
    scheduler : Scheduler
        Is told what has happened.
    chronicle : Chronicle
        Counts replies.
    crew : Crew
        Is told of ends.
    sending : Sending
        Goes on when there is room in a channel again.
    relay : Relay or None
        What workers print, and which ends have to wait until that is written.
    endings : deque
        Where ends of tasks wait to be told.
    post : callable
        Has the leader call something, soon.

    Attributes
    ----------
    untold : list of Future
        Settled, and somebody waits.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        chronicle: Chronicle,
        crew: Crew,
        sending: Sending,
        relay: Any,
        endings: deque[tuple[Callable[..., None], Any, Any]],
        post: Callable[..., None],
    ) -> None:
        self.untold: list[Future[Any]] = []
        self._scheduler = scheduler
        self._chronicle = chronicle
        self._crew = crew
        self._sending = sending
        self._relay = relay
        self._endings = endings
        self._post = post

    def read(self, port: Port, now: float) -> None:
        """A worker has sent something."""
        data = port.channel.receive(port.reader.expected())
        if data:
            port.bytes_received += len(data)
            self._take_in(port, data, now)
            line = port.worker.line
            if port.backlog:
                self._sending.flush(port)
            if line and line[0].on_wire and line[0].future._state == FUTURE_PENDING:
                line[0].future._state = FUTURE_RUNNING
        elif data is not None:  # closed; its process's end is reported by other means
            self._crew.hung_up(port, now)

    def _take_in(self, port: Port, data: bytes, now: float) -> None:
        scheduler = self._scheduler
        worker = port.worker
        line = worker.line
        relay = self._relay
        for kind, task_id, seconds, payload in port.reader.feed(data):
            if kind > protocol.LAST_REPLY:
                self._hear(port, kind, task_id, payload, now)
            elif line and line[0].id == task_id:
                task = line[0]
                if port.news:
                    port.answered(task_id)
                if worker.doomed is task:
                    continue  # what it says now is an answer to SIGTERM
                if relay is not None:
                    relay.collect(port.outputs, task)
                if task.control is not None and kind == protocol.ERROR and outcome.may_retry(task):
                    scheduler.hold(worker, task, now, seconds)
                    self._chronicle.replies += 1
                    self.conclude(self._judge, task, payload)
                else:
                    scheduler.result(worker, task, now, seconds)
                    self._end(task, kind, payload)
            elif worker.lent:  # faster than the submitter's note, see `fed`
                port.early = (kind, seconds, payload)
            # Else it was settled already, by a shutdown for instance.

    def _hear(self, port: Port, kind: int, number: int, payload: Any, now: float) -> None:
        """A worker has something to say that is not the end of a task."""
        worker = port.worker
        if kind == protocol.READY:
            self._scheduler.ready(worker, now)
            self._chronicle.worker_ready(port, now)
        elif kind == protocol.INIT_FAILED:
            cause = InitFailed(bytes(payload))
            self._scheduler.break_(Broken("the initializer of a worker failed", cause))
        elif kind == protocol.RECYCLE:
            port.footprint = number
            quits = payload == protocol.QUITS
            self._scheduler.recycle(worker, str(payload, "ascii"), quits=quits)
        elif kind == protocol.TRACKER:
            self._endings.append((outcome.send_tracker, port.channel, number))
        elif kind == protocol.RELAY:
            line = worker.line
            self._relay.take(payload, line[0] if line else None, port.pid)

    def _judge(self, task: Task, payload: Any) -> None:
        """User code's side: whether an exception that the task raised is worth another attempt."""
        error = outcome.retriable(task, payload)
        if error is None:
            self._post(self._scheduler.over, task)
        else:
            self._post(self._retry, task, error)

    def _retry(self, task: Task, error: BaseException) -> None:
        assert task.control is not None
        task.control.attempts.append(error)
        task.future._state = FUTURE_PENDING
        self._scheduler.retry(task, monotonic())

    def fed(self, task: Task, steps: list[Any], now: float) -> None:
        """A submitter's note: it took a worker and, if there are two steps, sent it the task."""
        if not steps:  # an interrupt struck just after the note was left, so it was left again
            return
        port: Port = steps[0]
        worker = port.worker
        sent = len(steps) > 1
        if sent:
            port.bytes_sent += steps[1]
        steps.clear()
        if not sent:
            self._scheduler.returned(worker)
            self._scheduler.submit(task)
            return
        task.message = None
        task.on_wire = True
        self._scheduler.borrowed(worker, task, now)
        early, port.early = port.early, None
        if early is not None and task.state == ASSIGNED:
            kind, seconds, payload = early
            self._scheduler.result(worker, task, now, seconds)
            self._end(task, kind, payload)

    def _end(self, task: Task, kind: int, payload: bytes | memoryview) -> None:
        """A task has come back: settle its future now if no user code is in the way, or later."""
        if self._relay is not None and self._relay.hold((outcome.deliver, task, (kind, payload))):
            self._chronicle.replies += 1
            return
        future = task.future
        condition = future._condition
        if kind == protocol.VALUE and condition.acquire(False):
            try:
                if not (future._done_callbacks or future._waiters):
                    future._finish(pickling.loads(payload))
                    if future._sleepers or condition._sleepers:
                        self.untold.append(future)
                    return
            finally:
                condition.release()
        self._chronicle.replies += 1
        self._endings.append((outcome.deliver, task, (kind, payload)))

    def conclude(self, function: Callable[..., None], task: Task, what: Any) -> None:
        """Have the user told of a task's end, once what the task has said is written."""
        ending = (function, task, what)
        if self._relay is None or not self._relay.hold(ending):
            self._endings.append(ending)

    def reap(self, port: Port, now: float) -> None:
        """A worker process may have ended: take what it left."""
        process = port.process
        if process is None or port.worker.lent:  # a submitter's note about it is on the way
            return
        exit = process.poll()
        if exit is None:
            return
        # A finished result survives its worker.
        while data := port.channel.receive(port.reader.expected()):
            port.bytes_received += len(data)
            self._take_in(port, data, now)
        self._crew.lost(port, exit, now)

    def tell(self) -> None:
        """Wake those who wait for what has been settled."""
        untold, self.untold = self.untold, []
        for future in untold:
            future._tell()
