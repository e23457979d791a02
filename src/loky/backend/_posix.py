"""What `loky.backend` needs from Linux, macOS and the other POSIX systems.

`_win32` has the same names with the same meaning; `_platform` chooses. Functions that run while
the interpreter shuts down take what they use as default arguments: by then the globals of this
module may be gone.

Does not belong here: decisions. These functions do one thing each and know no loky object.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import weakref

assert sys.platform != "win32"  # tells type checkers, too

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, BinaryIO

    from .popen_loky_posix import Popen
    from .process import LokyProcess

# A semaphore has a name in the file system for as long as a process may still want to open it.
SEMAPHORES_HAVE_NAMES = True

remove_file = os.unlink


def start_process(process: LokyProcess) -> Popen:
    """Start the process of a process object."""
    from .popen_loky_posix import Popen

    return Popen(process)


# Descriptors that go to a child ------------------------------------------------------------------


def give(fd: int, popen: Any) -> int:
    """Arrange for the child that `popen` is about to start to get `fd`; what to tell the child."""
    given: int = popen.duplicate_for_child(fd)
    return given


def take(given: int) -> int:
    """The descriptor that the parent gave to this process."""
    os.set_inheritable(given, False)  # programs that this process runs are not to keep it open
    return given


def multiprocessing_tracker() -> int | None:
    """The descriptor of multiprocessing's own resource tracker, which is started if need be.

    A process that does not have its parent's starts one of its own, and that one unlinks shared
    memory that the parent still uses.
    """
    from multiprocessing import resource_tracker

    return resource_tracker.getfd()


def after_fork_in_child(obj: object, method: str) -> None:
    """Call a method in every forked child, for as long as the object lives.

    What the system is to call stays alive with all its module to the very end, so it is a function
    of this module and not the method.
    """
    reference = weakref.ref(obj)

    def call() -> None:
        alive = reference()
        if alive is not None:
            getattr(alive, method)()

    os.register_at_fork(after_in_child=call)


# The resource tracker ----------------------------------------------------------------------------


def start_tracker(command: Callable[[int], list[str]], read_end: int) -> tuple[int, None]:
    """Start the tracker process on its pipe; its process id, and (on Windows) its handle."""
    from .fork_exec import _start

    # Blocked before it starts, so that neither signal can end it before it says that it ignores
    # them; the tracker unblocks them then.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        # A session of its own: what kills the user's terminal or process group must not kill the
        # one process that cleans up afterwards.
        pid = _start(command(read_end), [read_end], None, new_session=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid, None


def open_inherited(given: int) -> BinaryIO:
    """The read end of its pipe, in the tracker process."""
    return open(given, "rb")


def ignore_signals() -> None:
    """Make the tracker process deaf to what ends everybody else, see `start_tracker`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))


def wait_for_tracker(
    pid: int,
    handle: None,
    timeout: float | None,
    *,
    waitpid: Callable[[int, int], tuple[int, int]] = os.waitpid,
    no_hang: int = os.WNOHANG,
    to_exitcode: Callable[[int], int] = os.waitstatus_to_exitcode,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int | None:
    """Wait for the tracker to end; its exit code, ``None`` if it is not known or not yet."""
    try:
        if timeout is None:
            return to_exitcode(waitpid(pid, 0)[1])
        deadline, pause = now() + timeout, 0.001
        while True:
            ended, status = waitpid(pid, no_hang)
            if ended:
                return to_exitcode(status)
            left = deadline - now()
            if left <= 0:
                return None
            sleep(min(pause, left))
            pause = min(2 * pause, 0.05)
    except ChildProcessError:  # somebody else has taken the status
        return None


# Process trees -----------------------------------------------------------------------------------


def kill_tree(pid: int) -> None:
    """Kill a process and all its descendants.

    Each process is stopped before its children are looked up: a stopped process starts no more of
    them, and the dead ones among them keep their process ids until it goes on.
    """
    doomed = [pid]
    failures: list[OSError] = []
    try:
        for parent in doomed:  # grows while we go
            try:
                _signal(parent, signal.SIGSTOP)
            except OSError as error:  # not ours to stop, but its children may be
                failures.append(error)
            doomed += _children(parent)
    finally:
        # Also when interrupted: nothing may stay stopped.
        for descendant in reversed(doomed):
            try:
                _signal(descendant, signal.SIGKILL)
            except OSError as error:
                failures.append(error)
    if failures:
        raise failures[-1]


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:  # it has ended by itself
        pass


def _children(pid: int) -> list[int]:
    if os.path.exists("/proc/self/stat"):
        pairs: Iterable[tuple[int, int]] = _processes_from_proc()
    else:
        pairs = _processes_from_ps()
    return [child for child, parent in pairs if parent == pid]


def _processes_from_proc() -> Iterable[tuple[int, int]]:
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                stat = file.read()
        except OSError:  # it ended while we were looking
            continue
        # The second field is the command's name in parentheses, which may hold anything.
        yield int(name), int(stat.rpartition(b")")[2].split()[1])


def _processes_from_ps() -> Iterable[tuple[int, int]]:
    import subprocess

    table = subprocess.run(
        ["ps", "-A", "-o", "pid=", "-o", "ppid="], stdout=subprocess.PIPE, check=True
    )
    for line in table.stdout.splitlines():
        child, parent = line.split()
        yield int(child), int(parent)


def name_exitcode(exitcode: int) -> str:
    """What an exit code means, in a word."""
    if exitcode < 0:
        try:
            return signal.Signals(-exitcode).name
        except ValueError:
            return "UNKNOWN"
    # The fork server reports 255 for a status that it does not know.
    return "UNKNOWN" if exitcode == 255 else "EXIT"
