"""Messages to bytes and back.

Rule 1: no I/O here. Both sides, the tests and the simulator use the same functions.

Rule 2: a header can be read without unpickling anything, so a payload that cannot be unpickled
costs its own task and no other, and its task is known by name.

Towards the worker there are *messages*, each one datagram that is read whole or not at all::

    kind: 1 byte | prefix: 3 bytes, little endian | task id: 8 bytes | prefix | payload

    TASK        payload: the pickled (function, args, kwargs)
    TASK_IN_FD  the payload is in the attached descriptor, from its start to its end
    EXIT        leave; no payload

The prefix, empty as a rule, is a pickled list: the parent's new `sys.path`. It is apart from the
payload so that a message taken back from one worker can be given to another that lacks it, or
does not need it.

Towards the parent there are *frames* in a stream::

    length of payload: 8 | kind: 1 | 3 unused | microseconds: 4 | task id: 8 | payload

    READY       the worker has started; payload empty
    VALUE       a result made of plain builtins: unpickling it runs no code of the user's
    PICKLE      any other result
    ERROR       the task raised: `pack_error`
    UNREADABLE  the task could not be unpickled: `pack_error`
    BAD_RESULT  the result could not be pickled: `pack_error`
    INIT_FAILED the initializer raised: `pack_error`; the worker leaves
    RECYCLE     this worker uses too much memory, how many bytes: in place of the id; payload: why
    TRACKER     please send the descriptor of a resource tracker: which one, in place of the id
    RELAY       the worker, or the task that it runs, has logged or warned: a pickled
                ("logging", attributes of the record) or ("warnings", (text, classes by module and
                name, file, line, module)); plain

On the stream's way back, only when the worker expects it: one frame with the worker's settings,
and a byte with a descriptor attached for each TRACKER.

Past all that, for a worker that is busy in C code: the signal `STACKS_SIGNAL`, which it answers by
writing its Python stacks to the file that it was given for faults.

Standard output and error of a worker, where they are relayed, are pipes with a mark behind what
each task has written: bytes that the parent has thought of, and the task's id in `MARK_ID`
hexadecimal digits (0: the end of the worker's start).

What else a worker writes to its standard error is also in a file that it shares with the parent: a
ring, see `last_words`.
"""

from __future__ import annotations

# `signal` imports enum, which would cost every worker several ms.
import _signal  # type: ignore[import-not-found]
from struct import Struct

TYPE_CHECKING = False  # importing `typing` would cost every worker several ms
if TYPE_CHECKING:
    from collections.abc import Iterator

    Frame = tuple[int, int, float, "bytes | memoryview"]

TASK, TASK_IN_FD, EXIT = 1, 2, 3
VALUE, PICKLE, ERROR, UNREADABLE, BAD_RESULT = range(1, 6)
LAST_REPLY = BAD_RESULT  # these are how tasks end; the others are no task's end
READY, INIT_FAILED, TRACKER, RECYCLE, RELAY = range(6, 11)

# Why a worker asks to be replaced. With the last one it does not ask: it leaves.
GROWS, TOO_LARGE, QUITS = b"memory_leak", b"recycle_memory_per_worker", b"max_memory_per_worker"

# Of which resource tracker a TRACKER frame speaks, by its index, in place of a task id.
# The modules that have one: the standard library's, ours, and that of the copy of loky in joblib.
TRACKERS = (
    "multiprocessing.resource_tracker",
    "loky.backend.resource_tracker",
    "joblib.externals.loky.backend.resource_tracker",
)

# Asks a worker for its Python stacks; 0 where there is no signal to spare. A real-time one of no
# known use: programs use the ordinary ones themselves, and glibc the first two of the kernel's 32.
# Where there are none, SIGURG, which does no harm to a process that has no handler for it.
STACKS_SIGNAL = (
    _signal.SIGRTMIN + 9 if hasattr(_signal, "SIGRTMIN") else getattr(_signal, "SIGURG", 0)
)

_MESSAGE = Struct("<BBHQ")
_FRAME = Struct("<QB3xIQ")
_LENGTH = Struct("<Q")
MESSAGE_HEAD = _MESSAGE.size
FRAME_HEAD = _FRAME.size

# The largest payload that travels inside a message. The kernel refuses datagrams above
# net.core.wmem_default (212,992 bytes less its own overhead on a stock Linux); many of this size
# fit a socket's buffer, and a copy through the kernel this small is cheaper than a descriptor.
INLINE_LIMIT = 32 * 1024
PREFIX_LIMIT = 64 * 1024
MESSAGE_LIMIT = MESSAGE_HEAD + PREFIX_LIMIT + INLINE_LIMIT


def pack_message(kind: int, task_id: int, payload: bytes = b"", prefix: bytes = b"") -> bytes:
    """Build a message towards the worker."""
    size = len(prefix)
    return _MESSAGE.pack(kind, size & 0xFF, size >> 8, task_id) + prefix + payload


def unpack_message(message: memoryview) -> tuple[int, int, memoryview, memoryview]:
    """Take a message apart: kind, task id, prefix, payload."""
    kind, low, high, task_id = _MESSAGE.unpack_from(message)
    start = MESSAGE_HEAD + (high << 8 | low)
    return kind, task_id, message[MESSAGE_HEAD:start], message[start:]


def frame_head(kind: int, task_id: int, length: int, seconds: float = 0.0) -> bytes:
    """Build the head of a frame towards the parent; the payload follows it on the stream."""
    micros = int(seconds * 1e6)
    return _FRAME.pack(length, kind, micros if micros < 0xFFFFFFFF else 0xFFFFFFFF, task_id)


class FrameReader:
    """Cuts a stream into frames: kind, task id, seconds, payload."""

    __slots__ = ("_have", "_partial", "_want")

    def __init__(self) -> None:
        self._partial: list[bytes] = []
        self._have = 0  # bytes in _partial
        self._want = FRAME_HEAD  # bytes without which no frame can be complete

    def expected(self) -> int:
        """How many bytes are missing, at least, until a frame is complete."""
        return self._want - self._have if self._partial else FRAME_HEAD

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take the next piece of the stream; yield the frames that it completes."""
        if self._partial:
            self._partial.append(data)
            self._have += len(data)
            if self._have < self._want:
                return
            # Joined once per frame, not once per piece: a large result comes in many pieces.
            data = b"".join(self._partial)
            self._partial.clear()
        size = len(data)
        start = 0
        while start + FRAME_HEAD <= size:
            length, kind, micros, task_id = _FRAME.unpack_from(data, start)
            end = start + FRAME_HEAD + length
            if end > size:
                self._keep(data, start, end - start)
                return
            payload: bytes | memoryview
            if length > INLINE_LIMIT:
                payload = memoryview(data)[start + FRAME_HEAD : end]
            else:
                payload = data[start + FRAME_HEAD : end]
            yield kind, task_id, micros * 1e-6, payload
            start = end
        if start < size:
            self._keep(data, start, FRAME_HEAD)

    def _keep(self, data: bytes, start: int, want: int) -> None:
        rest = data[start:]
        self._partial.append(rest)
        self._have = len(rest)
        self._want = want


_LENGTHS = Struct("<QQ")


def pack_error(text: str, summary: bytes, pickled: bytes) -> bytes:
    """Build an error's payload: the traceback's text, a plain summary, the pickled exception.

    The summary is a pickled tuple of three str: where, the type's name, the message. The pickled
    exception is empty if there is none that can be sent.
    """
    encoded = text.encode("utf-8", "backslashreplace")
    return _LENGTHS.pack(len(encoded), len(summary)) + encoded + summary + pickled


def unpack_error(payload: bytes | memoryview) -> tuple[str, bytes, bytes]:
    """Take an error's payload apart."""
    data = bytes(payload)
    text, summary = _LENGTHS.unpack_from(data)
    middle = _LENGTHS.size + text
    end = middle + summary
    return data[_LENGTHS.size : middle].decode("utf-8"), data[middle:end], data[end:]


def pack_settings(blob: bytes) -> bytes:
    """Frame the worker's settings."""
    return _LENGTH.pack(len(blob)) + blob


SETTINGS_HEAD = _LENGTH.size


def settings_length(head: bytes) -> int:
    """How many bytes follow the head of the settings' frame."""
    return int(_LENGTH.unpack(head)[0])


MARK_ID = 16

# How much of the end of a worker's standard error is kept at least, and how long the file gets in
# which it is, in bytes.
LAST_WORDS = 4 * 1024
RING = 2 * LAST_WORDS


def last_words(data: bytes, end: int) -> bytes:
    """Read the ring that holds the end of a worker's standard error.

    Parameters
    ----------
    data : bytes
        The whole file.
    end : int
        Its offset, which all processes that have the file share: there the next words go. What is
        behind is older than what is before.

    Returns
    -------
    bytes
        At most `LAST_WORDS`, beginning with a line if there was more.
    """
    data = data[end:] + data[:end]
    if len(data) > LAST_WORDS:
        line = data.find(b"\n", -LAST_WORDS - 1, -1) + 1
        data = data[line or -LAST_WORDS :]
    return data
