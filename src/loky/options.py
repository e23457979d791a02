"""Every option of a pool: its meaning, its default, its validation. Once, here.

Rule 1: an option is checked at the call that sets it; the error says what was given and what is
accepted.

Rule 2: plain data only: no processes, no threads.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from . import memory
from .checks import check_seconds, check_whole
from .initializers import _prepare_initializer
from .wire import inheritance, pickling

CRASH_POLICIES = ("isolate", "break")
# Contexts whose workers import the parent's main module, as multiprocessing's own methods do.
_IMPORTS_MAIN = ("spawn", "forkserver", "loky_init_main")
START_METHODS = ("loky", *_IMPORTS_MAIN)
# What workers can send to the parent, see `observe.relay`.
RELAYED = ("stdout", "stderr", "logging", "warnings")


class PoolOptions(NamedTuple):  # a dataclass would import `inspect`: 5 ms of every start
    """Validated options of a pool; see `ProcessPoolExecutor` for their meaning."""

    max_workers: int
    timeout: float | None
    start_method: str
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    env: dict[str, str] | None
    job_reducers: dict[type, Callable[[Any], Any]] | None
    result_reducers: dict[type, Callable[[Any], Any]] | None
    max_tasks_per_child: int | None
    crash_policy: str
    max_memory_per_worker: int | None
    recycle_memory_per_worker: int | None
    memory_limit: int | None
    relay: tuple[str, ...]

    def pickled_initializer(self, descriptors: inheritance.Collector) -> bytes | None:
        """What a worker needs to initialize itself, ``None`` for nothing.

        Parameters
        ----------
        descriptors : Collector
            Gets those that the initializer's arguments need.

        Raises
        ------
        PicklingError
            The initializer, its arguments or the reducers cannot be pickled.
        """
        main = _main_module() if self.start_method in _IMPORTS_MAIN else None
        reducers = self.result_reducers
        if self.initializer is None and main is None and not reducers:
            return None
        call = None
        if self.initializer is not None:
            try:
                with inheritance.collecting(descriptors):
                    call = self._pickled_call()
            except BaseException:
                descriptors.close()
                raise
        return pickling.dumps_plain(
            (main, pickling.dumps_any(reducers) if reducers else None, call)
        )

    def _pickled_call(self) -> bytes:
        def dump(value: Any) -> bytes:
            return pickling.dumps_any(value, self.job_reducers)

        try:
            return dump((self.initializer, self.initargs))
        except Exception as error:
            where = "initializer"
            if not pickling.fails(self.initializer, dump):
                where = pickling.where_it_fails(self.initargs, "initargs", dump)
            raise pickling.PicklingError(
                f"Could not pickle the initializer to send it to the workers: {where}: "
                f"{type(error).__name__}: {error}"
            ) from error


def pool_options(
    *,
    max_workers: int | None = None,
    timeout: float | None = None,
    context: Any = None,
    mp_context: Any = None,
    initializer: Callable[..., object] | None = None,
    initargs: Any = (),
    env: Mapping[str, Any] | None = None,
    job_reducers: Mapping[type, Callable[[Any], Any]] | None = None,
    result_reducers: Mapping[type, Callable[[Any], Any]] | None = None,
    max_tasks_per_child: int | None = None,
    crash_policy: str | None = None,
    max_memory_per_worker: int | str | None = None,
    recycle_memory_per_worker: int | str | None = None,
    memory_limit: int | str | None = None,
    relay: str | Iterable[str] | None = None,
) -> PoolOptions:
    """Validate a pool's options.

    Raises
    ------
    TypeError, ValueError
        One of them is not what it must be.
    """
    initializer, initargs = _prepare_initializer(initializer, _initargs(initargs))
    reducers = _reducers("job_reducers", job_reducers)
    hard = _memory("max_memory_per_worker", max_memory_per_worker)
    soft = _memory("recycle_memory_per_worker", recycle_memory_per_worker)
    if soft is not None and hard is not None and soft >= hard:
        raise ValueError(
            f"recycle_memory_per_worker ({recycle_memory_per_worker!r}) must be less than "
            f"max_memory_per_worker ({max_memory_per_worker!r}): a worker is replaced after a task "
            "that leaves it above the first, and killed as soon as it is above the second"
        )
    return PoolOptions(
        max_workers=_max_workers(max_workers),
        timeout=_timeout(timeout),
        start_method=check_context(context, mp_context),
        initializer=initializer,
        initargs=initargs,
        env=_env(env),
        job_reducers=reducers,
        result_reducers=(
            reducers if result_reducers is None else _reducers("result_reducers", result_reducers)
        ),
        max_tasks_per_child=_max_tasks(max_tasks_per_child),
        crash_policy=_crash_policy(crash_policy),
        max_memory_per_worker=hard,
        recycle_memory_per_worker=soft,
        memory_limit=_memory("memory_limit", memory_limit, percent=True),
        relay=check_relay(relay),
    )


def check_max_workers(value: Any) -> int:
    """A number of workers that was given explicitly.

    Raises
    ------
    TypeError, ValueError
        It is not a whole number above 0.
    """
    # Word for word what callers compare with; what was given can be seen in the call.
    text = "max_workers must be greater than 0"
    return check_whole("max_workers", value, least=1, too_small=text)


def check_context(context: Any, mp_context: Any) -> str:
    """The start method that these two names of one option mean.

    Raises
    ------
    TypeError, ValueError
        It is none that there is, or they mean two.
    """
    if context is not None and mp_context is not None and context != mp_context:
        raise TypeError("give either 'context' or its other name 'mp_context', not both")
    return _start_method(mp_context if context is None else context)


def check_relay(value: Any) -> tuple[str, ...]:
    """What is to be relayed, in the order of `RELAYED`; empty for nothing.

    Raises
    ------
    TypeError, ValueError
        It is neither ``None`` nor made of these names.
    """
    accepted = f"accepted are {', '.join(map(repr, RELAYED))}, in a list or separated by commas"
    if value is None:
        return ()
    try:
        names = value.split(",") if isinstance(value, str) else list(value)
    except TypeError:
        raise TypeError(f"relay must be made of names, got {value!r}; {accepted}") from None
    chosen = set()
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"relay must be made of names, got {name!r} in {value!r}; {accepted}")
        if name.strip():
            chosen.add(name.strip())
    if not chosen <= set(RELAYED):
        wrong = ", ".join(map(repr, sorted(chosen - set(RELAYED))))
        raise ValueError(f"relay knows no {wrong}; {accepted}")
    return tuple(name for name in RELAYED if name in chosen)


def _max_workers(value: Any) -> int:
    if value is None:
        from .cpu import cpu_count

        return cpu_count()
    return check_max_workers(value)


def _timeout(value: Any) -> float | None:
    return None if value is None else check_seconds("timeout", value, " or None")


def _max_tasks(value: Any) -> int | None:
    if value is None:
        return None
    return check_whole("max_tasks_per_child", value, least=1, or_none=" or None")


def _initargs(value: Any) -> tuple[Any, ...]:
    try:
        return tuple(value)
    except TypeError:
        raise TypeError(f"initargs must be a sequence of arguments, got {value!r}") from None


def _start_method(context: Any) -> str:
    if context is None:
        # Whoever has set a default for executors has imported that module to do so.
        backend = sys.modules.get("loky.backend.context")
        context = (backend and backend.get_start_method()) or "loky"
    method = context if isinstance(context, str) else None
    if method is None:
        getter = getattr(context, "get_start_method", None)
        method = getter() if callable(getter) else None
    if method == "fork":
        if method is context:  # by name: callers are used to a warning from making the context
            warnings.warn("The start method 'fork' must not be used with loky.", stacklevel=5)
        raise ValueError(
            "the start method 'fork' is not supported: locks and threads of libraries do not "
            f"survive it. Accepted: {', '.join(map(repr, START_METHODS))}"
        )
    if method not in START_METHODS:
        raise ValueError(
            f"context must be one of {', '.join(map(repr, START_METHODS))}, or a context object "
            f"with one of these start methods; got {context!r}"
        )
    return str(method)


def _env(env: Any) -> dict[str, str] | None:
    if env is None:
        return None
    if not isinstance(env, Mapping):
        raise TypeError(f"env must be a mapping of names to values, got {env!r}")
    result = {}
    for name, value in env.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise ValueError(f"env has a name that no environment can hold: {name!r}")
        result[name] = _env_value(name, value)
        if "\0" in result[name]:
            raise ValueError(f"env[{name!r}] is a value that no environment can hold: {value!r}")
    return result


def _env_value(name: str, value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) or hasattr(value, "__index__") or hasattr(value, "__float__"):
        return str(value)
    raise TypeError(
        f"env[{name!r}] must be a str, a number or a path, got {value!r}; what env leaves out, "
        "workers have from this process"
    )


def _reducers(option: str, reducers: Any) -> dict[type, Callable[[Any], Any]] | None:
    if not reducers:
        return None
    if not isinstance(reducers, Mapping):
        raise TypeError(f"{option} must map types to reducers, got {reducers!r}")
    for kind, reducer in reducers.items():
        if not isinstance(kind, type) or not callable(reducer):
            raise TypeError(f"{option} must map types to callables, got {kind!r}: {reducer!r}")
    return dict(reducers)


def _crash_policy(policy: Any) -> str:
    name = "crash_policy"
    if policy is None:
        name = "the environment variable LOKY_CRASH_POLICY"
        policy = os.environ.get("LOKY_CRASH_POLICY") or "isolate"
    if policy not in CRASH_POLICIES:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, CRASH_POLICIES))}, got {policy!r}"
        )
    return str(policy)


_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def _memory(option: str, value: Any, *, percent: bool = False) -> int | None:
    """A number of bytes."""
    if value is None:
        return None
    accepted = "a number of bytes, or a text like '2GB', '1.5GiB' or '512MB'"
    if percent:
        accepted += " or '80%'"
    if isinstance(value, str):
        in_percent = percent and value.strip().endswith("%")
        size = _share(option, value) if in_percent else _scaled(value)
        if size is None:
            raise ValueError(f"{option} must be {accepted}; got {value!r}")
    elif isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{option} must be {accepted}; got {value!r}")
    else:
        size = int(value.__index__())
    if size <= 0:
        raise ValueError(f"{option} must be above 0 bytes; got {value!r}")
    memory.check_measurable(option)
    return size


def _scaled(text: str) -> int | None:
    """The bytes that a text like '1.5 GiB' means; None if it means nothing."""
    number = text.strip()
    unit = number.lstrip("+-.0123456789")
    try:
        return int(float(number.removesuffix(unit)) * _UNITS[unit.strip().upper()])
    except (KeyError, ValueError):
        return None


def _share(option: str, text: str) -> int | None:
    """The bytes of a text like '80%' of all memory; None if it means nothing."""
    try:
        part = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        return None
    if not 0 < part <= 1:
        return None
    memory.check_measurable(option)
    found = memory.total_and_available()
    if found is None:
        raise ValueError(
            f"{option} in per cent: this system does not say how much memory it has; give a "
            "number of bytes"
        )
    return int(found[0] * part)


def _main_module() -> dict[str, str] | None:
    """How a worker can import this process's main module, for `multiprocessing.spawn.prepare`."""
    main: Any = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return {"init_main_from_name": spec.name}
    path = getattr(main, "__file__", None)
    return None if path is None else {"init_main_from_path": os.path.abspath(path)}
