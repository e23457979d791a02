"""Worker processes on POSIX systems, by posix_spawn.

- A new *session*, not just a group: a background group that touches the terminal is stopped and
  hangs, a new session gets an error instead; and the terminal's Ctrl-C reaches the parent only.
- No preexec hook, so the parent's threads do not matter; an empty signal mask, so a parent that
  starts a pool with signals blocked has workers that can be ended.
- All of Python's descriptors are close-on-exec. The inherited ones are duplicated by the spawn
  itself, to the lowest numbers that are no source's, so nothing leaks into processes that other
  threads start meanwhile, no duplicate overwrites a source, and none has to go above the limit.
  What others made inheritable (compiled code, or whoever started this process) is closed: a worker
  that held the end of a pipe would keep its reader waiting. The spawn refuses to name one above the
  limit (it was opened before that was lowered): the worker closes such a one itself, first of all.
- Descriptor 0 is /dev/null, as multiprocessing has it; 1 and 2 are what the caller says, or the
  parent's, or /dev/null if it has none: otherwise the worker's next file would take their numbers,
  and prints would go there.

The exit status is read without reaping first (WNOWAIT): while the zombie keeps the process id, the
group can be ended without any danger of meeting another process of that number.
"""

from __future__ import annotations

import os
import signal
from errno import EBADF, EMFILE
from itertools import count
from typing import Any

from . import launcher
from .launcher import ExitInfo, Process

_KILL = signal.SIGKILL


class PosixProcess:
    """See `launcher.Process`."""

    __slots__ = ("_pidfd", "exit", "pid")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exit: ExitInfo | None = None
        self._pidfd = _pidfd_open(pid)

    def fileno(self) -> int:
        return self._pidfd

    def poll(self) -> ExitInfo | None:
        if self.exit is None:
            self.exit = self._wait()
        return self.exit

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(_KILL)

    def _signal(self, number: int) -> None:
        if self.exit is not None:
            return
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            # Not yet the leader of its group (setsid comes after the fork), or gone.
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass

    def handles(self, signum: int) -> bool | None:
        try:
            with open(f"/proc/{self.pid}/status", "rb", buffering=0) as file:
                _, there, rest = file.read(65536).partition(b"\nSigCgt:")
        except OSError:  # no /proc, or not for us; or it was reaped
            return None
        return bool(int(rest[: rest.index(b"\n")], 16) >> (signum - 1) & 1) if there else None

    def signal(self, signum: int) -> None:
        if self.exit is not None:
            return
        try:
            if self._pidfd >= 0:  # the number may be another's: others can reap the process
                signal.pidfd_send_signal(self._pidfd, signum)
            else:
                os.kill(self.pid, signum)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _wait(self) -> ExitInfo | None:
        try:
            state: Any = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:  # reaped by somebody else, or SIGCHLD is ignored
            return ExitInfo(self.pid, None)
        if state is None:
            return None
        code = state.si_status if state.si_code == os.CLD_EXITED else -state.si_status
        if code:  # after a regular exit, what the user left running is meant to run
            try:
                os.killpg(self.pid, _KILL)
            except (ProcessLookupError, PermissionError):
                pass
        try:
            usage = os.wait4(self.pid, 0)[2]
        except ChildProcessError:
            usage = None
        return ExitInfo(self.pid, code, usage)


def _pidfd_open(pid: int) -> int:
    opener = getattr(os, "pidfd_open", None)
    if opener is None:
        return -1
    try:
        fd: int = opener(pid)
    except OSError:  # an old kernel, a sandbox, or reaped by somebody else already
        return -1
    return fd


def launch(
    env: dict[str, str] | None, fds: list[int], stdout: int = -1, stderr: int = -1
) -> Process:
    """See `launcher.launch`."""
    limit = os.sysconf("SC_OPEN_MAX")  # the soft one, as it is now
    actions: list[tuple[Any, ...]] = []
    beyond = []
    for fd in _left_inheritable():
        if fd < limit or limit < 0:
            # First of all: later, their numbers may be those of duplicates.
            actions.append((os.POSIX_SPAWN_CLOSE, fd))
        else:
            beyond.append(fd)
    free = (number for number in count(3) if number not in (*fds, stdout, stderr))
    numbers = []
    for fd in fds:
        if fd < 0:
            numbers.append(-1)
        else:
            numbers.append(next(free))
            actions.append((os.POSIX_SPAWN_DUP2, fd, numbers[-1]))
    actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
    for fd, ours in ((1, stdout), (2, stderr)):
        if ours >= 0:
            actions.append((os.POSIX_SPAWN_DUP2, ours, fd))
        elif not _inherited(fd):
            actions.append((os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0))
    argv = launcher.command(numbers, beyond)
    try:
        pid = os.posix_spawn(
            argv[0],
            argv,
            os.environ if env is None else env,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGCHLD),
        )
    except OSError as error:
        if error.errno == EBADF and 0 <= limit <= max(numbers):  # what the kernel says of these
            raise OSError(EMFILE, os.strerror(EMFILE)) from error
        raise
    return PosixProcess(pid)


def _left_inheritable() -> list[int]:
    """Descriptors above 2 that a new process would inherit; none without /proc.

    Closing one that another thread closes meanwhile is no error for the spawn (glibc and musl).
    """
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return []
    return [fd for fd in map(int, names) if fd > 2 and _inherited(fd)]


def _inherited(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


_lifeline: tuple[int, int] | None = None  # read end, write end


def lifeline() -> int:
    """See `launcher.lifeline`. One pipe serves all workers of this process."""
    global _lifeline
    if _lifeline is None:
        from ..wire.channel import above_std

        read, write = os.pipe()
        _lifeline = above_std(read), above_std(write)
    return _lifeline[0]


def _cut_lifeline() -> None:
    """In the child of a fork: the workers live as long as the parent, not as long as this."""
    global _lifeline
    if _lifeline is not None:
        for fd in _lifeline:
            os.close(fd)
        _lifeline = None


os.register_at_fork(after_in_child=_cut_lifeline)
