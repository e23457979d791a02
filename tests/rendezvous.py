"""How tests and the tasks that they run wait for each other: by events, never by time.

- `Gate`: tasks report that they have come to it and wait until the test lets them through;
- `ended`, `all_ended`: wait for the end of processes without collecting them, which is the pool's
  business: a zombie has ended;
- `run_script`: a script in an interpreter of its own, with everything that it prints;
- `PATIENCE`: the bound of every wait, in seconds. What takes longer is not going to happen.

The tasks' half is in `pool_tasks`.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

PATIENCE = 40.0


class Gate:
    """A place where tasks wait: they call `pool_tasks.pass_through(gate.path)`."""

    def __init__(self, folder: Path, name: str = "gate") -> None:
        self.path = str(folder / name)
        os.mkfifo(self.path + ".in")
        os.mkfifo(self.path + ".out")
        # Open in both directions: opening never blocks, and what is written stays readable.
        self._in = os.open(self.path + ".in", os.O_RDWR)
        self._out = os.open(self.path + ".out", os.O_RDWR)
        self._seen = b""

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.write(self._out, b"." * 1000)  # whoever still waits: the test is over
        os.close(self._in)
        os.close(self._out)

    def arrivals(self, count: int = 1) -> list[int]:
        """Wait until so many more tasks have arrived; their process ids."""
        deadline = time.monotonic() + PATIENCE
        while self._seen.count(b"\n") < count:
            if not select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"{self._seen.count(10)} of {count} tasks arrived at the gate")
            self._seen += os.read(self._in, 4096)
        *pids, self._seen = self._seen.split(b"\n", count)
        return [int(pid) for pid in pids]

    def nobody_came(self) -> bool:
        """Whether no task has arrived that was not asked for yet."""
        return not self._seen and not select.select([self._in], [], [], 0)[0]

    def open(self, count: int = 1) -> None:
        """Let so many tasks through, now or when they come."""
        os.write(self._out, b"." * count)


def ended(pid: int, seconds: float = PATIENCE) -> bool:
    """Wait for a process's end, at most so many seconds; whether it has ended."""
    deadline = time.monotonic() + seconds
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except (AttributeError, OSError):  # no such call here: look again and again
        while not _is_gone(pid):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
    finally:
        os.close(pidfd)


def all_ended(pids: Iterable[int], seconds: float = PATIENCE) -> bool:
    """Wait for the end of all, at most so many seconds altogether; whether they have ended."""
    deadline = time.monotonic() + seconds
    return all([ended(pid, max(0.0, deadline - time.monotonic())) for pid in pids])


def _is_gone(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def kill(pid: int) -> None:
    """Kill a process and wait for its end."""
    os.kill(pid, signal.SIGKILL)
    assert ended(pid)


def run_script(
    folder: Path,
    code: str,
    *arguments: str,
    flags: Iterable[str] = (),
    env: dict[str, str] | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end; what it printed is in `stdout` and `stderr`."""
    return subprocess.run(
        command(folder, code, *arguments, flags=flags),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, **(env or {})},
        **options,
    )


def command(folder: Path, code: str, *arguments: str, flags: Iterable[str] = ()) -> list[str]:
    """Write a script; the command that runs it."""
    script = folder / "script.py"
    script.write_text(code)
    return [sys.executable, *flags, str(script), *arguments]
