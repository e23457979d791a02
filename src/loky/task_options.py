"""Every option of a task: its meaning, its default, its validation. Once, here.

Rule 1: an option is checked at the call that sets it; the error says what was given and what is
accepted.

Rule 2: plain data only. The scheduler reads these records; nothing of the user's runs here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .checks import check_seconds, check_whole

# What can end a task's worker, by the names that `retry_on` takes.
CRASH, TIMEOUT, MEMORY = "crash", "timeout", "memory"
CAUSES = (CRASH, TIMEOUT, MEMORY)
# How long a worker that is told to end (SIGTERM) may take before it is killed, in seconds.
# Python's own reaction to SIGTERM is to end at once; only a handler of the user's needs the time.
DEFAULT_KILL_GRACE = 1.0
# Each further retry waits twice as long as the one before, up to this many seconds.
LONGEST_BACKOFF = 3600.0


class TaskOptions(NamedTuple):  # a dataclass would import `inspect`: 5 ms of every start
    """How a task is to be treated. Made and checked by `task_options`.

    Attributes
    ----------
    timeout : float or None
        Seconds that the task may run, counted from its start in a worker, each attempt anew.
        Then its worker is ended and the future gets `TaskTimeoutError`. ``None``: no limit.
    retries : int
        How many more times the task is tried after a failure that `retry_on` names.
    retry_on : tuple of {"crash", "timeout", "memory"} and exception types
        Which failures are worth another attempt: ``"crash"`` (its worker ended), ``"timeout"``,
        ``"memory"`` (it was ended for the memory it used), and exceptions of these types that the
        task raised.
    backoff : float or tuple of float
        Seconds to wait before a retry. A number: before the first one, twice as long before each
        further one (an hour at most). A tuple: before the first, second, ...; the last one holds
        for all further ones.
    priority : int
        Tasks with a higher one go first, equal ones in the order of their submission.
    name : str or None
        What reports call the task. ``None``: the name of its function.
    kill_grace : float
        Seconds between asking a worker to end (SIGTERM) and killing it (SIGKILL), where the task
        is stopped: by its `timeout` or by ``future.cancel(kill=True)``.
    """

    timeout: float | None = None
    retries: int = 0
    retry_on: tuple[Any, ...] = CAUSES
    backoff: float | tuple[float, ...] = 0.0
    priority: int = 0
    name: str | None = None
    kill_grace: float = DEFAULT_KILL_GRACE

    def delay(self, retry: int) -> float:
        """Seconds to wait before the given retry, of which the first is 1."""
        if isinstance(self.backoff, tuple):
            return self.backoff[min(retry, len(self.backoff)) - 1]
        return min(self.backoff * 2.0 ** min(retry - 1, 64), LONGEST_BACKOFF)

    @property
    def exceptions(self) -> tuple[type[BaseException], ...]:
        """The exception types of `retry_on`."""
        return tuple(cause for cause in self.retry_on if not isinstance(cause, str))


NO_OPTIONS = TaskOptions()

if TYPE_CHECKING:  # made when the module is imported, it would cost every start 0.2 ms
    from collections.abc import Collection, Sequence
    from typing import TypedDict

    class GivenOptions(TypedDict, total=False):
        """The same as keywords, as callers may give them: what editors and type checkers see."""

        timeout: float | None
        retries: int
        retry_on: str | type[BaseException] | Collection[str | type[BaseException]]
        backoff: float | Sequence[float]
        priority: int
        name: str | None
        kill_grace: float


def task_options(given: Mapping[str, Any], base: TaskOptions | None = None) -> TaskOptions | None:
    """Validate a task's options.

    Parameters
    ----------
    given : mapping of str to object
        Options by name; those that are left out are taken from `base`.
    base : TaskOptions, optional
        Default: the default of each option.

    Returns
    -------
    TaskOptions or None
        ``None`` if every option has its default: the pool then has nothing to look after.

    Raises
    ------
    TypeError, ValueError
        An option is not what it must be, or there is none of that name.
    """
    unknown = sorted(set(given) - set(TaskOptions._fields))
    if unknown:
        raise TypeError(
            f"unknown task option {', '.join(map(repr, unknown))}; "
            f"there are {', '.join(TaskOptions._fields)}"
        )
    checked: dict[str, Any] = {name: _CHECKS[name](value) for name, value in given.items()}
    options = (base or NO_OPTIONS)._replace(**checked)
    return None if options == NO_OPTIONS else options


def pool_task_options(given: Any) -> TaskOptions | None:
    """Validate what a pool was given as the options of all its tasks.

    Raises
    ------
    TypeError, ValueError
        It is neither a mapping nor a `TaskOptions`, or not what it must be.
    """
    if given is None:
        return None
    if isinstance(given, TaskOptions):
        given = given._asdict()
    if not isinstance(given, Mapping):
        raise TypeError(f"task_options must be a mapping of options by name, got {given!r}")
    return task_options(given)


# ---------------------------------------------------------------------- validation


def _timeout(value: Any) -> float | None:
    return None if value is None else check_seconds("timeout", value, " or None", positive=True)


def _retries(value: Any) -> int:
    return check_whole("retries", value, least=0)


def _retry_on(value: Any) -> tuple[Any, ...]:
    causes = (value,) if isinstance(value, (str, type)) else value
    accepted = f"{', '.join(map(repr, CAUSES))} and exception types"
    try:
        causes = tuple(causes)
    except TypeError:
        raise TypeError(f"retry_on must be a collection of {accepted}, got {value!r}") from None
    for cause in causes:
        if not (cause in CAUSES or (isinstance(cause, type) and issubclass(cause, BaseException))):
            raise ValueError(f"retry_on may name {accepted}; got {cause!r}")
    return causes


def _backoff(value: Any) -> float | tuple[float, ...]:
    if isinstance(value, (list, tuple)):
        if not value:
            raise ValueError("backoff must name at least one number of seconds, got an empty one")
        return tuple(check_seconds("backoff", seconds) for seconds in value)
    return check_seconds("backoff", value)


def _priority(value: Any) -> int:
    return check_whole("priority", value)


def _name(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"name must be a str or None, got {value!r}")
    return value


def _kill_grace(value: Any) -> float:
    return check_seconds("kill_grace", value)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "timeout": _timeout,
    "retries": _retries,
    "retry_on": _retry_on,
    "backoff": _backoff,
    "priority": _priority,
    "name": _name,
    "kill_grace": _kill_grace,
}
