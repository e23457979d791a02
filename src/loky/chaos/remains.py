"""What a run leaves behind: processes, threads, descriptors, names in /dev/shm.

Guarantee: every process that descends from this one is seen, also one whose parent is gone or that
made a session of its own: descendants inherit a token in their environment.

Linux only (/proc).
"""

from __future__ import annotations

import gc
import os
import secrets
import threading
import time
from pathlib import Path

from .strikes import parent_of

TOKEN = "LOKY_CHAOS_TOKEN"
# Threads and processes may need this long to leave, in seconds.
BOUND = 20.0


class Remains:
    """What is there now; `found` tells what has come since."""

    def __init__(self) -> None:
        if TOKEN not in os.environ:
            os.environ[TOKEN] = secrets.token_hex(8)
        self._threads = set(threading.enumerate())
        self._descriptors = _descriptors()
        self._names = _shared_memory()

    def found(self, bound: float = BOUND) -> list[str]:
        """Wait until what came since is gone, at most that long; a line for each that is not."""
        deadline = time.monotonic() + bound
        while True:
            gc.collect()
            left = self._left()
            if not left or time.monotonic() > deadline:
                return left
            # Whose end this waits for may be anybody's: there is nothing to be woken by.
            time.sleep(0.02)

    def _left(self) -> list[str]:
        left = [f"process {pid} ({_command(pid)})" for pid in descendants()]
        left += [f"thread {t!r}" for t in threading.enumerate() if t not in self._threads]
        now = _descriptors()
        if len(now) > len(self._descriptors):
            left += [
                f"descriptor {number} -> {target}"
                for number, target in sorted(now.items())
                if self._descriptors.get(number) != target
            ]
        return left + [f"shared memory {name}" for name in _shared_memory() - self._names]


def descendants() -> list[int]:
    """Processes that this one has started, directly or not; zombies are children only.

    Helpers of the standard library that live as long as this process do not count.
    """
    token = os.environ.get(TOKEN)
    mark = f"{TOKEN}={token}".encode() if token else None
    me = os.getpid()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == me:
            continue
        pid = int(entry)
        if parent_of(pid) != me and not (mark and mark in _environment(pid)):
            continue
        if "resource_tracker" not in _command(pid):
            found.append(pid)
    return found


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _command(pid: int) -> str:
    try:
        data = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "gone"
    return data.replace(b"\0", b" ").decode("utf-8", "replace").strip()[:200] or "zombie"


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the one that listed the directory
            pass
    return found


def _shared_memory() -> set[str]:
    """Names of this library's in /dev/shm. Those of other programs come and go."""
    try:
        return {name for name in os.listdir("/dev/shm") if name.startswith("loky")}
    except OSError:
        return set()
