"""Every exception that loky raises, in one tree.

Rule 1: an exception class that users can meet is defined here and nowhere else.

Rule 2: nothing imports this module until something has gone wrong or a name is asked for: its base
class lives in `concurrent.futures.process`, which imports multiprocessing.

The tree::

    RuntimeError
    ├── concurrent.futures.process.BrokenProcessPool
    │   └── BrokenProcessPool              the pool is unusable, or one task broke its worker
    │       ├── TerminatedWorkerError      a worker process ended while it ran this task
    │       │   ├── TaskTimeoutError       it was ended: the task's time was up (a TimeoutError)
    │       │   └── TaskMemoryError        it was ended: it used too much memory (a MemoryError)
    │       ├── TaskUnpicklingError        the worker could not rebuild the task
    │       └── ResultUnpicklingError      the parent could not rebuild the result or exception
    ├── ShutdownExecutorError              the executor was shut down
    └── LokyRecursionError                 executors nested too deep
    pickle.PicklingError
    └── TaskPicklingError                  the parent could not pickle the task
"""

from __future__ import annotations

import sys
import threading
from pickle import PicklingError, UnpicklingError
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .observe.postmortem import PostMortem

if (
    TYPE_CHECKING
    or "concurrent.futures.process" in sys.modules
    or not getattr(threading, "_SHUTTING_DOWN", False)
):
    from concurrent.futures.process import BrokenProcessPool as _BrokenProcessPool
else:
    # The interpreter is leaving, and importing that module now fails (it registers something to be
    # called at this very time). Nobody has it, so nobody can tell the difference.
    from concurrent.futures import BrokenExecutor as _BrokenProcessPool


if sys.version_info >= (3, 11):
    _TimeoutError = TimeoutError
else:
    from concurrent.futures import TimeoutError as _FuturesTimeoutError

    class _TimeoutError(_FuturesTimeoutError, TimeoutError):
        """Both, where they are not yet one."""


class BrokenProcessPool(_BrokenProcessPool):
    """The pool cannot go on, or (see the subclasses) one task could not be completed by it."""


BrokenExecutor = BrokenProcessPool  # the name that other modules of this name's past used


class TerminatedWorkerError(BrokenProcessPool):
    """A worker process ended without handing over the result of the task it was running.

    Attributes
    ----------
    task : str or None
        Name of the function that was running, ``None`` where no single task is to blame.
    pid : int or None
        Process id of the worker.
    exitcode : int or None
        Exit code, minus the signal's number if a signal ended it; ``None`` if the status was
        taken by somebody else (SIGCHLD ignored, or a foreign ``waitpid``).
    seconds : float or None
        How long the task had been running, in seconds.
    fault : str
        What the worker's `faulthandler` wrote while dying; empty if it wrote nothing.
    stack : str
        The Python stacks of the worker's threads when it was stopped; empty if it was not, or
        did not answer.
    attempts : tuple of BaseException
        What earlier attempts ended with, if the task was retried.
    post_mortem : PostMortem or None
        All that is known of the worker's end, see `loky.PostMortem`; printed, a report. ``None``
        where there was no process that could have ended.
    """

    def __init__(
        self,
        message: str = "",
        *,
        task: str | None = None,
        pid: int | None = None,
        exitcode: int | None = None,
        seconds: float | None = None,
        fault: str = "",
        stack: str = "",
        post_mortem: PostMortem | None = None,
    ) -> None:
        super().__init__(message)
        self.task = task
        self.pid = pid
        self.exitcode = exitcode
        self.seconds = seconds
        self.fault = fault
        self.stack = stack
        self.attempts: tuple[BaseException, ...] = ()
        self.post_mortem = post_mortem

    def __reduce__(self) -> Any:
        return type(self), self.args, dict(self.__dict__)


class TaskTimeoutError(TerminatedWorkerError, _TimeoutError):
    """A task ran longer than its `timeout`; its worker was ended, with what it had started.

    `stack` shows what the task was doing. A wait that gave up (``future.result(timeout=...)``)
    raises `TimeoutError` itself instead.
    """


class TaskMemoryError(TerminatedWorkerError, MemoryError):
    """A task's worker used too much memory and was ended.

    A `MemoryError` as well, so that whoever provides for the one that Python raises provides for
    this one too. Which of the limits it was, the message says.

    Attributes
    ----------
    peak : int
        Bytes of memory of its own that the worker was found to use.
    limit : int
        Bytes that it, or with `memory_limit` all workers together, may use.
    """

    def __init__(self, message: str = "", *, peak: int = 0, limit: int = 0, **details: Any) -> None:
        super().__init__(message, **details)
        self.peak = peak
        self.limit = limit


class TaskUnpicklingError(BrokenProcessPool, UnpicklingError):
    """The worker received a task that it could not unpickle; the worker and the pool are fine."""


class ResultUnpicklingError(BrokenProcessPool, UnpicklingError):
    """A result or exception arrived that could not be unpickled; the pool is fine."""


class TaskPicklingError(PicklingError):
    """A task could not be pickled; it was never sent, and the pool is fine."""


class ShutdownExecutorError(RuntimeError):
    """The executor was shut down before or while the task could run."""


class LokyRecursionError(RuntimeError):
    """Executors are nested deeper than ``LOKY_MAX_DEPTH`` allows."""


class RemoteTraceback(Exception):
    """The text of a traceback from a worker; the ``__cause__`` of what `Future.result` raises."""

    def __init__(self, tb: str | None = None) -> None:
        super().__init__(tb)
        self.tb = f'\n"""\n{tb}"""'

    def __str__(self) -> str:
        return self.tb

    def __reduce__(self) -> Any:
        return type(self), self.args
