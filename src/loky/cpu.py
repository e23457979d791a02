"""How many CPUs this process may use, and why that many.

Guarantee: no input makes these functions fail. Whatever a kernel, container or user has written
where we look is either understood or left out, and the result is at least 1. (With warnings turned
into errors, the two warnings below are raised: that is what was asked for.)

Guarantee: everything that may change while a process lives (affinity, quotas, the environment) is
read at every call. Only the number of physical cores is remembered, per set of usable CPUs.

Guarantee: importing this module imports `os` and `sys` and nothing else; what only one operating
system needs is imported when the first count is asked for.

Assumption: none about the operating system. The differences live in `_cpu_linux`, `_cpu_windows`
and `_cpu_posix`, which have one interface (`_Platform`), chosen in `_platform()` and nowhere else.

Does not belong here: file formats and system calls of one operating system (see those files), and
anything about what the pool does with the number.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # `typing` itself would be an import
if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from typing import Protocol

    class _Platform(Protocol):
        """What a file named for an operating system provides."""

        def affinity(self) -> set[int] | None:
            """The CPUs this process is bound to; None when not bound or not known."""

        def cgroup_quota(self, root: str = "") -> tuple[int, str] | None:
            """The CPU quota in whole CPUs, rounded up, and the file it was found in."""

        def physical_cores(self, cpus: AbstractSet[int] | None, root: str = "") -> int:
            """The physical cores under `cpus` (None: of the machine); raises when not known."""


# The wait call of Windows takes 63 handles, of which multiprocessing needs two for itself; callers
# of `cpu_count` hand the number to `multiprocessing` and `concurrent.futures` as well as to us.
_MAX_WINDOWS_WORKERS = 61

_ENVIRONMENT_VARIABLE = "LOKY_MAX_CPU_COUNT"

# Physical cores by the set of CPUs that was asked about (None: the whole machine).
physical_cores_cache: dict[frozenset[int] | None, int | str] = {}

# What was complained about already, so that each complaint is made once.
_warned: set[str] = set()


class CpuLimit:
    """One thing that limits, or could have limited, the number of CPUs.

    Attributes
    ----------
    name : str
        What limits: "machine", "affinity", "cgroup quota", "LOKY_MAX_CPU_COUNT" or
        "physical cores".
    value : int or None
        Number of CPUs that this limit allows, at least 1; None where there is no such limit.
    reason : str
        Where the value comes from, or why there is none; one line.
    """

    __slots__ = ("name", "reason", "value")

    def __init__(self, name: str, value: int | None, reason: str) -> None:
        self.name = name
        self.value = value
        self.reason = reason

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.value!r}, {self.reason!r})"


class CpuCount:
    """A number of CPUs together with everything that was considered.

    Attributes
    ----------
    count : int
        The smallest of the limits, what `cpu_count` returns.
    limits : tuple of CpuLimit
        Every limit that was looked at, in the order it was looked at.
    """

    __slots__ = ("count", "limits")

    def __init__(self, limits: tuple[CpuLimit, ...]) -> None:
        self.limits = limits
        self.count = min(limit.value for limit in limits if limit.value is not None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(count={self.count}, limits={self.limits!r})"

    @property
    def decisive(self) -> tuple[CpuLimit, ...]:
        """The limits that no other limit is smaller than."""
        return tuple(limit for limit in self.limits if limit.value == self.count)


def cpu_count(only_physical_cores: bool = False) -> int:
    """Return the number of CPUs that this process can use.

    That is the smallest of: the CPUs of the machine (at most 61 on Windows), the CPUs that the
    process is bound to, the CPU quota of its control group and of all groups above it (Linux,
    version 1 and 2; a fraction counts as a whole CPU), and the environment variable
    ``LOKY_MAX_CPU_COUNT``.

    Parameters
    ----------
    only_physical_cores : bool, default False
        Count no more CPUs than there are physical cores, so that the hardware threads of a core
        count once. On Linux only the cores that the process is bound to are counted; elsewhere
        all cores of the machine are.

    Returns
    -------
    int
        Number of CPUs, at least 1.

    Warns
    -----
    UserWarning
        Once for each value of ``LOKY_MAX_CPU_COUNT`` that is not a whole number; it is then
        ignored. Once when the physical cores cannot be found, unless ``LOKY_MAX_CPU_COUNT`` is
        set; logical CPUs are counted in their place. Once where the affinity cannot be inspected.

    See Also
    --------
    explain_cpu_count : the same number with the reason for it.
    """
    return _count(only_physical_cores).count


def explain_cpu_count(only_physical_cores: bool = False) -> CpuCount:
    """Return what `cpu_count` returns, together with every limit that was considered.

    Parameters
    ----------
    only_physical_cores : bool, default False
        As for `cpu_count`.

    Returns
    -------
    CpuCount
        The count, the limits and which of them were decisive.

    Warns
    -----
    UserWarning
        As `cpu_count` does.
    """
    return _count(only_physical_cores)


def _count(only_physical_cores: bool) -> CpuCount:
    machine = _machine_limit()
    assert machine.value is not None
    environment = _environment_limit()
    cpus = _cpu_count_affinity_set()
    limits = [machine, _affinity_limit(cpus), _cgroup_limit(), environment]
    if only_physical_cores:
        limits.append(_physical_limit(cpus, warn=environment.value is None))
    return CpuCount(tuple(limits))


# One function for each limit ---------------------------------------------------------------------


def _machine_limit() -> CpuLimit:
    found = os.cpu_count()
    if found is None or found < 1:  # the documentation of `os.cpu_count` allows None
        return CpuLimit("machine", 1, "os.cpu_count() does not know, so one CPU is assumed")
    if sys.platform == "win32" and found > _MAX_WINDOWS_WORKERS:
        return CpuLimit(
            "machine",
            _MAX_WINDOWS_WORKERS,
            f"{found} CPUs, of which Windows lets one process wait for {_MAX_WINDOWS_WORKERS}",
        )
    return CpuLimit("machine", found, "logical CPUs of the machine, os.cpu_count()")


def _affinity_limit(cpus: set[int] | None) -> CpuLimit:
    name = "affinity"
    if cpus is None:
        return CpuLimit(name, None, "this process is not bound to CPUs, or that cannot be seen")
    return CpuLimit(name, max(1, len(cpus)), f"this process may run on {_ranges(cpus)}")


def _cgroup_limit(root: str = "") -> CpuLimit:
    name = "cgroup quota"
    try:
        quota = _platform().cgroup_quota(root)
    except Exception as error:  # a file that nobody has thought of must not stop a pool
        return CpuLimit(name, None, f"not understood: {_describe(error)}")
    if quota is None:
        return CpuLimit(name, None, "no quota on the CPU time of this process")
    value, source = quota
    return CpuLimit(name, max(1, value), source)


def _environment_limit() -> CpuLimit:
    name = _ENVIRONMENT_VARIABLE
    text = os.environ.get(name, "").strip()
    if not text:
        return CpuLimit(name, None, "environment variable not set")
    try:
        number = int(text)
    except ValueError:
        complaint = f"{name}={text!r:.60} is ignored: it has to be a whole number of CPUs, like 4"
        _warn_once(complaint)
        return CpuLimit(name, None, complaint)
    if number < 1:
        return CpuLimit(name, 1, f"environment variable set to {number}, which counts as 1")
    return CpuLimit(name, number, "environment variable")


def _physical_limit(cpus: set[int] | None, warn: bool) -> CpuLimit:
    name = "physical cores"
    # Only on Linux can cores be told apart by the CPUs that belong to them.
    subset = cpus if sys.platform in ("linux", "android") else None
    found, error = _count_physical_cores(subset)
    if isinstance(found, int):
        place = "under the CPUs of this process" if subset is not None else "of the machine"
        return CpuLimit(name, found, f"physical cores {place}")
    # `error` is None from the second time on: whoever was to be told has been told.
    if error is not None and warn:
        _warn_once(
            f"Could not find the number of physical cores ({_describe(error)}): logical CPUs are "
            f"counted instead. Set {_ENVIRONMENT_VARIABLE} to the number of cores you want to "
            "use to silence this warning."
        )
    return CpuLimit(name, None, "could not be found, so logical CPUs are counted")


# Names that upstream's tests and a few callers import from `loky.backend.context` ----------------


def _cpu_count_affinity_set() -> set[int] | None:
    """The CPUs this process is bound to, or None when it is not bound or that cannot be seen."""
    try:
        cpus = _platform().affinity()
    except Exception:
        cpus = None
    if cpus is None and sys.platform == "linux" and not os.environ.get(_ENVIRONMENT_VARIABLE):
        # On Linux containers and batch systems bind processes as a matter of course, so a pool
        # that cannot see it may start many times too many workers.
        _warn_once(
            "The CPU affinity of this process cannot be inspected on this system: install psutil, "
            f"or set {_ENVIRONMENT_VARIABLE} to the number of CPUs to use."
        )
    return cpus


def _cpu_count_affinity(os_cpu_count: int) -> int:
    """The number of CPUs this process is bound to; `os_cpu_count` when it is not bound."""
    cpus = _cpu_count_affinity_set()
    return os_cpu_count if cpus is None else len(cpus)


def _cpu_count_cgroup(os_cpu_count: int, root: str = "") -> int:
    """The CPU quota in whole CPUs, rounded up; `os_cpu_count` when there is none.

    `root` is put before every path that is read, so that tests can bring their own /proc and /sys.
    """
    value = _cgroup_limit(root).value
    return os_cpu_count if value is None else value


def _count_physical_cores(
    cpu_set: AbstractSet[int] | None = None,
) -> tuple[int | str, Exception | None]:
    """The number of physical cores, or "not found" and (the first time only) the reason."""
    key = None if cpu_set is None else frozenset(cpu_set)
    if key in physical_cores_cache:
        return physical_cores_cache[key], None
    found: int | str
    error: Exception | None = None
    try:
        found = _platform().physical_cores(key)
        if found < 1:
            raise ValueError(f"the system reports {found} physical cores")
    except Exception as reason:
        found, error = "not found", reason
    physical_cores_cache[key] = found
    return found, error


# Help --------------------------------------------------------------------------------------------


def _platform() -> _Platform:
    """The one place where an operating system is chosen."""
    if sys.platform in ("linux", "android"):
        from . import _cpu_linux

        return _cpu_linux
    if sys.platform == "win32":
        from . import _cpu_windows

        return _cpu_windows
    from . import _cpu_posix

    return _cpu_posix


def _warn_once(message: str) -> None:
    if message in _warned:
        return
    _warned.add(message)
    import warnings

    # From here: the limit, `_count`, the public function, its caller.
    warnings.warn(message, UserWarning, stacklevel=5)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _ranges(cpus: set[int]) -> str:
    """Write CPU numbers the way the kernel does: 0-3,8."""
    numbers = sorted(cpus)
    parts: list[str] = []
    start = 0
    for index, number in enumerate(numbers):
        if index + 1 == len(numbers) or numbers[index + 1] != number + 1:
            first = numbers[start]
            parts.append(str(first) if first == number else f"{first}-{number}")
            start = index + 1
    return f"{'CPU' if len(numbers) == 1 else 'CPUs'} {','.join(parts)}"
