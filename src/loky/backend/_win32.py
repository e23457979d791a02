"""What `loky.backend` needs from Windows.

`_posix` has the same names with the same meaning, and explains them; `_platform` chooses.
"""

from __future__ import annotations

import _winapi
import msvcrt
import os
import subprocess
import sys
import time

assert sys.platform == "win32"  # tells type checkers, too

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, BinaryIO

    from .popen_loky_win32 import Popen
    from .process import LokyProcess

# Semaphores are handles here: the system removes one with its last user.
SEMAPHORES_HAVE_NAMES = False

# A file that a virus scanner, an indexer or a mapping still holds cannot be removed just now.
_ATTEMPTS = 10
_PAUSE = 0.2


def remove_file(path: str) -> None:
    """Remove a file, patiently."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return os.unlink(path)
        except PermissionError:
            if attempt == _ATTEMPTS:
                raise
            time.sleep(_PAUSE)


def start_process(process: LokyProcess) -> Popen:
    """Start the process of a process object."""
    from .popen_loky_win32 import Popen

    return Popen(process)


# Descriptors that go to a child ------------------------------------------------------------------


def give(fd: int, popen: Any) -> int:
    """Copy the handle under `fd` into the child that `popen` has started."""
    handle: int = popen.duplicate_for_child(msvcrt.get_osfhandle(fd))
    return handle


def take(given: int) -> int:
    """The descriptor that the parent gave to this process."""
    return msvcrt.open_osfhandle(given, 0)


def multiprocessing_tracker() -> int | None:
    """Multiprocessing has no resource tracker here: nothing of it outlives its users."""
    return None


def after_fork_in_child(obj: object, method: str) -> None:
    """Nothing is ever forked here."""


# The resource tracker ----------------------------------------------------------------------------


def start_tracker(command: Callable[[int], list[str]], read_end: int) -> tuple[int, int]:
    """Start the tracker process on its pipe; its process id and its handle."""
    from multiprocessing.reduction import duplicate

    handle = duplicate(msvcrt.get_osfhandle(read_end), inheritable=True)
    try:
        child = subprocess.Popen(
            command(handle),
            close_fds=True,
            startupinfo=subprocess.STARTUPINFO(lpAttributeList={"handle_list": [handle]}),
        )
    finally:
        _winapi.CloseHandle(handle)
    child.returncode = 0  # nobody else is to wait for it, or to complain that nobody does
    # The object closes the handle that it has when it goes.
    return child.pid, duplicate(int(child._handle))  # type: ignore[attr-defined]


def open_inherited(given: int) -> BinaryIO:
    """The read end of its pipe, in the tracker process."""
    return open(msvcrt.open_osfhandle(given, os.O_RDONLY), "rb")


def ignore_signals() -> None:
    """Make the tracker process deaf to Ctrl-C."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def wait_for_tracker(
    pid: int,
    handle: int | None,
    timeout: float | None,
    *,
    wait: Callable[[int, int], int] = _winapi.WaitForSingleObject,
    get_exitcode: Callable[[int], int] = _winapi.GetExitCodeProcess,
    close: Callable[[int], None] = _winapi.CloseHandle,
    infinite: int = _winapi.INFINITE,
    signalled: int = _winapi.WAIT_OBJECT_0,
) -> int | None:
    """Wait for the tracker to end; its exit code, ``None`` if it is not known or not yet."""
    if handle is None:
        return None
    try:
        done = wait(handle, infinite if timeout is None else round(timeout * 1000)) == signalled
        return get_exitcode(handle) if done else None
    finally:
        close(handle)


# Process trees -----------------------------------------------------------------------------------


def kill_tree(pid: int) -> None:
    """Kill a process and all its descendants."""
    done = subprocess.run(
        ["taskkill", "/F", "/T", "/PID", str(pid)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        creationflags=subprocess.CREATE_NO_WINDOW,
    )
    if done.returncode not in (0, 128, 255):  # the last two: no such process
        raise OSError(f"taskkill: {done.stderr.decode(errors='replace').strip()}")


def name_exitcode(exitcode: int) -> str:
    """What an exit code means: nothing reliable, on Windows."""
    return "UNKNOWN"
