"""A chunk of a `map` as one task.

It stands apart because workers import it: `mapping` would bring `concurrent.futures` along.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` would cost every worker several ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# What becomes of a chunk when one of its items raises.
FAIL, STOP, GO_ON = range(3)


class ForEach:
    """In a worker: calls a function for each item of a chunk.

    `func`, as a `functools.partial` has it: reports then name the user's function, not this.

    Parameters
    ----------
    func : callable
        The user's function.
    on_error : int
        If an item raises: `FAIL`, the chunk as a whole does; `STOP`, what came before is kept;
        `GO_ON`, the others are called all the same.
    """

    __slots__ = ("func", "on_error")

    def __init__(self, func: Callable[..., Any], on_error: int) -> None:
        self.func = func
        self.on_error = on_error

    def __call__(self, chunk: list[tuple[Any, ...]]) -> list[Any] | Mixed:
        if self.on_error == FAIL:
            return [self.func(*arguments) for arguments in chunk]
        results: list[Any] = []
        errors: dict[int, bytes] = {}
        for arguments in chunk:
            try:
                results.append(self.func(*arguments))
            except BaseException as error:
                from .worker.loop import pack_exception

                errors[len(results)] = pack_exception(error)
                results.append(None)
                if self.on_error == STOP:
                    break
        return Mixed(results, errors) if errors else results

    def __reduce__(self) -> Any:
        return ForEach, (self.func, self.on_error)


class Mixed:
    """The results of a chunk of which some items failed.

    Parameters
    ----------
    results : list
        By position in the chunk, ``None`` in the place of a failed one.
    errors : dict of int to bytes
        Packed exceptions (`protocol.pack_error`), by position.
    """

    __slots__ = ("errors", "results")

    def __init__(self, results: list[Any], errors: dict[int, bytes]) -> None:
        self.results = results
        self.errors = errors

    def __reduce__(self) -> Any:
        return Mixed, (self.results, self.errors)
