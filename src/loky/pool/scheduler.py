"""Which task goes to which worker, and what a death means: a pure state machine.

Rule 1: everything that affects the fate of a task or of a worker is decided in this file.

Rule 2: no I/O, no threads, no locks, no clock, no user code. Whoever drives it calls one method
per event, passes the time in, and then carries out `decisions`, oldest first. That is why the
same object can run a real pool, a hypothesis state machine and a simulator with virtual time.

Rule 3: work per event is constant: it depends neither on the number of queued tasks nor on the
number of workers (workers are kept in buckets by load). Deaths, resizes, shutdowns and looks at the
clock may cost one pass over what they concern.

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
    KILL,
    MAX_TASKS,
    PENDING,
    READY,
    RECALL,
    REFUSED,
    RETIRE,
    RETIRING,
    SEND,
    SETTLE,
    START,
    STARTING,
    STOP,
    Broken,
    Lost,
    Task,
    Worker,
)
from .pace import MAX_AHEAD, OUTLIER_FACTOR, OUTLIER_SECONDS, Pace
from .succession import Succession
from .waiting import Waiting

# Behind a task that has run this long nothing stays queued that the channel can give back.
SLOW_HEAD_SECONDS = 2e-3
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
        self.max_workers = max_workers
        self.idle_timeout = idle_timeout
        self.max_tasks_per_child = max_tasks_per_child
        self.break_on_crash = break_on_crash
        self.can_recall = can_recall
        self.decisions: list[tuple[Any, ...]] = []
        self.waiting = Waiting()
        self.workers: dict[int, Worker] = {}
        self.broken: Broken | None = None
        self.closing = False
        self.pressed = False  # tasks are to be given out only while none runs: memory is short
        self.killed = False  # by a shutdown: whatever comes in late is refused
        self.outstanding = 0  # submitted and not settled
        self.retried = 0  # attempts that were not a task's first
        self._assigned = 0  # in some worker's line
        self._next_worker = 0
        self._floor = 0  # workers wanted whether or not there is work for them
        self._begun = False
        # Ready workers that may be given tasks, by load; each bucket is an ordered set.
        self._buckets: list[dict[Worker, None]] = [{} for _ in range(MAX_AHEAD + 3)]
        # Starting workers; those of them that may yet prove slow, in the order of being started;
        # and those of them that may be given a task.
        self._starting: dict[Worker, None] = {}
        self._awaited: dict[Worker, None] = {}
        self._unborn: dict[Worker, None] = {}
        self._live = 0  # starting or ready, without spares
        self._draining = 0
        self._busy = 0  # with a line that is not empty
        self._pace = Pace(can_recall=can_recall)
        self._look_at: float | None = None  # when to look for slow heads
        self._start_after: float | None = None  # no worker is started before then
        self._deadlines = Deadlines()
        self._intensity = Intensity()
        self._succession = Succession()
        self._now = 0.0

    # ------------------------------------------------------------------ what can be asked

    @property
    def closed(self) -> bool:
        """Nothing is left to do and nothing will come."""
        return (self.closing or self.broken is not None) and not (
            self.outstanding or self.workers or self.decisions
        )

    @property
    def busy(self) -> int:
        """How many workers have tasks."""
        return self._busy

    @property
    def window(self) -> int:
        """How many tasks a ready worker may hold, the running one included."""
        return self._pace.window

    def deadline(self) -> float | None:
        """When `tick` should be called at the latest, on the clock of the `now` arguments."""
        at = self._look_at
        again = self._start_after
        if again is not None and (
            self.waiting.first or self._live < self._floor or self._succession.wanted
        ):
            at = again if at is None or again < at else at
        if self._deadlines.heap:
            due = self._deadlines.next()
            at = due if at is None or (due is not None and due < at) else at
        if self.waiting.delayed:
            due = self.waiting.due()
            at = due if at is None or (due is not None and due < at) else at
        idle = self._buckets[0]
        if self.idle_timeout is not None and idle and not self.waiting.first:
            # The bucket is in the order of becoming idle, so the first is the next to go.
            due = next(iter(idle)).idle_since + self.idle_timeout
            at = due if at is None or due < at else at
        if self._awaited and self._live > len(self._starting):
            for worker in self._awaited:
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
            self._recall(_worker_of(task))
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
                self._recall(worker)
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
            self._after_unassign(worker)
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
        self._after_unassign(worker)

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
        elif task.cancel_wanted:
            self._settle(task, CANCELLED)
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
            self._now = now
            self._foresee(worker)
        if line:
            if line[0].control is not None and line[0].on_wire:
                self._deadlines.start(line[0], now)
            if worker.state == READY and not worker.recalling:
                if worker.budget:
                    buckets[len(line)][worker] = None
                elif len(line) == 1:
                    # It is at its last task: let a replacement start meanwhile. Not before: what
                    # is sent ahead may be taken back, and then it has more to do.
                    self._unlive(worker, DRAINING)
            return
        self._busy -= 1
        worker.idle_since = now
        worker.busy_seconds += now - worker.busy_since
        if not worker.recalling:
            if worker.state == READY and worker.budget:
                buckets[0][worker] = None
            elif worker.state != RETIRING:
                self._retire(worker)

    # ------------------------------------------------------------------ events: workers

    def ready(self, worker: Worker, now: float) -> None:
        """The worker has started and run its initializer."""
        worker.was_ready = True
        worker.slow = False
        worker.head_since = worker.idle_since = worker.busy_since = now
        if worker.line and worker.line[0].on_wire:
            self._deadlines.start(worker.line[0], now)
        if worker.state != STARTING:
            return
        self._now = now
        worker.state = READY
        self._starting.pop(worker, None)
        self._awaited.pop(worker, None)
        self._unborn.pop(worker, None)
        self._pace.started(now - worker.started)
        self._intensity.started()
        if worker.elder is not None:
            if worker.elder.cause is not None:
                self._let_go(worker.elder)
            return
        if worker.budget == 0:
            self._unlive(worker, DRAINING)
        self._foresee(worker)
        self._enter_bucket(worker)

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
        if worker.line and worker.line[-1].stop_wanted and worker.state != RETIRING:
            self._stop_now(worker, worker.line[-1])
        else:
            self._after_unassign(worker)

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
        if quits:
            worker.quits = True
            worker.cause = worker.cause or cause
            if worker.state == READY:
                self._let_go(worker)
        elif worker.state == READY and worker.cause is None:
            worker.cause = cause
            if worker.heir is not None and worker.heir.state == READY:
                self._let_go(worker)
            else:
                self._foresee(worker)

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
        self._now = now
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
        self._unlive(worker, GONE)
        del self.workers[worker.id]
        # Whoever carries out decisions need not ask each time whether the worker is still there.
        self.decisions = [d for d in self.decisions if d[0] == SETTLE or d[1] is not worker]
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
            reason = self._intensity.too_many(self.max_workers, now, starting=state == STARTING)
            if reason is not None:
                self.break_(Broken(reason, lost))

    def start_failed(self, worker: Worker, now: float, exit: Any = None) -> None:
        """No process could be made for it; `exit` says why and is passed on in the verdict.

        As long as there are others, the pool goes on with them and tries again when there is more
        to do than they can take.
        """
        self._start_after = now + START_AGAIN_SECONDS
        elder = worker.elder
        if elder is not None:
            self._unlive(worker, RETIRING)
            if elder.cause is not None:
                self._let_go(elder)  # there is no room for both: cold, then
        elif self._draining or self._live > (worker.state == STARTING):
            self._unlive(worker, RETIRING)  # so that it does not count as a death
            self._floor = min(self._floor, self._live)
        self.lost(worker, list(worker.line), now, exit)

    # ------------------------------------------------------------------ events: the pool

    def resize(self, max_workers: int) -> None:
        """Change the number of workers: more at once, fewer as they finish what they run."""
        self.max_workers = max_workers
        if self.closing or self.broken is not None:
            return
        self._floor = max_workers if self._begun else 0
        excess = self._live - max_workers
        if excess > 0:
            alive = [
                w for w in self.workers.values() if w.state in (STARTING, READY) and w.elder is None
            ]
            # Least loss first: not yet born, idle, then least loaded; the youngest of equals.
            alive.sort(key=lambda w: (w.state == READY, len(w.line) + w.lent, -w.id))
            for worker in alive[:excess]:
                self._disinherit(worker)
                self._let_go(worker)

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
        self._floor = 0
        if kill:
            self.killed = True
            self._settle_everything(REFUSED)
            self._kill_everybody()
        elif cancel:
            waiting = list(self.waiting)
            self.waiting.clear()
            for task in waiting:
                self._settle(task, CANCELLED)
            for worker in self.workers.values():
                for task in worker.line:
                    task.cancel_wanted = True
                if worker.line:
                    self._recall(worker)

    def break_(self, broken: Broken) -> None:
        """Nothing can run any more: every task gets this verdict, every worker is ended."""
        if self.broken is None:
            self.broken = broken
            self._settle_everything(broken)
            self._kill_everybody()

    def tick(self, now: float) -> None:
        """Do what is due by now."""
        self._now = now
        if self._look_at is not None and now >= self._look_at:
            self._look_at = None
            self._look_for_slow_heads(now)
        for task in self._deadlines.expired(now):
            self.stop(task, TIMEOUT)
        self.waiting.end_delays(now)
        if self._start_after is not None and now >= self._start_after:
            self._start_after = None  # `dispatch` starts who is needed
        if self.idle_timeout is not None:
            idle = self._buckets[0]
            while idle and not self.waiting.first:
                worker = next(iter(idle))
                if now < worker.idle_since + self.idle_timeout:
                    break
                self._disinherit(worker)
                self._retire(worker)
                self._floor = min(self._floor, self._live)
        if self._awaited and self._live > len(self._starting):
            slow = self._pace.slow_start()
            for worker in list(self._awaited):
                if now < worker.started + slow:
                    break
                worker.slow = True  # it is given nothing more until it is ready
                del self._awaited[worker]
                self._unborn.pop(worker, None)
                if worker.line:
                    self._recall(worker)

    # ------------------------------------------------------------------ lending

    def lendable(self) -> Worker | None:
        """An idle worker that a submitter may send a task to by itself, if there is one."""
        idle = self._buckets[0]
        if not idle or self.waiting.first or self.closing or self._busy >= self.max_workers:
            return None
        worker = next(reversed(idle))
        return worker if worker.budget < 0 else None

    def lend(self, worker: Worker) -> None:
        """A submitter has taken the worker: `borrowed` or `returned` will follow."""
        self._buckets[0].pop(worker, None)
        worker.lent = True

    def returned(self, worker: Worker) -> None:
        """The submitter has sent nothing."""
        worker.lent = False
        self._after_unassign(worker)

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
            self._busy += 1
            self._assigned += 1
            task.state = ASSIGNED
            task.worker = worker
            task.turn += 1
            self._enter_bucket(worker)

    # ------------------------------------------------------------------ handing out

    def dispatch(self, now: float) -> None:
        """Hand out what can be handed out, start who is needed. Call it after every event."""
        if self.broken is not None:
            return
        self._now = now
        waiting = self.waiting
        if waiting.first or waiting.others or self._live < self._floor:
            self._ensure_workers(now)
            self._hand_out(now)
        if waiting.first and self._live < self.max_workers:
            self._ensure_workers(now)
        if self._assigned > self._busy and self._look_at is None and self.can_recall:
            self._look_at = now + SLOW_HEAD_SECONDS
        if self._succession.wanted:
            self._start_heirs(now)
        if self.closing and not self.outstanding:
            for worker in self.workers.values():
                if worker.state != RETIRING and not worker.lent:
                    self._retire(worker)

    def _hand_out(self, now: float) -> None:
        """Give waiting tasks to workers that have room."""
        waiting = self.waiting
        pending = waiting.first
        buckets = self._buckets
        low = 1
        # A worker gets its share of a long queue in one go: each message to a worker that sleeps
        # costs a switch, so one to each in turn would cost one for every task.
        share = len(pending) // max(1, self._live) - 1
        run = 0
        most, window = (1, 1) if self.pressed else (self.max_workers, self._pace.window)
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
                    self._enter_bucket(worker)
                continue
            # An idle worker, else one about to start (a cold pool of four really uses four), else
            # the least loaded with room in its window. Loads only grow here, so `low` does too.
            # A worker with its last task and its replacement are not at work at the same time.
            free = self._busy < most
            if free and buckets[0]:
                worker, _ = buckets[0].popitem()  # the most recently used: warm caches
                worker.head_since = worker.busy_since = now
                self._busy += 1
            elif free and self._unborn and self.can_recall:
                worker = next(iter(self._unborn))
                del self._unborn[worker]
                self._busy += 1
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
                    self._unlive(worker, DRAINING)
        if run:
            self._enter_bucket(worker)

    # ------------------------------------------------------------------ inner workings

    def _ensure_workers(self, now: float) -> None:
        if not self._begun:
            self._begun = True
            self._floor = 0 if self.closing else self.max_workers
        if self._start_after is not None and now < self._start_after:
            return
        wanted = min(self.max_workers, max(self._floor, self.outstanding))
        while self._live < wanted:
            worker = self._new_worker(now)
            self._starting[worker] = None
            self._awaited[worker] = None
            self._unborn[worker] = None
            self._live += 1

    def _new_worker(self, now: float) -> Worker:
        budget = -1 if self.max_tasks_per_child is None else self.max_tasks_per_child
        worker = Worker(self._next_worker, now, budget)
        self._next_worker += 1
        self.workers[worker.id] = worker
        self.decisions.append((START, worker))
        return worker

    def _assign(self, worker: Worker, task: Task) -> None:
        worker.line.append(task)
        self._assigned += 1
        task.state = ASSIGNED
        task.worker = worker
        task.turn += 1
        if worker.budget > 0:
            worker.budget -= 1
        self.decisions.append((SEND, worker, task))

    def _enter_bucket(self, worker: Worker) -> None:
        held_back = worker.recalling or worker.slow or worker.lent
        if worker.state == READY and worker.budget and not held_back:
            self._buckets[len(worker.line)][worker] = None

    def _unlive(self, worker: Worker, state: int) -> None:
        """Give the worker no more tasks, and move it to a state that does not count as live."""
        self._buckets[len(worker.line)].pop(worker, None)
        before = worker.state
        worker.state = state
        self._draining += (state == DRAINING) - (before == DRAINING)
        elder = worker.elder
        if elder is not None:
            self._succession.part(worker)
            self._foresee(elder)
        elif before in (STARTING, READY):
            self._live -= 1
            self._starting.pop(worker, None)
            self._awaited.pop(worker, None)
            self._unborn.pop(worker, None)
            self._succession.wanted.pop(worker, None)
            if worker.heir is not None:
                self._succeed(worker.heir)

    def _retire(self, worker: Worker) -> None:
        self._unlive(worker, RETIRING)
        if worker.cause is None and not worker.budget:
            worker.cause = MAX_TASKS
        self.decisions.append((RETIRE, worker))

    def _let_go(self, worker: Worker) -> None:
        """Have the worker leave as soon as it has finished what it runs."""
        if worker.lent:
            self._unlive(worker, DRAINING)
        elif not worker.line:
            self._retire(worker)
        else:
            self._unlive(worker, DRAINING)
            self._recall(worker)

    # ------------------------------------------------------------------ succession

    def _foresee(self, worker: Worker) -> None:
        """Note it if the worker needs an heir: `dispatch` starts one when there is room."""
        if worker.state == READY and worker.elder is None and worker.heir is None:
            if self._succession.needs_an_heir(worker, self._pace.duration, self._pace.usual_start):
                self._succession.wanted[worker] = None

    def _start_heirs(self, now: float) -> None:
        if self._start_after is not None and now < self._start_after:
            return
        if self.closing and self.outstanding == self._assigned:
            return  # there is nothing that an heir would do
        succession = self._succession
        while succession.wanted and succession.spares + self._draining < self.max_workers:
            elder = next(iter(succession.wanted))
            succession.adopt(elder, self._new_worker(now))

    def _succeed(self, heir: Worker) -> None:
        """The elder takes no more tasks: its heir is a worker like all others now."""
        self._succession.part(heir)
        if self._live >= self.max_workers:
            self._live += 1  # which retiring takes off again
            self._retire(heir)
            return
        self._live += 1
        if heir.state == STARTING:
            self._starting[heir] = None
            heir.slow = True  # it has been starting for a while: nothing is promised to it
        else:
            heir.idle_since = self._now
            self._foresee(heir)
            self._enter_bucket(heir)

    def _disinherit(self, worker: Worker) -> None:
        """The pool can do without the worker's place: its heir leaves too."""
        worker.cause = None
        if worker.heir is not None:
            self._retire(worker.heir)

    # ------------------------------------------------------------------ lines of workers

    def _recall(self, worker: Worker) -> None:
        if self.can_recall and not worker.recalling and worker.state != RETIRING:
            self._buckets[len(worker.line)].pop(worker, None)
            worker.recalling = True
            self.decisions.append((RECALL, worker))

    def _stop_now(self, worker: Worker, task: Task) -> None:
        """End the worker that runs this task, which is settled when the worker is gone."""
        worker.doomed = task
        self._unlive(worker, RETIRING)
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
        task.stop_wanted = None
        task.cancel_wanted = False
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
            self._busy -= 1
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

    def _after_unassign(self, worker: Worker) -> None:
        """Put a worker whose line became shorter where it belongs now."""
        if worker.recalling:
            return
        if worker.state == STARTING:
            if not (worker.line or worker.slow):
                self._unborn[worker] = None
        elif worker.state == DRAINING and not worker.line:
            self._retire(worker)
        elif worker.state == READY and not worker.budget and len(worker.line) < 2:
            if worker.line:
                self._unlive(worker, DRAINING)
            else:
                self._retire(worker)
        else:
            if not worker.line:
                worker.slow = False  # it had not even read its head: descheduled, not slow
            self._enter_bucket(worker)

    def _look_for_slow_heads(self, now: float) -> None:
        """Take back what waits behind a task that runs for long: somebody else is faster."""
        for worker in self.workers.values():
            if len(worker.line) > 1 and not (worker.slow or worker.recalling):
                if now - worker.head_since >= SLOW_HEAD_SECONDS:
                    worker.slow = True
                    self._recall(worker)

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
        self._assigned = self._busy = 0
        for task in waiting:
            self._settle(task, verdict)

    def _kill_everybody(self) -> None:
        for worker in self.workers.values():
            self._unlive(worker, RETIRING)
            self.decisions.append((KILL, worker))


def _worker_of(task: Task) -> Worker:
    worker = task.worker
    assert worker is not None
    return worker
