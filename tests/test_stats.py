"""Figures about a pool: right in every state of it, whatever happens to its calls."""

from __future__ import annotations

import os
import pickle
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pool_tasks import Unloadable, fail_with, killed, pass_through
from rendezvous import PATIENCE, Gate, ended, kill
from worker_tasks import burn

from loky import ProcessPoolExecutor, get_reusable_executor
from loky.observe.stats import Stats


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path) as gate:
        yield gate


def check(stats: Stats) -> Stats:
    """What holds whenever it is asked for."""
    assert stats.submitted == stats.completed + stats.failed + stats.cancelled + stats.pending
    assert 0 <= stats.queued <= stats.pending
    assert stats.started == len(stats.workers) + sum(stats.ended.values())
    assert 0 <= stats.busy_fraction <= 1
    assert pickle.loads(pickle.dumps(stats)) == stats
    return stats


def test_a_pool_that_was_never_used() -> None:
    executor = ProcessPoolExecutor(3)
    stats = check(executor.stats())
    assert (stats.state, stats.max_workers, stats.workers) == ("new", 3, ())
    assert stats.submitted == stats.started == stats.bytes_sent == 0
    assert stats.restarts == {} and stats.busy_fraction == 0
    executor.shutdown()
    assert check(executor.stats()).state == "closed"


def test_what_becomes_of_calls(gate: Gate) -> None:
    with ProcessPoolExecutor(1) as executor:
        for number in range(5):
            executor.submit(abs, number).result()
        executor.submit(fail_with, ValueError()).exception()
        executor.submit(Unloadable).exception()  # the result cannot be unpickled
        executor.submit(abs, "raises").exception()
        executor.submit(abs, threading.Lock()).exception()  # cannot be pickled
        executor.submit(killed).exception()
        executor.submit(pass_through, gate.path)
        gate.arrivals()
        waiting = executor.submit(abs, 1)
        sent = executor.submit(abs, 2)
        assert waiting.cancel()
        stats = check(executor.stats())
        assert (stats.completed, stats.failed, stats.cancelled) == (5, 5, 1)
        assert (stats.pending, stats.queued) == (2, 1)
        assert stats.state == "open"
        gate.open()
        assert sent.result() == 2
    stats = check(executor.stats())
    assert (stats.state, stats.completed, stats.pending) == ("closed", 7, 0)


def test_calls_on_the_way_back() -> None:
    """While a callback runs, what came after its call is not over yet."""
    found: queue.SimpleQueue[Stats] = queue.SimpleQueue()
    with ProcessPoolExecutor(1) as executor:
        first = executor.submit(abs, -1)
        first.add_done_callback(lambda _: found.put(executor.stats()))
        assert first.result() == 1
        stats = check(found.get(timeout=PATIENCE))
    assert (stats.submitted, stats.completed, stats.pending) == (1, 1, 0)


def test_workers(gate: Gate) -> None:
    with ProcessPoolExecutor(2) as executor:
        executor.submit(pass_through, gate.path)
        (pid,) = gate.arrivals()
        while executor.submit(os.getpid).result() == pid:
            pass
        stats = check(executor.stats())
        assert sorted(worker.pid for worker in stats.workers) == sorted(executor._pool.pids())
        (busy,) = [worker for worker in stats.workers if worker.pid == pid]
        (idle,) = [worker for worker in stats.workers if worker.pid != pid]
        assert (busy.state, busy.task) == ("busy", "pool_tasks.pass_through")
        assert (idle.state, idle.task) == ("idle", None)
        assert busy.seconds >= 0 and busy.busy_seconds >= busy.seconds
        assert sum(worker.tasks_done for worker in stats.workers) == stats.completed
        gate.open()


def test_how_busy_the_workers_are() -> None:
    with ProcessPoolExecutor(1) as executor:
        executor.submit(burn, 0.2).result()
        stats = check(executor.stats())
    assert 0.2 <= stats.busy_seconds <= stats.worker_seconds
    after = check(executor.stats())
    assert after.busy_seconds == pytest.approx(stats.busy_seconds, abs=1e-3)
    assert after.worker_seconds >= stats.worker_seconds


@pytest.mark.parametrize("by_value", [False, True])
def test_bytes(by_value: bool) -> None:
    size = 3 << 20
    with ProcessPoolExecutor(1) as executor:
        fn: Any = (lambda data: data) if by_value else bytes
        before = executor.stats()
        assert len(executor.submit(fn, b"x" * size).result()) == size
        stats = check(executor.stats())
        assert size <= stats.bytes_sent - before.bytes_sent < size + 5000
        assert size <= stats.bytes_received - before.bytes_received < size + 5000
        for _ in range(20):  # the short way
            executor.submit(bytes, b"y" * 1000).result()
        more = check(executor.stats())
        assert 20_000 <= more.bytes_sent - stats.bytes_sent < 30_000
        assert 20_000 <= more.bytes_received - stats.bytes_received < 30_000


def test_why_workers_ended(gate: Gate) -> None:
    with ProcessPoolExecutor(1) as executor:
        executor.submit(killed).exception()
        pid = executor.submit(os.getpid).result()
        kill(pid)
        while executor.submit(os.getpid).exception() is not None:
            pass
        future = executor.submit(pass_through, gate.path)
        gate.arrivals()
        assert future.cancel(kill=True)
        executor.submit(abs, 1).result()
        stats = check(executor.stats())
        assert stats.restarts == stats.ended
        assert stats.ended["cancel"] == 1
        assert stats.ended["crash"] + stats.ended.get("crash_idle", 0) == 2
    stats = check(executor.stats())
    assert stats.ended["shutdown"] == 1 and "shutdown" not in stats.restarts


def test_workers_that_are_replaced_after_some_tasks() -> None:
    with ProcessPoolExecutor(1, max_tasks_per_child=2) as executor:
        for _ in range(6):
            executor.submit(abs, 1).result()
    ends = check(executor.stats()).ended
    assert ends["max_tasks_per_child"] >= 2
    assert set(ends) <= {"max_tasks_per_child", "shutdown"}


def test_workers_that_were_idle_for_too_long() -> None:
    with ProcessPoolExecutor(1, timeout=0) as executor:
        assert ended(executor.submit(os.getpid).result())
        executor.submit(abs, 1).result()
        stats = check(executor.stats())
    assert stats.ended["not_needed"] == 1 and stats.restarts == {}


def test_a_broken_pool() -> None:
    with ProcessPoolExecutor(1, crash_policy="break") as executor:
        executor.submit(killed).exception()
        assert check(executor.stats()).state == "broken"
    stats = check(executor.stats())
    assert (stats.state, stats.failed) == ("broken", 1)


def test_a_pool_whose_workers_are_killed(gate: Gate) -> None:
    with ProcessPoolExecutor(1) as executor:
        executor.submit(pass_through, gate.path)
        gate.arrivals()
        futures = [executor.submit(abs, 1) for _ in range(3)]
        executor.shutdown(kill_workers=True)
    assert all(future.done() for future in futures)
    stats = check(executor.stats())
    assert (stats.failed, stats.pending, stats.ended) == (4, 0, {"shutdown": 1})


def test_in_the_child_of_a_fork() -> None:
    with ProcessPoolExecutor(1) as executor:
        executor.submit(abs, 1).result()
        child = os.fork()
        if not child:
            try:
                stats = executor.stats()
                os._exit(not (stats.state == "abandoned" and not stats.workers))
            finally:
                os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_reusable_executor() -> None:
    executor = get_reusable_executor(max_workers=2)
    executor.submit(abs, 1).result()
    executor = get_reusable_executor(max_workers=1)
    assert check(executor.stats()).max_workers == 1
    executor.shutdown()


def test_many_calls_while_asking() -> None:
    with ProcessPoolExecutor(2) as executor:
        futures = []
        seen = []
        for number in range(2000):
            futures.append(executor.submit(abs, number))
            if number % 100 == 0:
                seen.append(executor.stats())
        assert [future.result() for future in futures] == list(range(2000))
        last = check(executor.stats())
    assert (last.submitted, last.completed, last.queued) == (2000, 2000, 0)
    for number, stats in enumerate(seen):
        assert stats.submitted == 100 * number + 1
        assert stats.completed <= stats.submitted
