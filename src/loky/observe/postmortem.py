"""What is known of a worker's end: one record for programs, one report for people.

Guarantees:

- what is not known is ``None`` or empty, never a guess;
- nothing here is imported, let alone computed, before a worker has died.

What does not belong here: what follows from the end, and what exception tells of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..memory import readable
from .arguments import arguments_of


@dataclass(frozen=True)
class PostMortem:
    """Why and how a worker process ended, as far as that could be found out.

    Attributes
    ----------
    task : str or None
        Name of the task that it was running; ``None`` if it was running none.
    arguments : str or None
        The task's arguments, shortened; of those that are not plain values (numbers, strings,
        small lists of them, ...), the type only. ``None`` if they are not known.
    pid : int
        Its process id.
    exitcode : int or None
        Exit code, or minus the number of the signal that ended it; ``None``: somebody else took
        the exit status.
    signal : str or None
        Name of that signal; ``None`` if it left by itself, or that is not known.
    seconds : float or None
        How long the task had been running.
    cpu_seconds : float or None
        CPU time that the worker had used in its whole life, with that of the programs that it
        had run and waited for.
    peak_memory : int or None
        The most physical memory, in bytes, that the worker, or one of those programs, has had at
        any time. Known only if that was more than this process itself has had: the kernel
        hands the figure of a process on to the programs that it starts. Of one that was ended for
        its use of memory, that use, if nothing more is known.
    out_of_memory : bool or None
        Whether the kernel ended it because memory had run out, by the kernel's own counters;
        ``None`` if they cannot be read.
    stack : str
        The Python stacks of its threads at its end (from `faulthandler`), if they could be had.
    stderr : str
        The last lines of its standard error.
    attempts : tuple of str
        How earlier attempts of the task ended, one line each.
    """

    task: str | None
    arguments: str | None
    pid: int
    exitcode: int | None
    signal: str | None
    seconds: float | None
    cpu_seconds: float | None = None
    peak_memory: int | None = None
    out_of_memory: bool | None = None
    stack: str = ""
    stderr: str = ""
    attempts: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A report of several lines."""
        lines = [f"Post-mortem of worker {self.pid}", f"  ended by       {self._ended_by()}"]
        if self.task is not None:
            arguments = "..." if self.arguments is None else self.arguments
            lines.append(f"  task           {self.task}({arguments})")
        if self.seconds is not None:
            lines.append(f"  running for    {self.seconds:.3g} s")
        if self.cpu_seconds is not None:
            lines.append(f"  CPU time       {self.cpu_seconds:.3g} s in its whole life")
        if self.peak_memory is not None:
            lines.append(f"  peak memory    {readable(self.peak_memory)}")
        if self.out_of_memory is not None:
            told = "yes: the kernel ended it" if self.out_of_memory else "no, says the kernel"
            lines.append(f"  out of memory  {told}")
        for number, attempt in enumerate(self.attempts, 1):
            lines.append(f"  attempt {number}      {attempt}")
        for title, text in (("stack", self.stack), ("standard error, at the end", self.stderr)):
            if text.strip():
                lines.append(f"  {title}:")
                lines += ["    " + line for line in text.strip("\n").splitlines()]
        return "\n".join(lines)

    def _ended_by(self) -> str:
        if self.exitcode is None:
            return "unknown: its exit status was taken by somebody else"
        if self.signal is not None:
            return f"{self.signal} (signal {-self.exitcode})"
        return f"itself, with exit code {self.exitcode}"


def add_arguments(error: Any, task: Any) -> None:
    """Complete the record that an exception carries, if it does: the task's arguments."""
    if error.post_mortem is not None:
        error.post_mortem = replace(error.post_mortem, arguments=arguments_of(task))


def add_attempts(error: Any, attempts: list[str]) -> None:
    """Complete the record that an exception carries, if it does: how earlier attempts ended."""
    found = getattr(error, "post_mortem", None)
    if type(found) is PostMortem:
        error.post_mortem = replace(found, attempts=tuple(attempts))


# ---------------------------------------------------------------------- the worker's end


def examine(death: Any, task: str | None, seconds: float) -> PostMortem:
    """Put together what is known.

    Parameters
    ----------
    death : loky.pool.deaths.Death
        How the worker, which had a process, ended.
    task : str or None
        Name of the task that it ran.
    seconds : float
        For how long it had run that.
    """
    exit = death.exit
    usage = exit.usage
    return PostMortem(
        task=task,
        arguments=None,
        pid=exit.pid,
        exitcode=exit.code,
        signal=exit.signal(),
        seconds=None if task is None else seconds,
        cpu_seconds=None if usage is None else usage.ru_utime + usage.ru_stime,
        peak_memory=_peak(usage, death.excess),
        out_of_memory=death.out_of_memory,
        stack=death.fault or death.stacks,
        stderr=death.stderr,
    )


def _peak(usage: Any, excess: Any) -> int | None:
    """The peak memory of a process that has ended, in bytes, if this can be known.

    Parameters
    ----------
    usage : resource.struct_rusage or None
        As `os.wait4` reports it.
    excess : loky.pool.deaths.Excess or None
        What it was ended for.
    """
    known = [] if excess is None else [int(excess.used)]
    if usage is not None:
        import resource
        import sys

        # A process begins with the figure of the one that started it, and keeps it after exec.
        if usage.ru_maxrss > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:
            known.append(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
    return max(known, default=None)
