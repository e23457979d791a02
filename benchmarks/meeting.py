"""A meeting point for workers: proof, without a sleep, that several of them run at the same time.

A task `workload.arrive` announces itself on one named pipe and blocks on another until released.
When N different processes have announced themselves, N workers are up and each holds one task.

Guarantees: never waits longer than it is told to. Assumes POSIX named pipes; both are opened for
reading and writing here, so that neither opening nor an empty moment means end-of-file.
Does not belong here: the worker's half (workload.py).
"""

from __future__ import annotations

import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


class Meeting:
    """One meeting point, used as a context manager; `args` is what `workload.arrive` needs."""

    def __init__(self, directory: str) -> None:
        self.args = (os.path.join(directory, "arrived"), os.path.join(directory, "go"))
        for path in self.args:
            os.mkfifo(path)
        self._arrived = os.open(self.args[0], os.O_RDWR)
        self._go = os.open(self.args[1], os.O_RDWR)
        self._unread = b""

    def __enter__(self) -> Meeting:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._arrived)
        os.close(self._go)
        for path in self.args:
            os.unlink(path)

    def arrivals(self, count: int, limit: float) -> list[int]:
        """The pids of the first `count` workers to arrive, or of fewer when `limit` passed."""
        deadline = time.monotonic() + limit
        pids: list[int] = []
        while len(pids) < count:
            line, newline, rest = self._unread.partition(b"\n")
            if newline:
                pids.append(int(line))
                self._unread = rest
                continue
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._arrived], [], [], left)[0]:
                break
            self._unread += os.read(self._arrived, 65536)
        return pids

    def release(self, count: int) -> None:
        """Let `count` waiting workers return."""
        os.write(self._go, b"." * count)
