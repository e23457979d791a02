"""get_reusable_executor: one executor for the whole process, resized and renewed as asked.

What happens when a second caller asks for something else is told where the function is.

All threads share the executor. In the child of a fork there is none until it asks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from .options import check_context, check_max_workers, check_relay
from .process_executor import ProcessPoolExecutor
from .task_options import TaskOptions, pool_task_options

__all__ = ["get_reusable_executor"]

# What is compared to decide whether an executor fits; callers may leave options out.
_DEFAULTS: dict[str, Any] = {
    "job_reducers": None,
    "result_reducers": None,
    "initializer": None,
    "initargs": (),
    "env": None,
    "mp_context": None,
    "max_tasks_per_child": None,
    "crash_policy": None,
    "max_memory_per_worker": None,
    "recycle_memory_per_worker": None,
    "memory_limit": None,
    "task_options": None,
    "relay": None,
}
_executor_lock = threading.RLock()
_executor: _ReusablePoolExecutor | None = None
_executor_kwargs: dict[str, Any] | None = None
_next_executor_id = 0


def get_reusable_executor(
    max_workers: int | None = None,
    context: Any = None,
    timeout: float | None = 10,
    kill_workers: bool = False,
    reuse: bool | Literal["auto"] = "auto",
    job_reducers: Mapping[type, Callable[[Any], Any]] | None = None,
    result_reducers: Mapping[type, Callable[[Any], Any]] | None = None,
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
) -> _ReusablePoolExecutor:
    """Return the process's executor: the one that is there if it fits, else a new one.

    What happens when a second caller asks for something else, precisely:

    - *another number of workers*: the same executor is resized. Growing starts workers at once;
      shrinking lets idle workers go at once and busy ones when they have finished what they run. No
      task is lost, none is waited for;
    - *other arguments*: a new executor takes the place of the old one. The old one is not shut
      down under the feet of those who still hold it: it completes what it was given, accepts more,
      and its workers leave as soon as they are idle. With ``kill_workers=True`` it is shut down,
      and what it had to do gets `ShutdownExecutorError`;
    - *the old one is broken or was shut down*: a new one takes its place.

    Parameters
    ----------
    max_workers : int, optional
        How many workers. Default: with ``reuse=True`` as many as there are, else
        `loky.cpu_count()`.
    timeout : float, optional
        Seconds after which a worker without work leaves, 10 by default; ``None``: never.
    kill_workers : bool
        If another executor has to be made: end the old one's workers now instead of letting
        them complete their work.
    reuse : {"auto", True, False}
        ``"auto"``: reuse the executor if it was made with equal arguments, apart from
        `max_workers`. A lambda or a closure that is made anew for each call equals none before it,
        nor does an array: give the same object, or each call gets workers of its own.
        ``True``: whatever its arguments; ``False``: make a new one.
    context, mp_context, job_reducers, result_reducers, initializer, initargs, env
        See `loky.ProcessPoolExecutor`.
    max_tasks_per_child, crash_policy, task_options, relay
        See `loky.ProcessPoolExecutor`.
    max_memory_per_worker, recycle_memory_per_worker, memory_limit
        See `loky.ProcessPoolExecutor`.

    Returns
    -------
    executor
        A `ProcessPoolExecutor` with an `executor_id`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be.
    """
    executor, _ = _ReusablePoolExecutor.get_reusable_executor(
        max_workers=max_workers,
        context=context,
        timeout=timeout,
        kill_workers=kill_workers,
        reuse=reuse,
        job_reducers=job_reducers,
        result_reducers=result_reducers,
        initializer=initializer,
        initargs=initargs,
        env=env,
        mp_context=mp_context,
        max_tasks_per_child=max_tasks_per_child,
        crash_policy=crash_policy,
        max_memory_per_worker=max_memory_per_worker,
        recycle_memory_per_worker=recycle_memory_per_worker,
        memory_limit=memory_limit,
        task_options=pool_task_options(task_options),
        relay=check_relay(relay) or None,
    )
    return executor


class _ReusablePoolExecutor(ProcessPoolExecutor):
    """The executor that `get_reusable_executor` hands out."""

    # The order of the positional arguments is not the one of `ProcessPoolExecutor`.
    _POSITIONAL = (
        "max_workers",
        "context",
        "timeout",
        "executor_id",
        "job_reducers",
        "result_reducers",
        "initializer",
        "initargs",
        "env",
    )

    def __init__(self, *arguments: Any, executor_id: int = 0, **options: Any) -> None:
        lock = options.pop("submit_resize_lock", None)
        if arguments and hasattr(arguments[0], "acquire"):  # loky 3.6 had it as first argument
            lock, arguments = arguments[0], arguments[1:]
        if len(arguments) > len(self._POSITIONAL):
            raise TypeError(
                f"{type(self).__name__} takes at most {len(self._POSITIONAL)} positional "
                f"arguments, got {len(arguments)}"
            )
        named = dict(zip(self._POSITIONAL, arguments, strict=False))
        self.executor_id = named.pop("executor_id", executor_id)
        # joblib holds this while it shuts an executor down and removes what it has left behind.
        self._submit_resize_lock = lock or threading.RLock()
        super().__init__(**named, **options)

    @property
    def queue_size(self) -> int:
        """How many tasks might be on their way to workers at a time. Limits nothing here."""
        return 2 * max(_default_workers(), self._max_workers) + 1

    @classmethod
    def get_reusable_executor(
        cls,
        max_workers: int | None = None,
        context: Any = None,
        timeout: float | None = 10,
        kill_workers: bool = False,
        reuse: bool | Literal["auto"] = "auto",
        **options: Any,
    ) -> tuple[_ReusablePoolExecutor, bool]:
        """The executor, and whether it was there before."""
        global _executor, _executor_kwargs
        if not (isinstance(reuse, bool) or (isinstance(reuse, str) and reuse == "auto")):
            raise ValueError(f"reuse must be True, False or 'auto', got {reuse!r}")
        if max_workers is not None:
            max_workers = check_max_workers(max_workers)
        kwargs = {**_DEFAULTS, "context": context, "timeout": timeout, **_copied(options)}
        with _executor_lock:
            old = _executor
            # A subclass has promised its callers more than an executor that is not of it can keep.
            if old is not None and old._open and isinstance(old, cls) and _fits(old, reuse, kwargs):
                if max_workers is None:
                    max_workers = old._max_workers if reuse is True else _default_workers()
                old._resize(max_workers)
                return old, True
            if max_workers is None and reuse is True and old is not None:
                max_workers = old._max_workers
            new = cls(max_workers=max_workers, executor_id=_get_next_executor_id(), **kwargs)
            _executor, _executor_kwargs = new, kwargs
        if old is not None and old._open:
            if kill_workers:
                old.shutdown(wait=True, kill_workers=True)
            else:
                old._pool.let_idle_go()
        return new, False


def _copied(options: dict[str, Any]) -> dict[str, Any]:
    """Options that stay what they are when the caller changes what was given."""
    copied = dict(options)
    for name in ("env", "job_reducers", "result_reducers"):
        if isinstance(options.get(name), Mapping):  # else the executor will say what is wrong
            copied[name] = dict(options[name])
    if isinstance(options.get("initargs"), Iterable):
        copied["initargs"] = tuple(options["initargs"])
    return copied


def _fits(old: ProcessPoolExecutor, reuse: bool | str, kwargs: dict[str, Any]) -> bool:
    """Whether the executor that is there will do."""
    if reuse != "auto" or _executor_kwargs is None:
        return reuse is True
    if check_context(kwargs["context"], kwargs["mp_context"]) != old._options.start_method:
        return False
    # `context` has many ways to say the same, and has been compared.
    return _executor_kwargs.keys() == kwargs.keys() and all(
        _equal(value, _executor_kwargs[name])
        for name, value in kwargs.items()
        if name not in ("context", "mp_context")
    )


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are certainly equal. Not so arrays: they would be compared one by one."""
    try:
        return one is other or bool(one == other)
    except Exception:  # no answer, or one that is neither yes nor no
        return False


def _get_next_executor_id() -> int:
    global _next_executor_id
    with _executor_lock:
        number = _next_executor_id
        _next_executor_id += 1
        return number


def _default_workers() -> int:
    from .cpu import cpu_count

    return cpu_count()


def _forget_executor() -> None:
    """In the child of a fork: the executor is the parent's."""
    global _executor, _executor_kwargs, _executor_lock
    _executor_lock = threading.RLock()
    _executor = _executor_kwargs = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_executor)
