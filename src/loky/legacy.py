"""Compatibility only: names of `loky.process_executor` that callers of loky 3 know.

They are looked up there when they are first used; nothing of our own uses them.
"""

from __future__ import annotations

from pickle import PicklingError
from typing import Any

from . import nesting
from .errors import (
    BrokenExecutor,
    BrokenProcessPool,
    LokyRecursionError,
    ShutdownExecutorError,
    TerminatedWorkerError,
)
from .errors import RemoteTraceback as _RemoteTraceback

__all__ = [
    "EXTRA_QUEUED_CALLS",
    "BrokenExecutor",
    "BrokenProcessPool",
    "LokyRecursionError",
    "PicklingError",
    "ShutdownExecutorError",
    "TerminatedWorkerError",
]

EXTRA_QUEUED_CALLS = 1  # has no effect: there is no queue that workers share
_MEMORY_LEAK_CHECK_DELAY = 1.0  # set it in a worker: `worker.footprint` heeds it
process_pool_executor_at_exit = None  # nor has this: `pool.lifetime` sees to the exit

# What the module of old had imported, and callers have got used to import from there.
_ELSEWHERE = {
    "Executor": "concurrent.futures",
    "Future": "loky.future",
    "InvalidStateError": "concurrent.futures",
    "LOGGER": "concurrent.futures._base",
    "Queue": "loky.backend.queues",
    "SimpleQueue": "loky.backend.queues",
    "cpu_count": "loky.cpu",
    "get_context": "loky.backend",
    "get_exitcodes_terminated_worker": "loky.backend.utils",
    "get_loky_pickler_name": "loky.wire.picklers",
    "kill_process_tree": "loky.backend.utils",
    "set_loky_pickler": "loky.wire.picklers",
    "wait": "multiprocessing.connection",
}


def _rebuild_exc(error: BaseException, tb: str) -> BaseException:
    error.__cause__ = _RemoteTraceback(tb)
    return error


class _ExceptionWithTraceback:
    """Carries an exception to another process together with its traceback's text.

    Attributes
    ----------
    exc : BaseException
        The exception, without its traceback.
    tb : str
        The traceback's text.
    """

    def __init__(self, exc: BaseException) -> None:
        import traceback

        self.tb = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
        self.exc = exc
        # The frames of this process would keep everything alive that they refer to.
        exc.__traceback__ = None

    def __reduce__(self) -> Any:
        return _rebuild_exc, (self.exc, self.tb)


def __getattr__(name: str) -> Any:
    if name == "_CURRENT_DEPTH":
        return nesting.depth
    if name in _ELSEWHERE:
        from importlib import import_module

        return getattr(import_module(_ELSEWHERE[name]), name)
    raise AttributeError(name)
