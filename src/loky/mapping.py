"""map: a call per item, results in order.

Rule 1: the input is consumed in the caller's thread, and tasks are handed to the pool in batches,
each in one uninterruptible step: an interrupt between two batches leaves nothing half-submitted.

Rule 2: leaving early (an error, an interrupt, closing the iterator) cancels what has not started;
an interrupt also stops what has, so that the pool is clean for whoever comes next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from time import monotonic
from typing import Any

from .chunks import ForEach
from .future import Future

# Tasks of a batch, and the time after which a batch goes out however short it is, in seconds: a
# slow input must not keep ready items from the workers.
BATCH = 256
BATCH_SECONDS = 0.5e-3


def check_arguments(
    fn: Any, timeout: Any, chunksize: Any, buffersize: Any
) -> tuple[float | None, int, int | None]:
    """Validate the arguments of `Executor.map`.

    Raises
    ------
    TypeError, ValueError
        One of them is not what it must be.
    """
    if not callable(fn):
        raise TypeError(f"map needs a callable, got {fn!r}")
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float))):
        raise TypeError(f"timeout must be a number of seconds or None, got {timeout!r}")
    chunksize = _whole("chunksize", chunksize)
    if buffersize is not None:
        buffersize = _whole("buffersize", buffersize)
    return timeout, chunksize, buffersize


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    number = int(value.__index__())
    if number < 1:
        raise ValueError(f"{name} must be >= 1, got {number}")
    return number


def start_map(
    submit_many: Callable[[list[Any], deque[Future[Any]]], None],
    fn: Callable[..., Any],
    iterables: tuple[Iterable[Any], ...],
    timeout: float | None,
    chunksize: int,
    buffersize: int | None,
) -> Iterator[Any]:
    """Submit the calls and return the iterator over their results; see `Executor.map`."""
    deadline = None if timeout is None else monotonic() + timeout
    calls: Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]
    items = zip(*iterables, strict=False)
    if chunksize > 1:
        calls = ((ForEach(fn), (chunk,)) for chunk in _chunks(items, chunksize))
    else:
        calls = ((fn, arguments) for arguments in items)
    waiting: deque[Future[Any]] = deque()
    try:
        _submit(submit_many, calls, waiting, buffersize)
    except BaseException as error:
        _abandon(waiting, error)
        raise
    # An iterator that nobody asks for results (a map for its side effects) must neither keep the
    # executor alive nor, when it is dropped, cancel anything: it is a generator not yet started.
    more = None
    if buffersize is not None:
        more = partial(_submit, submit_many, calls, waiting, 1)
    results = _results(waiting, deadline, more)
    if chunksize == 1:
        return results
    return _flatten(results)


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(islice(items, size)):
        yield chunk


def _submit(
    submit_many: Callable[[list[Any], deque[Future[Any]]], None],
    calls: Iterator[Any],
    waiting: deque[Future[Any]],
    limit: int | None,
) -> None:
    """Submit the next `limit` calls, ``None`` for all."""
    batch: list[Any] = []
    since = monotonic()
    for call in calls if limit is None else islice(calls, limit):
        batch.append(call)
        if len(batch) >= BATCH or monotonic() - since > BATCH_SECONDS:
            submit_many(batch, waiting)
            batch = []
            since = monotonic()
    if batch:
        submit_many(batch, waiting)


def _results(
    waiting: deque[Future[Any]], deadline: float | None, more: Callable[[], None] | None
) -> Iterator[Any]:
    error: BaseException | None = None
    try:
        while waiting:
            left = None if deadline is None else deadline - monotonic()
            result = waiting[0].result(left)
            waiting.popleft()
            if more is not None:
                more()
            yield result
            del result
    except BaseException as problem:
        error = problem
        raise
    finally:
        if waiting:
            _abandon(waiting, error)


def _flatten(chunks: Iterator[list[Any]]) -> Iterator[Any]:
    for chunk in chunks:
        chunk.reverse()
        while chunk:  # an item is let go of as soon as it is handed out
            yield chunk.pop()


def _abandon(waiting: deque[Future[Any]], error: BaseException | None) -> None:
    """Cancel what is left, the last first, so that nothing starts meanwhile."""
    kill = isinstance(error, KeyboardInterrupt)
    while waiting:
        future = waiting.pop()
        if not future.done():
            future.cancel(kill=kill)


__all__ = ["check_arguments", "start_map"]
