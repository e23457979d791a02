"""The Python stacks of all workers, now.

Guarantees:

- nothing waits longer than the given time, however many workers do not answer;
- a worker that does not answer has an entry that says so, and says why if that can be known;
- only the leader touches the workers' records and files; the asker sleeps between its looks.

How a worker answers is told in `worker/guard.py`, how it is asked in `pool/port.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic, sleep
from typing import TYPE_CHECKING

from ..wire.protocol import STACKS_SIGNAL
from .roll import Entry, call_the_roll

if TYPE_CHECKING:
    from ..pool.supervisor import Supervisor

# The outermost frame of a worker's main thread, which faulthandler writes last. A stack of more
# than a hundred frames is cut before it, and then only time can tell that no more is coming.
_LAST_FRAME = '  File "<string>", line 1 in <module>\n'
_QUIET_SECONDS = 0.05
# Between two looks: at first about as long as an answer takes, then twice as long each time.
_FIRST_LOOK_SECONDS = 1e-3
_LONGEST_LOOK_SECONDS = 20e-3


@dataclass(frozen=True)
class WorkerStacks:
    """What one worker was doing.

    Attributes
    ----------
    pid : int
        Its process id.
    state : {"starting", "idle", "busy", "leaving"}
        What it was doing when it was asked.
    task : str or None
        Name of the task that it ran.
    seconds : float
        For how long it had been in that state, with that task.
    stacks : str
        The Python stacks of all its threads, innermost frames first, in the form of
        `faulthandler`; empty if it did not answer.
    problem : str or None
        Why there are no stacks, or not all; ``None`` if they are complete.
    """

    pid: int
    state: str
    task: str | None
    seconds: float
    stacks: str
    problem: str | None

    def __str__(self) -> str:
        """A heading and the stacks."""
        doing = f"running {self.task}" if self.task is not None else self.state
        lines = [f"Worker {self.pid}, {doing} for {self.seconds:.3g} s:"]
        lines += ["  " + line for line in self.stacks.splitlines()]
        if self.problem is not None:
            lines.append(f"  ({self.problem})")
        return "\n".join(lines)


class StackDump(list[WorkerStacks]):
    """What every worker of a pool was doing, the oldest worker first; printed, a report."""

    def __str__(self) -> str:
        """One paragraph for each worker."""
        return "\n\n".join(map(str, self)) if self else "There are no workers."


class _Answer:
    """One worker's answer, as far as it has come."""

    def __init__(self, entry: Entry, asked: bool) -> None:
        self.entry = entry
        self.asked = asked
        self.text = ""
        self.grew_at = 0.0
        self.ended = False

    def take(self, now: float) -> None:
        """Look at what has come. For the leader."""
        port = self.entry.worker.port
        if port.closed:
            self.ended = True
            return
        text = port.stacks()
        if text != self.text:
            self.text = text
            self.grew_at = now

    def is_whole(self, now: float) -> bool:
        """Whether no more is coming."""
        if not self.asked or self.ended or self.text.endswith(_LAST_FRAME):
            return True
        return bool(self.text) and now - self.grew_at >= _QUIET_SECONDS

    def problem(self, timeout: float, now: float) -> str | None:
        """Why this is not all, ``None`` if it is."""
        if not STACKS_SIGNAL:
            return "there is no signal on this system that could ask a worker for its stacks"
        if self.ended and not self.text:
            return "it has ended meanwhile"
        if not self.asked:
            if self.entry.state == "starting":
                return "it has only just been started, and cannot answer yet"
            if self.entry.state == "leaving":
                return "it is leaving, and cannot answer any more"
            return (
                f"it has no handler for signal {STACKS_SIGNAL} any more: code that ran in it "
                "changed that, or it executes another program"
            )
        if self.is_whole(now):
            return None
        if self.text:
            return f"not all of it came within {timeout:g} s"
        return f"no answer within {timeout:g} s{_why_not(self.entry.pid)}"


def _why_not(pid: int) -> str:
    """What keeps a process from handling a signal, if the system says so."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return ""
    if state in (b"T", b"t"):
        return ": the process is stopped (SIGSTOP, or a debugger)"
    if state == b"D":
        return ": the process is in a system call that cannot be interrupted"
    return ""


def dump_stacks(pool: Supervisor, timeout: float) -> StackDump:
    """Ask all workers for their stacks and wait for the answers, so many seconds at most."""

    def begin() -> list[_Answer]:
        return [_Answer(entry, entry.worker.port.request_stacks()) for entry in call_the_roll(pool)]

    def look() -> None:
        for answer in answers:
            answer.take(monotonic())

    deadline = monotonic() + timeout
    answers = pool.ask(begin)
    pause = _FIRST_LOOK_SECONDS
    while True:
        pool.ask(look)
        now = monotonic()
        if now >= deadline or all(answer.is_whole(now) for answer in answers):
            break
        sleep(min(pause, deadline - now))
        pause = min(2 * pause, _LONGEST_LOOK_SECONDS)
    return StackDump(
        WorkerStacks(
            pid=answer.entry.pid,
            state=answer.entry.state,
            task=answer.entry.task_name(),
            seconds=answer.entry.seconds,
            stacks=answer.text,
            problem=answer.problem(timeout, now),
        )
        for answer in answers
    )
