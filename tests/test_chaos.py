"""Tests of `python -m loky chaos`: a short run, and that its judge can find fault.

The long run is the command itself, see docs/robustness.md. The judge is fed records that nobody
could have written while all was well: each of its checks must be able to fail.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loky import ProcessPoolExecutor
from loky.chaos import tasks
from loky.chaos.actions import Burst, Call, Cancel, Map, Strike, Submit
from loky.chaos.driver import Drama
from loky.chaos.judge import (
    CANCELLED,
    ERROR,
    SKIPPED,
    VALUE,
    Circumstances,
    Fate,
    Outcome,
    judge,
)
from loky.chaos.marks import ARMED, BEGIN, END, Mark, Marks, leave
from loky.chaos.plan import plan, strikes_on_anybody
from loky.chaos.remains import Remains
from loky.chaos.strikes import Striker, possible, send
from loky.errors import ShutdownExecutorError, TaskTimeoutError, TerminatedWorkerError

linux_only = pytest.mark.skipif(possible() is not None, reason=str(possible()))


def run_chaos(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loky", "chaos", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


# ---------------------------------------------------------------------- the real thing


@linux_only
@pytest.mark.timeout(85)
@pytest.mark.parametrize("seed", [1, 20])
def test_a_short_run_is_clean(seed: int) -> None:
    done = run_chaos(f"--seed={seed}", "--seconds=3", "--workers=3", "--patience=40")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("clean\n")
    assert f"seed {seed}" in done.stdout
    assert "strikes: " in done.stdout


def test_a_hang_is_noticed_and_explained() -> None:
    script = """
import threading
from loky.chaos.watchdog import Watchdog
Watchdog(0.1, lambda: 42, lambda: "what is outstanding")
threading.Event().wait()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 3
    assert "HANG" in done.stderr
    assert "what is outstanding" in done.stderr
    assert done.stderr.count("most recent call first") == 2, "of every thread"


@linux_only
def test_what_is_outstanding_can_be_described() -> None:
    drama = Drama(plan(1, 0), Remains())
    with ProcessPoolExecutor(1) as executor:
        drama.stage.put_on(executor)
        future = drama.stage.submit(Call(1, "stuck", 1000.0))
        assert future is not None
        try:
            text = drama.describe()
        finally:
            executor.kill_workers()
    assert "task 1: Call(number=1, kind='stuck'" in text
    assert "Supervisor: " in text
    assert "outstanding=" in text
    drama.marks.close()


@pytest.mark.parametrize("option", ["--seconds=0", "--workers=-1", "--episodes=x"])
def test_numbers_that_make_no_sense(option: str) -> None:
    done = run_chaos(option)
    assert done.returncode == 2
    assert "positive" in done.stderr


# ---------------------------------------------------------------------- the plan


def test_the_seed_replays_the_plan() -> None:
    for index in range(20):
        assert plan(5, index) == plan(5, index)
    assert plan(5, 0) != plan(6, 0)
    assert plan(5, 0) != plan(5, 1)


def test_numbers_are_given_once_and_cancels_are_about_what_was_submitted() -> None:
    for index in range(50):
        episode = plan(3, index)
        numbers = [call.number for call in episode.calls()]
        assert len(numbers) == len(set(numbers))
        for actions in episode.actors.values():
            seen: set[int] = set()
            for action in actions:
                if isinstance(action, Submit):
                    seen.add(action.call.number)
                elif isinstance(action, Burst | Map):
                    seen |= {call.number for call in action.calls}
                elif isinstance(action, Cancel):
                    assert action.number in seen


def test_a_plan_asks_for_no_more_than_a_pool_bears() -> None:
    for index in range(200):
        episode = plan(11, index, max_workers=1)
        strikes = [a for a in episode.actors["striker"] if isinstance(a, Strike)]
        on_anybody = [a for a in strikes if a.signal != "STOP" and not a.busy]
        assert len(on_anybody) <= strikes_on_anybody(1) < 3


def test_a_long_seed_has_everything() -> None:
    episodes = [plan(1, index) for index in range(300)]
    kinds = {call.kind for episode in episodes for call in episode.calls()}
    assert kinds >= {*tasks._ACTIONS, "quick", "large-both", "closure", "bad-argument"}
    endings = {episode.ending for episode in episodes}
    assert endings == {"drain", "shutdown", "kill", "cancel", "collect", "storm"}
    actions = {type(a).__name__ for e in episodes for part in e.actors.values() for a in part}
    assert actions == {
        *("Submit", "Burst", "Map", "Cancel", "Rescue", "Wait"),
        *("Strike", "Resize", "Swap", "Fork", "Dump", "Squeeze", "Await", "AwaitMap"),
    }


# ---------------------------------------------------------------------- the judge can find fault

PID = 4000
CALL = Call(1, "quick")


def right(call: Call = CALL) -> Outcome:
    return Outcome(VALUE, tasks.expected(call.number, call.kind, call.seconds, call.size))


def ran(number: int = 1, pid: int = PID) -> list[Mark]:
    return [Mark(number, pid, BEGIN, 1.0), Mark(number, pid, END, 2.0)]


def ended(pid: int = PID, exitcode: int = -9) -> Outcome:
    return Outcome(ERROR, error=TerminatedWorkerError("ended", pid=pid, exitcode=exitcode))


def verdict(fates: Any, marks: list[Mark], **facts: Any) -> str:
    if isinstance(fates, Fate):
        fates = [fates]
    return "\n".join(judge(fates, marks, Circumstances(**facts)))


def test_nothing_wrong() -> None:
    assert verdict(Fate(CALL, told=1, outcome=right()), ran()) == ""


def test_wrong_value() -> None:
    wrong = Fate(CALL, told=1, outcome=Outcome(VALUE, (2, "quick")))
    assert "and not (1, 'quick')" in verdict(wrong, ran())


def test_lost_future() -> None:
    assert "never settled" in verdict(Fate(CALL), ran())


@pytest.mark.parametrize("told", [0, 2])
def test_settled_more_or_less_than_once(told: int) -> None:
    assert f"called {told} times" in verdict(Fate(CALL, told=told, outcome=right()), ran())


def test_side_effect_twice() -> None:
    twice = ran() + ran(pid=PID + 1)
    assert "ran 2 times" in verdict(Fate(CALL, told=1, outcome=right()), twice)


def test_a_value_out_of_nowhere() -> None:
    assert "having run 0 times" in verdict(Fate(CALL, told=1, outcome=right()), [])


def test_an_exception_that_nothing_explains() -> None:
    failed = Fate(CALL, told=1, outcome=Outcome(ERROR, error=ValueError("?")))
    assert "nothing was done that explains ValueError" in verdict(failed, ran())


def test_another_tasks_exception() -> None:
    error = tasks.ChaosError(2)
    failed = Fate(Call(1, "raise"), told=1, outcome=Outcome(ERROR, error=error))
    assert "nothing was done that explains ChaosError: 2" in verdict(failed, ran())


def test_a_value_where_there_cannot_be_one() -> None:
    for kind in ("raise", "exit"):
        fate = Fate(Call(1, kind), told=1, outcome=Outcome(VALUE, (1, kind)))
        assert "cannot have a value" in verdict(fate, ran())


def test_the_end_of_a_worker_needs_a_reason() -> None:
    fate = Fate(CALL, told=1, outcome=ended())
    begun = [Mark(1, PID, BEGIN, 1.0)]
    assert "nothing was done that explains Term" in verdict(fate, begun)
    assert "nothing was done" in verdict(fate, begun, struck={PID: {-15}}), "another signal"
    assert "nothing was done" in verdict(fate, begun, struck={PID + 1: {-9}}), "another process"
    assert "nothing was done" in verdict(fate, ran(pid=PID + 1), struck={PID: {-9}}), "ran there"
    assert verdict(fate, begun, struck={PID: {-9}}) == ""


def test_the_end_of_a_worker_by_a_task() -> None:
    deadly = Fate(Call(1, "exit"), told=1, outcome=ended(exitcode=tasks.EXIT_CODE))
    assert verdict(deadly, [Mark(1, PID, BEGIN, 1.0)]) == ""
    assert "nothing was done" in verdict(deadly, []), "it cannot have done that without running"
    bombed = Fate(CALL, told=1, outcome=ended(exitcode=tasks.BOMB_CODE))
    assert "nothing was done" in verdict(bombed, [])
    assert verdict(bombed, [Mark(9, PID, ARMED, 0.5)]) == ""


def test_a_death_costs_one_task() -> None:
    fates = [Fate(Call(n, "quick"), told=1, outcome=ended()) for n in (1, 2)]
    facts = {"struck": {PID: {-9}}}
    assert f"the end of process {PID} cost 2 tasks: [1, 2]" in verdict(fates, [], **facts)
    assert verdict(fates, [], **facts, breakable=True) == ""


def test_cancellations() -> None:
    cancelled = Outcome(CANCELLED)
    assert "nobody has" in verdict(Fate(CALL, told=1, outcome=cancelled), [])
    plain, killed = [(False, True)], [(True, True)]
    assert verdict(Fate(CALL, told=1, outcome=cancelled, cancels=plain), []) == ""
    assert verdict(Fate(CALL, told=1, outcome=cancelled, cancels=killed), ran()) == ""
    assert "it ran" in verdict(Fate(CALL, told=1, outcome=cancelled, cancels=plain), ran())
    assert "said True" in verdict(Fate(CALL, told=1, outcome=right(), cancels=plain), ran())
    denied = [(True, False)]
    assert "nobody has" in verdict(Fate(CALL, told=1, outcome=cancelled, cancels=denied), [])
    assert verdict(Fate(CALL, told=1, outcome=right(), cancels=denied), ran()) == ""


def test_refusals() -> None:
    refused = Fate(CALL, refused=ShutdownExecutorError("closed"))
    assert "submitting it raised" in verdict(refused, [])
    assert verdict(refused, [], closing=True) == ""
    assert "ran although" in verdict(refused, ran(), closing=True)
    late = Fate(CALL, told=1, outcome=Outcome(ERROR, error=ShutdownExecutorError("killed")))
    assert "nothing was done" in verdict(late, [], closing=True)
    assert verdict(late, [], closing=True, killed=True) == ""


def test_two_tasks_at_a_time() -> None:
    fates = [Fate(Call(n, "quick"), told=1, outcome=right(Call(n, "quick"))) for n in (1, 2)]
    one, other = ran(1), ran(2)
    assert "while it ran task 1" in verdict(fates, [one[0], other[0], one[1], other[1]])
    assert verdict(fates, one + other) == ""


def test_items_of_a_map() -> None:
    assert verdict(Fate(CALL, "map"), []) == "", "not asked for"
    cancelled = Fate(CALL, "map", outcome=Outcome(CANCELLED))
    assert "nobody has" in verdict(cancelled, [])
    chunk = (Call(1, "quick"), Call(2, "raise"))
    error = Outcome(ERROR, error=tasks.ChaosError(2))
    assert verdict(Fate(CALL, "map", outcome=error, chunk=chunk), ran(1) + ran(2)) == ""
    assert "nothing was done" in verdict(Fate(CALL, "map", outcome=error), ran(1) + ran(2))


def test_what_a_map_skips_has_failed() -> None:
    skipped = Fate(CALL, "map", outcome=Outcome(SKIPPED), chunk=(CALL,))
    assert "left it out" in verdict(skipped, ran())
    assert verdict(skipped, ran(), struck={PID: {-9}}) == ""
    skipped.chunk = (CALL, Call(2, "raise"))
    assert verdict(skipped, ran()) == ""


def options(**given: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(given.items())


def test_retries() -> None:
    call = Call(1, "quick", options=options(retries=1))
    twice = [Mark(1, PID, BEGIN, 1.0), *ran(pid=PID + 1)]
    assert verdict(Fate(call, told=1, outcome=right(call)), twice) == ""
    thrice = [*twice, *ran(pid=PID + 2)]
    assert "ran 3 times" in verdict(Fate(call, told=1, outcome=right(call)), thrice)
    last = ended(PID + 1)
    struck = {PID: {-9}, PID + 1: {-9}}
    assert "after 0 of 1 retries" in verdict(Fate(call, told=1, outcome=last), [], struck=struck)
    last.error.attempts = (ended().error,)  # type: ignore[union-attr]
    assert verdict(Fate(call, told=1, outcome=last), twice[:2], struck=struck) == ""
    assert "nothing was done" in verdict(
        Fate(call, told=1, outcome=last), twice[:2], struck={PID + 1: {-9}}
    ), "the first attempt has no reason"


def test_retries_of_what_raises() -> None:
    flaky = Call(1, "flaky-raise", size=1, options=options(retries=1, retry_on=("ChaosError",)))
    error = tasks.ChaosError(1)
    fate = Fate(flaky, told=1, outcome=Outcome(ERROR, error=error))
    assert "after 0 of 1 retries" in verdict(fate, ran())
    fate.outcome = right(flaky)
    assert "having run 1 times" in verdict(fate, ran()), "it fails the first time"
    assert verdict(fate, ran() + ran(pid=PID + 1)) == ""


def test_timeouts() -> None:
    late = TaskTimeoutError("late", pid=PID, exitcode=-15, seconds=0.3)
    outcome = Outcome(ERROR, error=late)
    assert "nothing was done" in verdict(Fate(CALL, told=1, outcome=outcome), ran())
    call = Call(1, "overdue", 1000.0, options=options(timeout=0.2))
    assert verdict(Fate(call, told=1, outcome=outcome), ran()) == ""
    early = Call(1, "overdue", 1000.0, options=options(timeout=0.4))
    assert "nothing was done" in verdict(Fate(early, told=1, outcome=outcome), ran())
    value = Fate(call, told=1, outcome=right(call))
    assert "cannot have a value" in verdict(value, ran())


# ---------------------------------------------------------------------- what it is made of


def test_marks_are_read_as_they_come(tmp_path: Path) -> None:
    marks = Marks(str(tmp_path / "marks"))
    leave(marks.path, 7, BEGIN)
    assert [(mark.task, mark.pid, mark.kind) for mark in marks.read()] == [(7, os.getpid(), BEGIN)]
    assert marks.running[os.getpid()].task == 7
    with open(marks.path, "ab") as file:
        file.write(b"torn")  # a record that is being written
        file.flush()
        assert len(marks.read()) == 1
    marks.close()
    assert not os.path.exists(marks.path)


@linux_only
def test_only_children_are_struck(tmp_path: Path) -> None:
    assert not send(os.getppid(), 0)
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as child:
        marks = Marks(str(tmp_path / "marks"))
        striker = Striker(marks, {})
        assert striker.strike(Strike(0.0, "KILL", False, 0.5), [child.pid]) == child.pid
        assert child.wait() == -9
        assert striker.struck == {child.pid: {-9}}
        assert not send(child.pid, 0), "it is gone"
        assert striker.strike(Strike(0.0, "KILL", True, 0.5), [os.getppid()]) is None
        marks.close()


@linux_only
def test_remains_are_found() -> None:
    before = Remains()
    assert before.found(bound=0.0) == []
    read, write = os.pipe()
    command = [sys.executable, "-S", "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as child:
        lines = before.found(bound=0.0)
        assert any(line.startswith(f"process {child.pid} ") for line in lines)
        assert sum(line.startswith("descriptor") for line in lines) == 3
    os.close(read)
    os.close(write)
    assert before.found() == []
