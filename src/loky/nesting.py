"""How deep this process stands in a tree of executors, and under which name.

A worker's bootstrap writes it, the executor's constructor reads it; it stands apart because
neither side may import the other.
"""

from __future__ import annotations

depth = 0  # 0: not a worker; 1: a worker of an executor of such a process; ...
DEFAULT_MAX_DEPTH = 10
