"""Who watches: one thread leads, others stand by to take over when user code keeps it.

The leader holds the *baton*. Before it runs anything of the user's it lays the baton down
(`as_user`). If that takes longer than a tick, a parked thread, the *guardian*, picks the baton up
and leads; whoever returns to find the baton gone is not the leader any more, and parks.

Guarantees:

- at any time at most one thread leads, and if none does, one will within about two ticks;
- in the usual case, user code that is quick, nothing is handed from thread to thread;
- while no user code runs, no thread wakes up to count ticks.

Assumption: `lead` returns only when it has lost the baton or everything is over.

What does not belong here: what is watched. This file knows neither workers nor tasks.
"""

from __future__ import annotations

import threading
from _thread import allocate_lock, get_ident
from collections.abc import Callable
from typing import Any

# How long user code may keep the watch, in seconds. A handover costs two thread switches (about
# 0.1 ms each on a loaded machine), so it should be rare; a death noticed 10 ms late is no harm.
TICK = 5e-3


class Watch:
    """See the top of the file.

    Parameters
    ----------
    lead : callable
        What the leader does.
    is_over : callable
        Whether all threads are to end.
    report : callable
        Called with an exception that escaped from user code's side, which should catch its own.
    panic : callable
        Called with an exception that `lead` should not have raised.
    """

    def __init__(
        self,
        lead: Callable[[], None],
        is_over: Callable[[], bool],
        report: Callable[[BaseException], None],
        panic: Callable[[BaseException], None],
    ) -> None:
        self._lead = lead
        self._is_over = is_over
        self._report = report
        self._panic = panic
        self._baton = allocate_lock()
        self._alarm = allocate_lock()
        self._alarm.acquire()
        self._leader = 0
        self._in_user_code = False
        self._section = 0  # counts stretches of user code
        self._armed = False  # a guardian is counting ticks
        self._hurry = False
        self._parked = 0

    def start_member(self) -> None:
        """Start a thread that leads if nobody does, and stands by otherwise."""
        threading.Thread(target=self._member, name="loky-pool", daemon=True).start()

    def is_here(self) -> bool:
        """Whether the calling thread leads, and is not in user code."""
        return self._leader == get_ident() and not self._in_user_code

    def will_wait(self) -> None:
        """The calling thread is about to wait: if it leads, have a guardian take over at once."""
        if self._in_user_code and self._leader == get_ident():
            self._hurry = True
            self._arm()

    def as_user(self, function: Callable[[Any, Any], Any], one: Any, two: Any) -> tuple[bool, Any]:
        """Run code that may call the user's.

        Returns
        -------
        (bool, object)
            Whether this thread still leads, and what the function returned (``None`` if it
            raised, which was reported).
        """
        self._section += 1
        self._in_user_code = True
        if not self._armed:
            self._arm()
        self._baton.release()
        outcome = None
        try:
            outcome = function(one, two)
        except BaseException as error:
            self._report(error)
        if self._baton.acquire(False):
            self._take()
            return True, outcome
        return False, outcome

    def _take(self) -> None:
        self._leader = get_ident()
        self._in_user_code = False

    def _member(self) -> None:
        try:
            while not self._is_over():
                if self._baton.acquire(False):
                    self._take()
                    if not self._parked:
                        try:
                            self.start_member()
                        except RuntimeError:  # too late in the interpreter's life
                            pass
                    self._lead()
                else:
                    self._stand_by()
        except BaseException as error:  # a bug in this library: nobody must wait for ever
            self._panic(error)
            raise
        finally:
            self._arm()  # one guardian after the other leaves

    def _stand_by(self) -> None:
        """Be a guardian until the baton can be had or all is over."""
        self._parked += 1
        try:
            while not self._is_over():
                # The leader says that it runs user code before it looks whether somebody counts,
                # and here it is the other way round, so one of the two sees the other.
                if not self._in_user_code:
                    self._alarm.acquire()  # no wake-ups while nothing happens
                self._armed = True
                section = self._section
                while not self._is_over():
                    if not self._hurry:
                        self._alarm.acquire(True, TICK)
                    if self._in_user_code and (self._hurry or self._section == section):
                        self._hurry = self._armed = False
                        return  # to take the baton
                    if self._section == section:
                        self._armed = False
                        break
                    section = self._section
        finally:
            self._parked -= 1

    def _arm(self) -> None:
        self._armed = True
        try:
            self._alarm.release()
        except RuntimeError:  # somebody else has just done it
            pass
