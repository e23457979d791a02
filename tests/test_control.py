"""Options of tasks, with real workers: time-outs, kills, retries, priorities, names.

A time-out is the subject of some of these tests: it is short, and nothing is concluded from how
long something took.
"""

from __future__ import annotations

import ast
import inspect
import math
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import psutil
import pytest
from pool_tasks import (
    crash_at_first,
    echo,
    fail_with,
    invert,
    killed,
    pass_through,
    raise_at_first,
    stuck_and_deaf,
    stuck_in_a_loop,
    stuck_in_c,
    stuck_in_sleep,
    stuck_with_a_last_word,
    write_line,
)
from rendezvous import PATIENCE, Gate, ended

import loky.task_options
from loky import (
    ProcessPoolExecutor,
    ShutdownExecutorError,
    TaskOptions,
    TaskTimeoutError,
    TerminatedWorkerError,
    get_reusable_executor,
)
from loky.submitting import ExecutorView
from loky.task_options import CAUSES, task_options

STUCK = [stuck_in_sleep, stuck_in_a_loop, stuck_in_c, stuck_and_deaf, stuck_with_a_last_word]


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path) as gate:
        yield gate


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2) as executor:
        yield executor


def calls(path: Path) -> int:
    return len(path.read_bytes().splitlines())


# ---------------------------------------------------------------------- the options themselves


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"timeout": 0}, ValueError, ["timeout", "more than 0", "got 0"]),
        ({"timeout": math.nan}, ValueError, ["timeout", "got nan"]),
        ({"timeout": "3"}, TypeError, ["timeout", "number of seconds or None", "'3'"]),
        ({"retries": -1}, ValueError, ["retries", ">= 0", "-1"]),
        ({"retries": 1.5}, TypeError, ["retries", "whole number", "1.5"]),
        ({"retry_on": "crush"}, ValueError, ["'crash'", "'timeout'", "'memory'", "'crush'"]),
        ({"retry_on": 5}, TypeError, ["retry_on", "got 5"]),
        ({"retry_on": [int]}, ValueError, ["exception types", "int"]),
        ({"backoff": -1}, ValueError, ["backoff", "at least 0"]),
        ({"backoff": []}, ValueError, ["backoff", "empty"]),
        ({"priority": 0.5}, TypeError, ["priority", "0.5"]),
        ({"name": 5}, TypeError, ["name", "got 5"]),
        ({"kill_grace": None}, TypeError, ["kill_grace", "None"]),
        ({"retrys": 1}, TypeError, ["'retrys'", "retries", "timeout"]),
    ],
)
def test_bad_options_are_refused_at_the_call(
    pool: ProcessPoolExecutor, options: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        pool.options(**options)
    for word in words:
        assert word in str(caught.value)
    with pytest.raises(error):
        ProcessPoolExecutor(1, task_options=options)


def test_editors_and_type_checkers_know_every_option() -> None:
    """Their keywords are written down a second time, for them alone."""
    tree = ast.parse(inspect.getsource(loky.task_options))
    (given,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name == "GivenOptions"
    )
    names = [node.target.id for node in given.body if isinstance(node, ast.AnnAssign)]  # type: ignore[union-attr]
    assert tuple(names) == TaskOptions._fields
    assert ProcessPoolExecutor.options.__annotations__["options"] == "Unpack[GivenOptions]"


def test_options_add_up() -> None:
    with ProcessPoolExecutor(1, task_options={"timeout": 5}) as executor:
        view = executor.options(retries=2, retry_on=OSError).options(retries=3, name="it")
        assert view._task_options == TaskOptions(
            timeout=5, retries=3, retry_on=(OSError,), name="it"
        )
        assert executor.options(timeout=None)._task_options is None
        assert view.submit(echo, 1, timeout=2).result() == ((1,), {"timeout": 2})
        assert list(view.map(abs, [-1, -2])) == [1, 2]
    with pytest.raises(TypeError, match="task_options must be a mapping"):
        ProcessPoolExecutor(1, task_options=5)  # type: ignore[arg-type]


def test_a_view_keeps_its_executor_and_shuts_it_down() -> None:
    view = ProcessPoolExecutor(1).options(priority=1)
    assert view.submit(abs, -1).result() == 1
    view.shutdown()
    with pytest.raises(ShutdownExecutorError):
        view.submit(abs, -1)


def test_a_view_has_all_the_methods_of_its_executor(gate: Gate) -> None:
    for name in vars(ProcessPoolExecutor):
        assert name.startswith("_") or hasattr(ExecutorView, name), name
    view = ProcessPoolExecutor(1).options(name="it")
    future = view.submit(pass_through, gate.path)
    (pid,) = gate.arrivals()
    assert [worker.task for worker in view.stats().workers] == ["it"]
    assert [worker.pid for worker in view.dump_stacks()] == [pid]
    view.shutdown(kill_workers=True)
    with pytest.raises(ShutdownExecutorError):
        future.result()
    assert ended(pid)


def test_ctrl_c_in_the_with_block_of_a_view_ends_what_runs(gate: Gate) -> None:
    with pytest.raises(KeyboardInterrupt), ProcessPoolExecutor(1).options(priority=1) as view:
        future = view.submit(pass_through, gate.path)  # nobody opens the gate
        gate.arrivals()
        raise KeyboardInterrupt
    with pytest.raises(ShutdownExecutorError):
        future.result()


def test_the_reusable_executor_takes_options_of_tasks() -> None:
    executor = get_reusable_executor(2, task_options={"name": "this"})
    try:
        assert get_reusable_executor(2, task_options=TaskOptions(name="this")) is executor
        with pytest.raises(TerminatedWorkerError, match="task this"):
            executor.submit(killed).result()
        other = get_reusable_executor(2)
        assert other is not executor
    finally:
        get_reusable_executor(2).shutdown()
        executor.shutdown()


def test_backoff_grows_or_follows_its_list() -> None:
    doubling = task_options({"backoff": 0.5})
    assert doubling is not None
    assert [doubling.delay(n) for n in (1, 2, 3, 1000)] == [0.5, 1.0, 2.0, 3600.0]
    listed = task_options({"backoff": (3, 1)})
    assert listed is not None
    assert [listed.delay(n) for n in (1, 2, 3)] == [3.0, 1.0, 1.0]


# ---------------------------------------------------------------------- time-outs


@pytest.mark.parametrize("task", STUCK)
def test_a_stuck_task_times_out_with_its_stack(
    pool: ProcessPoolExecutor, gate: Gate, task: Any
) -> None:
    future = pool.options(timeout=1.5, kill_grace=0.2).submit(task, gate.path)
    others = [pool.submit(abs, -n) for n in range(50)]
    (pid,) = gate.arrivals()
    children = psutil.Process(pid).children(recursive=True)
    with pytest.raises(TaskTimeoutError) as caught:
        future.result(PATIENCE)
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert isinstance(error, TerminatedWorkerError)
    assert (error.pid, error.task) == (pid, f"pool_tasks.{task.__name__}")
    assert error.seconds is not None
    assert error.seconds >= 1.5
    assert task.__name__ in error.stack
    assert error.stack.rstrip() in str(error)
    assert "longer than its timeout allows (1.5 s)" in str(error)
    assert ended(pid)
    assert all(ended(child.pid) for child in children)
    assert [other.result() for other in others] == list(range(50))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.stack) == (TaskTimeoutError, str(error), error.stack)


def test_a_timeout_counts_from_the_start_of_the_task(gate: Gate) -> None:
    """Tasks that wait longer than their time-out for a worker are not hurt."""
    with ProcessPoolExecutor(1) as executor:
        first = executor.submit(pass_through, gate.path)
        gate.arrivals()
        waiting = [executor.options(timeout=1.0).submit(abs, -n) for n in range(20)]
        with pytest.raises(TaskTimeoutError):  # a worker elsewhere shows that this time is over
            with ProcessPoolExecutor(1) as other:
                other.options(timeout=1.5, kill_grace=0).submit(time.sleep, 1000).result()
        gate.open()
        first.result()
        assert [future.result() for future in waiting] == list(range(20))


def test_tiny_tasks_with_a_timeout_all_pass(pool: ProcessPoolExecutor) -> None:
    view = pool.options(timeout=30, retries=1)
    assert list(view.map(abs, range(3000))) == list(range(3000))


def test_a_timeout_of_a_chunk(pool: ProcessPoolExecutor, gate: Gate) -> None:
    """The chunk is the task."""
    view = pool.options(timeout=0.3)
    results = view.map(stuck_in_sleep, [gate.path] * 2, chunksize=2, on_error="collect")
    first, second = results
    assert isinstance(first, TaskTimeoutError)
    assert first is second


# ---------------------------------------------------------------------- cancelling what runs


@pytest.mark.parametrize("task", STUCK)
def test_a_running_task_can_be_cancelled(pool: ProcessPoolExecutor, gate: Gate, task: Any) -> None:
    future = pool.options(kill_grace=0.2).submit(task, gate.path)
    (pid,) = gate.arrivals()
    assert not future.cancel()
    assert future.cancel(kill=True)
    assert future.cancelled()
    with pytest.raises(CancelledError):
        future.result()
    assert ended(pid)
    assert pool.submit(abs, -1).result() == 1


def test_a_task_that_waits_for_its_next_attempt_can_be_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    with ProcessPoolExecutor(1) as executor:
        view = executor.options(retries=1, backoff=1000)
        future = view.submit(crash_at_first, str(path), 5)
        # What is submitted later comes back earlier: the first attempt has failed by then.
        with pytest.raises(TerminatedWorkerError):
            executor.submit(killed).result()
        assert executor.submit(abs, -1).result() == 1
        assert calls(path) == 1
        assert future.cancel()
        assert future.cancelled()


def test_cancelled_in_the_middle_of_retries_is_not_tried_again(tmp_path: Path, gate: Gate) -> None:
    with ProcessPoolExecutor(1) as executor:
        future = executor.options(retries=5, timeout=1000).submit(stuck_in_sleep, gate.path)
        gate.arrivals()
        assert future.cancel(kill=True)
        executor.submit(abs, -1).result()
        assert gate.nobody_came()


# ---------------------------------------------------------------------- retries


@pytest.mark.parametrize("backoff", [0, 0.05])
def test_a_crash_is_retried(pool: ProcessPoolExecutor, tmp_path: Path, backoff: float) -> None:
    path = tmp_path / "calls"
    future = pool.options(retries=2, backoff=backoff).submit(crash_at_first, str(path), 2)
    assert future.result(PATIENCE) == 3


def test_too_many_crashes_are_reported_with_their_history(
    pool: ProcessPoolExecutor, tmp_path: Path
) -> None:
    path = tmp_path / "calls"
    future = pool.options(retries=2, name="poison").submit(crash_at_first, str(path), 100)
    with pytest.raises(TerminatedWorkerError) as caught:
        future.result(PATIENCE)
    error = caught.value
    assert calls(path) == 3
    assert len(error.attempts) == 2
    pids = {attempt.pid for attempt in error.attempts if isinstance(attempt, TerminatedWorkerError)}
    assert len({*pids, error.pid}) == 3
    assert "task poison" in str(error)
    assert "Attempt 2 of 3: TerminatedWorkerError" in str(error)


def test_poisonous_tasks_use_up_nobody_else_s_budget(
    pool: ProcessPoolExecutor, tmp_path: Path
) -> None:
    """Each ends many workers; the pool is not broken, and its other tasks complete."""
    view = pool.options(retries=9)
    poisons = [view.submit(crash_at_first, str(tmp_path / str(n)), 100) for n in range(3)]
    others = [pool.submit(abs, -n) for n in range(200)]
    assert [other.result() for other in others] == list(range(200))
    for n, poison in enumerate(poisons):
        with pytest.raises(TerminatedWorkerError):
            poison.result(PATIENCE)
        assert calls(tmp_path / str(n)) == 10


def test_a_timeout_is_retried(pool: ProcessPoolExecutor, gate: Gate) -> None:
    future = pool.options(timeout=1.0, retries=1, kill_grace=0).submit(stuck_in_sleep, gate.path)
    first, second = gate.arrivals(2)
    assert first != second
    with pytest.raises(TaskTimeoutError) as caught:
        future.result(PATIENCE)
    assert [type(attempt) for attempt in caught.value.attempts] == [TaskTimeoutError]


@pytest.mark.parametrize("large", [False, True], ids=["plain", "large"])
def test_exceptions_are_retried_if_they_are_named(
    pool: ProcessPoolExecutor, tmp_path: Path, large: bool
) -> None:
    path = tmp_path / "calls"
    error = OSError("x" * 100_000) if large else OSError("no")
    view = pool.options(retries=2, retry_on=(OSError, "crash"))
    assert view.submit(raise_at_first, str(path), 2, error).result(PATIENCE) == 3
    path.unlink()
    with pytest.raises(OSError, match="no" if not large else "xx") as caught:
        view.submit(raise_at_first, str(path), 100, error).result(PATIENCE)
    assert calls(path) == 3
    assert [type(attempt) for attempt in caught.value.attempts] == [OSError] * 2  # type: ignore[attr-defined]


def test_exceptions_that_are_not_named_are_not_retried(
    pool: ProcessPoolExecutor, tmp_path: Path
) -> None:
    path = tmp_path / "calls"
    view = pool.options(retries=2, retry_on=("crash", LookupError))
    with pytest.raises(ValueError, match="no"):
        view.submit(raise_at_first, str(path), 100, ValueError("no")).result(PATIENCE)
    assert calls(path) == 1
    with pytest.raises(KeyError):
        view.submit(raise_at_first, str(path), 100, KeyError("no")).result(PATIENCE)
    assert calls(path) == 4


def test_a_chunk_is_retried_as_one(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    path = tmp_path / "calls"
    view = pool.options(retries=1, retry_on=OSError)
    paths, times, errors = [str(path)] * 3, [1] * 3, [OSError()] * 3
    assert list(view.map(raise_at_first, paths, times, errors, chunksize=3)) == [2, 3, 4]


def test_retries_of_a_pool_that_is_shut_down_go_on(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    executor = ProcessPoolExecutor(1)
    view = executor.options(retries=3, backoff=0.01, retry_on=("crash", OSError))
    futures = [
        view.submit(crash_at_first, str(path), 2),
        view.submit(raise_at_first, str(path) + "2", 2, OSError()),
    ]
    executor.shutdown(wait=True)
    assert [future.result(0) for future in futures] == [3, 3]


def test_killing_the_workers_ends_retries_too(tmp_path: Path) -> None:
    executor = ProcessPoolExecutor(1)
    future = executor.options(retries=1, backoff=1000).submit(
        crash_at_first, str(tmp_path / "x"), 9
    )
    with pytest.raises(TerminatedWorkerError):
        executor.submit(killed).result()
    executor.kill_workers()
    with pytest.raises(ShutdownExecutorError):
        future.result(0)


# ---------------------------------------------------------------------- priorities


def test_a_higher_priority_goes_first_and_equal_ones_in_order(tmp_path: Path, gate: Gate) -> None:
    path = tmp_path / "order"
    with ProcessPoolExecutor(1) as executor:
        executor.submit(pass_through, gate.path)
        gate.arrivals()
        for n in range(12):
            executor.options(priority=(0, 5, -2)[n % 3]).submit(write_line, str(path), n)
        gate.open()
    assert path.read_text().split() == [str(n) for n in (1, 4, 7, 10, 0, 3, 6, 9, 2, 5, 8, 11)]


# ---------------------------------------------------------------------- what others say of it


def test_the_name_of_a_task_is_in_its_errors(pool: ProcessPoolExecutor) -> None:
    view = pool.options(name="nightly import")
    with pytest.raises(TerminatedWorkerError, match="nightly import") as caught:
        view.submit(killed).result()
    assert caught.value.task == "nightly import"
    with pytest.raises(pickle.PicklingError, match="nightly import"):
        view.submit(echo, threading.Lock()).result()


def test_an_exception_without_attempts_is_left_alone(pool: ProcessPoolExecutor) -> None:
    with pytest.raises(ValueError, match="no") as caught:
        pool.options(retries=2).submit(fail_with, ValueError("no")).result()
    assert not hasattr(caught.value, "attempts")
    assert invert(1) == 1
    assert CAUSES == ("crash", "timeout", "memory")
