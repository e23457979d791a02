"""What a chaos run is made of: calls, actions, episodes. Plain data.

Rule: nothing is decided here (see `plan`), nothing is done (see `driver`). Times are seconds from
the start of an episode.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Call:
    """One call of `tasks.work`."""

    number: int
    kind: str
    seconds: float = 0.0
    size: int = 0
    options: tuple[tuple[str, Any], ...] = ()  # of the task, by name; see `executor.options`


@dataclass(frozen=True)
class Submit:
    """Submit a call, with a callback of this kind; then perhaps wait for its result."""

    at: float
    call: Call
    callback: str = "count"
    wait: bool = False


@dataclass(frozen=True)
class Burst:
    """Submit many quick calls, one right after the other."""

    at: float
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class Map:
    """Map over calls, take the first `take` results, then close the iterator.

    Not `ordered`, or with "skip", all calls are of `NUMBERED` kinds: results tell whose they are.
    """

    at: float
    calls: tuple[Call, ...]
    chunksize: int
    buffersize: int | None
    take: int
    ordered: bool = True
    on_error: str = "raise"


@dataclass(frozen=True)
class Cancel:
    """Cancel a call that the same actor has submitted."""

    at: float
    number: int
    kill: bool


@dataclass(frozen=True)
class Rescue:
    """Wait until somebody has submitted this call; so many seconds later, cancel it with `kill`."""

    at: float
    number: int
    seconds: float


@dataclass(frozen=True)
class Wait:
    """Wait until the future of a call that the same actor has submitted is done."""

    at: float
    number: int


@dataclass(frozen=True)
class Strike:
    """Send a worker a signal. `pick` chooses the worker, `busy` asks for one in a long task.

    STOP is followed by CONT after `seconds`.
    """

    at: float
    signal: str
    busy: bool
    pick: float
    seconds: float = 0.0


@dataclass(frozen=True)
class Resize:
    """Ask for the reusable executor with this many workers."""

    at: float
    workers: int


@dataclass(frozen=True)
class Swap:
    """Ask for the reusable executor with other arguments: another one takes its place."""

    at: float
    workers: int


@dataclass(frozen=True)
class Fork:
    """Fork the parent; the child looks at what it has inherited, and perhaps makes a pool."""

    at: float
    makes_pool: bool


@dataclass(frozen=True)
class Await:
    """In an event loop, await a call; cancel whoever awaits it after `patience` seconds."""

    at: float
    call: Call
    patience: float | None


@dataclass(frozen=True)
class AwaitMap:
    """In an event loop, map over calls, as results come; leave after `take` of them."""

    at: float
    calls: tuple[Call, ...]
    buffersize: int | None
    take: int


@dataclass(frozen=True)
class Dump:
    """Ask for the stacks of all workers."""

    at: float


@dataclass(frozen=True)
class Squeeze:
    """Leave this process room for so few more descriptors, for a while."""

    at: float
    room: int
    seconds: float


Work = Submit | Burst | Map | Cancel | Rescue | Wait | Await | AwaitMap
Action = Work | Strike | Resize | Swap | Fork | Dump | Squeeze


@dataclass
class Episode:
    """One pool's life.

    `ending` is one of: drain, shutdown, kill, cancel, collect, storm. With `early`, it comes while
    the actors are still at work. The nuisances hold for the whole of it: "switch", the seconds
    after which threads are switched; "gc", allocations between collections; "ticks", seconds
    between signals that interrupt system calls of the main thread; "squeezes", whether descriptors
    run out at times.
    """

    seed: int
    index: int
    workers: int
    reusable: bool
    options: dict[str, Any]
    seconds: float
    ending: str
    early: bool
    nuisances: dict[str, float] = field(default_factory=dict)
    actors: dict[str, list[Action]] = field(default_factory=dict)

    def calls(self) -> list[Call]:
        """Every call of the plan; callbacks that submit make some more."""
        found: list[Call] = []
        for actions in self.actors.values():
            for action in actions:
                if isinstance(action, Submit | Await):
                    found.append(action.call)
                elif isinstance(action, Burst | Map | AwaitMap):
                    found += action.calls
        return found


def signal_number(name: str) -> int:
    """The number of a signal that a plan names."""
    return int(getattr(signal, f"SIG{name}"))
