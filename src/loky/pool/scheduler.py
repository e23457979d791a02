"""Which task goes to which worker, and what a death means: a pure state machine.

Rule 1: everything that affects the fate of a task is decided in this file. What becomes of the
workers for it (states, buckets, heirs) is kept by `roster`, and only this file tells it.

Rule 2: no I/O, no threads, no locks, no clock, no user code. Whoever drives it calls one method
per event, passes the time in, and then carries out `decisions`, oldest first, and empties the list.
That is why the same object can run a real pool, a hypothesis state machine and a simulator with
virtual time.

Rule 3: work per event is constant: it depends neither on the number of queued tasks nor on the
number of workers (the roster keeps them in buckets by load). Deaths, resizes, shutdowns and looks
at the clock may cost one pass over what they concern.

Invariants, checked by the tests after every step:

- every submitted task is settled exactly once;
- a task is in the hands of at most one worker, and is given to another only if it was certainly
  never read, or if its options allow another attempt;
- a task whose time was up does not outlive its worker;
- no worker is given more tasks than its window holds;
- no more than `max_workers` workers have tasks, but for those that a shrinking left at work;
- while tasks wait, a worker is alive or starting, or a start is due, or the pool is broken;
- a worker that could take a waiting task has it;
- a worker that has to leave for good has an heir, or one is due; it leaves when the heir is ready;
- no worker is given more tasks than `max_tasks_per_child`;
- nothing is decided about a worker that has ended;
- once `tick` has done what is due, the next deadline lies in the future;
- after shutdown, once every task is settled and every worker gone, `closed` is true.

What the decisions and verdicts are stands in `model.py`.
"""

from __future__ import annotations

from typing import Any

from ..task_options import TIMEOUT
from .deadlines import Deadlines
from .intensity import Intensity
from .model import (
    ASSIGNED,
    BREAKS,
    CANCEL,
    CANCELLED,
    DELAYED,
    DONE,
    DRAINING,
    GONE,
    HELD,
    PENDING,
    READY,
    REFUSED,
    RETIRING,
    SEND,
    SETTLE,
    STARTING,
    STOP,
    Broken,
    Lost,
    Task,
    Worker,
)
from .pace import OUTLIER_FACTOR, OUTLIER_SECONDS, Pace
from .roster import SLOW_HEAD_SECONDS, Roster
from .waiting import Waiting

# The system refused a process: try again after this long. Whoever holds what is lacking
# (processes, descriptors, memory) may let go of it.
START_AGAIN_SECONDS = 0.1


class Scheduler:
    """The state machine; see the rules at the top of the file.

    Parameters
    ----------
    max_workers : int
        How many workers there may be at a time, at least 1.
    idle_timeout : float or None
        Seconds after which a worker without work leaves; ``None``: never.
    max_tasks_per_child : int or None
        Tasks after which a worker is replaced; ``None``: never.
    break_on_crash : bool
        Whether the death of any worker breaks the pool, as the standard library has it.
    can_recall : bool
        Whether the channels can take back unread tasks. Without it nothing is sent ahead: of what
        waits in the channel of a worker that is stopped, nobody could say whether it was read.
    """

    def __init__(
        self,
        max_workers: int,
        *,
        idle_timeout: float | None = None,
        max_tasks_per_child: int | None = None,
        break_on_crash: bool = False,
        can_recall: bool = True,
    ) -> None:
        self.idle_timeout = idle_timeout
        self.break_on_crash = break_on_crash
        self.can_recall = can_recall
        self.decisions: list[tuple[Any, ...]] = []
        self.waiting = Waiting()
        self.broken: Broken | None = None
        self.closing = False
        self.pressed = False  # tasks are to be given out only while none runs: memory is short
        self.killed = False  # by a shutdown: whatever comes in late is refused
        self.outstanding = 0  # submitted and not settled
        self.retried = 0  # attempts that were not a task's first
        self._assigned = 0  # in some worker's line
        self._pace = Pace(can_recall=can_recall)
        self._roster = Roster(
            max_workers, max_tasks_per_child, self._pace, self.decisions, can_recall=can_recall
        )
        # The roster's, at hand.
        self.workers = self._roster.workers
        self._buckets = self._roster.buckets
        self._idle = self._roster.buckets[0]  # in the order of becoming idle
        self._look_at: float | None = None  # when to look for slow heads
        self._deadlines = Deadlines()
        self._intensity = Intensity()

    # ------------------------------------------------------------------ what can be asked

    @property
    def closed(self) -> bool:
        """Nothing is left to do and nothing will come."""
        return (self.closing or self.broken is not None) and not (
            self.outstanding or self.workers or self.decisions
        )

    @property
    def max_workers(self) -> int:
        """How many workers there may be at a time."""
        return self._roster.max_workers

    @property
    def busy(self) -> int:
        """How many workers have tasks."""
        return self._roster.busy

    @property
    def window(self) -> int:
        """How many tasks a ready worker may hold, the running one included."""
        return self._pace.window

    def deadline(self) -> float | None:
        """When `tick` should be called at the latest, on the clock of the `now` arguments."""
        at = self._look_at
        again = self._roster.start_after
        if again is not None and (
            self.waiting.first
            or self._roster.live < self._roster.floor
            or self._roster.succession.wanted
        ):
            at = again if at is None or again < at else at
        if self._deadlines.heap:
            due = self._deadlines.next()
            at = due if at is None or (due is not None and due < at) else at
        if self.waiting.delayed:
            due = self.waiting.due()
            at = due if at is None or (due is not None and due < at) else at
        idle = self._idle
        if self.idle_timeout is not None and idle and not self.waiting.first:
            # The first is the next to go.
            due = next(iter(idle)).idle_since + self.idle_timeout
            at = due if at is None or due < at else at
        if self._roster.awaited and self._roster.live > len(self._roster.starting):
            for worker in self._roster.awaited:
                if worker.line:
                    due = worker.started + self._pace.slow_start()
                    at = due if at is None or due < at else at
                    break
        return at

    # ------------------------------------------------------------------ events: tasks

    def submit(self, task: Task) -> None:
        """Take a task in; `dispatch` hands it out."""
        self.outstanding += 1
        if self.broken is not None:
            self._settle(task, self.broken)
        elif self.closing:
            self._settle(task, REFUSED)
        elif task.control is None and not self.waiting.level:  # the usual way of `add`
            task.state = PENDING
            self.waiting.first.append(task)
        else:
            self.waiting.add(task)

    def cancel(self, task: Task) -> None:
        """Settle the task as cancelled if no worker has read it; else leave it alone.

        The answer is the SETTLE decision, or its absence once a recall has been answered.
        """
        if task.state in (PENDING, DELAYED):
            self.waiting.settled(task)
            self._settle(task, CANCELLED)
        elif task.state == ASSIGNED:
            task.cancel_wanted = True
            self._roster.recall(_worker_of(task))
        elif task.state == HELD:
            task.cancel_wanted = True

    def cancelled(self, task: Task) -> None:
        """The driver settled a waiting task itself: forget it."""
        if task.state in (PENDING, DELAYED):
            self.waiting.settled(task)
            self._finish(task)

    def stop(self, task: Task, reason: str = CANCEL) -> None:
        """End the worker that runs the task; what that had not read goes on elsewhere.

        Parameters
        ----------
        task : Task
            If no worker has read it, it is settled as cancelled for the reason `CANCEL`, and left
            alone for others.
        reason : {"cancel", "timeout", "memory"}
            What the task is to be settled for when the worker is gone, or tried again. The first
            reason holds, but for `CANCEL`.
        """
        if task.state == ASSIGNED:
            worker = _worker_of(task)
            if reason == CANCEL:
                task.cancel_wanted = True
            elif task.stop_wanted is not None:
                return
            task.stop_wanted = reason
            if self.can_recall:
                # First make sure that nothing else is read: the worker may be just about to go on
                # to its next task, which must not die in this one's place. See `recalled`.
                self._roster.recall(worker)
            elif worker.line[0] is task and worker.state != RETIRING:
                self._stop_now(worker, task)
        elif reason == CANCEL:
            self.cancel(task)

    def dropped(self, task: Task) -> None:
        """An assigned task turned out to be unsendable and was settled by the driver."""
        if task.state == ASSIGNED:
            worker = _worker_of(task)
            self._unassign(worker, task)
            self._finish(task)
            self._roster.place(worker)
        else:
            self.cancelled(task)

    def set_aside(self, task: Task) -> None:
        """The driver cannot pickle this assigned task now: its worker is free for others."""
        worker = _worker_of(task)
        self._unassign(worker, task)
        if task.cancel_wanted:  # and nobody has read it
            self._settle(task, CANCELLED)
        else:
            task.stop_wanted = None
            self.waiting.set_aside(task)
        self._roster.place(worker)

    def sent(self, worker: Worker, task: Task, now: float) -> None:
        """The driver has put the task into the worker's channel. Needed for those with options."""
        if worker.was_ready and worker.line[0] is task:
            self._deadlines.start(task, now)

    def hold(self, worker: Worker, task: Task, now: float, seconds: float) -> None:
        """Like `result`, but it may be tried again: `retry` or `over` says what comes of it."""
        self.result(worker, task, now, seconds)
        self.outstanding += 1
        task.on_wire = False
        task.stop_wanted = None
        task.state = HELD

    def over(self, task: Task) -> None:
        """A task that was held is settled."""
        self._finish(task)

    def retry(self, task: Task, now: float) -> None:
        """A task that was held is to be tried again; its `control.attempts` say how it went."""
        if self.broken is not None:
            self._settle(task, self.broken)
        elif self.killed:
            self._settle(task, REFUSED)
        else:
            self._try_again(task, now)

    def result(self, worker: Worker, task: Task, now: float, seconds: float) -> None:
        """The worker finished this task of its line, which took that long to run."""
        line = worker.line
        buckets = self._buckets
        buckets[len(line)].pop(worker, None)
        head = line.popleft()
        if head is not task:  # not over an honest channel; one odd reply must not break the rest
            line.remove(task)
            line.appendleft(head)
        self._assigned -= 1
        self.outstanding -= 1
        task.state = DONE
        task.worker = None
        worker.head_since = now
        worker.slow = False
        worker.tasks_done += 1
        pace = self._pace
        known = pace.duration
        if known is None:
            pace.duration = seconds
            pace.set_window()
        else:
            # One odd task (descheduled, say) must not close the window for the next fifty; a row of
            # long ones closes it within a few, and what waits behind a long one is taken back.
            most = OUTLIER_FACTOR * known + OUTLIER_SECONDS
            known += ((seconds if seconds < most else most) - known) * 0.2
            pace.duration = known
            if not pace.shortest < known <= pace.longest:
                pace.set_window()
        if worker.budget >= 0:
            self._roster.now = now
            self._roster.foresee(worker)
        if line:
            if line[0].control is not None and line[0].on_wire:
                self._deadlines.start(line[0], now)
            if worker.state == READY and not worker.recalling:
                if worker.budget:
                    buckets[len(line)][worker] = None
                elif len(line) == 1:
                    # It is at its last task: let a replacement start meanwhile. Not before: what
                    # is sent ahead may be taken back, and then it has more to do.
                    self._roster.unlive(worker, DRAINING)
            return
        self._roster.busy -= 1
        worker.idle_since = now
        worker.busy_seconds += now - worker.busy_since
        if not worker.recalling:
            if worker.state == READY and worker.budget:
                buckets[0][worker] = None
            elif worker.state != RETIRING:
                self._roster.retire(worker)

    # ------------------------------------------------------------------ events: workers

    def ready(self, worker: Worker, now: float) -> None:
        """The worker has started and run its initializer."""
        worker.was_ready = True
        worker.slow = False
        worker.head_since = worker.idle_since = worker.busy_since = now
        if worker.line and worker.line[0].on_wire:
            self._deadlines.start(worker.line[0], now)
        if worker.state == STARTING:
            self._intensity.started()
            self._roster.now = now
            self._roster.ready(worker)

    def recalled(self, worker: Worker, unread: list[Task], now: float) -> None:
        """Answer to RECALL: these tasks, in order, were taken back before it read them."""
        worker.recalling = False
        line = worker.line
        head = line[0] if line else None
        for task in reversed(unread):
            self._take_back(worker, task)
        if line and line[0] is not head and worker.was_ready:
            self._deadlines.start(line[0], now)  # it read this one while we took back others
        # What is left has been read. All but the last of it is finished, its results on the way.
        if line and line[-1].stop_wanted and worker.state != RETIRING:
            self._stop_now(worker, line[-1])
        else:
            self._roster.place(worker)
        for task in line:
            if task is not worker.doomed and task.stop_wanted != CANCEL:
                task.cancel_wanted = False  # too late, and that is what the caller is told

    def recycle(self, worker: Worker, cause: str, *, quits: bool = False) -> None:
        """Replace the worker for good; until its successor is ready, it goes on as before.

        Parameters
        ----------
        worker : Worker
            Which one. Nothing is done if it is to leave anyhow.
        cause : str
            Why, for those who ask.
        quits : bool
            It leaves by itself, now, and reads nothing more.
        """
        roster = self._roster
        if quits:
            worker.quits = True
            worker.cause = worker.cause or cause
            if worker.state == READY:
                roster.let_go(worker)
            elif worker.state == DRAINING and not worker.lent:
                roster.recall(worker)  # what it has not read must not wait for its exit
        elif worker.state == READY and worker.cause is None:
            worker.cause = cause
            if worker.heir is not None and worker.heir.state == READY:
                roster.let_go(worker)
            else:
                roster.foresee(worker)

    def lost(self, worker: Worker, unread: list[Task], now: float, exit: Any = None) -> None:
        """The process has ended, every result that it sent was reported, `unread` was taken back.

        Parameters
        ----------
        worker : Worker
            Whose process it was.
        unread : list of Task
            What it certainly did not read, in order.
        now : float
            The time, in seconds.
        exit : object
            How it ended; passed on in the verdict.
        """
        state = worker.state
        if state == GONE:
            return
        self._roster.now = now
        if worker.quits:
            unread = [task for task in worker.line if task is not worker.doomed]
            if state == DRAINING:
                state = RETIRING
        for task in reversed(unread):
            self._take_back(worker, task)
        # At most one task was read and not answered: the head. What came behind it was still in
        # the channel, even where the channel cannot show it (DESIGN 5).
        for task in list(worker.line)[:0:-1]:
            self._take_back(worker, task)
        culprit = worker.line[0] if worker.line else None
        self._roster.unlive(worker, GONE)
        del self.workers[worker.id]
        # Whoever carries out decisions need not ask each time whether the worker is still there.
        self.decisions[:] = [d for d in self.decisions if d[0] == SETTLE or d[1] is not worker]
        lost = Lost(worker, exit, max(0.0, now - worker.head_since))
        breaks = self.break_on_crash and state != RETIRING and self.broken is None
        if culprit is not None:
            self._unassign(worker, culprit)
            if culprit.stop_wanted is not None:
                lost.cause = culprit.stop_wanted
            if lost.cause == CANCEL:
                self._settle(culprit, CANCELLED)
            elif breaks:
                self.waiting.put_back(culprit)  # shares the verdict of all others
            elif not self._retried(culprit, lost, now):
                self._settle(culprit, lost)
        if state == RETIRING or self.broken is not None:
            return
        if breaks:
            self.break_(Broken(BREAKS, lost))
        elif culprit is None:
            reason = self._intensity.too_many(
                self._roster.max_workers, now, starting=state == STARTING
            )
            if reason is not None:
                self.break_(Broken(reason, lost))

    def start_failed(self, worker: Worker, now: float, exit: Any = None) -> None:
        """No process could be made for it; `exit` says why and is passed on in the verdict.

        As long as there are others, the pool goes on with them and tries again when there is more
        to do than they can take.
        """
        roster = self._roster
        roster.start_after = now + START_AGAIN_SECONDS
        elder = worker.elder
        if elder is not None:
            roster.unlive(worker, RETIRING)
            if elder.cause is not None:
                roster.let_go(elder)  # there is no room for both: cold, then
        elif roster.draining or roster.live > (worker.state == STARTING):
            roster.unlive(worker, RETIRING)  # so that it does not count as a death
            roster.lower_floor()
        self.lost(worker, list(worker.line), now, exit)

    # ------------------------------------------------------------------ events: the pool

    def resize(self, max_workers: int) -> None:
        """Change the number of workers: more at once, fewer as they finish what they run."""
        if self.closing or self.broken is not None:
            self._roster.max_workers = max_workers
        else:
            self._roster.resize(max_workers)

    def shutdown(self, *, cancel: bool = False, kill: bool = False) -> None:
        """Take no more tasks and close once the present ones are settled.

        Parameters
        ----------
        cancel : bool
            Also settle as cancelled what no worker has read.
        kill : bool
            Also end the workers now and settle everything as refused.
        """
        self.closing = True
        self._roster.close()
        if kill:
            self.killed = True
            self._settle_everything(REFUSED)
            self._roster.kill_all()
        elif cancel:
            waiting = list(self.waiting)
            self.waiting.clear()
            for task in waiting:
                self._settle(task, CANCELLED)
            for worker in self.workers.values():
                for task in worker.line:
                    task.cancel_wanted = True
                if worker.line:
                    self._roster.recall(worker)

    def break_(self, broken: Broken) -> None:
        """Nothing can run any more: every task gets this verdict, every worker is ended."""
        if self.broken is None:
            self.broken = broken
            self._settle_everything(broken)
            self._roster.kill_all()

    def tick(self, now: float) -> None:
        """Do what is due by now."""
        roster = self._roster
        roster.now = now
        if self._look_at is not None and now >= self._look_at:
            self._look_at = None
            roster.take_back_behind_slow_heads()
        for task in self._deadlines.expired(now):
            self.stop(task, TIMEOUT)
        self.waiting.end_delays(now)
        if roster.start_after is not None and now >= roster.start_after:
            roster.start_after = None  # `dispatch` starts who is needed
        if self.idle_timeout is not None and not self.waiting.first:
            roster.dismiss_idle(self.idle_timeout)
        if roster.awaited and roster.live > len(roster.starting):
            roster.give_up_slow_starts()

    # ------------------------------------------------------------------ lending

    def lendable(self) -> Worker | None:
        """An idle worker that a submitter may send a task to by itself, if there is one."""
        idle = self._idle
        if (
            not idle
            or self.waiting.first
            or self.closing
            or self._roster.busy >= self._roster.max_workers
        ):
            return None
        worker = next(reversed(idle))
        return worker if worker.budget < 0 else None

    def lend(self, worker: Worker) -> None:
        """A submitter has taken the worker: `borrowed` or `returned` will follow."""
        self._idle.pop(worker, None)
        worker.lent = True

    def returned(self, worker: Worker) -> None:
        """The submitter has sent nothing."""
        worker.lent = False
        self._roster.place(worker)

    def borrowed(self, worker: Worker, task: Task, now: float) -> None:
        """The submitter has sent this task, which was not submitted otherwise."""
        worker.lent = False
        self.outstanding += 1
        if self.broken is not None:
            self._settle(task, self.broken)
        elif self.killed:
            self._settle(task, REFUSED)
        else:
            # Also if the worker is to leave, or gone: then the task will turn out to be unread.
            worker.head_since = worker.busy_since = now
            worker.line.append(task)
            self._roster.busy += 1
            self._assigned += 1
            task.state = ASSIGNED
            task.worker = worker
            task.turn += 1
            self._roster.enter(worker)

    # ------------------------------------------------------------------ handing out

    def dispatch(self, now: float) -> None:
        """Hand out what can be handed out, start who is needed. Call it after every event."""
        if self.broken is not None:
            return
        roster = self._roster
        roster.now = now
        waiting = self.waiting
        if waiting.first or waiting.others or roster.live < roster.floor:
            roster.ensure(self.outstanding)
            self._hand_out(now)
        if waiting.first and roster.live < roster.max_workers:
            roster.ensure(self.outstanding)
        if self._assigned > roster.busy and self._look_at is None and self.can_recall:
            self._look_at = now + SLOW_HEAD_SECONDS
        # Not if all that is left to do is in somebody's hands: an heir would do nothing.
        if roster.succession.wanted and not (self.closing and self.outstanding == self._assigned):
            roster.start_heirs()
        if self.closing and not self.outstanding:
            for worker in self.workers.values():
                if worker.state != RETIRING and not worker.lent:
                    roster.retire(worker)

    def _hand_out(self, now: float) -> None:
        """Give waiting tasks to workers that have room."""
        roster = self._roster
        waiting = self.waiting
        pending = waiting.first
        buckets = self._buckets
        low = 1
        # A worker gets its share of a long queue in one go: each message to a worker that sleeps
        # costs a switch, so one to each in turn would cost one for every task.
        share = len(pending) // max(1, roster.live) - 1
        run = 0
        most, window = (1, 1) if self.pressed else (roster.max_workers, self._pace.window)
        worker: Any = None
        while pending or waiting.others:
            if waiting.others:
                pending = waiting.serve()
            task = pending[0]
            if task.state != PENDING:  # cancelled while it waited
                pending.popleft()
                waiting.dead -= 1
                continue
            if run:
                run -= 1
                self._assign(worker, pending.popleft())
                if waiting.others:
                    waiting.overtaken += task.turn == 1
                if not run:
                    roster.enter(worker)
                continue
            # An idle worker, else one about to start (a cold pool of four really uses four), else
            # the least loaded with room in its window. Loads only grow here, so `low` does too.
            # A worker with its last task and its replacement are not at work at the same time.
            free = roster.busy < most
            if free and buckets[0]:
                worker, _ = buckets[0].popitem()  # the most recently used: warm caches
                worker.head_since = worker.busy_since = now
                roster.busy += 1
            elif free and roster.unborn and self.can_recall:
                worker = next(iter(roster.unborn))
                del roster.unborn[worker]
                roster.busy += 1
            else:
                while low < window and not buckets[low]:
                    low += 1
                if low >= window:
                    break
                worker = next(iter(buckets[low]))
                del buckets[low][worker]
                if now - worker.head_since >= SLOW_HEAD_SECONDS:
                    worker.slow = True  # back in a bucket with its next result
                    continue
            self._assign(worker, pending.popleft())
            if waiting.others:
                waiting.overtaken += task.turn == 1
            if worker.state == READY:
                if worker.budget < 0:
                    run = min(share, window - len(worker.line))
                    if run <= 0:
                        run = 0
                        buckets[len(worker.line)][worker] = None
                elif worker.budget:
                    buckets[len(worker.line)][worker] = None
                elif len(worker.line) == 1:
                    roster.unlive(worker, DRAINING)
        if run:
            roster.enter(worker)

    # ------------------------------------------------------------------ inner workings

    def _assign(self, worker: Worker, task: Task) -> None:
        worker.line.append(task)
        self._assigned += 1
        task.state = ASSIGNED
        task.worker = worker
        task.turn += 1
        if worker.budget > 0:
            worker.budget -= 1
        self.decisions.append((SEND, worker, task))

    # ------------------------------------------------------------------ lines of workers

    def _stop_now(self, worker: Worker, task: Task) -> None:
        """End the worker that runs this task, which is settled when the worker is gone."""
        worker.doomed = task
        self._roster.unlive(worker, RETIRING)
        self.decisions.append((STOP, worker, task))

    def _retried(self, task: Task, lost: Lost, now: float) -> bool:
        """Have the task tried again if its options say so; whether they do."""
        control = task.control
        if control is None:
            return False
        options = control.options
        done = len(control.attempts)
        if self.killed or done >= options.retries or lost.cause not in options.retry_on:
            return False
        control.attempts.append(lost)
        self._try_again(task, now)
        return True

    def _try_again(self, task: Task, now: float) -> None:
        control = task.control
        assert control is not None
        if task.cancel_wanted:
            self._settle(task, CANCELLED)
            return
        task.stop_wanted = None
        self.retried += 1
        delay = control.options.delay(len(control.attempts))
        if delay > 0:
            self.waiting.delay(task, now + delay)
        else:
            self.waiting.put_back(task)

    def _unassign(self, worker: Worker, task: Task) -> None:
        self._buckets[len(worker.line)].pop(worker, None)
        worker.line.remove(task)
        if not worker.line:
            self._roster.busy -= 1
        self._assigned -= 1
        if worker.budget >= 0:
            worker.budget += 1
        task.worker = None
        task.on_wire = False

    def _take_back(self, worker: Worker, task: Task) -> None:
        """Return an unread task to the front of the queue."""
        if task.state != ASSIGNED or task.worker is not worker:
            return
        self._unassign(worker, task)
        if task.cancel_wanted:
            self._settle(task, CANCELLED)
        else:
            task.stop_wanted = None  # it has not run at all
            self.waiting.put_back(task)

    def _finish(self, task: Task) -> None:
        task.state = DONE
        task.worker = None
        self.outstanding -= 1

    def _settle(self, task: Task, verdict: Any) -> None:
        self._finish(task)
        self.decisions.append((SETTLE, task, verdict))

    def _settle_everything(self, verdict: Any) -> None:
        waiting = list(self.waiting)
        self.waiting.clear()
        for worker in self.workers.values():
            self._buckets[len(worker.line)].pop(worker, None)
            waiting += worker.line
            worker.line.clear()
        self._assigned = self._roster.busy = 0
        for task in waiting:
            self._settle(task, verdict)


def _worker_of(task: Task) -> Worker:
    worker = task.worker
    assert worker is not None
    return worker
