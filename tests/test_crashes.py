"""What the death of a worker costs: the task that it ran, and nothing else."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pool_tasks import (
    Frozen,
    abort,
    close_all_beside_a_thread,
    exhaust_memory,
    exit_at_three,
    exit_the_first_time,
    fault,
    finish_then_die,
    fork_a_child_that_waits,
    killed,
    leave_happily,
    leave_with_three,
    overflow_the_stack,
    pass_through,
    pid_through,
    raise_frozen,
    read_address_zero,
    terminated,
    zeros,
)
from rendezvous import PATIENCE, Gate, all_ended, ended, kill

from loky import BrokenProcessPool, ProcessPoolExecutor, TerminatedWorkerError
from loky.pool import outcome, parting
from loky.wire import channel_linux


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path) as gate:
        yield gate


WAYS: list[tuple[Callable[[], None], int, str, str]] = [
    (killed, -9, "SIGKILL", ""),
    (terminated, -15, "SIGTERM", ""),
    (read_address_zero, -11, "SIGSEGV", "Segmentation fault"),
    (fault, -11, "SIGSEGV", "Segmentation fault"),
    (overflow_the_stack, -11, "SIGSEGV", "Segmentation fault"),
    (abort, -6, "SIGABRT", "Aborted"),
    (leave_happily, 0, "EXIT(0)", ""),
    (leave_with_three, 3, "EXIT(3)", ""),
]


@pytest.mark.parametrize(
    ("way", "code", "name", "said"), WAYS, ids=[way[0].__name__ for way in WAYS]
)
def test_a_death_costs_one_task_and_says_how_it_happened(
    gate: Gate, way: Callable[[], None], code: int, name: str, said: str
) -> None:
    with ProcessPoolExecutor(2) as executor:
        bystander = executor.submit(pid_through, gate.path)
        (bystander_pid,) = gate.arrivals()
        before = executor._pool.pids()
        victim = executor.submit(way)
        behind = [executor.submit(os.getpid) for _ in range(5)]
        error = victim.exception()
        assert type(error) is TerminatedWorkerError
        assert isinstance(error, BrokenProcessPool)
        assert error.task == f"pool_tasks.{way.__name__}"
        assert error.pid in before and error.pid != bystander_pid
        assert error.exitcode == code
        assert error.seconds is not None and 0 <= error.seconds < 20
        text = str(error)
        assert error.task in text and str(error.pid) in text and name in text
        if said:
            assert said in error.fault
            assert f"in {way.__name__}" in error.fault, "the stack of the crash"
            assert error.fault.strip() in text
        else:
            assert not error.fault
        assert error.pid not in [future.result() for future in behind]
        gate.open()
        assert bystander.result() == bystander_pid, "it was not disturbed"
        # The dead worker is replaced: again two can run at a time.
        futures = [executor.submit(pid_through, gate.path) for _ in range(2)]
        assert len(set(gate.arrivals(2))) == 2
        gate.open(2)
        assert error.pid not in [future.result() for future in futures]


def test_the_report_of_a_death_can_be_pickled() -> None:
    with ProcessPoolExecutor(1) as executor:
        error = executor.submit(fault).exception()
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(error, TerminatedWorkerError) and type(copy) is type(error)
    assert str(copy) == str(error) and vars(copy) == vars(error)
    assert copy.exitcode == -11 and copy.fault


def test_the_time_that_a_task_had_been_running(gate: Gate) -> None:
    with ProcessPoolExecutor(1) as executor:
        executor.submit(os.getpid).result()
        future = executor.submit(pass_through, gate.path)
        (pid,) = gate.arrivals()
        with pytest.raises(TimeoutError if sys.version_info >= (3, 11) else Exception):
            future.result(0.1)
        kill(pid)
        error = future.exception()
        assert isinstance(error, TerminatedWorkerError)
        assert error.seconds is not None and error.seconds >= 0.1


def test_names_of_tasks_in_reports() -> None:
    with ProcessPoolExecutor(1) as executor:

        class Engine:
            def explode(self) -> None:
                os._exit(1)

            def __call__(self) -> None:
                os._exit(1)

        from functools import partial

        tasks: list[tuple[Any, str]] = [
            (lambda: os._exit(1), "test_names_of_tasks_in_reports.<locals>.<lambda>"),
            (Engine().explode, "Engine.explode"),
            (Engine(), "Engine"),
            (partial(os._exit, 1), "_exit"),
        ]
        for task, name in tasks:
            error = executor.submit(task).exception()
            assert isinstance(error, TerminatedWorkerError) and error.task is not None
            assert name in error.task and name in str(error)


@pytest.mark.parametrize("chunksize", [1, 2])
def test_a_crash_within_map_names_the_users_function(chunksize: int) -> None:
    with ProcessPoolExecutor(1) as executor:
        results = executor.map(exit_at_three, range(6), chunksize=chunksize)
        taken = []
        with pytest.raises(TerminatedWorkerError, match="exit_at_three") as caught:
            for result in results:
                taken.append(result)
        assert taken == list(range(3 // chunksize * chunksize))
        assert caught.value.task is not None and "exit_at_three" in caught.value.task


def test_sys_exit_in_a_task_is_an_exception_like_any_other() -> None:
    with ProcessPoolExecutor(1) as executor:
        pid = executor.submit(os.getpid).result()
        for argument in (None, 0, 3, "message"):
            error = executor.submit(sys.exit, argument).exception()
            assert type(error) is SystemExit and error.code == argument
        assert executor.submit(os.getpid).result() == pid


@pytest.mark.parametrize("options", [{}, {"retries": 1, "retry_on": [Frozen]}])
def test_an_exception_that_refuses_attributes_is_one_like_any_other(
    options: dict[str, Any],
) -> None:
    with ProcessPoolExecutor(1) as executor:
        with pytest.raises(Frozen, match="cold") as caught:
            executor.options(**options).submit(raise_frozen).result(PATIENCE)
        assert "raise_frozen" in str(caught.value.__cause__)
        assert len(getattr(caught.value, "attempts", ())) == options.get("retries", 0)


def test_a_memory_error_is_an_exception_like_any_other() -> None:
    with ProcessPoolExecutor(1) as executor:
        pid = executor.submit(os.getpid).result()
        assert type(executor.submit(exhaust_memory).exception()) is MemoryError
        assert executor.submit(os.getpid).result() == pid


def test_a_worker_killed_while_idle_is_replaced() -> None:
    with ProcessPoolExecutor(2) as executor:
        executor.submit(os.getpid).result()
        pids = executor._pool.pids()
        assert len(pids) == 2
        for pid in pids:
            kill(pid)
        # Submitted whether or not the pool knows of the deaths already.
        futures = [executor.submit(os.getpid) for _ in range(4)]
        assert not set(pids) & {future.result() for future in futures}


def test_tasks_that_a_dead_worker_had_not_read_run_elsewhere(gate: Gate) -> None:
    """Short tasks are sent ahead, so that some are in the channel when the worker dies."""
    with ProcessPoolExecutor(1) as executor:
        assert sum(executor.map(abs, range(200))) == sum(range(200))
        held = executor.submit(pass_through, gate.path)
        behind = [executor.submit(abs, -i) for i in range(200)]
        (pid,) = gate.arrivals()
        kill(pid)
        assert isinstance(held.exception(), TerminatedWorkerError)
        assert [future.result() for future in behind] == list(range(200))


def test_a_finished_result_survives_its_worker(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    with ProcessPoolExecutor(1) as executor:
        pid = executor.submit(os.getpid).result()
        receive = channel_linux.LinuxChannel.receive

        def receive_after_its_death(channel: Any, *size: int) -> Any:
            gate.open()
            assert ended(pid)
            return receive(channel, *size)

        with monkeypatch.context() as patch:
            patch.setattr(channel_linux.LinuxChannel, "receive", receive_after_its_death)
            assert executor.submit(finish_then_die, gate.path).result() == "result"
        assert executor.submit(os.getpid).result() != pid


def test_a_worker_killed_while_it_sends_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    with ProcessPoolExecutor(2) as executor:
        executor.submit(os.getpid).result()
        receive = channel_linux.LinuxChannel.receive
        killed: list[int] = []

        def kill_in_the_middle(channel: Any, *size: int) -> Any:
            data = receive(channel, *size)
            if data and len(data) > 10_000 and not killed:
                port = next(p for p in executor._pool.ports() if p.channel is channel)
                assert port.process is not None
                os.kill(port.process.pid, signal.SIGKILL)
                killed.append(port.process.pid)
            return data

        monkeypatch.setattr(channel_linux.LinuxChannel, "receive", kill_in_the_middle)
        futures = [executor.submit(zeros, 20_000_000) for _ in range(4)]
        errors = [future.exception() for future in futures]
        assert [type(error) for error in errors].count(TerminatedWorkerError) == 1
        assert errors.count(None) == 3
        assert all(len(f.result()) == 20_000_000 for f in futures if f.exception() is None)
        assert killed


def test_a_death_is_noticed_although_a_child_of_the_task_lives_and_the_child_goes_too(
    gate: Gate,
) -> None:
    with ProcessPoolExecutor(1) as executor:
        future = executor.submit(fork_a_child_that_waits, gate.path)
        pids = gate.arrivals(2)
        worker = executor._pool.pids()[0]
        assert worker in pids
        os.kill(worker, signal.SIGKILL)
        assert isinstance(future.exception(), TerminatedWorkerError)
        assert all_ended(pids)


# ---------------------------------------------------------------------- deaths while starting


def test_workers_that_always_die_while_starting_break_the_pool_with_the_cause() -> None:
    with ProcessPoolExecutor(2, initializer=os._exit, initargs=(7,)) as executor:
        futures = [executor.submit(os.getpid) for _ in range(3)]
        for future in futures:
            error = future.exception()
            assert isinstance(error, TerminatedWorkerError)
            assert "starting" in str(error) and "EXIT(7)" in str(error)
            assert error.exitcode == 7
        with pytest.raises(BrokenProcessPool, match="EXIT"):
            executor.submit(os.getpid)


def test_one_death_while_starting_costs_nothing(tmp_path: Path) -> None:
    with ProcessPoolExecutor(
        1, initializer=exit_the_first_time, initargs=(str(tmp_path / "flag"),)
    ) as executor:
        assert list(executor.map(abs, range(5))) == list(range(5))
    assert (tmp_path / "flag").exists()


def test_a_worker_killed_while_starting_costs_nothing(gate: Gate) -> None:
    with ProcessPoolExecutor(1, initializer=pass_through, initargs=(gate.path,)) as executor:
        future = executor.submit(os.getpid)
        (pid,) = gate.arrivals()
        kill(pid)
        (other,) = gate.arrivals()
        gate.open()
        assert future.result() == other != pid


def test_workers_that_keep_dying_idle_break_the_pool() -> None:
    with ProcessPoolExecutor(1) as executor:
        deaths = 0
        with pytest.raises(BrokenProcessPool, match="idle") as caught:
            while deaths < 20:
                kill(executor.submit(os.getpid).result())
                deaths += 1
        assert 5 <= deaths <= 8
        assert isinstance(caught.value, TerminatedWorkerError)
        assert "SIGKILL" in str(caught.value)


def test_a_hundred_killing_tasks_in_a_row_do_not_break_the_pool() -> None:
    with ProcessPoolExecutor(2) as executor:
        futures = [executor.submit(leave_with_three) for _ in range(100)]
        good = [executor.submit(abs, -i) for i in range(100)]
        errors = [future.exception() for future in futures]
        assert {type(error) for error in errors} == {TerminatedWorkerError}
        assert len({error.pid for error in errors}) == 100  # type: ignore[union-attr]
        assert [future.result() for future in good] == list(range(100))


# ---------------------------------------------------------------------- the strict contract


@pytest.mark.parametrize("working", [False, True])
def test_a_worker_that_cannot_be_heard_any_more_is_ended(
    working: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parting, "LEAVE_SECONDS", 0.2)
    with ProcessPoolExecutor(1) as executor:
        error = executor.submit(close_all_beside_a_thread, working).exception(PATIENCE)
        assert isinstance(error, TerminatedWorkerError)
        assert "closed the descriptors" in str(error)
        assert executor.submit(abs, -1).result() == 1


@pytest.mark.parametrize("how", ["reply", "verdict", "attempt"])
def test_a_mistake_of_ours_costs_the_task_that_it_concerns(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(*_: object) -> None:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(outcome, "error_for" if how == "verdict" else "rebuild", mistaken)
    with ProcessPoolExecutor(1) as executor:
        view = executor.options(retries=1, retry_on=[ValueError]) if how == "attempt" else executor
        future = view.submit(os._exit, 1) if how == "verdict" else view.submit(int, "x")
        error = future.exception(PATIENCE)
        assert isinstance(error, BrokenProcessPool)
        assert "internal error" in str(error)
        assert "a mistake" in str(error)
        assert isinstance(error.__cause__, ZeroDivisionError)
        assert executor.submit(abs, -1).result() == 1


def test_with_the_policy_break_one_death_is_the_end_of_the_pool(gate: Gate) -> None:
    with ProcessPoolExecutor(2, crash_policy="break") as executor:
        held = executor.submit(pass_through, gate.path)
        (held_pid,) = gate.arrivals()
        victim = executor.submit(killed)
        behind = [executor.submit(abs, i) for i in range(20)]
        assert isinstance(victim.exception(), TerminatedWorkerError)
        for future in [held, *behind]:
            error = future.exception()
            assert error is None or isinstance(error, BrokenProcessPool)
        assert isinstance(held.exception(), BrokenProcessPool)
        text = str(held.exception())
        assert "SIGKILL" in text
        assert "while it ran the task pool_tasks.killed." in text
        assert held.exception().task == "pool_tasks.killed"  # type: ignore[union-attr]
        assert text.count("worker process") == 1
        assert text.endswith("broke the pool, for crash_policy is 'break'. Make a new executor.")
        assert ended(held_pid)
        with pytest.raises(BrokenProcessPool, match="SIGKILL"):
            executor.submit(abs, 1)


def test_with_the_policy_break_the_death_of_an_idle_worker_is_the_end_too(gate: Gate) -> None:
    with ProcessPoolExecutor(2, crash_policy="break") as executor:
        held = executor.submit(pass_through, gate.path)
        (held_pid,) = gate.arrivals()
        executor.submit(abs, 1).result()
        (idle,) = set(executor._pool.pids()) - {held_pid}
        os.kill(idle, signal.SIGKILL)
        error = held.exception()
        assert isinstance(error, TerminatedWorkerError)
        assert error.task is None
        assert "while it ran" not in str(error)


def test_with_the_policy_break_workers_may_leave_by_themselves() -> None:
    with ProcessPoolExecutor(
        1, crash_policy="break", timeout=0.02, max_tasks_per_child=2
    ) as executor:
        pids = {executor.submit(os.getpid).result() for _ in range(5)}
        assert all_ended(pids)
        assert executor.submit(abs, -1).result() == 1


class _Ended:
    """The channel of a worker that has ended."""

    def send_descriptor(self, fd: int) -> None:
        raise BrokenPipeError


def test_a_worker_that_ends_while_it_waits_for_a_descriptor_harms_nobody() -> None:
    with ProcessPoolExecutor(1) as executor:
        pool = executor._pool
        assert executor.submit(abs, -1).result() == 1
        pool.post(pool._endings.append, (outcome.send_tracker, _Ended(), 0))
        assert executor.submit(abs, -2).result() == 2
        pool.ask(int)
        assert executor.submit(abs, -3).result() == 3
        assert pool.broken is None
