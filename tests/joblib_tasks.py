"""Functions that the tests of the joblib backend run in workers; see `pool_tasks` for why here."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from joblib import Parallel, delayed, parallel_config
from pool_tasks import pass_through


def whose() -> str:
    """Which library has started this process."""
    return "ours" if "loky.worker.loop" in sys.modules else "somebody else's"


def whose_pid() -> tuple[str, int]:
    return whose(), os.getpid()


def look_at(array: Any) -> tuple[str, str | None, float, int]:
    """The array's type and file as they are here, what is in it, who looked."""
    name = getattr(array, "filename", None)
    return type(array).__name__, name and str(name), float(array.sum()), os.getpid()


_kept: list[Any] = []


def keep(array: Any) -> str:
    """Hold on to the array; its file."""
    _kept.append(array)
    return str(array.filename)


def forget_through(path: str) -> float:
    """Wait at the gate, then let go of what was kept; what was in it until then."""
    pass_through(path)
    total = float(sum(array.sum() for array in _kept))
    _kept.clear()
    return total


def nested(backend: str | None) -> tuple[int, list[tuple[str, int]], str]:
    """Parallel calls within a task: this process, who did them, what joblib thought of it."""
    with Parallel(n_jobs=2, backend=backend) as inner:
        done = inner(delayed(whose_pid)() for _ in range(4))
    return os.getpid(), done, type(inner._backend).__module__


def default_backend_of_a_thread() -> str:
    """What a thread without any context of joblib's gets."""
    from concurrent.futures import ThreadPoolExecutor

    def look() -> str:
        return type(Parallel(n_jobs=2)._backend).__module__

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(look).result()


def multiprocessing_workers() -> int:
    """How many workers joblib allows its backend on multiprocessing in here."""
    with parallel_config(backend="multiprocessing"):
        return int(Parallel(n_jobs=2)._effective_n_jobs())


def variable(name: str) -> str | None:
    return os.environ.get(name)


def fail_at(number: int, bad: int) -> int:
    if number == bad:
        raise LookupError(f"this is {bad}")
    return number


def die_at(number: int, bad: int) -> int:
    if number == bad:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def first_then_wait(number: int, path: str) -> int:
    """The first call returns, all others wait at the gate."""
    if number:
        pass_through(path)
    return number
