"""From calls to bytes, and from replies and verdicts to settled futures.

Rule 1: everything here may run user code (reducers, unpickling, `__str__`, callbacks), so the
supervisor calls it with the baton laid down. It touches one task and its future, nothing else.

Rule 2: whatever goes wrong here settles that one future, with an exception that names the task,
what happened, and what can be done about it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..observe.arguments import sketch
from ..wire import pickling, protocol
from ..wire.channel import Channel, make_payload
from .deaths import error_for, terminated
from .model import Cancelled, Lost, Task
from .names import name_of_task

T = TypeVar("T")


# ---------------------------------------------------------------------- to bytes


def encode_plain(task: Task) -> bool:
    """Pickle the task if that runs no code of the user's; whether it did."""
    try:
        if not (pickling.is_importable(task.fn) and pickling.is_plain(task.args)):
            return False
        if task.kwargs and not pickling.is_plain(task.kwargs):
            return False
        data = pickling.dumps_plain((task.fn, task.args, task.kwargs))
    except Exception:
        # Its module was reloaded, say, or another thread changes a set meanwhile: let cloudpickle
        # decide, whose failure is that of this task.
        return False
    if len(data) > protocol.INLINE_LIMIT:
        return False  # writing a large one takes long: not while others wait for the watch
    task.message = make_payload(data)
    return True


def encode(task: Task, reducers: Any) -> BaseException | None:
    """Pickle the task; the error for its future if that is impossible."""
    try:
        data = pickling.dumps_any((task.fn, task.args, task.kwargs), reducers)
        task.message = make_payload(data)
    except BaseException as error:
        return _unpicklable(task, error, reducers)
    if task.control is not None and task.control.options.retries:
        return None
    if len(data) > protocol.INLINE_LIMIT or not _has_plain_arguments(task):
        # A large one need not be held twice, and what is the user's is not for the leader to drop.
        task.sketch = sketch(task.args, task.kwargs)
        task.args = task.kwargs = None
    return None


def _has_plain_arguments(task: Task) -> bool:
    try:
        return pickling.is_plain(task.args) and pickling.is_plain(task.kwargs)
    except Exception:  # another thread changes a set meanwhile, say
        return False


def _unpicklable(task: Task, error: BaseException, reducers: Any) -> BaseException:
    from ..errors import TaskPicklingError

    def dump(value: Any) -> bytes:
        return pickling.dumps_any(value, reducers)

    where = ""
    try:
        parts = [("function", task.fn)]
        parts += [(f"argument {i}", arg) for i, arg in enumerate(task.args)]
        parts += [(f"argument {key!r}", arg) for key, arg in task.kwargs.items()]
        for label, value in parts:
            if pickling.fails(value, dump):
                where = pickling.where_it_fails(value, label, dump)
                break
    except BaseException:  # the search is a courtesy
        where = ""
    failure = TaskPicklingError(
        "Could not pickle the task to send it to the workers: "
        f"{name_of_task(task)}{', ' + where if where else ''}: "
        f"{type(error).__name__}: {error}"
    )
    failure.__cause__ = error
    return failure


def send_tracker(channel: Channel, which: int) -> None:
    """Give a worker the descriptor of this process's resource tracker."""
    from importlib import import_module

    try:
        channel.send_descriptor(import_module(protocol.TRACKERS[which]).getfd())
    except Exception:
        try:
            channel.send_descriptor(-1)
        except OSError:  # the worker has ended meanwhile, and nobody waits for an answer
            pass


# ---------------------------------------------------------------------- to futures


def _for_certain(tell: Callable[[Task, Any], T]) -> Callable[[Task, Any], T | None]:
    """Have the task settled if this fails: a mistake of ours is to leave nobody waiting."""

    def certainly(task: Task, what: Any) -> T | None:
        try:
            return tell(task, what)
        except Exception as error:
            if task.future.done():
                raise
            from ..errors import BrokenProcessPool

            failure = BrokenProcessPool(
                f"internal error, while it was found out how the task {name_of_task(task)} has "
                f"ended: {type(error).__name__}: {error}. Please report it."
            )
            failure.__cause__ = error
            task.future._settle(None, failure)
            return None

    return certainly


def fail(task: Task, error: BaseException) -> None:
    """Settle with an error that arose in the parent."""
    task.future._settle(None, with_history(error, task))


def may_retry(task: Task) -> bool:
    """Whether an exception that the task raised might be worth another attempt."""
    control = task.control
    if control is None or len(control.attempts) >= control.options.retries:
        return False
    return bool(control.options.exceptions)


@_for_certain
def retriable(task: Task, payload: Any) -> BaseException | None:
    """The exception that the task raised if it is to be tried again, else it is settled with it."""
    error = rebuild(name_of_task(task), protocol.ERROR, payload)
    if task.control is not None and isinstance(error, task.control.options.exceptions):
        return error
    fail(task, error)
    return None


def with_history(error: BaseException, task: Task) -> BaseException:
    """Let an exception tell of earlier attempts: in `attempts`, and in its printed form."""
    control = task.control
    if control is None or not control.attempts:
        return error
    from ..observe.postmortem import add_attempts

    attempts = tuple(
        attempt if isinstance(attempt, BaseException) else terminated(attempt, task)
        for attempt in control.attempts
    )
    told = [f"{type(attempt).__name__}: {_first_line(attempt)}" for attempt in attempts]
    lines = [
        f"Attempt {number} of {len(attempts) + 1}: {text}" for number, text in enumerate(told, 1)
    ]
    add_attempts(error, told)
    try:
        BaseException.__setattr__(error, "attempts", attempts)
    except AttributeError:  # a class with slots, of the user's
        pass
    history = "\n".join(lines)
    if type(error).__module__ == "loky.errors":  # its message is ours
        error.args = (f"{error}\n{history}",)
    elif hasattr(error, "add_note"):  # not on 3.10
        BaseException.__setattr__(error, "__notes__", [*getattr(error, "__notes__", ()), history])
    return error


def _first_line(error: BaseException) -> str:
    try:
        return str(error).partition("\n")[0]
    except BaseException:  # of an exception of the user's
        return ""


@_for_certain
def deliver(task: Task, reply: tuple[int, Any]) -> None:
    """Settle with what the worker replied."""
    kind, payload = reply
    if kind in (protocol.VALUE, protocol.PICKLE):
        try:
            result = pickling.loads(payload)
        except BaseException as error:
            fail(task, _unreadable(name_of_task(task), "result", error))
        else:
            task.future._settle(result, None)
        return
    fail(task, rebuild(name_of_task(task), kind, payload))


def _unreadable(name: str, what: str, error: BaseException, text: str = "") -> BaseException:
    from ..errors import RemoteTraceback, ResultUnpicklingError

    failure = ResultUnpicklingError(
        f"A result has failed to un-serialize: the {what} of task {name}: "
        f"{type(error).__name__}: {error}. The task itself was run; make sure that its {what} can "
        "be rebuilt from its pickle, in the parent process."
    )
    if not text:
        import traceback

        text = "".join(traceback.format_exception(error))
        failure.__context__ = error.with_traceback(None)  # for whoever wants more than its text
    failure.__cause__ = RemoteTraceback(text)
    return failure


def rebuild(name: str, kind: int, payload: Any) -> BaseException:
    """The exception that a worker reported about the task of that name."""
    from pickle import PicklingError

    from ..errors import RemoteTraceback, ResultUnpicklingError, TaskUnpicklingError

    text, summary, pickled = protocol.unpack_error(payload)
    where, kind_name, message, obstacle = pickling.loads(summary)
    error: BaseException
    if kind == protocol.UNREADABLE:
        error = TaskUnpicklingError(
            f"A task has failed to un-serialize: {name}: {kind_name}: {message}. Please ensure "
            "that its function and arguments can be unpickled in a worker (that modules can be "
            "imported there, for instance)."
        )
    elif kind == protocol.BAD_RESULT:
        error = PicklingError(
            f"Could not pickle the result of task {name}: {where}: {kind_name}: {message}"
        )
        try:
            original = pickling.loads(pickled) if pickled else None
        except BaseException:
            original = None
        if isinstance(original, BaseException) and not isinstance(original, PicklingError):
            # Callers expect the very error, TypeError say, that pickling raised.
            error = _with_note(original, str(error))
    elif not pickled:
        error = ResultUnpicklingError(
            f"Task {name} raised {kind_name}: {message}. The exception itself could not be sent: "
            f"{obstacle}. Give its class a `__reduce__` with which it can be pickled and rebuilt."
        )
    else:
        try:
            error = pickling.loads(pickled)
            if not isinstance(error, BaseException):
                raise TypeError(f"it was rebuilt as a {type(error).__name__}")
        except BaseException as problem:
            return _unreadable(name, f"exception {kind_name}", problem, text)
    # Not a plain assignment: the user's class may refuse to have attributes set.
    BaseException.__setattr__(error, "__cause__", RemoteTraceback(text))
    return error


def _with_note(error: BaseException, note: str) -> BaseException:
    """Add a line to an exception's message without changing its type."""
    if len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (note,)
    elif hasattr(error, "add_note"):
        error.add_note(note)
    return error


@_for_certain
def settle(task: Task, verdict: Any) -> None:
    """Settle with a verdict of the scheduler's."""
    if isinstance(verdict, Cancelled):
        task.future._settle(None, None, cancel=True)
        return
    error = error_for(verdict, task)
    if isinstance(verdict, Lost):
        from ..observe.postmortem import add_arguments

        add_arguments(error, task)
    fail(task, error)
