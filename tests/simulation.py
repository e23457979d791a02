"""A pool without processes: the real scheduler, driven by a faithful model of what workers do.

The model holds, for each worker, what is in its channel, what it runs, and what it has sent that
the parent has not looked at yet. Every action is one step of one party (the user, the parent, a
worker, the clock), so that any interleaving of them is a history that could happen. `World.check`
compares the scheduler's records with the model after every step; `World.finish` lets everybody
go on fairly until nothing is left to do, and fails if that does not come to an end.

Assumption: workers are as `loky.worker` promises. They read one task at a time, in the order in
which they were sent, and a result is sent before the next task is read.

Does not belong here: which histories to try. See `test_scheduler`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from loky.pool import model
from loky.pool.model import (
    ASSIGNED,
    DELAYED,
    DONE,
    DRAINING,
    GONE,
    HELD,
    KILL,
    PENDING,
    READY,
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
from loky.task_options import NO_OPTIONS, TIMEOUT, TaskOptions

EXIT = "exit"
QUIT = "quit"
RESULT = "result"
# What a worker replies if a task raised an exception that is worth another attempt.
RETRIABLE = "retriable"


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

    def __init__(self, max_workers: int, **options: Any) -> None:
        self.scheduler = Scheduler(max_workers, **options)
        self.now = 0.0
        # For those who make up histories: how long tasks take, and what a worker does while its
        # messages are taken back.
        self.usual_duration = 1e-3
        self.race: Callable[[Worker], None] = lambda worker: None
        self.tasks: list[Task] = []
        self.processes: dict[Worker, Process] = {}
        self.outbox: deque[tuple[Worker, Task, int]] = deque()
        self.taken: set[Task] = set()  # sending it has begun at least once
        self.reads: dict[Task, int] = {}
        self.settled: dict[Task, Any] = {}
        self.recycled: dict[str, int] = {}  # workers that were asked to leave for good, by cause
        # Workers that a submitter has taken; its task, and whether it has sent it. Its note to the
        # parent is still to come, maybe after the worker's reply.
        self.lent: dict[Worker, tuple[Task, bool]] = {}
        self.early: dict[Worker, Any] = {}
        self.cancelled_early: set[Task] = set()  # by the driver, before sending it had begun
        self.endless: set[Task] = set()  # would run for ever: only ending their worker ends them
        self.stopping: set[Worker] = set()  # were sent SIGTERM and have not ended yet
        self.running_since: dict[Task, float] = {}  # its present attempt
        self.held: set[Task] = set()  # raised something, and it is looked at whether to try again

    # ------------------------------------------------------------------ users

    def submit(self, count: int = 1, options: TaskOptions | None = None) -> list[Task]:
        new = []
        for _ in range(count):
            task = Task(len(self.tasks) + len(self.lent), None, (), {}, None)
            if options is not None:
                task.control = Control(options)
            self.tasks.append(task)
            self.reads[task] = 0
            new.append(task)
            self._event(self.scheduler.submit, task)
        return new

    def lend(self) -> None:
        """A submitter takes an idle worker."""
        worker = self.scheduler.lendable()
        if worker is not None:
            self.scheduler.lend(worker)
            task = Task(len(self.tasks) + len(self.lent), None, (), {}, None)
            self.reads[task] = 0
            self.lent[worker] = task, False

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
        self.tasks.append(task)
        if not sent:
            self._event(self.scheduler.returned, worker, dispatch=False)
            self._event(self.scheduler.submit, task)
            return
        task.on_wire = True
        self._event(self.scheduler.borrowed, worker, task, self.now, dispatch=False)
        if worker in self.early:
            self._take_in(worker, self.early.pop(worker), dispatch=False)
        self._event(lambda: None)

    def cancel(self, task: Task) -> None:
        if task in self.settled:
            return
        if task not in self.taken:
            self._settle(task, model.CANCELLED)
            self.cancelled_early.add(task)
            self._event(self.scheduler.cancelled, task)
        else:
            self._event(self.scheduler.cancel, task)

    def stop(self, task: Task) -> None:
        if task in self.settled:
            return
        if task not in self.taken:
            self.cancel(task)
            return
        worker = task.worker
        process = self.processes.get(worker) if worker is not None else None
        if task in self.held:
            self._event(self.scheduler.stop, task)
            return
        if worker is not None and process is not None and process.running is task:
            if self.scheduler.can_recall or worker.line[0] is task:
                self.endless.add(task)
        self._event(self.scheduler.stop, task)

    def resize(self, max_workers: int) -> None:
        self._event(self.scheduler.resize, max_workers)

    def press(self, pressed: bool) -> None:
        """Memory is short, or not any more."""
        self.scheduler.pressed = pressed
        self._event(lambda: None)

    def recycle(self, worker: Worker) -> None:
        self._event(self.scheduler.recycle, worker, "memory")

    def shutdown(self, **how: bool) -> None:
        self._event(lambda: self.scheduler.shutdown(**how))

    def break_(self) -> None:
        self._event(self.scheduler.break_, Broken("an initializer failed"))

    # ------------------------------------------------------------------ the driver

    def apply(self, *, refuse_start: bool = False) -> None:
        """Carry out the oldest decision."""
        scheduler = self.scheduler
        decision = scheduler.decisions.pop(0)
        what = decision[0]
        if what == SETTLE:
            # Between a cancellation that needed nobody and its task's turn, other verdicts may
            # fall; the driver has settled the future and ignores them.
            if decision[1] not in self.cancelled_early:
                self._settle(decision[1], decision[2])
            return
        worker = decision[1]
        assert worker.state != GONE, f"decision {what} about a worker that has ended"
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
            self._event(scheduler.recalled, worker, self._take_back(worker), self.now)
        elif what == RETIRE:
            assert not (worker.line or worker.lent), "asked to leave with work to do"
            self.processes[worker].inbox.append(EXIT)
            if worker.cause is not None:
                self.recycled[worker.cause] = self.recycled.get(worker.cause, 0) + 1
        elif what == STOP:
            assert worker.doomed is decision[2]
            assert decision[2].stop_wanted
            self.stopping.add(worker)
        else:
            assert what == KILL
            self.processes[worker].alive = False

    def end_stopping(self, worker: Worker) -> None:
        """A worker that was sent SIGTERM ends, or is killed because its grace is over."""
        self.stopping.remove(worker)
        self.die(worker)

    def judge(self, task: Task, *, again: bool) -> None:
        """It was looked at what the task has raised."""
        self.held.remove(task)
        if again:
            assert task.control is not None
            task.control.attempts.append(RETRIABLE)
            self._event(self.scheduler.retry, task, self.now)
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

    def send(self, *, unpicklable: bool = False) -> None:
        """Send the oldest task that was to be sent."""
        worker, task, turn = self.outbox.popleft()
        if task.worker is not worker or task.state != ASSIGNED or task.turn != turn:
            return  # taken back meanwhile
        assert not task.on_wire
        if task not in self.taken and (unpicklable or task in self.settled):
            if task not in self.settled:
                self._settle(task, "unpicklable")
            self._event(self.scheduler.dropped, task)
            return
        self.taken.add(task)
        ahead = list(worker.line)[: worker.line.index(task)]
        assert all(other.on_wire for other in ahead), "sent in another order than the line's"
        task.on_wire = True
        if task.control is not None:
            self.scheduler.sent(worker, task, self.now)
        self.processes[worker].inbox.append(task)

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
        self.stopping.discard(worker)
        self._event(self.scheduler.lost, worker, unread, self.now, "exit")
        assert worker.state == GONE
        assert not worker.line
        del self.processes[worker]

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
        method(*arguments, **options)
        if not dispatch:
            return
        scheduler = self.scheduler
        before = {worker: len(worker.line) for worker in scheduler.workers.values()}
        busy = sum(1 for worker in scheduler.workers.values() if worker.line)
        scheduler.dispatch(self.now)
        for worker in scheduler.workers.values():
            length = len(worker.line)
            if length > before.get(worker, 0):
                assert length <= scheduler.window, "over its window"
                assert worker.state != STARTING or length == 1
                assert scheduler.can_recall or worker.state != STARTING
        now_busy = sum(1 for worker in scheduler.workers.values() if worker.line)
        most = 1 if scheduler.pressed else scheduler.max_workers
        assert now_busy <= max(busy, most), "more at work than allowed"

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
                self.held.add(task)
                self._event(scheduler.hold, worker, task, self.now, seconds, dispatch=dispatch)
            else:
                self._event(scheduler.result, worker, task, self.now, seconds, dispatch=dispatch)
                self._settle(task, RESULT)
        else:
            assert task in self.settled or self._settlement_decided(task), "a lost result"

    def _settlement_decided(self, task: Task) -> bool:
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
            unread.append(task)
        # What was settled over the worker's head (shutdown, broken pool) came back as well.
        assert all(task in unread or task.state == DONE for task in recalled)
        return unread

    def _settle(self, task: Task, verdict: Any) -> None:
        assert task not in self.settled, f"{task} settled twice"
        self.settled[task] = verdict
        attempts = task.control.attempts if task.control is not None else []
        if isinstance(verdict, Cancelled):
            stopped = task in self.endless or task.stop_wanted
            assert len(attempts) >= self.reads[task] or stopped, "cancelled, but it may have run"
        elif isinstance(verdict, Lost):
            assert self.reads[task] or not self.scheduler.can_recall, "blamed, but never read"
            if verdict.cause == TIMEOUT:
                assert task.control is not None
                assert verdict.worker not in self.processes or not self.alive(verdict.worker)
        elif isinstance(verdict, Refused):
            assert self.scheduler.closing
        elif isinstance(verdict, Broken):
            assert self.scheduler.broken is verdict
        elif verdict == RESULT:
            assert self.reads[task] <= len(attempts) + 1

    def alive(self, worker: Worker) -> bool:
        return self.processes[worker].alive

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
        most = self.scheduler.max_tasks_per_child
        assert most is None or process.served <= most, "more tasks than a worker may be given"
        self.reads[task] += 1
        attempts = task.control.attempts if task.control is not None else []
        options = task.control.options if task.control is not None else NO_OPTIONS
        # Where nobody can look into the channel, an attempt is counted that may not have begun.
        assert self.reads[task] <= len(attempts) + 1, "a task ran twice"
        assert self.reads[task] == len(attempts) + 1 or not self.scheduler.can_recall
        assert self.reads[task] <= options.retries + 1, "more attempts than its options allow"
        self.running_since[task] = self.now
        process.running = task

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

    # ------------------------------------------------------------------ what must hold

    def check(self) -> None:
        """Compare the scheduler's records with a recomputation of each."""
        scheduler = self.scheduler
        workers = list(scheduler.workers.values())
        self._check_succession(workers)
        spares = {worker for worker in workers if worker.elder is not None}
        by_state = {
            state: {worker for worker in workers if worker.state == state} - spares
            for state in (STARTING, READY, DRAINING)
        }
        assert all(worker.state != GONE for worker in workers)
        assert all(scheduler.workers[worker.id] is worker for worker in workers)
        assert scheduler._live == len(by_state[STARTING]) + len(by_state[READY])
        assert set(scheduler._starting) == by_state[STARTING]
        assert scheduler._live <= scheduler.max_workers or scheduler.closing
        for worker in workers:
            for task in worker.line:
                assert task.state == ASSIGNED
                assert task.worker is worker
            on_wire = [task.on_wire for task in worker.line]
            assert on_wire == sorted(on_wire, reverse=True), "what is on the wire comes first"
            assert worker.budget >= -1
            here = [i for i, bucket in enumerate(scheduler._buckets) if worker in bucket]
            expected = (
                [len(worker.line)]
                if worker in by_state[READY]
                and worker.budget
                and not (worker.recalling or worker.slow or worker.lent)
                else []
            )
            assert here == expected, f"{worker} is in the buckets {here}, not {expected}"
            if worker.slow and worker.state == READY:
                assert worker.line or worker.recalling, "idle, and will never be used"
            if worker.state == READY:
                assert worker.budget or len(worker.line) > 1 or worker.recalling
            if worker.state == DRAINING:
                assert worker.line or worker.recalling or worker.lent
            assert worker.lent == (worker in self.lent)
            starting = worker in by_state[STARTING]
            assert (worker in scheduler._awaited) == (starting and not worker.slow)
            unborn = starting and not worker.line
            if worker in scheduler._unborn:
                assert unborn
            elif unborn:
                assert worker.recalling or worker.slow
        in_buckets = {worker for bucket in scheduler._buckets for worker in bucket}
        assert in_buckets <= by_state[READY]
        assert scheduler._assigned == sum(len(worker.line) for worker in workers)
        assert scheduler._busy == sum(1 for worker in workers if worker.line)

        assert scheduler.outstanding == sum(task.state != DONE for task in self.tasks)
        queued = [*scheduler.waiting.first]
        for level, queue in scheduler.waiting.others.items():
            assert queue, f"nothing waits at level {level}"
            assert level < scheduler.waiting.level
            queued += queue
        assert len(set(queued)) == len(queued)
        waiting = {task for task in queued if task.state == PENDING}
        assert waiting == {task for task in self.tasks if task.state == PENDING}
        assert scheduler.waiting.dead == len(queued) - len(waiting)
        assert {task for task in scheduler.waiting if task.state == DELAYED} == {
            task for task in self.tasks if task.state == DELAYED
        }
        assigned = {task for worker in workers for task in worker.line}
        assert assigned == {task for task in self.tasks if task.state == ASSIGNED}
        for task in self.tasks:
            assert (task.state == HELD) == (task in self.held)
            assert task.state == DONE or task not in self.settled or task not in self.taken
            assert task.stop_wanted is None or task.worker is not None or task.state == DONE
            if task.state == DONE:
                assert task.worker is None
                assert task in self.settled or self._settlement_decided(task)

        self._check_deadlines()
        if scheduler.broken is not None:
            assert not waiting
            assert not assigned
            assert not scheduler._live
        elif waiting:
            assert scheduler._live or self._start_is_scheduled(), "nobody will ever take them"
            if scheduler._buckets[0]:
                most = 1 if scheduler.pressed else scheduler.max_workers
                assert scheduler._busy >= most, "idle while tasks wait"
        assert scheduler.closed == (
            (scheduler.closing or scheduler.broken is not None)
            and not scheduler.outstanding
            and not workers
            and not scheduler.decisions
        )

    def _check_deadlines(self) -> None:
        """A task with a time-out that runs is being watched, or being stopped."""
        watched = {(number, turn) for _, number, turn, _ in self.scheduler._deadlines.heap}
        for worker, process in self.processes.items():
            task = process.running
            if task is None or task.control is None or not process.alive:
                continue
            if task.control.options.timeout is None or not (worker.line and worker.line[0] is task):
                continue  # what it has finished before is still on its way
            if task.on_wire and worker.was_ready and task.stop_wanted is None:
                assert (task.id, task.turn) in watched, "nobody watches its time"

    def _check_succession(self, workers: list[Worker]) -> None:
        scheduler = self.scheduler
        succession = scheduler._succession
        spares = [worker for worker in workers if worker.elder is not None]
        assert succession.spares == len(spares)
        assert scheduler._draining == sum(worker.state == DRAINING for worker in workers)
        for heir in spares:
            elder = heir.elder
            assert elder is not None and elder.heir is heir
            assert heir.state in (STARTING, READY) and elder.state == READY
            assert not (heir.line or heir.lent or heir.recalling), "a spare has work"
            assert elder.elder is None, "a spare has an heir"
            assert heir.state == STARTING or elder.cause is None, "stays though its heir is ready"
        for worker in workers:
            assert worker.heir is None or worker.heir.elder is worker
            if worker.state == READY and worker.elder is None and worker.heir is None:
                last = worker.budget >= 0 and worker.budget + len(worker.line) <= 1
                due = worker.cause is not None or last
                assert not due or worker in succession.wanted, "has to leave, and no heir is due"
        for worker in succession.wanted:
            assert worker.state == READY and worker.elder is None and worker.heir is None
        room = len(spares) + scheduler._draining < scheduler.max_workers
        idle = scheduler.closing and scheduler.outstanding == scheduler._assigned
        if succession.wanted and room and not idle and scheduler.broken is None:
            assert scheduler.deadline() is not None, "an heir is due, and nobody starts it"

    def _start_is_scheduled(self) -> bool:
        return self.scheduler.deadline() is not None

    # ------------------------------------------------------------------ the end

    def settle_down(self) -> None:
        """Let everybody go on fairly until nothing happens any more and nothing is due."""
        for _ in range(10_000):
            did = self.apply_all()
            for worker in list(self.lent):
                did = True
                self.note(worker)
            for task in list(self.held):
                did = True
                self.judge(task, again=True)
            while self.outbox:
                did = True
                self.send()
                self.apply_all()
                self.check()
            for worker, process in list(self.processes.items()):
                if process.alive and not process.booted:
                    did = True
                    self.boot(worker)
                if worker in self.stopping:
                    did = True
                    self.end_stopping(worker)
                elif process.alive and process.running not in (None, *self.endless):
                    did = True
                    self.complete(worker, 1e-3)
                if process.can_read:
                    did = True
                    self.read(worker)
                while process.sent:
                    did = True
                    self.look_at(worker)
                    self.check()
                if not process.alive:
                    did = True
                    self.reap(worker)
                    self.check()
            if not did:
                everything_done = not self.scheduler.outstanding
                if everything_done or not self.advance_to_deadline():
                    return
            self.check()
        raise AssertionError("no end in sight")

    def finish(self) -> None:
        """Everything is settled without anybody's help; then a shutdown closes."""
        self.settle_down()
        assert not self.scheduler.outstanding, "stuck"
        assert len(self.settled) == len(self.tasks)
        self.shutdown()
        self.settle_down()
        assert not self.processes
        assert self.scheduler.closed
        self.advance_to_deadline()  # a look that was planned when there was something to see
        assert self.scheduler.deadline() is None
