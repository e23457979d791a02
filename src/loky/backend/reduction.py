"""Compatibility only: `loky.wire.picklers` under the module path that callers know."""

from __future__ import annotations

import sys

from ..wire import picklers as _picklers
from ..wire.picklers import (
    _dispatch_table as _dispatch_table,
)
from ..wire.picklers import (
    dump,
    dumps,
    get_loky_pickler,
    get_loky_pickler_name,
    loads,
    register,
    set_loky_pickler,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "dump",
    "dumps",
    "get_loky_pickler",
    "get_loky_pickler_name",
    "loads",
    "register",
    "set_loky_pickler",
]


def __getattr__(name: str) -> Any:
    if name == "duplicate" and sys.platform == "win32":
        from multiprocessing.reduction import duplicate

        return duplicate
    return getattr(_picklers, name)
