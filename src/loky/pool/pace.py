"""How long tasks and starts take lately, and what follows: how far ahead of a worker to send.

Guarantees:

- one odd task counts for little, a few in a row for all;
- the window holds about `AHEAD_SECONDS` of work ahead of the task that runs: enough to hide the
  parent's latency (about 0.2 ms a round trip), little enough to recall.

`Scheduler.result` works out `duration` in place, as a call per task is dear, and calls `set_window`
when the duration has left the range that the window is right for.

What does not belong here: what is done with the figures. No clock: durations are passed in.
"""

from __future__ import annotations

from math import inf

# About this much work, in seconds, is kept in a worker's channel ahead of the task it runs.
AHEAD_SECONDS = 1e-3
# One task ahead is worth having up to this duration; beyond it the gap is below two per cent.
AHEAD_WORTH_SECONDS = 10e-3
MAX_AHEAD = 64
# A task's duration changes what is expected of the next ones no more than one of this length would.
OUTLIER_FACTOR = 10.0
OUTLIER_SECONDS = 1e-4
# A starting worker keeps the task it was promised this long, or this many times a usual start.
SLOW_START_SECONDS = 1.0
SLOW_START_FACTOR = 4.0


class Pace:
    """See the top of the file.

    Parameters
    ----------
    can_recall : bool
        Whether the channels can take back unread tasks; else nothing is sent ahead.

    Attributes
    ----------
    duration : float or None
        What tasks take lately, in seconds; ``None``: none has ended yet.
    usual_start : float or None
        What starts take lately, in seconds; ``None``: no worker has been ready yet.
    window : int
        How many tasks a ready worker may hold, the running one included.
    shortest, longest : float
        The durations for which the window is right, without and with the bound.
    """

    def __init__(self, *, can_recall: bool) -> None:
        self.duration: float | None = None
        self.usual_start: float | None = None
        self.window = 1
        self.shortest, self.longest = inf, -inf
        self._can_recall = can_recall

    def set_window(self) -> None:
        """Set the window for the present duration of tasks, and the durations it is right for."""
        seconds = self.duration
        assert seconds is not None
        if seconds > AHEAD_WORTH_SECONDS or not self._can_recall:
            ahead = 0
            self.shortest, self.longest = AHEAD_WORTH_SECONDS, inf
        elif seconds * MAX_AHEAD <= AHEAD_SECONDS:
            ahead = MAX_AHEAD
            self.shortest, self.longest = -inf, AHEAD_SECONDS / MAX_AHEAD
        else:
            ahead = max(1, int(AHEAD_SECONDS / seconds))
            self.shortest = AHEAD_SECONDS / (ahead + 1)
            self.longest = AHEAD_SECONDS / ahead if ahead > 1 else AHEAD_WORTH_SECONDS
        self.window = 1 + ahead

    def started(self, seconds: float) -> None:
        """A worker was ready after this long."""
        usual = self.usual_start
        self.usual_start = seconds if usual is None else usual + (seconds - usual) * 0.3

    def slow_start(self) -> float:
        """A worker that has been starting for this long, in seconds, is slow."""
        return max(SLOW_START_SECONDS, SLOW_START_FACTOR * (self.usual_start or 0.0))
