"""How many deaths are too many.

Deaths of workers that start or idle are nobody's task's fault. The pool replaces such workers, but
not without end: it follows the restart intensity of an Erlang supervisor
(https://www.erlang.org/doc/system/sup_princ.html#maximum-restart-intensity). Deaths that a task is
to blame for are not counted: a hundred bad inputs in a row must not break the pool for good ones.
"""

from __future__ import annotations

from collections import deque

# Deaths outside of tasks: more than this many within this time are too many.
INTENSITY_SECONDS = 10.0
INTENSITY_BASE = 5
INTENSITY_EACH = 2
# This many failed starts with no success in between are too many as well, however slow they are.
FAILED_STARTS_BASE = 3
FAILED_STARTS_EACH = 2


class Intensity:
    """Counts deaths; see the top of the file."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()
        self._failed_starts = 0

    def started(self) -> None:
        """A worker has started all right."""
        self._failed_starts = 0

    def too_many(self, max_workers: int, now: float, *, starting: bool) -> str | None:
        """Count a death of a worker that was starting or idle: why it was one too many, if so."""
        deaths = self._deaths
        deaths.append(now)
        while deaths[0] < now - INTENSITY_SECONDS:
            deaths.popleft()
        self._failed_starts += starting
        if self._failed_starts >= max(FAILED_STARTS_BASE, FAILED_STARTS_EACH * max_workers):
            return f"{self._failed_starts} workers in a row ended while starting"
        if len(deaths) > INTENSITY_BASE + INTENSITY_EACH * max_workers:
            return (
                f"{len(deaths)} workers ended while starting or idle within "
                f"{INTENSITY_SECONDS:g} seconds"
            )
        return None
