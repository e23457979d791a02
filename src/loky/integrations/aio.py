"""asyncio: futures and maps that are awaited. No threads: an arrival is a callback into the loop.

Rule 1: nothing here waits. What is cancelled is told so and left to the pool.

Rule 2: cancelling whoever awaits cancels the work, and kills it if it runs: a result that nobody
will see must not hold a worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

from ..future import Future
from ..mapping import MapOptions, Mapping, Raise, Submit

T = TypeVar("T")


async def outcome_of(future: Future[T]) -> T:
    """Await a future of the pool; cancelled, stop its task."""
    loop = asyncio.get_running_loop()
    arrived = loop.create_future()
    future.add_done_callback(lambda _: _call_soon(loop, _set, arrived))
    try:
        await arrived
    except asyncio.CancelledError:
        future._stop_soon()
        raise
    return future.result()


def results_of_map(
    submit: Submit, fn: Callable[..., T], iterables: tuple[Iterable[Any], ...], options: MapOptions
) -> AsyncIterator[T]:
    """Submit the calls of a map now; their results, to be awaited."""
    return _AsyncMap(submit, fn, iterables, options).results()


class _AsyncMap(Mapping[T]):
    """See `mapping.Mapping`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Queue[Future[Any]] = asyncio.Queue()
        self.start()

    async def results(self) -> AsyncIterator[T]:
        buffered = self._options.buffersize is not None
        future: Any
        value: Any = None
        try:
            while self._futures or self._numbers:
                future, number = await self._take()
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
        finally:
            future = value = None  # else the traceback of an error would keep it alive
            self._abandon(kill=True, wait=False)

    async def _take(self) -> tuple[Future[Any], int]:
        """Await the next task."""
        if not self._options.ordered:
            future = await self._done.get()
            return future, self._numbers.pop(future)
        future = self._futures[0]
        if not future.done():
            arrived = self._loop.create_future()
            future.add_done_callback(lambda _: _call_soon(self._loop, _set, arrived))
            await arrived
        self._futures.popleft()
        return future, self._submitted - len(self._futures) - 1

    def _arrived(self, future: Any) -> None:
        _call_soon(self._loop, self._done.put_nowait, future)


def _set(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], what: Any) -> None:
    """Have the loop call this; if it is closed, nobody waits any more."""
    try:
        loop.call_soon_threadsafe(function, what)
    except RuntimeError:
        pass
