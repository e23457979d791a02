"""Start methods: "loky", "loky_init_main", and those of multiprocessing.

How multiprocessing gets to know the first two is the business of `_registration`.

Does not belong here: counting CPUs. Those names are only passed on, from `loky.cpu`.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext

from ..cpu import (  # noqa: F401
    _MAX_WINDOWS_WORKERS,
    _count_physical_cores,
    _cpu_count_affinity,
    _cpu_count_affinity_set,
    _cpu_count_cgroup,
    cpu_count,
    physical_cores_cache,
)
from .process import LokyInitMainProcess, LokyProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from . import queues, synchronize

    Reducers = Mapping[type, Callable[[Any], Any]]

__all__ = [
    "START_METHODS",
    "LokyContext",
    "LokyInitMainContext",
    "cpu_count",
    "ctx_loky",
    "get_context",
    "get_start_method",
    "set_start_method",
]


class LokyContext(BaseContext):
    """What multiprocessing's contexts have, over processes of the start method "loky"."""

    _name = "loky"
    Process: type[LokyProcess] = LokyProcess
    cpu_count = staticmethod(cpu_count)

    def Queue(self, maxsize: int = 0, reducers: Reducers | None = None) -> queues.Queue:
        """Make a queue whose items are pickled with loky's pickler and these reducers."""
        from .queues import Queue

        return Queue(maxsize, reducers, ctx=self)

    def SimpleQueue(self, reducers: Reducers | None = None) -> queues.SimpleQueue:
        """Make a queue without buffer or thread, with loky's pickler and these reducers."""
        from .queues import SimpleQueue

        return SimpleQueue(reducers, ctx=self)

    def Lock(self) -> synchronize.Lock:
        """Make a lock that other processes can share."""
        from .synchronize import Lock

        return Lock()

    def RLock(self) -> synchronize.RLock:
        """Make a lock that its owner can acquire again."""
        from .synchronize import RLock

        return RLock()

    def Semaphore(self, value: int = 1) -> synchronize.Semaphore:
        """Make a semaphore with this initial value."""
        from .synchronize import Semaphore

        return Semaphore(value)

    def BoundedSemaphore(self, value: int = 1) -> synchronize.BoundedSemaphore:
        """Make a semaphore that cannot be released above its initial value."""
        from .synchronize import BoundedSemaphore

        return BoundedSemaphore(value)

    def Condition(self, lock: Any = None) -> synchronize.Condition:
        """Make a condition variable, around this lock or a new `RLock`."""
        from .synchronize import Condition

        return Condition(lock)

    def Event(self) -> synchronize.Event:
        """Make an event."""
        from .synchronize import Event

        return Event()


class LokyInitMainContext(LokyContext):
    """A `LokyContext` whose processes import the parent's `__main__`.

    For functions that are defined there and cannot travel by value, as without cloudpickle. The
    script then needs an ``if __name__ == "__main__"``, as with "spawn".
    """

    _name = "loky_init_main"
    Process = LokyInitMainProcess


ctx_loky = LokyContext()

_OUR_CONTEXTS = {"loky": ctx_loky, "loky_init_main": LokyInitMainContext()}

START_METHODS = [*_OUR_CONTEXTS, "spawn"]
START_METHODS += [
    name for name in multiprocessing.get_all_start_methods() if name not in START_METHODS
]

_DEFAULT_START_METHOD: str | None = None


def get_context(method: str | None = None) -> BaseContext:
    """Return the context of a start method.

    Parameters
    ----------
    method : str, optional
        One of `START_METHODS`, by default what `set_start_method` has set, or else "loky".

    Returns
    -------
    multiprocessing.context.BaseContext
        Always the same object for the same method, a `LokyContext` for "loky".

    Raises
    ------
    ValueError
        If there is no such start method, or not on this system.

    Warns
    -----
    UserWarning
        For "fork".
    """
    method = method or _DEFAULT_START_METHOD or "loky"
    # Not by way of multiprocessing: joblib's copy of loky registers its contexts there too.
    if method in _OUR_CONTEXTS:
        return _OUR_CONTEXTS[method]
    if method == "fork":
        import warnings

        warnings.warn(
            "The `fork` start method should not be used with `loky`: a copy of a process that has "
            "threads may deadlock. Use `loky` or `spawn` instead.",
            UserWarning,
            stacklevel=2,
        )
    try:
        return multiprocessing.get_context(method)
    except ValueError as error:
        raise ValueError(
            f"Unknown context {method!r}. Value should be in {START_METHODS}."
        ) from error


def set_start_method(method: str | None, force: bool = False) -> None:
    """Set the start method that `get_context` uses by default; multiprocessing's is left alone.

    Parameters
    ----------
    method : str or None
        One of `START_METHODS`; ``None`` for no default.
    force : bool, default False
        Whether a default that was set before may be changed.

    Raises
    ------
    RuntimeError
        If a default was set before and `force` is false.
    AssertionError
        If there is no such start method.
    """
    global _DEFAULT_START_METHOD
    if _DEFAULT_START_METHOD is not None and not force:
        raise RuntimeError("context has already been set")
    if method is not None and method not in START_METHODS:
        raise AssertionError(
            f"{method!r} is not a valid start_method. It should be in {START_METHODS}."
        )
    _DEFAULT_START_METHOD = method


def get_start_method() -> str | None:
    """Return what `set_start_method` has set, or ``None``.

    Returns
    -------
    str or None
        One of `START_METHODS`.
    """
    return _DEFAULT_START_METHOD
