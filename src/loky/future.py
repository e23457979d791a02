"""Future: a `concurrent.futures.Future` that survives interrupts and can reach a running task.

Rule 1: nothing here may leave a future half-changed when KeyboardInterrupt strikes between two
bytecodes of a user's thread. Hence:

- waiting takes no lock: a waiter publishes a private lock with one append, then looks at the state
  again; whoever settles changes the state first and then releases every published lock;
- the lock that the standard library's functions use (`_condition`) is a C-level RLock, so that
  entering and leaving its `with` block is not interruptible. The standard library's Condition is
  entered by a Python method, which an interrupt can leave with the lock held for ever.

Rule 2: a future knows its pool only as a `Canceller`: a few methods, no imports.
"""

from __future__ import annotations

import threading
from _thread import RLock, allocate_lock
from collections.abc import Callable
from concurrent import futures
from typing import Any, Protocol, TypeVar

from .checks import check_number

T = TypeVar("T")

# A future's lock is held for microseconds; one that is held this long was left so, see `_lock`.
LEFT_TAKEN_SECONDS = 0.05

PENDING = "PENDING"
RUNNING = "RUNNING"
CANCELLED = "CANCELLED"  # only of futures without a pool, until somebody notifies the waiters
CANCELLED_AND_NOTIFIED = "CANCELLED_AND_NOTIFIED"
FINISHED = "FINISHED"
_DONE = frozenset({CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED})


class Canceller(Protocol):
    """What a future needs of its pool."""

    def note_cancelled(self, task: Any) -> None:
        """A task that was still waiting was cancelled."""

    def note_end(self, error: BaseException | None, *, cancelled: bool) -> None:
        """A future is about to be settled by `_settle`."""

    def cancel_sent(self, future: Any, task: Any, *, kill: bool) -> bool:
        """Take back a task that is on its way to a worker; whether that succeeded."""

    def cancel_later(self, task: Any) -> None:
        """Stop a task that is on its way to a worker or runs, without waiting for that."""

    def will_wait(self) -> None:
        """The calling thread is about to block on a future of this pool."""


class Sleepers(list[Any]):
    """Threads that wait for something to become true that then stays true.

    No lock is held while waiting, and an interrupt at any point leaves nothing but a lock that
    nobody waits for: see rule 1.
    """

    __slots__ = ()

    def sleep(self, is_true: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `is_true()`, at most `timeout` seconds; whether it is."""
        sleeper = allocate_lock()
        sleeper.acquire()
        self.append(sleeper)
        try:
            # Looked at after the append: whoever makes it true from here on sees the sleeper.
            if not is_true():
                if timeout is None:
                    sleeper.acquire()
                else:
                    sleeper.acquire(True, min(max(0.0, timeout), threading.TIMEOUT_MAX))
            return is_true()
        finally:
            self.forget(sleeper)

    def forget(self, sleeper: Any) -> None:
        """Take a sleeper off the list. Harmless when it is not there."""
        try:
            self.remove(sleeper)
        except ValueError:
            pass

    def wake(self) -> None:
        """Wake everybody: to be called after it has become true."""
        for sleeper in tuple(self):  # a copy: those who wake up take themselves off the list
            try:
                sleeper.release()
            except RuntimeError:  # released before: its owner is on the way
                pass


class _Condition(RLock):  # type: ignore[misc]  # final for typeshed, not for CPython
    """A lock that can be entered and left without a Python frame, and waited on like a Condition.

    `wait` and `notify_all` are there for code that treats `Future._condition` as the standard
    library's; this module does not use them.
    """

    _sleepers: Sleepers | None = None

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, wait for `notify_all`, take the lock again."""
        if self._sleepers is None:
            self._sleepers = Sleepers()
        sleepers = self._sleepers
        state = self._release_save()  # type: ignore[attr-defined]
        try:
            return sleepers.sleep(lambda: self._sleepers is not sleepers, timeout)
        finally:
            self._acquire_restore(state)  # type: ignore[attr-defined]

    def notify_all(self) -> None:
        """Wake everybody who waits."""
        sleepers, self._sleepers = self._sleepers, None
        if sleepers:
            sleepers.wake()

    def notify(self, n: int = 1) -> None:
        """Wake everybody who waits: nobody may rely on being the only one."""
        self.notify_all()


class Future(futures.Future[T]):
    """The result of a call that a worker process will make.

    Everything that `concurrent.futures.Future` has, and `cancel(kill=True)`. Instances are made
    by executors.
    """

    def __init__(self) -> None:
        self._condition = _Condition()  # type: ignore[assignment]
        self._state = PENDING
        self._result: Any = None
        self._exception: BaseException | None = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Callable[[Any], object]] = []
        self._sleepers = Sleepers()
        self._pool: Canceller | None = None
        self._task: Any = None  # the scheduler's record, while there is one
        self._taken = False  # the pool is sending it, or has sent it

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Future cannot be sent to a worker: it is settled in this process. Send its result()"
        )

    # ------------------------------------------------------------------ asking

    def result(self, timeout: float | None = None) -> T:
        """Wait for the call's result.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most; default: for ever.

        Returns
        -------
        object
            What the call returned.

        Raises
        ------
        concurrent.futures.CancelledError
            The task was cancelled.
        TimeoutError
            It took longer than `timeout`.
        Exception
            Whatever the call raised; `TerminatedWorkerError` if its worker ended meanwhile.
        """
        try:
            error = self.exception(timeout)
            if error is not None:
                raise error
            result: T = self._result
            return result
        finally:
            # Else the exception's traceback would keep this frame, and it the exception.
            error = None
            self = None  # type: ignore[assignment]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the call's end and return what it raised, ``None`` if it returned.

        Raises
        ------
        concurrent.futures.CancelledError
            The task was cancelled.
        TimeoutError
            It took longer than `timeout` (seconds).
        """
        if self._state not in _DONE and not self._wait_done(timeout):
            state = "has not begun" if self._state == PENDING else "is running, and goes on"
            raise futures.TimeoutError(
                f"no result within {timeout} s: the call {state}. future.cancel(kill=True) stops "
                "it, options(timeout=...) limits the time that it may run"
            )
        if self._state != FINISHED:
            raise futures.CancelledError()
        return self._exception

    def _wait_done(self, timeout: float | None) -> bool:
        """Wait for the call's end; whether it came in time."""
        if self._state in _DONE:
            return True
        pool = self._pool  # looked at once: the end takes it away
        if pool is not None:
            pool.will_wait()
        if timeout is not None:
            timeout = check_number("timeout", timeout, " or None")
        return self._sleepers.sleep(self._is_over, timeout)

    def _is_over(self) -> bool:
        return self._state in _DONE

    # ------------------------------------------------------------------ cancelling

    def cancel(self, *, kill: bool = False) -> bool:
        """Try to prevent the call.

        Parameters
        ----------
        kill : bool
            Also if the call is already running: its worker is ended and replaced.

        Returns
        -------
        bool
            Whether the call will certainly not happen, or was stopped: `result` raises
            `CancelledError`. False if it is running (without `kill`) or over.
        """
        return self._cancel(kill=kill, wait=True)

    def _cancel(self, *, kill: bool, wait: bool) -> bool:
        with self._condition:
            if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
                return True
            if self._state == FINISHED:
                return False
            pool = self._pool
            if self._state == RUNNING and not kill:
                return False
            if not self._taken:
                task = self._task
                # The end comes first: a future whose pool has forgotten the task would never have
                # one, a pool that is not told finds the task cancelled when its turn comes.
                self._end(CANCELLED if pool is None else CANCELLED_AND_NOTIFIED, None, None)
                if pool is not None:
                    pool.note_cancelled(task)
        if self._taken:
            if pool is None:
                return False
            if wait:
                return pool.cancel_sent(self, self._task, kill=kill)
            pool.cancel_later(self._task)
            return False
        self._tell()
        return True

    def _stop_soon(self) -> None:
        """Cancel the call, even if it is running, without waiting for that to have happened."""
        pool, task = self._pool, self._task
        if self._taken and pool is not None:
            pool.cancel_later(task)
        else:
            self._cancel(kill=True, wait=False)  # it may be taken just now

    def _end(self, state: str, result: Any, error: BaseException | None) -> None:
        """Change the state for good; with the lock held."""
        self._result = result
        self._exception = error
        self._state = state
        self._task = None
        self._pool = None
        for waiter in self._waiters:
            if state == CANCELLED_AND_NOTIFIED:
                waiter.add_cancelled(self)
            elif state == CANCELLED:
                continue
            elif error is None:
                waiter.add_result(self)
            else:
                waiter.add_exception(self)

    def _tell(self) -> None:
        """Tell everybody about the end; without the lock."""
        if self._sleepers:
            self._sleepers.wake()
        if self._condition._sleepers:  # type: ignore[attr-defined]
            self._condition.notify_all()
        if self._done_callbacks:
            self._invoke_callbacks()

    # ------------------------------------------------------------------ settling: the pool's side

    def _take(self) -> bool:
        """The pool is about to send the task: false if it was cancelled first."""
        locked = self._lock()
        try:
            if self._state in _DONE:
                return False
            self._taken = True
            return True
        finally:
            if locked:
                self._condition.release()

    def _settle(self, result: Any, error: BaseException | None, *, cancel: bool = False) -> None:
        """Give the future its end, once; later ends are ignored. May run callbacks."""
        locked = self._lock()
        try:
            if self._state in _DONE:
                return
            if self._pool is not None:
                self._pool.note_end(error, cancelled=cancel)
            self._end(CANCELLED_AND_NOTIFIED if cancel else FINISHED, result, error)
        finally:
            if locked:
                self._condition.release()
        self._tell()

    def _lock(self) -> bool:
        """Take the lock, or do without.

        `concurrent.futures.wait` and `as_completed` take the locks of all their futures one by one,
        and an interrupt meanwhile leaves them taken for ever. The pool must not hang for that.
        """
        lock = self._condition
        return lock.acquire(False) or lock.acquire(True, LEFT_TAKEN_SECONDS)

    def _finish(self, result: Any) -> None:
        """Settle with a result, with the lock held; somebody has to `_tell` afterwards."""
        if self._state not in _DONE:
            self._end(FINISHED, result, None)

    def set_result(self, result: T) -> None:
        """Settle with a result; for executors and tests, as in `concurrent.futures`."""
        self._refuse_if_done()
        self._settle(result, None)

    def set_exception(self, exception: BaseException | None) -> None:
        """Settle with an exception; for executors and tests, as in `concurrent.futures`."""
        self._refuse_if_done()
        self._settle(None, exception)

    def _refuse_if_done(self) -> None:
        if self._state in _DONE:
            raise futures.InvalidStateError(f"{self._state}: {self!r}")

    def _invoke_callbacks(self) -> None:
        for callback in self._done_callbacks:
            try:
                callback(self)
            except BaseException:
                _log_failed_callback(self)


def _log_failed_callback(future: Future[Any]) -> None:
    """Report a callback that raised where the standard library reports it, and go on."""
    import logging

    logger = logging.getLogger("concurrent.futures")
    try:
        logger.exception("exception calling callback for %r", future)
    except BaseException:  # a handler or a filter of the user's
        pass
