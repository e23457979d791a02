"""What a new process is told before it can become the process that it was started for.

Two pickles go to the child, which is multiprocessing's `spawn` but for three things:

- whether the parent's `__main__` is imported there is decided for each process;
- the child uses its parent's resource trackers, ours and multiprocessing's, and has them before the
  first of the user's objects is rebuilt there;
- the parent's default start method is left alone: multiprocessing's `get_preparation_data` would
  fix it for good.

The first pickle is multiprocessing's own, a dictionary for its `prepare`. It is plain, so a child
can read it before its `sys.path` is set. The second is a `Cargo`.
"""

from __future__ import annotations

import os
import pickle
import sys
from multiprocessing import process, spawn, util
from multiprocessing.context import get_spawning_popen
from typing import Any

from . import reduction
from ._platform import platform
from .resource_tracker import _resource_tracker

__all__ = ["get_executable", "get_preparation_data", "prepare"]


def get_executable() -> str:
    """The path of the Python that children run, see `multiprocessing.set_executable`."""
    return os.fsdecode(spawn.get_executable() or sys.executable)


def get_preparation_data(name: str, init_main_module: bool = True) -> dict[str, Any]:
    """What `prepare` needs in the child, as a dictionary.

    Parameters
    ----------
    name : str
        Name of the child process.
    init_main_module : bool, default True
        Whether the child imports this process' `__main__`, under the name `__mp_main__`.

    Raises
    ------
    RuntimeError
        If this process is a child that is still importing its parent's `__main__`: a script without
        an ``if __name__ == "__main__"`` would start processes without end.
    """
    spawn._check_not_importing_main()  # type: ignore[attr-defined]
    here: Any = process
    data: dict[str, Any] = {
        "name": name,
        "authkey": process.current_process().authkey,
        "sys_path": [entry if entry != "" else here.ORIGINAL_DIR for entry in sys.path],
        "sys_argv": sys.argv,
        "orig_dir": here.ORIGINAL_DIR,
        "dir": os.getcwd(),
        "log_to_stderr": util._log_to_stderr,  # type: ignore[attr-defined]
    }
    logger = util._logger  # type: ignore[attr-defined]
    if logger is not None:
        data["log_level"] = logger.getEffectiveLevel()
    if init_main_module:
        data.update(_locate_main())
    return data


def _locate_main() -> dict[str, str]:
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        return {"init_main_from_name": name}
    path = getattr(main, "__file__", None)
    # The main program of a frozen application is in no file that could be run again.
    if path is None or getattr(sys, "frozen", False):
        return {}
    origin: str = process.ORIGINAL_DIR or ""  # type: ignore[attr-defined]
    return {"init_main_from_path": os.path.normpath(os.path.join(origin, path))}


def prepare(data: dict[str, Any], parent_sentinel: object = None) -> None:
    """Make this process ready to rebuild its process object.

    Parameters
    ----------
    data : dict
        From `get_preparation_data` in the parent.
    parent_sentinel : object, optional
        Not used.
    """
    spawn.prepare(data)


class Cargo:
    """A process object on its way to the process that it stands for.

    Pickles the process object with loky's pickler, and with it how to reach the trackers. May only
    be pickled while a process is being started.
    """

    def __init__(self, process_obj: process.BaseProcess) -> None:
        self._process_obj = process_obj

    def __reduce__(self) -> tuple[Any, ...]:
        popen = get_spawning_popen()
        ours = platform.give(_resource_tracker.getfd(), popen)
        theirs = platform.multiprocessing_tracker()
        if theirs is not None:
            theirs = platform.give(theirs, popen)
        # As bytes: the child has to have the trackers before it rebuilds anything from here.
        return _unload, (ours, theirs, bytes(reduction.dumps(self._process_obj)))


def _unload(ours: int, theirs: int | None, data: bytes) -> object:
    _resource_tracker.adopt(platform.take(ours))
    if theirs is not None:
        from multiprocessing import resource_tracker

        resource_tracker._resource_tracker._fd = platform.take(theirs)  # type: ignore[attr-defined]
    return pickle.loads(data)
