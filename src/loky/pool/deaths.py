"""What the end of a worker, or of the pool, means for a user: an exception that says all.

Rule: each names the task where there is one, the worker, what is known of its end, the likely cause
and a remedy. What is known is gathered elsewhere (`Death`); here it is put into words.

What does not belong here: whom it is told to, see `outcome`.
"""

from __future__ import annotations

from typing import Any

from .. import memory
from ..task_options import MEMORY, TIMEOUT
from ..wire import protocol
from .launcher import ExitInfo
from .model import BREAKS, Broken, Lost, Refused, Task
from .names import name_of_task


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


def error_for(verdict: Any, task: Task | None = None) -> BaseException:
    """The exception that tells a user of a verdict, on `task` if it is on a single one."""
    from ..errors import BrokenProcessPool, RemoteTraceback, ShutdownExecutorError

    if isinstance(verdict, Refused):
        return ShutdownExecutorError(
            "The executor was shut down with its workers killed before the task could complete."
        )
    if isinstance(verdict, Lost):
        return terminated(verdict, task)
    assert isinstance(verdict, Broken)
    cause = verdict.cause
    if isinstance(cause, Lost):
        error = terminated(cause)
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


def terminated(lost: Lost, task: Task | None = None) -> BaseException:
    """The exception about a worker's end; on `task` if that is what the worker was running."""
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
