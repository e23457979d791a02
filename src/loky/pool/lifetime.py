"""What happens to every pool of this process when it forks, and when the interpreter leaves.

- No fork while another thread imports what the child will need.
- In the child of a fork, pools belong to the parent: they are closed and abandoned.
- At exit, pending work is completed, as the standard library promises, unless the interpreter is
  leaving because of a KeyboardInterrupt: then it is quick. An interrupt meanwhile ends the work
  and the process, in the way of every Python program: one traceback, and death by SIGINT.

What does not belong here: how a pool does that. It has three methods, see `Pool`.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import Protocol

from ..wire.imported import is_being_imported

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


def _before_fork() -> None:
    """Let imports of other threads come to their end.

    The child has a module's lock, but not the thread that would release it: whoever imports it
    there waits for ever. Only imports that depend on nothing but files are waited for: ours, and
    the standard library's.
    """
    if not _pools:
        return
    for name, module in list(sys.modules.items()):
        top = name.partition(".")[0]
        if is_being_imported(module) and (top == "loky" or top in sys.stdlib_module_names):
            try:
                __import__(name)
            except Exception:  # it is that thread's to report
                pass


def _in_child() -> None:
    pools = list(_pools)
    _pools.clear()
    for pool in pools:
        try:
            pool.abandon()
        except OSError:  # another thread was just closing a descriptor of this pool's
            pass


def _leaving_by_interrupt() -> bool:
    """Whether the interpreter is ending because of a KeyboardInterrupt nobody caught."""
    last = getattr(sys, "last_type", None)
    return last is not None and issubclass(last, KeyboardInterrupt) and not hasattr(sys, "ps1")


def _at_exit() -> None:
    global interpreter_is_leaving
    pools = list(_pools)
    kill = _leaving_by_interrupt()
    try:
        interpreter_is_leaving = True
        _close(pools, kill=kill)
    except KeyboardInterrupt as error:
        if not kill:  # else it was told already, and the interpreter ends itself
            _end_by_interrupt(error)
        _close(pools, kill=True)


def _close(pools: list[Pool], *, kill: bool) -> None:
    for pool in pools:
        pool.shutdown(kill=kill)
    for pool in pools:
        pool.wait_closed()


def _end_by_interrupt(error: KeyboardInterrupt) -> None:
    """Tell of the interrupt as if it had struck the main program, and end as that would have.

    Whatever is raised here would be ignored by the interpreter, and its exit status be the one that
    it had before. It ends itself after the other exit functions, which its end must not skip.
    """
    import atexit

    atexit.register(_die, [])
    sys.excepthook(type(error), error, error.__traceback__)


def _die(calls: list[None]) -> None:
    import atexit
    import signal

    if calls:
        return
    calls.append(None)
    atexit._run_exitfuncs()  # all but this one, which was registered last and so is called first
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # there is none, or it is closed
            pass
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    os._exit(130)  # it is blocked: what a shell would call it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_in_child)
if hasattr(threading, "_register_atexit"):
    # Before the interpreter waits for threads, which is before `atexit`.
    threading._register_atexit(_at_exit)
else:
    import atexit

    atexit.register(_at_exit)
