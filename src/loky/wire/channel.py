"""The private line between the parent and one worker: the interface, and the choice of the kind.

Rule 1: this is the only place that knows which operating system has which channel. A port to
another system is a new file beside `channel_linux.py` and one line at the end of this one.

What every channel guarantees to the parent:

- `send` never blocks: what does not fit now is refused, and the caller tries again later;
- a message is read by the worker whole or not at all;
- `recall` takes back exactly the messages that the worker has not read and never will; after
  the worker's death, that makes certain what it never saw;
- what the worker has sent can be received after its death;
- nothing has a name in the file system, nothing outlives the two processes.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` would cost every worker several ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol
else:
    Protocol = object


class Payload(Protocol):
    """A pickled task, ready to be sent and to be sent again if it was certainly not read."""

    size: int

    def close(self) -> None:
        """Let go of what it holds (a descriptor, for a large one)."""


class Channel(Protocol):
    """The parent's side of the line to one worker."""

    can_recall: bool
    # What `send` comes down to for a small message on an empty line: one C call that takes the
    # message and an item of the flags, and raises OSError if nothing was sent.
    sender: Callable[..., int]
    sender_flags: tuple[int, ...]

    def send(self, kind: int, task_id: int, payload: Any, prefix: bytes) -> bool:
        """Put a message into the line; false if there is no room now.

        The payload is ``None`` or one of this kind of channel, see `make_payload`.
        """

    def recall(self) -> list[tuple[int, int, Any]]:
        """Take back every unread message: kind, task id, payload, oldest first.

        One after the other, so the worker may read one that stood behind one that comes back.
        """

    def receive(self, expected: int = 0) -> bytes | None:
        """What the worker has sent; ``None`` for nothing yet, ``b""`` for no more ever.

        At least `expected` bytes are on the way, as far as is known.
        """

    def send_settings(self, blob: bytes) -> None:
        """Tell the worker what it needs to know before its first task."""

    def send_descriptor(self, fd: int) -> None:
        """Answer a TRACKER frame; -1: there is none."""

    def fileno(self) -> int:
        """A descriptor that is readable when `receive` has something."""

    def worker_fds(self) -> tuple[int, int]:
        """The worker's ends: tasks, results. Open until `started`."""

    def started(self) -> None:
        """The worker has its ends now: close the copies that are not needed here."""

    def close(self) -> None:
        """Close everything. Harmless when repeated."""


class WorkerEnd(Protocol):
    """The worker's side of the line. One thread at a time receives; sends must be serialized."""

    def receive(self) -> tuple[int, int, memoryview, memoryview | bytearray | None]:
        """Wait for the next message: kind, task id, prefix, payload.

        The views are good until the next call. The payload is ``None`` if it could not be had
        (this process is out of descriptors or memory).

        Raises
        ------
        EOFError
            The parent has closed the line.
        """

    def send(self, head: bytes, payload: bytes = b"") -> None:
        """Send a frame whole; waits while the parent is slower."""

    def receive_settings(self) -> bytes:
        """Wait for what the parent sent with `Channel.send_settings`."""

    def receive_descriptor(self) -> int:
        """Wait for what the parent sent with `Channel.send_descriptor`; -1 if it was lost."""

    def close(self) -> None:
        """Close both ends: for the copies that a fork inside a task made."""


def open_channel() -> Channel:
    """Open a channel of the best kind that this system has."""
    from .channel_linux import LinuxChannel

    return LinuxChannel()


def open_worker_end(tasks_fd: int, results_fd: int) -> WorkerEnd:
    """Open the worker's side of the channel whose ends it has inherited."""
    from .channel_linux import LinuxWorkerEnd

    return LinuxWorkerEnd(tasks_fd, results_fd)


def make_payload(data: bytes) -> Payload:
    """Make pickled bytes ready for a channel of that kind."""
    from .channel_linux import make_payload

    return make_payload(data)


def anonymous_file(name: str) -> int:
    """Open a file without a name in the file system; its descriptor."""
    from .channel_linux import anonymous_file

    return anonymous_file(name)


def above_std(fd: int) -> int:
    """Move a descriptor away from 0-2; the new one."""
    from .channel_linux import above_std

    return above_std(fd)
