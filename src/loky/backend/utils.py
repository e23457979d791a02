"""Ending processes with all their descendants, and putting their exit codes into words.

Does not belong here: how an operating system does that, see `_platform`.
"""

from __future__ import annotations

import time
import warnings

from ._platform import platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

__all__ = ["get_exitcodes_terminated_worker", "kill_process_tree"]

# The system may say that a process has ended a moment before it says how.
_PATIENCE = 0.25
_PAUSE = 0.01


def __getattr__(name: str) -> Any:
    if name == "psutil":  # for callers only
        from importlib import import_module

        try:
            value: Any = import_module(name)
        except ImportError:
            value = None
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def kill_process_tree(process: Any, use_psutil: bool = True) -> None:
    """Kill a process and all its descendants, and wait until the process has ended.

    Parameters
    ----------
    process : multiprocessing.Process
        A child of this process.
    use_psutil : bool, default True
        Not used: psutil is not needed.

    Warns
    -----
    UserWarning
        If the descendants cannot be found, or not all of them be killed. The process itself is
        killed in any case.
    """
    # Once a process was waited for, its id may be another's.
    if process.exitcode is None and process.pid is not None:
        try:
            platform.kill_tree(process.pid)
        except Exception as error:
            warnings.warn(
                "Failed to kill subprocesses on this platform. Only the process itself is killed: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )
            process.kill()
    process.join()


def recursive_terminate(process: Any, use_psutil: bool = True) -> None:
    """Call `kill_process_tree`, the newer name of this function.

    Parameters
    ----------
    process, use_psutil
        As for `kill_process_tree`.

    Warns
    -----
    DeprecationWarning
        Always.
    """
    warnings.warn(
        "recursive_terminate is deprecated, use kill_process_tree instead",
        DeprecationWarning,
        stacklevel=2,
    )
    kill_process_tree(process, use_psutil)


def get_exitcodes_terminated_worker(processes: Mapping[Any, Any]) -> str:
    """Return how those of these processes that have ended did so.

    Parameters
    ----------
    processes : mapping
        Process objects as values, of which at least one has ended. If none seems to, it is given a
        quarter of a second.

    Returns
    -------
    str
        Like ``{SIGKILL(-9), EXIT(1)}``.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        exitcodes = [process.exitcode for process in list(processes.values())]
        known = [code for code in exitcodes if code is not None]
        if known or time.monotonic() > deadline:
            return _format_exitcodes(known)
        time.sleep(_PAUSE)


def _format_exitcodes(exitcodes: Iterable[int | None]) -> str:
    known = [code for code in exitcodes if code is not None]
    return "{" + ", ".join(f"{_get_exitcode_name(code)}({code})" for code in known) + "}"


def _get_exitcode_name(exitcode: int) -> str:
    return platform.name_exitcode(exitcode)
