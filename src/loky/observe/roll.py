"""What each worker of a pool is doing at this moment.

Rule 1: `call_the_roll` reads the pool's records, so the leader calls it (`Supervisor.ask`).

Rule 2: no code of the user's runs there. A task's name may take some (`__getattr__`, for instance),
so it is made later, by whoever asked: `Entry.task_name`.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from ..pool import model
from ..pool.names import name_of_task

if TYPE_CHECKING:
    from ..pool.supervisor import Supervisor


class Entry:
    """One worker, as it was at one moment.

    Attributes
    ----------
    worker : Worker
        The scheduler's record, for the leader only.
    pid : int
        Its process id.
    state : {"starting", "idle", "busy", "leaving"}
        What it is doing.
    seconds : float
        For how long it has been doing that.
    is_running : bool
        Whether it has a task.
    tasks_done : int
        How many tasks it has answered.
    busy_seconds : float
        How long it has had tasks.
    """

    def __init__(self, worker: model.Worker, pid: int, now: float) -> None:
        self.worker = worker
        self.pid = pid
        self.state, since = _state(worker)
        self.seconds = max(0.0, now - since)
        self.is_running = bool(worker.line) and worker.state != model.STARTING
        self.tasks_done = worker.tasks_done
        self.busy_seconds = worker.busy_seconds
        if self.is_running:
            self.busy_seconds += max(0.0, now - worker.busy_since)
        self._task = worker.line[0] if self.is_running else None

    def task_name(self) -> str | None:
        """Name of the task that it runs, ``None`` if it runs none. May run code of the user's."""
        return None if self._task is None else name_of_task(self._task)


def _state(worker: model.Worker) -> tuple[str, float]:
    if worker.state == model.STARTING:
        return "starting", worker.started
    since = worker.head_since if worker.line else worker.idle_since
    if worker.state == model.RETIRING:
        return "leaving", since
    return ("busy" if worker.line else "idle"), since


def call_the_roll(pool: Supervisor) -> list[Entry]:
    """Every worker that has a process, the oldest first."""
    if pool.is_closed():  # what is left of the records is nobody's
        return []
    now = monotonic()
    return [Entry(port.worker, port.pid, now) for port in pool.ports()]
