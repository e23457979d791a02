"""Brings what workers print, log and warn to the parent's own streams, loggers and filters.

What comes from where: standard output and error of a worker are pipes (`relay_pipes`), so that
compiled code and other programs are heard too. Log records and
warnings are frames that come before the frame of their task's result.

Rule 1: `write` is the user's code (`relay_user`) and runs without the baton, in one thread at a
time. Everything else here belongs to whoever leads, see `pool.supervisor`.

Rule 2: what settles a task waits until what the task had said before is written: `hold`. If a
write does not come back within `STUCK_SECONDS`, nothing waits for it any more until it does.

Rule 3: memory is bounded. Beyond `LIMIT` bytes that are not written, nothing more is read, and who
says more has to wait; where nothing waits any more (a worker has died, or rule 2 applies) what
comes beyond `HARD_LIMIT` is dropped, and how much that was is said as soon as it can be.

What does not belong here: what becomes of tasks. This file sees a worker as a line of tasks.
"""

from __future__ import annotations

import atexit
import os
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from typing import Any

from .relay_pipes import PIECE, Outputs, Stream
from .relay_settings import Levels, warning_filters
from .relay_user import FRAME, Item, write_next

# A write that takes longer than this is stuck, in seconds.
STUCK_SECONDS = 1.0
# Not written: see rule 3. Written in one go: about a piece.
LIMIT = 1024 * 1024
HARD_LIMIT = 2 * LIMIT
# What a pipe can hold if a user makes it larger (/proc/sys/fs/pipe-max-size), in bytes. Of one in
# which something is looked for, no more is read: another program may be filling it all the time.
_PIPE_AT_MOST = 1024 * 1024


class Relay:
    """See the top of the file.

    Parameters
    ----------
    names : tuple of str
        What is relayed, see `options.RELAYED`.
    name_of : callable
        A task's name.
    endings : deque
        Gets what `hold` has held, when its time has come.
    """

    def __init__(
        self, names: tuple[str, ...], name_of: Callable[[Any], str], endings: deque[Any]
    ) -> None:
        self.names = names
        self.levels = Levels() if "logging" in names else None
        self._name_of = name_of
        self._endings = endings
        self._queue: deque[Item] = deque()
        self._queued = self._written = 0  # items, since the beginning
        self._unwritten = 0  # bytes
        self._dropped = 0  # bytes that nobody has been told of
        self._held: deque[tuple[int, Any]] = deque()  # item to wait for, and for whom
        self._batch: deque[Item] | None = None  # is being written
        self._batch_items = self._batch_bytes = 0
        self._since = 0.0
        self._unfinished: list[None] = []  # one item while `_batch` is the writer's
        self._over = allocate_lock()
        self._stuck = False
        self._poller: Any = None
        self._alive: dict[Outputs, None] = {}
        self._streams: dict[Stream, None] = {}  # of the living, and those that others still have
        self._reading_streams = self._reading_channels = True

    # ------------------------------------------------------------------ workers

    def open(self, worker: Any) -> Outputs:
        """Make what a new worker prints to.

        Raises
        ------
        OSError
            No descriptors left.
        """
        return Outputs(self, self.names, worker)

    def settings(self, outputs: Outputs) -> dict[str, Any]:
        """What the worker has to know, plain."""
        settings: dict[str, Any] = {"names": self.names, "mark": outputs.mark}
        if self.levels is not None:
            settings["levels"] = self.levels.read()
        if "warnings" in self.names:
            settings["filters"] = warning_filters()
        return settings

    def started(self, port: Any, outputs: Outputs, poller: Any) -> None:
        """The worker's process runs."""
        self._poller = poller
        outputs.port = port
        self._alive[outputs] = None
        for stream in outputs.streams:
            stream.close_theirs()
            stream.pid = port.process.pid
            self._streams[stream] = None
            if self._reading_streams:
                poller.add(stream.fd, stream)

    def collect(self, outputs: Outputs, task: Any) -> None:
        """Take in what a task printed (``None``: the worker's start), which is all there by now."""
        task_id = 0 if task is None else task.id
        for stream in outputs.streams:
            left = _PIPE_AT_MOST
            while task_id not in stream.seen:
                if self._stuck and self._unwritten > LIMIT:
                    stream.late[task_id] = task
                    break
                size = stream.read()
                left -= size
                if not size or left < 0:  # its mark is lost: the task has closed the pipe
                    break
            stream.seen.discard(task_id)

    def ended(self, outputs: Outputs) -> None:
        """The worker's process has ended: take in what it has left."""
        self._alive.pop(outputs, None)
        for stream in outputs.streams:
            left = _PIPE_AT_MOST
            while left > 0 and (size := stream.read()):
                left -= size
            stream.flush()
            stream.orphan()

    def forget(self, stream: Stream) -> None:
        """Nobody writes to it any more."""
        if self._streams.pop(stream, self) is None:
            self._poller.remove(stream.fd)
        stream.close()

    def take(self, payload: bytes | memoryview, speaker: Any, pid: int) -> None:
        """A worker has logged or warned."""
        self.queue_up(FRAME, speaker, pid, payload)

    def queue_up(self, what: str, speaker: Any, pid: int, data: bytes | memoryview) -> None:
        """Have something written, soon and in this order."""
        if self._unwritten > HARD_LIMIT:
            self._dropped += len(data)
            return
        self._append((what, speaker, pid, data))
        if self._unwritten > LIMIT:
            self._regulate()

    def _append(self, item: Item) -> None:
        self._queue.append(item)
        self._queued += 1
        self._unwritten += len(item[3])

    def _tell_of_loss(self) -> None:
        """Queue up how much was dropped, whatever the limits are: else that would be lost too."""
        if self._dropped:
            lost, self._dropped = self._dropped, 0
            text = b"%d bytes of output were dropped: nobody took them\n" % lost
            self._append(("stderr", "loky", os.getpid(), text))

    # ------------------------------------------------------------------ what waits

    def hold(self, ending: Any) -> bool:
        """Keep this until what has come so far is written; false if that is so already."""
        if self._stuck or self._written == self._queued:
            return False
        self._held.append((self._queued, ending))
        return True

    def deadline(self) -> float | None:
        """When `look` should be called at the latest."""
        if self._batch is None:
            return 0.0 if self._queue or self._dropped else None
        return None if self._stuck else self._since + STUCK_SECONDS

    def look(self, now: float) -> deque[Item] | None:
        """What is to be written now by `write`, whose end is to be reported to `done`."""
        if self._batch is not None:
            if not self._stuck and now >= self._since + STUCK_SECONDS:
                self._stuck = True
                self.let_go()
                self._regulate()
            return None
        self._tell_of_loss()
        if not self._queue:
            return None
        batch: deque[Item] = deque()
        size = 0
        while self._queue and size < PIECE:
            item = self._queue.popleft()
            size += len(item[3])
            batch.append(item)
        self._batch = batch
        self._batch_items = len(batch)
        self._batch_bytes = size
        self._since = now
        self._unfinished.append(None)
        return batch

    def done(self, *_: Any) -> None:
        """What `look` has given is written."""
        self._written += self._batch_items
        self._unwritten -= self._batch_bytes
        self._batch = None
        self._stuck = False
        self._release(self._written)
        self._regulate()

    def held(self) -> list[Any]:
        """What `hold` has held and not let go of; for any thread."""
        return [ending for _, ending in list(self._held)]

    def let_go(self) -> None:
        """Hold nothing any more."""
        self._release(self._queued)

    def may_close(self) -> bool:
        """Whether the pool need not wait: all is written, or will be by a thread that is stuck."""
        if self._batch is None:
            return not self._queue and not self._dropped
        if not self._stuck:
            return False
        self._tell_of_loss()
        # Popping is one step, and either the writer does it or we do.
        self._batch.extend(self._queue)
        self._queue.clear()
        self._over.acquire()
        try:
            self._unfinished.pop()
        except IndexError:  # it has come back: `done` is on its way
            self._over.release()
            self._queue.extend(self._batch)
            self._batch.clear()
            return False
        _late.append(self._over)
        return True

    def close(self) -> None:
        """Let go of all descriptors."""
        for stream in list(self._streams):
            stream.close()
        self._streams.clear()

    def _release(self, written: int) -> None:
        held = self._held
        while held and held[0][0] <= written:
            self._endings.append(held.popleft()[1])

    def _regulate(self) -> None:
        """Read from workers or let them wait, by how much is not written."""
        full = self._unwritten > (LIMIT if self._reading_streams else LIMIT // 2)
        if self._reading_streams is full:
            self._reading_streams = not full
            for stream in self._streams:
                self._watch(stream.fd, stream, not full)
        channels = self._stuck or not full
        if self._reading_channels is not channels:
            self._reading_channels = channels
            for outputs in self._alive:
                self._watch(outputs.port.channel.fileno(), outputs.port, channels)

    def _watch(self, fd: int, what: Any, on: bool) -> None:
        self._poller.remove(fd)
        if on:
            self._poller.add(fd, what)

    # ------------------------------------------------------------------ as the user

    def write(self, batch: deque[Item], _: object) -> None:
        """Write what `look` has given."""
        while True:
            while batch:
                write_next(batch, self._name_of)
            try:
                self._unfinished.pop()
                return
            except IndexError:  # the pool was closed meanwhile, and has left the rest to us
                if not batch:
                    self._over.release()
                    return


# ---------------------------------------------------------------------- the end

_late: list[Any] = []  # locks that those release who write what pools have left to them


def _at_exit() -> None:
    """What was printed arrives, however slow the reader is: as it is with prints of our own."""
    while _late:
        _late.pop().acquire()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_late.clear)
