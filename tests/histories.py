"""Random histories of the simulated pool: everything that can happen, each by its own action.

`walk` runs the history of a seed: the same one wherever and whenever it is run, by the number of
this seed alone (`python tools/simulate --replay SEED`). The plan of a history (how many steps; how
closely it is watched) and its habits (in some workers die often, in some nobody looks for long) are
drawn from the seed as well.

Does not belong here: what must hold, which `simulation` and `invariants` say; hypothesis's way of
using the same actions, which is in `test_scheduler`.
"""

from __future__ import annotations

import random
import traceback
from bisect import bisect
from collections import Counter, deque
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

from invariants import DECISIONS
from simulation import RETRIABLE, World, name_of

from loky.pool.model import RETIRING, Task, Worker
from loky.pool.scheduler import Scheduler
from loky.task_options import CAUSES, TaskOptions

Pick = Callable[[int], int]  # a number below its argument

DURATIONS = (0.0, 5e-6, 1e-4, 1e-3, 9e-3, 0.5, 30.0)
PAUSES = (0.0, 1e-4, 1e-3, 2.5e-3, 0.1, 1.1, 5.0, 30.0)

# A history that is not watched after every step is, after so many. And at its end.
EVERY = 10


def make_world(pick: Pick, *, thorough: bool = True) -> World:
    world = World(
        1 + pick(4),
        idle_timeout=(None, None, 0.0, 3.0)[pick(4)],
        max_tasks_per_child=(None, None, None, 1, 2, 5)[pick(6)],
        break_on_crash=pick(8) == 7,
        can_recall=pick(4) != 3,
    )
    world.thorough = thorough
    world.usual_duration = DURATIONS[pick(len(DURATIONS))]
    # Short histories would never see what happens after a thousand.
    world.scheduler.waiting.overtakes = 3 + pick(4)

    def race(worker: Worker) -> None:
        process = world.processes[worker]
        if process.alive and process.running and pick(3) == 2:
            if process.running not in world.endless:
                world.complete(worker, world.usual_duration)
        if process.can_read and pick(3) == 2:
            world.read(worker)

    world.race = race
    if pick(3):  # in a cold pool many steps pass before much happens
        world.submit(world.scheduler.max_workers)
        world.settle_down()
    return world


# ---------------------------------------------------------------------- what can happen


class Action(NamedTuple):
    """Something that can happen: how likely it is, when, to which, and what it does."""

    name: str
    weight: float
    when: Callable[[World], Any]
    of: Callable[[World], list[Any]] | None
    function: Callable[[World, Any, Pick], Any]

    def possible(self, world: World) -> Any:
        """What `run` wants as `found`; false if it is not possible now."""
        return self.when(world) if self.of is None else self.of(world)

    def run(self, world: World, found: Any, pick: Pick) -> None:
        one = None if self.of is None else found[pick(len(found))]
        if world.trace is not None:
            world.trace(f"{world.now:12.6f}  {self.name} {'' if one is None else name_of(one)}")
        self.function(world, one, pick)


ACTIONS: list[Action] = []


def always(world: World) -> bool:
    return True


def action(
    weight: float,
    *,
    when: Callable[[World], Any] = always,
    of: Callable[[World], list[Any]] | None = None,
) -> Any:
    """Add an action: it is possible at any time, or `when` this is true, or to one `of` these.

    What is always possible and to be rare all the same asks `pick` whether it does something.
    """

    def register(function: Callable[[World, Any, Pick], Any]) -> Any:
        ACTIONS.append(Action(function.__name__, weight, when, of, function))
        return function

    return register


def unsettled(world: World) -> list[Task]:
    return [task for task in world.open if task not in world.settled]


def fed(sent: bool) -> Callable[[World], list[Worker]]:
    return lambda world: [worker for worker, (_, was) in world.lent.items() if was == sent]


def booting(world: World) -> list[Worker]:
    return [w for w, process in world.processes.items() if process.alive and not process.booted]


def reading(world: World) -> list[Worker]:
    return [w for w, process in world.processes.items() if process.inbox and process.can_read]


def running(world: World) -> list[Worker]:
    return [w for w, process in world.processes.items() if process.running and process.alive]


def sending(world: World) -> list[Worker]:
    return [w for w, process in world.processes.items() if process.sent]


def resting(world: World) -> list[Worker]:
    """Those that have had a task: that is when they look at what they use."""
    return [
        worker
        for worker, process in world.processes.items()
        if process.served and process.alive and not process.running
    ]


def alive(world: World) -> list[Worker]:
    return [w for w, process in world.processes.items() if process.alive]


def dead(world: World) -> list[Worker]:
    """Those about which no submitter's note is on its way any more."""
    return [
        worker
        for worker, process in world.processes.items()
        if not process.alive and worker not in world.lent
    ]


def timed(world: World) -> list[Worker]:
    """Those that run a task whose time will be up."""
    return [
        worker
        for worker, process in world.processes.items()
        if process.alive
        and process.running
        and process.running.control
        and process.running.control.options.timeout is not None
    ]


def at_work(world: World) -> list[Worker]:
    """Those that the limits of memory take for being at work (`Limits`)."""
    return [
        worker
        for worker in world.processes
        if worker.line
        and worker.line[0].on_wire
        and worker.line[0].stop_wanted is None
        and worker.was_ready
        and worker.state != RETIRING
    ]


# What users do.


@action(4, when=lambda world: world.scheduler.outstanding < 30)
def submit(world: World, _: Any, pick: Pick) -> None:
    world.submit((1, 1, 1, 2, 4, 12)[pick(6)], slow_to_pickle=pick(6) == 5)


@action(3, when=lambda world: world.scheduler.outstanding < 30)
def submit_with_options(world: World, _: Any, pick: Pick) -> None:
    options = TaskOptions(
        timeout=(None, 0.5e-3, 5e-3, 0.1)[pick(4)],
        retries=(0, 0, 1, 3)[pick(4)],
        retry_on=(CAUSES, ("crash",), ("timeout",))[pick(3)],
        backoff=(0.0, 0.0, 1e-3, 5.0)[pick(4)],
        priority=(0, 0, 1, -1, 5)[pick(5)],
    )
    world.submit((1, 1, 2, 5)[pick(4)], options, slow_to_pickle=pick(6) == 5)


@action(30, when=lambda world: world.scheduler.lendable())
def lend(world: World, _: Any, pick: Pick) -> None:
    world.lend()


@action(12, of=fed(False))
def feed(world: World, worker: Worker, pick: Pick) -> None:
    world.feed(worker)


@action(12, of=lambda world: list(world.lent))
def note(world: World, worker: Worker, pick: Pick) -> None:
    world.note(worker)


@action(2, of=unsettled)
def cancel(world: World, task: Task, pick: Pick) -> None:
    world.cancel(task)


@action(2, of=unsettled)
def stop(world: World, task: Task, pick: Pick) -> None:
    world.stop(task)


@action(1)
def resize(world: World, _: Any, pick: Pick) -> None:
    world.resize(1 + pick(5))


@action(0.3)
def shutdown(world: World, _: Any, pick: Pick) -> None:
    if pick(10) == 9:  # most histories should last a while
        world.shutdown(cancel=pick(2) == 1, kill=pick(4) == 3)


# What the parent does.


@action(30, when=lambda world: world.scheduler.decisions)
def apply(world: World, _: Any, pick: Pick) -> None:
    world.apply(refuse_start=pick(40) == 39)


@action(10, when=lambda world: world.scheduler.decisions)
def apply_all(world: World, _: Any, pick: Pick) -> None:
    world.apply_all()


@action(30, when=lambda world: world.outbox)
def send(world: World, _: Any, pick: Pick) -> None:
    which = pick(len(world.outbox)) if pick(4) == 3 else 0
    world.send(which, fails=pick(20) == 19)


@action(12, when=lambda world: world.pickling is not None)
def end_pickling(world: World, _: Any, pick: Pick) -> None:
    world.end_pickling(fails=pick(8) == 7)


@action(30, of=sending)
def look_at(world: World, worker: Worker, pick: Pick) -> None:
    world.look_at(worker)


@action(12, of=lambda world: list(world.held))
def judge(world: World, task: Task, pick: Pick) -> None:
    world.judge(task, again=pick(3) != 2)


@action(12, of=lambda world: list(world.stopping))
def end_stopping(world: World, worker: Worker, pick: Pick) -> None:
    world.end_stopping(worker)


@action(12, of=dead)
def reap(world: World, worker: Worker, pick: Pick) -> None:
    world.reap(worker)


@action(0.5)
def press(world: World, _: Any, pick: Pick) -> None:
    world.press(pick(3) == 2)


@action(3, of=at_work)
def exceed(world: World, worker: Worker, pick: Pick) -> None:
    world.exceed(worker)


@action(1.5, of=lambda world: list(world.scheduler.workers.values()))
def recycle(world: World, worker: Worker, pick: Pick) -> None:
    world.recycle(worker)


@action(0.2)
def break_pool(world: World, _: Any, pick: Pick) -> None:
    if pick(20) == 19:
        world.break_()


# What workers do.


@action(12, of=booting)
def boot(world: World, worker: Worker, pick: Pick) -> None:
    world.boot(worker)


@action(30, of=reading)
def read(world: World, worker: Worker, pick: Pick) -> None:
    world.read(worker)


@action(30, of=running)
def complete(world: World, worker: Worker, pick: Pick) -> None:
    if world.processes[worker].running not in world.endless:
        seconds = DURATIONS[pick(len(DURATIONS))] if pick(8) == 7 else world.usual_duration
        world.complete(worker, seconds, retriable=pick(2) == 1)


@action(4, of=timed)
def hang(world: World, worker: Worker, pick: Pick) -> None:
    world.hang(worker)


@action(2, of=alive)
def die(world: World, worker: Worker, pick: Pick) -> None:
    world.die(worker)


@action(2, of=resting)
def quit(world: World, worker: Worker, pick: Pick) -> None:
    world.quit(worker)


# And the clock.


@action(3)
def advance(world: World, _: Any, pick: Pick) -> None:
    world.advance(PAUSES[pick(len(PAUSES))])


@action(2)
def advance_to_deadline(world: World, _: Any, pick: Pick) -> None:
    world.apply_all()
    world.advance_to_deadline()


# ---------------------------------------------------------------------- random histories


class Plan(NamedTuple):
    """How long a history is, and whether everything is checked after every step of it."""

    steps: int
    thorough: bool


def plan(seed: int) -> Plan:
    """Most are short: what goes wrong does so soon, or only in a few of the long ones."""
    chance = random.Random(~seed)
    steps = 300 if chance.randrange(100) == 0 else chance.randint(10, 50)
    return Plan(steps, thorough=chance.randrange(10) == 0)


def walk(
    seed: int,
    steps: int,
    *,
    thorough: bool = True,
    actions: Counter[str] | None = None,
    trace: Callable[[str], Any] | None = None,
) -> World:
    """One random history, the same for the same seed and number of steps, looked at or not.

    Parameters
    ----------
    seed, steps : int
        Which one, and how many actions it has before everybody goes on fairly until the end.
    thorough : bool
        Check all records after every step; otherwise every few steps, and at the end.
    actions : Counter, optional
        Where to count what has happened.
    trace : callable, optional
        Called with a line about each step, and about all that the scheduler is told and decides.
    """
    chance = random.Random(seed)
    draw = chance.random

    def pick(below: int) -> int:  # what `randrange` does takes four times as long
        return int(draw() * below)

    world = make_world(pick, thorough=thorough)
    world.trace = trace
    weights = accumulate(action.weight * chance.choice((0.1, 1, 1, 1, 5)) for action in ACTIONS)
    bounds = list(weights)
    every = 1 if thorough else EVERY
    for step in range(1, steps + 1):
        found = None
        while not found:  # the clock can always go on
            action = ACTIONS[bisect(bounds, draw() * bounds[-1])]
            found = action.possible(world)
        action.run(world, found, pick)
        if actions is not None:
            actions[action.name] += 1
        if not step % every:
            world.check()
    if trace is not None:
        trace("everybody goes on until nothing is left to do")
    world.finish()
    return world


# ---------------------------------------------------------------------- many of them


class Tally:
    """How many histories were run, what happened in them how often, and which went wrong."""

    def __init__(self) -> None:
        self.histories = 0
        self.steps = 0
        self.thorough = 0
        self.actions: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.decisions: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.failures: dict[int, str] = {}  # why, by seed

    def add(self, other: Tally) -> None:
        self.histories += other.histories
        self.steps += other.steps
        self.thorough += other.thorough
        self.actions += other.actions
        self.events += other.events
        self.decisions += other.decisions
        self.verdicts += other.verdicts
        self.failures |= other.failures


def run(seeds: range, steps: int | None = None) -> Tally:
    """The histories of these seeds, with as many steps as planned or as given, and what became of
    them. All are run, also after one has failed.
    """
    tally = Tally()
    for seed in seeds:
        planned, thorough = plan(seed)
        tally.histories += 1
        tally.steps += steps or planned
        tally.thorough += thorough
        try:
            world = walk(seed, steps or planned, thorough=thorough, actions=tally.actions)
        except Exception as error:
            tally.failures[seed] = f"{type(error).__name__}: {error}"
        else:
            tally.events += world.events
            tally.decisions += world.decisions
            tally.verdicts += world.verdicts
    return tally


# Methods of the scheduler that only ask.
QUESTIONS = {"deadline", "lendable"}
VERDICTS = (
    *("result", "unpicklable", "cancelled", "refused", "broken"),
    *(f"lost: {cause}" for cause in CAUSES),
    *(f"another attempt after {cause}" for cause in (*CAUSES, RETRIABLE)),
)


def events() -> set[str]:
    """Everything that the scheduler can be told."""
    methods = {name for name, method in vars(Scheduler).items() if callable(method)}
    return {name for name in methods if not name.startswith("_")} - QUESTIONS | {"bring_back"}


def never_happened(tally: Tally) -> list[str]:
    """Actions, events, decisions and verdicts that are not in it."""
    missing = {one.name for one in ACTIONS} - set(tally.actions)
    missing |= events() - set(tally.events)
    missing |= set(DECISIONS.values()) - set(tally.decisions)
    missing |= set(VERDICTS) - set(tally.verdicts)
    return sorted(missing)


def replay(
    seed: int, steps: int | None = None, *, last: int | None = None
) -> tuple[list[str], str | None]:
    """The last lines of what happened in this seed's history, and the error's stack if it fails."""
    lines: deque[str] = deque(maxlen=last)
    planned, thorough = plan(seed)
    try:
        walk(seed, steps or planned, thorough=thorough, trace=lines.append)
    except Exception:
        return list(lines), traceback.format_exc()
    return list(lines), None
