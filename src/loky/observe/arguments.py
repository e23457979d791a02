"""Arguments of tasks for people: short, and at next to no cost.

Guarantees:

- no code of the user's runs: of what is not a plain value only the type is named;
- a task that goes well pays a look at the types of its arguments, and that only if these are not
  kept as they are: if they are large, or more than plain values. Descriptions are made when
  something has gone wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..wire.pickling import is_plain

# How many arguments are described, and up to how many characters of a string are kept for that.
_MOST_ARGUMENTS = 8
_LONGEST_STRING = 100
_LONGEST_TEXT = 300

_SIMPLE = frozenset({type(None), bool, int, float, complex})
_STRINGS = frozenset({str, bytes})
_SIZED = frozenset({str, bytes, bytearray, list, tuple, dict, set, frozenset})
type_name: Callable[[type], str] = type.__dict__[
    "__qualname__"
].__get__  # whatever a metaclass may say


class _Type(str):
    """Stands for an argument of this type."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{self}>"


def sketch(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """What is kept of arguments that are not: small plain values, and types."""
    if not kwargs and len(args) <= _MOST_ARGUMENTS:
        return [_sketch(value) for value in args], {}, False
    names = list(kwargs)[: max(0, _MOST_ARGUMENTS - len(args))]
    return (
        [_sketch(value) for value in args[:_MOST_ARGUMENTS]],
        {name: _sketch(kwargs[name]) for name in names},
        len(args) + len(kwargs) > _MOST_ARGUMENTS,
    )


def _sketch(value: Any) -> Any:
    kind = type(value)
    if kind in _SIMPLE or (kind in _STRINGS and len(value) <= _LONGEST_STRING):
        return value
    name = type_name(kind)
    return _Type(f"{name} of {len(value)}" if kind in _SIZED else name)


def describe(args: Sequence[Any], kwargs: Mapping[str, Any], more: bool = False) -> str:
    """Arguments for people, shortened."""
    from reprlib import Repr

    short = Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    parts: list[str] = []
    for name, value in [*((None, value) for value in args), *kwargs.items()]:
        if len(parts) == _MOST_ARGUMENTS:
            more = True
            break
        if type(value) is not _Type and not is_plain(value):
            value = _sketch(value)
        try:
            text = short.repr(value)
        except ValueError:  # an integer of too many digits, somewhere inside
            text = repr(_Type(type(value).__name__))
        parts.append(text if name is None else f"{name}={text}")
    text = ", ".join([*parts, "..."] if more else parts)
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."


def arguments_of(task: Any) -> str | None:
    """What can still be said about a task's arguments."""
    try:
        if task.args is not None:
            return describe(task.args, task.kwargs)
        kept = getattr(task, "sketch", None)
        return None if kept is None else describe(*kept)
    except Exception:  # a courtesy: nothing else may fail for it
        return None
