"""The processes of the workers: started, asked to leave, ended, and forgotten once they are gone.

Rule 1: for the leader only, as all that is the scheduler's, see `watch`. `alive` alone may be
called by any thread.

Rule 2: nobody waits here for a process: what shows its end is given to the poller, and where
nothing does (no pidfd), the leader asks now and then, see `next`.

Guarantee: whatever was opened for a worker is closed when it is forgotten, and what it certainly
has not read is taken back before the scheduler hears of its death.

What does not belong here: who is to start or to go (the scheduler says so), the steps in which one
is ended (`parting`), and what workers send (`receiving`).
"""

from __future__ import annotations

from time import monotonic
from typing import Any

from ..future import PENDING as FUTURE_PENDING
from ..future import RUNNING as FUTURE_RUNNING
from ..memory import OomCounter
from ..observe.chronicle import Chronicle
from ..task_options import DEFAULT_KILL_GRACE, MEMORY, NO_OPTIONS, TIMEOUT
from ..wire import protocol
from .deaths import Death
from .launcher import ExitInfo
from .model import DELAYED, PENDING, Task, Worker
from .names import name_of_task
from .parting import Parting
from .port import Port, WorkerSettings
from .scheduler import Scheduler

# Without a descriptor that shows a process's end (no pidfd), how often to ask, in seconds.
UNWATCHED_SECONDS = 0.05

SIGKILL = -9  # as an exit code


class Gone:
    """Tells the poller's report of a process's end from one of its channel."""

    __slots__ = ("port",)

    def __init__(self, port: Port) -> None:
        self.port = port


class Crew:
    """The workers that have a process; see the top of the file.

    Parameters
    ----------
    scheduler : Scheduler
        Whose workers they are.
    settings : WorkerSettings
        What they are told at their start.
    chronicle : Chronicle
        Is told of starts, kills and ends.
    relay : Relay or None
        What they print to.

    Attributes
    ----------
    poller : Poller
        What watches them; it has to be there before the first one starts.
    ports : dict of int to Port
        By the worker's number, in the order of their starts.
    unwatched : dict of Port to None
        Whose end shows on no descriptor.
    parting : Parting
        Who is leaving.
    polite : bool
        Whether a shutdown that ends the workers begins with SIGTERM.
    """

    def __init__(
        self, scheduler: Scheduler, settings: WorkerSettings, chronicle: Chronicle, relay: Any
    ) -> None:
        self.poller: Any = None
        self.ports: dict[int, Port] = {}
        self.unwatched: dict[Port, None] = {}
        self.parting = Parting()
        self.polite = False
        self._scheduler = scheduler
        self._settings = settings
        self._chronicle = chronicle
        self._relay = relay
        self._oom = OomCounter()

    def alive(self) -> list[Port]:
        """The workers that have not ended. For any thread."""
        return [port for port in list(self.ports.values()) if port.process]

    # ------------------------------------------------------------------ what was decided

    def start(self, worker: Worker, now: float) -> None:
        """Start a process for the worker, or tell the scheduler why there is none."""
        port = None
        try:
            port = Port(worker, self._settings)
            port.start()
        except BaseException as error:
            if port is not None:
                port.close()
            if not isinstance(error, OSError):
                raise
            self._scheduler.start_failed(worker, now, Death(error, ""))
            return
        worker.port = port
        self._oom.begin()
        if self._relay is not None:
            self._relay.started(port, port.outputs, self.poller)
        self.ports[worker.id] = port
        self.poller.add(port.channel.fileno(), port)
        assert port.process is not None
        self._chronicle.worker_started(port)
        if port.process.fileno() >= 0:
            self.poller.add(port.process.fileno(), Gone(port))
        else:
            self.unwatched[port] = None

    def recall(self, worker: Worker, now: float) -> None:
        """Take back what the worker has not read, and tell the scheduler."""
        if worker.port is not None:
            self._scheduler.recalled(worker, self._take_back(worker.port), now)

    def retire(self, worker: Worker, now: float) -> None:
        """Ask the worker to leave; it has nothing to do any more."""
        port: Port | None = worker.port
        if port is None or port.process is None:
            return
        if not worker.was_ready and self._settings.initializer is None:
            port.process.kill()  # it has run nothing of the user's: no need to let it finish
        else:
            port.channel.send(protocol.EXIT, 0, None, b"")
        self.parting.leave(port, now)

    def kill(self, worker: Worker, now: float) -> None:
        """End the worker with its pool."""
        port: Port | None = worker.port
        if port is not None:
            self._chronicle.worker_killed(port, "with its pool")
            grace = DEFAULT_KILL_GRACE if self.polite else 0.0
            self.parting.stop(port, now, grace, stacks=False)

    def stop(self, worker: Worker, task: Task, now: float) -> None:
        """End the worker because of the task that it runs."""
        port: Port | None = worker.port
        if port is not None:
            assert task.stop_wanted is not None
            options = task.control.options if task.control is not None else NO_OPTIONS
            self._chronicle.worker_killed(port, task.stop_wanted)
            # One that has too much memory takes more every moment.
            grace = 0.0 if task.stop_wanted == MEMORY else options.kill_grace
            self.parting.stop(port, now, grace, stacks=task.stop_wanted == TIMEOUT)

    def kill_all(self) -> None:
        """End all workers here and now, and let go of them: nobody looks after them any more."""
        for port in list(self.ports.values()):
            if port.process is not None:
                port.process.kill()
            port.close()

    # ------------------------------------------------------------------ what has happened

    def next(self) -> float | None:
        """When to `act`, or to ask the `unwatched`."""
        due = self.parting.next()
        if self.unwatched and (self._scheduler.outstanding or self.parting.steps):
            look = monotonic() + UNWATCHED_SECONDS
            due = look if due is None or look < due else due
        return due

    def hung_up(self, port: Port, now: float) -> None:
        """The worker's channel is closed. Its process's end is reported by other means."""
        self.poller.remove(port.channel.fileno())
        self.parting.hung_up(port, now)

    def lost(self, port: Port, exit: ExitInfo, now: float) -> None:
        """A process has ended and all that it sent was read: tell the scheduler, clean up."""
        if self._relay is not None:
            self._relay.ended(port.outputs)
        unread = self._take_back(port)
        line = list(port.worker.line)
        self._chronicle.worker_ended(port, exit, now)
        culprit = name_of_task(line[0]) if line and line[0] not in unread else None
        self._scheduler.lost(port.worker, unread, now, self._death(port, exit, culprit))
        for task in line:
            if task.state in (PENDING, DELAYED):  # goes elsewhere, or is tried again
                task.future._state = FUTURE_PENDING
        self._forget(port)

    def _death(self, port: Port, exit: ExitInfo, task: str | None) -> Death:
        """What is known about a worker's end."""
        return Death(
            exit,
            port.fault_text(),
            port.last_stacks,
            stderr=port.last_words(),
            out_of_memory=exit.code == SIGKILL and self._oom.explains_a_death(),
            excess=port.excess,
            cut_off=port.cut_off,
            task=task,
        )

    def _forget(self, port: Port) -> None:
        self.poller.remove(port.channel.fileno())
        if port.process is not None:
            self.poller.remove(port.process.fileno())
        self.parting.forget(port)
        self.unwatched.pop(port, None)
        self.ports.pop(port.worker.id, None)
        port.close()

    def _take_back(self, port: Port) -> list[Task]:
        """Every task of the worker's that it has certainly not read, in order."""
        recalled = {task_id: payload for _, task_id, payload in port.channel.recall()}
        port.backlog.clear()
        unread = []
        for task in port.worker.line:
            if task.on_wire:
                if task.id not in recalled:
                    continue
                task.on_wire = False
                task.message = recalled[task.id]
                port.news.pop(task.id, None)
                if task.future._state == FUTURE_RUNNING:
                    task.future._state = FUTURE_PENDING
            unread.append(task)
        return unread

    def abandon(self) -> None:
        """In the child of a fork: these are the parent's workers."""
        for port in list(self.ports.values()):
            port.close()
