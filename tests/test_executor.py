"""The public interface: what it takes, what it refuses, and what the options do."""

from __future__ import annotations

import concurrent.futures
import itertools
import multiprocessing
import multiprocessing.spawn
import operator
import os
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import pytest
from pool_tasks import (
    Unloadable,
    bad_initializer,
    call,
    echo,
    fail_or_write,
    fail_with,
    pass_or_write,
    pass_through,
    pid_and_variable,
    set_variable,
    write_line,
)
from rendezvous import PATIENCE, Gate, all_ended, ended, run_script

import loky
from loky import ProcessPoolExecutor, ShutdownExecutorError, TerminatedWorkerError
from loky.pool import asking


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2) as executor:
        yield executor


def read_lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


# ---------------------------------------------------------------------- submit and futures


def test_submit_returns_a_future_of_ours_and_the_standard_librarys(
    pool: ProcessPoolExecutor,
) -> None:
    future = pool.submit(operator.add, 1, 2)
    assert type(future) is loky.Future
    assert isinstance(future, concurrent.futures.Future)
    assert future.result() == 3
    assert future.exception() is None
    assert future.done() and not future.running() and not future.cancelled()
    assert not future.cancel()


def test_every_keyword_belongs_to_the_function(pool: ProcessPoolExecutor) -> None:
    keywords = {"fn": 1, "self": 2, "timeout": 3, "args": 4, "kwargs": 5}
    assert pool.submit(echo, 0, **keywords).result() == ((0,), keywords)


def test_the_function_is_positional_only(pool: ProcessPoolExecutor) -> None:
    with pytest.raises(TypeError, match="fn"):
        pool.submit(fn=echo)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        pool.submit()  # type: ignore[call-arg]


@pytest.mark.parametrize("what", [5, None, "len"])
def test_what_cannot_be_called_is_refused_at_once(pool: ProcessPoolExecutor, what: Any) -> None:
    with pytest.raises(TypeError, match=f"submit needs a callable, got {what!r}"):
        pool.submit(what)
    with pytest.raises(TypeError, match=f"map needs a callable, got {what!r}"):
        pool.map(what, [])


def test_lambdas_closures_and_local_classes_travel(pool: ProcessPoolExecutor) -> None:
    factor = 3

    class Scale:
        def __init__(self, by: int) -> None:
            self.by = by

        def __call__(self, value: int) -> int:
            return self.by * value * factor

    assert pool.submit(lambda x: x * factor, 5).result() == 15
    assert pool.submit(Scale(2), 5).result() == 30
    assert pool.submit(Scale(2).__call__, 5).result() == 30
    assert pool.submit(lambda: Scale).result()(1)(1) == factor


def test_an_exception_arrives_with_the_workers_traceback(pool: ProcessPoolExecutor) -> None:
    future = pool.submit(fail_with, ValueError("no", 7))
    with pytest.raises(ValueError) as caught:
        future.result()
    assert caught.value.args == ("no", 7)
    assert future.exception() is caught.value
    text = str(caught.value.__cause__)
    assert "in fail_with" in text
    assert "raise error" in text
    assert "ValueError" in text
    assert "worker/loop.py" not in text, "our own frames are not the user's business"


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_exceptions_that_are_no_errors_settle_the_future_and_leave_the_worker(
    kind: type[BaseException],
) -> None:
    with ProcessPoolExecutor(1) as executor:
        pid = executor.submit(os.getpid).result()
        future = executor.submit(fail_with, kind(3))
        error = future.exception()
        assert type(error) is kind and error.args == (3,)
        assert executor.submit(os.getpid).result() == pid


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_an_interrupt_that_an_item_raises_stops_no_other_task(
    kind: type[BaseException], tmp_path: Path
) -> None:
    """It ends the iteration and the block, as any exception does; what runs goes on."""

    def work(number: int) -> int:
        if number == 1:
            return pass_through(path, 1)  # type: ignore[no-any-return]
        raise kind(3)

    def open_when_the_block_is_left() -> None:
        while not executor._pool.refusing:
            time.sleep(0.001)
        gate.open()

    path = str(tmp_path / "gate")
    with Gate(tmp_path) as gate, ProcessPoolExecutor(2) as executor:
        opener = threading.Thread(target=open_when_the_block_is_left)
        with pytest.raises(kind), executor:
            results = executor.map(work, range(2))
            gate.arrivals(1)
            opener.start()
            list(results)
        opener.join()
        assert results.finished() == {1: 1}


def test_a_result_that_is_an_exception_is_a_result(pool: ProcessPoolExecutor) -> None:
    result = pool.submit(ValueError, 1).result()
    assert type(result) is ValueError


class Three:
    """A number as numpy's scalars are: neither an int nor a float of Python's."""

    def __index__(self) -> int:
        return 3

    def __float__(self) -> float:
        return 3.0


def test_every_number_may_be_numpys() -> None:
    number: Any = Three()
    with ProcessPoolExecutor(number, timeout=number, max_tasks_per_child=number) as executor:
        options = executor._options
        assert (options.max_workers, options.timeout, options.max_tasks_per_child) == (3, 3.0, 3)
        view = executor.options(timeout=number, retries=number, priority=number, backoff=number)
        assert list(view.map(abs, [-1], timeout=number, chunksize=number, buffersize=number)) == [1]
        assert executor.submit(abs, -1).result(number) == 1
        assert executor.submit(abs, -1).exception(10**400) is None


@pytest.mark.parametrize("timeout", ["1", True, [1]])
def test_what_is_no_time_to_wait_for(timeout: Any, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, ProcessPoolExecutor(1) as executor:
        future = executor.submit(pass_through, gate.path)
        for wait in (future.result, future.exception):
            with pytest.raises(TypeError, match="timeout must be a number of seconds or None, got"):
                wait(timeout)
        gate.open()


def test_a_wait_that_timed_out_tells_what_the_call_is_doing(tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, ProcessPoolExecutor(1) as executor:
        running = executor.submit(pass_through, gate.path)
        gate.arrivals()
        while not running.running():  # the pool may be told a moment after it has begun
            time.sleep(0.001)
        waiting = executor.options(priority=-1).submit(pass_through, gate.path)
        for future, text in ((running, "is running, and goes on"), (waiting, "has not begun")):
            for call in (future.result, future.exception):
                with pytest.raises(loky.TimeoutError, match=rf"within 0\.01 s: the call {text}\."):
                    call(0.01)
        gate.open(2)


def test_waiting_ends_after_its_timeout(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate:
        future = pool.submit(pass_through, gate.path, 1)
        for call in (future.result, future.exception):
            for timeout in (0, 0.01, -1):
                with pytest.raises(loky.TimeoutError):
                    call(timeout)
        assert not future.done()
        gate.open()
        assert future.result(float("inf")) == 1


def test_two_workers_run_at_the_same_time(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate:
        futures = [pool.submit(pass_through, gate.path, i) for i in range(2)]
        assert len(set(gate.arrivals(2))) == 2
        gate.open(2)
        assert [future.result() for future in futures] == [0, 1]


def test_wait_and_as_completed_understand_the_futures(
    pool: ProcessPoolExecutor, tmp_path: Path
) -> None:
    with Gate(tmp_path) as gate:
        held = pool.submit(pass_through, gate.path, "held")
        quick = pool.submit(echo)
        done, not_done = loky.wait([held, quick], return_when=loky.FIRST_COMPLETED)
        assert done == {quick} and not_done == {held}
        order = loky.as_completed([held, quick])
        assert next(order) is quick
        gate.open()
        assert next(order) is held
        error = pool.submit(fail_with, KeyError())
        done, _ = loky.wait([error], return_when=loky.FIRST_EXCEPTION)
        assert done == {error}


def test_callbacks_get_the_future_once_also_when_added_late(pool: ProcessPoolExecutor) -> None:
    called: list[tuple[str, Any]] = []
    told = threading.Event()
    future = pool.submit(echo)
    future.add_done_callback(lambda f: called.append(("early", f)))
    future.add_done_callback(lambda f: told.set())
    assert told.wait(20)
    future.add_done_callback(lambda f: called.append(("late", f)))
    assert called == [("early", future), ("late", future)]


def test_a_waiting_task_can_be_cancelled_and_is_never_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    with Gate(tmp_path) as gate, ProcessPoolExecutor(1) as executor:
        running = executor.submit(pass_through, gate.path)
        gate.arrivals()
        # One of them may be in the worker's channel already, the others are not.
        waiting = [executor.submit(write_line, str(ran), i) for i in range(5)]
        assert waiting[0].cancel() and waiting[3].cancel()
        assert waiting[3].cancel(), "once more does no harm"
        assert waiting[3].cancelled() and waiting[3].done()
        with pytest.raises(loky.CancelledError):
            waiting[3].result()
        with pytest.raises(loky.CancelledError):
            waiting[3].exception()
        assert not running.cancel(), "it is running"
        gate.open()
        assert running.result() is None
        assert [waiting[i].result() for i in (1, 2, 4)] == [None] * 3
    assert read_lines(ran) == ["1", "2", "4"]


def test_a_running_task_can_be_stopped_at_the_cost_of_its_worker(tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, ProcessPoolExecutor(1) as executor:
        running = executor.submit(pass_through, gate.path)
        behind = executor.submit(os.getpid)
        (pid,) = gate.arrivals()
        assert not running.cancel()
        assert running.cancel(kill=True)
        assert running.cancelled()
        assert ended(pid)
        assert behind.result() != pid
        assert not behind.cancel(kill=True), "it is over"


def test_cancelling_while_the_result_arrives_does_not_hang(
    pool: ProcessPoolExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Gate(tmp_path) as gate:
        future = pool.submit(pass_through, gate.path, 1)
        gate.arrivals()
        allocate = asking.allocate_lock

        def settle_first() -> Any:
            """At the worst moment: cancel() has decided to ask the pool, and has not asked yet."""
            gate.open()
            future.result()
            return allocate()

        monkeypatch.setattr(asking, "allocate_lock", settle_first)
        assert not future.cancel(kill=True)
        assert future.result() == 1


def test_many_threads_submit_at_once(pool: ProcessPoolExecutor) -> None:
    results: dict[int, list[int]] = {}

    def submit(number: int) -> None:
        futures = [pool.submit(operator.add, number, i) for i in range(200)]
        results[number] = [future.result() for future in futures]

    threads = [threading.Thread(target=submit, args=(n * 1000,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n * 1000: [n * 1000 + i for i in range(200)] for n in range(5)}


def test_nothing_can_be_submitted_after_shutdown() -> None:
    executor = ProcessPoolExecutor(1)
    executor.shutdown()
    executor.shutdown()
    for submit in (lambda: executor.submit(echo), lambda: executor.map(echo, [1])):
        with pytest.raises(ShutdownExecutorError, match="shutdown"):
            submit()


# ---------------------------------------------------------------------- map


@pytest.mark.parametrize("chunksize", [1, 2, 7, 100])
@pytest.mark.parametrize("buffersize", [None, 1, 3, 100])
def test_map_gives_results_in_order(
    pool: ProcessPoolExecutor, chunksize: int, buffersize: int | None
) -> None:
    results = pool.map(
        operator.sub, range(20), itertools.count(5), chunksize=chunksize, buffersize=buffersize
    )
    assert list(results) == [-5] * 20


def test_map_of_little_or_nothing(pool: ProcessPoolExecutor) -> None:
    assert list(pool.map(echo)) == []
    assert list(pool.map(echo, [])) == []
    assert list(pool.map(echo, [], chunksize=5)) == []
    assert list(pool.map(operator.add, [1, 2, 3], [1])) == [2]
    assert list(pool.map(lambda x: x + 1, [1], chunksize=5)) == [2]


def test_map_submits_before_the_first_result_is_asked_for(
    pool: ProcessPoolExecutor, tmp_path: Path
) -> None:
    with Gate(tmp_path) as gate:
        results = pool.map(pass_through, [gate.path], ["value"])
        gate.arrivals()
        gate.open()
        assert next(results) == "value"
        assert next(results, "end") == "end"


@pytest.mark.parametrize("chunksize", [1, 3])
def test_map_with_a_buffer_reads_its_input_as_results_are_taken(
    pool: ProcessPoolExecutor, chunksize: int
) -> None:
    read: list[int] = []

    def endless() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    results = pool.map(operator.neg, endless(), chunksize=chunksize, buffersize=4)
    assert len(read) == 4 * chunksize
    for number in range(12):
        assert next(results) == -number
        # What was asked for, and a full buffer behind it.
        assert len(read) <= (number // chunksize + 1 + 4) * chunksize
    results.close()  # type: ignore[attr-defined]
    so_far = len(read)
    assert next(results, "closed") == "closed"
    assert len(read) == so_far


def test_map_times_out_from_the_call_on_and_cancels_the_rest(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    with Gate(tmp_path) as gate, ProcessPoolExecutor(1) as executor:
        started = time.monotonic()
        results = executor.map(pass_or_write, [gate.path] + [str(ran)] * 5, range(6), timeout=0.05)
        with pytest.raises(loky.TimeoutError, match=r"0\.05 s after the call of map: 6 of 6 tasks"):
            next(results)
        assert time.monotonic() - started >= 0.05
        gate.open()
        assert executor.submit(echo).result() == ((), {})
    assert read_lines(ran) == []


def test_map_passes_an_error_on_and_cancels_the_rest(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    with Gate(tmp_path) as gate, ProcessPoolExecutor(1) as executor:
        # The one worker is held, so that all is submitted before anything fails.
        held = executor.submit(pass_through, gate.path)
        results = executor.map(fail_or_write, [0, 1, 2, *[3] * 300], itertools.repeat(str(ran)))
        gate.open()
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            next(results)
        assert next(results, "end") == "end"
        held.result()
    assert len(read_lines(ran)) < 300, "what had not started was cancelled"


@pytest.mark.parametrize("chunksize", [1, 4])
@pytest.mark.parametrize("close", [True, False])
def test_a_map_that_is_closed_or_dropped_half_way_cancels_what_has_not_started(
    tmp_path: Path, chunksize: int, close: bool
) -> None:
    ran = tmp_path / "ran"
    with Gate(tmp_path) as gate, ProcessPoolExecutor(1) as executor:
        items = [(echo, 0)] * chunksize + [(pass_through, gate.path)]
        items += [(write_line, (str(ran), i)) for i in range(8)]
        results = executor.map(call, *zip(*items, strict=True), chunksize=chunksize)
        next(results)
        gate.arrivals()
        if close:
            results.close()  # type: ignore[attr-defined]
        del results
        gate.open()
        executor.submit(echo).result()
    # With chunks, what stands in the chunk that was running is run.
    assert len(read_lines(ran)) <= chunksize - 1


@pytest.mark.parametrize("chunksize", [1, 4])
def test_a_map_for_its_side_effects_is_completed(tmp_path: Path, chunksize: int) -> None:
    ran = tmp_path / "ran"
    with Gate(tmp_path) as gate, ProcessPoolExecutor(1) as executor:
        executor.submit(pass_through, gate.path)
        gate.arrivals()
        executor.map(write_line, [str(ran)] * 8, range(8), chunksize=chunksize)
        gate.open()
    assert len(read_lines(ran)) == 8


def test_an_error_of_the_input_is_the_callers_and_nothing_runs_twice(
    pool: ProcessPoolExecutor, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"

    def broken() -> Iterator[int]:
        yield from range(600)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        pool.map(write_line, itertools.repeat(str(ran)), broken())
    assert pool.submit(operator.neg, 1).result() == -1
    lines = read_lines(ran)
    assert len(lines) == len(set(lines))


def test_a_batch_that_cannot_be_submitted_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    with ProcessPoolExecutor(1) as executor:
        submit_many = executor._pool.submit_many

        def interrupted(tasks: Any) -> None:
            submit_many(tasks)
            raise KeyboardInterrupt  # where a real one may strike: just after the step

        with monkeypatch.context() as patch:
            patch.setattr(executor._pool, "submit_many", interrupted)
            with pytest.raises(KeyboardInterrupt):
                executor.map(write_line, itertools.repeat(str(ran)), range(3))
    lines = read_lines(ran)
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"chunksize": 0}, ValueError, "chunksize must be >= 1, got 0"),
        ({"chunksize": -3}, ValueError, "chunksize must be >= 1, got -3"),
        ({"chunksize": 1.5}, TypeError, "chunksize must be a whole number, got 1.5"),
        ({"chunksize": True}, TypeError, "chunksize must be a whole number, got True"),
        ({"chunksize": None}, TypeError, "chunksize must be a whole number, got None"),
        ({"buffersize": 0}, ValueError, "buffersize must be >= 1, got 0"),
        ({"buffersize": "2"}, TypeError, "buffersize must be a whole number, got '2'"),
        ({"timeout": "1"}, TypeError, "timeout must be a number of seconds or None, got '1'"),
        ({"timeout": True}, TypeError, "timeout must be a number of seconds or None, got True"),
    ],
)
def test_map_says_what_is_wrong_with_its_arguments(
    pool: ProcessPoolExecutor, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        pool.map(echo, [1], **arguments)
    assert text in str(caught.value)


def test_map_refuses_iterables_that_are_none_before_submitting(pool: ProcessPoolExecutor) -> None:
    with pytest.raises(TypeError, match="int"):
        pool.map(echo, [1], 5)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- options: what is refused


class OddContext:
    def __repr__(self) -> str:
        return "<odd context>"


@pytest.mark.parametrize(
    ("options", "error", "texts"),
    [
        ({"max_workers": 0}, ValueError, ["max_workers must be greater than 0"]),
        ({"max_workers": -2}, ValueError, ["max_workers must be greater than 0"]),
        ({"max_workers": 2.0}, TypeError, ["max_workers must be a whole number", "2.0"]),
        ({"max_workers": "2"}, TypeError, ["max_workers must be a whole number", "'2'"]),
        ({"max_workers": True}, TypeError, ["max_workers must be a whole number", "True"]),
        ({"timeout": -1}, ValueError, ["timeout must be at least 0 seconds", "-1"]),
        ({"timeout": float("nan")}, ValueError, ["timeout must be at least 0 seconds", "nan"]),
        ({"timeout": "5"}, TypeError, ["timeout must be a number of seconds or None", "'5'"]),
        ({"timeout": True}, TypeError, ["timeout must be a number of seconds or None", "True"]),
        (
            {"context": "thread"},
            ValueError,
            ["'thread'", "'loky'", "'loky_init_main'", "'spawn'", "'forkserver'"],
        ),
        ({"context": OddContext()}, ValueError, ["<odd context>", "'loky'"]),
        ({"mp_context": 5}, ValueError, ["got 5", "'loky'"]),
        ({"context": "loky", "mp_context": "spawn"}, TypeError, ["'context'", "'mp_context'"]),
        ({"initializer": 5}, TypeError, ["initializer must be a callable", "got: 5"]),
        ({"initializer": print, "initargs": 5}, TypeError, ["initargs", "got 5"]),
        ({"env": [("A", "b")]}, TypeError, ["env must be a mapping", "[('A', 'b')]"]),
        ({"env": {"A": None}}, TypeError, ["env['A'] must be a str, a number or a path", "None"]),
        ({"env": {"A": b"b"}}, TypeError, ["env['A'] must be a str, a number or a path", "b'b'"]),
        ({"env": {1: "b"}}, ValueError, ["env has a name", "1"]),
        ({"env": {"": "b"}}, ValueError, ["env has a name", "''"]),
        ({"env": {"A=B": "c"}}, ValueError, ["env has a name", "'A=B'"]),
        ({"env": {"A\0": "c"}}, ValueError, ["env", "'A\\x00'"]),
        ({"env": {"A": "b\0c"}}, ValueError, ["env", "'A'", "'b\\x00c'"]),
        ({"job_reducers": [int]}, TypeError, ["job_reducers must map types", "int"]),
        ({"job_reducers": {"int": print}}, TypeError, ["job_reducers must map types", "'int'"]),
        ({"result_reducers": {int: 5}}, TypeError, ["result_reducers must map types", "5"]),
        ({"max_tasks_per_child": 0}, ValueError, ["max_tasks_per_child must be >= 1", "0"]),
        ({"max_tasks_per_child": 1.0}, TypeError, ["max_tasks_per_child must be a whole", "1.0"]),
        ({"max_tasks_per_child": True}, TypeError, ["max_tasks_per_child must be a whole", "True"]),
        ({"crash_policy": "retry"}, ValueError, ["'isolate'", "'break'", "'retry'"]),
        ({"processes": 3}, TypeError, ["processes"]),
    ],
)
@pytest.mark.parametrize("make", [ProcessPoolExecutor, loky.get_reusable_executor])
def test_options_that_are_refused(
    make: Any, options: dict[str, Any], error: type[Exception], texts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        make(**options)
    for text in texts:
        assert text in str(caught.value)


def test_a_refused_crash_policy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOKY_CRASH_POLICY", "ignore")
    with pytest.raises(ValueError, match=r"LOKY_CRASH_POLICY must .*, got 'ignore'"):
        ProcessPoolExecutor(1)


def test_an_initializer_that_cannot_be_pickled_is_refused_by_name() -> None:
    lock = threading.Lock()
    with pytest.raises((pickle.PicklingError, TypeError), match="initializer"):
        ProcessPoolExecutor(1, initializer=lambda: lock)
    with pytest.raises((pickle.PicklingError, TypeError), match="initargs"):
        ProcessPoolExecutor(1, initializer=print, initargs=(1, lock))


# ---------------------------------------------------------------------- options: what they do


@pytest.mark.parametrize(
    "context",
    ["loky", "spawn", "forkserver", "loky_init_main", multiprocessing.get_context("spawn")],
)
def test_contexts(context: Any) -> None:
    with ProcessPoolExecutor(1, context=context) as executor:
        assert executor.submit(operator.add, 1, 2).result() == 3


def test_both_names_of_the_context_may_say_the_same() -> None:
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(1, context=context, mp_context=context)
    assert executor._options.start_method == "spawn"
    assert ProcessPoolExecutor(1, mp_context="spawn")._options.start_method == "spawn"


def test_the_positional_order_of_the_options() -> None:
    executor = ProcessPoolExecutor(1, None, None, 5, "spawn", print, ("x",), {"A": 1})
    options = executor._options
    assert (options.timeout, options.start_method) == (5, "spawn")
    assert (options.initializer, options.initargs, options.env) == (print, ("x",), {"A": "1"})


def test_the_default_number_of_workers_is_the_number_of_cpus() -> None:
    assert ProcessPoolExecutor()._max_workers == loky.cpu_count()


def test_the_initializer_runs_in_every_worker_before_its_first_task(tmp_path: Path) -> None:
    with (
        Gate(tmp_path) as gate,
        ProcessPoolExecutor(2, initializer=set_variable, initargs=["WHO", "me"]) as executor,
    ):
        futures = [executor.submit(pid_and_variable, gate.path, "WHO") for _ in range(2)]
        pids = gate.arrivals(2)
        gate.open(2)
        assert sorted(future.result() for future in futures) == sorted((p, "me") for p in pids)


def test_an_initializer_may_be_a_closure_and_large() -> None:
    data = os.urandom(300_000)

    def keep() -> None:
        import builtins

        builtins.kept = len(data)  # type: ignore[attr-defined]

    with ProcessPoolExecutor(1, initializer=keep) as executor:
        assert executor.submit(eval, "kept").result() == 300_000


def test_the_traceback_of_an_initializer_reaches_every_future() -> None:
    with ProcessPoolExecutor(2, initializer=bad_initializer, initargs=("spoon",)) as executor:
        futures = [executor.submit(echo, i) for i in range(5)]
        for future in futures:
            error = future.exception()
            assert isinstance(error, TerminatedWorkerError)
            assert isinstance(error, loky.BrokenProcessPool)
            assert "LookupError: there is no spoon" in str(error)
            assert "in bad_initializer" in str(error)
            assert "in bad_initializer" in str(error.__cause__)
        with pytest.raises(loky.BrokenProcessPool, match="there is no spoon"):
            executor.submit(echo)
        with pytest.raises(loky.BrokenProcessPool, match="there is no spoon"):
            executor.map(echo, [1])


def test_an_initializer_that_cannot_be_rebuilt_in_the_worker_breaks_the_pool() -> None:
    with ProcessPoolExecutor(1, initializer=print, initargs=(Unloadable(),)) as executor:
        error = executor.submit(echo).exception()
        assert isinstance(error, TerminatedWorkerError)
        assert "cannot be loaded" in str(error)


def test_the_environment_is_set_before_the_interpreter_starts() -> None:
    env = {"PYTHONHASHSEED": "12345", "LOKY_TEST_NUMBER": 7}
    with ProcessPoolExecutor(1, env=env) as executor:
        path = "/proc/self/environ"
        at_exec = executor.submit(lambda: open(path, "rb").read()).result()  # noqa: SIM115
        assert b"LOKY_TEST_NUMBER=7\0" in at_exec
        first = executor.submit(hash, "word").result()
        assert executor.submit(os.getenv, "HOME").result() == os.getenv("HOME")
    with ProcessPoolExecutor(1, env=env) as executor:
        assert executor.submit(hash, "word").result() == first
    assert "LOKY_TEST_NUMBER" not in os.environ


def test_idle_workers_leave_and_come_back() -> None:
    with ProcessPoolExecutor(2, timeout=0.05) as executor:
        for _ in range(2):
            executor.submit(echo).result()
            pids = executor._pool.pids()
            assert pids
            assert all_ended(pids)
            assert executor.submit(os.getpid).result() not in pids


def test_workers_at_work_do_not_count_as_idle(tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, ProcessPoolExecutor(1, timeout=0.02) as executor:
        held = executor.submit(pass_through, gate.path)
        (pid,) = gate.arrivals()
        assert not ended(pid, 0.2)
        gate.open()
        assert held.result() is None
        assert ended(pid)


@pytest.mark.parametrize("timeout", [0, 1e9, 1e15, float("inf")])
def test_any_length_of_idle_timeout_works(timeout: float) -> None:
    with ProcessPoolExecutor(1, timeout=timeout) as executor:
        for number in range(3):
            assert executor.submit(operator.neg, number).result() == -number


def test_workers_are_replaced_after_so_many_tasks() -> None:
    with ProcessPoolExecutor(1, max_tasks_per_child=2) as executor:
        futures = [executor.submit(os.getpid) for _ in range(6)]
        pids = [future.result() for future in futures]
        assert pids[0] == pids[1] and pids[2] == pids[3] and pids[4] == pids[5]
        assert len(set(pids)) == 3
        assert all_ended(pids)
        assert executor.submit(os.getpid).result() not in pids


def test_with_one_task_per_child_nothing_is_lost() -> None:
    with ProcessPoolExecutor(2, max_tasks_per_child=1) as executor:
        results = list(executor.map(lambda x: (x, os.getpid()), range(12)))
    assert [x for x, _ in results] == list(range(12))
    assert len({pid for _, pid in results}) == 12


def test_the_crash_policy_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOKY_CRASH_POLICY", "break")
    assert ProcessPoolExecutor(1)._options.crash_policy == "break"
    assert ProcessPoolExecutor(1, crash_policy="isolate")._options.crash_policy == "isolate"


FLAGS = """
import json, sys
from loky import ProcessPoolExecutor

def flags():
    import sys, warnings
    try:
        assert False
    except AssertionError:
        asserts = True
    else:
        asserts = False
    return (asserts, sys.flags.dev_mode, sys.flags.optimize, sys.warnoptions,
            sys._xoptions.get("utf8"), sys.dont_write_bytecode)

with ProcessPoolExecutor(1) as executor:
    here = json.dumps(flags())
    assert here == json.dumps(executor.submit(flags).result()), here
    print(here)
"""


def test_the_flags_of_the_interpreter_reach_the_workers(tmp_path: Path) -> None:
    flags = ["-O", "-B", "-W", "ignore::ResourceWarning", "-X", "dev", "-X", "utf8=1"]
    done = run_script(tmp_path, FLAGS, flags=flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('[false, true, 1, ["default", "ignore::ResourceWarning"]')


def test_a_worker_that_cannot_be_started_breaks_the_pool_with_the_reason() -> None:
    old = multiprocessing.spawn.get_executable()
    multiprocessing.set_executable("/nonexistent/python")
    try:
        with ProcessPoolExecutor(2) as executor:
            error = executor.submit(echo).exception()
            assert isinstance(error, TerminatedWorkerError)
            assert "could not be started" in str(error)
            assert "No such file" in str(error)
            with pytest.raises(loky.BrokenProcessPool, match="No such file"):
                executor.submit(echo)
    finally:
        multiprocessing.set_executable(old)


def test_a_chosen_executable_is_used(tmp_path: Path) -> None:
    chosen = tmp_path / "python"
    chosen.write_text(f'#!/bin/sh\nCHOSEN=yes exec "{sys.executable}" "$@"\n')
    chosen.chmod(0o755)
    old = multiprocessing.spawn.get_executable()
    multiprocessing.set_executable(str(chosen))
    try:
        with ProcessPoolExecutor(1) as executor:
            assert executor.submit(os.getenv, "CHOSEN").result() == "yes"
    finally:
        multiprocessing.set_executable(old)


def test_paths_added_after_the_start_reach_the_workers(
    pool: ProcessPoolExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.submit(echo).result()
    (tmp_path / "added_after_the_start.py").write_text("def answer():\n    return 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import added_after_the_start  # type: ignore[import-not-found]

    assert pool.submit(added_after_the_start.answer).result() == 42
    assert list(pool.map(lambda _: __import__("added_after_the_start").answer(), range(4))) == (
        [42] * 4
    )


# ---------------------------------------------------------------------- in odd surroundings


@pytest.mark.parametrize(
    "name",
    [
        "multiprocessing.context",
        "multiprocessing.process",
        "multiprocessing.reduction",
        "multiprocessing.spawn",
        "multiprocessing.util",
        "socket",
    ],
)
def test_a_module_that_another_thread_is_importing(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    spec = ModuleSpec(name, None)
    spec._initializing = True  # type: ignore[attr-defined]  # as the import system has it
    monkeypatch.setitem(sys.modules, name, module_from_spec(spec))
    with ProcessPoolExecutor(1) as executor:
        assert executor.submit(lambda: 1).result(PATIENCE) == 1
