"""How much memory this worker uses, looked at after tasks; it asks to be replaced if that is much.

Guarantees:

- without limits, the pool's default, a look costs some microseconds and comes once a second at
  most, the first after the first task. What is in use then is the reference: a worker that has
  grown by more than ``$LOKY_MAX_MEMORY_LEAK_SIZE`` bytes (300 MB) since then leaks, and is to be
  replaced. Only what a garbage collection does not free counts;
- with limits of the user's there is a look after every task: above the soft one the worker asks to
  be replaced and goes on meanwhile; above the hard one it leaves without reading anything more, or
  its next task would pay for what this one has kept;
- garbage in cycles does not pile up to more than a tenth of the leak's size.

Anonymous memory counts, shared mappings do not. Where it cannot be measured, garbage is collected
once a second instead.

Not imported before the first look: the first result need not wait for it.
"""

from __future__ import annotations

import gc
import os
import sys
from time import perf_counter

from .. import memory
from ..wire import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds between looks, where there are no limits.
INTERVAL = 1.0
DEFAULT_LEAK_BYTES = 300e6
QUIT = -1.0


class Footprint:
    """See the top of the file.

    Parameters
    ----------
    send : callable
        Sends a frame to the parent: kind, bytes in use, cause.
    limits : tuple of (int or None, int or None)
        The soft and the hard limit, in bytes.
    """

    def __init__(
        self, send: Callable[[int, int, bytes], None], limits: tuple[int | None, int | None]
    ) -> None:
        self._send = send
        self._soft, self._hard = limits
        self._leak = _leak_bytes()
        self._pid = os.getpid()
        self._reference: int | None = None
        self._collected = 0  # in use after the last garbage collection
        self._asked = False
        self._next_look = 0.0  # for leaks

    def look(self) -> float:
        """Look what is in use: when to look again, on the clock of `perf_counter`, or `QUIT`."""
        used = memory.anonymous(self._pid)
        if used is None:
            gc.collect()
            return perf_counter() + _interval()
        if self._hard is not None and used > self._hard:
            used = self._collect()
            if used > self._hard:
                self._send(protocol.RECYCLE, used, protocol.QUITS)
                return QUIT
        if self._soft is not None and used > self._soft and not self._asked:
            used = self._collect()
            if used > self._soft:
                self._ask(used, protocol.TOO_LARGE)
        now = perf_counter()
        if now >= self._next_look:
            self._look_for_leak(used)
            self._next_look = now + _interval()
        return self._next_look if self._soft is None and self._hard is None else 0.0

    def _look_for_leak(self, used: int) -> None:
        if self._reference is None:
            self._reference = self._collected = used
        elif not self._asked:
            allowed = self._reference + self._leak
            if used > allowed or used > self._collected + self._leak / 10:
                used = self._collect()
                if used > allowed:
                    self._ask(used, protocol.GROWS)

    def _ask(self, used: int, cause: bytes) -> None:
        self._asked = True
        self._send(protocol.RECYCLE, used, cause)

    def _collect(self) -> int:
        gc.collect()
        self._collected = memory.anonymous(self._pid) or 0
        return self._collected


def _interval() -> float:
    """Seconds between looks, which tasks may have changed in the manner of loky 3."""
    module = sys.modules.get("loky.process_executor")
    chosen = vars(module).get("_MEMORY_LEAK_CHECK_DELAY") if module is not None else None
    return chosen if isinstance(chosen, (int, float)) else INTERVAL


def _leak_bytes() -> float:
    """``$LOKY_MAX_MEMORY_LEAK_SIZE``: of this process, as a pool may set it for its workers."""
    try:
        return float(os.environ["LOKY_MAX_MEMORY_LEAK_SIZE"])
    except (KeyError, ValueError):
        return DEFAULT_LEAK_BYTES
