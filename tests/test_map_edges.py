"""The edges of map: errors, order, what an early end leaves behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FuturesTimeoutError
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from pool_tasks import call, fail_with, invert, killed, pass_through, write_line
from rendezvous import Gate

from loky import ProcessPoolExecutor, TerminatedWorkerError

NUMBERS = [1, 2, 0, 4, 5, 0, 8]


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path) as gate:
        yield gate


@pytest.mark.parametrize("buffersize", [None, 1, 3])
@pytest.mark.parametrize("chunksize", [1, 2, 3, 100])
def test_errors_are_collected_at_their_places(
    pool: ProcessPoolExecutor, chunksize: int, buffersize: int | None
) -> None:
    results = list(
        pool.map(invert, NUMBERS, chunksize=chunksize, buffersize=buffersize, on_error="collect")
    )
    for number, result in zip(NUMBERS, results, strict=True):
        if number:
            assert result == 1 / number
        else:
            assert isinstance(result, ZeroDivisionError)
            assert "in invert" in str(result.__cause__)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("chunksize", [1, 3])
def test_failing_items_can_be_skipped(
    pool: ProcessPoolExecutor, chunksize: int, ordered: bool
) -> None:
    results = list(pool.map(invert, NUMBERS, chunksize=chunksize, on_error="skip", ordered=ordered))
    expected = [1 / number for number in NUMBERS if number]
    assert (results if ordered else sorted(results, reverse=True)) == expected


@pytest.mark.parametrize("chunksize", [1, 2, 4])
def test_what_comes_before_an_error_is_handed_out_first(
    pool: ProcessPoolExecutor, chunksize: int
) -> None:
    results = pool.map(invert, NUMBERS, chunksize=chunksize)
    assert [next(results), next(results)] == [1.0, 0.5]
    with pytest.raises(ZeroDivisionError) as caught:
        next(results)
    assert "in invert" in str(caught.value.__cause__)
    with pytest.raises(StopIteration):
        next(results)


def test_an_exception_that_cannot_be_sent_costs_its_item_only(pool: ProcessPoolExecutor) -> None:
    class Odd(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__("odd")

    def fail(number: int) -> int:
        if number == 1:
            raise Odd(1, 2)
        return number

    first, second, third = pool.map(fail, range(3), chunksize=3, on_error="collect")
    assert (first, third) == (0, 2)
    assert "Odd: odd" in str(second)


def test_a_crash_is_collected_like_an_error(pool: ProcessPoolExecutor) -> None:
    results = list(pool.map(call, [abs, die, abs], [-1, 0, -2], on_error="collect"))
    assert (results[0], results[2]) == (1, 2)
    assert isinstance(results[1], TerminatedWorkerError)


def die(_: int) -> None:
    killed()


def test_results_come_as_they_are_ready(pool: ProcessPoolExecutor, gate: Gate) -> None:
    results = pool.map(call, [pass_through, abs, abs], [(gate.path, 7), -1, -2], ordered=False)
    assert {next(results), next(results)} == {1, 2}
    gate.open()
    assert list(results) == [7]


def test_an_unordered_map_with_a_buffer_reads_its_input_as_results_are_taken(
    pool: ProcessPoolExecutor,
) -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = pool.map(abs, endless(), buffersize=3, ordered=False)
    assert taken == 3
    found = {next(results) for _ in range(10)}
    assert len(found) == 10
    assert taken == 13
    results.close()
    assert list(results) == []
    assert taken == 13


def test_an_unordered_map_times_out(pool: ProcessPoolExecutor, gate: Gate) -> None:
    results = pool.map(pass_through, [gate.path] * 2, ordered=False, timeout=0.05)
    with pytest.raises(FuturesTimeoutError):
        next(results)
    gate.open(2)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("chunksize", [1, 2])
def test_what_was_there_when_a_map_failed_can_be_had(
    pool: ProcessPoolExecutor, gate: Gate, chunksize: int, ordered: bool
) -> None:
    """The failing item comes last: by then the rest is there, and in order it is not handed out."""
    functions: list[Any] = [call_after, abs, abs, abs, abs, abs]
    arguments: list[Any] = [(gate.path, fail_with, ZeroDivisionError()), -1, -2, -3, -4, -5]
    results = pool.map(call, functions, arguments, chunksize=chunksize, ordered=ordered)
    wait(futures_of(results)[1:])
    gate.open()
    if ordered:
        with pytest.raises(ZeroDivisionError):
            next(results)
        assert results.finished() == {n: n for n in range(chunksize, 6)}
    else:
        handed_out = []
        with pytest.raises(ZeroDivisionError):
            handed_out += results
            handed_out += results
        assert results.finished() == {}


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("on_error", ["raise", "collect", "skip"])
def test_a_chunk_that_was_begun_when_a_map_was_left_can_be_had(
    pool: ProcessPoolExecutor, on_error: str, ordered: bool
) -> None:
    """Every result is either handed out or can be had, whatever failed beside it."""
    numbers = [1.0, 2, 0, 4, 5, 8] if on_error != "raise" else [1.0, 2, 4, 5, 8, 10]
    right = {n: 1 / number for n, number in enumerate(numbers) if number}
    for taken in range(1, 4):
        results = pool.map(invert, numbers, chunksize=5, on_error=on_error, ordered=ordered)
        wait(futures_of(results))
        handed_out = [next(results) for _ in range(taken)]
        results.close()
        found = results.finished()
        assert right.items() >= found.items()
        good = [value for value in handed_out if not isinstance(value, BaseException)]
        assert sorted([*good, *found.values()]) == sorted(right.values())


def call_after(path: str, fn: Any, argument: Any) -> Any:
    pass_through(path)
    return fn(argument)


def futures_of(results: Any) -> list[Any]:
    mapping = results._mapping
    return [*mapping._futures, *mapping._numbers]


def test_closing_cancels_what_is_left(tmp_path: Path, gate: Gate) -> None:
    ran = tmp_path / "ran"
    with ProcessPoolExecutor(1) as executor:
        functions: list[Any] = [pass_through, *[write_line] * 300]
        arguments: list[Any] = [(gate.path,), *[(str(ran), n) for n in range(300)]]
        results = executor.map(call, functions, arguments)
        gate.arrivals()
        results.close()  # without ever having been started
        gate.open()
    assert not ran.exists()


def test_an_exception_of_a_map_keeps_neither_the_executor_nor_the_results(tmp_path: Path) -> None:
    executor = ProcessPoolExecutor(1)
    try:
        list(executor.map(invert, [1, 0], buffersize=1))
    except ZeroDivisionError as error:
        kept = error
    gone = weakref.ref(executor)
    del executor
    gc.collect()
    assert gone() is None
    assert kept is not None


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"on_error": "ignore"}, ValueError, "'raise', 'collect', 'skip', got 'ignore'"),
        ({"ordered": 1}, TypeError, "ordered must be True or False, got 1"),
        ({"chunk_size": 2}, TypeError, "chunk_size"),
    ],
)
def test_map_says_what_is_wrong(
    pool: ProcessPoolExecutor, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        pool.map(abs, [1], **arguments)
