"""The pool's own threads: they never sleep while something can be done, whatever happens.

The random test runs everything at once, from several threads, against real processes. What it does
depends on its seed; how it is interleaved depends on the machine, so it checks what must hold for
any interleaving: every future is settled, with the right value or an error that it may have.
More of it: ``LOKY_TEST_EFFORT=100 pytest -p no:timeout tests/test_supervisor.py``.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from pickle import PicklingError
from typing import Any

import pytest
import worker_tasks
from rendezvous import PATIENCE

from loky import (
    BrokenProcessPool,
    CancelledError,
    Future,
    ProcessPoolExecutor,
    TerminatedWorkerError,
)
from loky.pool.port import Port

EFFORT = float(os.environ.get("LOKY_TEST_EFFORT", "1"))


class Unpicklable:
    def __reduce__(self) -> Any:
        raise ValueError("not me")


class WhenPickled:
    """Calls a function in the thread that pickles it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    def __reduce__(self) -> Any:
        self.function()
        return str, ()


def all_at_once(executor: ProcessPoolExecutor, submit: Callable[[], None]) -> None:
    """Submit while the pool's leader is away, so that it finds everything at the same time."""
    done = threading.Event()

    def callback(_: Any) -> None:
        submit()
        done.set()

    executor.submit(worker_tasks.itself, 1).add_done_callback(callback)
    assert done.wait(PATIENCE)


@pytest.mark.usefixtures("no_leftovers")
def test_a_task_that_cannot_be_pickled_gives_its_place_to_the_next() -> None:
    with ProcessPoolExecutor(1) as executor:
        for _ in range(10):
            futures: list[Future[Any]] = []

            def submit(futures: list[Future[Any]] = futures) -> None:
                futures.append(executor.submit(worker_tasks.itself, Unpicklable()))
                futures.append(executor.submit(worker_tasks.itself, 5))

            all_at_once(executor, submit)
            assert isinstance(futures[0].exception(PATIENCE), PicklingError)
            assert futures[1].result(PATIENCE) == 5


@pytest.mark.usefixtures("no_leftovers")
def test_a_task_cancelled_just_before_it_is_sent_gives_its_place_to_the_next(
    tmp_path: Path,
) -> None:
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    with ProcessPoolExecutor(2) as executor:
        # Two warm workers, and the knowledge that tasks are long: one at a time for each.
        list(executor.map(worker_tasks.spin, [0.05] * 4))
        futures: list[Future[Any]] = []

        def submit() -> None:
            trigger = WhenPickled(lambda: futures[1].cancel())
            futures.append(executor.submit(worker_tasks.wait_for_a_writer, fifo, trigger))
            futures.append(executor.submit(worker_tasks.itself, 1))
            futures.append(executor.submit(worker_tasks.itself, 2))

        all_at_once(executor, submit)
        assert futures[2].result(PATIENCE) == 2, "the first one is not over and wakes nobody"
        assert futures[1].cancelled()
        Path(fifo).write_text("go on")
        assert futures[0].result(PATIENCE) == "go on"


@pytest.mark.usefixtures("no_leftovers")
def test_a_worker_that_dies_right_after_its_last_task_does_not_harm_the_pool() -> None:
    """Asked to leave and found dead in the same breath."""
    with ProcessPoolExecutor(2, max_tasks_per_child=1) as executor:
        for number in range(10):
            dying = executor.submit(
                eval,
                "__import__('threading').Thread(target=__import__('os')._exit, args=(3,)).start()",
            )
            try:
                dying.result(PATIENCE)
            except TerminatedWorkerError:
                pass
            assert executor.submit(worker_tasks.itself, number).result(PATIENCE) == number


# ---------------------------------------------------------------------- everything at once


class Mix:
    """One thread's part: submits a mixture of tasks and checks what becomes of them."""

    def __init__(self, executor: ProcessPoolExecutor, seed: int, rounds: int) -> None:
        self.executor = executor
        self.chance = random.Random(seed)
        self.rounds = rounds
        self.wrong: list[str] = []
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        try:
            for _ in range(self.rounds):
                self.one_round()
        except BaseException as error:
            self.wrong.append(repr(error))

    def task(self) -> tuple[Future[Any], object, type[BaseException] | None]:
        """A future, the result that it must have, or the error."""
        submit, chance = self.executor.submit, self.chance
        kind = chance.randrange(20)
        if kind == 0:
            return submit(worker_tasks.kill_me), None, TerminatedWorkerError
        if kind == 1:
            return submit(worker_tasks.itself, Unpicklable()), None, PicklingError
        if kind == 2:
            return submit(divmod, 1, 0), None, ZeroDivisionError
        if kind == 3:
            return submit(lambda: (_ for _ in ())), None, TypeError  # a generator comes not back
        if kind == 4:
            large = bytes([chance.randrange(256)]) * chance.choice((40_000, 400_000))
            return submit(worker_tasks.itself, large), large, None
        if kind < 8:
            seconds = chance.choice((1e-4, 1e-3, 5e-3, 30e-3))
            return submit(worker_tasks.spin, seconds), seconds, None
        number = chance.randrange(1000)
        if kind < 12:
            return submit(lambda: number), number, None
        return submit(worker_tasks.itself, number), number, None

    def one_round(self) -> None:
        chance = self.chance
        tasks = [self.task() for _ in range(chance.choice((1, 1, 2, 10, 40)))]
        may_be_cancelled = set()
        if chance.random() < 0.3:
            for future, _, _ in chance.sample(tasks, min(len(tasks), 4)):
                may_be_cancelled.add(future)
                if future.cancel(kill=chance.random() < 0.5):
                    if not future.cancelled():
                        self.wrong.append("cancel returned True and did not cancel")
        if chance.random() < 0.1:
            self.executor._resize(chance.randrange(1, 5))
        if chance.random() < 0.1:
            pids = self.executor._pool.pids()
            if pids:
                try:
                    os.kill(chance.choice(pids), signal.SIGKILL)
                except ProcessLookupError:
                    pass
        for future, result, kind in tasks:
            try:
                error = future.exception(PATIENCE)
            except CancelledError:
                if future not in may_be_cancelled:
                    self.wrong.append("cancelled by nobody")
                continue
            # Any worker may be killed by any of the threads while it runs any task.
            if isinstance(error, TerminatedWorkerError):
                continue
            if kind is None:
                if error is not None or future.result() != result:
                    self.wrong.append(f"{error!r} instead of {str(result)[:50]}")
            elif not isinstance(error, kind):
                self.wrong.append(f"{error!r} instead of {kind.__name__}")


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize(
    ("rounds", "options"),
    [
        (12, {}),
        (12, {"timeout": 0.0}),
        (4, {"max_tasks_per_child": 3}),
        (1, {"max_tasks_per_child": 1, "timeout": 0.02}),
    ],
    ids=str,
)
def test_everything_at_once(rounds: int, options: dict[str, Any]) -> None:
    executor = ProcessPoolExecutor(3, **options)
    with executor:
        mixes = [Mix(executor, seed, max(1, int(rounds * EFFORT))) for seed in range(3)]
        for mix in mixes:
            mix.thread.start()
        for mix in mixes:
            mix.thread.join()
    assert [mix.wrong for mix in mixes] == [[], [], []]
    assert executor._pool.broken is None


# ---------------------------------------------------------------------- bugs of our own


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_internal_error_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = threading.Event()

    def fail(port: Port) -> None:
        assert submitted.wait(PATIENCE)
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Port, "start", fail)
    others = set(threading.enumerate())
    executor = ProcessPoolExecutor(2)
    # The first ones are assigned to workers that are just being started.
    futures = [executor.submit(abs, n) for n in range(5)]
    threads = set(threading.enumerate()) - others
    assert threads
    submitted.set()
    for future in futures:
        with pytest.raises(BrokenProcessPool, match=r"internal error.*a bug"):
            future.result(PATIENCE)
    with pytest.raises(BrokenProcessPool, match="internal error"):
        executor.submit(abs, 1)
    executor.shutdown()
    for thread in threads:  # what ends them is reported when they end, and is this test's
        thread.join(PATIENCE)
        assert not thread.is_alive()
