"""What happens to every pool of this process when it forks, and when the interpreter leaves.

- In the child of a fork, pools belong to the parent: they are closed and abandoned.
- At exit, pending work is completed, as the standard library promises, unless the interpreter is
  leaving because of a KeyboardInterrupt: then it is quick.

What does not belong here: how a pool does that. It has three methods, see `Pool`.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import Protocol

interpreter_is_leaving = False


class Pool(Protocol):
    """What this file needs of a pool."""

    def abandon(self) -> None:
        """In the child of a fork: let go of everything without touching what is shared."""

    def shutdown(self, *, cancel: bool = False, kill: bool = False) -> None:
        """Take no more tasks. Harmless when repeated, or when there is nothing to do."""

    def wait_closed(self) -> bool:
        """Wait until nothing is left."""


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def register(pool: Pool) -> None:
    """Have this pool taken care of as long as it lives."""
    _pools.add(pool)


def _in_child() -> None:
    pools = list(_pools)
    _pools.clear()
    for pool in pools:
        pool.abandon()


def _leaving_by_interrupt() -> bool:
    """Whether the interpreter is ending because of a KeyboardInterrupt nobody caught."""
    last = getattr(sys, "last_type", None)
    return last is not None and issubclass(last, KeyboardInterrupt) and not hasattr(sys, "ps1")


def _at_exit() -> None:
    global interpreter_is_leaving
    interpreter_is_leaving = True
    pools = list(_pools)
    kill = _leaving_by_interrupt()
    for pool in pools:
        pool.shutdown(kill=kill)
    for pool in pools:
        try:
            pool.wait_closed()
        except KeyboardInterrupt:
            for other in pools:
                other.shutdown(kill=True)
            pool.wait_closed()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
if hasattr(threading, "_register_atexit"):
    # Before the interpreter waits for threads, which is before `atexit`.
    threading._register_atexit(_at_exit)
else:
    import atexit

    atexit.register(_at_exit)
