"""Tells users how things ended: results, errors, callbacks, whatever may run code of theirs.

Guarantees:

- one ending at a time, as `concurrent.futures` has it: callbacks need not be prepared for each
  other;
- but one that waits for another future of the pool is overtaken at once, and one that takes longer
  than `PATIENCE` (it may be waiting for somebody who waits for a future) is overtaken then. So
  nobody waits for ever, and at most a thread per `PATIENCE` seconds of work is used;
- nothing is over before the last ending has been told, also by a thread that lost the lead in the
  middle of it.

What does not belong here: who leads meanwhile, see `watch`.
"""

from __future__ import annotations

from _thread import get_ident
from collections import deque
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

from .watch import TICK

# A callback of a second is long enough to be told from one that waits for somebody else.
PATIENCE = 1.0


class Telling:
    """See the top of the file. For the leader, but for `will_wait`.

    Parameters
    ----------
    as_user : callable
        Runs what may be the user's code; whether the calling thread still leads afterwards.
    wake : callable
        Has the leader look again.
    """

    def __init__(
        self, as_user: Callable[[Callable[..., Any], Any, Any], bool], wake: Callable[[], None]
    ) -> None:
        self._as_user = as_user
        self._wake = wake
        self.endings: deque[tuple[Callable[..., None], Any, Any]] = deque()
        self.tellers: dict[int, float] = {}  # threads in an ending; when they may be overtaken

    def __bool__(self) -> bool:
        """Whether there is anything that has not been told yet."""
        return bool(self.endings or self.tellers)

    def tell(self, now: float) -> bool:
        """Tell what can be told now; false if somebody else leads now."""
        endings = self.endings
        if self.tellers and self.next() > now:
            return True
        me = get_ident()
        self.tellers[me] = now + PATIENCE
        leads = True
        while endings and leads:
            function, one, two = endings.popleft()
            leads = self._as_user(function, one, two)
            if monotonic() - now > TICK:
                break  # so that many short callbacks do not add up to a long one
        self.tellers.pop(me, None)
        if not leads:
            self._wake()  # it may be this that the leader waits for
        return leads

    def next(self) -> float:
        """When the next ending may be told; infinite if there is none."""
        if not self.endings:
            return inf
        return max(list(self.tellers.values()), default=-inf)

    def will_wait(self) -> None:
        """The calling thread, of whatever kind, is about to wait for a future of the pool."""
        me = get_ident()
        if me in self.tellers:
            self.tellers[me] = -inf
            self._wake()

    def will_wait_for_the_end(self) -> None:
        """The calling thread is about to wait until everything is over: without its ending."""
        self.tellers.pop(get_ident(), None)

    def tell_all(self) -> None:
        """Tell everything here and now, whoever waits."""
        while self.endings:
            function, one, two = self.endings.popleft()
            function(one, two)
