"""Owns the worker processes: one thread watches, the scheduler decides, this file carries out.

Rule 1: the scheduler and all records here are touched by the *leader* only, see `watch`. Other
threads, finalizers and signal handlers do two things: append to `_inbox` and wake the poller. Both
are single steps that KeyboardInterrupt cannot split.

Rule 2: user code (reducers, unpickling, callbacks) runs through `_as_user`, during which somebody
else may take over the lead. So no user code can stand between a death or a timer and its handling
for more than a tick or two, and a callback may wait for another future of the same pool.

Hence Rule 3: after `_as_user`, nothing that was read from `self` before it may be relied on, and
whoever has lost the lead posts its outcome to the inbox.

Rule 4: nobody waits here for a process without also watching it end: every wait of the leader is
the poller's.
"""

from __future__ import annotations

import weakref
from _thread import RLock
from collections import deque
from collections.abc import Callable
from itertools import count
from math import inf
from time import monotonic
from typing import Any, TypeVar

from ..future import Future, Sleepers
from ..observe.chronicle import Chronicle
from ..options import PoolOptions
from ..task_options import TaskOptions
from . import lifetime, outcome
from .asking import Asking
from .crew import Crew, Gone
from .lending import Lending
from .limits import Limits
from .model import (
    KILL,
    RECALL,
    REFUSED,
    RETIRE,
    SEND,
    SETTLE,
    START,
    STOP,
    Broken,
    Control,
    Task,
)
from .names import name_of_task
from .poller import open_poller
from .port import Port, WorkerSettings
from .receiving import Receiving
from .scheduler import Scheduler
from .sending import Sending
from .telling import Telling
from .watch import Watch

# The longest wait that is asked of the system, in seconds.
LONGEST_SECONDS = 86400.0

NEW, OPEN, CLOSING, CLOSED, ABANDONED = range(5)

T = TypeVar("T")


class Supervisor:
    """The pool behind an executor. See the rules at the top of the file.

    Parameters
    ----------
    options : PoolOptions
        Validated options.
    """

    def __init__(self, options: PoolOptions) -> None:
        self.options = options
        self.state = NEW
        self.scheduler = Scheduler(
            options.max_workers,
            idle_timeout=options.timeout,
            max_tasks_per_child=options.max_tasks_per_child,
            break_on_crash=options.crash_policy == "break",
        )
        self.settings = WorkerSettings(options)
        self._limits = Limits(options, self.scheduler)
        self._relay: Any = None  # see `observe.relay`
        self._poller: Any = None
        self._asleep = False
        self._inbox: deque[Any] = deque()  # tasks, and (function, *arguments) for the leader
        self._telling = Telling(self._as_user, self._wake_anyway)
        self._endings = self._telling.endings  # to be told to users
        self.ids = count(1)  # of tasks; taking one is one step
        if options.relay:
            from ..observe.relay import Relay

            self._relay = Relay(options.relay, name_of_task, self._endings)
            self.settings.relay_by(self._relay)
        self._sending = Sending(
            options, self.scheduler, self.settings, self._endings, self._as_user, self._apply
        )
        self._lending = Lending(self.scheduler, self._inbox, self._wake_anyway)
        self.chronicle = Chronicle(self.scheduler, self._endings)
        self._crew = Crew(self.scheduler, self.settings, self.chronicle, self._relay)
        self._receiving = Receiving(
            self.scheduler,
            self.chronicle,
            self._crew,
            self._sending,
            self._relay,
            self._endings,
            self.post,
        )
        self._watch = Watch(self._lead, self.is_closed, self._report, self._panic)
        self._starting = RLock()  # re-entrant: finalizers shut pools down
        self._ended = Sleepers()
        self._asking = Asking(
            self.scheduler, self._ended, self.is_closed, self.post, self.will_wait
        )
        self._owner: Any = None
        lifetime.register(self)

    # ------------------------------------------------------------------ from any thread

    def submit(
        self,
        future: Future[Any],
        fn: Any,
        args: Any,
        kwargs: Any,
        options: TaskOptions | None = None,
    ) -> None:
        """Take a call in. The append is the one step that counts; the rest may be interrupted."""
        task = Task(next(self.ids), fn, args, kwargs, future)
        if options is not None:
            task.control = Control(options)
        future._task = task
        future._pool = self
        try:
            # The leader has to know at once of a task whose time it is to watch.
            if self._asleep and options is None and self._lending.feed(task, self._receiving.fed):
                return
            self._inbox.append(task)
            if self._asleep:
                self._asleep = False
                self._poller.wake()
        except BaseException:
            self._wake_anyway()
            raise
        if self.state != OPEN:
            self._not_open()

    def submit_many(self, tasks: list[Task]) -> None:
        """Take several calls in at once, in one uninterruptible step."""
        for task in tasks:
            task.future._task = task
            task.future._pool = self
        try:
            self._inbox.extend(tasks)
            if self._asleep:
                self._poller.wake()
        except BaseException:
            self._wake_anyway()
            raise
        if self.state != OPEN:
            self._not_open()

    def post(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have the leader call this, soon."""
        try:
            self._inbox.append((function, *arguments))
            if self._asleep:
                self._poller.wake()
        except BaseException:
            self._wake_anyway()
            raise

    def ask(self, question: Callable[[], T]) -> T:
        """What the leader answers; what this thread finds itself, where no leader is at work."""
        if self.state not in (OPEN, CLOSING) or self._watch.is_here():
            return question()
        return self._asking.ask(question)

    def _wake_anyway(self) -> None:
        """After an interrupt: `_asleep` does not say whether the wake-up has been sent."""
        if self._poller is not None:
            self._poller.wake()

    def _not_open(self) -> None:
        """Something was submitted to a pool whose threads are not running, yet or any more."""
        if self.state == NEW:
            with self._starting:
                if self.state == NEW:
                    # After an interrupt all this is repeated. Members sort themselves out, but
                    # one that is there already waits at the first poller.
                    if self._poller is None:
                        self._poller = open_poller()
                    self._crew.poller = self._poller
                    self._watch.start_member()
                    self.state = OPEN
        elif self.state >= CLOSED:
            self._refuse_late()

    def _refuse_late(self) -> None:
        """Settle what came in after the leader's last look."""
        while self._inbox:
            try:
                event = self._inbox.popleft()
            except IndexError:
                break
            if type(event) is Task:
                outcome.settle(event, self.broken or REFUSED)

    @property
    def broken(self) -> Broken | None:
        """Why nothing can run any more, if that is so."""
        return self.scheduler.broken

    def refuse_elsewhere(self) -> None:
        """Raise if this is the child of a fork, and the pool its parent's."""
        if self.state == ABANDONED:
            from ..errors import ShutdownExecutorError

            raise ShutdownExecutorError(
                "this process was forked from the one that owns the executor: its futures will be "
                "settled there, not here. Make an executor of this process's own"
            )

    @property
    def refusing(self) -> bool:
        """Whether nothing can be submitted: shut down, broken, abandoned or leaving."""
        return self.state > OPEN or self.broken is not None

    def resize(self, max_workers: int) -> None:
        """Change the number of workers."""
        self.post(self._resize, max_workers)

    def _resize(self, max_workers: int) -> None:
        self.scheduler.resize(max_workers)
        self.chronicle.pool_resized(max_workers)

    def let_idle_go(self) -> None:
        """Have idle workers leave at once, from now on; work brings them back."""
        self.post(setattr, self.scheduler, "idle_timeout", 0.0)

    def shutdown(self, *, cancel: bool = False, kill: bool = False, polite: bool = False) -> None:
        """Take no more tasks; close when the present ones are settled, or now.

        Parameters
        ----------
        cancel : bool
            Cancel what no worker has read.
        kill : bool
            End the workers now.
        polite : bool
            With SIGTERM first, and SIGKILL a little later.
        """
        if self.state == NEW:
            with self._starting:
                if self.state == NEW and self._poller is None:
                    self.state = CLOSED
                    self._refuse_late()
                    self.settings.descriptors.close()
                    return
            self._not_open()  # an interrupt struck while it was being opened: a leader may be there
        if self.state == OPEN:
            self.state = CLOSING
        if self.state == CLOSING:
            self.post(self._shutdown, cancel, kill, polite)

    def _shutdown(self, cancel: bool, kill: bool, polite: bool) -> None:
        self._crew.polite = polite
        self.scheduler.shutdown(cancel=cancel, kill=kill)

    def close_with(self, owner: object) -> None:
        """Shut down when this object is collected.

        The reference is kept here and not by its referent: if that is collected as a part of a
        cycle, callbacks of references within the cycle are not called.
        """
        self._owner = weakref.ref(owner, lambda _: self.shutdown())

    def wait_closed(self, timeout: float | None = None) -> bool:
        """Wait until every task is settled and every worker gone."""
        if self.is_closed():
            return True
        self.will_wait()
        self._telling.will_wait_for_the_end()
        return self._ended.sleep(self.is_closed, timeout)

    def is_closed(self) -> bool:
        """Whether nothing is left of the pool."""
        return self.state >= CLOSED

    def has_begun(self) -> bool:
        """Whether anything was ever submitted."""
        return self.state != NEW

    def ports(self) -> list[Port]:
        """The workers that have not ended."""
        return self._crew.alive()

    def pids(self) -> list[int]:
        """Process ids of the workers that have not ended."""
        return [port.process.pid for port in self.ports() if port.process]

    # ------------------------------------------------------------------ for futures (Canceller)

    def note_cancelled(self, task: Any) -> None:
        """See `future.Canceller`."""
        self._inbox.append((self.scheduler.cancelled, task))
        self.chronicle.task_ended(None, cancelled=True)

    def note_end(self, error: BaseException | None, *, cancelled: bool) -> None:
        """See `future.Canceller`."""
        self.chronicle.task_ended(error, cancelled=cancelled)

    def cancel_sent(self, future: Any, task: Any, *, kill: bool) -> bool:
        """See `future.Canceller`."""
        if task is None or self.state >= CLOSED:
            return bool(future.cancelled())
        if self._watch.is_here():
            # A finalizer struck the leader in the middle of its work: it cannot wait for itself.
            self._asking.cancel_later(task, kill=kill)
            return False
        self._asking.cancel(future, task, kill=kill)
        return bool(future.cancelled())

    def cancel_later(self, task: Any) -> None:
        """See `future.Canceller`."""
        if task is not None and self.state < CLOSED:
            self._asking.cancel_later(task, kill=True)

    def will_wait(self) -> None:
        """See `future.Canceller`."""
        self.refuse_elsewhere()
        self._watch.will_wait()
        if self._telling.tellers:
            self._telling.will_wait()

    # ------------------------------------------------------------------ leading

    def _as_user(
        self,
        function: Callable[[Any, Any], Any],
        one: Any,
        two: Any,
        then: Callable[[Any, Any], None] | None = None,
    ) -> bool:
        """Run code that may call the user's; whether this thread still leads afterwards.

        `then` gets `one` and what the function returned, and is called by whoever leads.
        """
        if self._receiving.untold:
            self._receiving.tell()
        leads, result = self._watch.as_user(function, one, two)
        if then is not None:
            if leads:
                then(one, result)
            else:
                self.post(then, one, result)
        return leads

    def _lead(self) -> None:
        """Watch and work until the pool is closed or somebody else has taken over."""
        scheduler = self.scheduler
        waiting = scheduler.waiting
        inbox = self._inbox
        poller = self._poller
        lending = self._lending
        limits = self._limits
        crew = self._crew
        sending = self._sending
        receiving = self._receiving
        asking = self._asking
        relay = self._relay
        while True:
            now = monotonic()
            while inbox:
                event = inbox.popleft()
                if type(event) is Task:
                    scheduler.submit(event)
                else:
                    event[0](*event[1:])
                event = None  # this frame lives as long as the pool: it must keep no task alive
            if waiting.aside and sending.encoding is None:
                waiting.bring_back()
            scheduler.dispatch(now)
            if scheduler.decisions:
                self._apply(now)
            if sending.outbox and not sending.send_out():
                return
            if receiving.untold:
                receiving.tell()
            if relay is not None and not self._write_relayed(now):
                return
            if self._endings and not self._telling.tell(now):
                return
            if asking.cancels:
                asking.answer_cancels()
            if scheduler.closed and not (sending.outbox or self._telling or inbox):
                if self.chronicle.pool_closed():
                    continue
                if relay is None or relay.may_close():
                    self._close()
                    return
            due = scheduler.deadline()
            timeout = 0.0 if scheduler.decisions else self._timeout(due)
            if waiting.aside and sending.encoding is None and waiting.may_bring_back():
                timeout = 0.0
            # Whoever borrows a worker lets the leader sleep; and relaying has to know at any time
            # who runs what.
            if relay is None and not limits.needed:
                lending.offer()
            self._asleep = True
            ready = poller.poll(0.0 if inbox else timeout)
            self._asleep = False
            lending.withdraw()
            now = monotonic()
            gone = None
            for what in ready:
                if type(what) is Port:
                    receiving.read(what, now)
                elif type(what) is Gone:
                    gone = [what.port] if gone is None else [*gone, what.port]
                else:  # a stream of the relay's
                    what.read()
            if gone:  # only now: what is closed for them may have been reported in the same batch
                for port in gone:
                    receiving.reap(port, now)
            # One waiter runs while the rest is done here. Several would fight for the interpreter
            # with the sending below, one switch per task, so they are told after that.
            if len(receiving.untold) == 1:
                receiving.tell()
            if due is not None and due <= now:
                scheduler.tick(now)
            if limits.needed:
                limits.look(crew.ports.values(), now)
            if crew.parting.steps:
                crew.parting.act(now)
            if crew.unwatched:
                for port in list(crew.unwatched):
                    receiving.reap(port, now)

    def _timeout(self, due: float | None) -> float | None:
        """How long the poller may wait, in seconds, if the scheduler wants to be asked then."""
        crew = self._crew
        if crew.parting.steps or crew.unwatched:
            step = crew.next()
            due = step if due is None or (step is not None and step < due) else due
        if self._endings:
            due = min(inf if due is None else due, self._telling.next())
        if self._limits.needed:
            look = self._limits.due(monotonic())
            due = look if due is None or (look is not None and look < due) else due
        stuck = None if self._relay is None else self._relay.deadline()
        if stuck is not None:
            due = stuck if due is None or stuck < due else due
        # Bounded: a system's clock cannot count as far as a user may write.
        return None if due is None else min(max(0.0, due - monotonic()), LONGEST_SECONDS)

    # ------------------------------------------------------------------ what the scheduler decided

    def _apply(self, now: float) -> None:
        scheduler = self.scheduler
        crew = self._crew
        outbox = self._sending.outbox
        while scheduler.decisions:
            decisions = scheduler.decisions[:]
            scheduler.decisions.clear()
            for decision in decisions:
                what = decision[0]
                if what == SEND:
                    outbox.append((decision[1], decision[2], decision[2].turn))
                elif what == SETTLE:
                    self._receiving.conclude(outcome.settle, decision[1], decision[2])
                elif what == START:
                    crew.start(decision[1], now)
                elif what == RECALL:
                    crew.recall(decision[1], now)
                elif what == RETIRE:
                    crew.retire(decision[1], now)
                elif what == KILL:
                    crew.kill(decision[1], now)
                elif what == STOP:
                    crew.stop(decision[1], decision[2], now)
            scheduler.dispatch(now)

    def _break(self, reason: str, cause: Any) -> None:
        self.scheduler.break_(Broken(reason, cause))

    # ------------------------------------------------------------------ work that may be the user's

    def _write_relayed(self, now: float) -> bool:
        """Write what workers have said; false if somebody else leads now."""
        batch = self._relay.look(now)
        return not batch or self._as_user(self._relay.write, batch, None, self._relay.done)

    # ------------------------------------------------------------------ the end

    def _close(self) -> None:
        self.state = CLOSED
        self._refuse_late()
        self._poller.close()
        self.settings.descriptors.close()
        if self._relay is not None:
            self._relay.close()
        self._ended.wake()

    def _report(self, error: BaseException) -> None:
        """What deals with the user's code has failed itself, which it should not."""
        self.post(self._break, f"internal error: {error!r}", error)

    def _panic(self, error: BaseException) -> None:
        """Something here is wrong: settle what can be settled rather than let anybody wait."""
        self.scheduler.broken = Broken(f"internal error: {error!r}", error)
        self.state = CLOSED
        self._asleep = False  # from now on, `submit` refuses
        self._lending.withdraw()
        self._crew.kill_all()
        if self._relay is not None:
            self._relay.let_go()
        self._telling.tell_all()
        tasks = list(self.scheduler.waiting)
        for event in list(self._inbox):  # tasks, or what is to be done about one
            tasks += filter(_is_task, event if type(event) is tuple else (event,))
        for worker in list(self.scheduler.workers.values()):
            tasks += worker.line  # also of those that have no process yet
        for task in tasks:
            outcome.settle(task, self.scheduler.broken)
        self._receiving.tell()
        self._ended.wake()

    def abandon(self) -> None:
        """In the child of a fork: this pool belongs to the parent."""
        if self.state == CLOSED:
            return
        self.state = ABANDONED
        self._inbox.clear()
        self._crew.abandon()
        self.settings.descriptors.close()
        if self._relay is not None:
            self._relay.close()
        if self._poller is not None:
            self._poller.abandon()


def _is_task(part: Any) -> bool:
    return type(part) is Task
