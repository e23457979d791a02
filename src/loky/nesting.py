"""How deep this process stands in a tree of executors, and under which name.

A worker's bootstrap writes it, the executor's constructor reads it; it stands apart because
neither side may import the other.
"""

from __future__ import annotations

import os

depth = 0  # 0: not a worker; 1: a worker of an executor of such a process; ...
DEFAULT_MAX_DEPTH = 10


def max_depth() -> int:
    """The deepest that is allowed, ``$LOKY_MAX_DEPTH`` or 10; 0 for any.

    What is no such number is left out with a warning.
    """
    text = os.environ.get("LOKY_MAX_DEPTH", "").strip()
    if text.isdecimal():
        return int(text)
    if text:
        import warnings

        warnings.warn(
            f"the environment variable LOKY_MAX_DEPTH must be a whole number of at least 0, got "
            f"{text!r}: {DEFAULT_MAX_DEPTH} is used instead",
            stacklevel=3,
        )
    return DEFAULT_MAX_DEPTH
