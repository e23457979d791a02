"""Starts a loky process on Windows.

Multiprocessing's `Popen` with two additions: the environment of the child can be changed, and what
the child is told comes from our `spawn`. The child runs multiprocessing's own `spawn_main`.
"""

from __future__ import annotations

import _winapi
import msvcrt
import os
import subprocess
import sys
from multiprocessing import popen_spawn_win32, util
from multiprocessing import spawn as mp_spawn
from multiprocessing.context import set_spawning_popen
from typing import TYPE_CHECKING

assert sys.platform == "win32"  # tells type checkers, too

if TYPE_CHECKING:
    from .process import LokyProcess

__all__ = ["Popen"]


class Popen(popen_spawn_win32.Popen):
    """A process started by CreateProcess.

    Parameters
    ----------
    process_obj : LokyProcess
        What to run there.
    """

    method = "loky"

    def __init__(self, process_obj: LokyProcess) -> None:
        from .reduction import dump
        from .spawn import Cargo, get_executable, get_preparation_data

        preparation = get_preparation_data(process_obj.name, process_obj.init_main_module)
        # The child takes a copy of its end out of this process, which keeps its own to the end.
        child_end, our_end = _winapi.CreatePipe(None, 0)
        command = mp_spawn.get_command_line(parent_pid=os.getpid(), pipe_handle=child_end)
        environment = {**os.environ, **{name: str(v) for name, v in process_obj.env.items()}}
        executable = get_executable()
        base: str = getattr(sys, "_base_executable", executable)
        if executable == sys.executable != base:
            # In a virtual environment python.exe only starts the real one, as a grandchild whose
            # handle we would not have.
            executable = command[0] = base
            environment["__PYVENV_LAUNCHER__"] = sys.executable
        with open(msvcrt.open_osfhandle(our_end, 0), "wb") as to_child:
            try:
                handle, thread, pid, _ = _winapi.CreateProcess(
                    executable,
                    subprocess.list2cmdline(command),
                    None,
                    None,
                    False,
                    0,
                    environment,
                    None,
                    None,
                )
            except BaseException:
                _winapi.CloseHandle(child_end)
                raise
            _winapi.CloseHandle(thread)
            self.pid = pid
            self.returncode = None
            self._handle = handle
            self.sentinel = int(handle)
            self.finalizer = util.Finalize(self, _close, (self.sentinel, int(child_end)))
            set_spawning_popen(self)
            try:
                dump(preparation, to_child)
                dump(Cargo(process_obj), to_child)
            finally:
                set_spawning_popen(None)


def _close(*handles: int) -> None:
    for handle in handles:
        _winapi.CloseHandle(handle)
