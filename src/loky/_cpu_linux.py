"""What Linux says about the CPUs of this process: affinity, control groups, topology.

Guarantee: `cgroup_quota` reads only files and understands or skips whatever they hold. A quota set
on any group between the process's own and the top of what is visible is found, because the kernel
enforces all of them.

Guarantee: `root` is put before every path, so a test can bring its own /proc and /sys.

Does not belong here: where the control groups are (see `_cgroup_linux`); combining the limits,
warnings, defaults (see `cpu`).

Formats: the kernel's documentation of cgroup v2 (cpu.max), of the CFS bandwidth control (v1) and of
the CPU topology in sysfs.
"""

from __future__ import annotations

from ._cgroup_linux import directories
from ._cgroup_linux import read as _read
from ._cpu_posix import affinity as affinity  # the same call on every Unix that has it

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

# Quota -------------------------------------------------------------------------------------------


def cgroup_quota(root: str = "") -> tuple[int, str] | None:
    """Return the smallest CPU quota above this process, in whole CPUs, and where it is set.

    Parameters
    ----------
    root : str
        Put before every path.

    Returns
    -------
    tuple of (int, str) or None
        CPUs, rounded up (so at least 1), and one line that names the file; None without a quota.
    """
    smallest: tuple[int, str] | None = None
    for version, directory in directories("cpu", root):
        quota = _read_v2(directory) if version == "v2" else _read_v1(directory)
        if quota is not None and (smallest is None or quota[0] < smallest[0]):
            smallest = quota
    return smallest


def _read_v2(directory: str) -> tuple[int, str] | None:
    path = f"{directory}/cpu.max"
    # "50000 100000" or "max 100000"; other content is of a kernel to come, and no limit to us.
    fields = _read(path).split()
    return _cpus(fields[0], fields[1], path) if len(fields) == 2 else None


def _read_v1(directory: str) -> tuple[int, str] | None:
    path = f"{directory}/cpu.cfs_quota_us"
    return _cpus(_read(path), _read(f"{directory}/cpu.cfs_period_us"), path)


def _cpus(quota: str, period: str, path: str) -> tuple[int, str] | None:
    try:
        microseconds, every = int(quota), int(period)
    except ValueError:  # "max", an empty file, a file that cannot be read
        return None
    if microseconds <= 0 or every <= 0:  # version 1 says -1 for "no limit"
        return None
    # Rounded up: 1.5 CPUs keep two workers busy most of the time; one worker would waste a third.
    count = -(-microseconds // every)
    return count, f"{microseconds} us of CPU time each {every} us, set in {path}"


# Topology ----------------------------------------------------------------------------------------


def physical_cores(cpus: AbstractSet[int] | None, root: str = "") -> int:
    """Return how many physical cores the given CPUs belong to.

    Parameters
    ----------
    cpus : set of int or None
        Numbers of logical CPUs; None for all that are online.
    root : str
        Put before every path.

    Raises
    ------
    LookupError
        When neither sysfs nor /proc/cpuinfo knows the core of every one of these CPUs.
    """
    # sysfs comes first: it tells apart the dies of one package, whose core numbers may be equal,
    # and containers that rewrite /proc/cpuinfo renumber the CPUs there.
    count = _cores_from_sysfs(cpus, f"{root}/sys/devices/system/cpu")
    if count is None:
        count = _cores_from_cpuinfo(cpus, _read(f"{root}/proc/cpuinfo"))
    return count


def _cores_from_sysfs(cpus: AbstractSet[int] | None, directory: str) -> int | None:
    if cpus is None:
        cpus = _parse_ranges(_read(f"{directory}/online"))
    cores = set()
    for cpu in cpus:
        topology = f"{directory}/cpu{cpu}/topology"
        # The CPUs of one core name each other here; the second name is that of old kernels.
        siblings = _read(f"{topology}/core_cpus_list") or _read(f"{topology}/thread_siblings_list")
        if not siblings.strip():
            return None
        cores.add(siblings.strip())
    return len(cores) or None


def _cores_from_cpuinfo(cpus: AbstractSet[int] | None, text: str) -> int:
    cores = set()
    seen = set()
    for block in text.split("\n\n"):
        fields = {}
        for line in block.splitlines():
            key, _, value = line.partition(":")
            fields[key.strip()] = value.strip()
        number = fields.get("processor", "")
        if not number.isdigit() or (cpus is not None and int(number) not in cpus):
            continue
        if "core id" not in fields:
            raise LookupError(f"/proc/cpuinfo has no core id for CPU {number}")
        seen.add(int(number))
        # A core number is unique only within its package.
        cores.add((fields.get("physical id"), fields["core id"]))
    if not seen or (cpus is not None and len(seen) < len(cpus)):
        raise LookupError("neither /sys nor /proc/cpuinfo lists the CPUs of this process")
    return len(cores)


def _parse_ranges(text: str) -> set[int]:
    """Parse the kernel's way to write CPU numbers, 0-3,8; the empty set for anything else."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        try:
            cpus.update(range(int(first), int(last or first) + 1))
        except ValueError:
            return set()
    return cpus
