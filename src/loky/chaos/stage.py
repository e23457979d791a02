"""What the actors of an episode share: the executors, and the book of what befell every call.

Rule 1: every call goes through `Stage.submit` or `Stage.map`, so the book has all of them.

Rule 2: no lock. Each entry is written by one thread at a time, and read when all is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from itertools import count, islice
from typing import Any

from . import tasks
from .actions import Call, Map
from .judge import CANCELLED, ERROR, SKIPPED, VALUE, Circumstances, Fate, Outcome

# Calls that callbacks make have the number of the call whose callback it was, plus this.
SECOND = 1_000_000
SLOW_CALLBACK_SECONDS = 0.03


class Stage:
    """See the top of the file.

    Parameters
    ----------
    path : str
        Where tasks leave their marks.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.executor: Any = None  # what takes calls now, see `put_on`
        self.executors: list[Any] = []
        self.fates: dict[int, Fate] = {}
        self.futures: dict[int, Future[Any]] = {}
        self.facts = Circumstances()
        self.history: list[str] = []
        self.problems: list[str] = []
        self._steps = count(1)
        self._since = time.monotonic()
        self.step = 0

    def note(self, who: str, text: str) -> None:
        """Write a line of history."""
        self.history.append(f"{time.monotonic() - self._since:8.4f} {who}: {text}")
        self.moved()

    def moved(self) -> None:
        """Something has happened: this is what the watchdog looks at."""
        self.step = next(self._steps)

    def let_go(self) -> None:
        """Keep no executor."""
        self.executor = None
        self.executors = []

    def put_on(self, executor: Any) -> None:
        """From now on, this executor takes the calls."""
        if executor is not self.executor:
            self.executor = executor
            self.executors.append(executor)

    def request(self, call: Call) -> tuple[Any, Callable[..., Any], tuple[Any, ...]]:
        """How to make a call: executor, function, arguments."""
        given = tasks.argument(call.number, call.kind, call.seconds, call.size)
        spec = call.number, call.kind, call.seconds, call.size
        arguments: tuple[Any, ...] = (self.path, *spec, given)
        executor = self._view(call)
        if call.kind == "closure":
            return executor, _closure(arguments), ()
        return executor, tasks.work, arguments

    def submit(self, call: Call, callback: str = "count") -> Future[Any] | None:
        """Submit a call; its future, ``None`` if it was refused."""
        fate = self.fates[call.number] = Fate(call)
        executor, function, arguments = self.request(call)
        try:
            future: Future[Any] = executor.submit(function, *arguments)
        except RuntimeError as error:
            fate.refused = error.with_traceback(None)  # which would keep the executor
            return None
        self.futures[call.number] = future
        future.add_done_callback(partial(self._told, fate, callback))
        return future

    def _view(self, call: Call) -> Any:
        """The executor, with the options of this call."""
        options = dict(call.options)
        if "retry_on" in options:
            named = [tasks.ChaosError if c == "ChaosError" else c for c in options["retry_on"]]
            options["retry_on"] = tuple(named)
        return self.executor.options(**options) if options else self.executor

    def has_seen(self, number: int) -> bool:
        """Whether this call has a future by now, or was refused."""
        fate = self.fates.get(number)
        return fate is not None and (number in self.futures or fate.refused is not None)

    def cancel(self, number: int, kill: bool) -> bool | None:
        """Cancel a call; the answer, ``None`` if it was refused and has no future."""
        future: Any = self.futures.get(number)
        if future is None:
            return None
        answer: bool = future.cancel(kill=True) if kill else future.cancel()
        self.fates[number].cancels.append((kill, answer))
        return answer

    def wait(self, number: int) -> None:
        """Wait for the end of a call, whatever it is."""
        future = self.futures.get(number)
        if future is not None:
            try:
                future.exception()
            except CancelledError:
                pass

    def map(self, what: Map) -> int:
        """Map over calls, take results, and leave; how many results came."""
        fates = [Fate(call, "map") for call in what.calls]
        size = what.chunksize
        for position, fate in enumerate(fates):
            first = position // size * size
            fate.chunk = what.calls[first : first + size]
        self.fates.update((fate.call.number, fate) for fate in fates)
        columns = zip(*[(c.number, c.kind, c.seconds, c.size) for c in what.calls], strict=True)
        results = None
        taken = 0
        try:
            results = self._view(what.calls[0]).map(
                tasks.work,
                [self.path] * len(fates),
                *columns,
                chunksize=size,
                buffersize=what.buffersize,
                ordered=what.ordered,
                on_error=what.on_error,
            )
            if not what.take:
                return 0  # dropped, not closed: this must cancel nothing
            for result in islice(results, what.take):
                self._took(what, fates, taken, result)
                taken += 1
                self.moved()
            if what.take == len(fates):
                self._all_taken(what, fates, taken, next(results, None))
        except Exception as error:
            self._ended_by(error, what, fates, taken)
        finally:
            if results is not None and what.take:
                results.close()
        return taken

    def _took(self, what: Map, fates: list[Fate], position: int, result: Any) -> None:
        """A map has handed out a result, or (with "collect") an exception."""
        if isinstance(result, BaseException):
            if what.ordered:  # else nobody knows whose it is
                fates[position].outcome = _failure(result)
            return
        if what.ordered and what.on_error != "skip":
            fates[position].outcome = Outcome(VALUE, tasks.digest(result))
        else:
            self.took_unordered(fates, result)

    def took_unordered(self, fates: list[Fate], result: Any) -> None:
        """A map has handed out a result that tells whose it is."""
        fate = self.fates[result[0]]
        if fate not in fates or fate.outcome is not None:
            self.problems.append(f"a map has handed out {result} that was not its, or again")
        fate.outcome = Outcome(VALUE, result)

    def _all_taken(self, what: Map, fates: list[Fate], taken: int, more: Any) -> None:
        if more is not None:
            self.problems.append(f"a map of {len(fates)} calls has more results: {more!r}")
        if what.on_error == "skip":
            for fate in fates:
                if fate.outcome is None:
                    fate.outcome = Outcome(SKIPPED)
        elif taken != len(fates):
            self.problems.append(f"a map of {len(fates)} calls has {taken} results")

    def _ended_by(self, error: Exception, what: Map, fates: list[Fate], taken: int) -> None:
        from ..errors import ShutdownExecutorError

        if isinstance(error, ShutdownExecutorError) and self.facts.closing:
            return  # it could not submit the rest
        if taken == len(fates) or (what.on_error != "raise" and not self.facts.breakable):
            self.problems.append(f"after {taken} results a map raised {error!r}")
        elif what.ordered:
            fates[taken].outcome = _failure(error)

    def _told(self, fate: Fate, callback: str, future: Future[Any]) -> None:
        fate.told += 1
        fate.outcome = outcome_of(future)
        self.moved()
        number = fate.call.number
        before = self.fates.get(number - 1)
        if callback == "submit":
            self.submit(Call(number + SECOND, "quick"))
        elif callback == "slow":
            time.sleep(SLOW_CALLBACK_SECONDS)
        elif callback == "wait" and before is not None and before.call.kind != "stuck":
            self.wait(number - 1)
        elif callback == "cancel" and before is not None:
            self.cancel(number - 1, kill=False)
        elif callback == "raise":
            raise tasks.ChaosError("a callback that raises")


def _closure(arguments: tuple[Any, ...]) -> Callable[[], Any]:
    """A function that travels by value."""
    return lambda: tasks.work(*arguments)


def _failure(error: BaseException) -> Outcome:
    return Outcome(CANCELLED if isinstance(error, CancelledError) else ERROR, error=error)


def outcome_of(future: Future[Any]) -> Outcome:
    """How a future that is done has ended."""
    if future.cancelled():
        return Outcome(CANCELLED)
    error = future.exception()
    if error is not None:
        return Outcome(ERROR, error=error)
    return Outcome(VALUE, tasks.digest(future.result()))
