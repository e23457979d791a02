"""What a thread asks the leader and waits for: an answer, or whether a task can be cancelled.

Rule 1: the asker leaves a sleeper where every end that may come instead of the answer finds it (in
the future, or in `ended`), before it looks whether that end has come already: so none is missed.

Rule 2: the leader never waits for itself. What is asked from inside its work (by a finalizer) is
answered there or, if that would take a decision of the scheduler's, posted and not waited for.

What does not belong here: what is asked for, and what becomes of a cancelled task (`scheduler`).
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable
from typing import Any, TypeVar

from ..future import Future, Sleepers
from .model import CANCEL, DONE, HELD, Task
from .scheduler import Scheduler

T = TypeVar("T")


class Asking:
    """See the top of the file.

    Parameters
    ----------
    scheduler : Scheduler
        Decides about cancellations.
    ended : Sleepers
        Who is to be woken when the pool has ended.
    is_closed : callable
        Whether it has.
    post : callable
        Has the leader call something, soon.
    will_wait : callable
        To be called by a thread that is about to wait.

    Attributes
    ----------
    cancels : list
        Cancellations that somebody waits for: the task, and the sleeper. For the leader only.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        ended: Sleepers,
        is_closed: Callable[[], bool],
        post: Callable[..., None],
        will_wait: Callable[[], None],
    ) -> None:
        self.cancels: list[tuple[Task, Any]] = []
        self._scheduler = scheduler
        self._ended = ended
        self._is_closed = is_closed
        self._post = post
        self._will_wait = will_wait

    # ------------------------------------------------------------------ the asker's part

    def ask(self, question: Callable[[], T]) -> T:
        """What the leader answers; what this thread finds itself, if the pool ends first."""
        answer: list[Any] = []
        sleeper = allocate_lock()
        sleeper.acquire()
        self._ended.append(sleeper)
        try:
            self._post(self._answer, question, answer, sleeper)
            self._will_wait()
            if not self._is_closed():  # looked at after the append: whoever closes it wakes us
                sleeper.acquire()
        finally:
            self._ended.forget(sleeper)
        if not answer:  # it was closed first
            return question()
        found, error = answer
        if error is not None:
            raise error
        return found  # type: ignore[no-any-return]

    def cancel(self, future: Future[Any], task: Task, *, kill: bool) -> None:
        """Wait until the task is settled, or cannot be cancelled; `kill` ends its worker."""
        sleeper = allocate_lock()
        sleeper.acquire()
        future._sleepers.append(sleeper)
        try:
            # Looked at after the append: an end that comes later releases the sleeper, one that
            # came before would not.
            if not future.done():
                self._post(self._cancel, task, kill, sleeper)
                self._will_wait()
                sleeper.acquire()
        finally:
            future._sleepers.forget(sleeper)

    def cancel_later(self, task: Task, *, kill: bool) -> None:
        """Have it cancelled, and do not wait for what comes of it."""
        self._post(self._cancel, task, kill, None)

    # ------------------------------------------------------------------ the leader's part

    @staticmethod
    def _answer(question: Callable[[], Any], answer: list[Any], sleeper: Any) -> None:
        try:
            answer += question(), None
        except Exception as error:  # the asker's problem, not the pool's
            answer += None, error
        try:
            sleeper.release()
        except RuntimeError:  # the pool was closed meanwhile
            pass

    def _cancel(self, task: Task, kill: bool, sleeper: Any) -> None:
        if kill:
            self._scheduler.stop(task)
        else:
            self._scheduler.cancel(task)
        if sleeper is not None:
            self.cancels.append((task, sleeper))

    def answer_cancels(self) -> None:
        """Release those whose cancellation has turned out to be impossible."""
        cancels, self.cancels = self.cancels, []
        for task, sleeper in cancels:
            worker = task.worker
            if task.state == DONE or (worker is not None and worker.doomed is task):
                continue  # the future's end wakes them
            # Being judged, or its result is on the way, or it comes back from a worker that ends:
            # it is one or the other soon.
            if task.state == HELD or (task.stop_wanted == CANCEL and self._scheduler.can_recall):
                self.cancels.append((task, sleeper))
                continue
            try:
                sleeper.release()
            except RuntimeError:
                pass
