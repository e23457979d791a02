"""Compares what came of every call with what was done to it. Pure: records in, problems out.

What is checked:

- every future that was handed out is settled, and its callback was called exactly once;
- a value is the right one; an exception is the one that the task raises, or has a cause: a worker
  that was struck, a cancellation that was granted, an executor that was shut down with its workers
  killed, a pool that had to break;
- a cancellation that was granted without `kill` means that the task has not run, one with `kill`
  that its future is cancelled; one that was denied means that it is not;
- no task has begun more often than once and its retries, and one that has a result has begun;
- an exception that is worth another attempt is the last of all attempts, and tells of the others;
- a worker runs one task at a time;
- the death of a worker costs at most one task.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from errno import EMFILE
from typing import Any

from .actions import Call
from .marks import ARMED, BEGIN, END, Mark
from .tasks import BOMB_CODE, END_CODES, FLAKY, expected

VALUE, ERROR, CANCELLED = "value", "error", "cancelled"
# A map left it out, having been asked to skip what fails.
SKIPPED = "skipped"

# Kinds whose future gets an exception, by the name of its class; the task has (1) or has not (0)
# begun by then.
OWN_ERRORS = {
    "raise": ({"ChaosError"}, 1),
    "flaky-raise": ({"ChaosError"}, 1),
    "raise-unpicklable": ({"ResultUnpicklingError"}, 1),
    "raise-unloadable": ({"ResultUnpicklingError"}, 1),
    "bad-argument": ({"TaskPicklingError"}, 0),
    "unloadable-argument": ({"TaskUnpicklingError"}, 0),
    "bad-result": ({"TypeError", "PicklingError"}, 1),
    "unloadable-result": ({"ResultUnpicklingError"}, 1),
    "sys-exit": ({"SystemExit"}, 1),
    "interrupt": ({"KeyboardInterrupt"}, 1),
}
# Whose exception carries the number of the call.
NUMBERED = {"raise", "flaky-raise", "sys-exit", "interrupt"}
# What ended an attempt, by the name of the exception's class, as `retry_on` names it.
CAUSES = {
    "TerminatedWorkerError": "crash",
    "TaskTimeoutError": "timeout",
    "TaskMemoryError": "memory",
}
# These never end by themselves.
ENDLESS = {"stuck", "hog", "overdue", "overdue-deaf", "overdue-gil"}
DEFAULT_RETRY_ON = ("crash", "timeout", "memory")
BROKEN = {"BrokenProcessPool", "TerminatedWorkerError"}


@dataclass
class Outcome:
    """How a future ended: a digest of its value, or its exception, or cancelled."""

    kind: str
    value: Any = None
    error: BaseException | None = None

    def __str__(self) -> str:
        if self.kind == ERROR:
            lines = str(self.error).splitlines() or [""]
            return f"{type(self.error).__name__}: {' '.join(lines[:2])}"
        return f"value {self.value!r}" if self.kind == VALUE else self.kind


@dataclass
class Fate:
    """What was done to one call, and what came of it.

    `via` is "submit", "await", or "map" for an item of a map, whose future nobody sees: then
    `outcome` is there only if the iterator handed it out, and an exception may be that of any call
    of its chunk.
    """

    call: Call
    via: str = "submit"
    refused: BaseException | None = None  # what submitting it raised
    told: int = 0  # how often its callback was called
    outcome: Outcome | None = None
    cancels: list[tuple[bool, bool]] = field(default_factory=list)  # (kill, granted)
    chunk: tuple[Call, ...] = ()


@dataclass
class Circumstances:
    """What was done to the pool as a whole.

    `struck` has, for each process, the exit codes that strikes on it can have caused.
    """

    struck: dict[int, set[int]] = field(default_factory=dict)
    closing: bool = False  # it may have refused calls
    killed: bool = False  # shut down with its workers killed
    cancelled: bool = False  # shut down with what had not begun cancelled
    breakable: bool = False  # it may have broken
    squeezed: bool = False  # there were times without a descriptor left


def judge(fates: Iterable[Fate], marks: Iterable[Mark], circumstances: Circumstances) -> list[str]:
    """Every way in which what came of the calls is not what had to come of them."""
    return _Judge(list(fates), list(marks), circumstances).problems()


class _Judge:
    def __init__(self, fates: list[Fate], marks: list[Mark], circumstances: Circumstances) -> None:
        self.fates = fates
        self.marks = marks
        self.facts = circumstances
        self.begun: dict[int, list[Mark]] = {}
        self.codes = {pid: set(codes) for pid, codes in circumstances.struck.items()}
        for mark in marks:
            if mark.kind == BEGIN:
                self.begun.setdefault(mark.task, []).append(mark)
            elif mark.kind == ARMED:
                self.codes.setdefault(mark.pid, set()).add(BOMB_CODE)

    def problems(self) -> list[str]:
        found = []
        for fate in self.fates:
            call = fate.call
            for problem in self._of_one(fate):
                found.append(f"task {call.number} ({call.kind}, by {fate.via}): {problem}")
        return found + self._of_workers() + self._of_deaths()

    def _of_one(self, fate: Fate) -> Iterable[str]:
        begun = len(self.begun.get(fate.call.number, ()))
        if begun > 1 + _option(fate.call, "retries", 0):
            pids = [mark.pid for mark in self.begun[fate.call.number]]
            yield f"ran {begun} times, in processes {pids}"
        if fate.refused is not None:
            yield from self._of_refused(fate, begun)
            return
        outcome = fate.outcome
        if fate.via != "map":
            if outcome is None:
                yield f"its future was never settled; begun {begun} times"
                return
            if fate.told != 1:
                yield f"its callback was called {fate.told} times"
            yield from self._of_cancels(fate, outcome, begun)
        if outcome is None:
            return
        if fate.via == "map" and outcome.kind == CANCELLED and not self.facts.cancelled:
            yield "its map was cancelled, and nobody has cancelled it"
        if outcome.kind == VALUE:
            yield from self._of_value(fate.call, outcome, begun)
        elif outcome.kind == ERROR:
            reasons = [self._objection(call, outcome) for call in fate.chunk or (fate.call,)]
            if all(reasons):
                yield "; ".join(dict.fromkeys(map(str, reasons)))
        elif outcome.kind == SKIPPED:
            if not any(self._can_fail(call) for call in fate.chunk):
                yield "its map has left it out, and nothing was done to it"

    def _of_refused(self, fate: Fate, begun: int) -> Iterable[str]:
        name = type(fate.refused).__name__
        if begun:
            yield f"ran although submitting it raised {name}"
        allowed = set(BROKEN) if self.facts.breakable else set()
        if self.facts.closing:
            allowed.add("ShutdownExecutorError")
        if name not in allowed:
            yield f"submitting it raised {name}: {fate.refused}"

    def _of_cancels(self, fate: Fate, outcome: Outcome, begun: int) -> Iterable[str]:
        granted = [kill for kill, answer in fate.cancels if answer]
        cancelled = outcome.kind == CANCELLED
        if granted and not cancelled:
            yield f"cancel() said True, and then it got {outcome}"
        if cancelled and not granted and not self.facts.cancelled:
            yield "its future is cancelled, and nobody has cancelled it"
        # Between two attempts a task is waiting again.
        once = not _option(fate.call, "retries", 0)
        if cancelled and begun and once and not any(kill for kill, _ in fate.cancels):
            yield "it was cancelled, and it ran"

    def _of_value(self, call: Call, outcome: Outcome, begun: int) -> Iterable[str]:
        fails = call.kind in OWN_ERRORS or call.kind in END_CODES
        if call.kind in ENDLESS or (fails and call.kind not in FLAKY):
            yield f"it has {outcome}, but cannot have a value"
            return
        right = expected(call.number, call.kind, call.seconds, call.size)
        if outcome.value != right:
            yield f"it has {outcome}, and not {right!r}"
        if begun < 1 + (call.size if call.kind in FLAKY else 0):
            yield f"it has {outcome} having run {begun} times"

    def _objection(self, call: Call, outcome: Outcome) -> str | None:
        """Why this call cannot have ended with this exception, if so."""
        error: Any = outcome.error
        attempts = getattr(error, "attempts", ())
        for each in (*attempts, error):
            if not (self._is_own(call, each) or self._is_excused(call, each)):
                return f"nothing was done that explains {Outcome(ERROR, error=each)}"
        begun = len(self.begun.get(call.number, ()))
        if self._is_own(call, error):
            may_run = OWN_ERRORS[call.kind][1]
            if begun < may_run or (begun and not may_run):
                return f"it has {outcome}, and has begun {begun} times"
        retries = _option(call, "retries", 0)
        cause = CAUSES.get(type(error).__name__, type(error).__name__)
        if not (retries and cause in _option(call, "retry_on", DEFAULT_RETRY_ON)):
            retries = len(attempts)  # this cause ended it, whatever it was before
        if len(attempts) != retries and not (self.facts.breakable or self.facts.killed):
            return f"after {len(attempts)} of {retries} retries it has {outcome}"
        return None

    def _is_own(self, call: Call, error: Any) -> bool:
        """Whether the exception is the one that the task raises, or that its kind leads to."""
        name = type(error).__name__
        if name not in OWN_ERRORS.get(call.kind, ((), 0))[0]:
            return False
        return call.kind not in NUMBERED or (bool(error.args) and error.args[0] == call.number)

    def _is_excused(self, call: Call, error: Any) -> bool:
        """Whether what was done to the task, its worker or its pool explains the exception."""
        facts, name = self.facts, type(error).__name__
        if name == "TerminatedWorkerError" and self._has_reason(call, error):
            return True
        if name == "TaskTimeoutError":
            limit = _option(call, "timeout", None)
            return limit is not None and error.seconds >= limit
        if name == "TaskMemoryError":
            return call.kind == "hog" and error.peak > error.limit
        if name == "ShutdownExecutorError" and facts.killed:
            return True
        if name in BROKEN and facts.breakable:
            return True
        return facts.squeezed and isinstance(error, OSError) and error.errno == EMFILE

    def _has_reason(self, call: Call, error: Any) -> bool:
        """Whether the end of that process is the task's own work, or that of a strike."""
        pids = {mark.pid for mark in self.begun.get(call.number, ())}
        if error.pid in pids:
            if error.exitcode == END_CODES.get(call.kind):
                return True
        elif pids and not _option(call, "retries", 0):
            return False  # it ran elsewhere
        return error.exitcode in self.codes.get(error.pid, ())

    def _can_fail(self, call: Call) -> bool:
        """Whether a call may have failed, as far as can be told without its exception."""
        facts = self.facts
        if call.kind in OWN_ERRORS or call.kind in END_CODES:
            return True
        if facts.squeezed or facts.cancelled or facts.killed or facts.breakable:
            return True
        begun = self.begun.get(call.number, ())
        return bool(self.codes) and (not begun or any(mark.pid in self.codes for mark in begun))

    def _of_workers(self) -> list[str]:
        """Whether each process ran one task at a time."""
        found = []
        running: dict[int, int] = {}
        for mark in self.marks:
            now = running.get(mark.pid)
            if mark.kind == BEGIN:
                if now is not None:
                    found.append(
                        f"process {mark.pid} began task {mark.task} while it ran task {now}"
                    )
                running[mark.pid] = mark.task
            elif mark.kind == END and now == mark.task:
                del running[mark.pid]
        return found

    def _of_deaths(self) -> list[str]:
        """Whether each death cost at most one task."""
        if self.facts.breakable:
            return []
        victims: dict[int, list[int]] = {}
        for fate in self.fates:
            last: Any = fate.outcome.error if fate.outcome is not None else None
            for error in (*getattr(last, "attempts", ()), last):
                # The items of a chunk share one.
                if type(error).__name__ == "TerminatedWorkerError" and not fate.chunk:
                    victims.setdefault(error.pid, []).append(fate.call.number)
        return [
            f"the end of process {pid} cost {len(tasks)} tasks: {tasks}"
            for pid, tasks in victims.items()
            if len(tasks) > 1
        ]


def _option(call: Call, name: str, default: Any) -> Any:
    return dict(call.options).get(name, default)
