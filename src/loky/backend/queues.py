"""Queues between processes whose items are pickled by loky's pickler, with reducers of their own.

They are multiprocessing's, except for the pickling. Multiprocessing's `Queue` has a thread that
takes objects from a buffer, pickles them with multiprocessing's own pickler and sends the bytes.
Here the buffer holds stand-ins: one that is pickled there pickles, on its thread, the object that
it stands for, and what is sent is that.

Reducers travel with the queue to other processes, so they have to be picklable.
"""

from __future__ import annotations

import os
import weakref
from multiprocessing import queues as _multiprocessing
from queue import Full
from typing import TYPE_CHECKING, Any

from .reduction import dumps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.context import BaseContext

    Reducers = Mapping[type, Callable[[Any], Any]]
    _Queue = _multiprocessing.Queue[Any]
    _SimpleQueue = _multiprocessing.SimpleQueue[Any]
else:
    _Queue = _multiprocessing.Queue
    _SimpleQueue = _multiprocessing.SimpleQueue

__all__ = ["Full", "Queue", "SimpleQueue"]


def _context(ctx: BaseContext | None) -> BaseContext:
    from .context import ctx_loky

    return ctx_loky if ctx is None else ctx


class Queue(_Queue):
    """A queue with a buffer and a thread that empties it, see `multiprocessing.Queue`.

    At the end of the process that has created it, items that nobody has read are dropped: the
    processes that could have read them have ended before.

    Parameters
    ----------
    maxsize : int, default 0
        Number of items from which on `put` waits; 0 for no limit.
    reducers : mapping, optional
        Functions by the type that they reduce, see `loky.backend.reduction.register`.
    ctx : multiprocessing.context.BaseContext, optional
        Where locks come from, by default the context "loky".
    """

    _opid: int
    _joincancelled: bool
    _send_bytes: Callable[[Any], None]

    def __init__(
        self, maxsize: int = 0, reducers: Reducers | None = None, ctx: BaseContext | None = None
    ) -> None:
        self._reducers = reducers
        super().__init__(maxsize, ctx=_context(ctx))

    def __getstate__(self) -> Any:
        return super().__getstate__(), self._reducers

    def __setstate__(self, state: Any) -> None:
        state, self._reducers = state
        super().__setstate__(state)

    def put(self, obj: object, block: bool = True, timeout: float | None = None) -> None:
        """Add an item; `Full` is raised if there is no room, at once or after `timeout` seconds."""
        super().put(_StandIn(self._feed_state, obj), block, timeout)

    def _reset(self, after_fork: bool = False) -> None:
        super()._reset(after_fork)  # type: ignore[misc]
        self._feed_state = _FeedState(self._reducers, self._send_bytes)
        self._send_bytes = self._feed_state.send_bytes

    def _start_thread(self) -> None:
        if self._opid == os.getpid():
            self._joincancelled = True  # see the class
        # Hides the method from multiprocessing, which would give it stand-ins, and whose thread
        # would keep the queue alive by it.
        vars(self)["_on_queue_feeder_error"] = self._feed_state.make_handler(weakref.ref(self))
        try:
            super()._start_thread()  # type: ignore[misc]
        finally:
            del vars(self)["_on_queue_feeder_error"]

    def _on_queue_feeder_error(self, e: BaseException, obj: Any) -> None:
        """Say that an item could not be sent; called on the queue's thread, to be overridden."""
        import traceback

        traceback.print_exception(e)


class _FeedState:
    """What the thread of a queue is at: the object that is being sent, and its pickle."""

    def __init__(self, reducers: Reducers | None, send: Callable[[Any], None]) -> None:
        self._reducers = reducers
        self._send = send
        self._obj: object = None
        self._data: memoryview | None = None

    def pickle(self, obj: object) -> None:
        self._obj = obj
        try:
            self._data = dumps(obj, self._reducers)
        except Exception:
            raise
        except BaseException as error:
            # SystemExit, say, from a reducer: would end the thread, and with it the queue.
            raise _Carrier(error) from error

    def send_bytes(self, data: object) -> None:
        """Send the pickle of the object; `data` is that of its stand-in, and of no use."""
        pickle, self._data = self._data, None
        self._send(pickle)
        self._obj = None  # the queue must not keep it alive

    def make_handler(
        self, queue_ref: Callable[[], Queue | None]
    ) -> Callable[[BaseException, Any], None]:
        def handler(error: BaseException, _: object) -> None:
            obj, self._obj, self._data = self._obj, None, None
            queue = queue_ref()
            if queue is not None:
                real = error.error if isinstance(error, _Carrier) else error
                queue._on_queue_feeder_error(real, obj)

        return handler


class _Carrier(Exception):
    """Brings an exception that is none past `except Exception`."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _StandIn:
    """In the buffer of a queue in place of an object."""

    __slots__ = ("_obj", "_state")

    def __init__(self, state: _FeedState, obj: object) -> None:
        self._state = state
        self._obj = obj

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        self._state.pickle(self._obj)
        return object, ()


class SimpleQueue(_SimpleQueue):
    """A queue without buffer or thread: `put` waits until the item is in the pipe.

    Parameters
    ----------
    reducers : mapping, optional
        Functions by the type that they reduce, see `loky.backend.reduction.register`.
    ctx : multiprocessing.context.BaseContext, optional
        Where locks come from, by default the context "loky".
    """

    _wlock: Any
    _writer: Any

    def __init__(self, reducers: Reducers | None = None, ctx: BaseContext | None = None) -> None:
        self._reducers = reducers
        super().__init__(ctx=_context(ctx))

    def __getstate__(self) -> Any:
        return super().__getstate__(), self._reducers

    def __setstate__(self, state: Any) -> None:
        state, self._reducers = state
        super().__setstate__(state)

    def put(self, obj: object) -> None:
        """Add an item."""
        data = dumps(obj, self._reducers)
        if self._wlock is None:  # Windows writes messages to its pipes as a whole
            self._writer.send_bytes(data)
        else:
            with self._wlock:
                self._writer.send_bytes(data)
