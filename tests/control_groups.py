"""Memory control groups of the tests' own, to run something short of memory without hurting others.

`MemoryGroup(limit)` makes a group and takes it away again; `group.enter` is a line of Python that
a script runs first to move itself, and with it all that it will start, into the group.

Guarantee: where no group can be made (no Linux, not allowed to, nothing mounted), the test is
skipped with the reason; at the end nothing of the group is left, neither processes nor folder.

Does not belong here: what happens inside.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import TracebackType

import pytest

PATIENCE = 10.0  # seconds for killed processes to be gone from the group


class MemoryGroup:
    """A control group whose processes can use so many bytes of memory together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.version = ""
        self.path = Path()

    def __enter__(self) -> MemoryGroup:
        problems = []
        for version, parent in _places():
            path = parent / f"loky-test-{os.getpid()}"
            try:
                path.mkdir()
            except OSError as error:
                problems.append(str(error))
                continue
            try:
                self._set_limit(version, path)
            except OSError as error:
                problems.append(str(error))
                path.rmdir()
                continue
            self.version, self.path = version, path
            return self
        pytest.skip(f"no memory control group can be made: {'; '.join(problems) or 'none mounted'}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        deadline = time.monotonic() + PATIENCE
        while pids := self._pids():
            assert time.monotonic() < deadline, f"still in the control group: {pids}"
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.01)  # nothing reports that a group has become empty, in version 1
        while True:
            try:
                return self.path.rmdir()
            except OSError:  # a process that has just ended still holds it
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @property
    def enter(self) -> str:
        """A line of Python by which a process moves into the group."""
        return (
            f"open({str(self.path / 'cgroup.procs')!r}, 'w').write(str(__import__('os').getpid()))"
        )

    def _set_limit(self, version: str, path: Path) -> None:
        if version == "v2":
            (path / "memory.max").write_text(str(self.limit))
            swap = path / "memory.swap.max"
            swap_limit = 0
        else:
            (path / "memory.limit_in_bytes").write_text(str(self.limit))
            swap = path / "memory.memsw.limit_in_bytes"  # of memory and swap together
            swap_limit = self.limit
        if swap.exists():  # not where the kernel does without swap
            swap.write_text(str(swap_limit))

    def _pids(self) -> list[int]:
        return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]


def _places() -> list[tuple[str, Path]]:
    """Where a group can perhaps be made: version and folder."""
    found = []
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return []
    for line in mounts:
        left, _, right = line.partition(" - ")
        point = Path(left.split()[4])
        kind, _, options = right.split(maxsplit=2)
        if kind == "cgroup2":
            found.append(("v2", point))
        elif kind == "cgroup" and "memory" in options.split(","):
            found.append(("v1", point))
    return found
