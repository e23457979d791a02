"""A pool without processes: the real scheduler, driven by a faithful model of what workers do.

The model holds, for each worker, what is in its channel, what it runs, and what it has sent that
the parent has not looked at yet. Every action is one step of one party (the user, the parent, a
worker, the clock), so that any interleaving of them is a history that could happen. What one step
must not do is asserted where it is done; `World.check` compares all of the scheduler's records with
the model (`invariants`); `World.finish` lets everybody go on fairly until nothing is left to do,
and fails if that does not come to an end.

Assumption: workers are as `loky.worker` promises. They read one task at a time, in the order in
which they were sent, and a result is sent before the next task is read.

Guarantee: the same calls give the same history, in any process.

Does not belong here: which histories to try. See `histories`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import invariants

from loky.pool import model
from loky.pool.model import (
    ASSIGNED,
    DONE,
    GONE,
    KILL,
    RECALL,
    RETIRE,
    SEND,
    SETTLE,
    START,
    STARTING,
    STOP,
    Broken,
    Cancelled,
    Control,
    Lost,
    Refused,
    Task,
    Worker,
)
from loky.pool.scheduler import Scheduler
from loky.task_options import MEMORY, NO_OPTIONS, TIMEOUT, TaskOptions

EXIT = "exit"
QUIT = "quit"
RESULT = "result"
# What a worker replies if a task raised an exception that is worth another attempt.
RETRIABLE = "retriable"
UNPICKLABLE = "unpicklable"


class Process:
    """What a worker process does, and what is on its two wires."""

    def __init__(self) -> None:
        self.alive = True
        self.booted = False
        self.inbox: deque[Any] = deque()  # sent to it, unread: tasks, and EXIT
        self.running: Task | None = None
        # From it, not looked at: "ready", (task, seconds), and QUIT.
        self.sent: deque[Any] = deque()
        self.served = 0

    @property
    def can_read(self) -> bool:
        return self.alive and self.booted and self.running is None and bool(self.inbox)


class World:
    """The scheduler, its driver, its workers and its users."""

    def __init__(
        self, max_workers: int, *, max_tasks_per_child: int | None = None, **options: Any
    ) -> None:
        self.max_tasks_per_child = max_tasks_per_child
        self.scheduler = Scheduler(max_workers, max_tasks_per_child=max_tasks_per_child, **options)
        self.now = 0.0
        # For those who look on: what was how often, and what happens, line by line.
        self.events: Counter[str] = Counter()
        self.decisions: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.trace: Callable[[str], Any] | None = None
        # For those who make up histories: how long tasks take, what a worker does while its
        # messages are taken back, and how often the records are checked while all go on.
        self.usual_duration = 1e-3
        self.race: Callable[[Worker], None] = lambda worker: None
        self.thorough = True
        self.tasks: list[Task] = []
        self.open: dict[Task, None] = {}  # those that were not found settled yet
        self.processes: dict[Worker, Process] = {}
        self.outbox: list[tuple[Worker, Task, int]] = []
        self.taken: set[Task] = set()  # sending it has begun at least once
        self.reads: dict[Task, int] = {}
        self.settled: dict[Task, Any] = {}
        self.recycled: Counter[str] = (
            Counter()
        )  # workers that were asked to leave for good, by cause
        # Workers that a submitter has taken; its task, and whether it has sent it. Its note to the
        # parent is still to come, maybe after the worker's reply.
        self.lent: dict[Worker, tuple[Task, bool]] = {}
        self.early: dict[Worker, Any] = {}
        self.cancelled_early: set[Task] = set()  # by the driver, before sending it had begun
        self.told_late: set[Task] = set()  # their users were told that they run already
        self.stopped: set[Task] = set()  # by the user, while they ran
        self.endless: set[Task] = set()  # would run for ever: only ending their worker ends them
        self.stopping: dict[Worker, None] = {}  # were sent SIGTERM and have not ended yet
        # Raised something, and it is looked at whether to try again.
        self.held: dict[Task, None] = {}
        self.failed_at: dict[Task, float] = {}  # the latest attempt that is to be followed by one
        self.sent_at: dict[Task, float] = {}
        # Pickling these calls the user's code: the one for which it does now, those that are done.
        self.slow_to_pickle: set[Task] = set()
        self.pickling: Task | None = None
        self.pickled: set[Task] = set()
        self.priorities: set[int] = set()
        self.overtaken = 0  # tasks given out in a row while others waited at lower priorities

    # ------------------------------------------------------------------ users

    def submit(
        self, count: int = 1, options: TaskOptions | None = None, *, slow_to_pickle: bool = False
    ) -> list[Task]:
        new = []
        for _ in range(count):
            task = self._new_task()
            if options is not None:
                task.control = Control(options)
            if slow_to_pickle:
                self.slow_to_pickle.add(task)
            self._add(task)
            new.append(task)
            self._event(self.scheduler.submit, task)
        return new

    def _new_task(self) -> Task:
        task = Task(len(self.tasks) + len(self.lent), None, (), {}, None)
        self.reads[task] = 0
        return task

    def _add(self, task: Task) -> None:
        self.tasks.append(task)
        self.open[task] = None
        self.priorities.add(invariants.priority_of(task))

    def lend(self) -> None:
        """A submitter takes an idle worker."""
        worker = self.scheduler.lendable()
        if worker is not None:
            self._event(self.scheduler.lend, worker, dispatch=False)
            self.lent[worker] = self._new_task(), False

    def feed(self, worker: Worker) -> None:
        """That submitter sends its task by itself."""
        task, sent = self.lent[worker]
        assert not sent
        self.lent[worker] = task, True
        self.taken.add(task)
        self.processes[worker].inbox.append(task)

    def note(self, worker: Worker) -> None:
        """The parent learns what that submitter has done."""
        task, sent = self.lent.pop(worker)
        self._add(task)
        if not sent:
            self._event(self.scheduler.returned, worker, dispatch=False)
            self._event(self.scheduler.submit, task)
            return
        task.on_wire = True
        self._event(self.scheduler.borrowed, worker, task, self.now, dispatch=False)
        if worker in self.early:
            self._take_in(worker, self.early.pop(worker), dispatch=False)
        self._dispatch()

    def cancel(self, task: Task) -> None:
        if task in self.settled:
            return
        if task not in self.taken:
            self._settle(task, model.CANCELLED)
            self.cancelled_early.add(task)
            self._event(self.scheduler.cancelled, task)
        else:
            self.told_late.discard(task)
            self._event(self.scheduler.cancel, task)

    def stop(self, task: Task) -> None:
        if task in self.settled:
            return
        if task not in self.taken:
            self.cancel(task)
            return
        worker = task.worker
        process = self.processes.get(worker) if worker is not None else None
        if worker is not None and process is not None and process.running is task:
            if self.scheduler.can_recall or worker.line[0] is task:
                self.stopped.add(task)
                self.endless.add(task)
        self.told_late.discard(task)
        self._event(self.scheduler.stop, task)

    def resize(self, max_workers: int) -> None:
        self._event(self.scheduler.resize, max_workers)

    def shutdown(self, **how: bool) -> None:
        if how.get("cancel"):
            self.told_late.clear()
        self._event(self.scheduler.shutdown, **how)

    def break_(self) -> None:
        self._event(self.scheduler.break_, Broken("an initializer failed"))

    # ------------------------------------------------------------------ limits of memory

    def press(self, pressed: bool) -> None:
        """Memory is short, or not any more."""
        self.scheduler.pressed = pressed
        self._dispatch()

    def recycle(self, worker: Worker) -> None:
        self._event(self.scheduler.recycle, worker, "memory")

    def exceed(self, worker: Worker) -> None:
        """What the worker runs, as far as one can see from here, takes too much."""
        self._event(self.scheduler.stop, worker.line[0], MEMORY)

    # ------------------------------------------------------------------ the driver

    def apply(self, *, refuse_start: bool = False) -> None:
        """Carry out the oldest decision."""
        scheduler = self.scheduler
        decision = scheduler.decisions.pop(0)
        what = decision[0]
        name = invariants.DECISIONS[what]
        self.decisions[name] += 1
        if self.trace is not None:
            self._tell(f"apply {name}", decision[1:])
        if what == SETTLE:
            # Between a cancellation that needed nobody and its task's turn, other verdicts may
            # fall; the driver has settled the future and ignores them.
            if decision[1] not in self.cancelled_early:
                self._settle(decision[1], decision[2])
            return
        worker = decision[1]
        assert worker.state != GONE, f"decision {name} about a worker that has ended"
        if what == START:
            if refuse_start:
                self._event(scheduler.start_failed, worker, self.now, "no process")
            else:
                self.processes[worker] = Process()
        elif what == SEND:
            task = decision[2]
            self.outbox.append((worker, task, task.turn))
        elif what == RECALL:
            assert scheduler.can_recall, "RECALL over a channel that cannot"
            unread = self._take_back(worker)
            self._event(scheduler.recalled, worker, unread, self.now, dispatch=False)
            self.told_late.update(
                task
                for task in worker.line
                if task is not worker.doomed and task.stop_wanted != model.CANCEL
            )
            self._dispatch()
        elif what == RETIRE:
            assert not (worker.line or worker.lent), "asked to leave with work to do"
            self.processes[worker].inbox.append(EXIT)
            if worker.cause is not None:
                self.recycled[worker.cause] += 1
        elif what == STOP:
            task = decision[2]
            assert worker.doomed is task
            assert task.stop_wanted
            if task.stop_wanted == TIMEOUT:
                timeout = task.control.options.timeout
                assert self.now >= self.sent_at[task] + timeout, "its time was not up"
            if task.stop_wanted == MEMORY:  # it takes more every moment: no grace
                self.die(worker)
            else:
                self.stopping[worker] = None
        else:
            assert what == KILL
            self.die(worker)

    def end_stopping(self, worker: Worker) -> None:
        """A worker that was sent SIGTERM ends, or is killed because its grace is over."""
        del self.stopping[worker]
        self.die(worker)

    def judge(self, task: Task, *, again: bool) -> None:
        """It was looked at what the task has raised."""
        del self.held[task]
        if again:
            assert task.control is not None
            task.control.attempts.append(RETRIABLE)
            self._fails(task, RETRIABLE)
            given_up = task.cancel_wanted
            self._event(self.scheduler.retry, task, self.now)
            assert not given_up or task.state == DONE, "was cancelled, and is tried again"
        else:
            self._settle(task, RESULT)
            self._event(self.scheduler.over, task)

    def apply_all(self) -> bool:
        did = False
        for _ in range(10_000):
            if not self.scheduler.decisions:
                return did
            did = True
            self.apply()
        raise AssertionError("decisions without end")

    def send(self, which: int = 0, *, fails: bool = False) -> None:
        """Pickle and send what is to be sent next to the same worker as this of all to be sent."""
        outbox = self.outbox
        to = outbox[which][0]
        at = next(at for at, (worker, _, _) in enumerate(outbox) if worker is to)
        worker, task, turn = outbox[at]
        if task.worker is not worker or task.state != ASSIGNED or task.turn != turn:
            del outbox[at]  # taken back meanwhile
            return
        assert not task.on_wire
        if task not in self.taken and task in self.settled:
            del outbox[at]
            self._event(self.scheduler.dropped, task)
            return
        self.taken.add(task)
        if task in self.slow_to_pickle and task not in self.pickled:
            if self.pickling is None:
                self.pickling = task  # to be sent when that is done
            elif self.max_tasks_per_child is None:
                del outbox[at]
                self._event(self.scheduler.set_aside, task)
            return
        del outbox[at]
        if fails:
            self._settle(task, UNPICKLABLE)
            self._event(self.scheduler.dropped, task)
            return
        for attempt in task.control.attempts if task.control is not None else ():
            if isinstance(attempt, Lost):
                assert attempt.worker not in self.processes, "its earlier attempt's worker lives"
        ahead = list(worker.line)[: worker.line.index(task)]
        assert all(other.on_wire for other in ahead), "sent in another order than the line's"
        task.on_wire = True
        self.pickled.discard(task)  # nothing that may have been read is sent again
        self.sent_at[task] = self.now
        if task.control is not None:
            self._event(self.scheduler.sent, worker, task, self.now, dispatch=False)
        self.processes[worker].inbox.append(task)

    def end_pickling(self, *, fails: bool = False) -> None:
        """The user's code that takes part in pickling a task returns."""
        task = self.pickling
        assert task is not None
        self.pickling = None
        if not fails:
            self.pickled.add(task)
            self._dispatch()
        else:
            if task.state != DONE:
                self._settle(task, UNPICKLABLE)
            self._event(self.scheduler.dropped, task)

    def look_at(self, worker: Worker) -> None:
        """Receive the oldest thing that the worker has sent."""
        self._take_in(worker, self.processes[worker].sent.popleft(), dispatch=True)

    def reap(self, worker: Worker) -> None:
        """Notice that the worker's process has ended. Not before all notes about it are there."""
        process = self.processes[worker]
        assert not process.alive
        assert worker not in self.lent
        while process.sent:  # finished results survive their worker
            self._take_in(worker, process.sent.popleft(), dispatch=False)
        unread = self._take_back(worker)
        self.stopping.pop(worker, None)
        line = list(worker.line)
        self._event(self.scheduler.lost, worker, unread, self.now, "exit")
        assert worker.state == GONE
        assert not worker.line
        for task in line:
            attempts = task.control.attempts if task.control is not None else None
            if attempts and isinstance(attempts[-1], Lost) and attempts[-1].worker is worker:
                self._check_blame(task, worker)
                self._fails(task, attempts[-1].cause)
        del self.processes[worker]

    def _check_blame(self, task: Task, worker: Worker) -> None:
        """The worker's end is charged to this task."""
        assert self.reads[task] or not self.scheduler.can_recall, "blamed, but never read"
        assert not worker.quits or worker.doomed is task, "blamed, but the worker left by itself"

    def _fails(self, task: Task, cause: str) -> None:
        """An attempt has failed, and there is to be another one."""
        assert task.control is not None
        options = task.control.options
        assert len(task.control.attempts) <= options.retries, "more attempts than its options allow"
        assert cause == RETRIABLE or cause in options.retry_on
        self.failed_at[task] = self.now
        self.verdicts[f"another attempt after {cause}"] += 1

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = self.scheduler.deadline()
        if due is not None and due <= self.now:
            self._event(self.scheduler.tick, self.now)

    def advance_to_deadline(self) -> bool:
        due = self.scheduler.deadline()
        if due is None:
            return False
        self.now = max(self.now, due)
        for _ in range(3):
            self._event(self.scheduler.tick, self.now)
            self.apply_all()
            again = self.scheduler.deadline()
            if again is None or again > self.now:
                return True
            # What was decided may make something else due at once: a worker whose tasks were taken
            # back and cancelled has been idle for long.
        raise AssertionError("due again and again: the driver would spin")

    def _event(self, method: Any, *arguments: Any, dispatch: bool = True, **options: Any) -> None:
        self.events[method.__name__] += 1
        if self.trace is not None:
            self._tell(method.__name__, (*arguments, *options.items()))
        method(*arguments, **options)
        if dispatch:
            self._dispatch()

    def _dispatch(self) -> None:
        scheduler = self.scheduler
        if scheduler.waiting.aside and self.pickling is None:
            self.events["bring_back"] += 1
            scheduler.waiting.bring_back()
        self.events["dispatch"] += 1
        busy = scheduler._roster.busy
        known = len(scheduler.decisions)
        scheduler.dispatch(self.now)
        if len(scheduler.decisions) > known:
            self._check_handing_out(scheduler.decisions[known:], busy)

    def _check_handing_out(self, decisions: list[Any], busy: int) -> None:
        """What was just decided, when so many workers had work already."""
        scheduler = self.scheduler
        given = [decision for decision in decisions if decision[0] == SEND]
        for _, worker, _ in given:
            length = len(worker.line)
            assert length <= (1 if scheduler.pressed else scheduler.window), "over its window"
            assert worker.state != STARTING or (length == 1 and scheduler.can_recall)
        most = 1 if scheduler.pressed else scheduler.max_workers
        assert scheduler._roster.busy <= max(busy, most), "more at work than allowed"
        if given and len(self.priorities) > 1:
            invariants.check_fairness(self, [task for _, _, task in given])

    def _take_in(self, worker: Worker, what: Any, *, dispatch: bool) -> None:
        scheduler = self.scheduler
        if what == "ready":
            self._event(scheduler.ready, worker, self.now, dispatch=dispatch)
            return
        if what is QUIT:
            self._event(scheduler.recycle, worker, "full", dispatch=dispatch, quits=True)
            return
        if worker in self.lent:
            self.early[worker] = what
            return
        task, seconds, kind = what
        if worker.line and worker.line[0] is task and worker.doomed is task:
            return  # whatever it says now, its time was up
        if worker.line and worker.line[0] is task:
            if kind == RETRIABLE and len(task.control.attempts) < task.control.options.retries:
                self.held[task] = None
                self._event(scheduler.hold, worker, task, self.now, seconds, dispatch=dispatch)
            else:
                self._event(scheduler.result, worker, task, self.now, seconds, dispatch=dispatch)
                self._settle(task, RESULT)
        else:
            assert task in self.settled or self.is_settled_soon(task), "a lost result"

    def is_settled_soon(self, task: Task) -> bool:
        return any(d[0] == SETTLE and d[1] is task for d in self.scheduler.decisions)

    def _take_back(self, worker: Worker) -> list[Task]:
        assert worker not in self.lent, "would take back a task that nobody here knows of yet"
        process = self.processes[worker]
        recalled = set()
        if self.scheduler.can_recall:
            kept = []
            while process.inbox:
                item = process.inbox.popleft()
                if item is EXIT:
                    kept.append(item)
                else:
                    recalled.add(item)
                # The parent takes one message after the other, and the worker goes on meanwhile:
                # what comes back may well be from in front of what the worker has read.
                self.race(worker)
            process.inbox.extend(kept)
        unread = []
        for task in worker.line:
            if task.on_wire:
                if task not in recalled:
                    continue
                task.on_wire = False
                self.pickled.add(task)
            unread.append(task)
        # What was settled over the worker's head (shutdown, broken pool) came back as well.
        assert all(task in unread or task.state == DONE for task in recalled)
        return unread

    def _settle(self, task: Task, verdict: Any) -> None:
        assert task not in self.settled, f"{task} settled twice"
        self.settled[task] = verdict
        self.verdicts[name_of(verdict)] += 1
        control = task.control
        options = control.options if control is not None else NO_OPTIONS
        attempts = control.attempts if control is not None else []
        assert len(attempts) <= options.retries, "more attempts than its options allow"
        if isinstance(verdict, Cancelled):
            stopped = task in self.stopped or task.stop_wanted
            assert len(attempts) >= self.reads[task] or stopped, "cancelled, but it may have run"
            assert task not in self.told_late, "cancelled, but it was too late for that"
        elif isinstance(verdict, Lost):
            self._check_blame(task, verdict.worker)
            assert verdict.worker not in self.processes, "settled before its worker is gone"
            assert (
                len(attempts) == options.retries
                or verdict.cause not in options.retry_on
                or self.scheduler.killed
            ), "its options allow another attempt"
        elif isinstance(verdict, Refused):
            assert self.scheduler.closing
        elif isinstance(verdict, Broken):
            assert self.scheduler.broken is verdict
        elif verdict == RESULT:
            assert self.reads[task] <= len(attempts) + 1

    # ------------------------------------------------------------------ workers

    def boot(self, worker: Worker) -> None:
        process = self.processes[worker]
        process.booted = True
        process.sent.append("ready")

    def read(self, worker: Worker) -> None:
        process = self.processes[worker]
        task = process.inbox.popleft()
        if task is EXIT:
            process.alive = False
            return
        process.served += 1
        most = self.max_tasks_per_child
        assert most is None or process.served <= most, "more tasks than a worker may be given"
        self.reads[task] += 1
        attempts = task.control.attempts if task.control is not None else []
        options = task.control.options if task.control is not None else NO_OPTIONS
        # Where nobody can look into the channel, an attempt is counted that may not have begun.
        assert self.reads[task] <= len(attempts) + 1, "a task ran twice"
        assert self.reads[task] == len(attempts) + 1 or not self.scheduler.can_recall
        assert self.reads[task] <= options.retries + 1, "more attempts than its options allow"
        if attempts:
            due = self.failed_at[task] + options.delay(len(attempts))
            assert self.now >= due, "tried again too early"
        process.running = task

    def hang(self, worker: Worker) -> None:
        """What the worker runs will never end by itself."""
        task = self.processes[worker].running
        assert task is not None
        self.endless.add(task)

    def complete(self, worker: Worker, seconds: float, *, retriable: bool = False) -> None:
        process = self.processes[worker]
        task = process.running
        assert task is not None
        retriable = retriable and task.control is not None
        process.sent.append((task, seconds, RETRIABLE if retriable else RESULT))
        process.running = None

    def quit(self, worker: Worker) -> None:
        """It says that it uses too much, reads nothing more, and leaves."""
        process = self.processes[worker]
        assert process.running is None
        process.sent.append(QUIT)
        process.alive = False

    def die(self, worker: Worker) -> None:
        self.processes[worker].alive = False

    # ------------------------------------------------------------------ the end

    def check(self) -> None:
        """Compare the scheduler's records with a recomputation of each."""
        invariants.check(self)

    def settle_down(self) -> None:
        """Let everybody go on fairly until nothing happens any more and nothing is due."""
        check = self.check if self.thorough else lambda: None
        for _ in range(10_000):
            did = self.apply_all()
            if self.pickling is not None:
                did = True
                self.end_pickling()
            for worker in list(self.lent):
                did = True
                self.note(worker)
            for task in list(self.held):
                did = True
                self.judge(task, again=True)
            while self.outbox:
                did = True
                self.send()
                if self.pickling is not None:
                    self.end_pickling()
                self.apply_all()
                check()
            for worker, process in list(self.processes.items()):
                if process.alive and not process.booted:
                    did = True
                    self.boot(worker)
                if worker in self.stopping:
                    did = True
                    self.end_stopping(worker)
                elif process.alive and process.running and process.running not in self.endless:
                    did = True
                    self.complete(worker, 1e-3)
                if process.can_read:
                    did = True
                    self.read(worker)
                while process.sent:
                    did = True
                    self.look_at(worker)
                    check()
                if not process.alive:
                    did = True
                    self.reap(worker)
                    check()
            if self.scheduler.waiting.may_bring_back():
                did = True
                self._dispatch()
            if not did:
                everything_done = not self.scheduler.outstanding
                if everything_done or not self.advance_to_deadline():
                    break
            check()
        else:
            raise AssertionError("no end in sight")
        self.check()

    def finish(self) -> None:
        """Everything is settled without anybody's help; then a shutdown closes."""
        self.settle_down()
        assert not self.scheduler.outstanding, "stuck"
        assert len(self.settled) == len(self.tasks)
        assert all(task.state == DONE and task.worker is None for task in self.tasks)
        self.shutdown()
        self.settle_down()
        assert not self.processes
        assert self.scheduler.closed
        self.advance_to_deadline()  # a look that was planned when there was something to see
        assert self.scheduler.deadline() is None

    # ------------------------------------------------------------------ what people read

    def _tell(self, what: str, about: tuple[Any, ...]) -> None:
        assert self.trace is not None
        self.trace(f"{self.now:12.6f}    {what} {', '.join(map(name_of, about))}")


def name_of(thing: Any) -> str:
    """What people call it: short, and the same in every process."""
    if isinstance(thing, (Task, Worker)):
        return f"{type(thing).__name__.lower()} {thing.id}"
    if isinstance(thing, Lost):
        return f"lost: {thing.cause}"
    if isinstance(thing, (Cancelled, Refused, Broken)):
        return type(thing).__name__.lower()
    if isinstance(thing, list):
        return f"[{', '.join(map(name_of, thing))}]"
    if isinstance(thing, tuple):
        return "=".join(map(name_of, thing))
    return f"{thing:g}" if isinstance(thing, float) else str(thing)
