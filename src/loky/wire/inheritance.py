"""Descriptors that a worker inherits because an initializer's arguments need them.

`multiprocessing`'s queues, events and shared values can be pickled only while a process is being
started, when descriptors can still be handed down. `collecting` makes that state for the pickling
of an initializer and keeps a duplicate of every descriptor that was asked for; each worker inherits
those duplicates and finds them with `InheritedFd`.

What does not belong here: `multiprocessing` is not imported unless it is there already, for then
nothing can need this.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# In a worker: the numbers of the inherited descriptors, in the order of their collection.
numbers: list[int] = []


class InheritedFd:
    """Stands for a descriptor in a pickle, as multiprocessing's `DupFd` does."""

    def __init__(self, index: int) -> None:
        self.index = index

    def detach(self) -> int:
        """In the worker: the descriptor, once."""
        return os.dup(numbers[self.index])


class Collector:
    """What multiprocessing takes for a process that is being started."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def duplicate_for_child(self, fd: int) -> int:
        """Keep a descriptor for the workers; what to call it."""
        self.fds.append(os.dup(fd))
        return len(self.fds) - 1

    DupFd = staticmethod(InheritedFd)

    def close(self) -> None:
        """Let go of the descriptors."""
        while self.fds:
            os.close(self.fds.pop())


class collecting:
    """While this context is entered, this thread may pickle what only a new process may have."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._context: Any = None

    def __enter__(self) -> None:
        from .imported import imported

        self._context = imported("multiprocessing.context")
        if self._context is not None:
            self._context.set_spawning_popen(self._collector)

    def __exit__(self, *exc_info: object) -> None:
        if self._context is not None:
            self._context.set_spawning_popen(None)
