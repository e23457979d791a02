"""Locks and semaphores that processes share, tracked by loky's own resource tracker.

They are multiprocessing's, except for how one is created: without a context, under a name that
begins with ``/loky-`` and the creator's process id, and registered with our tracker, so that it is
removed when all processes that use it have ended, however they ended.

Does not belong here: what multiprocessing's classes already do.
"""

from __future__ import annotations

import os
import secrets
import sys
from _multiprocessing import SemLock as _SemLock
from _multiprocessing import sem_unlink
from multiprocessing import synchronize as _multiprocessing
from multiprocessing import util
from typing import Any

from . import resource_tracker
from ._platform import platform

__all__ = ["BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore"]

RECURSIVE_MUTEX, SEMAPHORE = range(2)
SEM_VALUE_MAX = _SemLock.SEM_VALUE_MAX

_ATTEMPTS = 100  # at finding a name that nobody has: one in four thousand million is taken


class SemLock(_multiprocessing.SemLock):
    """What locks and semaphores are made of.

    Parameters
    ----------
    kind : int
        `RECURSIVE_MUTEX` or `SEMAPHORE`.
    value, maxvalue : int
        Initial and largest value.
    name : str, optional
        Name for the system. By default one that is not in use.

    Raises
    ------
    FileExistsError
        If the name is in use.
    """

    _is_fork_ctx = False  # for __getstate__: other processes may have it
    _semlock: _SemLock

    def __init__(self, kind: int, value: int, maxvalue: int, name: str | None = None) -> None:
        self.name = name
        self._semlock = self._create(kind, value, maxvalue)
        self._make_methods()  # type: ignore[attr-defined]
        util.register_after_fork(self, _after_fork)
        name = self._semlock.name
        if name is not None:
            resource_tracker.register(name, "semlock")
            # At exit, or with the object, whichever comes first.
            util.Finalize(self, self._cleanup, (name,), exitpriority=0)

    def _create(self, kind: int, value: int, maxvalue: int) -> _SemLock:
        nameless = not platform.SEMAPHORES_HAVE_NAMES
        if self.name is not None:
            return _SemLock(kind, value, maxvalue, self.name, nameless)
        for _ in range(_ATTEMPTS):
            try:
                return _SemLock(kind, value, maxvalue, self._make_name(), nameless)
            except FileExistsError:
                continue
        raise FileExistsError("cannot find name for semaphore")

    @staticmethod
    def _make_name() -> str:
        return f"/loky-{os.getpid()}-{secrets.token_hex(4)}"  # macOS has room for 30 characters

    @staticmethod
    def _cleanup(name: str) -> None:
        try:
            sem_unlink(name)
        except FileNotFoundError:  # the user has, or the tracker
            pass
        finally:
            resource_tracker.unregister(name, "semlock")


def _after_fork(obj: SemLock) -> None:
    obj._semlock._after_fork()


class Semaphore(SemLock, _multiprocessing.Semaphore):
    """A semaphore.

    Parameters
    ----------
    value : int, default 1
        Initial value.
    """

    def __init__(self, value: int = 1) -> None:
        SemLock.__init__(self, SEMAPHORE, value, SEM_VALUE_MAX)


class BoundedSemaphore(SemLock, _multiprocessing.BoundedSemaphore):
    """A semaphore that cannot be released above its initial value.

    Parameters
    ----------
    value : int, default 1
        Initial and largest value.
    """

    def __init__(self, value: int = 1) -> None:
        SemLock.__init__(self, SEMAPHORE, value, value)


class Lock(SemLock, _multiprocessing.Lock):
    """A lock that any thread of any process may release."""

    def __init__(self) -> None:
        SemLock.__init__(self, SEMAPHORE, 1, 1)


class RLock(SemLock, _multiprocessing.RLock):
    """A lock that its owner can acquire again."""

    def __init__(self) -> None:
        SemLock.__init__(self, RECURSIVE_MUTEX, 1, 1)


# The two below ask a context for their parts, by the names of the classes above.
_parts: Any = sys.modules[__name__]


class Condition(_multiprocessing.Condition):
    """A condition variable.

    Parameters
    ----------
    lock : Lock or RLock, optional
        By default a new `RLock`.
    """

    def __init__(self, lock: Any = None) -> None:
        super().__init__(lock, ctx=_parts)


class Event(_multiprocessing.Event):
    """A flag to wait for."""

    def __init__(self) -> None:
        super().__init__(ctx=_parts)
