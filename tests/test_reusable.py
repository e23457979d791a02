"""get_reusable_executor: one for the whole process, resized and renewed as asked."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pool_tasks import echo, leave_with_three, pid_through, set_variable
from rendezvous import PATIENCE, Gate, all_ended, ended

import loky
from loky import ShutdownExecutorError, TerminatedWorkerError, get_reusable_executor
from loky.process_executor import ProcessPoolExecutor


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    get_reusable_executor(max_workers=1).shutdown(wait=True, kill_workers=True)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path) as gate:
        yield gate


def run_at_once(executor: ProcessPoolExecutor, gate: Gate, count: int) -> set[int]:
    """Have so many tasks run at the same time; the workers' process ids."""
    futures = [executor.submit(pid_through, gate.path) for _ in range(count)]
    gate.arrivals(count)
    gate.open(count)
    return {future.result() for future in futures}


# ---------------------------------------------------------------------- one for all


def test_the_same_arguments_give_the_same_executor() -> None:
    executor = get_reusable_executor(max_workers=2)
    pid = executor.submit(os.getpid).result()
    assert get_reusable_executor(max_workers=2) is executor
    assert get_reusable_executor(2, timeout=10, reuse=True) is executor
    assert isinstance(executor, ProcessPoolExecutor)
    assert pid in executor._pool.pids()


def test_all_threads_share_it() -> None:
    executor = get_reusable_executor(max_workers=2)
    found: list[Any] = []

    def look() -> None:
        mine = get_reusable_executor(max_workers=2)
        found.append((mine, sum(mine.map(abs, range(-50, 0)))))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(executor, 1275)] * 8


def test_threads_that_ask_at_once_get_one() -> None:
    barrier = threading.Barrier(8)
    found: list[Any] = []

    def look() -> None:
        barrier.wait(PATIENCE)
        found.append(get_reusable_executor(max_workers=2, timeout=7))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len({id(executor) for executor in found}) == 1


def test_the_default_size() -> None:
    assert get_reusable_executor()._max_workers == loky.cpu_count()
    other = loky.cpu_count() + 1
    executor = get_reusable_executor(max_workers=other)
    assert get_reusable_executor(reuse=True)._max_workers == other
    assert get_reusable_executor(reuse=True) is executor
    assert get_reusable_executor()._max_workers == loky.cpu_count()


def test_a_new_one_after_shutdown() -> None:
    first = get_reusable_executor(max_workers=1)
    first.shutdown()
    second = get_reusable_executor(max_workers=1)
    assert second is not first
    assert second.executor_id > first.executor_id
    assert second.submit(abs, -1).result() == 1
    with pytest.raises(ShutdownExecutorError):
        first.submit(abs, -1)


def test_a_new_one_after_it_was_used_as_a_context_manager() -> None:
    with get_reusable_executor(max_workers=1) as first:
        assert first.submit(abs, -1).result() == 1
    assert get_reusable_executor(max_workers=1) is not first


def test_a_new_one_after_it_broke() -> None:
    first = get_reusable_executor(max_workers=1, crash_policy="break")
    assert isinstance(first.submit(leave_with_three).exception(), TerminatedWorkerError)
    second = get_reusable_executor(max_workers=1, crash_policy="break")
    assert second is not first
    assert second.submit(abs, -1).result() == 1


def test_a_crash_is_no_reason_for_a_new_one() -> None:
    executor = get_reusable_executor(max_workers=1)
    assert isinstance(executor.submit(leave_with_three).exception(), TerminatedWorkerError)
    assert get_reusable_executor(max_workers=1) is executor
    assert executor.submit(abs, -1).result() == 1


@pytest.mark.parametrize("reuse", [None, "never", 2, 0.5])
def test_other_words_for_reuse_are_refused(reuse: Any) -> None:
    with pytest.raises(ValueError, match=f"reuse must be True, False or 'auto', got {reuse!r}"):
        get_reusable_executor(max_workers=1, reuse=reuse)


def test_refused_arguments_leave_the_executor_as_it_is() -> None:
    executor = get_reusable_executor(max_workers=1)
    pid = executor.submit(os.getpid).result()
    for wrong in ({"max_workers": 0}, {"max_workers": "2"}, {"timeout": -1}, {"env": 5}):
        with pytest.raises((TypeError, ValueError)):
            get_reusable_executor(**wrong)  # type: ignore[arg-type]
    assert get_reusable_executor(max_workers=1) is executor
    assert executor.submit(os.getpid).result() == pid


# ---------------------------------------------------------------------- size


def test_it_grows_while_tasks_run(gate: Gate) -> None:
    executor = get_reusable_executor(max_workers=1)
    first = executor.submit(pid_through, gate.path)
    (pid,) = gate.arrivals()
    waiting = [executor.submit(pid_through, gate.path) for _ in range(2)]
    assert gate.nobody_came()
    assert get_reusable_executor(max_workers=3) is executor
    others = gate.arrivals(2)
    assert len({pid, *others}) == 3
    gate.open(3)
    assert first.result() == pid
    assert {future.result() for future in waiting} == set(others)


def test_it_grows_at_once_also_without_work(gate: Gate) -> None:
    executor = get_reusable_executor(max_workers=1)
    executor.submit(abs, 1).result()
    get_reusable_executor(max_workers=3)
    assert len(run_at_once(executor, gate, 3)) == 3
    assert len(executor._pool.pids()) == 3


def test_it_shrinks_without_waiting_for_running_tasks_and_without_killing_them(gate: Gate) -> None:
    executor = get_reusable_executor(max_workers=3)
    running = [executor.submit(pid_through, gate.path) for _ in range(3)]
    pids = set(gate.arrivals(3))
    waiting = [executor.submit(os.getpid) for _ in range(10)]
    assert get_reusable_executor(max_workers=1) is executor  # it did not wait: they still run
    assert not any(future.done() for future in running)
    gate.open(3)
    assert {future.result() for future in running} == pids, "each in its own worker"
    after = {future.result() for future in waiting}
    assert len(after) <= 3
    # One worker is left in the end, and what comes now runs there, one after the other.
    first = executor.submit(pid_through, gate.path)
    (left,) = gate.arrivals()
    assert all_ended(pids - {left})
    second = executor.submit(pid_through, gate.path)
    assert gate.nobody_came()
    gate.open(2)
    assert {first.result(), second.result()} == {left}


def test_it_shrinks_at_once_if_workers_are_idle(gate: Gate) -> None:
    executor = get_reusable_executor(max_workers=3)
    pids = run_at_once(executor, gate, 3)
    get_reusable_executor(max_workers=1)
    first = executor.submit(pid_through, gate.path)
    (left,) = gate.arrivals()
    assert all_ended(pids - {left})
    gate.open()
    assert first.result() == left


def test_resizing_again_and_again_loses_nothing(gate: Gate) -> None:
    futures = []
    for size in (1, 3, 2, 4, 1, 2):
        executor = get_reusable_executor(max_workers=size)
        futures += [executor.submit(abs, -i) for i in range(40)]
    assert [future.result() for future in futures] == [*range(40)] * 6


# ---------------------------------------------------------------------- other arguments


def test_other_arguments_give_another_one_and_pending_work_completes(gate: Gate) -> None:
    first = get_reusable_executor(max_workers=1)
    running = first.submit(pid_through, gate.path)
    (pid,) = gate.arrivals()
    waiting = [first.submit(abs, -i) for i in range(10)]
    ready = threading.Event()

    def ask_for_another() -> None:
        other = get_reusable_executor(max_workers=1, env={"LOKY_TEST_OTHER": "1"})
        assert other is not first
        assert other.submit(os.getenv, "LOKY_TEST_OTHER").result() == "1"
        ready.set()

    thread = threading.Thread(target=ask_for_another)
    thread.start()
    assert ready.wait(PATIENCE), "it does not wait for the first one's work"
    thread.join()
    # The first one still takes calls, from whoever holds it.
    late = first.submit(abs, -5)
    gate.open()
    assert running.result() == pid
    assert [future.result() for future in waiting] == list(range(10))
    assert late.result() == 5
    assert ended(pid), "the workers of the one that was replaced leave when they are idle"
    assert first.submit(abs, -6).result() == 6
    first.shutdown()


def test_the_initializer_is_one_of_those_arguments() -> None:
    first = get_reusable_executor(
        max_workers=1, initializer=set_variable, initargs=("LOKY_TEST_INIT", "1")
    )
    same = get_reusable_executor(
        max_workers=1, initializer=set_variable, initargs=("LOKY_TEST_INIT", "1")
    )
    other = get_reusable_executor(
        max_workers=1, initializer=set_variable, initargs=("LOKY_TEST_INIT", "2")
    )
    assert first is same and first is not other
    assert other.submit(os.getenv, "LOKY_TEST_INIT").result() == "2"
    assert get_reusable_executor(max_workers=1, reuse=True) is other, "whatever its arguments"
    first.shutdown()


def test_on_request_the_one_that_is_replaced_is_killed(gate: Gate) -> None:
    first = get_reusable_executor(max_workers=1)
    running = first.submit(pid_through, gate.path)
    (pid,) = gate.arrivals()
    waiting = first.submit(abs, 1)
    second = get_reusable_executor(max_workers=1, reuse=False, kill_workers=True)
    assert second is not first
    for future in (running, waiting):
        assert isinstance(future.exception(), ShutdownExecutorError)
    assert ended(pid)
    assert second.submit(abs, -1).result() == 1


def test_without_reuse_there_is_always_a_new_one() -> None:
    first = get_reusable_executor(max_workers=1)
    second = get_reusable_executor(max_workers=1, reuse=False)
    assert second is not first
    assert get_reusable_executor(max_workers=1) is second
    assert first.submit(abs, -1).result() == second.submit(abs, -1).result() == 1
    first.shutdown()


# ---------------------------------------------------------------------- workers


def test_idle_workers_leave_and_come_back(gate: Gate) -> None:
    executor = get_reusable_executor(max_workers=2, timeout=0.05)
    pids = run_at_once(executor, gate, 2)
    assert all_ended(pids)
    assert get_reusable_executor(max_workers=2, timeout=0.05) is executor
    assert not run_at_once(executor, gate, 2) & pids


def test_the_example_of_the_readme() -> None:
    executor = get_reusable_executor(max_workers=4, timeout=2)
    assert executor.submit(echo, 1).result() == ((1,), {})
    assert len(set(executor.map(lambda _: os.getpid(), range(50)))) == 4


def test_a_worker_killed_from_outside(gate: Gate) -> None:
    executor = get_reusable_executor(max_workers=2)
    pids = run_at_once(executor, gate, 2)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert all_ended(pids)
    assert get_reusable_executor(max_workers=2) is executor
    assert not run_at_once(executor, gate, 2) & pids


def test_in_the_child_of_a_fork_there_is_another_one(gate: Gate) -> None:
    executor = get_reusable_executor(max_workers=1)
    parents = executor.submit(os.getpid).result()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            mine = get_reusable_executor(max_workers=1)
            if mine is not executor and mine.submit(os.getpid).result() != parents:
                status = 0
            mine.shutdown()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert get_reusable_executor(max_workers=1) is executor
    assert executor.submit(os.getpid).result() == parents


# ---------------------------------------------------------------------- what is the same


class Ambiguous:
    """Compared, it gives no yes and no no, as an array does."""

    def __eq__(self, other: object) -> Any:
        return self

    def __bool__(self) -> bool:
        raise ValueError("the truth value is ambiguous")

    __hash__ = None  # type: ignore[assignment]


def test_initargs_that_have_no_truth_value() -> None:
    array = Ambiguous()
    first = get_reusable_executor(1, initializer=print, initargs=(array,))
    assert get_reusable_executor(1, initializer=print, initargs=[array]) is first
    second = get_reusable_executor(1, initializer=print, initargs=(Ambiguous(),))
    assert second is not first
    first.shutdown()


def test_what_the_caller_changes_afterwards_is_another_argument() -> None:
    env = {"LOKY_TEST": "1"}
    first = get_reusable_executor(1, env=env)
    assert get_reusable_executor(1, env=env) is first
    env["LOKY_TEST"] = "2"
    second = get_reusable_executor(1, env=env)
    assert second is not first
    assert second.submit(os.getenv, "LOKY_TEST").result() == "2"
    first.shutdown()


def test_many_ways_to_say_the_same_context() -> None:
    first = get_reusable_executor(1)
    assert get_reusable_executor(1, context="loky") is first
    assert get_reusable_executor(1, mp_context="loky") is first
    assert get_reusable_executor(1, context=loky.backend.get_context("loky")) is first
    other = get_reusable_executor(1, context="loky_init_main")
    assert other is not first
    assert get_reusable_executor(1, mp_context="loky_init_main") is other
    first.shutdown()


@pytest.mark.parametrize("reuse", [1, 0, None, "yes", [True]])
def test_reuse_has_three_values(reuse: Any) -> None:
    with pytest.raises(ValueError, match="reuse must be True, False or 'auto', got"):
        get_reusable_executor(1, reuse=reuse)
