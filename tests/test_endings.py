"""How pools end: as asked, collected, forked, interrupted, orphaned, or in odd surroundings."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pool_tasks import (
    clean_up_when_terminated,
    fork_and_raise_twice,
    fork_and_return_twice,
    killed,
    pass_through,
    pid_through,
)
from rendezvous import PATIENCE, Gate, all_ended, command, ended, run_script

import loky
from loky import (
    CancelledError,
    Future,
    ProcessPoolExecutor,
    ShutdownExecutorError,
    TerminatedWorkerError,
)
from loky.pool.parting import LEAVE_SECONDS

HERE = str(Path(__file__).parent)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path) as gate:
        yield gate


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


# ---------------------------------------------------------------------- shutdown


@pytest.mark.usefixtures("no_leftovers")
def test_leaving_the_block_waits_for_all_work_and_all_workers() -> None:
    with ProcessPoolExecutor(2) as executor:
        futures = [executor.submit(abs, -i) for i in range(100)]
        executor.submit(os.getpid).result()
        pids = executor._pool.pids()
    assert all(future.done() for future in futures)
    assert all_ended(pids, 0)
    assert [future.result() for future in futures] == list(range(100))


@pytest.mark.usefixtures("no_leftovers")
def test_an_executor_that_was_never_used() -> None:
    with ProcessPoolExecutor(2):
        pass
    ProcessPoolExecutor(2).shutdown(kill_workers=True)
    ProcessPoolExecutor(2)


@pytest.mark.usefixtures("no_leftovers")
def test_shutdown_without_waiting(gate: Gate) -> None:
    executor = ProcessPoolExecutor(1)
    running = executor.submit(pid_through, gate.path)
    waiting = [executor.submit(abs, -i) for i in range(5)]
    (pid,) = gate.arrivals()
    executor.shutdown(wait=False)
    assert not running.done()
    with pytest.raises(ShutdownExecutorError):
        executor.submit(abs, 1)
    gate.open()
    assert running.result() == pid
    assert [future.result() for future in waiting] == list(range(5))
    assert ended(pid)
    executor.shutdown()


@pytest.mark.usefixtures("no_leftovers")
def test_shutdown_that_cancels_what_has_not_begun(gate: Gate) -> None:
    executor = ProcessPoolExecutor(1)
    list(executor.map(abs, range(100)))  # short ones, so that some are sent ahead
    running = executor.submit(pid_through, gate.path)
    waiting = [executor.submit(abs, -i) for i in range(200)]
    (pid,) = gate.arrivals()
    executor.shutdown(wait=False, cancel_futures=True)
    for future in waiting:
        with pytest.raises(CancelledError):
            future.result()
    assert not running.done()
    gate.open()
    executor.shutdown()
    assert running.result() == pid


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize("how", ["kill_workers", "terminate_workers", "shutdown"])
def test_shutdown_that_kills(gate: Gate, how: str) -> None:
    executor = ProcessPoolExecutor(2)
    futures = [executor.submit(pid_through, gate.path) for _ in range(5)]
    pids = gate.arrivals(2)
    if how == "shutdown":
        executor.shutdown(kill_workers=True)
    else:
        getattr(executor, how)()
    assert all_ended(pids, 0)
    for future in futures:
        with pytest.raises(ShutdownExecutorError):
            future.result(0)


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize("how", ["kill_workers", "terminate_workers"])
def test_workers_that_are_terminated_may_clean_up(tmp_path: Path, gate: Gate, how: str) -> None:
    note = tmp_path / "note"
    executor = ProcessPoolExecutor(1)
    future = executor.submit(clean_up_when_terminated, gate.path, str(note))
    (pid,) = gate.arrivals()
    getattr(executor, how)()
    assert all_ended([pid], 0)
    assert note.exists() == (how == "terminate_workers")
    with pytest.raises(ShutdownExecutorError):
        future.result(0)


@pytest.mark.usefixtures("no_leftovers")
def test_several_threads_shut_down_at_once(gate: Gate) -> None:
    executor = ProcessPoolExecutor(1)
    running = executor.submit(pid_through, gate.path)
    (pid,) = gate.arrivals()
    threads = [threading.Thread(target=executor.shutdown) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.open()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert running.result(0) == pid


@pytest.mark.usefixtures("no_leftovers")
def test_killing_while_another_thread_waits_for_the_end(gate: Gate) -> None:
    executor = ProcessPoolExecutor(1)
    running = executor.submit(pid_through, gate.path)
    gate.arrivals()
    thread = threading.Thread(target=executor.shutdown)
    thread.start()
    executor.shutdown(kill_workers=True)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert isinstance(running.exception(0), ShutdownExecutorError)


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize("policy", ["isolate", "break"])
def test_an_idle_worker_killed_while_a_shutdown_waits_for_the_last_task(
    gate: Gate, policy: str
) -> None:
    executor = ProcessPoolExecutor(2, crash_policy=policy)
    held = executor.submit(pid_through, gate.path)
    (busy,) = gate.arrivals()
    (idle,) = set(executor._pool.pids()) - {busy}
    assert executor.submit(os.getpid).result() == idle
    os.kill(idle, signal.SIGSTOP)  # so that it is there until killed, even if it is asked to leave
    returned: list[float] = []

    def shut_down() -> None:
        executor.shutdown(wait=True)
        returned.append(time.monotonic())

    thread = threading.Thread(target=shut_down)
    thread.start()
    while not executor._pool.refusing:
        time.sleep(0.001)
    since = time.monotonic()
    os.kill(idle, signal.SIGKILL)
    if policy == "isolate":
        assert ended(idle)
        assert thread.is_alive() and not held.done()
        since = time.monotonic()
        gate.open()
    thread.join(PATIENCE)
    assert returned[0] - since < LEAVE_SECONDS / 2, "it waited for the dead"
    assert ended(busy, 0)
    if policy == "isolate":
        assert held.result(0) == busy
    else:
        assert isinstance(held.exception(0), TerminatedWorkerError)


@pytest.mark.usefixtures("no_leftovers")
def test_workers_that_start_do_not_hold_up_a_shutdown() -> None:
    started = time.monotonic()
    with ProcessPoolExecutor(8) as executor:
        executor.submit(abs, 1).result()
    assert time.monotonic() - started < PATIENCE


# ---------------------------------------------------------------------- collection


def collected(executor: ProcessPoolExecutor, cyclic: bool) -> weakref.ref[Any]:
    if cyclic:
        executor.itself = executor  # type: ignore[attr-defined]
    return weakref.ref(executor)


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize("cyclic", [False, True])
def test_a_collected_executor_completes_its_work_and_its_workers_leave(
    gate: Gate, cyclic: bool
) -> None:
    executor = ProcessPoolExecutor(1)
    reference = collected(executor, cyclic)
    running = executor.submit(pid_through, gate.path)
    waiting = [executor.submit(abs, -i) for i in range(20)]
    (pid,) = gate.arrivals()
    del executor
    gc.collect()
    assert reference() is None, "neither its futures nor its pool keep it"
    gate.open()
    assert running.result() == pid
    assert [future.result() for future in waiting] == list(range(20))
    assert ended(pid)


@pytest.mark.usefixtures("no_leftovers")
def test_an_idle_executor_that_is_collected() -> None:
    executor = ProcessPoolExecutor(2)
    executor.submit(abs, 1).result()
    pids = executor._pool.pids()
    del executor
    gc.collect()
    assert all_ended(pids)


@pytest.mark.usefixtures("no_leftovers")
def test_the_exception_of_a_map_does_not_keep_the_executor() -> None:
    executor = ProcessPoolExecutor(1)
    pids = [executor.submit(os.getpid).result()]
    with pytest.raises(ZeroDivisionError) as caught:
        list(executor.map(divmod, [1] * 10, [0] * 10, buffersize=2))
    del executor
    gc.collect()
    assert all_ended(pids)
    assert caught.value.__traceback__ is not None


@pytest.mark.usefixtures("no_leftovers")
def test_an_executor_collected_by_its_own_callback() -> None:
    executors = [ProcessPoolExecutor(1)]
    dropped = threading.Event()

    def drop(future: Future[Any]) -> None:
        executors.clear()
        dropped.set()

    future = executors[0].submit(os.getpid)
    future.add_done_callback(drop)
    assert ended(future.result())
    assert dropped.wait(PATIENCE)


def test_a_map_that_is_collected_by_the_pools_own_thread_hangs_nobody(gate: Gate) -> None:
    with ProcessPoolExecutor(1) as executor:
        held = executor.submit(pid_through, gate.path)
        gate.arrivals()
        results = [executor.map(abs, range(20))]
        held.add_done_callback(lambda _: results.clear())
        gate.open()
        assert held.result()
        assert executor.submit(abs, -1).result(PATIENCE) == 1
        assert not results


# ---------------------------------------------------------------------- callbacks


def test_callbacks_that_raise_are_logged_and_harm_nobody(caplog: pytest.LogCaptureFixture) -> None:
    called = threading.Event()

    def callback(future: Future[Any]) -> None:
        raise SystemExit("from a callback")

    with ProcessPoolExecutor(1) as executor:
        future = executor.submit(abs, -1)
        future.add_done_callback(callback)
        future.add_done_callback(lambda _: called.set())
        assert future.result() == 1
        assert called.wait(PATIENCE)
        assert executor.submit(abs, -2).result() == 2
    assert "exception calling callback" in caplog.text
    assert "from a callback" in caplog.text


def test_a_failing_report_of_a_failing_callback_harms_nobody() -> None:
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise LookupError

    called = threading.Event()
    logger = logging.getLogger("concurrent.futures")
    handler = Failing()
    logger.addHandler(handler)
    try:
        with ProcessPoolExecutor(1) as executor:
            future: Future[Any] = executor.submit(abs, -1)
            future.add_done_callback(lambda _: 1 / 0)
            future.add_done_callback(lambda _: called.set())
            assert future.result() == 1
            assert called.wait(PATIENCE)
            assert executor.submit(abs, -2).result() == 2
    finally:
        logger.removeHandler(handler)


def test_a_callback_may_wait_for_other_futures_of_the_pool() -> None:
    found: list[Any] = []
    done = threading.Event()

    with ProcessPoolExecutor(1) as executor:

        def deeper(level: int, future: Future[int]) -> None:
            value = executor.submit(abs, -level).result(PATIENCE)
            found.append(value)
            if level == 4:
                done.set()
                return
            # A callback, whose callback waits, whose callback waits.
            another = executor.submit(abs, -level)
            another.add_done_callback(lambda f: deeper(level + 1, f))
            another.result(PATIENCE)

        executor.submit(abs, 0).add_done_callback(lambda f: deeper(1, f))
        assert done.wait(PATIENCE)
        assert list(executor.map(abs, range(5))) == list(range(5))
    assert found == [1, 2, 3, 4]


def test_a_callback_may_use_map_and_wait_for_all() -> None:
    found: list[Any] = []
    done = threading.Event()

    with ProcessPoolExecutor(2) as executor:

        def callback(future: Future[int]) -> None:
            found.append(sum(executor.map(abs, range(50))))
            finished, _ = loky.wait([executor.submit(abs, i) for i in range(10)], PATIENCE)
            found.append(len(finished))
            done.set()

        executor.submit(abs, 0).add_done_callback(callback)
        assert done.wait(PATIENCE)
    assert found == [1225, 10]


def test_callbacks_are_called_one_at_a_time_and_before_shutdown_returns() -> None:
    """Also those that take long enough for another thread to watch meanwhile."""
    at_work = most = called = 0

    def callback(_: Any) -> None:
        nonlocal at_work, most, called
        at_work += 1
        most = max(most, at_work)
        time.sleep(0.03)  # several ticks: this is the subject
        at_work -= 1
        called += 1

    before = threading.active_count()
    with ProcessPoolExecutor(2) as executor:
        for n in range(12):
            executor.submit(abs, n).add_done_callback(callback)
        executor.submit(abs, -1).result()
        assert threading.active_count() <= before + 3
    assert (most, called) == (1, 12)


def test_a_callback_that_waits_for_somebody_who_waits_for_a_future() -> None:
    """Nobody can see that; it is overtaken all the same."""
    lock = threading.Lock()
    entered = threading.Event()

    def callback(_: Any) -> None:
        entered.set()
        with lock:
            pass

    with ProcessPoolExecutor(1) as executor:
        with lock:
            executor.submit(abs, -1).add_done_callback(callback)
            assert entered.wait(PATIENCE)
            # This result is one that only a thread in charge of endings can rebuild.
            assert executor.submit(complex, 1, 2).result(PATIENCE) == 1 + 2j


def test_callbacks_and_slow_results_are_completed_at_exit(tmp_path: Path) -> None:
    code = """
import time
from loky import get_reusable_executor

class Slow:
    def __init__(self, number):
        self.number = number
    def __reduce__(self):
        return rebuild, (self.number,)

def rebuild(number):
    time.sleep(0.03)
    return number

def callback(future):
    time.sleep(0.03)
    print(future.result(), flush=True)

executor = get_reusable_executor(2)
for number in range(10):
    executor.submit(Slow, number).add_done_callback(callback)
"""
    done = run_script(tmp_path, code)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(map(int, done.stdout.split())) == list(range(10))


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("kill", [False, True])
def test_shutdown_from_a_callback(wait: bool, kill: bool) -> None:
    done = threading.Event()
    executor = ProcessPoolExecutor(1)

    def callback(future: Future[Any]) -> None:
        executor.shutdown(wait=wait, kill_workers=kill)
        done.set()

    future = executor.submit(os.getpid)
    future.add_done_callback(callback)
    assert done.wait(PATIENCE)
    assert ended(future.result())
    executor.shutdown()
    with pytest.raises(ShutdownExecutorError):
        executor.submit(abs, 1)


def test_the_callback_of_a_death_may_use_the_pool() -> None:
    found: list[Any] = []
    done = threading.Event()
    with ProcessPoolExecutor(1) as executor:

        def callback(future: Future[Any]) -> None:
            found.append(type(future.exception()))
            found.append(executor.submit(abs, -1).result(PATIENCE))
            done.set()

        executor.submit(killed).add_done_callback(callback)
        assert done.wait(PATIENCE)
    assert found == [TerminatedWorkerError, 1]


# ---------------------------------------------------------------------- fork of the parent


def in_a_fork(function: Any) -> int:
    """Call a function in a forked child; 0 if it returned true."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(int(PATIENCE))
            status = 0 if function() else 2
        except BaseException as error:
            print(repr(error), file=sys.__stderr__)
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def test_the_child_of_a_fork_cannot_use_the_pool_but_can_make_one(gate: Gate) -> None:
    with ProcessPoolExecutor(1) as executor:
        running = executor.submit(pid_through, gate.path)
        (pid,) = gate.arrivals()
        waiting = executor.submit(abs, -7)

        def child() -> bool:
            with pytest.raises(ShutdownExecutorError, match="forked from the one that owns"):
                executor.submit(abs, 1)
            with pytest.raises(ShutdownExecutorError, match="forked from the one that owns"):
                running.result()  # would wait for ever
            executor.shutdown()  # leaving the block: nothing to do here
            with ProcessPoolExecutor(2) as mine:
                return list(mine.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]

        assert in_a_fork(child) == 0
        assert not ended(pid, 0), "the parent's worker does not mind"
        gate.open()
        assert (running.result(), waiting.result()) == (pid, 7)
        assert executor.submit(abs, -1).result() == 1


def test_a_child_that_collects_its_copy_of_the_executor_disturbs_nobody() -> None:
    executors = [ProcessPoolExecutor(1)]
    pid = executors[0].submit(os.getpid).result()

    def child() -> bool:
        executors.clear()
        gc.collect()
        return True

    assert in_a_fork(child) == 0
    assert executors[0].submit(os.getpid).result() == pid
    executors[0].shutdown()


def test_a_pool_of_the_child_ends_with_the_child(gate: Gate) -> None:
    def child() -> bool:
        mine = ProcessPoolExecutor(1)
        mine.submit(pass_through, gate.path)
        signal.pause()
        return False

    child_pid = os.fork()
    if child_pid == 0:
        try:
            child()
        finally:
            os._exit(1)
    (worker,) = gate.arrivals()
    os.kill(child_pid, signal.SIGKILL)
    os.waitpid(child_pid, 0)
    assert ended(worker)


def test_the_workers_live_as_long_as_the_parent_and_not_as_its_children(tmp_path: Path) -> None:
    """The child of the fork had copies of the pool's descriptors."""
    with Gate(tmp_path, "worker") as worker_gate, Gate(tmp_path, "child") as child_gate:
        script = f"""
import os, signal, sys
sys.path.insert(0, {HERE!r})
from pool_tasks import announce, hold_the_interpreter
from loky import ProcessPoolExecutor
executor = ProcessPoolExecutor(1)
executor.submit(abs, 1).result()
executor.submit(hold_the_interpreter, {worker_gate.path!r})
if os.fork() == 0:
    announce({child_gate.path!r})
signal.pause()
"""
        parent = subprocess.Popen(command(tmp_path, script))
        (worker,) = worker_gate.arrivals()
        (child,) = child_gate.arrivals()
        try:
            parent.kill()
            parent.wait()
            assert ended(worker)
            assert not ended(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)


# ---------------------------------------------------------------------- fork inside a task


def test_a_fork_inside_a_task_gives_one_result(gate: Gate) -> None:
    with ProcessPoolExecutor(1) as executor:
        pid = executor.submit(os.getpid).result()
        future = executor.submit(fork_and_return_twice, gate.path)
        (child,) = gate.arrivals()
        assert future.result() == child
        error = executor.submit(fork_and_raise_twice, gate.path).exception()
        assert type(error) is LookupError
        gate.arrivals()
        # Nothing is out of step: results still belong to their tasks.
        assert list(executor.map(abs, range(50))) == list(range(50))
        assert executor.submit(os.getpid).result() == pid


CHILDREN = f"""
import sys
sys.path.insert(0, {HERE!r})
from pool_tasks import status_of_a_child_that as status
from loky import ProcessPoolExecutor
def fail():
    raise LookupError("the child's")
with ProcessPoolExecutor(1) as executor:
    print(executor.submit(status, abs, -1).result())
    print(executor.submit(status, fail).result())
    print(executor.submit(status, sys.exit, 7).result())
    print(executor.submit(status, sys.exit).result())
"""


def test_a_fork_inside_a_task_ends_as_a_program_does(tmp_path: Path) -> None:
    done = run_script(tmp_path, CHILDREN)
    assert done.stdout.split() == ["0", "1", "7", "0"]
    assert done.stderr.count("Traceback (most recent call last)") == 1
    assert done.stderr.endswith("LookupError: the child's\n")


CLOSES = """
import os
from loky import ProcessPoolExecutor, TerminatedWorkerError
with ProcessPoolExecutor(1) as executor:
    try:
        executor.submit(os.closerange, 3, 1000).result()
    except TerminatedWorkerError as error:
        print("EXIT(1)" in str(error))
"""


def test_a_task_that_closes_every_descriptor(tmp_path: Path) -> None:
    done = run_script(tmp_path, CLOSES)
    assert (done.stdout, done.stderr) == ("True\n", "")


# ---------------------------------------------------------------------- the interpreter's end

PENDING = """
import sys
from loky import ProcessPoolExecutor, get_reusable_executor

def work(number):
    with open(sys.argv[1], "a") as file:
        file.write(f"{number}\\n")

executor = MAKE
for number in range(20):
    executor.submit(work, number)
END
"""


@pytest.mark.parametrize(
    ("make", "end", "code"),
    [
        ("ProcessPoolExecutor(2)", "", 0),
        ("get_reusable_executor(2)", "", 0),
        ("ProcessPoolExecutor(2)", "del executor", 0),
        ("ProcessPoolExecutor(2)", "sys.exit(3)", 3),
        ("ProcessPoolExecutor(2)", "raise LookupError", 1),
        ("ProcessPoolExecutor(2)", "executor.shutdown(wait=False)", 0),
    ],
)
def test_work_that_is_pending_at_the_end_of_the_interpreter_completes(
    tmp_path: Path, make: str, end: str, code: int
) -> None:
    out = tmp_path / "out"
    script = PENDING.replace("MAKE", make).replace("END", end)
    script = script.replace("sys.argv[1]", repr(str(out)))
    done = run_script(tmp_path, script)
    assert done.returncode == code
    assert sorted(map(int, lines(out))) == list(range(20))
    if code != 1:
        assert done.stderr == ""


AT_EXIT = """
import atexit
from loky import ProcessPoolExecutor, get_reusable_executor

executor = get_reusable_executor(1)
assert executor.submit(abs, -1).result() == 1

@atexit.register
def late():
    try:
        executor.submit(abs, -1)
    except RuntimeError as error:
        print("refused:", error)

held = executor.submit(len, "x" * 100_000)
held.add_done_callback(lambda f: print("done", f.result()))
"""


def test_calls_that_come_too_late_are_refused(tmp_path: Path) -> None:
    done = run_script(tmp_path, AT_EXIT)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines() == [
        "done 100000",
        "refused: cannot schedule new futures after interpreter shutdown",
    ]


WAITING_CALLBACK = """
from loky import ProcessPoolExecutor
executor = ProcessPoolExecutor(1)
others = [executor.submit(abs, -i) for i in range(3)]
def callback(future):
    print(sum(other.result(20) for other in others))
executor.submit(abs, -1).add_done_callback(callback)
more = executor.submit(abs, -5)
others.append(more)
"""


def test_a_callback_that_waits_at_the_end_of_the_interpreter(tmp_path: Path) -> None:
    done = run_script(tmp_path, WAITING_CALLBACK)
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")


# ---------------------------------------------------------------------- the parent is killed


@pytest.mark.parametrize("busy", [True, False])
def test_all_workers_and_their_children_go_when_the_parent_is_killed(
    tmp_path: Path, busy: bool
) -> None:
    with Gate(tmp_path) as gate:
        task = "family" if busy else "fork_a_child_that_waits"
        script = f"""
import signal, sys
sys.path.insert(0, {HERE!r})
import pool_tasks
from loky import ProcessPoolExecutor
executor = ProcessPoolExecutor(2)
for _ in range(2):
    executor.submit(pool_tasks.{task}, {gate.path!r})
signal.pause()
"""
        parent = subprocess.Popen(command(tmp_path, script))
        # With `family`: the worker, its child, and a program it started.
        pids = gate.arrivals(6 if busy else 4)
        killed_at = time.monotonic()
        parent.kill()
        assert all_ended(pids, 10)
        took = time.monotonic() - killed_at
        parent.wait()
        assert took < 5, f"it took {took:.2f} s"


def test_workers_that_are_just_starting_go_too_when_the_parent_is_killed(tmp_path: Path) -> None:
    script = """
import os
from loky import ProcessPoolExecutor
executor = ProcessPoolExecutor(3)
futures = [executor.submit(abs, 1) for _ in range(3)]
while len(executor._pool.pids()) < 3:
    pass
print(*executor._pool.pids(), flush=True)
os.kill(os.getpid(), 9)
"""
    done = run_script(tmp_path, script)
    assert done.returncode == -9
    assert all_ended(map(int, done.stdout.split()))


# ---------------------------------------------------------------------- Ctrl-C

INTERRUPTED = f"""
import sys
sys.path.insert(0, {HERE!r})
from pool_tasks import announce, pass_through, wait_at
from loky import ProcessPoolExecutor, get_reusable_executor
gate = sys.argv[1]
"""


def interrupt(tmp_path: Path, gate: Gate, code: str, tasks: int = 2) -> tuple[str, list[int]]:
    """Run a script, interrupt it when so many tasks have begun; its stderr, and their workers."""
    parent = subprocess.Popen(
        command(tmp_path, INTERRUPTED + code, gate.path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        pids = gate.arrivals(tasks)
        sent = time.monotonic()
        parent.send_signal(signal.SIGINT)
        _, stderr = parent.communicate(timeout=PATIENCE)
        took = time.monotonic() - sent
    finally:
        parent.kill()
        parent.wait()
    assert parent.returncode == -signal.SIGINT
    assert took < 5, f"it took {took:.2f} s"
    return stderr, pids


WAYS_TO_WAIT = {
    "map": "list(ProcessPoolExecutor(2).map(pass_through, [gate] * 50))",
    "map in a block": """
with ProcessPoolExecutor(2) as executor:
    list(executor.map(pass_through, [gate] * 50))
""",
    "result": "[get_reusable_executor(2).submit(pass_through, gate) for _ in range(9)][0].result()",
    "result in a block": """
with ProcessPoolExecutor(2) as executor:
    [executor.submit(pass_through, gate) for _ in range(9)][0].result()
""",
    "the block's end": """
with ProcessPoolExecutor(2) as executor:
    [executor.submit(pass_through, gate) for _ in range(9)]
""",
    "shutdown": """
executor = ProcessPoolExecutor(2)
[executor.submit(pass_through, gate) for _ in range(9)]
executor.shutdown()
""",
    "wait": """
import loky
executor = ProcessPoolExecutor(2)
loky.wait([executor.submit(pass_through, gate) for _ in range(9)])
""",
}


@pytest.mark.parametrize("way", list(WAYS_TO_WAIT))
def test_ctrl_c_gives_one_traceback_and_leaves_no_worker(
    tmp_path: Path, gate: Gate, way: str
) -> None:
    stderr, pids = interrupt(tmp_path, gate, WAYS_TO_WAIT[way])
    assert stderr.count("Traceback (most recent call last)") == 1, stderr
    assert stderr.rstrip().endswith("KeyboardInterrupt"), stderr
    assert all_ended(pids)


LEAVING = """
import atexit, threading, time
from loky.pool import lifetime
atexit.register(print, "registered first")
executor = ProcessPoolExecutor(2)
futures = [executor.submit(pass_through, gate) for _ in range(9)]

def look():
    "The main thread completes what is pending."
    while not lifetime.interpreter_is_leaving:
        time.sleep(0.001)
    announce(gate)

threading.Thread(target=look, daemon=True).start()
atexit.register(print, "registered last")
"""


@pytest.mark.parametrize("end", ["", "sys.exit(5)", "raise ValueError('mine')"])
def test_ctrl_c_while_the_interpreter_completes_pending_work(
    tmp_path: Path, gate: Gate, end: str
) -> None:
    """One traceback, death by SIGINT, no worker left; other exit functions are called."""
    parent = subprocess.Popen(
        command(tmp_path, INTERRUPTED + LEAVING + end, gate.path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        pids = gate.arrivals(3)
        parent.send_signal(signal.SIGINT)
        stdout, stderr = parent.communicate(timeout=PATIENCE)
    finally:
        parent.kill()
        parent.wait()
    assert all_ended(pids)
    assert parent.returncode == -signal.SIGINT
    assert stdout == "registered last\nregistered first\n"
    assert stderr.count("KeyboardInterrupt") == 1
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert stderr.count("Traceback (most recent call last)") == (2 if "mine" in end else 1), stderr


NOTEBOOK = """
import os, signal, threading
executor = get_reusable_executor(2)
ran = sys.argv[1] + ".ran"

def note(number):
    with open(ran, "a") as file:
        file.write(f"{number}\\n")

def work(number):
    if number < 2:
        announce(gate)
        wait_at(gate)
    note(number)

def cell(function):
    "What a notebook does: an interrupted cell ends, the process goes on."
    try:
        return function()
    except KeyboardInterrupt:
        return "interrupted"

print(cell(lambda: list(executor.map(work, range(30)))), flush=True)
print(cell(lambda: sum(executor.map(abs, range(100)))), flush=True)
print(get_reusable_executor(2) is executor, flush=True)
print(os.path.exists(ran), flush=True)
future = executor.submit(pass_through, gate)
print(cell(future.result), flush=True)
print(future.done(), flush=True)
print(future.cancel(kill=True), flush=True)
print(cell(lambda: executor.submit(abs, -3).result()), flush=True)
"""


def test_in_a_notebook_the_pool_is_clean_for_the_next_cell(tmp_path: Path, gate: Gate) -> None:
    parent = subprocess.Popen(
        command(tmp_path, INTERRUPTED + NOTEBOOK, gate.path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        gate.arrivals(2)
        parent.send_signal(signal.SIGINT)
        gate.arrivals(1)
        parent.send_signal(signal.SIGINT)
        stdout, stderr = parent.communicate(timeout=PATIENCE)
    finally:
        parent.kill()
        parent.wait()
    assert stderr == ""
    assert stdout.split() == [
        "interrupted",  # a map that is interrupted also stops what it was running
        "4950",
        "True",
        "False",
        "interrupted",  # a future that is waited for goes on
        "False",
        "True",
        "3",
    ]


# ---------------------------------------------------------------------- odd surroundings


ODD = """
import os, signal, sys
from loky import ProcessPoolExecutor

def crash(code):
    os._exit(code)
"""

SIGCHLD_IGNORED = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
with ProcessPoolExecutor(2, max_tasks_per_child=5) as executor:
    assert sum(executor.map(abs, range(20))) == 190
    error = executor.submit(crash, 3).exception()
    print(type(error).__name__, error.exitcode, "UNKNOWN" in str(error))
    print(executor.submit(abs, -3).result())
    # A task's own children are its own business.
    print(executor.submit(os.system, "exit 3").result())
"""

REAPER = """
import threading
def reap():
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            if over.wait(0.001):
                return
over = threading.Event()
thread = threading.Thread(target=reap)
thread.start()
with ProcessPoolExecutor(2, max_tasks_per_child=5) as executor:
    assert sum(executor.map(abs, range(20))) == 190
    for _ in range(5):
        error = executor.submit(crash, 3).exception()
        assert type(error).__name__ == "TerminatedWorkerError"
        # Whoever was first has the status; it is never wrong.
        assert error.exitcode in (3, None), error.exitcode
    print(executor.submit(abs, -3).result())
over.set()
thread.join()
"""


def test_a_parent_that_ignores_sigchld(tmp_path: Path) -> None:
    done = run_script(tmp_path, ODD + SIGCHLD_IGNORED)
    assert done.stderr == "" and done.returncode == 0
    assert done.stdout.splitlines() == ["TerminatedWorkerError None True", "3", "768"]


def test_a_parent_in_which_somebody_else_collects_children(tmp_path: Path) -> None:
    done = run_script(tmp_path, ODD + REAPER)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


NO_DESCRIPTORS = """
out = os.dup(1)
os.set_inheritable(out, False)
for fd in (0, 1, 2):
    os.close(fd)

def look():
    "What a task finds, and that printing harms nobody."
    print("lost")
    print("lost", file=sys.stderr)
    os.write(1, b"lost")
    return [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)]

with ProcessPoolExecutor(2) as executor:
    found = executor.submit(look).result()
    assert sum(executor.map(abs, range(500))) == 124750
    assert executor.submit(len, bytes(1_000_000)).result() == 1_000_000
    error = executor.submit(crash, 3).exception()
    assert error.exitcode == 3
    os.write(out, repr(found).encode())
"""


def test_a_parent_without_the_standard_descriptors(tmp_path: Path) -> None:
    done = run_script(tmp_path, ODD + NO_DESCRIPTORS)
    assert done.returncode == 0
    assert done.stdout == repr(["/dev/null"] * 3)


SIGNALS_BLOCKED = """
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)

def look():
    handlers = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    return handlers, len(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

with ProcessPoolExecutor(1) as executor:
    print(*executor.submit(look).result())
"""


def test_a_parent_that_blocks_signals_has_workers_that_do_not(tmp_path: Path) -> None:
    done = run_script(tmp_path, ODD + SIGNALS_BLOCKED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True 0\n", "")


PID_ONE = """
assert os.getpid() == 1, os.getpid()

def leave_an_orphan():
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(5)
        os._exit(0)
    os.wait()

with ProcessPoolExecutor(2) as executor:
    assert sum(executor.map(abs, range(20))) == 190
    executor.submit(leave_an_orphan).result()
    error = executor.submit(crash, 3).exception()
    print(type(error).__name__, error.exitcode)
    print(executor.submit(abs, -3).result())
"""


def can_unshare() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    probe = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return subprocess.run(probe, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="no right to make a namespace of processes")
def test_a_parent_that_is_process_one(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", *command(tmp_path, ODD + PID_ONE)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["TerminatedWorkerError 3", "3"]


CHANGED_FOLDER = """
import json
with ProcessPoolExecutor(1) as executor:
    os.chdir(sys.argv[1])
    # A module that shadows one of the standard library must not be met by a worker that starts.
    open("socket.py", "w").write("raise SystemExit('shadow')")
    open("json.py", "w").write("raise SystemExit('shadow')")
    print(executor.submit(os.getcwd).result() == os.getcwd())
"""


def test_a_folder_whose_modules_shadow_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    done = run_script(tmp_path, ODD + CHANGED_FOLDER, str(tmp_path / "folder"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


FORK_WHILE_IMPORTING = """
import os, signal, sys, threading
import loky
from loky import ProcessPoolExecutor

loky.__path__.append(sys.argv[1])
loky.begun, loky.go_on = threading.Event(), threading.Event()

with ProcessPoolExecutor(1) as executor:
    executor.submit(abs, -1).result()
    threading.Thread(target=__import__, args=["loky.slow_to_import"]).start()
    loky.begun.wait()
    # Of several such functions, the last registered is called first.
    os.register_at_fork(before=loky.go_on.set)
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        import loky.slow_to_import
        os._exit(0)
    print(os.waitpid(pid, 0)[1])
"""

SLOW_TO_IMPORT = """
import loky, time
loky.begun.set()
loky.go_on.wait()
time.sleep(0.3)  # a fork that does not wait for this comes before its end
"""


def test_a_fork_waits_for_imports_of_other_threads(tmp_path: Path) -> None:
    """Whoever imports that in the child would wait for ever."""
    (tmp_path / "slow_to_import.py").write_text(SLOW_TO_IMPORT)
    done = run_script(tmp_path, FORK_WHILE_IMPORTING, str(tmp_path))
    assert done.stdout == "0\n", done.stderr
