"""Stacks of workers on request: whatever the worker does, and at no cost to it.

The first half is about one worker and its port, the second about `dump_stacks`.
"""

from __future__ import annotations

import os
import pickle
import queue
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import worker_tasks
from pool_tasks import fault, pass_through
from rendezvous import PATIENCE, Gate

from loky import ProcessPoolExecutor, TerminatedWorkerError, get_reusable_executor
from loky.observe.stacks import StackDump
from loky.pool import port as port_module
from loky.pool.port import Port
from loky.wire.protocol import STACKS_SIGNAL


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path) as gate:
        yield gate


def port_of(executor: ProcessPoolExecutor) -> Port:
    (port,) = executor._pool.ports()
    return port


def ask(port: Port, wanted: str) -> str:
    """Ask until the worker has come where it will stay: it goes on for a while after `arrivals`."""
    deadline = time.monotonic() + PATIENCE
    while True:
        assert port.request_stacks()
        # The outermost frame of a worker's main thread, which is written last.
        while not (stacks := port.stacks()).endswith('File "<string>", line 1 in <module>\n'):
            assert time.monotonic() < deadline, stacks
            select.select([], [], [], 0.001)
        if wanted in stacks:
            return stacks
        assert time.monotonic() < deadline, stacks


# ---------------------------------------------------------------------- the worker's side


def test_a_busy_worker_answers(gate: Gate) -> None:
    with ProcessPoolExecutor(1) as executor:
        future = executor.submit(pass_through, gate.path, 5)
        gate.arrivals()
        stacks = ask(port_of(executor), "in wait_at")
        assert "in pass_through" in stacks
        assert ask(port_of(executor), "in wait_at") == stacks, "of the last request only"
        gate.open()
        assert future.result() == 5, "it was not disturbed"


def test_an_idle_worker_answers() -> None:
    with ProcessPoolExecutor(1) as executor:
        assert executor.submit(abs, -1).result() == 1
        ask(port_of(executor), "in serve")
        assert executor.submit(abs, -2).result() == 2


def test_a_worker_in_c_code_that_holds_the_interpreter_answers(gate: Gate) -> None:
    with ProcessPoolExecutor(1) as executor:
        future = executor.submit(worker_tasks.hold_the_interpreter, gate.path)
        gate.arrivals()
        ask(port_of(executor), "in hold_the_interpreter")
        gate.open()
        assert future.result() == 1


def test_all_threads_are_there(gate: Gate) -> None:
    with ProcessPoolExecutor(1) as executor:
        future = executor.submit(worker_tasks.in_a_thread, gate.path)
        gate.arrivals()
        assert "in in_a_thread" in ask(port_of(executor), "in wait_at")
        gate.open()
        future.result()


def test_an_initializer_that_does_not_return_shows(gate: Gate) -> None:
    with ProcessPoolExecutor(1, initializer=pass_through, initargs=(gate.path,)) as executor:
        future = executor.submit(abs, -1)
        gate.arrivals()
        assert "in _initialize" in ask(port_of(executor), "in wait_at")
        gate.open()
        assert future.result() == 1


@pytest.mark.parametrize("how", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_worker_without_the_handler_is_not_asked(how: signal.Handlers) -> None:
    with ProcessPoolExecutor(1) as executor:
        pid = executor.submit(worker_tasks.handle_signal, STACKS_SIGNAL, int(how)).result()
        assert not port_of(executor).request_stacks()
        assert port_of(executor).stacks() == ""
        assert executor.submit(os.getpid).result() == pid


def test_a_worker_that_is_just_starting_survives() -> None:
    """Asked all the time, from its first moment on."""
    for _ in range(5):
        with ProcessPoolExecutor(1) as executor:
            future = executor.submit(os.getpid)
            deadline = time.monotonic() + PATIENCE
            while not future.done():
                assert time.monotonic() < deadline
                for port in executor._pool.ports():
                    port.request_stacks()
                select.select([], [], [], 0.001)
            assert future.result() == port_of(executor).process.pid  # type: ignore[union-attr]


def test_a_stopped_worker_is_asked_once(gate: Gate) -> None:
    with ProcessPoolExecutor(1) as executor:
        future = executor.submit(pass_through, gate.path)
        (pid,) = gate.arrivals()
        port = port_of(executor)
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        for _ in range(10):
            assert port.request_stacks()
            assert port.stacks() == ""
        os.kill(pid, signal.SIGCONT)
        gate.open()
        future.result()
        assert port.stacks().count("Current thread") == 1


def test_crash_reports_are_apart_from_stacks(gate: Gate) -> None:
    with ProcessPoolExecutor(1) as executor:
        executor.submit(pass_through, gate.path)
        gate.arrivals()
        ask(port_of(executor), "in wait_at")
        assert port_of(executor).fault_text() == ""
        gate.open()
        error = executor.submit(fault).exception()
        assert isinstance(error, TerminatedWorkerError)
        assert error.fault.startswith("Fatal Python error: Segmentation fault")
        assert "in fault" in error.fault and "wait_at" not in error.fault


def test_crash_reports_where_the_user_wants_them(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Stacks on request come all the same, and do not show there."""
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    with ProcessPoolExecutor(1) as executor:
        executor.submit(pass_through, gate.path)
        gate.arrivals()
        ask(port_of(executor), "in wait_at")
        gate.open()
        error = executor.submit(fault).exception()
    assert isinstance(error, TerminatedWorkerError) and error.fault == ""
    said = capfd.readouterr().err
    assert "Segmentation fault" in said and "wait_at" not in said


def test_the_file_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_module, "_FAULT_LIMIT", 1000)
    with ProcessPoolExecutor(1) as executor:
        assert executor.submit(abs, -1).result() == 1
        port = port_of(executor)
        for _ in range(20):
            ask(port, "in serve")
        assert os.fstat(port._fault_fd).st_size < 2000
        error = executor.submit(fault).exception()
        assert isinstance(error, TerminatedWorkerError)
        assert error.fault.startswith("Fatal Python error: ") and "in fault" in error.fault


# ---------------------------------------------------------------------- all workers


def dump_until(executor: ProcessPoolExecutor, wanted: str) -> StackDump:
    """Tasks go on for a while after their arrival."""
    deadline = time.monotonic() + PATIENCE
    while wanted not in str(dump := executor.dump_stacks(PATIENCE)):
        assert time.monotonic() < deadline, str(dump)
    return dump


def test_busy_and_idle_workers(gate: Gate) -> None:
    with ProcessPoolExecutor(2) as executor:
        future = executor.submit(worker_tasks.hold_the_interpreter, gate.path)
        (pid,) = gate.arrivals()
        while executor.submit(os.getpid).result() == pid:  # until the other one is ready
            pass
        dump = dump_until(executor, "in hold_the_interpreter")
        assert sorted(worker.pid for worker in dump) == sorted(executor._pool.pids())
        (busy,) = [worker for worker in dump if worker.state == "busy"]
        (idle,) = [worker for worker in dump if worker.state == "idle"]
        assert busy.pid == pid and busy.task == "worker_tasks.hold_the_interpreter"
        assert "in hold_the_interpreter" in busy.stacks and busy.problem is None
        assert idle.task is None and "in serve" in idle.stacks and idle.problem is None
        assert min(busy.seconds, idle.seconds) >= 0
        report = str(dump)
        assert f"Worker {pid}, running worker_tasks.hold_the_interpreter for " in report
        assert f"Worker {idle.pid}, idle for " in report
        assert pickle.loads(pickle.dumps(dump)) == dump
        gate.open()
        assert future.result() == 1


def test_a_stopped_worker_does_not_keep_anybody_waiting(gate: Gate) -> None:
    with ProcessPoolExecutor(2) as executor:
        for _ in range(2):
            executor.submit(pass_through, gate.path)
        stopped, other = gate.arrivals(2)
        os.kill(stopped, signal.SIGSTOP)
        os.waitid(os.P_PID, stopped, os.WSTOPPED | os.WNOWAIT)
        try:
            found = {worker.pid: worker for worker in executor.dump_stacks(0.2)}
            assert found[stopped].stacks == ""
            problem = found[stopped].problem
            assert problem is not None and problem.startswith("no answer within 0.2 s: ")
            assert "SIGSTOP" in problem and problem in str(found[stopped])
            assert found[stopped].task == "pool_tasks.pass_through"
            assert found[other].problem is None and found[other].stacks
        finally:
            os.kill(stopped, signal.SIGCONT)
        gate.open(2)


def test_a_worker_that_is_starting(gate: Gate) -> None:
    with ProcessPoolExecutor(1, initializer=pass_through, initargs=(gate.path,)) as executor:
        executor.submit(abs, -1)
        gate.arrivals()
        (worker,) = dump_until(executor, "in wait_at")
        assert worker.state == "starting" and worker.task is None
        gate.open()


def test_a_worker_that_cannot_answer_says_why() -> None:
    with ProcessPoolExecutor(1) as executor:
        executor.submit(worker_tasks.handle_signal, STACKS_SIGNAL, int(signal.SIG_DFL)).result()
        (worker,) = executor.dump_stacks()
        assert worker.stacks == ""
        assert worker.problem is not None and "no handler" in worker.problem


def test_a_deep_stack_is_recognized_as_complete(gate: Gate) -> None:
    with ProcessPoolExecutor(1) as executor:
        future = executor.submit(worker_tasks.deep_down, 200, gate.path)
        gate.arrivals()
        dump = dump_until(executor, "in wait_at")
        assert dump[0].problem is None and '"<string>"' not in dump[0].stacks
        gate.open()
        future.result()


@pytest.mark.usefixtures("no_leftovers")
def test_a_pool_without_workers() -> None:
    executor = ProcessPoolExecutor(1)
    assert executor.dump_stacks() == []
    assert str(executor.dump_stacks()) == "There are no workers."
    executor.submit(abs, -1).result()
    executor.shutdown()
    assert executor.dump_stacks() == []


def test_in_a_callback_of_the_pool(gate: Gate) -> None:
    """Where the pool's own thread asks itself."""
    dumps: queue.SimpleQueue[StackDump] = queue.SimpleQueue()
    with ProcessPoolExecutor(1) as executor:
        future = executor.submit(pass_through, gate.path)
        gate.arrivals()
        future.add_done_callback(lambda _: dumps.put(executor.dump_stacks()))
        gate.open()
        (worker,) = dumps.get(timeout=PATIENCE)
    assert worker.problem is None


def test_in_the_child_of_a_fork() -> None:
    with ProcessPoolExecutor(1) as executor:
        executor.submit(abs, -1).result()
        child = os.fork()
        if not child:
            try:
                os._exit(len(executor.dump_stacks()))
            finally:
                os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert executor.submit(abs, -1).result() == 1


def test_the_reusable_executor() -> None:
    executor = get_reusable_executor(max_workers=1)
    executor.submit(abs, -1).result()
    (worker,) = executor.dump_stacks()
    assert "in serve" in worker.stacks
    executor.shutdown()


@pytest.mark.parametrize(
    ("timeout", "error"), [("1", TypeError), (None, TypeError), (-1, ValueError)]
)
def test_the_time_limit_is_checked(timeout: Any, error: type[Exception]) -> None:
    with ProcessPoolExecutor(1) as executor, pytest.raises(error, match="timeout must be"):
        executor.dump_stacks(timeout)
