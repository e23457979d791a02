"""The short way: a submitting thread feeds an idle worker itself.

Waking the leader to send one task costs a thread switch, about a third of a round trip
(`benchmarks/run.py`, figure "round-trip"). So before it goes to sleep, the leader *offers* an idle
worker. A thread that submits a plain task may take the offer, send the task, and leave a note in
the inbox; the worker's reply is what wakes the leader.

Rule 1: KeyboardInterrupt may strike the submitting thread between any two bytecodes. Both steps
that count, taking the offer and sending, are therefore single C calls that also write down that
they were done: ``steps.extend(map(f, arguments))`` runs no bytecode between `f` and the append. The
exception handler posts the steps, so the leader always learns how far it came. (Two interrupts
within the same few bytecodes could lose an offer.)

Rule 2: no user code: only tasks that are pickled without any come this way.

Rule 3: nothing of the scheduler's is touched here by any thread but the leader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from ..future import RUNNING
from ..wire import protocol
from . import outcome
from .model import Task, Worker
from .port import Port
from .scheduler import Scheduler

_LAST = (-1,)


class Lending:
    """Offers idle workers to submitters.

    Parameters
    ----------
    scheduler : Scheduler
        Whose workers they are.
    inbox : deque
        Where notes to the leader go.
    wake : callable
        Makes the leader look at them.
    """

    def __init__(self, scheduler: Scheduler, inbox: deque[Any], wake: Callable[[], None]) -> None:
        self._scheduler = scheduler
        self._wake = wake
        self._inbox = inbox
        self._offers: list[Port] = []
        self._offered: Worker | None = None

    # ------------------------------------------------------------------ the leader's part

    def offer(self) -> None:
        """About to sleep: offer an idle worker, if there is one that knows all the news."""
        worker = self._scheduler.lendable()
        if worker is not None:
            port: Port = worker.port
            if port.is_up_to_date():
                self._offered = worker
                self._offers.append(port)

    def withdraw(self) -> None:
        """Awake again: take the offer back, or take note that it was taken."""
        worker = self._offered
        if worker is not None:
            self._offered = None
            try:
                self._offers.pop()
            except IndexError:
                self._scheduler.lend(worker)

    # ------------------------------------------------------------------ the submitter's part

    def feed(self, task: Task, note: Callable[[Task, list[Any], float], None]) -> bool:
        """Send a task to the worker on offer; false if the task has to go the usual way.

        `note` is called by the leader, later, with the task and how far this came: the port
        whose worker was taken and, if the task was sent, the number of bytes; and when that was.
        """
        if not (self._offers and outcome.encode_plain(task)):
            return False
        message = protocol.pack_message(protocol.TASK, task.id, task.message.data)
        future = task.future
        steps: list[Any] = []
        try:
            future._taken = True
            steps.extend(map(self._offers.pop, _LAST))
            port: Port = steps[0]
            if not port.is_up_to_date():
                raise BlockingIOError
            steps.extend(map(port.channel.sender, (message,), port.channel.sender_flags))
            future._state = RUNNING
            self._inbox.append((note, task, steps, monotonic()))
            if port.early is not None:  # the reply overtook the note; none will wake the leader
                self._wake()
        except IndexError:  # somebody was faster
            future._taken = False
            return False
        except BaseException as error:
            if steps:
                self._inbox.append((note, task, steps, monotonic()))
                self._wake()
            if not isinstance(error, OSError):
                raise
            # Nothing was sent: the leader will find out why, and do better.
        return True
