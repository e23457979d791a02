"""Starts a worker process and says how it ended: the interface, and the choice of the kind.

Rule 1: no other file knows how processes are made on which operating system. A port is a new file
beside `launcher_posix.py` and one line at the end of this one.

What every launcher guarantees:

- the new process has run nothing of the parent's code: fork + exec, or what comes nearest to it;
- it gets the descriptors it was promised, descriptors 0-2, and no other;
- it is the leader of a group of its own, which `kill` ends as a whole;
- its end is noticed without blocking, and its exit status is either right or "unknown".
"""

from __future__ import annotations

import os
import sys
from typing import Any, Protocol

from ..wire.imported import imported

# Executed by `python -c`. The package comes from the folder that the parent's came from, so that
# both sides run the same code; everything else goes by the worker's own sys.path. A module of the
# current folder that shadows the standard library must not be met on the way: "" is taken out.
BOOT = (
    "import sys;"
    "a=sys.argv;p=sys.path;"
    "q=[x for x in p if x];"
    "p[:]=[a[1]];"
    "import loky;"
    "p[:]=q;"
    "from loky.worker.loop import main;"
    "main(a[2:])"
)


class ExitInfo:
    """How a process ended.

    Attributes
    ----------
    pid : int
        Its process id.
    code : int or None
        Exit code, or minus the number of the signal that ended it; ``None`` for unknown: somebody
        else took the status (SIGCHLD ignored, a foreign ``waitpid(-1)``).
    usage : resource.struct_rusage or None
        What it had used, as `os.wait4` reports it; ``None`` for unknown.
    """

    __slots__ = ("code", "pid", "usage")

    def __init__(self, pid: int, code: int | None, usage: Any = None) -> None:
        self.pid = pid
        self.code = code
        self.usage = usage

    def signal(self) -> str | None:
        """Name of the signal that ended it, ``None`` if none did or that is unknown."""
        if self.code is None or self.code >= 0:
            return None
        import signal

        try:
            return signal.Signals(-self.code).name
        except ValueError:
            return "SIGNAL"  # a real-time one, say

    def __str__(self) -> str:
        """``SIGSEGV(-11)``, ``EXIT(3)``, ``UNKNOWN``."""
        if self.code is None:
            return "UNKNOWN"
        return f"{self.signal() or 'EXIT'}({self.code})"


class Process(Protocol):
    """A worker process, from the parent's side. Used by one thread at a time, but for reading."""

    pid: int

    @property
    def exit(self) -> ExitInfo | None:
        """How it ended, once `poll` has seen it. For any thread."""

    def fileno(self) -> int:
        """A descriptor that is readable once the process has ended; -1 if there is none."""

    def poll(self) -> ExitInfo | None:
        """How it ended, or ``None`` while it runs. Ends what is left of its group first."""

    def terminate(self) -> None:
        """Ask the process and its group to end."""

    def kill(self) -> None:
        """End the process and its group now."""

    def handles(self, signum: int) -> bool | None:
        """Whether the process has a handler for this signal; ``None`` where nobody can tell."""

    def signal(self, signum: int) -> None:
        """Send the process, and not its group, a signal. Harmless when it has ended."""

    def close(self) -> None:
        """Let go of descriptors. Harmless when repeated."""


def interpreter_flags() -> list[str]:
    """Command line options that make a new interpreter behave as this one does."""
    from subprocess import _args_from_interpreter_flags  # type: ignore[attr-defined]

    flags: list[str] = _args_from_interpreter_flags()
    return flags


def executable() -> str:
    """The interpreter for workers: `multiprocessing.set_executable`'s if the user chose one."""
    spawn = imported("multiprocessing.spawn")
    chosen = spawn.get_executable() if spawn is not None else None
    return os.fsdecode(chosen) if chosen else sys.executable


def command(worker_fds: list[int], strays: list[int]) -> list[str]:
    """The command line of a worker that inherits these descriptors, and strays that it closes."""
    close = "".join(f"import os;os.closerange({fd},{fd + 1});" for fd in strays)
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [executable(), *interpreter_flags(), "-c", close + BOOT, home, *map(str, worker_fds)]


def launch(
    env: dict[str, str] | None, fds: list[int], stdout: int = -1, stderr: int = -1
) -> Process:
    """Start a worker process.

    Parameters
    ----------
    env : dict of str to str, or None
        Its whole environment; ``None``: a copy of this process's.
    fds : list of int
        Descriptors to inherit; the worker gets their numbers on its command line, -1 stays -1.
    stdout, stderr : int
        What its standard output and error are to be, -1 for this process's own.

    Raises
    ------
    OSError
        The system refuses another process.
    """
    from .launcher_posix import launch

    return launch(env, fds, stdout, stderr)


def lifeline() -> int:
    """A descriptor for workers that shows the end of this process; -1 where there is none."""
    from .launcher_posix import lifeline

    return lifeline()
