"""The trace that tasks leave: one short record for each beginning and end, in one file.

A record is one write of a few bytes to a file opened for appending, so records of several processes
never mix, and what was written before a process was killed stays. A task that leaves two
beginnings has run twice: that is how side effects are counted.

Workers import this file: nothing heavy here.
"""

from __future__ import annotations

import os
from struct import Struct
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# ARMED: from here on, this process may end at any moment by the task's own doing.
BEGIN, END, ARMED = range(3)

_RECORD = Struct("<QIId")  # task, process, kind, time


class Mark:
    """One record: which task, in which process, what, when (`time.monotonic`)."""

    __slots__ = ("kind", "pid", "task", "time")

    def __init__(self, task: int, pid: int, kind: int, time: float) -> None:
        self.task = task
        self.pid = pid
        self.kind = kind
        self.time = time


def leave(path: str, task: int, kind: int) -> None:
    """Append a record."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(fd, _RECORD.pack(task, os.getpid(), kind, monotonic()))
    finally:
        os.close(fd)


def begun(path: str, task: int) -> int:
    """How often a task has begun so far."""
    with open(path, "rb") as file:
        data = file.read()
    whole = len(data) // _RECORD.size * _RECORD.size
    records = _RECORD.iter_unpack(data[:whole])
    return sum(number == task and kind == BEGIN for number, _, kind, _ in records)


class Marks:
    """The parent's side: reads what has been appended since it last looked."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.all: list[Mark] = []
        self.running: dict[int, Mark] = {}  # process -> the beginning that has no end yet
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115 (until `close`)

    def read(self) -> list[Mark]:
        """Everything so far. By one thread at a time."""
        new = list(self._new())
        self.all += new
        for mark in new:
            if mark.kind == BEGIN:
                self.running[mark.pid] = mark
            elif mark.kind == END:
                self.running.pop(mark.pid, None)
        return self.all

    def _new(self) -> Iterator[Mark]:
        data = self._file.read()
        whole = len(data) // _RECORD.size * _RECORD.size
        self._file.seek(whole - len(data), os.SEEK_CUR)
        for task, pid, kind, time in _RECORD.iter_unpack(data[:whole]):
            yield Mark(task, pid, kind, time)

    def close(self) -> None:
        """Close and remove the file."""
        self._file.close()
        os.unlink(self.path)
