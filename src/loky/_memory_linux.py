"""What Linux says about memory: of processes, of the control groups, of the machine.

Guarantee: only files are read, and whatever they hold is understood or counts as unknown.

Guarantee: `root` is put before every path, so a test can bring its own /proc and /sys.

*Anonymous* memory is what a process has allocated for itself: heap, stacks, private pages that it
has written to. Files and shared memory that it maps are not its own, however much it touches them.

Does not belong here: other operating systems, and what to do about it (see `memory`).

Formats: proc(5); the kernel's documentation of cgroup v1 (memory) and v2 (memory.*).
"""

from __future__ import annotations

import os

from ._cgroup_linux import directories, read

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


# Processes ---------------------------------------------------------------------------------------


def anonymous(pid: int | str = "self", root: str = "") -> int | None:
    """Return how many bytes of anonymous memory the process has in use, None when unknown.

    Off by some pages per CPU, as the kernel counts (proc(5) on statm); exact enough for limits of
    megabytes, and twenty times faster than summing up its mappings.
    """
    fields = read(f"{root}/proc/{pid}/statm").split()
    try:
        return max(0, int(fields[1]) - int(fields[2])) * _PAGE
    except (IndexError, ValueError):
        return None


def peak(pid: int | str = "self", root: str = "") -> int | None:
    """Return the most bytes that the process has had in physical memory, mappings included.

    None when unknown: also for a process that has ended. (`getrusage` does not serve: after fork
    and exec it starts with what the parent had.)
    """
    for line in read(f"{root}/proc/{pid}/status").splitlines():
        if line.startswith("VmHWM:"):
            return _kilobytes(line)
    return None


def cpu_seconds(pid: int | str = "self", root: str = "") -> float | None:
    """Return the CPU time that the process has used, None when unknown."""
    # The second field is the program's name in brackets, and may hold blanks and brackets itself.
    fields = read(f"{root}/proc/{pid}/stat").rpartition(")")[2].split()
    try:
        return (int(fields[11]) + int(fields[12])) / _TICKS
    except (IndexError, ValueError):
        return None


# The machine and the control groups --------------------------------------------------------------


def total_and_available(root: str = "") -> tuple[int, int] | None:
    """Return how many bytes this process and its children may have together, and still can get.

    The smallest of the machine's and of those of each control group that the process is in. What
    the kernel can drop at once (pages of files) counts as available.
    """
    found = [_machine(root)]
    for version, directory in directories("memory", root):
        found.append(_group(version, directory))
    known = [pair for pair in found if pair is not None]
    if not known:
        return None
    return min(total for total, _ in known), min(available for _, available in known)


def _machine(root: str) -> tuple[int, int] | None:
    values = {}
    for line in read(f"{root}/proc/meminfo").splitlines():
        values[line.partition(":")[0]] = _kilobytes(line)
    total, available = values.get("MemTotal"), values.get("MemAvailable")
    return None if total is None or available is None else (total, available)


def _group(version: str, directory: str) -> tuple[int, int] | None:
    if version == "v2":
        limit, used = read(f"{directory}/memory.max"), read(f"{directory}/memory.current")
        names = ("active_file", "inactive_file")
    else:
        limit = read(f"{directory}/memory.limit_in_bytes")
        used = read(f"{directory}/memory.usage_in_bytes")
        names = ("total_active_file", "total_inactive_file")
    try:
        total, in_use = int(limit), int(used)
    except ValueError:  # "max", or nothing there
        return None
    if total >= 1 << 60:  # how version 1 says "no limit"
        return None
    statistics = _counters(f"{directory}/memory.stat")
    in_use -= sum(statistics.get(name, 0) for name in names)
    return total, max(0, total - max(0, in_use))


def oom_kills(root: str = "") -> int | None:
    """Return how many processes the kernel has killed for want of memory, None when unknown.

    Of this process's own control group if that counts them, else of the whole machine.
    """
    for version, directory in directories("memory", root):
        # The first that knows is the own group. In version 2 "local" leaves out the groups below.
        names = ("memory.events.local", "memory.events")
        for name in names if version == "v2" else ("memory.oom_control",):
            count = _counters(f"{directory}/{name}").get("oom_kill")
            if count is not None:
                return count
    return _counters(f"{root}/proc/vmstat").get("oom_kill")


# Formats -----------------------------------------------------------------------------------------


def _kilobytes(line: str) -> int | None:
    """The bytes of a line like ``VmHWM:  1234 kB``."""
    fields = line.split()
    try:
        return int(fields[1]) * 1024
    except (IndexError, ValueError):
        return None


def _counters(path: str) -> dict[str, int]:
    """The content of a file of lines like ``oom_kill 3``; others are skipped."""
    found = {}
    for line in read(path).splitlines():
        name, _, value = line.partition(" ")
        try:
            found[name] = int(value)
        except ValueError:
            continue
    return found
