"""What cannot be pickled, unpickled or rebuilt costs its own future, and the message says why.

And what is slow at it stands in nobody's way.
"""

from __future__ import annotations

import functools
import gc
import importlib
import operator
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pool_tasks import (
    Box,
    Coin,
    FailsIn,
    FailsToReduce,
    KillsItsReader,
    SlotBox,
    checksum,
    echo,
    locks_in,
    make_coin,
    make_fails_in,
    make_fails_to_reduce,
    make_rude,
    pass_through,
    pattern,
    raise_exception,
    reduce_to_heads,
    reduce_to_tails,
    side_of,
)
from rendezvous import PATIENCE, Gate, ended

from loky import (
    BrokenProcessPool,
    Future,
    ProcessPoolExecutor,
    ResultUnpicklingError,
    TaskPicklingError,
    TaskUnpicklingError,
    TerminatedWorkerError,
)
from loky.wire import pickling
from loky.wire.protocol import INLINE_LIMIT

LOCK = threading.Lock()


@pytest.fixture(scope="module")
def shared() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def pool(shared: ProcessPoolExecutor) -> Iterator[ProcessPoolExecutor]:
    """A pool of one worker that has to survive the test, with tasks before and after."""
    pid = shared.submit(os.getpid).result()
    yield shared
    assert shared.submit(os.getpid).result() == pid


def amid_others(pool: ProcessPoolExecutor, fn: Any, *args: Any, **kwargs: Any) -> BaseException:
    """Submit a call between others that have to succeed; what it raised."""
    before = [pool.submit(abs, -i) for i in range(5)]
    future = pool.submit(fn, *args, **kwargs)
    after = [pool.submit(abs, -i) for i in range(5)]
    error = future.exception()
    assert [f.result() for f in before + after] == [*range(5), *range(5)]
    assert error is not None
    return error


# ---------------------------------------------------------------------- tasks


def make_closure(content: Any) -> Callable[[], Any]:
    return lambda: content


@pytest.mark.parametrize(
    ("fn", "args", "kwargs", "where"),
    [
        (len, (LOCK,), {}, "argument 0: "),
        (echo, (1, [2, {"x": (LOCK,)}]), {}, "argument 1[1]['x'][0]: "),
        (echo, (), {"key": Box([LOCK])}, "argument 'key'.content[0]: "),
        (echo, (SlotBox(Box(LOCK)),), {}, "argument 0.content.content: "),
        (echo, ({LOCK},), {}, "argument 0{<unlocked"),
        (make_closure({"a": LOCK}), (), {}, "function closure variable 'content'['a']: "),
        (functools.partial(echo, 1, LOCK), (), {}, "function.args[1]: "),
        (functools.partial(echo, a=LOCK), (), {}, "function.keywords['a']: "),
        (Box(LOCK).__eq__, (1,), {}, "function"),
        (lambda a=LOCK: a, (), {}, "function default 0: "),
    ],
)
def test_a_task_that_cannot_be_pickled(
    pool: ProcessPoolExecutor, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], where: str
) -> None:
    error = amid_others(pool, fn, *args, **kwargs)
    assert type(error) is TaskPicklingError
    assert isinstance(error, pickle.PicklingError)
    assert where in str(error)
    assert "cannot pickle '_thread.lock' object" in str(error)
    assert isinstance(error.__cause__, TypeError)
    if hasattr(fn, "__qualname__"):
        assert fn.__qualname__ in str(error)


def test_a_global_that_cannot_be_pickled_is_named() -> None:
    namespace: dict[str, Any] = {"LOCK": LOCK, "__name__": "__main__"}
    exec("def locked():\n    return LOCK", namespace)
    with ProcessPoolExecutor(1) as executor:
        error = executor.submit(namespace["locked"]).exception()
        assert type(error) is TaskPicklingError
        assert "function global 'LOCK': " in str(error)


@pytest.mark.parametrize(
    "reason",
    [
        ValueError("no"),
        MemoryError(),
        SystemExit(3),
        KeyboardInterrupt("now"),
    ],
)
def test_whatever_pickling_a_task_raises(pool: ProcessPoolExecutor, reason: BaseException) -> None:
    error = amid_others(pool, echo, [FailsToReduce(reason)])
    assert type(error) is TaskPicklingError
    assert error.__cause__ is reason
    assert type(reason).__name__ in str(error) and str(reason) in str(error)


@pytest.mark.parametrize("how", ["plain", "key", "item"])
def test_objects_that_do_not_answer_questions(pool: ProcessPoolExecutor, how: str) -> None:
    error = amid_others(pool, echo, make_rude(how))
    assert type(error) is TaskPicklingError and "never" in str(error)
    error = amid_others(pool, make_rude, how)
    assert not isinstance(error, BrokenProcessPool) and "never" in str(error)


class AnswersAll:
    """Has every attribute that is asked for, and so do they; cannot be pickled."""

    def __init__(self, name: Any) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name == "__qualname__":
            if isinstance(self._name, Exception):
                raise self._name
            return self._name
        if name.startswith("__"):
            raise AttributeError(name)
        return AnswersAll(self._name)

    def __call__(self) -> None:
        raise AssertionError("never called")

    def __reduce__(self) -> Any:
        raise TypeError("not this one")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", [AttributeError(), ZeroDivisionError("no name"), 7], ids=repr)
def test_a_function_that_answers_every_question(pool: ProcessPoolExecutor, name: Any) -> None:
    for function in AnswersAll(name), functools.partial(AnswersAll(name)):
        error = amid_others(pool, function)
        assert isinstance(error, TaskPicklingError)
        assert "workers: AnswersAll, function" in str(error)
        assert "TypeError: not this one" in str(error)


def test_the_search_for_the_culprit_is_short_however_much_there_is() -> None:
    counted = 0

    def dump(value: Any) -> bytes:
        nonlocal counted
        counted += 1
        return pickle.dumps(value)

    many = [*range(100_000), threading.Lock()]
    assert pickling.where_it_fails(many, "it", dump) == "it[100000]"
    table = {number: {number: None} for number in range(100_000)}
    table[77_777]["x"] = threading.Lock()  # type: ignore[index, assignment]
    assert pickling.where_it_fails(table, "it", dump) == "it[77777]['x']"
    assert counted < 100
    deep: Any = threading.Lock()
    for _ in range(30):
        deep = [deep]
    path = pickling.where_it_fails(deep, "it", dump)
    assert path == "it" + "[0]" * 6 + " ... " + "[0]" * 6
    # What runs in circles ends, and what fails only as a whole has no part to blame.
    circle: list[Any] = [1]
    circle += [circle, threading.Lock()]
    assert pickling.where_it_fails(circle, "it", dump) == "it[2]"
    assert pickling.where_it_fails([1, 2], "it", dump) == "it"


class Holder:
    def __init__(self, held: object) -> None:
        self.held = held

    def work(self) -> None:
        raise AssertionError("never called")


def test_what_belongs_to_this_process_says_so(pool: ProcessPoolExecutor) -> None:
    for held, name in (
        (pool, "ProcessPoolExecutor objects"),
        (pool.options(priority=1), "ExecutorView objects"),
        (pool.submit(abs, 1), "a Future"),
        (pool.map(abs, [1]), "the results of a map"),
    ):
        error = amid_others(pool, Holder(held).work)
        assert isinstance(error, TaskPicklingError)
        text = f"function.__self__.held: TypeError: {name} cannot be sent to a worker"
        assert text in str(error)


def test_a_module_that_runs_code_when_it_is_asked_for_a_name(
    pool: ProcessPoolExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asks.py").write_text(
        "def __getattr__(name):\n"
        "    raise KeyError(name)\n"
        "def make():\n"
        "    def double(x): return x * 2\n"
        "    double.__qualname__ = 'double'\n"
        "    return double\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    asks = importlib.import_module("asks")
    function = asks.make()
    # From this thread, which feeds an idle worker itself, and by the leader.
    futures = [pool.submit(function, i) for i in range(50)]
    ends = [future.exception() for future in futures]
    assert all(end is None or isinstance(end, TaskPicklingError) for end in ends)
    assert not pickling.is_importable(function)
    function.__module__ = ["asks"]
    assert not pickling.is_importable(function)


def test_an_argument_that_another_thread_changes_meanwhile(
    pool: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look at it fails; what is pickled then is what is there then."""

    def is_plain(value: Any) -> bool:
        if numbers in value:
            raise RuntimeError("Set changed size during iteration")
        return True

    numbers = {1, 2}
    monkeypatch.setattr(pickling, "is_plain", is_plain)
    futures = [pool.submit(len, numbers) for _ in range(5)]
    assert [future.result() for future in futures] == [2] * 5


def test_a_task_too_deep_to_be_pickled(pool: ProcessPoolExecutor) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    try:
        error = amid_others(pool, len, deep)
        assert type(error) is TaskPicklingError and "recursion" in str(error)
    finally:
        while deep:  # taken apart piece by piece: collecting it whole may be too deep as well
            deep = deep.pop()


@pytest.mark.parametrize("error", [None, SystemExit(1), KeyboardInterrupt(), RecursionError("r")])
def test_a_task_that_cannot_be_unpickled(
    pool: ProcessPoolExecutor, error: BaseException | None
) -> None:
    pid = pool.submit(os.getpid).result()
    raised = amid_others(pool, echo, FailsIn(pid, error))
    assert type(raised) is TaskUnpicklingError
    assert isinstance(raised, BrokenProcessPool), "as callers of old expect"
    assert "pool_tasks.echo" in str(raised)
    assert type(error or ValueError()).__name__ in str(raised)
    assert "rebuild_unless_in" in str(raised.__cause__), "the worker's traceback"


def test_a_function_whose_module_the_worker_does_not_have(
    pool: ProcessPoolExecutor, tmp_path: Path
) -> None:
    (tmp_path / "not_in_workers.py").write_text("def there():\n    return 1\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import not_in_workers  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    error = amid_others(pool, not_in_workers.there)
    assert type(error) is TaskUnpicklingError
    assert "ModuleNotFoundError: No module named 'not_in_workers'" in str(error)


def test_a_task_that_kills_its_worker_while_being_unpickled() -> None:
    with ProcessPoolExecutor(1) as executor:
        error = amid_others(executor, echo, KillsItsReader())
        assert isinstance(error, TerminatedWorkerError) and error.exitcode == 5
        assert error.task == "pool_tasks.echo"


# ---------------------------------------------------------------------- results


@pytest.mark.parametrize(
    ("how", "where"),
    [
        ("itself", "result: "),
        ("item", "result[1][1]: "),
        ("value", "result['a']['b']: "),
        ("attribute", "result.content.content: "),
        ("slot", "result.content[0]: "),
        ("closure", "result closure variable 'lock': "),
    ],
)
def test_a_result_that_cannot_be_pickled(pool: ProcessPoolExecutor, how: str, where: str) -> None:
    error = amid_others(pool, locks_in, how)
    assert isinstance(error, (TypeError, pickle.PicklingError))
    assert where in str(error)
    assert "pool_tasks.locks_in" in str(error)
    assert "cannot pickle '_thread.lock' object" in str(error)


@pytest.mark.parametrize("reason", [ValueError("no"), SystemExit(3), KeyboardInterrupt("now")])
def test_whatever_pickling_a_result_raises(
    pool: ProcessPoolExecutor, reason: BaseException
) -> None:
    for deep in (False, True):
        error = amid_others(pool, make_fails_to_reduce, reason, deep)
        assert type(error) in (type(reason), pickle.PicklingError)
        assert str(reason) in str(error)
        if isinstance(reason, ValueError):
            assert ("result[0]" if deep else "result") in str(error)


@pytest.mark.parametrize(
    "reason", [None, SystemExit(1), KeyboardInterrupt(), MemoryError("of the unpickler")]
)
def test_a_result_that_cannot_be_unpickled(
    pool: ProcessPoolExecutor, reason: BaseException | None
) -> None:
    error = amid_others(pool, make_fails_in, os.getpid(), reason)
    assert type(error) is ResultUnpicklingError
    assert isinstance(error, BrokenProcessPool), "as callers of old expect"
    assert "pool_tasks.make_fails_in" in str(error)
    assert type(reason or ValueError()).__name__ in str(error)
    assert isinstance(error.__context__, type(reason or ValueError()))
    cause = str(error.__cause__)
    assert "Traceback" in cause and type(reason or ValueError()).__name__ in cause


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("two arguments", ["TwoArguments: one two", "sent: TypeError: ", "'two'", "`__reduce__`"]),
        ("lock", ["HoldsALock: locked", "could not be sent: TypeError: ", "lock"]),
        ("bad str", ["BadStr", "could not be sent"]),
        ("rebuild", ["FailsInException", "LookupError: not to be rebuilt here"]),
        ("text", ["NotAnExceptionIn", "rebuilt as a str"]),
    ],
)
def test_an_exception_that_cannot_travel(
    pool: ProcessPoolExecutor, kind: str, texts: list[str]
) -> None:
    error = amid_others(pool, raise_exception, kind, os.getpid())
    assert type(error) is ResultUnpicklingError
    for text in ["pool_tasks.raise_exception", *texts]:
        assert text in str(error)
    assert "in raise_exception" in str(error.__cause__), "the worker's traceback survives"


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    "size",
    [INLINE_LIMIT - 300, INLINE_LIMIT - 1, INLINE_LIMIT, INLINE_LIMIT + 1, 250_000, 9_999_999],
)
def test_payloads_of_every_size_arrive_both_ways(pool: ProcessPoolExecutor, size: int) -> None:
    data = pattern(size)
    assert pool.submit(checksum, data).result() == checksum(data)
    assert pool.submit(pattern, size).result() == data
    assert pool.submit(echo, data, key=data).result() == ((data,), {"key": data})
    # By way of cloudpickle.
    assert pool.submit(lambda: len(data)).result() == size
    # Errors may be large, too.
    assert str(pool.submit(eval, f"int('x' + {'y' * size!r}[1:])").exception())


def test_many_large_tasks_leave_no_descriptor_open(pool: ProcessPoolExecutor) -> None:
    data = pattern(200_000)
    expected = checksum(data)
    pool.submit(checksum, data).result()
    worker = psutil.Process(pool.submit(os.getpid).result())
    before = psutil.Process().num_fds(), worker.num_fds()
    assert list(pool.map(checksum, [data] * 60)) == [expected] * 60
    futures = [pool.submit(checksum, data) for _ in range(60)]
    assert [future.result() for future in futures] == [expected] * 60
    gc.collect()
    assert (psutil.Process().num_fds(), worker.num_fds()) == before


def test_large_tasks_that_were_not_read_survive_their_worker(tmp_path: Path) -> None:
    data = pattern(100_000)
    with Gate(tmp_path) as gate, ProcessPoolExecutor(1) as executor:
        list(executor.map(abs, range(200)))  # short tasks are sent ahead
        held = executor.submit(pass_through, gate.path)
        behind = [executor.submit(checksum, data) for _ in range(20)]
        (pid,) = gate.arrivals()
        behind[3].cancel()
        os.kill(pid, signal.SIGKILL)
        assert isinstance(held.exception(), TerminatedWorkerError)
        del behind[3]
        assert [future.result() for future in behind] == [checksum(data)] * 19


# ---------------------------------------------------------------------- reducers


def test_reducers_of_tasks_serve_for_results_too() -> None:
    with ProcessPoolExecutor(1, job_reducers={Coin: reduce_to_heads}) as executor:
        assert executor.submit(side_of, Coin("edge")).result() == "heads"
        assert executor.submit(make_coin, "edge").result().side == "heads"


def test_reducers_of_results() -> None:
    with ProcessPoolExecutor(
        1, job_reducers={Coin: reduce_to_heads}, result_reducers={Coin: reduce_to_tails}
    ) as executor:
        assert executor.submit(side_of, Coin("edge")).result() == "heads"
        assert executor.submit(make_coin, "edge").result().side == "tails"
    with ProcessPoolExecutor(1, result_reducers={Coin: reduce_to_tails}) as executor:
        assert executor.submit(side_of, Coin("edge")).result() == "edge"
        assert executor.submit(make_coin, "edge").result().side == "tails"


def test_a_reducer_may_be_a_closure() -> None:
    side = "closed"
    with ProcessPoolExecutor(1, job_reducers={Coin: lambda _: (make_coin, (side,))}) as executor:
        assert executor.submit(side_of, Coin("edge")).result() == "closed"
        assert executor.submit(make_coin, "edge").result().side == "closed"


class Reducer:
    """A reducer whose calls can be held up."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.go_on = threading.Event()
        self.calls = 0
        self.at_once = 0
        self.most_at_once = 0

    def __call__(self, coin: Coin) -> Any:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.calls += 1
        self.called.set()
        assert self.go_on.wait(PATIENCE)
        self.at_once -= 1
        return make_coin, (coin.side,)


@pytest.fixture
def reducer() -> Reducer:
    return Reducer()


@pytest.fixture
def slow(reducer: Reducer) -> Iterator[ProcessPoolExecutor]:
    """A pool with this reducer, ready, without anything to do."""
    with ProcessPoolExecutor(
        2, job_reducers={Coin: reducer}, result_reducers={Box: Box}
    ) as executor:
        assert list(executor.map(abs, range(4))) == list(range(4))
        yield executor
        reducer.go_on.set()


def test_a_slow_reducer_stands_in_nobodys_way(slow: ProcessPoolExecutor, reducer: Reducer) -> None:
    held = slow.submit(side_of, Coin("a"))
    assert reducer.called.wait(PATIENCE)
    also_held = slow.submit(side_of, Coin("b"))
    quick = [slow.submit(abs, -i) for i in range(50)]
    assert [future.result(PATIENCE) for future in quick] == list(range(50))
    assert not held.done() and not also_held.done()
    reducer.go_on.set()
    assert (held.result(), also_held.result()) == ("a", "b")
    assert reducer.most_at_once == 1


def test_a_slow_reducer_does_not_hide_a_death(
    slow: ProcessPoolExecutor, reducer: Reducer, tmp_path: Path
) -> None:
    with Gate(tmp_path) as gate:
        victim = slow.submit(pass_through, gate.path)
        (pid,) = gate.arrivals()
        held = slow.submit(side_of, Coin("a"))
        assert reducer.called.wait(PATIENCE)
        os.kill(pid, signal.SIGKILL)
        assert isinstance(victim.exception(PATIENCE), TerminatedWorkerError)
        assert not held.done()
        reducer.go_on.set()
        assert held.result() == "a"


def test_a_held_task_can_be_cancelled_and_the_next_one_runs(
    slow: ProcessPoolExecutor, reducer: Reducer
) -> None:
    held = slow.submit(side_of, Coin("a"))
    assert reducer.called.wait(PATIENCE)
    behind = slow.submit(side_of, Coin("b"))
    assert held.cancel()
    assert held.cancelled()
    reducer.go_on.set()
    assert behind.result() == "b"


def test_a_pool_can_be_killed_while_a_reducer_runs(reducer: Reducer) -> None:
    executor = ProcessPoolExecutor(1, job_reducers={Coin: reducer}, result_reducers={Box: Box})
    executor.submit(abs, 1).result()
    pids = executor._pool.pids()
    held = executor.submit(side_of, Coin("a"))
    assert reducer.called.wait(PATIENCE)
    executor.shutdown(kill_workers=True)
    assert held.exception() is not None
    assert all(ended(pid) for pid in pids)
    reducer.go_on.set()


def test_reducers_are_called_by_one_thread_at_a_time(
    slow: ProcessPoolExecutor, reducer: Reducer
) -> None:
    futures: list[Future[str]] = []

    def submit() -> None:
        futures.extend(slow.submit(side_of, Coin("a")) for _ in range(30))

    threads = [threading.Thread(target=submit) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert reducer.called.wait(PATIENCE)
    reducer.go_on.set()
    for thread in threads:
        thread.join()
    assert {future.result() for future in futures} == {"a"}
    assert reducer.most_at_once == 1
    assert reducer.calls == 90, "each task is pickled once"


def test_a_reducer_that_takes_a_lock_under_which_others_submit() -> None:
    lock = threading.Lock()
    reducing = threading.Event()

    def reduce(coin: Coin) -> Any:
        reducing.set()
        with lock:
            return make_coin, (coin.side,)

    with ProcessPoolExecutor(
        2, job_reducers={Coin: reduce}, result_reducers={Box: Box}
    ) as executor:
        executor.submit(abs, 1).result()
        with lock:
            first = executor.submit(side_of, Coin("a"))
            assert reducing.wait(PATIENCE)
            more = [executor.submit(side_of, Coin("b")) for _ in range(20)]
            quick = executor.submit(abs, -1)
            assert quick.result(PATIENCE) == 1
            assert not first.done()
        assert first.result() == "a"
        assert [future.result() for future in more] == ["b"] * 20


def test_a_reducer_may_wait_for_a_task_that_needs_none() -> None:
    executor: ProcessPoolExecutor

    def reduce(coin: Coin) -> Any:
        future = executor.submit(operator.concat, coin.side, "!")
        return make_coin, (future.result(PATIENCE),)

    with ProcessPoolExecutor(
        2, job_reducers={Coin: reduce}, result_reducers={Box: Box}
    ) as executor:
        futures = [executor.submit(side_of, Coin("a")) for _ in range(5)]
        assert [future.result(PATIENCE) for future in futures] == ["a!"] * 5


# ---------------------------------------------------------------------- callbacks and results


class Sleepy:
    """Takes as long as it is told to be unpickled in the test's process."""

    go_on = threading.Event()
    called = threading.Event()

    def __reduce__(self) -> Any:
        return wake_up, (os.getppid(),)


def wake_up(parent: int) -> str:
    if os.getpid() == parent:
        Sleepy.called.set()
        assert Sleepy.go_on.wait(PATIENCE)
    return "awake"


def test_a_result_slow_to_unpickle_stands_in_nobodys_way(tmp_path: Path) -> None:
    Sleepy.called.clear()
    Sleepy.go_on.clear()
    with Gate(tmp_path) as gate, ProcessPoolExecutor(2) as executor:
        victim = executor.submit(pass_through, gate.path)
        (pid,) = gate.arrivals()
        slow = executor.submit(Sleepy)
        assert Sleepy.called.wait(PATIENCE)
        assert [executor.submit(abs, -i).result(PATIENCE) for i in range(10)] == list(range(10))
        os.kill(pid, signal.SIGKILL)
        assert isinstance(victim.exception(PATIENCE), TerminatedWorkerError)
        assert not slow.done()
        Sleepy.go_on.set()
        assert slow.result() == "awake"


def test_slow_callbacks_stand_in_nobodys_way(tmp_path: Path) -> None:
    go_on = threading.Event()
    called = threading.Semaphore(0)

    def callback(future: Future[Any]) -> None:
        called.release()
        assert go_on.wait(PATIENCE)

    with Gate(tmp_path) as gate, ProcessPoolExecutor(2) as executor:
        victim = executor.submit(pass_through, gate.path)
        (pid,) = gate.arrivals()
        for _ in range(4):  # several at a time: each keeps a thread
            executor.submit(abs, 1).add_done_callback(callback)
        for _ in range(4):
            assert called.acquire(timeout=PATIENCE)
        quick = [executor.submit(abs, -i) for i in range(50)]
        assert [future.result(PATIENCE) for future in quick] == list(range(50))
        os.kill(pid, signal.SIGKILL)
        assert isinstance(victim.exception(PATIENCE), TerminatedWorkerError)
        go_on.set()
