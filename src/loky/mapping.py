"""map: a call per item.

Rule 1: the input is consumed in the caller's thread, and tasks are handed to the pool in batches,
each in one uninterruptible step: an interrupt between two batches leaves nothing half-submitted.

Rule 2: leaving early (an error, an interrupt, closing the iterator) cancels what has not started;
an interrupt also stops what has, so that the pool is clean for whoever comes next.

Rule 3: an iterator that nobody asks for results (a map for its side effects) neither keeps the
executor alive nor, when it is dropped, cancels anything.

`Mapping` is what waiting and awaiting have in common; `_Waiting` waits, `_AsyncMap` (in
`integrations/aio.py`) awaits.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FuturesTimeoutError
from itertools import islice
from time import monotonic
from typing import Any, Generic, NamedTuple, TypeVar

from .checks import check_number, check_whole
from .chunks import FAIL, GO_ON, STOP, ForEach, Mixed
from .future import FINISHED, Future

T = TypeVar("T")

# Tasks of a batch, and the time after which a batch goes out however short it is, in seconds: a
# slow input must not keep ready items from the workers.
BATCH = 256
BATCH_SECONDS = 0.5e-3

ON_ERROR = ("raise", "collect", "skip")


class MapOptions(NamedTuple):
    """The checked arguments of `Executor.map`; see there."""

    timeout: float | None
    chunksize: int
    buffersize: int | None
    ordered: bool
    on_error: str


def map_options(
    fn: Any, timeout: Any, chunksize: Any, buffersize: Any, ordered: Any, on_error: Any
) -> MapOptions:
    """Validate the arguments of `Executor.map`.

    Raises
    ------
    TypeError, ValueError
        One of them is not what it must be.
    """
    if not callable(fn):
        raise TypeError(f"map needs a callable, got {fn!r}")
    if not isinstance(ordered, bool):
        raise TypeError(f"ordered must be True or False, got {ordered!r}")
    if on_error not in ON_ERROR:
        raise ValueError(
            f"on_error must be one of {', '.join(map(repr, ON_ERROR))}, got {on_error!r}"
        )
    return MapOptions(
        None if timeout is None else check_number("timeout", timeout, " or None"),
        check_whole("chunksize", chunksize, least=1),
        None if buffersize is None else check_whole("buffersize", buffersize, least=1),
        ordered,
        on_error,
    )


class Submit:
    """What a map needs of its executor. Not the executor itself: see rule 3.

    Parameters
    ----------
    many : callable
        Submits calls, given as a list of (function, arguments), and appends their futures to the
        deque that it is given before anything else.
    will_wait : callable
        To be called before blocking.
    retries_exceptions : bool
        Whether tasks are tried again if they raise: then a chunk of which an item raises has to.
    """

    __slots__ = ("many", "retries_exceptions", "will_wait")

    def __init__(
        self,
        many: Callable[[list[Any], deque[Future[Any]]], None],
        will_wait: Callable[[], None],
        retries_exceptions: bool,
    ) -> None:
        self.many = many
        self.will_wait = will_wait
        self.retries_exceptions = retries_exceptions


class Mapping(Generic[T]):
    """The tasks of a map, and what their results mean. See the rules at the top of the file.

    Tasks are known by their number, from 0; the items of task `n` are those from
    ``n * chunksize`` on, ``chunksize`` of them but for the last task.
    """

    def __init__(
        self,
        submit: Submit,
        fn: Callable[..., T],
        iterables: tuple[Iterable[Any], ...],
        options: MapOptions,
    ) -> None:
        self._submit: Submit | None = submit
        self._will_wait = submit.will_wait
        self._fn = fn
        self._options = options
        self._futures: deque[Future[Any]] = deque()  # submitted and not taken, if ordered
        self._numbers: dict[Future[Any], int] = {}  # the same with their numbers, if not
        self._new: deque[Future[Any]] = deque()  # the same, and not yet numbered
        self._left: dict[int, Future[Any]] = {}  # what was there when the map was abandoned
        # The chunk that was taken last: its number, its size, which of its items failed.
        self._begun: tuple[int, int, Collection[int]] | None = None
        self._rest: dict[int, T] = {}  # of such a chunk when the map was abandoned, by position
        self._submitted = 0
        self._last_size = options.chunksize  # of the task submitted last
        items: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        self._calls: Iterator[Any]
        if options.chunksize > 1:
            on_error = STOP if options.on_error == "raise" else GO_ON
            each = ForEach(fn, FAIL if submit.retries_exceptions else on_error)
            self._calls = ((each, (chunk,)) for chunk in _chunks(items, options.chunksize))
        else:
            self._calls = ((fn, arguments) for arguments in items)

    def start(self) -> None:
        """Submit what may be submitted ahead."""
        try:
            self._submit_next(self._options.buffersize)
        except BaseException as error:
            self._abandon(kill=isinstance(error, KeyboardInterrupt))
            raise
        if self._options.buffersize is None:
            self._submit = None  # and with it the executor

    # ------------------------------------------------------------------ submitting

    def _submit_next(self, limit: int | None) -> None:
        """Submit the next `limit` calls, ``None`` for all."""
        batch: list[Any] = []
        since = monotonic()
        for call in self._calls if limit is None else islice(self._calls, limit):
            batch.append(call)
            if len(batch) >= BATCH or monotonic() - since > BATCH_SECONDS:
                self._submit_batch(batch)
                batch = []
                since = monotonic()
        if batch:
            self._submit_batch(batch)

    def _submit_batch(self, batch: list[Any]) -> None:
        assert self._submit is not None, "closed"
        if self._options.chunksize > 1:
            self._last_size = len(batch[-1][1][0])
        if self._options.ordered:
            self._submit.many(batch, self._futures)
            self._submitted += len(batch)
            return
        self._submit.many(batch, self._new)
        while self._new:
            future = self._new[0]
            self._numbers[future] = self._submitted
            self._submitted += 1
            self._new.popleft()
            future.add_done_callback(self._arrived)

    def _arrived(self, future: Any) -> None:
        """Called back for each future if the order does not matter."""

    # ------------------------------------------------------------------ what results mean

    def _values(self, future: Future[Any], number: int) -> list[Any]:
        """What a task that is done contributes to the iteration, the last first."""
        # Asked for instead of caught: a traceback through here would keep the future alive.
        error = future._exception if future._state == FINISHED else CancelledError()
        chunksize = self._options.chunksize
        if error is not None:
            self._begun = None
            on_error = self._options.on_error
            if on_error == "raise":
                return [Raise(error)]
            last = number == self._submitted - 1
            size = self._last_size if last else chunksize
            return [error] * size if on_error == "collect" else []
        value = future._result
        if chunksize == 1:
            return [value]
        values: list[Any]
        if isinstance(value, Mixed):
            values = self._values_of(value)
            self._begun = number, len(value.results), value.errors.keys()
        else:
            values = value
            self._begun = number, len(values), ()
        values.reverse()
        return values

    def _values_of(self, mixed: Mixed) -> list[Any]:
        from .pool.names import name_of
        from .pool.outcome import rebuild
        from .wire.protocol import ERROR

        values: list[Any] = []
        for position, value in enumerate(mixed.results):
            if position not in mixed.errors:
                values.append(value)
            elif self._options.on_error != "skip":
                error = rebuild(name_of(self._fn), ERROR, mixed.errors[position])
                values.append(error if self._options.on_error == "collect" else Raise(error))
        return values

    # ------------------------------------------------------------------ the end

    def _leave(self, values: list[Any]) -> None:
        """Keep for `finished` what of a chunk's `_values` was not handed out."""
        if self._begun is None:
            return
        number, size, failed = self._begun
        skips = self._options.on_error == "skip"
        positions = [n for n in range(size) if not (skips and n in failed)]
        for position, one in zip(reversed(positions), values, strict=False):
            if position not in failed:
                self._rest[number * self._options.chunksize + position] = one

    def finished(self) -> dict[int, T]:
        """See `MapIterator.finished`."""
        results = dict(self._rest)
        for number, future in self._left.items():
            if not future.done() or future.cancelled() or future.exception() is not None:
                continue
            value = future.result()
            errors = value.errors if isinstance(value, Mixed) else {}
            values = value.results if isinstance(value, Mixed) else value
            if self._options.chunksize == 1:
                values = [value]
            for position, one in enumerate(values):
                if position not in errors:
                    results[number * self._options.chunksize + position] = one
        return results

    def _abandon(self, *, kill: bool, wait: bool = True) -> None:
        """Cancel what is left, the last first, so that nothing starts meanwhile.

        Parameters
        ----------
        kill : bool
            Also what runs.
        wait : bool
            Whether this may wait until it is known what could be cancelled.
        """
        self._calls = iter(())
        self._submit = None  # whoever keeps an exception keeps this, but must not keep the executor
        left = [*self._futures, *self._numbers, *self._new]
        numbers = [self._submitted - len(self._futures) + n for n in range(len(self._futures))]
        numbers += self._numbers.values()
        self._left.update(zip(numbers, left, strict=False))
        self._futures.clear()
        self._numbers.clear()
        self._new.clear()
        for future in reversed(left):
            if not future.done():
                if kill and not wait:
                    future._stop_soon()
                else:
                    future.cancel(kill=kill)


class _Waiting(Mapping[T]):
    """A map whose results are waited for."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        timeout = self._options.timeout
        self._deadline = None if timeout is None else monotonic() + timeout
        self._done: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()  # in their order
        self.start()

    def results(self) -> Iterator[T]:
        """The results. A generator that was never started does nothing when it is dropped."""
        interrupted = False
        in_order = self._options.ordered
        buffered = self._options.buffersize is not None
        futures = self._futures if in_order else self._numbers
        future: Any
        value: Any = None
        values: list[Any] = []
        try:
            while futures:
                future, number = self._take_first() if in_order else self._take_any()
                values = self._values(future, number)
                future = None
                if buffered and not (values and type(values[0]) is Raise):
                    self._submit_next(1)
                while values:
                    value = values.pop()
                    if type(value) is Raise:
                        raise value.error
                    yield value
                    value = None  # an item is let go of as soon as it is handed out
        except KeyboardInterrupt:
            interrupted = type(value) is not Raise  # else it is a task's own
            raise
        finally:
            future = value = None  # else the traceback of an error would keep it alive
            self._leave(values)
            self._abandon(kill=interrupted)

    def _take_first(self) -> tuple[Future[Any], int]:
        """Wait for the first task."""
        future = self._futures[0]
        if not future._is_over():
            left = None if self._deadline is None else self._deadline - monotonic()
            if not future._wait_done(left):
                raise self._late()
        self._futures.popleft()
        return future, self._submitted - len(self._futures) - 1

    def _take_any(self) -> tuple[Future[Any], int]:
        """Wait for whatever task is done next."""
        left = None if self._deadline is None else max(0.0, self._deadline - monotonic())
        if self._done.empty():
            self._will_wait()
        try:
            future = self._done.get(timeout=left)
        except queue.Empty:
            raise self._late() from None
        return future, self._numbers.pop(future)

    def _late(self) -> Exception:
        waiting = len(self._futures if self._options.ordered else self._numbers)
        return FuturesTimeoutError(
            f"the results were not all there {self._options.timeout:g} s after the call of map: "
            f"{waiting} of {self._submitted} tasks submitted so far were waited for"
        )

    def _arrived(self, future: Any) -> None:
        self._done.put(future)


class MapIterator(Iterator[T]):
    """The results of a map: what `Executor.map` returns.

    Besides iterating there are `close`, which cancels what is left, and `finished`, which has the
    results that an early end left behind.
    """

    __slots__ = ("_mapping", "_results")

    def __init__(
        self,
        submit: Submit,
        fn: Callable[..., T],
        iterables: tuple[Iterable[Any], ...],
        options: MapOptions,
    ) -> None:
        self._mapping: _Waiting[T] = _Waiting(submit, fn, iterables, options)
        self._results = self._mapping.results()

    def __iter__(self) -> MapIterator[T]:
        return self

    def __next__(self) -> T:
        """Return the next result.

        Raises
        ------
        TimeoutError
            It is not there in time.
        Exception
            What an item raised, if errors are to be raised. The iteration is over then.
        """
        return next(self._results)

    def __reduce__(self) -> Any:
        raise TypeError(
            "the results of a map cannot be sent to a worker: they arrive in this process. Send "
            "list(results), or its items"
        )

    def close(self) -> None:
        """End the iteration: what has not started is cancelled."""
        self._results.close()  # type: ignore[attr-defined]  # a generator
        self._mapping._abandon(kill=False)

    def finished(self) -> dict[int, T]:
        """Results that were never handed out because the iteration ended early.

        Returns
        -------
        dict of int to object
            By position in the input, those that are there by now. Tasks that were running when
            the iteration ended go on (unless it was interrupted), so there may be more later.
        """
        return self._mapping.finished()


class Raise:
    """Stands for an error among values."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(islice(items, size)):
        yield chunk
