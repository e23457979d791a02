"""Numbers that callers give: every option and argument that is one is checked here.

What is a number says the number itself (`__index__`, `__float__`), so numpy's are as welcome as
Python's. Not welcome are bools and texts: they are mistakes.

What does not belong here: what a number means, and its default.
"""

from __future__ import annotations

from typing import Any


def check_whole(
    name: str, value: Any, *, least: int | None = None, too_small: str = "", or_none: str = ""
) -> int:
    """A whole number, no smaller than `least`.

    Parameters
    ----------
    name : str
        What it is called in the error.
    value : object
        What was given.
    least : int, optional
        The smallest that is accepted.
    too_small : str
        The error's whole text, where callers compare it.
    or_none : str
        " or None" where the caller accepts that.

    Raises
    ------
    TypeError, ValueError
        It is not such a number.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number{or_none}, got {value!r}")
    number = int(value.__index__())
    if least is not None and number < least:
        raise ValueError(too_small or f"{name} must be >= {least}, got {number}")
    return number


def check_number(name: str, value: Any, or_none: str = "") -> float:
    """A number of seconds, of any size and sign, as the standard library takes it.

    Raises
    ------
    TypeError
        It is no number.
    """
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number of seconds{or_none}, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        return float("inf" if value > 0 else "-inf")


def check_seconds(name: str, value: Any, or_none: str = "", *, positive: bool = False) -> float:
    """A number of seconds: finite or not, but not negative, and not nothing if `positive`.

    Raises
    ------
    TypeError, ValueError
        It is not such a number.
    """
    seconds = check_number(name, value, or_none)
    if not (seconds > 0 if positive else seconds >= 0):
        raise ValueError(
            f"{name} must be {'more than' if positive else 'at least'} 0 seconds, got {value!r}"
        )
    return seconds
