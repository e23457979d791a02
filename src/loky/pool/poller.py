"""Waits for descriptors, a time, or a nudge from another thread.

`wake` may be called from any thread, from finalizers and from inside the poller's own thread; it
never blocks. An epoll and an eventfd where the system has them, `selectors` and a pipe elsewhere.
"""

from __future__ import annotations

import os
import select
import sys
from _thread import RLock
from typing import Any, Protocol


class Poller(Protocol):
    """Used by one thread at a time, but for `wake`."""

    def add(self, fd: int, what: Any) -> None:
        """Report `what` whenever this descriptor is readable or has hung up."""

    def remove(self, fd: int) -> None:
        """Forget this descriptor. Harmless when it is not there."""

    def poll(self, seconds: float | None) -> list[Any]:
        """Wait at most this long, ``None`` for ever; what is ready. Nudges are not reported."""

    def wake(self) -> None:
        """Make the present or next `poll` return."""

    def close(self) -> None:
        """Close every descriptor of the poller's own; from then on, `wake` does nothing."""

    def abandon(self) -> None:
        """In the child of a fork, where a thread that is not there may hold a lock: close."""


class _Nudge:
    """Writes to a descriptor as long as it is open.

    Without the lock, a thread could write to the number of a descriptor that was closed and given
    to somebody else meanwhile. It is re-entrant, as a finalizer may strike inside.
    """

    def __init__(self, fd: int, message: bytes) -> None:
        self._fd = fd
        self._message = message
        self._lock = RLock()

    def wake(self) -> None:
        with self._lock:
            if self._fd >= 0:
                try:
                    os.write(self._fd, self._message)
                except BlockingIOError:  # full: it is awake enough
                    pass

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def abandon(self) -> None:
        self._lock = RLock()
        self.close()


class EpollPoller:
    """See `Poller`."""

    def __init__(self) -> None:
        from ..wire.channel import above_std

        self._epoll = select.epoll()
        self._nudged = above_std(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self._nudge = _Nudge(self._nudged, (1).to_bytes(8, sys.byteorder))
        self.wake = self._nudge.wake  # type: ignore[method-assign]  # one call less per submit
        self._known: dict[int, Any] = {}
        self._epoll.register(self._nudged, select.EPOLLIN)

    def add(self, fd: int, what: Any) -> None:
        self._known[fd] = what
        self._epoll.register(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        if self._known.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def poll(self, seconds: float | None) -> list[Any]:
        known = self._known
        ready = []
        for fd, _ in self._epoll.poll(-1 if seconds is None else max(0.0, seconds), 64):
            if fd == self._nudged:
                os.read(fd, 8)
            elif fd in known:
                ready.append(known[fd])
        return ready

    def wake(self) -> None:
        self._nudge.wake()

    def close(self) -> None:
        self._nudge.close()
        self._epoll.close()

    def abandon(self) -> None:
        self._nudge.abandon()
        self._epoll.close()


class SelectorsPoller:
    """See `Poller`."""

    def __init__(self) -> None:
        import selectors

        self._selector = selectors.DefaultSelector()
        self._nudged, nudge = os.pipe()
        os.set_blocking(self._nudged, False)
        os.set_blocking(nudge, False)
        self._nudge = _Nudge(nudge, b"\0")
        self._selector.register(self._nudged, selectors.EVENT_READ, None)

    def add(self, fd: int, what: Any) -> None:
        self._selector.register(fd, 1, what)  # selectors.EVENT_READ

    def remove(self, fd: int) -> None:
        try:
            self._selector.unregister(fd)
        except KeyError:
            pass

    def poll(self, seconds: float | None) -> list[Any]:
        ready = []
        for key, _ in self._selector.select(seconds):
            if key.fd == self._nudged:
                os.read(self._nudged, 4096)
            else:
                ready.append(key.data)
        return ready

    def wake(self) -> None:
        self._nudge.wake()

    def close(self) -> None:
        self._nudge.close()
        self._selector.close()
        os.close(self._nudged)

    def abandon(self) -> None:
        self._nudge.abandon()
        self.close()


def open_poller() -> Poller:
    """Open the best poller that this system has."""
    if hasattr(select, "epoll") and hasattr(os, "eventfd"):
        return EpollPoller()
    return SelectorsPoller()
