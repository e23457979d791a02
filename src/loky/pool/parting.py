"""Ends workers: asks, insists, kills. A row of steps per worker, taken by the leader's clock.

A worker that was asked to leave has nothing to do any more, and `LEAVE_SECONDS` to do it. One that
is stopped because of the task it runs shows its stack first (if that is wanted), then gets SIGTERM,
its grace, and SIGKILL with its whole process group. SIGKILL is repeated for as long as the process
is there: a descendant may have joined the group meanwhile. One whose channel is closed cannot say
anything any more: it is leaving, or its task has closed all descriptors, and gets as long to end.

What does not belong here: who has to go, and why.
"""

from __future__ import annotations

from collections.abc import Callable

from .port import Port

# A worker that was asked to leave and has nothing to do, or has closed its channel, is ended after
# this many seconds: its exit handlers, or threads that a task left running, may never finish.
LEAVE_SECONDS = 10.0
# A stack is read when it has not grown for this long, and at the latest after the second, in
# seconds. A dump takes well under a millisecond once the signal is delivered, and the kernel
# delivers it at once to a process that runs or sleeps; only a stopped one, or one in the middle of
# a system call that cannot be interrupted, never answers.
STACK_QUIET_SECONDS = 5e-3
STACK_SECONDS = 0.25


class Parting:
    """See the top of the file. Nobody is leaving if `steps` is empty."""

    def __init__(self) -> None:
        self.steps: dict[Port, tuple[float, Callable[[Port, float], None]]] = {}
        self._grace: dict[Port, float] = {}  # of those that are being stopped
        self._stacks_by: dict[Port, float] = {}  # until when to wait for a stack

    def leave(self, port: Port, now: float) -> None:
        """The worker was asked to leave."""
        self.steps[port] = now + LEAVE_SECONDS, self.kill

    def hung_up(self, port: Port, now: float) -> None:
        """The worker's channel is closed, for whatever reason."""
        if port not in self.steps:
            self.steps[port] = now + LEAVE_SECONDS, self._kill_cut_off

    def _kill_cut_off(self, port: Port, now: float) -> None:
        port.cut_off = True
        self.kill(port, now)

    def kill(self, port: Port, now: float) -> None:
        """End the worker now."""
        assert port.process is not None
        self.steps[port] = now + LEAVE_SECONDS, self.kill
        port.process.kill()

    def stop(self, port: Port, now: float, grace: float, *, stacks: bool) -> None:
        """End the worker politely.

        Parameters
        ----------
        port : Port
            Whose worker.
        now : float
            The time, in seconds.
        grace : float
            Seconds between SIGTERM and SIGKILL; 0: SIGKILL at once.
        stacks : bool
            Have it show what it does first; `port.last_stacks` will hold it.
        """
        self._grace[port] = grace
        if stacks and port.request_stacks():
            self._stacks_by[port] = now + STACK_SECONDS
            self.steps[port] = now + STACK_QUIET_SECONDS, self._look
        else:
            self._terminate(port, now)

    def _look(self, port: Port, now: float) -> None:
        text = port.stacks()
        if (text and text == port.last_stacks) or now >= self._stacks_by[port]:
            self._terminate(port, now)
        else:
            port.last_stacks = text
            self.steps[port] = now + STACK_QUIET_SECONDS, self._look

    def _terminate(self, port: Port, now: float) -> None:
        assert port.process is not None
        grace = self._grace[port]
        if grace > 0:
            self.steps[port] = now + grace, self.kill
            port.process.terminate()
        else:
            self.kill(port, now)

    def forget(self, port: Port) -> None:
        """The worker is gone."""
        self.steps.pop(port, None)
        self._grace.pop(port, None)
        self._stacks_by.pop(port, None)

    def next(self) -> float | None:
        """When the next step is due."""
        return min((due for due, _ in self.steps.values()), default=None)

    def act(self, now: float) -> None:
        """Take the steps that are due."""
        for port, (due, step) in list(self.steps.items()):
            if due <= now:
                step(port, now)
