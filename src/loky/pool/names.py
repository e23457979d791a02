"""Names of tasks, for people.

Rule: never fails, and never asks an object for more than a text: it may be the user's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ..chunks import ForEach
from ..observe.arguments import type_name
from .model import Task


def name_of(fn: Any) -> str:
    """A task's name for people: the function's qualified name, with its module.

    Never fails. What wraps a function is recognized by its type: some objects, mocks for instance,
    have a `func` as they have every attribute, and so has that one, without an end.
    """
    name = _text_in(fn, "__qualname__")
    for _ in range(_MOST_WRAPPERS):
        if name is not None or not issubclass(type(fn), _WRAPPERS):
            break
        fn = fn.func
        name = _text_in(fn, "__qualname__")
    if name is None:
        return type_name(type(fn))
    module = _text_in(fn, "__module__")
    return name if module in (None, "__main__", "builtins") else f"{module}.{name}"


_WRAPPERS = (partial, ForEach)
_MOST_WRAPPERS = 8


def _text_in(value: Any, attribute: str) -> str | None:
    try:
        text = getattr(value, attribute, None)
    except Exception:  # the user's objects may raise anything
        return None
    return text if type(text) is str else None


def name_of_task(task: Task) -> str:
    """A task's name for people: the one it was given, or its function's."""
    control = task.control
    return (control.options.name if control is not None else None) or name_of(task.fn)
