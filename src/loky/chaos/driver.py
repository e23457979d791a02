"""Carries out a plan on real pools: a thread for each actor, and this one for the director's part.

Rule: no choice is made here; see `plan`. Nothing is judged here; see `judge`.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import reprlib
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .. import ProcessPoolExecutor, get_reusable_executor
from . import tasks
from .actions import (
    Action,
    Burst,
    Call,
    Cancel,
    Dump,
    Episode,
    Fork,
    Map,
    Rescue,
    Resize,
    Squeeze,
    Strike,
    Submit,
    Swap,
    Wait,
)
from .judge import Outcome, judge
from .marks import Marks
from .remains import Remains
from .stage import SECOND, Stage
from .strikes import Striker, send

INITIALIZER_SECONDS = {"quick": 0.0, "slow": 0.1}
# The child of a fork of the parent is given up after this many seconds.
FORK_SECONDS = 25
DUMP_SECONDS = 0.3
# Callbacks may still be running when a shutdown returns.
CALLBACK_SECONDS = 10.0
# How often a rescuer looks whether there is somebody to be rescued, in seconds.
RESCUE_PAUSE = 0.005
# So many rounds of killing everybody must break a pool.
STORM_ROUNDS = 400
STORM_PAUSE = 0.01
# The last call of an episode shows that the pool works.
PROBE = 2 * SECOND


@dataclass
class Report:
    """What came of an episode."""

    episode: Episode
    problems: list[str]
    history: list[str]
    outcomes: dict[str, int] = field(default_factory=dict)
    strikes: dict[str, int] = field(default_factory=dict)
    tasks: int = 0


class Drama:
    """One episode on the stage.

    Parameters
    ----------
    episode : Episode
        What is to be done.
    remains : Remains
        What was there before.
    """

    def __init__(self, episode: Episode, remains: Remains) -> None:
        self.episode = episode
        self._remains = remains
        file, path = tempfile.mkstemp(prefix="loky-chaos-")
        os.close(file)
        self.marks = Marks(path)
        self.stage = Stage(path)
        seconds = {call.number: call.seconds for call in episode.calls()}
        self.striker = Striker(self.marks, seconds)
        self._begin = 0.0
        self._gone: set[str] = set()  # actors that are through with their part
        self._doing: dict[str, Callable[[str, Any], None]] = {
            "Submit": self._submit,
            "Burst": self._burst,
            "Map": self._map,
            "Cancel": self._cancel,
            "Rescue": self._rescue,
            "Dump": self._dump,
            "Squeeze": self._squeeze,
            "Wait": self._wait,
            "Strike": self._strike,
            "Resize": self._resize,
            "Swap": self._swap,
            "Fork": self._fork,
        }

    def play(self) -> Report:
        """Carry everything out; what came of it."""
        with _nuisances(self.episode.nuisances):
            self._play()
        self._settled()
        return self._report()

    def _play(self) -> None:
        episode, stage = self.episode, self.stage
        stage.facts.breakable = episode.options["crash_policy"] == "break"
        stage.put_on(self._executor(episode.workers, 0))
        self._begin = time.monotonic()
        threads = {
            name: threading.Thread(target=self._act, args=(name,), name=f"chaos-{name}")
            for name in episode.actors
            if name != "director"
        }
        for thread in threads.values():
            thread.start()
        self._act("director")
        if not episode.early:
            for name, thread in threads.items():
                if name != "striker":
                    thread.join()
        self._guarded("ending", self._end)
        for thread in threads.values():
            thread.join()

    # ------------------------------------------------------------------ actors

    def _act(self, name: str) -> None:
        if name == "async":
            from .aio import perform  # asyncio is dear, and not every run needs it

            self._guarded(name, perform, self.stage, self.episode.actors[name], self._begin)
            return
        for action in self.episode.actors[name]:
            self._until(name, self._begin + action.at)
            self._guarded(name, self._doing[type(action).__name__], name, action)
        self._gone.add(name)
        if name == "striker":
            self._until(name, float("inf"))
        elif name == "director" and self.episode.early:
            self._until(name, self._begin + self.episode.seconds * 0.7)

    def _until(self, name: str, moment: float) -> None:
        """Let time pass; the striker continues those it has stopped meanwhile."""
        while True:
            now = time.monotonic()
            due = moment
            if name == "striker":
                resume = self.striker.resume(now)
                if resume is None and moment == float("inf"):
                    return
                due = moment if resume is None else min(moment, resume)
            if due > now:
                time.sleep(due - now)
            if due == moment:
                return

    def _guarded(self, name: str, function: Callable[..., None], *arguments: Any) -> None:
        try:
            function(*arguments)
        except BaseException:
            self.stage.problems.append(f"{name} failed:\n{traceback.format_exc()}")

    def _submit(self, name: str, action: Submit) -> None:
        call = action.call
        future = self.stage.submit(call, action.callback)
        if name != "ending":
            text = "refused" if future is None else action.callback
            self.stage.note(name, f"submit {call.number} {call.kind} {call.seconds} ({text})")
        if action.wait:
            self.stage.wait(call.number)

    def _burst(self, name: str, action: Burst) -> None:
        for call in action.calls:
            self.stage.submit(call)
        self.stage.note(name, f"burst of {len(action.calls)} from {action.calls[0].number}")

    def _map(self, name: str, action: Map) -> None:
        text = f"map of {len(action.calls)} from {action.calls[0].number}"
        self.stage.note(name, f"{text} begins")
        taken = self.stage.map(action)
        self.stage.note(name, f"{text} ends: {taken} of {action.take} results")

    def _cancel(self, name: str, action: Cancel) -> None:
        self.stage.note(name, f"cancel {action.number} kill={action.kill}")
        answer = self.stage.cancel(action.number, action.kill)
        self.stage.note(name, f"cancel {action.number}: {answer}")

    def _rescue(self, name: str, action: Rescue) -> None:
        # Whoever is to submit it may be late, or have failed.
        while not self.stage.has_seen(action.number):
            if name.partition(" of ")[2] in self._gone:
                return
            time.sleep(RESCUE_PAUSE)
        time.sleep(action.seconds)
        self._cancel(name, Cancel(action.at, action.number, True))

    def _wait(self, name: str, action: Wait) -> None:
        self.stage.wait(action.number)
        self.stage.note(name, f"waited for {action.number}")

    def _strike(self, name: str, action: Strike) -> None:
        pid = self.striker.strike(action, self._pids())
        if pid is not None:
            self.stage.note(name, f"{action.signal} to {pid}")

    def _resize(self, name: str, action: Resize) -> None:
        self.stage.note(name, f"resize to {action.workers}")
        self.stage.put_on(self._executor(action.workers, len(self.stage.executors) - 1))

    def _swap(self, name: str, action: Swap) -> None:
        self.stage.note(name, f"another executor, of {action.workers}")
        self.stage.put_on(self._executor(action.workers, len(self.stage.executors)))

    def _dump(self, name: str, action: Dump) -> None:
        self.stage.note(name, "dump stacks")
        dump = self.stage.executor.dump_stacks(DUMP_SECONDS)
        self.stage.note(name, f"dumped {len(dump)} stacks")

    def _squeeze(self, name: str, action: Squeeze) -> None:
        import resource

        self.stage.facts.squeezed = True
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(map(int, os.listdir("/proc/self/fd")))
        self.stage.note(name, f"room for {action.room} descriptors above {highest}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + action.room, hard))
        time.sleep(action.seconds)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        self.stage.note(name, "room again")

    def _fork(self, name: str, action: Fork) -> None:
        self.stage.note(name, f"fork, makes a pool: {action.makes_pool}")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                faulthandler.dump_traceback_later(FORK_SECONDS, exit=True)
                code = self._in_fork(action.makes_pool)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        self.stage.moved()
        if status:
            self.stage.problems.append(
                f"the child of a fork ended with {os.waitstatus_to_exitcode(status)}"
            )

    def _in_fork(self, makes_pool: bool) -> int:
        """What the child of a fork does; its exit code."""
        from ..errors import BrokenProcessPool, ShutdownExecutorError

        try:
            self.stage.executor.submit(abs, -1)
            return 2
        except (ShutdownExecutorError, BrokenProcessPool):
            pass
        for future in list(self.stage.futures.values())[-3:]:
            if not future.done():
                try:
                    future.exception()
                    return 3
                except ShutdownExecutorError:
                    pass
        if makes_pool:
            with ProcessPoolExecutor(1) as pool:
                if pool.submit(abs, -2).result() != 2:
                    return 4
        return 0

    # ------------------------------------------------------------------ the pool

    def _executor(self, workers: int, edition: int) -> Any:
        options = dict(self.episode.options)
        initializer = options.pop("initializer")
        if initializer:
            options["initializer"] = tasks.prepare
            options["initargs"] = (INITIALIZER_SECONDS[initializer],)
        # What the workers of another edition find in their environment is no other than before.
        options["env"] = {"LOKY_CHAOS_EDITION": str(edition)}
        if self.episode.reusable:
            return get_reusable_executor(workers, **options)
        return ProcessPoolExecutor(workers, **options)

    def _pids(self) -> list[int]:
        return [pid for executor in self.stage.executors for pid in executor._pool.pids()]

    def _end(self) -> None:
        stage, ending = self.stage, self.episode.ending
        if not self.episode.early:
            self._submit("ending", Submit(0.0, Call(PROBE, "quick"), wait=True))
            if ending in ("drain", "collect", "storm"):
                for number in list(stage.futures):
                    stage.wait(number)
        stage.note("ending", ending)
        if ending == "storm":
            self._storm()
        if ending == "collect":
            self._collect()
            return
        stage.facts.closing = True
        stage.facts.killed = ending == "kill"
        stage.facts.cancelled = ending == "cancel"
        for executor in stage.executors:
            if ending == "kill":
                executor.shutdown(kill_workers=True)
            else:
                executor.shutdown(cancel_futures=ending == "cancel")
            if not executor._pool.is_closed():
                stage.problems.append("shutdown has returned, and the pool is not closed")

    def _storm(self) -> None:
        """Kill everybody again and again: the pool must break, and say so."""
        pool = self.stage.executor._pool
        self.stage.facts.breakable = True
        for _ in range(STORM_ROUNDS):
            if pool.broken is not None:
                break
            for pid in pool.pids():
                self.striker.struck.setdefault(pid, set()).add(-9)
                send(pid, 9)
            time.sleep(STORM_PAUSE)
        else:
            self.stage.problems.append("the pool does not break, whatever is done to it")
        self._submit("ending", Submit(0.0, Call(PROBE + 1, "quick"), wait=True))
        if self.stage.fates[PROBE + 1].refused is None:
            self.stage.problems.append("a broken pool takes calls")

    def _collect(self) -> None:
        """Let go of the executors: their workers leave by themselves."""
        pools = [executor._pool for executor in self.stage.executors]
        if self.episode.reusable:
            from .. import reusable_executor

            reusable_executor._forget_executor()
        self.stage.let_go()
        gc.collect()
        for pool in pools:
            pool.wait_closed()
            self.stage.moved()

    # ------------------------------------------------------------------ afterwards

    def _settled(self) -> None:
        """Every future must be done by now, and its callback called in a moment."""
        stage = self.stage
        for number, future in list(stage.futures.items()):
            if not future.done():
                call = stage.fates[number].call
                stage.problems.append(f"task {number} ({call.kind}): not done when all was over")
        deadline = time.monotonic() + CALLBACK_SECONDS
        while time.monotonic() < deadline:
            if all(stage.fates[number].told for number in list(stage.futures)):
                break
            time.sleep(0.005)

    def _report(self) -> Report:
        stage = self.stage
        stage.facts.struck = self.striker.struck
        problems = stage.problems + judge(stage.fates.values(), self.marks.read(), stage.facts)
        self.marks.close()
        outcomes: dict[str, int] = {}
        for fate in stage.fates.values():
            name = _name(fate.refused, fate.outcome)
            outcomes[name] = outcomes.get(name, 0) + 1
        report = Report(self.episode, problems, stage.history)
        report.outcomes = outcomes
        report.strikes = self.striker.count
        report.tasks = len(stage.fates)
        stage.let_go()
        stage.futures.clear()
        stage.fates.clear()
        report.problems += self._remains.found()
        return report

    def describe(self) -> str:
        """What is outstanding, for when nothing moves any more."""
        stage = self.stage
        lines = list(stage.history[-40:])
        for number, future in list(stage.futures.items()):
            if not future.done():
                lines.append(f"task {number}: {stage.fates[number].call}, {future!r}")
        for executor in stage.executors:
            scheduler = executor._pool.scheduler
            lines += map(_sketch, (executor._pool, scheduler, scheduler.waiting))
            lines += map(repr, list(scheduler.workers.values()))
        return "\n".join(lines)


@contextmanager
def _nuisances(what: dict[str, float]) -> Iterator[None]:
    """Make threads switch, collections happen and system calls end early much more often."""
    switch, thresholds = sys.getswitchinterval(), gc.get_threshold()
    handler = signal.signal(signal.SIGALRM, lambda number, frame: None)
    try:
        sys.setswitchinterval(what.get("switch", switch))
        gc.set_threshold(int(what.get("gc", thresholds[0])))
        ticks = what.get("ticks", 0.0)
        signal.setitimer(signal.ITIMER_REAL, ticks, ticks)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, handler)
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(switch)


def _sketch(thing: object) -> str:
    """All attributes, shortened. Not those that are known to matter: who knows, when all hangs."""
    names = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    names += getattr(thing, "__dict__", ())
    found = [f"{name}={reprlib.repr(getattr(thing, name, None))}" for name in names]
    return f"{type(thing).__name__}: {', '.join(found)}"


def _name(refused: BaseException | None, outcome: Outcome | None) -> str:
    if refused is not None:
        return "refused"
    if outcome is None:
        return "not asked for"
    if outcome.error is None:
        return outcome.kind
    name = type(outcome.error).__name__
    return "worker ended" if name == "TerminatedWorkerError" else "exception"


__all__ = ["Action", "Drama", "Report"]
