"""A worker as the parent holds it: process, channel, and what it has been told.

What does not belong here: any decision. This file makes the things and breaks them.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from typing import Any

from .. import nesting
from ..options import PoolOptions
from ..wire import inheritance, picklers, pickling, protocol
from ..wire.channel import anonymous_file, open_channel
from ..wire.imported import imported
from .deaths import Excess
from .launcher import Process, launch, lifeline
from .model import Task, Worker

# The first words of faulthandler's report of a crash. Stacks that were asked for have none such.
_CRASH = b"Fatal Python error: "
# How much of a worker's file for faults is looked at, from its end. A thread's stack is cut at a
# hundred frames, but there may be a hundred threads.
_FAULT_BYTES = 256 * 1024
# Past this size it is emptied before more is asked for: the memory is the machine's.
_FAULT_LIMIT = 1024 * 1024


class WorkerSettings:
    """What every worker of a pool is told before its first task, and when that changes."""

    def __init__(self, options: PoolOptions) -> None:
        self.options = options
        self.descriptors = inheritance.Collector()
        self.initializer: bytes | None = options.pickled_initializer(self.descriptors)
        self.version = 0
        self._path: list[str] = []
        self._authkey: bytes | None = None
        self._generation = -1  # of the choice of the pickler
        self._number = 0
        self._limits = (options.recycle_memory_per_worker, options.max_memory_per_worker)
        self.prefix = b""
        self.relay: Any = None  # of the pool's, if it has one
        self._levels: Any = None

    def relay_by(self, relay: Any) -> None:
        """Have workers send what they print, log or warn, see `observe.relay`."""
        self.relay = relay
        self._levels = relay.levels

    def refresh(self) -> int:
        """Look for news that workers have to be told; the number of the present version."""
        if self.has_news():
            process = imported("multiprocessing.process")
            self._path = list(sys.path)
            if process is not None:
                self._authkey = bytes(process.current_process().authkey)
            self._generation = picklers.generation
            news: dict[str, Any] = {
                "path": _texts(self._path),
                "authkey": self._authkey,
                "pickler": picklers.get_loky_pickler_name() if picklers.generation else None,
            }
            if self._levels is not None:
                news["levels"] = self._levels.renew()
            prefix = pickling.dumps_plain(news)
            # A path that long cannot be right; without the prefix the tasks at least can run.
            self.prefix = prefix if len(prefix) <= protocol.PREFIX_LIMIT else b""
            self.version += 1
        return self.version

    def has_news(self) -> bool:
        """Whether something has changed since the last look."""
        return (
            sys.path != self._path
            or picklers.generation != self._generation
            or (
                self._authkey is None
                and "multiprocessing.process" in sys.modules
                and imported("multiprocessing.process") is not None
            )
            or (self._levels is not None and self._levels.changed())
        )

    def environment(self) -> dict[str, str] | None:
        """The worker's environment, ``None`` for this process's own."""
        if not self.options.env:
            return None
        return {**os.environ, **self.options.env}

    def first_words(self, relay: dict[str, Any] | None) -> bytes:
        """The settings of one new worker; what it has to know to relay what it says."""
        self.refresh()
        self._number += 1
        process = imported("multiprocessing.process")
        context: Any = imported("multiprocessing.context")
        method = context and context._default_context.get_start_method(allow_none=True)
        util: Any = imported("multiprocessing.util")
        logger = util and util._logger
        return pickling.dumps_plain(
            {
                "argv": [str(argument) for argument in sys.argv],
                "authkey": self._authkey,
                "depth": nesting.depth + 1,
                "initializer": self.initializer,
                "limits": self._limits,
                "log_level": logger.getEffectiveLevel() if logger else None,
                "log_to_stderr": bool(logger and util._log_to_stderr),
                "name": f"LokyProcess-{self._number}",
                "number": self._number,
                "parent_name": process.current_process().name if process else "MainProcess",
                "parent_pid": os.getpid(),
                "path": _texts(self._path),
                "pickler": picklers.get_loky_pickler_name() if picklers.generation else None,
                "relay": relay,
                "start_method": method or None,
            }
        )


def _texts(path: list[Any]) -> list[str]:
    """What of `sys.path` is text, or says what text it stands for: the rest names no folder."""
    texts = []
    for entry in path:
        if isinstance(entry, os.PathLike):
            try:
                entry = os.fspath(entry)
            except Exception:  # the user's code
                continue
        if isinstance(entry, str):
            texts.append(str.__str__(entry))  # of a subclass, too: workers need not have it
    return texts


class Port:
    """One worker's process and channel."""

    def __init__(self, worker: Worker, settings: WorkerSettings) -> None:
        self.worker = worker
        self.settings = settings
        self.channel = open_channel()
        self.reader = protocol.FrameReader()
        self.process: Process | None = None
        self.backlog: deque[Task] = deque()  # assigned, but the channel has no room
        self.told = -1  # version of the settings that the worker certainly knows
        # Tasks whose messages carry news, and of which version. A later message must carry them as
        # well until one of these is answered: a recall may take an earlier one back while the
        # worker reads the later.
        self.news: dict[int, int] = {}
        self.early: tuple[int, float, Any] | None = None  # a reply that came before its task's note
        self.bytes_sent = 0  # payloads of tasks
        self.bytes_received = 0
        self._fault_fd = -1
        # Where in that file the answer to the last request for stacks begins; -1: none was made.
        self._asked_at = -1
        self.footprint = 0  # what it used of memory when it was last looked at, in bytes
        self.excess: Excess | None = None  # which limit of memory it is ended for
        self.cut_off = False  # whether it is ended because its channel was closed
        self.last_stacks = ""  # where it was when it was stopped, see `parting`
        self._ring_fd = -1  # the end of its standard error, if that is not relayed
        self.outputs: Any = None  # what it prints to, if that is relayed

    def start(self) -> None:
        """Start the process.

        Raises
        ------
        OSError
            No process, descriptor or memory left.
        """
        self._fault_fd = anonymous_file("loky-fault")
        relay = self.settings.relay
        said = None
        stdout = stderr = -1
        if relay is not None:
            self.outputs = relay.open(self.worker)
            stdout, stderr = self.outputs.theirs()
            said = relay.settings(self.outputs)
        if stderr < 0:
            self._ring_fd = anonymous_file("loky-stderr")
        self.channel.send_settings(self.settings.first_words(said))
        self.told = self.settings.version
        fds = [*self.channel.worker_fds(), lifeline(), self._fault_fd, self._ring_fd]
        fds += self.settings.descriptors.fds
        self.process = launch(self.settings.environment(), fds, stdout, stderr)
        self.channel.started()

    @property
    def pid(self) -> int:
        """The process's id; 0 if there is none."""
        return 0 if self.process is None else self.process.pid

    def send(self, task: Task) -> bool:
        """Send a task whose message is ready; false if there is no room for it now.

        It is for the caller to have had the settings refreshed.
        """
        version = self.settings.version
        prefix = b""
        if version != self.told:
            prefix = self.settings.prefix
        if not self.channel.send(protocol.TASK, task.id, task.message, prefix):
            return False
        self.bytes_sent += task.message.size
        if prefix:
            self.news[task.id] = version
        else:
            self.told = version
        return True

    def answered(self, task_id: int) -> None:
        """The worker has read this task's message, and with it the news that it carried."""
        version = self.news.pop(task_id, -1)
        if version > self.told:
            self.told = version

    def is_up_to_date(self) -> bool:
        """Whether the worker knows all that it has to be told. For any thread: changes nothing."""
        return self.told == self.settings.version and not self.settings.has_news()

    def request_stacks(self) -> bool:
        """Ask the worker for the Python stacks of its threads, without waiting for them.

        A signal without a handler would end the worker: it may be at its very start, the user's
        code may have taken the handler away, or it may run another program by now.

        Returns
        -------
        bool
            Whether it has been asked. See `stacks` for the answer, which may not come: a stopped
            process does not answer until it goes on. It is not asked again before it has begun to.
        """
        process = self.process
        if process is None or self._fault_fd < 0 or not protocol.STACKS_SIGNAL:
            return False
        handles = process.handles(protocol.STACKS_SIGNAL)
        if not (self.worker.was_ready if handles is None else handles):
            return False
        size = os.fstat(self._fault_fd).st_size
        if size == self._asked_at:
            return True
        if size > _FAULT_LIMIT:
            os.ftruncate(self._fault_fd, 0)
            size = 0
        self._asked_at = size
        process.signal(protocol.STACKS_SIGNAL)
        return True

    def stacks(self) -> str:
        """What the worker has answered so far to the last `request_stacks`."""
        if self._asked_at < 0:
            return ""
        return self._faults(self._asked_at).partition(_CRASH)[0].decode("utf-8", "replace")

    def fault_text(self) -> str:
        """What the worker's faulthandler has written about a crash."""
        _, crash, rest = self._faults(0).partition(_CRASH)
        return (crash + rest).decode("utf-8", "replace")

    def _faults(self, start: int) -> bytes:
        if self._fault_fd < 0:
            return b""
        try:
            start = max(start, os.fstat(self._fault_fd).st_size - _FAULT_BYTES)
            return os.pread(self._fault_fd, _FAULT_BYTES, start)
        except OSError:
            return b""

    @property
    def closed(self) -> bool:
        """Whether everything was let go of."""
        return self._fault_fd < 0

    def last_words(self) -> str:
        """The last of what was written to the worker's `sys.stderr`, about 4 KiB at most.

        Whether it lives or how it ended does not matter; after `close` there is none. What
        compiled code or other programs wrote to descriptor 2 is in it only if that is relayed.
        """
        relayed = None if self.outputs is None else self.outputs.last_words()
        if relayed is not None:
            return bytes(relayed).decode("utf-8", "replace")
        if self._ring_fd < 0:
            return ""
        try:
            end = os.lseek(self._ring_fd, 0, os.SEEK_CUR)
            data = os.pread(self._ring_fd, protocol.RING + protocol.LAST_WORDS, 0)
        except OSError:
            return ""
        return protocol.last_words(data, end).decode("utf-8", "replace")

    def close(self) -> None:
        """Let go of everything. Harmless when repeated."""
        self.channel.close()
        if self.process is not None:
            self.process.close()
        for fd in (self._fault_fd, self._ring_fd):
            if fd >= 0:
                os.close(fd)
        self._fault_fd = self._ring_fd = -1
        if self.outputs is not None:
            self.outputs.close()
