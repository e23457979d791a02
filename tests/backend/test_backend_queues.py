"""Tests of `loky.backend.queues`: what differs from multiprocessing's, and that the rest works."""

from __future__ import annotations

import gc
import pickle
import sys
import threading
import weakref
from collections.abc import Iterator
from queue import Empty
from typing import Any

import backend_helpers as helpers
import pytest
from backend_helpers import Plain, check_code, reduce_plain, reduce_plain_back

from loky.backend.context import ctx_loky, get_context
from loky.backend.queues import Full, Queue, SimpleQueue

LONG = 30.0  # seconds; only a bug needs them

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.fixture(params=[Queue, SimpleQueue])
def queue(request: pytest.FixtureRequest) -> Iterator[Any]:
    queue = request.param()
    yield queue
    close(queue)


def close(queue: Any) -> None:
    queue.close()
    if isinstance(queue, Queue):
        thread = queue._thread
        if thread is not None:
            thread.join(LONG)
        queue._reader.close()
        queue._writer.close()


class ErrorQueue(Queue):
    """Keeps what the hook is told."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.errors: list[tuple[BaseException, object]] = []
        self.told = threading.Semaphore(0)
        super().__init__(*args, **options)

    def _on_queue_feeder_error(self, e: BaseException, obj: Any) -> None:
        self.errors.append((e, obj))
        self.told.release()


class Refuses:
    """Cannot be pickled, in the way it is told."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


# Both kinds --------------------------------------------------------------------------------------


def test_what_goes_in_comes_out(queue: Any) -> None:
    for item in (1, "two", None, [3], (lambda: 4)):
        queue.put(item)
    assert [queue.get() for _ in range(4)] == [1, "two", None, [3]]
    assert queue.get()() == 4, "by value: pickled with loky's pickler"
    assert queue.empty()


def test_between_processes(queue: Any) -> None:
    process = ctx_loky.Process(target=helpers.send, args=(queue, 1, lambda: 2))
    process.start()
    assert queue.get() == 1
    assert queue.get()() == 2
    process.join(LONG)
    assert process.exitcode == 0
    process.close()


@pytest.mark.parametrize("kind", [Queue, SimpleQueue])
def test_reducers_are_those_of_the_queue_in_every_process(kind: Any) -> None:
    forth = kind(reducers={Plain: reduce_plain})
    back = kind(reducers={Plain: reduce_plain_back})
    process = ctx_loky.Process(target=helpers.send_back, args=(forth, back))
    process.start()
    forth.put(Plain(1))
    assert back.get().value == ("back", ("reduced", 1))
    process.join(LONG)
    assert process.exitcode == 0
    process.close()
    close(forth)
    close(back)


def test_from_a_context() -> None:
    plain, simple = ctx_loky.Queue(2, {Plain: reduce_plain}), ctx_loky.SimpleQueue()
    assert type(plain) is Queue and type(simple) is SimpleQueue
    plain.put(Plain(1))
    assert plain.get().value == ("reduced", 1)
    close(plain)
    close(simple)


def test_with_the_locks_of_another_context() -> None:
    queue = Queue(ctx=get_context("spawn"))
    assert type(queue._rlock) is not type(ctx_loky.Lock())
    close(queue)


def test_can_only_be_passed_to_a_process_that_is_being_started(queue: Any) -> None:
    with pytest.raises(RuntimeError, match="should only be shared between processes"):
        pickle.dumps(queue)


def test_simple_queue_says_what_it_cannot_pickle() -> None:
    queue = SimpleQueue()
    with pytest.raises(ZeroDivisionError):
        queue.put(Refuses(ZeroDivisionError()))
    queue.put("next")
    assert queue.get() == "next"
    queue.close()


# The one with a buffer ---------------------------------------------------------------------------


def test_size() -> None:
    queue = Queue(1)
    queue.put(1)
    with pytest.raises(Full):
        queue.put(2, block=False)
    with pytest.raises(Full):
        queue.put(2, timeout=0.01)
    assert queue.get() == 1
    with pytest.raises(Empty):
        queue.get(block=False)
    close(queue)


@pytest.mark.parametrize("error", [ZeroDivisionError("no"), SystemExit(1), KeyboardInterrupt()])
def test_hook_is_told_what_could_not_be_sent(error: BaseException) -> None:
    queue = ErrorQueue(1)
    bad = Refuses(error)
    queue.put(bad)
    assert queue.told.acquire(timeout=LONG)
    assert queue.errors == [(error, bad)]
    # There is room again, and the thread goes on.
    queue.put("next", timeout=LONG)
    assert queue.get() == "next"
    close(queue)


def test_hook_is_told_what_could_not_be_written() -> None:
    queue = ErrorQueue()
    queue.put("fine")
    assert queue.get() == "fine"
    queue._reader.close()
    item = ["lost"]
    queue.put(item)
    assert queue.told.acquire(timeout=LONG)
    [(error, obj)] = queue.errors
    assert isinstance(error, BrokenPipeError)
    assert obj is item
    close(queue)


def test_default_hook_prints(capfd: pytest.CaptureFixture[str]) -> None:
    queue = Queue()
    queue.put(Refuses(ZeroDivisionError("no such thing")))
    queue.put("next")
    assert queue.get() == "next"
    close(queue)
    assert "ZeroDivisionError: no such thing" in capfd.readouterr().err


def test_items_are_not_kept() -> None:
    queue = Queue()
    item = Plain(1)
    gone = threading.Event()
    weakref.finalize(item, gone.set)
    queue.put(item)
    del item
    queue.get()
    # The thread may still be between writing and letting go.
    assert gone.wait(LONG)
    close(queue)


def test_thread_ends_with_its_queue() -> None:
    queue: Any = Queue()
    queue.put(1)
    assert queue.get() == 1
    thread = queue._thread
    del queue
    gc.collect()
    thread.join(LONG)
    assert not thread.is_alive()


def test_creator_does_not_wait_for_readers() -> None:
    # More than a pipe holds: waiting for a reader would be for ever.
    check_code("""
        from loky.backend.queues import Queue
        queue = Queue()
        queue.put(bytes(1 << 20))
    """)


def test_others_wait_for_readers() -> None:
    queue = Queue()
    process = ctx_loky.Process(target=helpers.send, args=(queue, bytes(1 << 20)))
    process.start()
    assert len(queue.get()) == 1 << 20
    process.join(LONG)
    assert process.exitcode == 0
    process.close()
    close(queue)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:The `fork` start method:UserWarning")
def test_in_a_forked_process() -> None:
    queue = Queue(reducers={Plain: reduce_plain})
    queue.put(Plain("parent"))  # so there is a thread, which the child has not
    process = get_context("fork").Process(target=helpers.send, args=(queue, Plain("child")))
    process.start()
    assert {queue.get().value for _ in range(2)} == {("reduced", "parent"), ("reduced", "child")}
    process.join(LONG)
    assert process.exitcode == 0
    process.close()
    close(queue)
