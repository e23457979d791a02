"""A process that removes files, folders and semaphores that nobody uses any more.

Guarantees:

- references are counted over all processes: `register` adds one, `maybe_unlink` takes one away and
  removes the resource with the last; `unregister` forgets the resource and leaves it alone;
- what is still registered when all processes that share the tracker have ended, however they ended,
  is removed then, with a warning; folders last;
- importing this module starts nothing: the tracker is started when it is first needed. If it has
  died, it is started again, with a warning;
- a call may come at any point of another one, as those from finalizers and signal handlers do.

Assumptions: a process and its workers share one tracker, which the worker is told about with
`ResourceTracker.adopt`, or finds with `ResourceTracker.locate`. Writes to a pipe of up to PIPE_BUF
bytes are atomic, so processes need no lock among them.

Does not belong here: the tracker's own side, see `_resource_tracker_process`; its names are only
passed on.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import warnings
from collections import deque

from ._platform import platform
from ._resource_tracker_process import _CLEANUP_FUNCS as _CLEANUP_FUNCS
from ._resource_tracker_process import PROBE, encode_message
from ._resource_tracker_process import cleanup_noop as cleanup_noop
from ._resource_tracker_process import decode_message as _decode_message  # noqa: F401
from ._resource_tracker_process import main as main

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Name = str | bytes | os.PathLike[str]

__all__ = ["ensure_running", "getfd", "maybe_unlink", "register", "unregister"]

# Whether a tracker started from here writes what it does to standard error.
VERBOSE = False

# Longer lines could be mixed up with those of other processes.
_LONGEST = getattr(select, "PIPE_BUF", 4096)


class ResourceTracker:
    """A client of the tracker; there is one for each process, see `_resource_tracker`.

    Attributes
    ----------
    locate : callable or None
        Called without arguments before a tracker is started. Returns the descriptor of one that is
        running already, or ``None``.
    """

    def __init__(self) -> None:
        self.locate: Callable[[], int | None] | None = None
        self._fd: int | None = None  # to write to
        self._pid: int | None = None  # only where we have started it
        self._proc_handle: int | None = None  # what Windows waits for in place of the pid
        self._exitcode: int | None = None
        self._outbox: deque[bytes] = deque()
        self._forget_locks()

    def _forget_locks(self) -> None:
        # Reentrant, so that a finalizer that strikes in the middle of `_deliver` gets in and sees
        # that we are busy.
        self._lock = threading.RLock()
        self._busy = False

    def ensure_running(self) -> None:
        """Start the tracker if it is not running."""
        self._outbox.append(PROBE)
        self._deliver()

    def getfd(self) -> int:
        """The descriptor to write to, of a tracker that is running."""
        self.ensure_running()
        assert self._fd is not None
        return self._fd

    def adopt(self, fd: int) -> None:
        """Use the tracker behind this descriptor, which another process has started.

        Parameters
        ----------
        fd : int
            Write end of its pipe. Belongs to this object from now on.
        """
        with self._lock:
            self._fd = fd
            self._pid = self._proc_handle = None

    def register(self, name: Name, rtype: str) -> None:
        """Count one more reference to a resource.

        Parameters
        ----------
        name : str
            Name of the resource; for files and folders an absolute path.
        rtype : str
            What it is: "file", "folder" or "semlock".
        """
        self._send("REGISTER", name, rtype)

    def unregister(self, name: Name, rtype: str) -> None:
        """Forget a resource, however many references there are.

        Parameters
        ----------
        name, rtype : str
            As for `register`.
        """
        self._send("UNREGISTER", name, rtype)

    def maybe_unlink(self, name: Name, rtype: str) -> None:
        """Count one reference less, and remove the resource if it was the last.

        Parameters
        ----------
        name, rtype : str
            As for `register`.
        """
        self._send("MAYBE_UNLINK", name, rtype)

    def _send(self, command: str, name: Name, rtype: str) -> None:
        message = encode_message(command, os.fsdecode(name), rtype)
        if len(message) > _LONGEST:
            raise ValueError(f"msg too long: {len(message)} bytes, at most {_LONGEST} are possible")
        self._outbox.append(message)
        self._deliver()

    def _deliver(self) -> None:
        died = False
        with self._lock:
            # A call that finds us busy is from a finalizer or a signal handler in this very thread,
            # somewhere in this loop. What it has left in the outbox is seen when the loop comes
            # round, because that is after `_busy` is taken back.
            while self._outbox and not self._busy:
                self._busy = True
                try:
                    died |= self._write(self._outbox.popleft())
                finally:
                    self._busy = False
        if died:
            warnings.warn(
                "resource_tracker: process died unexpectedly, relaunching.  "
                "Some resources might leak.",
                stacklevel=4,
            )

    def _write(self, message: bytes) -> bool:
        """Write a message, to a new tracker if there is none; whether the old one had died."""
        died = False
        if self._fd is not None:
            if self._write_to(self._fd, message):
                return died
            self._forget_dead()
            died = True
        if self.locate is not None:
            self._fd = self.locate()
        if self._fd is None:
            self._launch()
        assert self._fd is not None
        os.write(self._fd, message)
        return died

    def _write_to(self, fd: int, message: bytes) -> bool:
        try:
            os.write(fd, message)
        except OSError:
            return False
        return True

    def _check_alive(self) -> bool:
        """Whether a tracker is there that reads what we write."""
        return self._fd is not None and self._write_to(self._fd, PROBE)

    def _forget_dead(self) -> None:
        assert self._fd is not None
        try:
            os.close(self._fd)
        except OSError:  # somebody has closed it for us, that is why we thought the tracker dead
            pass
        self._fd = None
        self._wait(1.0)

    def _launch(self) -> None:
        read_end, write_end = os.pipe()
        try:
            self._pid, self._proc_handle = platform.start_tracker(_command, read_end)
        except BaseException:
            os.close(write_end)
            raise
        finally:
            os.close(read_end)
        self._fd = write_end

    def _stop(self) -> None:
        """End the tracker that this process has started, and wait for it.

        It goes on for as long as another process holds its pipe, so the wait may be long.
        """
        with self._lock:
            self._end(None)

    def __del__(self) -> None:
        # The interpreter is about to end, after all exit handlers. If this is the first process of
        # a container, what the tracker has not removed by then stays: it is killed with us. No more
        # than a second, though: forked children may hold the pipe, and a daemon thread the lock.
        if self._lock.acquire(blocking=False):
            try:
                self._end(1.0)
            finally:
                self._lock.release()

    def _end(self, timeout: float | None, *, close: Callable[[int], None] = os.close) -> None:
        if self._fd is not None and self._pid is not None:
            close(self._fd)
            self._fd = None
            self._wait(timeout)

    # Functions are default arguments where `__del__` may need them after our globals are gone.
    def _wait(
        self,
        timeout: float | None,
        *,
        wait: Callable[..., int | None] = platform.wait_for_tracker,
    ) -> None:
        if self._pid is not None:
            self._exitcode = wait(self._pid, self._proc_handle, timeout)
        self._pid = self._proc_handle = None

    def _after_fork_in_child(self) -> None:
        """Go on in a forked child: with the same tracker, which is not the child's to wait for."""
        self._forget_locks()
        self._outbox.clear()
        self._pid = self._proc_handle = None


def _command(given: int) -> list[str]:
    import subprocess

    # Only if it is there can somebody have changed the executable.
    spawn = sys.modules.get("multiprocessing.spawn")
    executable = os.fsdecode((spawn and spawn.get_executable()) or sys.executable)
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    program = f"from {main.__module__} import main; main({given}, {VERBOSE})"
    return [executable, *flags, "-c", program]


_resource_tracker = ResourceTracker()
ensure_running = _resource_tracker.ensure_running
getfd = _resource_tracker.getfd
maybe_unlink = _resource_tracker.maybe_unlink
register = _resource_tracker.register
unregister = _resource_tracker.unregister

platform.after_fork_in_child(_resource_tracker, "_after_fork_in_child")
