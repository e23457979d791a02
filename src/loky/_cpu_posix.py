"""What macOS, FreeBSD and the other Unix systems say about the CPUs of this process.

Linux shares only `affinity`, by importing it from here.

Guarantee: no process is started. The C library's `sysctlbyname` is called directly.

Assumption: there are no control groups here. macOS binds no process to CPUs; FreeBSD does, and
Python shows it with the same function as on Linux, or psutil does.

Does not belong here: Linux (`_cpu_linux`), Windows (`_cpu_windows`), combining limits (`cpu`).
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet
    from typing import Any

_SYSCTL_NAMES = {"darwin": "hw.physicalcpu", "freebsd": "kern.smp.cores"}


def affinity() -> set[int] | None:
    """Return the CPUs this process is bound to, or None when nothing here can tell."""
    try:
        # By name: macOS lacks it, and so do some builds of Python for systems that have it.
        get: Callable[[int], set[int]] = getattr(os, "sched_getaffinity")  # noqa: B009
        return get(0)
    except (AttributeError, NotImplementedError, OSError):
        pass
    if sys.platform == "darwin":
        return None  # psutil has no more to say there, and importing it would cost every caller
    try:
        import psutil

        return set(psutil.Process().cpu_affinity())
    except Exception:  # not installed, or no better off than we are
        return None


def cgroup_quota(root: str = "") -> tuple[int, str] | None:
    """Return None: control groups are a thing of Linux."""
    return None


def physical_cores(
    cpus: AbstractSet[int] | None, root: str = "", *, libc: Any = None, platform: str | None = None
) -> int:
    """Return the number of physical cores of the machine.

    Parameters
    ----------
    cpus : set of int or None
        Ignored: these systems do not say which CPU belongs to which core.
    root : str
        Ignored: no file is read.
    libc : object with a ``sysctlbyname`` function, optional
        For tests; the C library of this process when None.
    platform : str, optional
        For tests; ``sys.platform`` when None.

    Raises
    ------
    NotImplementedError
        When it is not known how to ask this operating system.
    OSError
        When the operating system does not answer.
    """
    system = platform or sys.platform
    # FreeBSD carries its version in the name of the platform.
    name = _SYSCTL_NAMES.get("freebsd" if system.startswith("freebsd") else system)
    if name is None:
        raise NotImplementedError(f"no way is known to ask {system} for its physical cores")

    import ctypes  # only here: it is not cheap, and most processes never ask

    if libc is None:
        libc = ctypes.CDLL(None, use_errno=True)
    # Both are an `int` today. Room for a wider one costs nothing: the system says what it wrote.
    answer = ctypes.create_string_buffer(8)
    size = ctypes.c_size_t(len(answer))
    if libc.sysctlbyname(name.encode(), answer, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"sysctl {name}: {os.strerror(error)}")
    return int.from_bytes(answer.raw[: size.value], sys.byteorder)
