"""Limits of memory: who is ended for using too much, who has to wait, and who is left alone.

Where real memory would have to be exhausted, the figures are made up: `Figures` takes the place of
what the parent measures. The rest is measured in earnest.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import pytest
from pool_tasks import (
    fill_shared_memory,
    hoard,
    hoard_the_first_time,
    pass_through,
    pid_through,
)
from rendezvous import PATIENCE, Gate

import loky
from loky import ProcessPoolExecutor, TaskMemoryError, TerminatedWorkerError, memory
from loky.pool import limits
from loky.pool.limits import INTERVAL

MB = 1_000_000


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path) as gate:
        yield gate


class Looks:
    """Lets a test wait until the parent has looked at the workers so many times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._more = threading.Condition()
        real = limits.Limits._measure

        def measure(one: Any, ports: Any) -> Any:
            try:
                return real(one, ports)
            finally:
                with self._more:
                    self.count += 1
                    self._more.notify_all()

        monkeypatch.setattr(limits.Limits, "_measure", measure)

    def wait(self, times: int = 2) -> None:
        """Two: the first may have begun before what the test has changed."""
        with self._more:
            last = self.count + times
            assert self._more.wait_for(lambda: self.count >= last, PATIENCE)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


class Figures:
    """What the parent is told: of workers by their process ids, and of the machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used: dict[int, int] = {}
        self.available = 10**12
        monkeypatch.setattr(limits.memory, "anonymous", self._anonymous)
        monkeypatch.setattr(
            limits.memory, "total_and_available", lambda: (2 * 10**12, self.available)
        )

    def _anonymous(self, pid: int) -> int | None:
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return None
        return None if state in "ZX" else self.used.get(pid, 10 * MB)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Figures:
    return Figures(monkeypatch)


# One worker --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_leftovers")
def test_a_task_that_takes_too_much_is_ended_and_nothing_else(gate: Gate) -> None:
    with ProcessPoolExecutor(2, max_memory_per_worker="100MB") as executor:
        bystander = executor.submit(pid_through, gate.path)
        (pid,) = gate.arrivals()
        greedy = executor.submit(hoard)
        behind = [executor.submit(abs, -n) for n in range(20)]
        error = greedy.exception()
        assert type(error) is TaskMemoryError
        assert isinstance(error, TerminatedWorkerError) and isinstance(error, MemoryError)
        assert error.limit == 100 * MB < error.peak
        assert error.post_mortem is not None and error.post_mortem.peak_memory is not None
        assert error.post_mortem.peak_memory >= error.peak
        assert executor.stats().restarts == {"memory": 1}
        assert error.task == "pool_tasks.hoard" and error.exitcode == -9
        text = str(error)
        assert "more than max_memory_per_worker allows (100 MB)" in text
        assert memory.readable(error.peak) in text and str(error.pid) in text
        assert [future.result() for future in behind] == list(range(20))
        gate.open()
        assert bystander.result() == pid != error.pid
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), vars(copy)) == (text, vars(error))
    assert type(copy) is TaskMemoryError


@pytest.mark.usefixtures("no_leftovers")
def test_a_task_that_was_ended_for_its_memory_can_be_retried(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, max_memory_per_worker="100MB") as executor:
        retrying = executor.options(retries=1, retry_on=["memory"])
        assert retrying.submit(hoard_the_first_time, str(tmp_path / "flag")).result() == "enough"
        error = executor.options(retries=1, retry_on=["crash"]).submit(hoard).exception()
        assert type(error) is TaskMemoryError


@pytest.mark.usefixtures("no_leftovers")
def test_shared_mappings_are_nobody_s_memory(gate: Gate, looks: Looks) -> None:
    size = 100 << 20
    segment = shared_memory.SharedMemory(create=True, size=size)
    try:
        with ProcessPoolExecutor(1, max_memory_per_worker="90MB") as executor:
            future = executor.submit(fill_shared_memory, gate.path, segment.name, size)
            gate.arrivals()
            looks.wait()
            gate.open()
            assert future.result() is None
    finally:
        segment.close()
        segment.unlink()


@pytest.mark.usefixtures("no_leftovers")
def test_a_worker_that_takes_memory_while_idle_is_replaced(
    gate: Gate, looks: Looks, figures: Figures
) -> None:
    with ProcessPoolExecutor(2, max_memory_per_worker=100 * MB) as executor:
        held = executor.submit(pass_through, gate.path)
        gate.arrivals()
        idle = executor.submit(os.getpid).result()
        figures.used[idle] = 200 * MB
        looks.wait()
        deadline = time.monotonic() + PATIENCE
        while idle in executor._pool.pids() and time.monotonic() < deadline:
            assert executor.submit(abs, -1).result() == 1
        assert idle not in executor._pool.pids()
        gate.open()
        assert held.result() is None
    assert executor.stats().ended == {"max_memory_per_worker": 1, "shutdown": 2}


# All workers -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize("scarce", ["limit", "machine"])
def test_when_memory_is_short_tasks_wait_until_others_have_ended(
    gate: Gate, looks: Looks, figures: Figures, scarce: str
) -> None:
    with ProcessPoolExecutor(2, memory_limit=1000 * MB) as executor:
        one = executor.submit(pid_through, gate.path)
        (pid,) = gate.arrivals()
        if scarce == "limit":
            figures.used[pid] = 920 * MB
        else:
            figures.available = 80 * MB
        looks.wait()
        other = executor.submit(pid_through, gate.path)
        looks.wait()
        assert gate.nobody_came()
        gate.open()
        assert one.result() == pid
        gate.arrivals()  # now there is nobody to wait for, however short memory is
        gate.open()
        other.result()


@pytest.mark.usefixtures("no_leftovers")
def test_tasks_are_handed_out_again_when_memory_is_free(
    gate: Gate, looks: Looks, figures: Figures
) -> None:
    with ProcessPoolExecutor(2, memory_limit=1000 * MB) as executor:
        executor.submit(pass_through, gate.path)
        (pid,) = gate.arrivals()
        figures.used[pid] = 920 * MB
        looks.wait()
        executor.submit(pass_through, gate.path)
        assert gate.nobody_came()
        figures.used[pid] = 10 * MB
        gate.arrivals()
        gate.open(2)


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize(("retries", "victim"), [((0, 0, 0), 1), ((1, 0, 0), 0), ((1, 1, 0), 1)])
def test_at_the_brink_the_youngest_that_can_be_retried_goes(
    gate: Gate, looks: Looks, figures: Figures, retries: tuple[int, ...], victim: int
) -> None:
    """The third one is the youngest, and uses little."""
    with ProcessPoolExecutor(3, memory_limit=1000 * MB) as executor:
        futures, pids = [], []
        for count in retries:
            futures.append(executor.options(retries=count).submit(pid_through, gate.path))
            pids += gate.arrivals()
        figures.used.update({pids[0]: 470 * MB, pids[1]: 490 * MB})
        if retries[victim]:
            (again,) = gate.arrivals()
            assert again not in pids, "another attempt, by another worker"
            gate.open(3)
            pids[victim] = again
            assert [future.result() for future in futures] == pids
        else:
            error = futures[victim].exception()
            assert type(error) is TaskMemoryError and error.post_mortem is not None
            assert error.pid == pids[victim] and error.limit == 1000 * MB
            assert "memory was about to run out" in str(error)
            looks.wait()
            gate.open(2)
            for number, future in enumerate(futures):
                assert number == victim or future.result() == pids[number]


@pytest.mark.usefixtures("no_leftovers")
def test_nobody_is_ended_for_what_others_take(gate: Gate, looks: Looks, figures: Figures) -> None:
    with ProcessPoolExecutor(2, memory_limit=1000 * MB) as executor:
        futures = [executor.submit(pid_through, gate.path) for _ in range(2)]
        pids = gate.arrivals(2)
        figures.available = 0
        looks.wait(3)
        gate.open(2)
        assert {future.result() for future in futures} == set(pids)


@pytest.mark.usefixtures("no_leftovers")
def test_idle_workers_that_keep_much_are_replaced_when_memory_is_short(
    gate: Gate, looks: Looks, figures: Figures
) -> None:
    with ProcessPoolExecutor(2, memory_limit=1000 * MB) as executor:
        executor.submit(pass_through, gate.path)
        (pid,) = gate.arrivals()
        (idle,) = set(executor._pool.pids()) - {pid}
        figures.used.update({pid: 600 * MB, idle: 320 * MB})
        deadline = time.monotonic() + PATIENCE
        while idle in executor._pool.pids():
            assert time.monotonic() < deadline
            looks.wait(1)
        gate.open()


# What they cost ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_leftovers")
def test_an_idle_pool_with_limits_has_nothing_to_wake_up_for(looks: Looks) -> None:
    with ProcessPoolExecutor(2, max_memory_per_worker="10GB", memory_limit="90%") as executor:
        pool = executor._pool
        assert executor.submit(abs, -1).result() == 1
        deadline = time.monotonic() + PATIENCE
        while pool._timeout(pool.scheduler.deadline()) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        before = looks.count
        time.sleep(3 * INTERVAL)
        assert looks.count == before


@pytest.mark.usefixtures("no_leftovers")
def test_without_limits_nobody_looks(gate: Gate, looks: Looks) -> None:
    with ProcessPoolExecutor(1) as executor:
        future = executor.submit(pass_through, gate.path)
        gate.arrivals()
        time.sleep(3 * INTERVAL)
        gate.open()
        future.result()
        assert looks.count == 0


# The options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (12345, 12345),
        ("12345", 12345),
        ("2GB", 2 * 10**9),
        ("1.5 GiB", 3 << 29),
        (" 512mib ", 512 << 20),
        ("3kB", 3000),
        ("1TB", 10**12),
        ("7 B", 7),
    ],
)
def test_sizes_that_are_understood(given: Any, size: int) -> None:
    for option in ("max_memory_per_worker", "recycle_memory_per_worker", "memory_limit"):
        executor = ProcessPoolExecutor(1, **{option: given})
        assert getattr(executor._options, option) == size


def test_a_share_of_all_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "total_and_available", lambda: (1000, 10))
    assert ProcessPoolExecutor(1, memory_limit="80%")._options.memory_limit == 800
    assert ProcessPoolExecutor(1, memory_limit="0.5 %")._options.memory_limit == 5
    monkeypatch.setattr(memory, "total_and_available", lambda: None)
    with pytest.raises(ValueError, match=r"memory_limit in per cent.*give a number of bytes"):
        ProcessPoolExecutor(1, memory_limit="80%")


@pytest.mark.parametrize("option", ["max_memory_per_worker", "recycle_memory_per_worker"])
@pytest.mark.parametrize(
    ("given", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        ("0MB", ValueError),
        ("2G", ValueError),
        ("GB", ValueError),
        ("", ValueError),
        ("much", ValueError),
        ("inf", ValueError),
        ("nan GB", ValueError),
        ("80%", ValueError),
        (1.5, TypeError),
        (True, TypeError),
        ([], TypeError),
    ],
)
@pytest.mark.parametrize("make", [ProcessPoolExecutor, loky.get_reusable_executor])
def test_sizes_that_are_refused(option: str, given: Any, error: Any, make: Any) -> None:
    with pytest.raises(error, match=option) as caught:
        make(1, **{option: given})
    assert repr(given) in str(caught.value)


@pytest.mark.parametrize("given", ["0%", "101%", "%", "-5%", "x%"])
def test_shares_that_are_refused(given: str) -> None:
    with pytest.raises(ValueError, match=r"memory_limit must be .*'80%'"):
        ProcessPoolExecutor(1, memory_limit=given)


def test_the_soft_limit_is_below_the_hard_one() -> None:
    with pytest.raises(ValueError, match="must be less than max_memory_per_worker"):
        ProcessPoolExecutor(1, max_memory_per_worker="1GB", recycle_memory_per_worker="1GB")


@pytest.mark.parametrize(
    "option", ["max_memory_per_worker", "recycle_memory_per_worker", "memory_limit"]
)
def test_where_nothing_can_be_measured_limits_are_refused(
    monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(memory, "_chosen", memory._Unknown)
    with pytest.raises(ValueError, match=f"{option} .*pip install psutil"):
        ProcessPoolExecutor(1, **{option: 10**9})
