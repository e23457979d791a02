"""Starts a program in a new process that gets chosen descriptors and nothing else.

Guarantee: the caller owns the child. Nothing here or in `subprocess` waits for it or takes its exit
status.

POSIX only.
"""

from __future__ import annotations

import os
import subprocess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["fork_exec"]


def fork_exec(
    cmd: Sequence[str], keep_fds: Iterable[int], env: Mapping[str, object] | None = None
) -> int:
    """Start a program in a new process.

    Parameters
    ----------
    cmd : sequence of str
        The program's path and its arguments.
    keep_fds : iterable of int
        Descriptors that stay open in the child under the same numbers, besides 0, 1 and 2.
    env : mapping, optional
        What to change in this process' environment for the child.

    Returns
    -------
    int
        Process id of the child, which the caller has to wait for.

    Raises
    ------
    OSError
        If the program cannot be started.
    """
    return _start(cmd, keep_fds, env)


def _start(
    cmd: Sequence[str],
    keep_fds: Iterable[int],
    env: Mapping[str, object] | None,
    new_session: bool = False,
) -> int:
    changes = {name: str(value) for name, value in (env or {}).items()}
    child = subprocess.Popen(
        cmd,
        pass_fds=tuple(keep_fds),
        env={**os.environ, **changes},
        restore_signals=False,  # as multiprocessing does: children inherit what is ignored
        start_new_session=new_session,
    )
    # Makes the object believe that it knows how the child ended. Without that it would complain
    # when it goes, and the next Popen anywhere would take the exit status.
    child.returncode = 0
    return child.pid
