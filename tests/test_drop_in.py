"""What callers of loky 3 rely on: names, private attributes, messages, small habits.

The names come from the table in docs/compatibility.md, which is held to what it says.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pool_tasks import CrashesWhenCollected, pass_through
from rendezvous import PATIENCE, Gate, all_ended, ended, run_script

import loky
from loky import BrokenProcessPool, Future, ProcessPoolExecutor, TerminatedWorkerError
from loky.reusable_executor import _ReusablePoolExecutor

TABLE = Path(__file__).parents[1] / "docs" / "compatibility.md"
ROW = re.compile(r"^\| (?P<names>`.+?) \| (?P<verdict>[a-z]+) \|(?P<note>.*)\|$")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path) as gate:
        yield gate


# ---------------------------------------------------------------------- the table


def promises() -> list[tuple[str, str]]:
    """Every name of the table that can be looked up, and what is said of it."""
    found = []
    for line in TABLE.read_text().splitlines():
        row = ROW.match(line)
        if row:
            for name in re.findall(r"`([^`]+)`", row["names"]):
                found.append((name.partition("(")[0], row["verdict"]))
    return found


def is_there(name: str) -> bool:
    """Whether a dotted name is there: in a module, or as attribute of an executor or a future."""
    start, *rest = name.split(".")
    value: Any
    if start == "executor":
        value = loky.get_reusable_executor(max_workers=1)
    elif start == "future":
        value = Future()
    else:
        value = importlib.import_module(start)
    for part in rest:
        start = f"{start}.{part}"
        try:
            value = getattr(value, part)
        except AttributeError:
            try:
                value = importlib.import_module(start)
            except ImportError:
                return False
    return True


NAMES = [(name, verdict) for name, verdict in promises() if re.match(r"[a-z_]+\.\w", name)]


def test_the_table_is_there() -> None:
    assert len(NAMES) > 150
    assert {verdict for _, verdict in promises()} == {"same", "better", "gone"}
    assert len(NAMES) == len(dict(NAMES)), "no name stands in it twice"


@pytest.mark.parametrize(("name", "verdict"), NAMES, ids=[name for name, _ in NAMES])
def test_the_table_tells_the_truth(name: str, verdict: str) -> None:
    assert is_there(name) == (verdict != "gone")


def test_every_public_name_is_in_the_table() -> None:
    listed = {name for name, _ in NAMES}
    for module in ("loky", "loky.backend", "loky.backend.context", "loky.backend.reduction"):
        for name in importlib.import_module(module).__all__:
            assert f"{module}.{name}" in listed


# ---------------------------------------------------------------------- attributes of an executor


def test_the_processes_of_an_executor(gate: Gate) -> None:
    executor = ProcessPoolExecutor(2)
    try:
        assert executor._processes == {}
        future = executor.submit(pass_through, gate.path)
        (pid,) = gate.arrivals()
        processes = executor._processes
        assert len(processes) == 2 and set(processes) == set(executor._pool.pids())
        worker = processes[pid]
        assert worker.is_alive() and worker.exitcode is None
        assert (worker.pid, worker.ident) == (pid, pid)
        worker.join(timeout=0)
        worker.terminate()
        error = future.exception(PATIENCE)
        assert isinstance(error, TerminatedWorkerError) and "SIGTERM(-15)" in str(error)
        worker.join(PATIENCE)
        assert not worker.is_alive() and worker.exitcode == -signal.SIGTERM
        assert pid not in executor._processes
        worker.kill()  # it is gone already
    finally:
        executor.shutdown()
    for process in processes.values():
        process.join(PATIENCE)
        assert process.exitcode is not None
    assert "exitcode=-15" in repr(worker)


def test_a_process_of_an_executor_can_be_killed(gate: Gate) -> None:
    with ProcessPoolExecutor(1) as executor:
        future = executor.submit(pass_through, gate.path)
        (pid,) = gate.arrivals()
        executor._processes[pid].kill()
        assert "SIGKILL(-9)" in str(future.exception(PATIENCE))
        assert ended(pid)


def test_the_flags_of_an_executor() -> None:
    executor = ProcessPoolExecutor(1, crash_policy="break")
    flags = executor._flags
    assert (flags.broken, flags.shutdown, flags.kill_workers) == (None, False, False)
    executor.submit(os._exit, 3).exception()
    with pytest.raises(BrokenProcessPool):
        executor.submit(abs, 1)
    assert isinstance(flags.broken, TerminatedWorkerError)
    executor.shutdown()
    assert flags.shutdown

    executor = ProcessPoolExecutor(1)
    executor.submit(abs, 1).result()
    executor.shutdown(kill_workers=True)
    flags = executor._flags
    assert (flags.broken, flags.shutdown, flags.kill_workers) == (None, True, True)


def test_the_flags_outlive_the_executor() -> None:
    executor = ProcessPoolExecutor(1)
    executor.submit(abs, 1).result()
    flags, processes = executor._flags, executor._processes
    thread = executor._executor_manager_thread
    del executor
    thread.join(PATIENCE)
    assert flags.shutdown and not thread.is_alive()
    assert all_ended(processes, 0)


def test_the_manager_thread_of_an_executor(gate: Gate) -> None:
    executor = ProcessPoolExecutor(1)
    assert executor._executor_manager_thread is None
    executor.submit(pass_through, gate.path)
    gate.arrivals()
    thread = executor._executor_manager_thread
    executor.shutdown(wait=False)
    thread.join(timeout=0)
    assert thread.is_alive()
    gate.open()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert executor._executor_manager_thread is None


def test_the_options_of_an_executor() -> None:
    executor = ProcessPoolExecutor(
        3, timeout=5, context="spawn", initializer=print, initargs=["x"], env={"A": 1}
    )
    assert executor._max_workers == 3
    assert executor._timeout == 5
    assert executor._context is multiprocessing.get_context("spawn")
    assert (executor._initializer, executor._initargs) == (print, ("x",))
    assert executor._env == {"A": "1"}
    assert ProcessPoolExecutor(1)._context.get_start_method() == "loky"


def test_what_is_not_there_is_said_as_usual() -> None:
    executor = ProcessPoolExecutor(1)
    with pytest.raises(AttributeError, match=r"'ProcessPoolExecutor' .* '_call_queue'"):
        executor._call_queue  # noqa: B018
    with pytest.raises(AttributeError, match="'nothing'"):
        executor.nothing  # type: ignore[attr-defined]  # noqa: B018


# ---------------------------------------------------------------------- the reusable executor


def test_the_positional_order_of_the_reusable_executor() -> None:
    executor = _ReusablePoolExecutor(2, "spawn", 7, 41, None, None, print, ("x",), {"A": "1"})
    assert (executor._max_workers, executor._timeout, executor.executor_id) == (2, 7, 41)
    assert executor._context.get_start_method() == "spawn"
    assert (executor._initializer, executor._initargs) == (print, ("x",))
    assert executor._env == {"A": "1"}
    assert _ReusablePoolExecutor(1).executor_id == 0
    with pytest.raises(TypeError, match="at most 9 positional arguments, got 10"):
        _ReusablePoolExecutor(*range(1, 11))


def test_the_order_of_loky_3_6_with_a_lock_first() -> None:
    lock = threading.RLock()
    executor = _ReusablePoolExecutor(lock, 2, "loky", 7, executor_id=3)
    assert executor._submit_resize_lock is lock
    assert (executor._max_workers, executor._timeout, executor.executor_id) == (2, 7, 3)
    assert _ReusablePoolExecutor(submit_resize_lock=lock)._submit_resize_lock is lock
    with _ReusablePoolExecutor(1)._submit_resize_lock:
        pass


class Derived(_ReusablePoolExecutor):
    """As joblib derives its own."""


def test_subclasses_share_the_one_executor() -> None:
    derived, reused = Derived.get_reusable_executor(max_workers=1, reuse=False)
    assert type(derived) is Derived and not reused
    assert _ReusablePoolExecutor.get_reusable_executor(max_workers=1) == (derived, True)
    other = loky.get_reusable_executor(max_workers=1, reuse=False)
    assert other.executor_id > derived.executor_id
    assert loky.reusable_executor._executor is other
    assert loky.reusable_executor._executor_kwargs["timeout"] == 10
    other.note = "any attribute"  # as joblib keeps its folders there


# ---------------------------------------------------------------------- habits


def test_the_default_context_is_the_one_that_was_set(tmp_path: Path) -> None:
    code = (
        "from loky.backend.context import set_start_method\n"
        "from loky import ProcessPoolExecutor, get_reusable_executor\n"
        "set_start_method('spawn')\n"
        "print(ProcessPoolExecutor(1)._options.start_method)\n"
        "set_start_method('loky_init_main', force=True)\n"
        "print(get_reusable_executor(1)._context.get_start_method())\n"
    )
    assert run_script(tmp_path, code).stdout.split() == ["spawn", "loky_init_main"]


@pytest.mark.parametrize("first", ["loky", "multiprocessing"])
def test_importing_an_executor_is_enough_for_multiprocessing(tmp_path: Path, first: str) -> None:
    imports = ["from loky import get_reusable_executor", "import multiprocessing as mp"]
    code = "\n".join(imports if first == "loky" else imports[::-1])
    code += (
        "\nmp.util.debug('there')\n"
        "if __name__ == '__main__':\n"
        "    mp.set_start_method('loky')\n"
        "    print(mp.get_context().get_start_method())\n"
    )
    done = run_script(tmp_path, code)
    assert (done.stdout, done.stderr) == ("loky\n", "")


def test_a_finalizer_that_kills_the_worker_does_not_take_the_result() -> None:
    with ProcessPoolExecutor(1) as executor:
        assert isinstance(executor.submit(id, CrashesWhenCollected()).result(), int)
        with pytest.raises(ZeroDivisionError):
            executor.submit(divmod, 1, 0).result()
        assert executor.submit(abs, -1).result() == 1
