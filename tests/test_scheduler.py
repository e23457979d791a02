"""The scheduler: random histories in which everything that can happen does, and direct tests.

The histories run the real scheduler in the world of `simulation`: hypothesis searches and shrinks
failing ones, and a plain random walk, hundreds of times faster, covers more ground. More of both:
``LOKY_TEST_EFFORT=100 pytest tests/test_scheduler.py`` tries a hundred times as many (the time
limit is lifted accordingly; use ``-p no:timeout`` for hours). A failing walk prints its seed. By
far the most histories are run by `tools/simulate`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import histories
import pytest
from histories import ACTIONS, Action, make_world, walk
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulation import World

from loky.pool.intensity import (
    FAILED_STARTS_BASE,
    FAILED_STARTS_EACH,
    INTENSITY_BASE,
    INTENSITY_EACH,
)
from loky.pool.model import (
    CANCELLED,
    DRAINING,
    KILL,
    PENDING,
    READY,
    RECALL,
    RETIRE,
    RETIRING,
    SEND,
    START,
    STARTING,
    STOP,
    Broken,
    Cancelled,
    Lost,
    Refused,
    Task,
    Worker,
)
from loky.pool.pace import MAX_AHEAD, SLOW_START_SECONDS
from loky.pool.roster import SLOW_HEAD_SECONDS
from loky.pool.scheduler import START_AGAIN_SECONDS, Scheduler
from loky.pool.waiting import OVERTAKES
from loky.task_options import TIMEOUT, TaskOptions

EFFORT = float(os.environ.get("LOKY_TEST_EFFORT", "1"))

# ---------------------------------------------------------------------- random histories


class Histories(RuleBasedStateMachine):
    world: World

    @initialize(data=st.data())
    def begin(self, data: Any) -> None:
        self.world = make_world(lambda below: data.draw(st.integers(0, below - 1)))

    @invariant()
    def records_are_right(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()


def _add_rule(action: Action) -> None:
    def run(self: Histories, data: Any) -> None:
        found = action.possible(self.world)
        action.run(self.world, found, lambda below: data.draw(st.integers(0, below - 1)))

    run.__name__ = action.name
    checked = precondition(lambda self: hasattr(self, "world") and action.possible(self.world))
    setattr(Histories, action.name, checked(rule(data=st.data())(run)))


for _action in ACTIONS:
    _add_rule(_action)

TestHistories = pytest.mark.timeout(80)(Histories.TestCase)
TestHistories.settings = settings(
    max_examples=max(1, int(60 * EFFORT)),
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("part", range(4))
def test_random_walks(part: int) -> None:
    for number in range(max(1, int(100 * EFFORT))):
        seed = number * 4 + part
        try:
            walk(seed, 200)
        except BaseException:
            print(f"walk({seed}, 200) fails")
            raise


def test_all_that_the_scheduler_can_be_told_happens_in_the_histories() -> None:
    tally = histories.run(range(800))
    assert not tally.failures
    assert tally.histories == 800
    assert not histories.never_happened(tally)


def test_a_history_that_fails_can_be_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, error = histories.replay(7)
    assert error is None
    assert whole == histories.replay(7)[0], "the same seed, the same history"
    assert whole != histories.replay(8)[0]

    correct = Scheduler.recalled

    def recalled(self: Scheduler, worker: Worker, unread: list[Task], now: float) -> None:
        correct(self, worker, unread[1:], now)  # loses one

    monkeypatch.setattr(Scheduler, "recalled", recalled)
    tally = histories.run(range(100))
    assert tally.failures
    seed, reason = next(iter(tally.failures.items()))
    lines, error = histories.replay(seed, last=10)
    assert len(lines) == 10
    assert error is not None and reason in error


def simulate(*arguments: str) -> str:
    """Run the command; what it prints."""
    script = Path(__file__).parent.parent / "tools" / "simulate"
    return subprocess.run(
        [sys.executable, "-B", str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    ).stdout


def test_the_command_runs_histories_in_parallel_and_replays_one() -> None:
    printed = simulate("--histories", "600", "--seed", "5000", "--steps", "12", "--jobs", "2")
    assert "600 histories of 7,200 steps" in printed
    assert "lost: timeout" in printed
    assert simulate("--replay", "5001").endswith("It passes.\n")


# ---------------------------------------------------------------------- direct tests
#
# These use the same world, but each party does what the test says.


def ready_workers(world: World) -> list[Worker]:
    """Start what is to be started, and let every worker report."""
    world.apply_all()
    for worker, process in world.processes.items():
        if not process.booted:
            world.boot(worker)
            world.look_at(worker)
    world.apply_all()
    return list(world.processes)


def send_all(world: World) -> None:
    world.apply_all()
    while world.outbox:
        world.send()
        world.apply_all()


def run_one(world: World, worker: Worker, seconds: float) -> None:
    world.read(worker)
    world.complete(worker, seconds)
    world.look_at(worker)
    send_all(world)


def warm(workers: int, seconds: float = 0.0, **options: Any) -> tuple[World, list[Worker]]:
    """A world with ready, idle workers, that knows how long tasks take."""
    world = World(workers, **options)
    world.submit(workers)
    found = ready_workers(world)
    send_all(world)
    for worker in found:
        run_one(world, worker, seconds)
    world.check()
    return world, found


def lengths(world: World) -> list[int]:
    return [len(worker.line) for worker in world.processes]


def test_a_cold_pool_spreads_its_first_tasks_over_all_workers() -> None:
    world = World(4)
    world.submit(50)
    started = [d[1] for d in world.scheduler.decisions if d[0] == START]
    assert len(started) == 4
    world.apply_all()
    assert lengths(world) == [1, 1, 1, 1]
    assert all(worker.state == STARTING for worker in world.processes)
    # The first to be ready is fast, and keeps its hands off what the others were promised.
    first = started[2]
    world.boot(first)
    world.look_at(first)
    send_all(world)
    for _ in range(20):
        run_one(world, first, 1e-6)
    assert [len(worker.line) for worker in started if worker is not first] == [1, 1, 1]
    world.finish()
    assert all(verdict == "result" for verdict in world.settled.values())


def test_the_promised_task_of_a_slow_starter_goes_to_an_idle_worker() -> None:
    world = World(2)
    one, other = world.submit(2)
    world.apply_all()
    fast, slow = world.processes
    world.boot(fast)
    world.look_at(fast)
    send_all(world)
    run_one(world, fast, 0.5)
    assert one in world.settled
    assert other.worker is slow
    world.advance(SLOW_START_SECONDS * 0.99)
    assert other.worker is slow
    assert world.advance_to_deadline()
    assert other.worker is fast
    # And it is not handed back and forth when there is nobody else who could take it.
    third, fourth = world.submit(2)
    assert fourth.state == third.state == PENDING
    world.boot(slow)
    world.look_at(slow)
    assert third.worker is slow
    world.finish()


def test_tiny_tasks_are_sent_ahead_and_long_ones_are_not() -> None:
    world, (worker,) = warm(1, 1e-6)
    world.submit(500)
    send_all(world)
    assert len(worker.line) == 1 + MAX_AHEAD
    world.finish()

    world, (worker,) = warm(1, 0.5)
    world.submit(500)
    send_all(world)
    assert len(worker.line) == 1
    world.finish()


def test_a_long_task_does_not_hold_tiny_ones() -> None:
    world, (one, other) = warm(2, 1e-5)
    world.submit(200)
    send_all(world)
    held = list(one.line)[1:]
    assert held
    world.read(one)  # this one will take its time
    world.advance_to_deadline()  # notices after SLOW_HEAD_SECONDS
    send_all(world)
    assert world.now <= SLOW_HEAD_SECONDS
    assert len(one.line) == 1
    assert all(task.worker is not one for task in held)
    for _ in range(400):
        if not other.line:
            break
        run_one(world, other, 1e-5)
    # Everything but the long one is done, by the other worker.
    assert len(world.settled) == len(world.tasks) - 1
    world.check()
    world.finish()


def test_a_long_task_on_a_worker_that_is_to_be_replaced_does_not_hold_tiny_ones() -> None:
    world, (worker,) = warm(1, 1e-5, max_tasks_per_child=20)
    world.submit(100)
    send_all(world)
    held = list(worker.line)[1:]
    assert len(held) == 18, "all that it may still be given"
    world.read(worker)
    world.advance_to_deadline()
    assert len(worker.line) == 1
    assert all(task.state == PENDING for task in held)
    assert worker.state == READY, "what came back counts for nothing: it has more to do"
    world.finish()


def test_tasks_that_come_back_do_not_use_up_a_worker() -> None:
    world, _ = warm(1, 1e-5, max_tasks_per_child=5)
    world.submit(49)
    for _ in range(1000):  # each turns out to be long, so what was sent ahead is taken back
        send_all(world)
        workers = ready_workers(world)
        world.advance(1.0)
        send_all(world)
        for worker in workers:
            if worker not in world.processes:
                continue
            if world.processes[worker].can_read:
                world.read(worker)
            if not world.processes[worker].alive:
                world.reap(worker)
            elif world.processes[worker].running is not None:
                world.advance_to_deadline()
                world.complete(worker, 1e-5)
                world.look_at(worker)
    assert not world.scheduler.outstanding
    assert world.scheduler._roster._next <= 11, "ten are needed, and one is ready for more"
    world.finish()


def test_what_a_descheduled_worker_has_not_read_leaves_it_usable() -> None:
    world, _ = warm(1, 1e-5)
    world.submit(10)
    send_all(world)
    world.advance(1.0)  # it reads nothing at all meanwhile, not even the head
    world.apply_all()
    world.check()
    world.finish()
    assert set(world.settled.values()) == {"result"}


def test_the_most_recently_used_idle_worker_is_used_first() -> None:
    world, workers = warm(4, 1e-3)
    for _ in range(5):
        (task,) = world.submit()
        assert task.worker is workers[-1]
        send_all(world)
        run_one(world, workers[-1], 1e-3)
    world.finish()


def test_pending_tasks_start_in_the_order_of_submission() -> None:
    world, (worker,) = warm(1, 0.5)
    tasks = world.submit(5)
    done = []
    for _ in tasks:
        send_all(world)
        done.append(worker.line[0])
        run_one(world, worker, 0.5)
    assert done == tasks
    world.finish()


def test_higher_priorities_go_first_and_lower_ones_do_not_starve() -> None:
    world, (worker,) = warm(1, 1.0)  # long tasks: one at a time
    (low,) = world.submit(1, TaskOptions(priority=-1))
    send_all(world)
    world.read(worker)  # it is running; what comes now has to wait
    patient = world.submit(3, TaskOptions(priority=-1))
    order: list[Task] = []
    for _ in range(2 * OVERTAKES + 5):
        world.submit(1, TaskOptions(priority=7))
        world.complete(worker, 1.0)
        world.look_at(worker)
        send_all(world)
        world.read(worker)
        order.append(next(iter(worker.line)))
    overtaking = [order.index(task) if task in order else None for task in patient]
    assert overtaking == [OVERTAKES, 2 * OVERTAKES, None]
    assert world.settled[low] == "result"
    world.finish()


def test_a_task_that_is_late_is_stopped_and_what_was_sent_ahead_goes_on() -> None:
    world, (worker,) = warm(1, 1e-5)
    (late, *rest) = world.submit(5, TaskOptions(timeout=3.0))
    send_all(world)
    world.read(worker)
    world.advance(2.9)
    world.apply_all()
    assert not world.stopping
    world.advance(0.2)
    world.apply_all()
    assert list(world.stopping) == [worker]
    assert worker.doomed is late
    world.finish()
    assert isinstance(world.settled[late], Lost)
    assert world.settled[late].cause == TIMEOUT
    assert [world.settled[task] for task in rest] == ["result"] * 4


def test_the_reply_of_a_task_whose_time_was_up_is_ignored() -> None:
    world, (worker,) = warm(1)
    (late,) = world.submit(1, TaskOptions(timeout=3.0))
    send_all(world)
    world.read(worker)
    world.advance(3.1)
    world.apply_all()
    world.complete(worker, 3.2)
    world.look_at(worker)
    assert late not in world.settled
    world.finish()
    assert isinstance(world.settled[late], Lost)


def test_a_delayed_retry_comes_up_at_its_time() -> None:
    world, (worker,) = warm(1)
    (task,) = world.submit(1, TaskOptions(retries=1, backoff=10.0))
    send_all(world)
    world.read(worker)
    world.die(worker)
    world.reap(worker)
    (replacement,) = ready_workers(world)
    world.advance(9.9)
    assert not replacement.line
    world.advance(0.2)
    assert list(replacement.line) == [task]
    world.finish()
    assert world.settled[task] == "result"


def test_recalled_tasks_keep_their_order() -> None:
    world, (worker,) = warm(1, 1e-5)
    tasks = world.submit(10)
    send_all(world)
    world.read(worker)
    world.advance(1.0)
    world.apply_all()
    assert list(worker.line) == tasks[:1]
    assert list(world.scheduler.waiting.first) == tasks[1:]
    world.finish()


# What a death costs.


def test_a_death_costs_the_running_task_only() -> None:
    world, (worker,) = warm(1, 1e-5)
    tasks = world.submit(10)
    send_all(world)
    run_one(world, worker, 1e-5)
    world.read(worker)
    world.die(worker)
    world.reap(worker)
    world.finish()
    verdicts = [world.settled[task] for task in tasks]
    assert isinstance(verdicts[1], Lost)
    assert verdicts[1].worker is worker
    assert verdicts[1].exit == "exit"
    assert [v for v in verdicts if v == "result"] == ["result"] * 9


def test_a_finished_result_survives_its_worker() -> None:
    world, (worker,) = warm(1, 1e-5)
    tasks = world.submit(3)
    send_all(world)
    world.read(worker)
    world.complete(worker, 1e-5)
    world.read(worker)
    world.complete(worker, 1e-5)  # sent, and not looked at before the death
    world.die(worker)
    world.reap(worker)
    world.finish()
    assert [world.settled[task] for task in tasks] == ["result"] * 3


def test_a_hundred_deaths_by_tasks_do_not_break_the_pool() -> None:
    world = World(2)
    for _ in range(100):
        world.submit()
        ready_workers(world)
        send_all(world)
        for worker, process in list(world.processes.items()):
            if process.can_read:
                world.read(worker)
                world.die(worker)
                world.reap(worker)
        assert world.scheduler.broken is None
    world.finish()
    assert all(isinstance(verdict, Lost) for verdict in world.settled.values())


@pytest.mark.parametrize("max_workers", [1, 4])
def test_too_many_deaths_of_idle_workers_break_the_pool(max_workers: int) -> None:
    world = World(max_workers)
    world.submit()
    ready_workers(world)
    world.settle_down()
    deaths = 0
    while world.scheduler.broken is None:
        ready_workers(world)
        worker = next(iter(world.processes))
        world.die(worker)
        world.reap(worker)
        deaths += 1
        assert deaths < 100
    assert deaths == INTENSITY_BASE + INTENSITY_EACH * max_workers + 1
    (late,) = world.submit()
    world.finish()
    assert world.settled[late] is world.scheduler.broken
    assert isinstance(world.scheduler.broken.cause, Lost)


def test_rare_deaths_of_idle_workers_do_not_break_the_pool() -> None:
    world = World(1)
    world.submit()
    world.settle_down()
    for _ in range(100):
        (worker,) = ready_workers(world)
        world.die(worker)
        world.reap(worker)
        world.advance(2.0)
    assert world.scheduler.broken is None
    world.finish()


@pytest.mark.parametrize("max_workers", [1, 4])
def test_failing_starts_break_the_pool_however_slow_they_are(max_workers: int) -> None:
    world = World(max_workers)
    (task,) = world.submit()
    deaths = 0
    while world.scheduler.broken is None:
        world.apply_all()
        worker = next(iter(world.processes))
        world.advance(60.0)
        world.die(worker)
        world.reap(worker)
        deaths += 1
        assert deaths < 100
    assert deaths == max(FAILED_STARTS_BASE, FAILED_STARTS_EACH * max_workers)
    world.finish()
    assert isinstance(world.settled[task], Broken)


def test_a_pool_that_gets_fewer_processes_than_it_wants_goes_on_with_those() -> None:
    world = World(4)
    world.submit(10)
    world.apply()  # one process
    while world.scheduler.decisions:
        refuse = world.scheduler.decisions[0][0] == START
        world.apply(refuse_start=refuse)
    assert len(world.processes) == 1
    assert world.scheduler.broken is None
    world.check()
    # It tries again later, not at once and not for ever in a loop.
    assert world.scheduler.deadline() == pytest.approx(START_AGAIN_SECONDS)
    for _ in range(50):
        world.now = world.scheduler.deadline()
        world._event(world.scheduler.tick, world.now)
        while world.scheduler.decisions:
            refuse = world.scheduler.decisions[0][0] == START
            world.apply(refuse_start=refuse)
    assert world.scheduler.broken is None
    world.finish()
    assert set(world.settled.values()) == {"result"}


def test_a_pool_without_work_does_not_ask_for_refused_processes_again_and_again() -> None:
    world = World(4)
    world.submit()
    world.apply()
    while world.scheduler.decisions:
        world.apply(refuse_start=world.scheduler.decisions[0][0] == START)
    ready_workers(world)
    world.settle_down()
    assert len(world.processes) == 1
    assert world.scheduler.deadline() is None
    world.now += START_AGAIN_SECONDS
    world.submit(2)  # more than it can take: now it asks
    assert START in [d[0] for d in world.scheduler.decisions]
    world.finish()


def test_a_pool_that_gets_no_process_at_all_breaks() -> None:
    world = World(2)
    (task,) = world.submit()
    for _ in range(100):
        while world.scheduler.decisions:
            world.apply(refuse_start=True)
        if world.scheduler.broken is not None or world.scheduler.deadline() is None:
            break
        world.now = world.scheduler.deadline()
        world._event(world.scheduler.tick, world.now)
    assert isinstance(world.settled[task], Broken)
    assert world.now < 1.0
    assert world.scheduler.closed


def test_break_on_crash_breaks_the_pool_for_everybody() -> None:
    world, (one, _other) = warm(2, 0.5, break_on_crash=True)
    tasks = world.submit(5)
    send_all(world)
    world.read(one)
    world.die(one)
    world.reap(one)
    world.finish()
    assert {world.settled[task] for task in tasks} == {world.scheduler.broken}


# Cancelling and stopping.


def test_cancel_takes_back_what_was_sent_and_not_read() -> None:
    world, (worker,) = warm(1, 1e-5)
    tasks = world.submit(3)
    send_all(world)
    world.read(worker)
    world.cancel(tasks[0])
    world.cancel(tasks[1])
    send_all(world)
    assert tasks[0] not in world.settled, "it runs: that is not cancel's business"
    assert isinstance(world.settled[tasks[1]], Cancelled)
    world.finish()
    assert [world.settled[task] for task in tasks] == ["result", CANCELLED, "result"]


def test_stop_ends_the_worker_of_a_running_task_and_spares_the_rest() -> None:
    world, (worker,) = warm(1, 1e-5)
    tasks = world.submit(3)
    send_all(world)
    world.read(worker)
    world.stop(tasks[0])
    assert world.scheduler.decisions == [(RECALL, worker)]
    world.apply()
    assert (STOP, worker, tasks[0]) in world.scheduler.decisions
    world.finish()
    assert [world.settled[task] for task in tasks] == [CANCELLED, "result", "result"]
    assert world.scheduler.broken is None


def test_stop_of_a_task_that_finishes_meanwhile_spares_the_next() -> None:
    world, (worker,) = warm(1, 1e-5)
    tasks = world.submit(2)
    send_all(world)
    world.read(worker)
    world.complete(worker, 1e-5)
    world.read(worker)  # the parent does not know yet that it goes on
    world.stop(tasks[0])
    send_all(world)
    assert worker.state == READY
    world.finish()
    assert [world.settled[task] for task in tasks] == ["result", "result"]


def test_stop_of_a_task_that_has_just_begun_behind_another() -> None:
    world, (worker,) = warm(1, 1e-5)
    tasks = world.submit(2)
    send_all(world)
    world.read(worker)
    world.complete(worker, 1e-5)
    world.read(worker)  # the parent still takes the first one for the running one
    world.stop(tasks[1])
    world.finish()
    assert [world.settled[task] for task in tasks] == ["result", CANCELLED]


def test_two_tasks_of_one_worker_stopped_at_the_same_time() -> None:
    world, (worker,) = warm(1, 1e-5)
    tasks = world.submit(3)
    send_all(world)
    world.read(worker)
    world.stop(tasks[0])
    world.stop(tasks[1])
    world.finish()
    assert [world.settled[task] for task in tasks] == [CANCELLED, CANCELLED, "result"]


def test_a_stopped_task_is_not_run_again_where_crashes_break_the_pool() -> None:
    world, (worker,) = warm(1, 1e-5, break_on_crash=True)
    tasks = world.submit(2)
    send_all(world)
    world.read(worker)
    world.stop(tasks[0])
    world.finish()
    assert [world.settled[task] for task in tasks] == [CANCELLED, "result"]
    assert world.scheduler.broken is None


def test_a_million_cancelled_tasks_do_not_pile_up() -> None:
    scheduler = Scheduler(1)
    scheduler.submit(Task(0, None, (), {}, None))
    scheduler.dispatch(0.0)
    for number in range(1, 20_000):
        task = Task(number, None, (), {}, None)
        scheduler.submit(task)
        scheduler.cancelled(task)
    assert len(scheduler.waiting.first) <= 2000
    assert scheduler.outstanding == 1


# The number of workers.


def test_tasks_at_work_never_exceed_the_workers_when_each_serves_one_task() -> None:
    world = World(2, max_tasks_per_child=1)
    world.submit(50)
    for _ in range(5):  # replacements become ready while the first two still run
        for worker in ready_workers(world):
            send_all(world)
            if world.processes[worker].can_read:
                world.read(worker)
        running = [p for p in world.processes.values() if p.running is not None]
        assert len(running) <= 2
        assert len(world.processes) <= 4, "two at work and their two replacements"
    world.finish()
    assert set(world.settled.values()) == {"result"}


def test_max_tasks_per_child_counts_tasks_that_were_read() -> None:
    world = World(1, max_tasks_per_child=3)
    world.submit(10)
    served: dict[Worker, int] = {}
    read = world.read

    def counting_read(worker: Worker) -> None:
        read(worker)
        if world.processes[worker].running is not None:
            served[worker] = served.get(worker, 0) + 1

    world.read = counting_read  # type: ignore[method-assign]
    world.settle_down()
    assert sorted(served.values()) == [1, 3, 3, 3]
    world.finish()


def test_growing_starts_workers_at_once() -> None:
    world, _ = warm(2, 1e-3)
    world.resize(5)
    assert [d[0] for d in world.scheduler.decisions] == [START] * 3
    world.finish()


def test_shrinking_retires_idle_workers_at_once_and_busy_ones_when_they_are_done() -> None:
    world, workers = warm(4, 0.5)
    world.submit(3)
    send_all(world)
    busy = [worker for worker in workers if worker.line]
    for worker in busy:
        world.read(worker)
    world.resize(1)
    world.apply_all()
    assert sum(worker.state == RETIRING for worker in workers) == 1
    assert sum(worker.state == DRAINING for worker in workers) == 2
    world.complete(busy[0], 0.5)
    world.look_at(busy[0])
    world.finish()
    assert set(world.settled.values()) == {"result"}


def test_idle_workers_leave_after_their_time_and_work_brings_them_back() -> None:
    world, workers = warm(2, 1e-3, idle_timeout=3.0)
    assert world.scheduler.deadline() == pytest.approx(world.now + 3.0)
    world.advance(2.99)
    world.apply_all()
    assert all(worker.state == READY for worker in workers)
    world.advance_to_deadline()
    assert all(worker.state == RETIRING for worker in workers)
    world.settle_down()
    assert not world.processes
    assert world.scheduler.deadline() is None
    world.submit()
    assert [d[0] for d in world.scheduler.decisions if d[0] == START] == [START]
    world.finish()


def test_an_idle_pool_has_nothing_to_wake_up_for() -> None:
    world, _ = warm(4, 1e-6)
    world.submit(100)
    world.settle_down()
    world.advance_to_deadline()
    assert world.scheduler.deadline() is None
    world.finish()


# Succession: a worker that has to leave for good has its place taken by a warm one.


def heir_of(worker: Worker) -> Worker:
    assert worker.heir is not None
    return worker.heir


def get_ready(world: World, worker: Worker) -> None:
    world.apply_all()
    world.boot(worker)
    world.look_at(worker)
    send_all(world)


def test_a_recycled_worker_goes_on_until_its_heir_is_ready() -> None:
    world, (worker,) = warm(1, 0.5)
    world.recycle(worker)
    heir = heir_of(worker)
    world.apply_all()
    for _ in range(3):  # the heir takes long to start, and nobody has to wait for it
        (task,) = world.submit()
        assert task.worker is worker
        send_all(world)
        run_one(world, worker, 0.5)
    get_ready(world, heir)
    assert worker.state == RETIRING
    (task,) = world.submit()
    assert task.worker is heir
    assert world.recycled == {"memory": 1}
    world.finish()
    assert set(world.settled.values()) == {"result"}


def test_a_busy_recycled_worker_finishes_its_task_and_gives_back_the_others() -> None:
    world, (worker,) = warm(1, 1e-5)
    tasks = world.submit(10)
    send_all(world)
    world.read(worker)
    world.recycle(worker)
    heir = heir_of(worker)
    get_ready(world, heir)
    assert list(worker.line) == tasks[:1]
    assert worker.state == DRAINING
    assert not heir.line, "one at a time: that is what max_workers says"
    world.complete(worker, 1e-5)
    world.look_at(worker)
    assert list(heir.line) == tasks[1:]
    world.finish()
    assert set(world.settled.values()) == {"result"}


def test_recycling_counts_once_and_needs_one_heir() -> None:
    world, (worker,) = warm(1, 0.5)
    for _ in range(3):
        world.recycle(worker)
    world.apply_all()
    assert len(world.processes) == 2
    get_ready(world, heir_of(worker))
    world.recycle(worker)
    world.finish()
    assert world.recycled == {"memory": 1}


def test_the_last_allowed_task_leaves_a_warm_place() -> None:
    world, _ = warm(1, 0.5, max_tasks_per_child=3)
    for _ in range(10):
        # One at a time, as they come; whoever starts becomes ready while a task runs.
        (task,) = world.submit()
        assert task.worker is not None and task.worker.state in (READY, DRAINING), "had to wait"
        send_all(world)
        worker = task.worker
        world.read(worker)
        ready_workers(world)
        world.complete(worker, 0.5)
        world.look_at(worker)
        world.apply_all()
        for gone in [w for w, process in world.processes.items() if process.can_read]:
            world.read(gone)
            world.reap(gone)
    assert world.recycled == {"max_tasks_per_child": 3}
    world.finish()


def test_short_tasks_have_an_heir_started_earlier() -> None:
    started = []
    for seconds in (10.0, 1e-3):
        world = World(1, max_tasks_per_child=1000)
        world.submit()
        world.apply_all()
        (worker,) = world.processes
        world.advance(0.1)  # what a start takes
        get_ready(world, worker)
        run_one(world, worker, seconds)
        served = 1
        while worker.heir is None:
            world.submit()
            send_all(world)
            run_one(world, worker, seconds)
            served += 1
        started.append(served)
        world.finish()
    assert started == [999, 799], "one before the end, and 0.2 seconds before the end"


def test_spares_at_most_double_the_processes() -> None:
    world = World(3, max_tasks_per_child=1)
    world.submit(100)
    for _ in range(30):
        for worker in ready_workers(world):
            if world.processes[worker].can_read:
                world.read(worker)
        send_all(world)
        assert len([process for process in world.processes.values() if process.alive]) <= 6
        for worker, process in list(world.processes.items()):
            if not process.alive:
                world.reap(worker)
            elif process.running is not None:
                world.complete(worker, 0.5)
                world.look_at(worker)
    world.finish()


def test_an_idle_pool_of_workers_for_one_task_each_comes_to_rest() -> None:
    world = World(2, max_tasks_per_child=1)
    world.submit()
    world.settle_down()
    world.submit()
    world.settle_down()
    assert len(world.processes) == 4, "two workers and a spare for each"
    assert world.scheduler.deadline() is None
    assert sum(world.recycled.values()) == 2
    world.finish()


def test_an_heir_that_dies_is_replaced_and_its_elder_stays() -> None:
    world, (worker,) = warm(1, 0.5)
    world.recycle(worker)
    first = heir_of(worker)
    world.apply_all()
    world.die(first)
    world.reap(first)
    second = heir_of(worker)
    assert second is not first
    (task,) = world.submit()
    assert task.worker is worker
    get_ready(world, second)
    world.finish()
    assert set(world.settled.values()) == {"result"}


def test_heirs_that_never_start_break_the_pool_like_other_workers_that_do_not() -> None:
    world, (worker,) = warm(1, 0.5)
    world.recycle(worker)
    for _ in range(FAILED_STARTS_BASE):
        world.apply_all()
        heir = heir_of(worker)
        world.die(heir)
        world.reap(heir)
    assert isinstance(world.scheduler.broken, Broken)
    world.finish()


def test_an_heir_for_which_there_is_no_process_has_its_elder_leave_first() -> None:
    world, (worker,) = warm(1, 0.5)
    world.recycle(worker)
    assert world.scheduler.decisions == [(START, heir_of(worker))]
    world.apply(refuse_start=True)
    assert worker.state == RETIRING
    (task,) = world.submit()
    world.finish()
    assert world.settled[task] == "result"
    assert world.recycled == {"memory": 1}


@pytest.mark.parametrize("ready", [True, False], ids=["ready", "starting"])
def test_an_heir_takes_over_when_its_elder_dies(ready: bool) -> None:
    world, (worker,) = warm(1, 0.5, max_tasks_per_child=2)
    heir = heir_of(worker)
    if ready:
        get_ready(world, heir)
    world.apply_all()
    world.submit()
    send_all(world)
    world.read(worker)
    world.die(worker)
    world.reap(worker)
    world.apply_all()
    assert world.scheduler._roster.live == 1
    assert heir in world.processes and heir.elder is None
    (task,) = world.submit()
    assert task.worker is (heir if ready else None)
    world.finish()
    assert world.settled[task] == "result"


def test_a_shrinking_takes_the_heir_along() -> None:
    world, workers = warm(2, 0.5)
    for worker in workers:
        world.recycle(worker)
    world.apply_all()
    assert len(world.processes) == 4
    world.resize(1)
    world.apply_all()
    assert sum(worker.state in (STARTING, READY) for worker in world.processes) == 2
    world.finish()


def test_workers_that_leave_for_want_of_work_take_their_heirs_along() -> None:
    world, (worker,) = warm(1, 0.5, max_tasks_per_child=2, idle_timeout=3.0)
    get_ready(world, heir_of(worker))
    world.advance(3.1)
    world.settle_down()
    assert not world.processes
    assert world.scheduler.deadline() is None
    assert not world.recycled
    world.finish()


def test_an_heir_that_has_waited_for_long_is_not_taken_for_one_without_work_for_long() -> None:
    world = World(1, max_tasks_per_child=3, idle_timeout=3.0)
    world.submit()
    world.apply_all()
    (worker,) = world.processes
    world.advance(10.0)  # starts take that long, so heirs are started well ahead
    get_ready(world, worker)
    run_one(world, worker, 0.5)
    heir = heir_of(worker)
    get_ready(world, heir)
    world.submit()
    send_all(world)
    world.read(worker)
    world.advance(100.0)
    world.complete(worker, 100.0)
    world.look_at(worker)
    world.submit()
    assert worker.state == DRAINING
    world.advance(2.9)
    assert heir.state == READY
    world.finish()


@pytest.mark.parametrize("can_recall", [True, False])
def test_a_worker_that_quits_costs_nothing(can_recall: bool) -> None:
    world, (worker,) = warm(1, 1e-5, can_recall=can_recall)
    tasks = world.submit(10)
    send_all(world)
    world.read(worker)
    world.complete(worker, 1e-5)
    world.quit(worker)
    world.look_at(worker)
    send_all(world)
    assert worker.line, "something is in its channel that it does not read any more"
    world.look_at(worker)
    world.finish()
    assert [world.settled[task] for task in tasks] == ["result"] * 10
    assert world.scheduler.broken is None
    assert not world.scheduler._intensity._deaths, "nobody is to blame for that one's end"


def test_the_last_task_of_a_worker_that_quits_does_not_wait_for_its_exit() -> None:
    scheduler = Scheduler(1, max_tasks_per_child=2)
    first, last = (Task(number, None, (), {}, None) for number in (1, 2))
    scheduler.submit(first)
    scheduler.submit(last)
    scheduler.dispatch(0.0)
    (worker,) = scheduler.workers.values()
    scheduler.ready(worker, 0.1)
    scheduler.result(worker, first, 0.2, 1e-4)
    scheduler.dispatch(0.2)
    assert (worker.state, list(worker.line)) == (DRAINING, [last])
    scheduler.decisions.clear()
    scheduler.recycle(worker, "full", quits=True)
    assert scheduler.decisions == [(RECALL, worker)]
    scheduler.decisions.clear()
    scheduler.recalled(worker, [last], 0.3)
    assert (RETIRE, worker) in scheduler.decisions, "nobody would end it if it did not leave"
    assert last.state == PENDING


# Memory is short.


def test_under_pressure_tasks_run_one_by_one_and_none_is_sent_ahead() -> None:
    world, _ = warm(3, 1e-5)
    world.press(True)
    world.submit(20)
    send_all(world)
    for _ in range(5):
        assert sorted(lengths(world)) == [0, 0, 1]
        (worker,) = [worker for worker in world.processes if worker.line]
        run_one(world, worker, 1e-5)
    world.press(False)
    send_all(world)
    assert sum(lengths(world)) == 15
    assert not world.scheduler.waiting.first
    world.finish()
    assert set(world.settled.values()) == {"result"}


def test_pressure_lets_those_who_are_at_work_finish() -> None:
    world, workers = warm(2, 0.5)
    world.submit(5)
    send_all(world)
    world.press(True)
    assert lengths(world) == [1, 1]
    run_one(world, workers[0], 0.5)
    assert lengths(world) == [0, 1]
    run_one(world, workers[1], 0.5)
    assert sum(lengths(world)) == 1
    world.finish()


# Lending: a submitter sends a task to an idle worker by itself.


def lent_world(**options: Any) -> tuple[World, Worker]:
    world, workers = warm(2, 1e-3, **options)
    world.lend()
    (worker,) = world.lent
    assert worker is workers[-1], "the most recently used one"
    return world, worker


@pytest.mark.parametrize("early", [True, False], ids=["reply before note", "note before reply"])
def test_a_lent_worker_runs_the_submitter_s_task(early: bool) -> None:
    world, worker = lent_world()
    world.feed(worker)
    others = world.submit(3)
    assert all(task.worker is not worker for task in others), "nobody else sends to it meanwhile"
    if not early:
        world.note(worker)
    world.read(worker)
    world.complete(worker, 1e-3)
    world.look_at(worker)
    if early:
        world.note(worker)
    world.check()
    world.finish()
    assert set(world.settled.values()) == {"result"}


def test_a_lent_worker_that_is_given_back_unused_is_usable() -> None:
    world, worker = lent_world()
    world.note(worker)
    world.check()
    world.finish()
    assert set(world.settled.values()) == {"result"}


@pytest.mark.parametrize("used", [True, False])
def test_a_lent_worker_is_not_asked_to_leave_by_a_shutdown(used: bool) -> None:
    world, worker = lent_world()
    if used:
        world.feed(worker)
    world.shutdown()
    world.apply_all()
    assert worker.state == READY, "the submitter's task may run for long"
    assert not world.scheduler.closed
    world.note(worker)
    world.settle_down()
    assert world.scheduler.closed
    verdict = world.settled[world.tasks[-1]]
    assert verdict == "result" if used else isinstance(verdict, Refused)


@pytest.mark.parametrize("used", [True, False])
def test_a_lent_worker_that_is_one_too_many_leaves_when_it_is_done(used: bool) -> None:
    world, worker = lent_world()
    if used:
        world.feed(worker)
    world.die(next(other for other in world.processes if other is not worker))
    world.resize(1)
    world.apply_all()
    world.check()
    world.note(worker)
    world.finish()
    assert set(world.settled.values()) == {"result"}


def test_the_submitter_s_task_survives_the_death_of_an_idle_lent_worker() -> None:
    world, worker = lent_world()
    world.die(worker)
    world.feed(worker)
    world.note(worker)
    world.reap(worker)
    world.finish()
    assert set(world.settled.values()) == {"result"}


@pytest.mark.parametrize("used", [True, False])
def test_a_lent_worker_of_a_pool_that_is_killed(used: bool) -> None:
    world, worker = lent_world()
    if used:
        world.feed(worker)
    world.shutdown(kill=True)
    world.apply_all()
    world.note(worker)
    world.settle_down()
    assert world.scheduler.closed
    assert isinstance(world.settled[world.tasks[-1]], Refused)


def test_tasks_that_come_back_do_not_overtake_again() -> None:
    world, workers = warm(2, 0.9e-3)  # one is sent ahead
    world.scheduler.waiting.overtakes = 5
    urgent = world.submit(4, TaskOptions(priority=1))
    others = world.submit(6)
    send_all(world)
    assert lengths(world) == [2, 2]
    for _ in range(10):  # nobody gets to run, so what is in the channels is taken back
        world.advance_to_deadline()
        send_all(world)
        assert all(task.worker is not None for task in urgent)
    order: list[Task] = []
    while len(order) < 10:
        for worker in workers:
            if worker.line:
                order.append(worker.line[0])
                run_one(world, worker, 0.9e-3)
    assert set(order[:4]) == set(urgent)
    assert order[4:] == others
    world.finish()


# Tasks whose pickling has to wait for another's.


@pytest.mark.parametrize("can_recall", [True, False])
@pytest.mark.parametrize("kill", [True, False])
def test_a_task_that_was_cancelled_is_not_set_aside(kill: bool, can_recall: bool) -> None:
    world, _ = warm(2, 0.5, can_recall=can_recall)
    first, second = world.submit(2, slow_to_pickle=True)
    world.apply_all()
    world.send()  # the first is being pickled
    assert second.worker is not None
    worker = second.worker
    world.taken.add(second)  # too late for the user to cancel it without asking
    (world.stop if kill else world.cancel)(second)
    assert second.cancel_wanted
    at = [task for _, task, _ in world.outbox].index(second)
    world.send(at)  # before anybody has carried out the decisions about it
    world.apply_all()
    assert world.settled[second] is CANCELLED
    world.check()
    world.finish()
    assert world.settled[first] == "result"
    assert worker.state != STARTING


@pytest.mark.parametrize("most", [None, 50])
def test_slow_pickling_does_not_keep_others_from_being_sent(most: int | None) -> None:
    world, _ = warm(2, 0.5, max_tasks_per_child=most)
    slow = world.submit(3, slow_to_pickle=True)
    quick = world.submit(3)
    world.apply_all()
    for _ in range(20):
        if world.outbox:
            world.send()
        world.apply_all()
    assert world.pickling in slow
    if most is None:
        assert all(task.on_wire for task in quick[:2])
        assert len(world.scheduler.waiting.aside) == 3
    else:  # they wait in line: to replace each worker that had to leave one would be dearer
        assert all(task.worker is not None for task in slow[:2])
    world.finish()
    assert set(world.settled.values()) == {"result"}


# Shutting down.


def test_shutdown_completes_what_was_submitted() -> None:
    world = World(2)
    tasks = world.submit(10)
    world.shutdown()
    (late,) = world.submit()
    world.settle_down()
    assert world.scheduler.closed
    assert [world.settled[task] for task in tasks] == ["result"] * 10
    assert isinstance(world.settled[late], Refused)


def test_shutdown_with_cancel_lets_running_tasks_finish() -> None:
    world, (worker,) = warm(1, 1e-5)
    tasks = world.submit(200)
    send_all(world)
    world.read(worker)
    world.shutdown(cancel=True)
    world.settle_down()
    assert world.scheduler.closed
    assert world.settled[tasks[0]] == "result"
    assert {world.settled[task] for task in tasks[1:]} == {CANCELLED}


def test_shutdown_with_kill_settles_everything_and_ends_everybody() -> None:
    world, workers = warm(2, 1e-5)
    tasks = world.submit(200)
    send_all(world)
    world.read(workers[0])
    world.shutdown(kill=True)
    kills = [d[1] for d in world.scheduler.decisions if d[0] == KILL]
    assert kills == workers
    world.settle_down()
    assert world.scheduler.closed
    assert all(isinstance(world.settled[task], Refused) for task in tasks)


def test_no_decision_is_left_about_a_worker_that_has_ended() -> None:
    world, (worker,) = warm(1, 1e-3, max_tasks_per_child=2)
    world.submit()
    send_all(world)
    world.read(worker)
    world.complete(worker, 1e-3)
    world.die(worker)
    # Its last result makes the scheduler ask it to leave; in the same breath it turns out dead.
    world.reap(worker)
    assert not [d for d in world.scheduler.decisions if d[0] == RETIRE]
    world.finish()


# Cost.


def lines_run(function: Callable[[], Any]) -> int:
    """How many lines of Python a call runs: an exact measure of its work."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def work_per_event(workers: int, queued: int) -> list[int]:
    """Lines run for one submission and one result in a pool in the middle of its work."""
    scheduler = Scheduler(workers)
    sent = []

    def drain() -> None:
        decisions = scheduler.decisions[:]
        scheduler.decisions.clear()
        for decision in decisions:
            if decision[0] == START:
                scheduler.ready(decision[1], 0.0)
            elif decision[0] == SEND:
                sent.append(decision)

    for number in range(workers + queued):
        scheduler.submit(Task(number, None, (), {}, None))
    for _ in range(3):
        scheduler.dispatch(0.0)
        drain()
    # Every worker has finished one task that took long, so each holds one and the rest waits.
    for _, worker, task in sent[:workers]:
        scheduler.result(worker, task, 0.0, 1.0)
    scheduler.dispatch(0.0)
    drain()
    assert len(scheduler.waiting.first) == queued - workers
    _, worker, task = sent[-1]

    def submit() -> None:
        scheduler.submit(Task(-1, None, (), {}, None))
        scheduler.dispatch(0.0)
        scheduler.deadline()

    def result() -> None:
        scheduler.result(worker, task, 0.0, 1.0)
        scheduler.dispatch(0.0)
        scheduler.deadline()

    return [lines_run(submit), lines_run(result)]


def test_work_per_event_depends_neither_on_workers_nor_on_the_queue() -> None:
    small = work_per_event(2, 100)
    assert min(small) > 10, "the measure works"
    assert work_per_event(64, 100) == small
    assert work_per_event(2, 20_000) == small
    assert work_per_event(64, 20_000) == small


def test_work_per_event_in_a_cold_pool_does_not_depend_on_the_workers() -> None:
    def work(workers: int) -> list[int]:
        scheduler = Scheduler(workers)
        for number in range(3 * workers):
            scheduler.submit(Task(number, None, (), {}, None))
        scheduler.dispatch(0.0)
        first = scheduler.decisions[0][1]
        scheduler.decisions.clear()
        scheduler.ready(first, 0.1)
        task = first.line[0]

        def result() -> None:
            scheduler.result(first, task, 0.2, 0.1)
            scheduler.dispatch(0.2)
            scheduler.deadline()

        return [lines_run(result)]

    assert work(2) == work(64)
