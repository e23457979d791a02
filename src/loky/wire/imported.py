"""Modules of others that are looked at only if they are there.

`sys.modules` also has those that another thread is just importing: they lack what stands further
down in their source. Whoever looks at a module that it does not import itself asks here.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any


def imported(name: str) -> Any:
    """The module of that name if it has been imported completely, else ``None``."""
    module = sys.modules.get(name)
    return None if module is None or is_being_imported(module) else module


def is_being_imported(module: ModuleType) -> bool:
    """Whether some thread, perhaps this one, is in the middle of importing this module."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))
