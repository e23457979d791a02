"""Starts a loky process on POSIX; run as a program (``-m``), it is that process.

One pipe connects the two, and each end tells when the other side dies: the parent writes the
child's instructions into it, then watches its end (a pipe without readers is in error, which
`select`, `poll` and `epoll` report as readable); the child keeps its end as the sentinel of its
parent. Multiprocessing takes two pipes for that.

Guarantee: the child gets the standard streams and the descriptors that were asked for, and no
others.

Everything about a running process (waiting, signals, closing) is multiprocessing's `Popen`.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from multiprocessing import popen_spawn_posix, spawn, util
from multiprocessing.context import set_spawning_popen
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .process import LokyProcess

assert sys.platform != "win32"  # tells type checkers, too

__all__ = ["Popen"]

_MODULE = f"{__package__}.popen_loky_posix"  # `__name__` is "__main__" in the child


class Popen(popen_spawn_posix.Popen):
    """A process started by fork and exec.

    Parameters
    ----------
    process_obj : LokyProcess
        What to run there.
    """

    method = "loky"
    _fds: list[int]

    def _launch(self, process_obj: LokyProcess) -> None:
        from .fork_exec import fork_exec

        instructions = self._pack(process_obj)
        child_end, our_end = os.pipe()
        self.sentinel = our_end
        self.finalizer = util.Finalize(self, os.close, (our_end,))
        try:
            command = _command_line(process_obj.name, child_end)
            self.pid = fork_exec(command, [*self._fds, child_end], env=process_obj.env)
        finally:
            os.close(child_end)
        try:
            while instructions:
                instructions = instructions[os.write(our_end, instructions) :]
        except BrokenPipeError:
            # It has ended already, and its exit code will say how. We can only notice because our
            # copy of its end is closed.
            pass

    def _pack(self, process_obj: LokyProcess) -> memoryview:
        from .reduction import dump
        from .spawn import Cargo, get_preparation_data

        file = io.BytesIO()
        set_spawning_popen(self)
        try:
            dump(get_preparation_data(process_obj.name, process_obj.init_main_module), file)
            dump(Cargo(process_obj), file)
        finally:
            set_spawning_popen(None)
        return file.getbuffer()


def _command_line(name: str, fd: int) -> list[str]:
    from .spawn import get_executable

    if getattr(sys, "frozen", False):
        # There is no Python to run a module: the application gets to `freeze_support`.
        return spawn.get_command_line(pipe_handle=fd)
    # The name is for whoever looks at a list of processes.
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [get_executable(), *flags, "-m", _MODULE, "--process-name", name, "--pipe", str(fd)]


def _main(arguments: list[str]) -> int:
    options: dict[str, Any] = dict(zip(arguments[::2], arguments[1::2], strict=True))
    fd = int(options["--pipe"])
    try:
        # `_main` closes what it has read from. What is left is the copy, which no program that this
        # process runs can inherit: the end of this process would go unnoticed.
        return spawn._main(fd, os.dup(fd))
    except Exception:
        import traceback

        # On standard output, where those who run such processes have always found it.
        print(f"{options.get('--process-name')} could not be started:\n{traceback.format_exc()}")
        return 1


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
