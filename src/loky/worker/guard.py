"""Keeps a worker from outliving its parent, and makes its last words readable.

Guarantees, on Linux with /proc:

- when the parent dies, by whatever means, the kernel sends SIGKILL to this worker's whole process
  group, also while C code holds the GIL. Children that start sessions or groups of their own
  escape;
- what faulthandler writes while this process dies goes to a file that the parent reads, not to the
  user's terminal;
- the Python stacks of all threads go to that file whenever the parent asks for them by a signal
  (`protocol.STACKS_SIGNAL`), also while C code holds the GIL;
- the last of what was written to `sys.stderr` is in another such file, and still went where it was
  meant to go;
- when memory runs out, the kernel prefers this process to its parent.

Elsewhere the worker notices its parent's end when it next reads its channel.
"""

from __future__ import annotations

import os
import sys

from ..wire.protocol import LAST_WORDS, RING, STACKS_SIGNAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    import fcntl
    from select import POLLHUP, poll
except ImportError:  # Windows: a job object of the launcher's does this
    fcntl = None  # type: ignore[assignment]

# F_SETSIG and O_ASYNC on a pipe: fcntl(2) of Linux. The fcntl module has lacked F_SETSIG's name
# in some versions; the number is part of Linux's stable interface.
_F_SETSIG = 10
_SIGKILL = 9


def die_with_parent(life_fd: int) -> None:
    """Tie this process group's life to the parent's.

    Parameters
    ----------
    life_fd : int
        The read end of a pipe whose write end only the parent holds; -1 for none.
    """
    if life_fd < 0 or fcntl is None:
        return
    try:
        # Owner and signal belong to the open file description, which came here shared with the
        # other workers: this one needs its own.
        own = os.open(f"/proc/self/fd/{life_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return  # no /proc
    fcntl.fcntl(own, _F_SETSIG, _SIGKILL)
    fcntl.fcntl(own, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(own, fcntl.F_SETFL, fcntl.fcntl(own, fcntl.F_GETFL) | os.O_ASYNC)
    watch = poll()
    watch.register(own, 0)
    if any(event & POLLHUP for _, event in watch.poll(0)):  # it died before we were armed
        os.killpg(os.getpgrp(), _SIGKILL)


def report_faults(fault_fd: int) -> None:
    """Send faulthandler's reports to a descriptor: stacks, and crashes too.

    Reports of crashes go there unless the user wants them elsewhere.
    """
    if fault_fd < 0:
        return
    import faulthandler

    if fcntl is not None:
        # The parent may empty the file; what comes next has to begin at its start then.
        fcntl.fcntl(fault_fd, fcntl.F_SETFL, os.O_APPEND)
    if STACKS_SIGNAL and hasattr(faulthandler, "register"):
        faulthandler.register(STACKS_SIGNAL, fault_fd, all_threads=True, chain=False)
    # The variable, and -X faulthandler, say that the user wants them on standard error.
    if not (os.environ.get("PYTHONFAULTHANDLER") or faulthandler.is_enabled()):
        faulthandler.enable(fault_fd, all_threads=True)


def keep_last_words(ring_fd: int) -> None:
    """Copy what is written to `sys.stderr` into a file that the parent can read at any time.

    `sys.stderr` stays the very object that it was, in all its layers: only its lowest one, the
    raw file, gets a `write` of its own. So whatever is printed, logged or raised passes here,
    whoever holds a reference to which layer, and what is written straight to descriptor 2 (by
    compiled code, by other programs) does not.

    The file is a ring, see `protocol.last_words`.

    Parameters
    ----------
    ring_fd : int
        An empty file that no other process writes to; -1 for none.
    """
    buffer = getattr(sys.stderr, "buffer", None)  # None: this process has no standard error
    raw = getattr(buffer, "raw", buffer)  # the buffer itself where Python runs unbuffered
    if ring_fd < 0 or raw is None:
        return
    write = raw.write
    ours = os.fstat(ring_fd)

    def write_and_keep(data: Any) -> int | None:
        try:
            written: int | None = write(data)
        except BaseException:  # nobody can read it any more: a reason more to keep it
            keep(data, None)
            raise
        if written:
            keep(data, written)
        return written

    def keep(data: Any, size: int | None) -> None:
        try:
            # A task may have closed every descriptor, and the number may be its own file's now.
            if os.path.samestat(os.fstat(ring_fd), ours):
                os.write(ring_fd, memoryview(data).cast("B")[:size][-LAST_WORDS:])
                end = os.lseek(ring_fd, 0, os.SEEK_CUR)
                if end >= RING:
                    os.ftruncate(ring_fd, end)  # what a longer round has left behind
                    os.lseek(ring_fd, 0, os.SEEK_SET)
        except Exception:  # a courtesy; and when the interpreter ends, what it needs may be gone
            pass

    try:
        raw.write = write_and_keep
    except AttributeError:  # an interpreter whose files take no attributes
        pass


def be_the_first_to_go() -> None:
    """Ask the kernel, when memory runs out, to end this worker rather than the parent."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            mine = int(file.read())
            file.seek(0)
            file.write(str(min(1000, mine + 200)))
    except (OSError, ValueError):
        pass
