"""From calls to bytes, and from replies and verdicts to settled futures.

Rule 1: everything here may run user code (reducers, unpickling, `__str__`, callbacks), so the
supervisor calls it with the baton laid down. It touches one task and its future, nothing else.

Rule 2: whatever goes wrong here settles that one future, with an exception that names the task,
what happened, and what can be done about it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from .. import memory
from ..chunks import ForEach
from ..observe.arguments import sketch, type_name
from ..task_options import MEMORY, TIMEOUT
from ..wire import pickling, protocol
from ..wire.channel import Channel, make_payload
from .launcher import ExitInfo
from .model import BREAKS, Broken, Cancelled, Lost, Refused, Task


class Excess:
    """Too much memory: which option says so, what it allows, and what the worker used, in bytes."""

    __slots__ = ("limit", "option", "used")

    def __init__(self, option: str, limit: int, used: int) -> None:
        self.option = option
        self.limit = limit
        self.used = used

    def __str__(self) -> str:
        used, limit = memory.readable(self.used), memory.readable(self.limit)
        if self.option == "memory_limit":
            return (
                f"memory was about to run out (memory_limit: {limit} for all workers together), "
                f"and of the tasks that used much it had begun last; its worker used {used}"
            )
        return f"its worker used {used} of memory, more than {self.option} allows ({limit})"


class Death:
    """How a worker ended, as far as that can be known.

    Attributes
    ----------
    exit : ExitInfo or OSError
        Its exit status, or the error that kept it from starting.
    fault : str
        What its fault handler wrote.
    stacks : str
        Its stacks, if it was asked for them before it was ended.
    stderr : str
        The end of what it wrote to standard error.
    out_of_memory : bool or None
        Whether the kernel ended it for want of memory; ``None``: unknown.
    excess : Excess or None
        Which limit of memory it was ended for.
    cut_off : bool
        Whether it was ended because it had closed its channel.
    task : str or None
        Name of the task that it was running, if any.
    """

    def __init__(
        self,
        exit: ExitInfo | OSError,
        fault: str = "",
        stacks: str = "",
        *,
        stderr: str = "",
        out_of_memory: bool | None = None,
        excess: Excess | None = None,
        cut_off: bool = False,
        task: str | None = None,
    ) -> None:
        self.exit = exit
        self.fault = fault
        self.stacks = stacks
        self.stderr = stderr
        self.out_of_memory = out_of_memory
        self.excess = excess
        self.cut_off = cut_off
        self.task = task


class InitFailed:
    """An initializer raised: the payload of the worker's report."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload


def name_of(fn: Any) -> str:
    """A task's name for people: the function's qualified name, with its module.

    Never fails. What wraps a function is recognized by its type: some objects, mocks for instance,
    have a `func` as they have every attribute, and so has that one, without an end.
    """
    name = _text_in(fn, "__qualname__")
    for _ in range(_MOST_WRAPPERS):
        if name is not None or not issubclass(type(fn), _WRAPPERS):
            break
        fn = fn.func
        name = _text_in(fn, "__qualname__")
    if name is None:
        return type_name(type(fn))
    module = _text_in(fn, "__module__")
    return name if module in (None, "__main__", "builtins") else f"{module}.{name}"


_WRAPPERS = (partial, ForEach)
_MOST_WRAPPERS = 8


def _text_in(value: Any, attribute: str) -> str | None:
    try:
        text = getattr(value, attribute, None)
    except Exception:  # the user's objects may raise anything
        return None
    return text if type(text) is str else None


def name_of_task(task: Task) -> str:
    """A task's name for people: the one it was given, or its function's."""
    control = task.control
    return (control.options.name if control is not None else None) or name_of(task.fn)


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


def fail(task: Task, error: BaseException) -> None:
    """Settle with an error that arose in the parent."""
    task.future._settle(None, with_history(error, task))


def may_retry(task: Task) -> bool:
    """Whether an exception that the task raised might be worth another attempt."""
    control = task.control
    if control is None or len(control.attempts) >= control.options.retries:
        return False
    return bool(control.options.exceptions)


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
        attempt if isinstance(attempt, BaseException) else _terminated(attempt, task)
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


def error_for(verdict: Any, task: Task | None = None) -> BaseException:
    """The exception that tells a user of a verdict, on `task` if it is on a single one."""
    from ..errors import BrokenProcessPool, RemoteTraceback, ShutdownExecutorError

    if isinstance(verdict, Refused):
        return ShutdownExecutorError(
            "The executor was shut down with its workers killed before the task could complete."
        )
    if isinstance(verdict, Lost):
        return _terminated(verdict, task)
    assert isinstance(verdict, Broken)
    cause = verdict.cause
    if isinstance(cause, Lost):
        error = _terminated(cause)
        if verdict.reason == BREAKS:
            text = f"{error.args[0]}\nThat broke the pool, for {BREAKS}. Make a new executor."
        else:
            text = f"{verdict.reason}. {error.args[0]}"
        error.args = (text,)
        return error
    broken = BrokenProcessPool(f"The process pool is broken: {verdict.reason}.")
    if isinstance(cause, InitFailed):
        from ..errors import TerminatedWorkerError

        text, _, _ = protocol.unpack_error(cause.payload)
        broken = TerminatedWorkerError(
            f"The process pool is broken: {verdict.reason}. The initializer said:\n{text}"
        )
        broken.__cause__ = RemoteTraceback(text)
    elif isinstance(cause, BaseException):
        broken.__cause__ = cause
    return broken


def _terminated(lost: Lost, task: Task | None = None) -> BaseException:
    from ..errors import TaskMemoryError, TaskTimeoutError, TerminatedWorkerError
    from ..observe.postmortem import examine

    death: Death = lost.exit
    name = death.task if task is None else name_of_task(task)
    if isinstance(death.exit, OSError):
        return TerminatedWorkerError(f"A worker process could not be started: {death.exit}")
    exit = death.exit
    kind = TerminatedWorkerError
    lines = []
    details: dict[str, int] = {}
    if lost.cause == TIMEOUT and task is not None and task.control is not None:
        kind = TaskTimeoutError
        lines.append(
            f"The task {name} had been running for {lost.seconds:.3g} s, longer than its timeout "
            f"allows ({task.control.options.timeout:g} s). Its worker (pid {exit.pid}) was ended "
            f"({exit}) and replaced."
        )
        if death.stacks:
            lines.append(f"This is where it was:\n{death.stacks.rstrip()}")
    elif lost.cause == MEMORY and death.excess is not None:
        kind = TaskMemoryError
        details = {"peak": death.excess.used, "limit": death.excess.limit}
        lines.append(
            f"The task {name} was ended after {lost.seconds:.3g} s: {death.excess}. The worker "
            f"(pid {exit.pid}) was killed and replaced."
        )
    else:
        lines.append(
            "A worker process managed by the executor was unexpectedly terminated"
            + (f" while it ran the task {name}." if name is not None else ".")
        )
        lines.append(
            f"The worker had pid {exit.pid}; the exit codes of the workers are {{{exit}}}"
            + (f"; the task had been running for {lost.seconds:.3g} s." if name else ".")
        )
        if death.cut_off:
            lines.append(
                "The task, or what runs in its process, had closed the descriptors of others, "
                "os.closerange for instance: the worker could not be heard any more, and was ended."
            )
        else:
            lines.append(_likely_cause(exit, death.out_of_memory, name is not None))
    if death.fault:
        lines.append(f"Its fault handler wrote:\n{death.fault.rstrip()}")
    if death.stderr.strip():
        lines.append(f"The end of its standard error:\n{death.stderr.strip()}")
    return kind(
        "\n".join(lines),
        task=name,
        pid=exit.pid,
        exitcode=exit.code,
        seconds=lost.seconds if name is not None else None,
        fault=death.fault,
        stack=death.stacks,
        post_mortem=examine(death, name, lost.seconds),
        **details,
    )


def _likely_cause(exit: ExitInfo, out_of_memory: bool | None, in_task: bool) -> str:
    name = str(exit).partition("(")[0]
    if name == "SIGKILL" and out_of_memory:
        return (
            "The kernel's out-of-memory killer ended it, as the kernel's counters show: memory ran "
            "out, of the machine or of the control group. Use fewer workers or less memory per "
            "task; memory_limit='80%' makes the pool wait, or end one task, before that happens."
        )
    if name == "SIGKILL" and out_of_memory is False:
        return (
            "SIGKILL comes from outside, and the kernel's counters show that it was not the "
            "out-of-memory killer: somebody killed the process."
        )
    if name == "SIGKILL":
        return (
            "SIGKILL comes from outside: most often the system ran out of memory (see the kernel's "
            "log), or somebody killed the process. Use fewer workers or less memory per task."
        )
    if name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE"):
        return "That is a crash in compiled code: look at the extension modules that the task uses."
    if name == "EXIT":
        where = "the task" if in_task else "a task or an initializer"
        return f"The process left by itself: os._exit in {where}, or in a library that it uses."
    if name == "UNKNOWN":
        return (
            "Its exit status was taken by somebody else: SIGCHLD is ignored, or other code in this "
            "process waits for any child."
        )
    return "Somebody sent the process that signal, or the system ended it."
