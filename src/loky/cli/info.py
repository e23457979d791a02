"""`python -m loky info`: what loky sees of this machine, for people and (--json) for programs.

Guarantee: everything is asked of the code that a pool would ask, or tried on the spot; nothing is
guessed from the name or version of the system. A part that cannot be found out is reported as
such and does not stop the others.

Does not belong here: anything that changes a setting, or that a pool needs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import loky
from loky.cli.table import format_table
from loky.cpu import CpuCount, explain_cpu_count

# What is often used together with loky, which needs none of them.
_OPTIONAL = ("psutil", "numpy", "joblib")


def collect() -> dict[str, Any]:
    """Return everything that the command shows, as what JSON can hold.

    Returns
    -------
    dict
        The keys are ``versions``, ``cpus``, ``start_methods``, ``pickler``, ``environment`` and
        ``capabilities``.
    """
    return {
        "versions": _versions(),
        "cpus": _cpus(),
        "start_methods": _start_methods(),
        "pickler": _pickler(),
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith("LOKY_")
        },
        "capabilities": {name: _try(probe) for name, probe in _PROBES.items()},
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {
        "loky": loky.__version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
    }
    for name in ("cloudpickle", *_OPTIONAL):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _cpus() -> dict[str, Any]:
    with warnings.catch_warnings():
        # Each of them is also the reason given for one of the limits below.
        warnings.simplefilter("ignore", UserWarning)
        logical = explain_cpu_count()
        physical = explain_cpu_count(only_physical_cores=True)
    return {
        "cpu_count": _count(logical),
        "cpu_count_only_physical_cores": _count(physical),
        # The second list has all limits of the first, and the physical cores.
        "limits": [
            {"name": limit.name, "value": limit.value, "reason": limit.reason}
            for limit in physical.limits
        ],
    }


def _count(explained: CpuCount) -> dict[str, Any]:
    return {
        "count": explained.count,
        "decided_by": [limit.name for limit in explained.decisive],
    }


def _start_methods() -> dict[str, Any]:
    from loky.options import START_METHODS

    return {"default": START_METHODS[0], "available": list(START_METHODS)}


def _pickler() -> dict[str, str | None]:
    from loky.backend.reduction import get_loky_pickler, get_loky_pickler_name

    name = get_loky_pickler_name()
    error = None
    try:
        get_loky_pickler()
    except Exception as reason:  # whatever a module of the user's raises when it is imported
        error = f"{type(reason).__name__}: {reason}"
    source = "LOKY_PICKLER" if os.environ.get("LOKY_PICKLER") else "default"
    return {"name": name, "source": source, "error": error}


# Capabilities: each is tried ---------------------------------------------------------------------


def _memfd_create() -> None:
    os.close(os.memfd_create("loky-info"))


def _pidfd_open() -> None:
    os.close(os.pidfd_open(os.getpid()))


def _seqpacket() -> None:
    import socket

    for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET):
        end.close()


def _setsig() -> None:
    import fcntl
    import signal

    F_SETSIG, F_GETSIG = 10, 11  # Linux; modules of older Pythons do not name them
    read, write = os.pipe()
    try:
        # Chooses the signal only; without O_ASYNC none is ever sent.
        fcntl.fcntl(read, F_SETSIG, signal.SIGIO)
        if fcntl.fcntl(read, F_GETSIG) != signal.SIGIO:
            raise OSError("the kernel takes the setting and forgets it")
    finally:
        os.close(read)
        os.close(write)


_PROBES: dict[str, Callable[[], None]] = {
    "memfd_create": _memfd_create,
    "pidfd_open": _pidfd_open,
    "SOCK_SEQPACKET": _seqpacket,
    "F_SETSIG": _setsig,
}


def _try(probe: Callable[[], None]) -> dict[str, Any]:
    try:
        probe()
    except Exception as error:  # AttributeError and ImportError: this Python does not have it
        return {"available": False, "reason": f"{type(error).__name__}: {error}"}
    return {"available": True, "reason": None}


# What is shown -----------------------------------------------------------------------------------


def render(found: dict[str, Any]) -> str:
    """Return the text for people of what `collect` returned.

    Parameters
    ----------
    found : dict
        As `collect` returns it.

    Returns
    -------
    str
        Several lines.
    """
    cpus = found["cpus"]
    limits = [
        [limit["name"], "-" if limit["value"] is None else str(limit["value"]), limit["reason"]]
        for limit in cpus["limits"]
    ]
    methods = found["start_methods"]
    pickler = found["pickler"]
    origin = "the default" if pickler["source"] == "default" else f"from {pickler['source']}"
    lines = [
        "Versions",
        *_pairs((name, value or "not installed") for name, value in found["versions"].items()),
        "",
        "CPUs",
        *_pairs(
            (call, f"{cpus[key]['count']}, decided by {', '.join(cpus[key]['decided_by'])}")
            for call, key in (
                ("cpu_count()", "cpu_count"),
                ("cpu_count(only_physical_cores=True)", "cpu_count_only_physical_cores"),
            )
        ),
        "",
        format_table(["limit", "CPUs", "reason"], limits, indent=2),
        "",
        "Start methods",
        f"  {', '.join(methods['available'])}; default: {methods['default']}",
        "",
        "Pickler",
        f"  {pickler['name']}, {origin}",
        *([f"  CANNOT BE USED: {pickler['error']}"] if pickler["error"] else []),
        "",
        "Environment",
        *(_pairs(found["environment"].items()) or ["  no variable LOKY_... is set"]),
        "",
        "Capabilities",
        *_pairs(
            (name, "yes" if each["available"] else f"no ({each['reason']})")
            for name, each in found["capabilities"].items()
        ),
    ]
    return "\n".join(lines)


def _pairs(pairs: Any) -> list[str]:
    rows = list(pairs)
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:{width}}  {value}" for name, value in rows]


def main(arguments: Sequence[str]) -> int:
    """Print what loky sees of this machine.

    Parameters
    ----------
    arguments : sequence of str
        The options, see ``--help``.

    Returns
    -------
    int
        0, or 1 when the configured pickler cannot be used: then no pool could work.
    """
    parser = argparse.ArgumentParser(
        prog="python -m loky info",
        description="Show what loky sees of this machine: versions, CPUs and the reason for each "
        "limit, start methods, pickler, settings in the environment, capabilities of the system.",
    )
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object")
    options = parser.parse_args(arguments)
    found = collect()
    print(json.dumps(found, indent=2) if options.json else render(found))
    if found["pickler"]["error"]:
        print("the configured pickler cannot be used", file=sys.stderr)
        return 1
    return 0
