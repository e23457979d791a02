"""The one place where `loky.backend` chooses between operating systems.

`platform` is the module named for this system. Both have the functions and constants of `_posix`,
with the same meaning; everything else in this package is the same everywhere, but for the two files
that start a process (`popen_loky_posix`, `popen_loky_win32`), whose names are upstream's.
"""

from __future__ import annotations

import sys

if sys.platform == "win32":
    from . import _win32 as platform
else:
    from . import _posix as platform

__all__ = ["platform"]
