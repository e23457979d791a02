"""Where Linux keeps what the control groups of this process say: found, not guessed.

Guarantee: `directories` reads only files and understands or skips whatever they hold. It names the
process's own group first and then every group above it that is visible: what is set on any of them
holds for the process, so looking only at the mount point misses every systemd slice and batch job,
looking only at the own group misses what the group above allows.

Guarantee: `root` is put before every path, so a test can bring its own /proc and /sys.

Assumption: mounts do not move under a running process. Where the files are is worked out again only
when /proc/self/cgroup changes (the process was moved); what they hold is read each time.

Does not belong here: what a file of a group means (see `_cpu_linux`, `_memory_linux`).

Formats: cgroups(7), proc(5) for mountinfo.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Where the files are when /proc does not say: the mount points that every distribution uses.
_USUAL_PLACES = {
    "cpu": (
        ("v2", "/sys/fs/cgroup"),
        ("v1", "/sys/fs/cgroup/cpu"),
        ("v1", "/sys/fs/cgroup/cpu,cpuacct"),
    ),
    "memory": (("v2", "/sys/fs/cgroup"), ("v1", "/sys/fs/cgroup/memory")),
}

# By root and controller: the last /proc/self/cgroup seen, and the answer of `directories`.
_last_directories: dict[tuple[str, str], tuple[str, list[tuple[str, str]]]] = {}


def directories(controller: str, root: str = "") -> list[tuple[str, str]]:
    """The directories of this process's groups, own group first, each with its version.

    Parameters
    ----------
    controller : {"cpu", "memory"}
        What the groups are to control.
    root : str
        Put before every path.

    Returns
    -------
    list of (str, str)
        ``"v1"`` or ``"v2"``, and the directory. Of version 2, also groups that do not control it.
    """
    groups = read(f"{root}/proc/self/cgroup")
    last = _last_directories.get((root, controller))
    if last is not None and last[0] == groups:
        return last[1]
    directories: list[tuple[str, str]] = []
    mounts = list(_cgroup_mounts(read(f"{root}/proc/self/mountinfo"), controller))
    for version, group in _own_groups(groups, controller):
        for mount_version, mount_root, mount_point in mounts:
            if version == mount_version:
                for directory in _upwards(group, mount_root, mount_point):
                    directories.append((version, root + directory))
    if not directories:
        directories = [(version, root + place) for version, place in _USUAL_PLACES[controller]]
    _last_directories[root, controller] = (groups, directories)
    return directories


def _own_groups(text: str, controller: str) -> Iterator[tuple[str, str]]:
    """Parse /proc/self/cgroup: the groups that can control this, as (version, path)."""
    for line in text.splitlines():
        fields = line.split(":", 2)
        if len(fields) != 3 or not fields[2].startswith("/"):
            continue
        hierarchy, controllers, path = fields
        if hierarchy == "0" and not controllers:
            yield "v2", path
        elif controller in controllers.split(","):
            yield "v1", path


def _cgroup_mounts(text: str, controller: str) -> Iterator[tuple[str, str, str]]:
    """Parse /proc/self/mountinfo: (version, mounted group, mount point)."""
    for line in text.splitlines():
        # 36 35 0:30 /group /mount/point rw,relatime [optional ...] - cgroup2 source rw,options
        # A blank in a path is written as \040, so the first " - " is the separator.
        left, separator, right = line.partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if not separator or len(before) < 6 or len(after) < 3:
            continue
        mount_root, mount_point = _unescape(before[3]), _unescape(before[4])
        if after[0] == "cgroup2":
            yield "v2", mount_root, mount_point
        elif after[0] == "cgroup" and controller in after[2].split(","):
            yield "v1", mount_root, mount_point


def _upwards(group: str, mount_root: str, mount_point: str) -> Iterator[str]:
    """The directories of `group` and of every group above it that this mount shows."""
    top = mount_root.rstrip("/")
    if group == top or group.startswith(top + "/"):
        below = [part for part in group[len(top) :].split("/") if part]
    elif mount_root.startswith("/.."):
        # The mount shows groups above our cgroup namespace. Which of the names below it leads to
        # us cannot be known, but what is set at the mount point holds for us too.
        below = []
    else:
        return  # a mount of somebody else's group, as container tools have
    if ".." in below:  # we were moved out of our namespace: again, only the top is sure
        below = []
    mount_point = mount_point.rstrip("/")
    for depth in range(len(below), -1, -1):
        yield "/".join([mount_point, *below[:depth]])


def _unescape(path: str) -> str:
    for escaped, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(escaped, plain)
    return path


def read(path: str) -> str:
    """Return the text of a file; nothing when it cannot be read.

    Five times faster than a text file of Python's: some of this is asked twenty times a second.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError):  # ValueError: a null byte in a path from an odd mountinfo
        return ""
    pieces = []
    try:
        while piece := os.read(descriptor, 1 << 16):
            pieces.append(piece)
    except OSError:  # a directory, or a process that has just ended
        return ""
    finally:
        os.close(descriptor)
    return b"".join(pieces).decode("utf-8", "surrogateescape")
