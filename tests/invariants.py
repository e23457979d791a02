"""What must hold of the scheduler's records at any time, in a world of `simulation`.

`check` recomputes each record from the model and the other records. Its cost does not grow with the
tasks that are over: a task that was found settled is not looked at again, except that a scheduler
which did anything with it would disagree with what is recomputed from the rest.

Does not belong here: what one step must not do. See `simulation`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    Task,
    Worker,
)

if TYPE_CHECKING:
    from simulation import World

    from loky.pool.scheduler import Scheduler

DECISIONS = {
    START: "START",
    SEND: "SEND",
    RECALL: "RECALL",
    RETIRE: "RETIRE",
    KILL: "KILL",
    STOP: "STOP",
    SETTLE: "SETTLE",
}


def check(world: World) -> None:
    """Everything; see the top of the file."""
    scheduler = world.scheduler
    workers = list(scheduler.workers.values())
    _check_workers(world, workers)
    _check_succession(scheduler, workers)
    _check_tasks(world, workers)
    _check_deadlines(world)
    assert scheduler.closed == (
        (scheduler.closing or scheduler.broken is not None)
        and not scheduler.outstanding
        and not workers
        and not scheduler.decisions
    )


def _check_workers(world: World, workers: list[Worker]) -> None:
    scheduler = world.scheduler
    live = starting = busy = assigned = in_buckets = 0
    for worker in workers:
        state, line = worker.state, worker.line
        assert state != GONE
        assert scheduler.workers[worker.id] is worker
        spare = worker.elder is not None
        is_starting = state == STARTING and not spare
        is_ready = state == READY and not spare
        live += is_starting or is_ready
        starting += is_starting
        if line:
            busy += 1
            assigned += len(line)
            left = False
            for task in line:
                assert task.state == ASSIGNED and task.worker is worker
                assert not (left and task.on_wire), "what is on the wire comes first"
                left = not task.on_wire
        assert worker.budget >= -1
        expected = (
            is_ready and worker.budget and not (worker.recalling or worker.slow or worker.lent)
        )
        if expected:
            in_buckets += 1
            assert worker in scheduler._roster.buckets[len(line)], f"{worker} is not in its bucket"
        if state == READY:
            assert not worker.slow or line or worker.recalling, "idle, and will never be used"
            assert worker.budget or len(line) > 1 or worker.recalling
        elif state == DRAINING:
            assert line or worker.recalling or worker.lent
        assert worker.lent == (worker in world.lent)
        assert (worker in scheduler._roster.starting) == is_starting
        assert (worker in scheduler._roster.awaited) == (is_starting and not worker.slow)
        unborn = is_starting and not line
        if worker in scheduler._roster.unborn:
            assert unborn
        elif unborn:
            assert worker.recalling or worker.slow
    # With those of the others that are the same for all: nobody is where it should not be.
    assert sum(map(len, scheduler._roster.buckets)) == in_buckets
    assert len(scheduler._roster.starting) == starting
    assert len(scheduler._roster.awaited) <= starting and len(scheduler._roster.unborn) <= starting
    assert scheduler._roster.live == live
    assert live <= scheduler.max_workers or scheduler.closing
    assert scheduler._assigned == assigned
    assert scheduler._roster.busy == busy
    window = scheduler.window
    if scheduler._pace.duration is not None:
        scheduler._pace.set_window()
    assert scheduler.window == window, "not the window for what tasks take"


def _check_succession(scheduler: Scheduler, workers: list[Worker]) -> None:
    succession = scheduler._roster.succession
    spares = draining = 0
    for worker in workers:
        elder, heir, state = worker.elder, worker.heir, worker.state
        draining += state == DRAINING
        assert heir is None or heir.elder is worker
        if elder is not None:
            spares += 1
            assert elder.heir is worker
            assert state in (STARTING, READY) and elder.state == READY
            assert not (worker.line or worker.lent or worker.recalling), "a spare has work"
            assert elder.elder is None, "a spare has an heir"
            assert state == STARTING or elder.cause is None, "stays though its heir is ready"
        elif state == READY and heir is None:
            last = worker.budget >= 0 and worker.budget + len(worker.line) <= 1
            due = worker.cause is not None or last
            assert not due or worker in succession.wanted, "has to leave, and no heir is due"
    assert succession.spares == spares
    assert scheduler._roster.draining == draining
    for worker in succession.wanted:
        assert worker.state == READY and worker.elder is None and worker.heir is None
    if succession.wanted and spares + draining < scheduler.max_workers:
        idle = scheduler.closing and scheduler.outstanding == scheduler._assigned
        if not idle and scheduler.broken is None:
            assert scheduler.deadline() is not None, "an heir is due, and nobody starts it"


def _check_tasks(world: World, workers: list[Worker]) -> None:
    scheduler = world.scheduler
    waiting = scheduler.waiting
    states = [0] * 6
    held = world.held
    over = []
    for task in world.open:
        state = task.state
        states[state] += 1
        if state == DONE:
            assert task.worker is None
            if task in world.settled:
                over.append(task)
            else:
                assert world.is_settled_soon(task), "over, and nobody says so"
            continue
        assert task not in world.settled or task not in world.taken
        assert (state == ASSIGNED) == (task.worker is not None)
        assert task.stop_wanted is None or state == ASSIGNED
        assert (state == HELD) == (task in held)
    for task in over:
        del world.open[task]
    assert scheduler.outstanding == sum(states) - states[DONE]
    # Every task in a line is assigned to that worker (see above), and no two are the same:
    assert scheduler._assigned == states[ASSIGNED]
    assert len({task for worker in workers for task in worker.line}) == states[ASSIGNED]
    assert len(held) == states[HELD]
    _check_waiting(world, states[PENDING], states[DELAYED])

    if scheduler.broken is not None:
        assert not (states[PENDING] or states[ASSIGNED] or scheduler._roster.live)
    elif states[PENDING]:
        assert scheduler._roster.live or scheduler.deadline() is not None, (
            "nobody will ever take them"
        )
        if scheduler._roster.buckets[0]:
            most = 1 if scheduler.pressed else scheduler.max_workers
            assert scheduler._roster.busy >= most, "idle while tasks wait"
    elif states[DELAYED] and not (world.pickling or waiting.aside):
        assert scheduler.deadline() is not None, "nobody will ever wake them"


def _check_waiting(world: World, pending: int, delayed: int) -> None:
    waiting = world.scheduler.waiting
    queued = list(waiting.first)
    for level, queue in waiting.others.items():
        assert queue, f"nothing waits at level {level}"
        assert level < waiting.level
        queued += queue
    assert len(set(queued)) == len(queued)
    alive = [task for task in queued if task.state == PENDING]
    assert len(alive) == pending
    assert all(task in world.open for task in alive)
    assert waiting.dead == len(queued) - len(alive)
    set_aside = [task for task in waiting.aside if task.state == DELAYED]
    asleep = [task for _, _, task in waiting.delayed if task.state == DELAYED]
    assert len({*set_aside, *asleep}) == len(set_aside) + len(asleep) == delayed
    assert all(task in world.open for task in set_aside)
    assert all(task in world.open for task in asleep)


def _check_deadlines(world: World) -> None:
    """A task with a time-out that runs is being watched, or being stopped."""
    watched = None
    for worker, process in world.processes.items():
        task = process.running
        if task is None or task.control is None or not process.alive:
            continue
        if task.control.options.timeout is None or not (worker.line and worker.line[0] is task):
            continue  # what it has finished before is still on its way
        if task.on_wire and worker.was_ready and task.stop_wanted is None:
            if watched is None:
                heap = world.scheduler._deadlines.heap
                watched = {(number, turn) for _, number, turn, _ in heap}
            assert (task.id, task.turn) in watched, "nobody watches its time"


def check_fairness(world: World, given: list[Task]) -> None:
    """Nobody starves at a low priority: to be called with what was just handed out in one go.

    So many tasks in a row may overtake others: go before older ones that wait at lower priorities.
    What is let go first then may be overtaken once more if a task of a yet higher priority comes
    before anybody is free, so the bound has the number of levels. One that is handed out again has
    overtaken the others before.
    """
    scheduler = world.scheduler
    most = (scheduler.waiting.overtakes + 1) * len(world.priorities)
    patient = [(priority_of(task), task.id) for task in scheduler.waiting if task.state == PENDING]
    patient += [(priority_of(task), task.id) for task in given]
    for task in given:
        mine = priority_of(task), task.id
        patient.remove(mine)
        if not any(priority < mine[0] and age < mine[1] for priority, age in patient):
            world.overtaken = 0
        elif task.turn == 1:
            world.overtaken += 1
        assert world.overtaken <= most, "lower priorities starve"


def priority_of(task: Task) -> int:
    return 0 if task.control is None else task.control.options.priority
