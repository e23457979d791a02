"""ProcessPoolExecutor: what it is made with, and what keeps it alive.

Rule 1: no I/O and no decisions here. What can be done with one that is there is in `submitting`,
the pool (`loky.pool.supervisor`) does the rest.

Rule 2: an executor that is collected without `shutdown` completes its work and then lets its
workers go. So the pool must not refer to its executor, and what runs on collection does one thing:
it posts to the pool's inbox.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from . import backend as _backend  # noqa: F401  # has multiprocessing know "loky"
from . import nesting
from .options import PoolOptions, check_max_workers, pool_options
from .pool.supervisor import Supervisor
from .submitting import Submitting
from .task_options import TaskOptions, pool_task_options

MAX_DEPTH = nesting.max_depth()


def __getattr__(name: str) -> Any:
    # The exceptions, and names of old: importing them imports multiprocessing, which must not
    # happen when the import system looks for `__path__`.
    if not name.startswith("__"):
        from . import legacy

        if hasattr(legacy, name):
            return getattr(legacy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class ProcessPoolExecutor(Submitting):
    """Runs calls in worker processes. A crash costs the call that crashed, not the pool.

    Parameters
    ----------
    max_workers : int, optional
        How many worker processes, at least 1. Default: `loky.cpu_count()`.
    job_reducers, result_reducers : dict of type to callable, optional
        How to pickle instances of these types, in the manner of `copyreg`, on the way to the
        workers and back. Without `result_reducers`, `job_reducers` serve for both.
    timeout : float, optional
        Seconds after which a worker without work leaves; it comes back with the next work.
        Default: workers stay.
    context, mp_context : str or multiprocessing context, optional
        ``"loky"`` (the default), or ``"loky_init_main"``, ``"spawn"``, ``"forkserver"``, whose
        workers also import the parent's main module. All are started the same way, by fork and
        exec. Two names for one option.
    initializer : callable, optional
        Called in each worker before its first task. If it raises, the pool is broken and every
        future gets its traceback.
    initargs : tuple, optional
        The initializer's arguments.
    env : dict of str to str, optional
        Added to the workers' environment before they start. Values may also be numbers or paths.
    max_tasks_per_child : int, optional
        Tasks after which a worker is replaced. Default: never.
    crash_policy : {"isolate", "break"}, optional
        What the death of a worker costs: the task that it ran (``"isolate"``), or the pool, as in
        `concurrent.futures` (``"break"``). Default: ``$LOKY_CRASH_POLICY`` or ``"isolate"``.
    max_memory_per_worker : int or str, optional
        Bytes, or a text like ``"2GB"`` or ``"512MiB"``. A worker that uses more while it runs a
        task is killed, and the task fails with `TaskMemoryError`. What counts is memory of its own,
        without shared mappings and files. Default: no limit.
    recycle_memory_per_worker : int or str, optional
        A worker that uses more after a task is replaced, once the replacement is ready.
    memory_limit : int or str, optional
        What all workers together may use; also a share of the memory of the machine, or of the
        control group, like ``"80%"``. When nine tenths of that are used, or no more than a tenth is
        available, tasks wait until others have ended. At 95 % the task that began last is killed
        (`TaskMemoryError`), preferably one that is retried after that.
    task_options : TaskOptions or mapping of str to object, optional
        Options of all tasks (`timeout`, `retries`, ...), see `options`, which overrides them.
    relay : str or iterable of str, optional
        What workers say and the parent is to hear: any of ``"stdout"``, ``"stderr"``, ``"logging"``
        and ``"warnings"``, as ``"stdout,stderr"`` for instance. Prints come through the parent's
        `sys.stdout` and `sys.stderr`, each line behind ``[task pid]``; log records and warnings
        through its loggers, handlers and filters. Default: none; workers print to the parent's
        descriptors 1 and 2.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be; the message says what is accepted.
    LokyRecursionError
        Executors are nested deeper than ``$LOKY_MAX_DEPTH`` (10; 0 for no limit).
    """

    def __init__(
        self,
        max_workers: int | None = None,
        job_reducers: Mapping[type, Callable[[Any], Any]] | None = None,
        result_reducers: Mapping[type, Callable[[Any], Any]] | None = None,
        timeout: float | None = None,
        context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        env: Mapping[str, Any] | None = None,
        *,
        mp_context: Any = None,
        max_tasks_per_child: int | None = None,
        crash_policy: str | None = None,
        max_memory_per_worker: int | str | None = None,
        recycle_memory_per_worker: int | str | None = None,
        memory_limit: int | str | None = None,
        task_options: Mapping[str, Any] | TaskOptions | None = None,
        relay: str | Iterable[str] | None = None,
    ) -> None:
        options = pool_options(
            max_workers=max_workers,
            timeout=timeout,
            context=context,
            mp_context=mp_context,
            initializer=initializer,
            initargs=initargs,
            env=env,
            job_reducers=job_reducers,
            result_reducers=result_reducers,
            max_tasks_per_child=max_tasks_per_child,
            crash_policy=crash_policy,
            max_memory_per_worker=max_memory_per_worker,
            recycle_memory_per_worker=recycle_memory_per_worker,
            memory_limit=memory_limit,
            relay=relay,
        )
        self._task_options = pool_task_options(task_options)
        _check_depth()
        self._options: PoolOptions = options
        self._max_workers = options.max_workers
        self._pool = Supervisor(options)
        self._pool.close_with(self)

    def _resize(self, max_workers: int) -> None:
        """Change the number of workers; see `get_reusable_executor`."""
        max_workers = check_max_workers(max_workers)
        if max_workers != self._max_workers:
            self._max_workers = max_workers
            self._pool.resize(max_workers)

    if not TYPE_CHECKING:  # else type checkers would believe in every name

        def __getattr__(self, name: str) -> Any:
            # Private names of old, for callers only.
            if name.startswith("_") and not name.startswith("__"):
                from .attributes import ATTRIBUTES

                if name in ATTRIBUTES:
                    return ATTRIBUTES[name](self)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def _open(self) -> bool:
        """Whether calls are accepted."""
        return not self._pool.refusing


def _check_depth() -> None:
    if MAX_DEPTH and nesting.depth + 1 > MAX_DEPTH:
        from .errors import LokyRecursionError

        raise LokyRecursionError(
            f"Could not spawn extra nested processes at depth superior to MAX_DEPTH={MAX_DEPTH}. "
            "If this is intentional, change this limit with the environment variable "
            "LOKY_MAX_DEPTH (0 for no limit)."
        )
