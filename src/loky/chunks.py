"""A chunk of a `map` as one task.

It stands apart because workers import it: `mapping` would bring `concurrent.futures` along.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` would cost every worker several ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class ForEach:
    """In a worker: calls a function for each item of a chunk.

    `func`, as a `functools.partial` has it: reports then name the user's function, not this.
    """

    __slots__ = ("func",)

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func

    def __call__(self, chunk: list[tuple[Any, ...]]) -> list[Any]:
        return [self.func(*arguments) for arguments in chunk]

    def __reduce__(self) -> Any:
        return ForEach, (self.func,)
