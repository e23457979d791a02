"""What a worker makes of the memory that it uses: when it asks to be replaced, when it leaves.

First the object by itself, with made-up figures; then in a pool, where the worker is replaced.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pool_tasks import hoard, keep, keep_cycle, look_often, pass_through
from rendezvous import PATIENCE, Gate, ended

from loky import ProcessPoolExecutor
from loky.wire import protocol
from loky.worker import footprint
from loky.worker.footprint import INTERVAL, QUIT, Footprint

MB = 1_000_000


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The clock, what is in use, what of it a collection frees, and what was sent."""
    world = SimpleNamespace(now=100.0, used=10 * MB, garbage=0, sent=[], collections=0)

    def collect() -> None:
        world.collections += 1
        if world.garbage:
            world.used -= world.garbage
            world.garbage = 0

    monkeypatch.delenv("LOKY_MAX_MEMORY_LEAK_SIZE", raising=False)
    monkeypatch.setattr(footprint, "perf_counter", lambda: world.now)
    monkeypatch.setattr(footprint.memory, "anonymous", lambda pid: world.used)
    monkeypatch.setattr(footprint, "gc", SimpleNamespace(collect=collect))
    yield world


def make(world: SimpleNamespace, soft: int | None = None, hard: int | None = None) -> Footprint:
    return Footprint(lambda *frame: world.sent.append(frame), (soft, hard))


def look(world: SimpleNamespace, print_: Footprint, used: int, seconds: float = INTERVAL) -> float:
    world.now += seconds
    world.used = used
    return print_.look()


def test_a_worker_that_has_grown_by_more_than_300_mb_asks_once(world: SimpleNamespace) -> None:
    one = make(world)
    assert look(world, one, 10 * MB) == world.now + INTERVAL
    look(world, one, 309 * MB)
    assert not world.sent
    assert look(world, one, 311 * MB) == world.now + INTERVAL
    look(world, one, 400 * MB)
    assert world.sent == [(protocol.RECYCLE, 311 * MB, protocol.GROWS)]


def test_what_a_collection_frees_is_no_leak(world: SimpleNamespace) -> None:
    one = make(world)
    look(world, one, 10 * MB)
    for _ in range(10):
        world.garbage = 390 * MB
        look(world, one, 400 * MB)
    assert not world.sent
    assert world.collections == 10


def test_nothing_is_collected_while_little_is_gained(world: SimpleNamespace) -> None:
    one = make(world)
    for used in (10, 39, 30, 39):
        look(world, one, used * MB)
    assert world.collections == 0
    look(world, one, 41 * MB)
    look(world, one, 70 * MB)
    assert world.collections == 1, "30 MB each time"


@pytest.mark.parametrize(
    ("value", "limit"), [("1e6", MB), ("1000000", MB), ("what?", 300 * MB), ("", 300 * MB)]
)
def test_the_size_of_a_leak_comes_from_the_environment(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, value: str, limit: int
) -> None:
    monkeypatch.setenv("LOKY_MAX_MEMORY_LEAK_SIZE", value)
    one = make(world)
    look(world, one, 0)
    look(world, one, limit)
    assert not world.sent
    look(world, one, limit + 1)
    assert world.sent


def test_above_the_soft_limit_it_asks_once_and_goes_on(world: SimpleNamespace) -> None:
    one = make(world, soft=50 * MB)
    assert look(world, one, 50 * MB, 0) == 0, "after every task"
    world.garbage = 10 * MB
    look(world, one, 51 * MB, 0)
    assert not world.sent
    for _ in range(3):
        assert look(world, one, 51 * MB, 0) == 0
    assert world.sent == [(protocol.RECYCLE, 51 * MB, protocol.TOO_LARGE)]


def test_above_the_hard_limit_it_leaves(world: SimpleNamespace) -> None:
    one = make(world, hard=50 * MB)
    world.garbage = 10 * MB
    assert look(world, one, 51 * MB, 0) == 0
    assert look(world, one, 51 * MB, 0) == QUIT
    assert world.sent == [(protocol.RECYCLE, 51 * MB, protocol.QUITS)]


def test_tasks_can_say_how_often_to_look(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loky import process_executor

    for given, interval in ((0.1, 0.1), (2, 2), ("often", INTERVAL)):
        monkeypatch.setattr(process_executor, "_MEMORY_LEAK_CHECK_DELAY", given)
        assert make(world).look() == world.now + interval


def test_where_nothing_can_be_measured_garbage_is_collected(world: SimpleNamespace) -> None:
    one = make(world)
    for _ in range(3):
        assert look(world, one, None) == world.now + INTERVAL  # type: ignore[arg-type]
    assert world.collections == 3
    assert not world.sent


# In a pool ---------------------------------------------------------------------------------------


def until_replaced(executor: ProcessPoolExecutor, pid: int) -> int:
    """Run tasks until another worker than this one runs them; its process id."""
    deadline = time.monotonic() + PATIENCE
    while (another := executor.submit(os.getpid).result()) == pid:
        assert time.monotonic() < deadline
    return another


def pids_of(executor: ProcessPoolExecutor, function: Any, size: int, times: int) -> list[int]:
    return [executor.submit(function, size).result() for _ in range(times)]


@pytest.mark.usefixtures("no_leftovers")
def test_a_leaking_worker_is_replaced_by_one_that_is_ready(
    recwarn: pytest.WarningsRecorder,
) -> None:
    with ProcessPoolExecutor(
        1,
        env={"LOKY_MAX_MEMORY_LEAK_SIZE": str(30 * MB)},
        initializer=look_often,
    ) as executor:
        pids = pids_of(executor, keep, MB, 40)
        assert len(set(pids[:25])) == 1
        if len(set(pids)) == 1:  # it goes on until its heir is ready
            until_replaced(executor, pids[0])
    assert executor.stats().ended == {"memory_leak": 1, "shutdown": 1}
    assert not recwarn, "that is no reason for a warning"


@pytest.mark.usefixtures("no_leftovers")
def test_a_long_initializer_does_not_show(tmp_path: Path) -> None:
    with (
        Gate(tmp_path) as gate,
        ProcessPoolExecutor(
            1, recycle_memory_per_worker="60MB", initializer=pass_through, initargs=(gate.path,)
        ) as executor,
    ):
        kept = executor.submit(keep, 100 * MB)
        (first,) = gate.arrivals()
        gate.open()
        assert kept.result() == first
        (heir,) = gate.arrivals()  # in its initializer, for as long as it likes
        assert {executor.submit(os.getpid).result() for _ in range(20)} == {first}
        gate.open()
        assert until_replaced(executor, first) == heir
        assert ended(first)


@pytest.mark.usefixtures("no_leftovers")
def test_a_long_initializer_does_not_show_when_the_number_of_tasks_is_limited(
    tmp_path: Path,
) -> None:
    with (
        Gate(tmp_path) as gate,
        ProcessPoolExecutor(
            1, max_tasks_per_child=3, initializer=pass_through, initargs=(gate.path,)
        ) as executor,
    ):
        futures = [executor.submit(os.getpid) for _ in range(2)]
        (first,) = gate.arrivals()
        gate.open()
        pids = [future.result() for future in futures]
        (heir,) = gate.arrivals()
        gate.open()
        deadline = time.monotonic() + PATIENCE
        while [worker.state for worker in executor.stats().workers] != ["idle", "idle"]:
            assert time.monotonic() < deadline
        pids += [executor.submit(os.getpid).result() for _ in range(2)]
        assert pids == [first, first, first, heir]
        gate.open(2)  # for the next ones


@pytest.mark.usefixtures("no_leftovers")
def test_garbage_is_no_leak() -> None:
    with ProcessPoolExecutor(
        1,
        env={"LOKY_MAX_MEMORY_LEAK_SIZE": str(30 * MB)},
        initializer=look_often,
    ) as executor:
        assert len(set(pids_of(executor, keep_cycle, MB, 100))) == 1
    assert executor.stats().ended == {"shutdown": 1}


@pytest.mark.usefixtures("no_leftovers")
def test_a_worker_above_the_soft_limit_is_replaced() -> None:
    with ProcessPoolExecutor(1, recycle_memory_per_worker="60MB") as executor:
        first = executor.submit(os.getpid).result()
        assert executor.submit(keep, 100 * MB).result() == first
        until_replaced(executor, first)
        assert executor.submit(hoard, 100 * MB).result() == 100 * MB, "what is given back is fine"
    assert executor.stats().ended == {"recycle_memory_per_worker": 1, "shutdown": 1}


@pytest.mark.usefixtures("no_leftovers")
def test_a_worker_that_a_task_has_left_above_the_hard_limit_serves_no_other() -> None:
    with ProcessPoolExecutor(1, max_memory_per_worker="80MB") as executor:
        executor.submit(os.getpid).result()
        # Quicker than anybody looks, most often; else it fails, which is right as well.
        kept = [executor.submit(keep, 100 * MB) for _ in range(5)]
        others = [executor.submit(os.getpid) for _ in range(5)]
        finished = {future.result() for future in kept if future.exception() is None}
        assert not finished & {future.result() for future in others}
