"""From a seed to what will be done: a pure function.

Rule 1: every choice of a chaos run is made here, and each is drawn from `random.Random(seed)`. What
the operating system then makes of it (who is faster, whom a signal meets) is not replayed; the
history of actions is.

Rule 2: no I/O, no clock, nothing of the pool's. Times are seconds from the start of an episode.

A run is a sequence of *episodes*. Each makes a pool, lets several *actors* work on it at the same
time, each with its own list of actions, and ends the pool in some way. Episode k of a seed is the
same whatever came before it, so it can be replayed alone.

What the pool promises has bounds, and a plan stays within them: deaths of idle or starting workers
break the pool when there are too many (the restart intensity), so strikes that may meet an idle
worker have a budget. Where the plan exceeds it on purpose (the ending "storm"), a broken pool is
what has to come of it.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from .actions import (
    Action,
    Await,
    AwaitMap,
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

# kind -> weight. Those that take `seconds` or `size` are drawn below.
GOOD = {
    "quick": 30,
    "sleep": 12,
    "spin": 8,
    "large-argument": 4,
    "large-result": 4,
    "large-both": 2,
    "slow-to-pickle": 2,
    "slow-to-load": 2,
    "closure": 4,
    "hold-the-gil": 3,
    "leak": 2,
    "talk": 2,
    "thread": 2,
    "fork": 2,
    "fork-and-wait": 1,
    "fork-twice": 1,
    "ignore-sigterm": 1,
}
FAILING = {
    "raise": 4,
    "raise-unpicklable": 2,
    "raise-unloadable": 2,
    "bad-argument": 2,
    "unloadable-argument": 2,
    "bad-result": 2,
    "unloadable-result": 2,
    "sys-exit": 1,
    "interrupt": 1,
}
DEADLY = {"exit": 3, "segfault": 2, "abort": 1, "kill-self": 2, "close-all": 2}
# Their arguments or results run code of theirs in the parent; a map over them would be slow.
FOR_MAP = {"quick": 40, "sleep": 4, "large-result": 2, "raise": 1, "exit": 1, "slow-to-load": 1}

NUMBERED = {"quick": 40, "sleep": 4, "raise": 1, "exit": 1}
# These need options: without a limit, or other attempts, there would be no end, or no value.
OPTIONAL = {
    "overdue": 3,
    "overdue-deaf": 1,
    "overdue-gil": 1,
    "flaky-raise": 3,
    "flaky-exit": 2,
    "hog": 2,
}

# What a callback does besides being counted.
CALLBACKS = {"count": 20, "submit": 2, "wait": 2, "raise": 1, "slow": 1, "cancel": 1}

SIGNALS = {"KILL": 5, "TERM": 2, "SEGV": 2, "STOP": 4}

BOMBS = 2

# What tasks leak gets above the first in a while; only what hogs memory gets above the second.
RECYCLE_BYTES = 30 << 20
MOST_BYTES = 120 << 20

# By the tasks after which workers are replaced: how much rarer actions are.
DEAR = {1: 25, 3: 10, 20: 3}


def strikes_on_anybody(workers: int) -> int:
    """How many strikes a pool of that size bears that may meet idle or starting workers.

    It breaks after max(3, 2 x workers) failed starts in a row, or more than 5 + 2 x workers deaths
    outside of tasks; bombs, and tasks that end a moment before the strike that was meant for them,
    need some of those.
    """
    return max(3, 2 * workers) - 1


class _Planner:
    def __init__(self, seed: int, index: int, max_workers: int) -> None:
        self.random = random.Random(f"loky chaos {seed} {index}")
        draw = self.random
        self.max_workers = max_workers
        self.numbers = 0
        workers = draw.randint(1, max_workers)
        reusable = draw.random() < 0.5
        options: dict[str, Any] = {
            "timeout": draw.choice([None, None, 0.02, 0.3]),
            "max_tasks_per_child": draw.choice([None, None, None, 1, 3, 20]),
            "initializer": draw.choice(["", "", "", "quick", "slow"]),
            "crash_policy": "isolate",
            "recycle_memory_per_worker": draw.choice([None, None, None, RECYCLE_BYTES]),
            "max_memory_per_worker": draw.choice([None, None, None, MOST_BYTES]),
            "relay": draw.choice(["", "", "logging,warnings"]),
        }
        ending = self._one({"drain": 6, "shutdown": 4, "kill": 3, "cancel": 3, "collect": 3})
        if draw.random() < 0.08:
            options["crash_policy"] = "break"
        elif draw.random() < 0.08:
            ending = "storm"
            options["timeout"] = None
        # Where workers are often replaced there must be fewer tasks, or it takes too long.
        self.dear = DEAR.get(options["max_tasks_per_child"], 1)
        early = ending in ("shutdown", "kill", "cancel") and draw.random() < 0.4
        self.episode = Episode(
            seed,
            index,
            workers,
            reusable,
            options,
            round(draw.uniform(0.6, 3.0), 3),
            ending,
            early,
        )

    def _nuisances(self) -> dict[str, float]:
        draw = self.random
        found: dict[str, float] = {}
        if draw.random() < 0.3:
            found["switch"] = draw.choice([1e-6, 1e-5, 1e-4])
        if draw.random() < 0.15:
            found["gc"] = draw.choice([1, 20])
        if draw.random() < 0.15:
            found["ticks"] = draw.choice([0.001, 0.02])
        if draw.random() < 0.1:
            found["squeezes"] = 1
        return found

    def _one(self, weights: dict[str, int]) -> str:
        return self.random.choices(list(weights), list(weights.values()))[0]

    def _number(self) -> int:
        self.numbers += 1
        return self.numbers

    def _call(self, kind: str) -> Call:
        draw = self.random
        if kind == "hog" and self.episode.options["max_memory_per_worker"] is None:
            kind = "leak"  # nobody would stop it
        if kind == "talk" and not self.episode.options["relay"]:
            kind = "quick"  # it would be seen
        seconds = 0.0
        size = 0
        if kind == "sleep":
            seconds = draw.choice([0.001, 0.003, 0.02, 0.1, 0.3])
        elif kind in ("spin", "hold-the-gil"):
            seconds = draw.choice([0.0005, 0.002, 0.02, 0.1])
        elif kind in ("slow-to-pickle", "slow-to-load"):
            seconds = draw.choice([0.001, 0.02])
        elif kind in ("fork", "fork-and-wait", "thread"):
            seconds = draw.choice([0.0, 0.05, 0.3])
            size = draw.randint(0, 1)
        elif kind == "ignore-sigterm":
            seconds = draw.choice([0.0, 0.1])
        elif kind == "bomb":
            seconds = draw.choice([0.0, 0.001, 0.01, 0.1])
        elif kind == "stuck" or kind.startswith("overdue"):
            seconds = 1000.0
        elif kind.startswith("flaky"):
            size = draw.randint(1, 2)
        elif kind in ("large-argument", "large-result", "large-both"):
            size = draw.choice([30_000, 33_000, 200_000, 300_000, 4_000_000])
        elif kind == "hog":
            seconds, size = 1000.0, 2 * MOST_BYTES
        elif kind == "leak":
            size = draw.choice([100_000, 2_000_000])
        return Call(self._number(), kind, seconds, size, tuple(self._options(kind).items()))

    def _options(self, kind: str) -> dict[str, Any]:
        draw = self.random
        found: dict[str, Any] = {}
        if kind.startswith("overdue"):
            found["timeout"] = draw.choice([0.05, 0.2])
            found["retries"] = draw.choice([0, 0, 1])
            found["kill_grace"] = draw.choice([0.0, 0.05, 0.3])
        elif kind.startswith("flaky"):
            found["retries"] = draw.randint(1, 3)
            found["retry_on"] = ("crash", "ChaosError")
        elif draw.random() < 0.9 or kind == "stuck":
            return found
        else:
            if draw.random() < 0.5:
                found["timeout"] = draw.choice([0.02, 0.1, 60.0])
            if draw.random() < 0.6:
                found["retries"] = draw.randint(1, 3)
                if draw.random() < 0.4:
                    found["retry_on"] = draw.choice(
                        [("crash",), ("timeout",), ("ChaosError",), ("crash", "ChaosError")]
                    )
        if "retries" in found and draw.random() < 0.5:
            found["backoff"] = draw.choice([0.001, 0.05, (0.0, 0.03)])
        if draw.random() < 0.4:
            found["priority"] = draw.choice([-1, 1, 5])
        return found

    def make(self) -> Episode:
        episode = self.episode
        draw = self.random
        episode.nuisances = self._nuisances()
        smallest = self._director()
        bombs = draw.randint(0, BOMBS)
        for index in range(draw.randint(1, 3)):
            bombs = self._submitter(f"submitter-{index + 1}", bombs)
        if draw.random() < 0.4:
            self._awaiter()
        self._striker(strikes_on_anybody(smallest))
        return episode

    def _times(self, mean_gap: float, part: float = 1.0) -> list[float]:
        """Moments of an actor's actions: at random, on average that far apart."""
        times = []
        at = self.random.expovariate(1 / mean_gap)
        while at < self.episode.seconds * part:
            times.append(round(at, 4))
            at += self.random.expovariate(1 / mean_gap)
        return times

    def _submitter(self, name: str, bombs: int) -> int:
        draw = self.random
        actions: list[Action] = []
        rescues: list[Action] = []
        mine: list[int] = []
        stuck: set[int] = set()
        mood = draw.choice([0.005, 0.015, 0.05]) * self.dear
        danger = draw.choice([0.0, 0.03, 0.15])
        for at in self._times(mood):
            chance = draw.random()
            if chance < 0.03:
                count = draw.choice([2, 5] if self.dear > 5 else [5, 40, 200])
                calls = tuple(self._call("quick") for _ in range(count))
                actions.append(Burst(at, calls))
                mine += [call.number for call in calls]
            elif chance < 0.06:
                actions.append(self._map(at))
            elif chance < 0.16 and mine:
                near = mine[-draw.choice([1, 3, 30, 300]) :]
                number = draw.choice(near)
                kill = draw.random() < 0.4
                actions.append(Cancel(at, number, kill))
            elif chance < 0.20 and mine:
                number = draw.choice(mine[-20:])
                if number not in stuck:
                    actions.append(Wait(at, number))
            else:
                if draw.random() < 0.04:
                    kind = self._one(OPTIONAL)
                elif bombs and draw.random() < 0.02:
                    kind = "bomb"
                    bombs -= 1
                elif draw.random() < 0.02:
                    kind = "stuck"
                elif draw.random() < danger:
                    kind = self._one(DEADLY)
                elif draw.random() < 0.12:
                    kind = self._one(FAILING)
                else:
                    kind = self._one(GOOD)
                call = self._call(kind)
                waits = kind != "stuck" and draw.random() < 0.15
                actions.append(Submit(at, call, self._one(CALLBACKS), waits))
                mine.append(call.number)
                if kind == "stuck":
                    stuck.add(call.number)
                    rescues.append(Rescue(at, call.number, draw.choice([0.0, 0.01, 0.1, 0.4])))
        self.episode.actors[name] = actions
        # By somebody else: whoever has submitted them may wait for what is queued behind them.
        self.episode.actors[f"rescuer of {name}"] = rescues
        return bombs

    def _map(self, at: float) -> Map:
        draw = self.random
        count = draw.choice([2, 5] if self.dear > 5 else [3, 30, 200])
        ordered = draw.random() < 0.75
        on_error = draw.choice(["raise", "raise", "collect", "skip"])
        kinds = FOR_MAP if ordered and on_error != "skip" else NUMBERED
        pure = draw.random() < 0.6
        calls = tuple(self._call("quick" if pure else self._one(kinds)) for _ in range(count))
        # All calls of a map are treated alike.
        options = (("retries", draw.randint(1, 2)),) if draw.random() < 0.2 else ()
        return Map(
            at,
            tuple(replace(call, options=options) for call in calls),
            draw.choice([1, 1, 5]),
            draw.choice([None, None, 1, 8]),
            draw.choice([count, count, count // 2, 0]),
            ordered,
            on_error,
        )

    def _awaiter(self) -> None:
        """Plan the part of the actor that lives in an event loop."""
        draw = self.random
        actions: list[Action] = []
        for at in self._times(draw.choice([0.01, 0.05]) * self.dear):
            if draw.random() < 0.1:
                count = draw.choice([3, 30])
                calls = tuple(self._call(self._one(NUMBERED)) for _ in range(count))
                # Retries, or a limit, of one of them would be those of all.
                calls = tuple(replace(call, options=()) for call in calls)
                take = draw.choice([count, count, 2])
                actions.append(AwaitMap(at, calls, draw.choice([None, 1, 8]), take))
                continue
            kinds = draw.choice([GOOD, GOOD, GOOD, FAILING, OPTIONAL, {"stuck": 1}])
            call = self._call(self._one(kinds))
            patience = draw.choice([None, None, 0.0, 0.01, 0.1])
            if call.kind == "stuck":
                patience = patience or 0.2
            actions.append(Await(at, call, patience))
        self.episode.actors["async"] = actions

    def _director(self) -> int:
        """Plan resizes, swaps and forks; the smallest number of workers there will be."""
        draw = self.random
        episode = self.episode
        actions: list[Action] = []
        smallest = episode.workers
        for at in self._times(0.5):
            chance = draw.random()
            if chance < 0.25:
                actions.append(Fork(at, draw.random() < 0.3))
            elif chance < 0.4:
                actions.append(Dump(at))
            elif "squeezes" in episode.nuisances:
                actions.append(
                    Squeeze(at, draw.choice([0, 1, 2, 3, 8]), draw.choice([0.02, 0.1, 0.3]))
                )
            elif episode.reusable and chance < 0.85:
                workers = draw.randint(1, self.max_workers)
                smallest = min(smallest, workers)
                actions.append(Resize(at, workers))
            elif episode.reusable:
                workers = draw.randint(1, self.max_workers)
                smallest = min(smallest, workers)
                actions.append(Swap(at, workers))
        episode.actors["director"] = actions
        return smallest

    def _striker(self, budget: int) -> None:
        draw = self.random
        actions: list[Action] = []
        # They go on while the pool is being shut down.
        for at in self._times(draw.choice([0.04, 0.15, 0.5]), 1.3):
            signame = self._one(SIGNALS)
            busy = draw.random() < 0.6
            if signame != "STOP" and not busy:
                if budget <= 0:
                    busy = True
                budget -= 1
            seconds = draw.choice([0.005, 0.05, 0.3, 1.2]) if signame == "STOP" else 0.0
            actions.append(Strike(at, signame, busy, round(draw.random(), 6), seconds))
        self.episode.actors["striker"] = actions


def plan(seed: int, index: int, max_workers: int = 4) -> Episode:
    """Episode number `index` of this seed."""
    return _Planner(seed, index, max_workers).make()
