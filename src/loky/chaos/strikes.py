"""Signals to workers, and to nobody else.

Guarantee: a signal never reaches a process that is not a child of this one, even when a worker
ends, and its number is used again, at the very moment of the strike: it is sent through a
descriptor of the process, after a look at whose child that is.

Linux with pidfds only; see `possible`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from heapq import heappop, heappush
from time import monotonic

from .actions import Strike, signal_number
from .marks import Marks

# What a worker ends with when it is sent one of these.
DEADLY = ("KILL", "TERM", "SEGV")
# A task that may run for this much longer is a long one, in seconds.
LONG = 0.015


def possible() -> str | None:
    """Why there can be no strikes here, ``None`` if there can."""
    if not hasattr(os, "pidfd_open") or not hasattr(signal, "pidfd_send_signal"):
        return "this Python has no os.pidfd_open or no signal.pidfd_send_signal"
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return f"this system has no pidfds: {error}"
    return None


def send(pid: int, number: int) -> bool:
    """Send a child of this process a signal; whether there was one to receive it."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # The descriptor stands for one process whatever becomes of its number.
        if parent_of(pid) != os.getpid():
            return False
        signal.pidfd_send_signal(fd, number)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def parent_of(pid: int) -> int:
    """The parent of a process; -1 if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return -1


class Striker:
    """Carries out strikes, and remembers what each can have caused.

    Parameters
    ----------
    marks : Marks
        Tells who runs what. This object reads it, nobody else may meanwhile.
    seconds : dict of int to float
        How long each task means to run.
    """

    def __init__(self, marks: Marks, seconds: dict[int, float]) -> None:
        self.struck: dict[int, set[int]] = {}
        self.count: dict[str, int] = {}
        self._marks = marks
        self._seconds = seconds
        self._stopped: list[tuple[float, int]] = []  # when to continue whom

    def strike(self, what: Strike, pids: Iterable[int]) -> int | None:
        """Carry one out, on one of these processes or on one in a long task; whom it met."""
        candidates = self._in_long_tasks() if what.busy else sorted(pids)
        if not candidates:
            return None
        pid = candidates[int(what.pick * len(candidates))]
        number = signal_number(what.signal)
        if what.signal in DEADLY:
            # Noted first: its effect may be seen before `send` returns.
            self.struck.setdefault(pid, set()).add(-number)
        if not send(pid, number):
            return None
        if what.signal == "STOP":
            heappush(self._stopped, (monotonic() + what.seconds, pid))
        self.count[what.signal] = self.count.get(what.signal, 0) + 1
        return pid

    def resume(self, until: float) -> float | None:
        """Continue whoever was stopped and is due by then; when the next one is due."""
        while self._stopped and self._stopped[0][0] <= until:
            send(heappop(self._stopped)[1], signal.SIGCONT)
        return self._stopped[0][0] if self._stopped else None

    def _in_long_tasks(self) -> list[int]:
        self._marks.read()
        now = monotonic()
        return sorted(
            pid
            for pid, mark in self._marks.running.items()
            if mark.time + self._seconds.get(mark.task, 0.0) > now + LONG
        )
