"""How much memory processes use, how much there is, and whether the kernel had to kill for it.

Guarantee: what cannot be known is None, never a guess and never an error: a process may end, and a
sandbox may hide /proc, at any time. `check_measurable` says beforehand, to those who depend on it.

On Linux nothing is needed; elsewhere psutil, if it is installed (``pip install loky[memory]``).

Used by both sides, the pool and the workers: nothing heavy is imported before it is needed.

Does not belong here: what follows from the figures (see `pool.limits` and `worker.leak`).
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def anonymous(pid: int) -> int | None:
    """Return how many bytes of memory a process has of its own, shared mappings left out."""
    return _platform().anonymous(pid)  # type: ignore[no-any-return]


def peak(pid: int) -> int | None:
    """Return the most bytes that a process, which still runs, has had in physical memory."""
    return _platform().peak(pid)  # type: ignore[no-any-return]


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU time that a process has used."""
    return _platform().cpu_seconds(pid)  # type: ignore[no-any-return]


def total_and_available() -> tuple[int, int] | None:
    """Return how many bytes the machine, or the control group, has, and how many are free."""
    return _platform().total_and_available()  # type: ignore[no-any-return]


def oom_kills() -> int | None:
    """Return how many processes the kernel has killed here for want of memory; see `OomCounter`."""
    return _platform().oom_kills()  # type: ignore[no-any-return]


def check_measurable(option: str) -> None:
    """Make sure that the memory of workers can be measured here.

    Raises
    ------
    ValueError
        It cannot; the message names the option that needs it, and the remedy.
    """
    if _platform() is _Unknown:
        raise ValueError(
            f"{option} needs to measure the memory of processes, which on this system takes "
            "psutil: pip install psutil"
        )


def readable(size: int) -> str:
    """A number of bytes for people: ``"1.5 GB"``."""
    amount = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"


class OomCounter:
    """Tells deaths that the kernel's out-of-memory killer has caused from others.

    The kernel counts its victims and does not name them. So each victim counted since the start
    explains one death by SIGKILL, the first that is asked about.
    """

    def __init__(self) -> None:
        self._explained: int | None = None
        self._begun = False

    def begin(self) -> None:
        """Count from now on, if not begun already."""
        if not self._begun:
            self._begun = True
            self._explained = oom_kills()

    def explains_a_death(self) -> bool | None:
        """Whether the kernel has killed somebody for whom nobody has asked; None: unknown."""
        if self._explained is None:
            return None
        now = oom_kills()
        if now is None:
            return None
        if now <= self._explained:
            return False
        self._explained += 1
        return True


# Systems -----------------------------------------------------------------------------------------


class _Unknown:
    """Where nothing can be measured."""

    @staticmethod
    def anonymous(pid: int) -> None:
        return None

    peak = cpu_seconds = anonymous

    @staticmethod
    def total_and_available() -> None:
        return None

    oom_kills = total_and_available


class _Psutil:
    """Where psutil can measure."""

    def __init__(self, psutil: Any) -> None:
        self._psutil = psutil
        self._problems = (psutil.Error, OSError, AttributeError)

    def anonymous(self, pid: int) -> int | None:
        try:
            process = self._psutil.Process(pid)
            try:
                return int(process.memory_full_info().uss)
            except self._problems:  # not allowed to look so closely, or not known here
                return int(process.memory_info().rss)
        except self._problems:
            return None

    def peak(self, pid: int) -> int | None:
        try:
            return int(self._psutil.Process(pid).memory_info().peak_wset)  # Windows knows it
        except self._problems:
            return None

    def cpu_seconds(self, pid: int) -> float | None:
        try:
            times = self._psutil.Process(pid).cpu_times()
        except self._problems:
            return None
        return float(times.user + times.system)

    def total_and_available(self) -> tuple[int, int]:
        memory = self._psutil.virtual_memory()
        return memory.total, memory.available

    oom_kills = staticmethod(_Unknown.oom_kills)


_chosen: Any = None


def _platform() -> Any:
    global _chosen
    if _chosen is None:
        _chosen = _choose()
    return _chosen


def _choose() -> Any:
    if sys.platform == "linux":
        from . import _memory_linux

        # A sandbox may hide it.
        if _memory_linux.anonymous(os.getpid()) is not None:
            return _memory_linux
    try:
        import psutil
    except ImportError:
        return _Unknown
    return _Psutil(psutil)
