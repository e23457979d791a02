"""What workers print to, where it is relayed: pipes, whose bytes become lines of known tasks.

In a pipe, a *mark* ends what each task has printed (`wire.protocol`). So a line is its task's even
if the worker has gone on to the next one by the time it is read.

What does not belong here: when to read, and what becomes of the lines. That is `relay`'s.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

from ..wire import protocol
from ..wire.channel import above_std

# Read at a time: what a pipe holds by default.
PIECE = 64 * 1024
# A line that is longer than this is cut.
LINE_LIMIT = 256 * 1024


class Reader(Protocol):
    """Who takes in what comes."""

    def queue_up(self, what: str, speaker: Any, pid: int, data: bytes) -> None:
        """Lines of that stream, said by a task (``None``: by none)."""

    def forget(self, stream: Stream) -> None:
        """Nobody has the pipe any more."""


class Stream:
    """One pipe that a worker writes to: cuts what comes into lines and says whose they are."""

    def __init__(self, relay: Reader, name: str, worker: Any, mark: bytes) -> None:
        self.name = name
        self.pid = 0
        self.late: dict[int, Any] = {}  # settled tasks whose marks are still to come
        self.seen: set[int] = set()  # marks of tasks that are not settled
        self.tail = b""
        self._relay = relay
        self._worker = worker
        self._mark = mark
        self._last: int | None = None  # the last mark; None while the worker starts
        self._rest = b""  # the beginning of a line, or of a mark
        read, write = os.pipe()
        self.fd = above_std(read)
        self.theirs = above_std(write)
        os.set_blocking(self.fd, False)

    def read(self) -> int:
        """Take in what is there, at most one piece; how many bytes that was."""
        if self.fd < 0:
            return 0
        try:
            data = os.read(self.fd, PIECE)
        except BlockingIOError:
            return 0
        if data:
            self._feed(data)
        else:
            self.flush()
            self._relay.forget(self)
        return len(data)

    def flush(self) -> None:
        """Take what is there of a line as a line."""
        self._say(self._rest, self._running())
        self._rest = b""

    def orphan(self) -> None:
        """The worker is gone; others may still have the pipe."""
        self._worker = None

    def last_words(self) -> bytes:
        """The last of what came, without marks."""
        words = self.tail + self._rest
        return protocol.last_words(words, len(words))

    def close(self) -> None:
        """Close what is open. Harmless when repeated."""
        self.close_theirs()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close_theirs(self) -> None:
        """The worker has its end now."""
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1

    def _feed(self, data: bytes) -> None:
        mark = self._mark
        data = self._rest + data
        size = len(mark) + protocol.MARK_ID
        while (at := data.find(mark)) >= 0 and len(data) >= at + size:
            task_id = int(data[at + len(mark) : at + size], 16)
            self._say(data[:at], self._speaker(task_id))
            self._last = task_id
            data = data[at + size :]
        # A mark contains no line feed, so the beginning of one stays in the rest.
        end = data.rfind(b"\n") + 1
        if end:
            self._say(data[:end], self._running())
        rest = data[end:]
        # Of a line that is written over and over, as a progress bar is, the last is what counts.
        rest = rest[rest.rfind(b"\r", 0, -1) + 1 :]
        if len(rest) > LINE_LIMIT:
            self._say(rest[:-size], self._running())
            rest = rest[-size:]
        self._rest = rest

    def _say(self, text: bytes, speaker: Any) -> None:
        if not text:
            return
        if self.name == "stderr":
            self.tail = (self.tail + text)[-2 * protocol.LAST_WORDS :]
        self._relay.queue_up(self.name, speaker, self.pid, text)

    def _speaker(self, task_id: int) -> Any:
        """The task that has ended with this mark."""
        if task_id in self.late:
            return self.late.pop(task_id)
        if self._worker is not None:
            for task in self._worker.line:
                if task.id == task_id:
                    self.seen.add(task_id)
                    return task
        return None

    def _running(self) -> Any:
        """The task that prints now: the one behind the last mark."""
        if self._worker is None or self._last is None:
            return None
        line = self._worker.line
        running = 0
        for at, task in enumerate(line):
            if task.id == self._last:
                running = at + 1
                break
        return line[running] if running < len(line) else None


class Outputs:
    """What one worker prints to, as far as it is relayed."""

    def __init__(self, relay: Reader, names: tuple[str, ...], worker: Any) -> None:
        self.mark = b"\0loky-" + os.urandom(16).hex().encode()
        self.streams: list[Stream] = []
        self.port: Any = None  # of a worker that runs
        try:
            for name in names:
                if name in ("stdout", "stderr"):
                    self.streams.append(Stream(relay, name, worker, self.mark))
        except BaseException:
            self.close()
            raise

    def theirs(self) -> tuple[int, int]:
        """Descriptors for the worker's standard output and error; -1 for the parent's own."""
        fds = {stream.name: stream.theirs for stream in self.streams}
        return fds.get("stdout", -1), fds.get("stderr", -1)

    def last_words(self) -> bytes | None:
        """The last of standard error, ``None`` if it does not come this way."""
        for stream in self.streams:
            if stream.name == "stderr":
                return stream.last_words()
        return None

    def close(self) -> None:
        """Close everything, if no worker was started with it."""
        if self.port is None:
            for stream in self.streams:
                stream.close()
