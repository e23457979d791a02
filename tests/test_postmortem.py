"""Post-mortems: what is told of a worker's end, and that nothing is told that is not known."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import worker_tasks
from pool_tasks import echo, fault, killed, leave_with_three, pass_through
from rendezvous import Gate, kill

import loky
from loky import PostMortem, ProcessPoolExecutor, TaskTimeoutError, TerminatedWorkerError
from loky.memory import readable
from loky.observe import arguments
from loky.pool.port import Port


def post_mortem(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> PostMortem:
    with ProcessPoolExecutor(1) as executor:
        error = executor.submit(fn, *args, **kwargs).exception()
    assert isinstance(error, TerminatedWorkerError)
    found = error.post_mortem
    assert found is not None
    assert (found.task, found.pid, found.exitcode) == (error.task, error.pid, error.exitcode)
    assert found.seconds == error.seconds
    return found


def test_a_signal() -> None:
    found = post_mortem(killed)
    assert (found.exitcode, found.signal) == (-9, "SIGKILL")
    assert found.task == "pool_tasks.killed" and found.arguments == ""
    assert found.stack == "" and found.attempts == ()
    assert found.cpu_seconds is not None and 0 < found.cpu_seconds < 20
    report = str(found)
    assert report.startswith(f"Post-mortem of worker {found.pid}\n")
    assert "SIGKILL (signal 9)" in report and "pool_tasks.killed()" in report


def test_an_exit() -> None:
    found = post_mortem(leave_with_three)
    assert (found.exitcode, found.signal) == (3, None)
    assert "itself, with exit code 3" in str(found)


def test_a_crash_in_compiled_code_has_its_stack() -> None:
    found = post_mortem(fault)
    assert found.signal == "SIGSEGV" and "in fault" in found.stack
    assert "  stack:\n    Fatal Python error: Segmentation fault\n" in str(found)


def test_a_signal_without_a_name() -> None:
    found = post_mortem(os.kill, 0, signal.SIGRTMIN + 1)
    assert (found.exitcode, found.signal) == (-signal.SIGRTMIN - 1, "SIGNAL")
    assert f"(signal {signal.SIGRTMIN + 1})" in str(found)


def test_somebody_else_took_the_exit_status(tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, ProcessPoolExecutor(1) as executor:
        future = executor.submit(pass_through, gate.path)
        (pid,) = gate.arrivals()
        old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            kill(pid)
            error = future.exception()
        finally:
            signal.signal(signal.SIGCHLD, old)
    assert isinstance(error, TerminatedWorkerError) and error.post_mortem is not None
    found = error.post_mortem
    assert (found.exitcode, found.signal, found.cpu_seconds) == (None, None, None)
    assert found.peak_memory is None
    assert "unknown" in str(found)


def test_the_cpu_time_is_the_worker_s() -> None:
    found = post_mortem(worker_tasks.burn_and_die, 0.3)
    assert found.cpu_seconds is not None and 0.3 <= found.cpu_seconds < 20


def test_the_peak_memory_if_it_is_certainly_the_worker_s() -> None:
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    extra = 50 << 20
    found = post_mortem(worker_tasks.use_memory_and_die, mine + extra)
    assert found.peak_memory is not None
    assert mine + extra <= found.peak_memory < mine + 4 * extra
    assert f"peak memory    {readable(found.peak_memory)}" in str(found)


def test_a_peak_that_may_be_this_process_s_own_is_not_told() -> None:
    ballast = bytes(b"x" * (100 << 20))
    found = post_mortem(killed)
    assert len(ballast) and found.peak_memory is None
    assert "peak" not in str(found)


def test_the_end_of_standard_error_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Port, "last_words", lambda self: "the roof\nis on fire\n")
    with ProcessPoolExecutor(1) as executor:
        error = executor.submit(killed).exception()
    assert isinstance(error, TerminatedWorkerError) and error.post_mortem is not None
    assert error.post_mortem.stderr == "the roof\nis on fire\n"
    assert str(error.post_mortem).endswith("    the roof\n    is on fire")
    assert "the roof\nis on fire" in str(error)


def test_it_can_be_pickled_with_its_error() -> None:
    with ProcessPoolExecutor(1) as executor:
        error = executor.submit(fault).exception()
    assert isinstance(error, TerminatedWorkerError)
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy.post_mortem, PostMortem)
    assert copy.post_mortem == error.post_mortem


def test_a_broken_pool_tells_of_the_death_that_broke_it() -> None:
    with ProcessPoolExecutor(1, crash_policy="break") as executor:
        error = executor.submit(killed).exception()
    assert isinstance(error, TerminatedWorkerError) and error.post_mortem is not None
    assert error.post_mortem.signal == "SIGKILL"


def test_where_no_process_was_there_is_nothing_to_examine() -> None:
    assert TerminatedWorkerError("no process").post_mortem is None


def test_out_of_memory_and_attempts_are_told() -> None:
    unknown = PostMortem("f", "1", 1, -9, "SIGKILL", 1.0)
    assert "out of memory" not in str(unknown) and "attempt" not in str(unknown)
    killed = replace(unknown, out_of_memory=True, attempts=("it crashed", "again"))
    assert "out of memory  yes: the kernel ended it" in str(killed)
    assert "attempt 1      it crashed" in str(killed) and "attempt 2      again" in str(killed)
    assert "out of memory  no" in str(replace(unknown, out_of_memory=False))


# ---------------------------------------------------------------------- arguments


class Rude:
    """Runs code whenever it is looked at."""

    def __repr__(self) -> str:
        raise AssertionError("code of the user's was run")

    __str__ = __len__ = __bool__ = __repr__  # type: ignore[assignment]


class RudeType(type):
    def __getattribute__(cls, name: str) -> Any:
        raise AssertionError("code of the user's was run")


class Ruder(metaclass=RudeType):
    pass


CASES: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    ((), {}, ""),
    ((1, 2.5, None, "a.png"), {}, "1, 2.5, None, 'a.png'"),
    ((1,), {"epochs": 3, "path": b"x"}, "1, epochs=3, path=b'x'"),
    ((Rude(),), {"what": Ruder()}, "<Rude>, what=<Ruder>"),
    ((list(range(1000)),), {}, "<list of 1000>"),
    ((10**5000,), {}, "<int>"),
]


@pytest.mark.parametrize(("args", "kwargs", "text"), CASES)
def test_descriptions(args: Any, kwargs: Any, text: str) -> None:
    assert arguments.describe(args, kwargs) == text
    assert arguments.describe(*arguments.sketch(args, kwargs)) == text


def test_descriptions_are_short() -> None:
    long = ["x" * 10_000, list(range(30)), 7**400, dict.fromkeys(range(9), "y" * 100)]
    for kept in (long, [*long, *range(100)]):
        for text in (
            arguments.describe(kept, {}),
            arguments.describe(*arguments.sketch(kept, {"a": 1})),
        ):
            assert len(text) <= 300
    text = arguments.describe(range(5), {"a": 5, "b": 6, "c": 7, "d": 8})  # type: ignore[arg-type]
    assert text == "0, 1, 2, 3, 4, a=5, b=6, c=7, ..."
    assert arguments.describe(*arguments.sketch(range(5), {"a": 5, "b": 6, "c": 7, "d": 8})) == text


def test_arguments_in_reports(tmp_path: Path) -> None:
    assert post_mortem(worker_tasks.take_and_die, 1, "a", key=[2]).arguments == "1, 'a', key=[2]"
    # What is not kept is told by its type.
    found = post_mortem(lambda *args, **kwargs: os._exit(1), 1, tmp_path, key=[2])
    assert found.arguments == f"1, <{type(tmp_path).__name__}>, key=<list of 1>"
    assert f"({found.arguments})" in str(found)


def test_arguments_are_not_kept_for_it(tmp_path: Path) -> None:
    class Thing:
        def __reduce__(self) -> Any:
            return int, ()

    thing = Thing()
    gone = weakref.ref(thing)
    with Gate(tmp_path) as gate, ProcessPoolExecutor(1) as executor:
        future = executor.submit(pass_through, gate.path, thing)
        del thing
        gate.arrivals()
        assert gone() is None, "while the task runs"
        gate.open()
        assert future.result() == 0


def test_it_is_a_public_name() -> None:
    assert loky.PostMortem is PostMortem and "PostMortem" in loky.__all__


# ---------------------------------------------------------------------- with what else there is


def test_a_time_out_has_the_stack_and_retries_their_attempts(tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, ProcessPoolExecutor(1) as executor:
        executor.submit(echo).result()  # the tasks' module is there
        future = executor.options(timeout=1.5).submit(pass_through, gate.path)
        error = future.exception()
        assert isinstance(error, TaskTimeoutError) and error.post_mortem is not None
        assert error.post_mortem.stack == error.stack and "in pass_through" in error.stack
        error = executor.options(retries=1).submit(killed).exception()
        assert isinstance(error, TerminatedWorkerError) and error.post_mortem is not None
        assert len(error.post_mortem.attempts) == len(error.attempts) == 1
        assert "attempt 1      TerminatedWorkerError: " in str(error.post_mortem)
        stats = executor.stats()
    assert (stats.failed, stats.retried) == (2, 1)
    assert stats.restarts == {"timeout": 1, "crash": 2}
