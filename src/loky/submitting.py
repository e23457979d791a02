"""What can be done with an executor once it is there, from `submit` to `shutdown`.

Rule 1: no I/O and no decisions here. Arguments are checked, calls become tasks, the pool
(`loky.pool.supervisor`) does the rest.

Executors and the views that `options` gives differ in one thing only, the options of the tasks that
they submit.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, TypeVar

from .checks import check_seconds
from .future import Future
from .mapping import MapIterator, Submit, map_options
from .pool.model import Control, Task
from .pool.supervisor import Supervisor
from .task_options import TaskOptions, task_options

if TYPE_CHECKING:
    from typing_extensions import Unpack  # known to type checkers, installed or not

    from .observe.stacks import StackDump
    from .observe.stats import Stats
    from .task_options import GivenOptions

T = TypeVar("T")


class Submitting(Executor):
    """The common part of executors and their views.

    Attributes are private: `_pool`, and the options of all tasks submitted here, if any.
    """

    _pool: Supervisor
    _task_options: TaskOptions | None = None

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Have a worker call ``fn(*args, **kwargs)``.

        Parameters
        ----------
        fn : callable
            What to call. Lambdas, closures and functions of ``__main__`` travel by value.
        *args, **kwargs
            Its arguments.

        Returns
        -------
        loky.Future
            The call's future result. `result` raises whatever the call raised: also `SystemExit`
            and `KeyboardInterrupt`, which end a program that does not catch them.

        Raises
        ------
        TypeError
            `fn` cannot be called.
        ShutdownExecutorError
            The executor was shut down.
        BrokenProcessPool
            The pool is broken; the message says why.
        RuntimeError
            The interpreter is shutting down.
        """
        pool = self._pool
        if pool.refusing:
            self._refuse()
        if not callable(fn):
            raise TypeError(f"submit needs a callable, got {fn!r}")
        future: Future[T] = Future()
        pool.submit(future, fn, args, kwargs, self._task_options)
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
        on_error: str = "raise",
    ) -> MapIterator[T]:
        """Call `fn` with the items of the iterables, taken together, in the workers.

        Parameters
        ----------
        fn : callable
            Takes as many arguments as there are iterables.
        *iterables : iterable
            Where the arguments come from; the shortest decides how many calls there are.
        timeout : float, optional
            Seconds from now after which getting a result raises `TimeoutError`.
        chunksize : int
            Items per task, at least 1. Larger chunks cost less per item; a crash, a time-out or a
            retry costs the whole chunk.
        buffersize : int, optional
            How many tasks may be submitted ahead of the result that is being waited for, so that
            endless or huge inputs are consumed as results are taken. Default: all at once.
        ordered : bool
            Whether results come in the order of the input (the default), or as they are ready.
        on_error : {"raise", "collect", "skip"}
            What becomes of an item that fails: its exception is raised, which ends the iteration
            (the default); or comes in the place of a result; or nothing comes.

        Returns
        -------
        MapIterator
            The results. Closing it (``close()``) cancels what has not started. After an early end,
            ``finished()`` has the results that were there and not handed out yet.

        Raises
        ------
        TypeError, ValueError
            An argument is not what it must be.
        ShutdownExecutorError, BrokenProcessPool, RuntimeError
            As for `submit`.
        """
        options = map_options(fn, timeout, chunksize, buffersize, ordered, on_error)
        return MapIterator(self._submit_for_map(), fn, iterables, options)

    async def asubmit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call ``fn(*args, **kwargs)`` in a worker and await its result, in asyncio.

        If the awaiting task is cancelled, so is the call, also when it is running: its worker is
        ended and replaced. No thread is used.

        Raises
        ------
        asyncio.CancelledError
            The awaiting task was cancelled.
        Exception
            As for `submit`, and whatever the call raised.
        """
        from .integrations.aio import outcome_of

        return await outcome_of(self.submit(fn, *args, **kwargs))

    def amap(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
        on_error: str = "raise",
    ) -> AsyncIterator[T]:
        """Like `map`, for ``async for`` in asyncio.

        Leaving the loop early, by an exception or because the awaiting task is cancelled, cancels
        what is left, what is running included. For a time limit use `asyncio.timeout`.
        """
        from .integrations.aio import results_of_map

        options = map_options(fn, None, chunksize, buffersize, ordered, on_error)
        return results_of_map(self._submit_for_map(), fn, iterables, options)

    def options(self, **options: Unpack[GivenOptions]) -> ExecutorView:
        """Return a view of this executor whose tasks are treated differently.

        The view has the same methods and shares the workers. A view of a view adds to its options.

        Parameters
        ----------
        timeout : float, optional
            Seconds that a task may run, counted from its start in a worker. Then its worker is
            ended and its future gets `TaskTimeoutError`.
        retries : int
            How many more times a task is tried after a failure that `retry_on` names.
        retry_on : collection of {"crash", "timeout", "memory"} and exception types
            Which failures are worth another attempt. Default: the three, and no exception.
        backoff : float or sequence of float
            Seconds to wait before a retry; a number is doubled for each further one.
        priority : int
            Tasks with a higher one go first, equal ones in the order of their submission.
            Default: 0.
        name : str, optional
            What reports call the task. Default: the name of its function.
        kill_grace : float
            Seconds between asking a worker to end and killing it. Default: 1.

        Returns
        -------
        ExecutorView
            See `TaskOptions` for the details of each option.

        Raises
        ------
        TypeError, ValueError
            An option is not what it must be, or there is none of that name.
        """
        return ExecutorView(self, task_options(options, self._task_options))

    def shutdown(
        self, wait: bool = True, kill_workers: bool = False, *, cancel_futures: bool = False
    ) -> None:
        """Take no more calls, and let the workers go once what was submitted is done.

        Parameters
        ----------
        wait : bool
            Return only when every future is settled and every worker gone.
        kill_workers : bool
            End the workers now; futures that are not done get `ShutdownExecutorError`.
        cancel_futures : bool
            Cancel what no worker has begun.
        """
        pool = self._pool
        pool.shutdown(cancel=cancel_futures, kill=kill_workers)
        if wait:
            pool.wait_closed()

    def terminate_workers(self) -> None:
        """Ask the workers to end (SIGTERM), and end those that have not done so after a second.

        Futures that are not done get `ShutdownExecutorError` at once.
        """
        self._pool.shutdown(kill=True, polite=True)
        self._pool.wait_closed()

    def kill_workers(self) -> None:
        """End the workers now; futures that are not done get `ShutdownExecutorError`."""
        self.shutdown(wait=True, kill_workers=True)

    def stats(self) -> Stats:
        """Return figures about the pool: what it has done, what it is doing.

        Calls, restarts by cause, bytes, how busy the workers are, and what each of them is
        running. Works in every state of the pool, and starts nothing.

        Returns
        -------
        Stats
            The figures, see `loky.observe.stats.Stats`.
        """
        from .observe.stats import stats

        return stats(self._pool)

    def dump_stacks(self, timeout: float = 1.0) -> StackDump:
        """Return the Python stacks of all workers now, busy in compiled code included.

        Parameters
        ----------
        timeout : float
            Seconds to wait at most for the workers' answers. They come within milliseconds,
            except from processes that are stopped.

        Returns
        -------
        StackDump
            A list with a `WorkerStacks` for each worker; printed, it is a report. A worker that
            did not answer has a `problem` that says so. Empty if there are no workers.

        Raises
        ------
        TypeError, ValueError
            `timeout` is not a number of seconds.
        """
        from .observe.stacks import dump_stacks

        return dump_stacks(self._pool, check_seconds("timeout", timeout))

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        # After a Ctrl-C nobody wants to wait for what is still running. One that a task has raised
        # is an error like others.
        interrupted = isinstance(value, KeyboardInterrupt) and not _came_from_a_task(value)
        self.shutdown(wait=True, kill_workers=interrupted)

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{type(self).__name__} objects cannot be sent to a worker: they belong to this "
            "process. An object that has one and is sent along, `self` of a method for instance, "
            "has to leave it out (`__getstate__`); a worker may make its own with "
            "get_reusable_executor()"
        )

    def _submit_for_map(self) -> Submit:
        options = self._task_options
        retries = options is not None and options.retries > 0 and bool(options.exceptions)
        return Submit(self._submit_many, self._pool.will_wait, retries)

    def _submit_many(
        self,
        calls: list[tuple[Callable[..., Any], tuple[Any, ...]]],
        waiting: deque[Future[Any]],
    ) -> None:
        if self._pool.refusing:
            self._refuse()
        ids = self._pool.ids
        tasks = [Task(next(ids), fn, args, {}, Future()) for fn, args in calls]
        if self._task_options is not None:
            for task in tasks:
                task.control = Control(self._task_options)
        # Noted first: whatever an interrupt leaves submitted, the caller can cancel.
        waiting.extend([task.future for task in tasks])
        self._pool.submit_many(tasks)

    def _refuse(self) -> None:
        """Say why nothing can be submitted any more."""
        from .errors import ShutdownExecutorError
        from .pool import lifetime
        from .pool.deaths import error_for

        pool = self._pool
        if pool.broken is not None:
            raise error_for(pool.broken)
        pool.refuse_elsewhere()
        if lifetime.interpreter_is_leaving:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        raise ShutdownExecutorError("cannot schedule new futures after shutdown")


class ExecutorView(Submitting):
    """An executor's workers with other options for the tasks; made by `options`."""

    def __init__(self, executor: Submitting, options: TaskOptions | None) -> None:
        self._executor = executor  # collected, it would shut the pool down
        self._pool = executor._pool
        self._task_options = options

    def __repr__(self) -> str:
        return f"<view of {self._executor!r} with {self._task_options}>"


def _came_from_a_task(error: BaseException) -> bool:
    errors = sys.modules.get(f"{__package__}.errors")  # not there: nothing has gone wrong so far
    # Another thread may be importing it at this moment.
    kind = getattr(errors, "RemoteTraceback", None)
    return kind is not None and isinstance(error.__cause__, kind)
