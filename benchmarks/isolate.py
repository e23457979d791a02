"""Runs one command in a process of its own, bounded in time, and leaves nothing of it behind.

Guarantees: returns within the limit and a few seconds, whatever the command does; afterwards no
process remains that it started, directly or not, also not one that left its process group or
whose parent is gone. They are known by a token in their environment, which descendants inherit;
only such processes are ever signalled. The scratch directory, also its TMPDIR, is gone as well.
Assumes Linux's /proc for the token; elsewhere only the process group is ended.
Does not belong here: what the command is or prints.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

TOKEN = "LOKY_BENCHMARK_TOKEN"
# How long processes that are on their way out, and trackers that clean up, may take.
GRACE = 2.0


class Ended(NamedTuple):
    """How a command ended. `left` counts the processes that outlived it and the grace."""

    stdout: str
    stderr: str
    code: int | None
    """None: it was killed at the time limit."""
    left: int


def run(
    command: Callable[[str], list[str]], limit: float, environment: dict[str, str] | None = None
) -> Ended:
    """Run `command(scratch directory)` for at most `limit` seconds."""
    token = secrets.token_hex(8)
    scratch = tempfile.mkdtemp(prefix="loky-bench-")
    process = None
    code = None
    left = 0
    # Files and not pipes: a worker left behind would keep a pipe open for ever.
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        try:
            process = subprocess.Popen(
                command(scratch),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, **(environment or {}), TOKEN: token, "TMPDIR": scratch},
                # Ctrl-C is for the run, which then ends this command in its own way.
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                pass
        finally:
            if process is not None:
                left = _end(process, token)
            shutil.rmtree(scratch, ignore_errors=True)
        stdout.seek(0)
        stderr.seek(0)
        return Ended(stdout.read(), stderr.read(), code, left)


def _end(process: subprocess.Popen[bytes], token: str) -> int:
    if process.poll() is None:
        process.kill()
        process.wait()
    _wait_until_gone(token)
    left = holders(token)
    # Trackers last: they remove named semaphores and shared memory once all others are gone.
    trackers = [pid for pid in left if _is_tracker(pid)]
    _kill(pid for pid in left if pid not in trackers)
    if trackers:
        _wait_until_gone(token)
        _kill(holders(token))
    if not left and sys.platform != "linux":
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
    return len(left)


def _wait_until_gone(token: str) -> None:
    """Give the processes that are about to exit by themselves the time to do so."""
    deadline = time.monotonic() + GRACE
    while holders(token) and time.monotonic() < deadline:
        # Strangers' processes cannot be waited for, only looked at.
        time.sleep(0.01)


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def holders(token: str) -> list[int]:
    """The living processes with this token in their environment."""
    mark = f"{TOKEN}={token}".encode()
    pids = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in entry.read_bytes():
                pids.append(int(entry.parent.name))
        except OSError:
            continue  # gone, or somebody else's
    return pids


def _is_tracker(pid: int) -> bool:
    try:
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
