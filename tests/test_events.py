"""Events: told to those who ask, silent otherwise, and no handler can harm the pool."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pool_tasks import bad_initializer, killed, pass_through
from rendezvous import PATIENCE, Gate, run_script

from loky import ProcessPoolExecutor, TerminatedWorkerError
from loky.observe import events

LOGGER = logging.getLogger("loky")


class Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def heard(self, event: str) -> list[dict[str, Any]]:
        fields = [vars(record)["loky"] for record in self.records]
        return [found for found in fields if found["event"] == event]

    def texts(self) -> str:
        return "\n".join(record.getMessage() for record in self.records)


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Hears everything, as long as the test lasts."""
    listener = Listener()
    LOGGER.addHandler(listener)
    LOGGER.setLevel(logging.DEBUG)
    try:
        yield listener
    finally:
        LOGGER.setLevel(logging.NOTSET)
        LOGGER.removeHandler(listener)


def test_the_life_of_a_worker(listener: Listener) -> None:
    with ProcessPoolExecutor(1) as executor:
        pid = executor.submit(os.getpid).result()
        number = executor._pool.chronicle.number
    (started,) = listener.heard("worker started")
    (ready,) = listener.heard("worker ready")
    (ended,) = listener.heard("worker ended")
    assert started["pid"] == ready["pid"] == ended["pid"] == pid
    assert (ended["reason"], ended["exitcode"]) == ("shutdown", 0)
    assert ready["seconds"] > 0
    (closed,) = listener.heard("pool closed")
    assert listener.records[-1].getMessage() == f"pool {number}: the pool is closed"
    assert {fields["pool"] for fields in (started, ready, ended, closed)} == {number}
    assert f"worker {pid} has ended (EXIT(0)): shutdown" in listener.texts()
    levels = {vars(record)["loky"]["event"]: record.levelname for record in listener.records}
    assert levels == {
        "worker started": "DEBUG",
        "worker ready": "DEBUG",
        "worker ended": "DEBUG",
        "pool closed": "INFO",
    }


def test_workers_that_die_or_are_stopped(listener: Listener, tmp_path: Path) -> None:
    LOGGER.setLevel(logging.INFO)
    with Gate(tmp_path) as gate, ProcessPoolExecutor(1) as executor:
        error = executor.submit(killed).exception()
        assert isinstance(error, TerminatedWorkerError)
        future = executor.submit(pass_through, gate.path)
        (pid,) = gate.arrivals()
        future.cancel(kill=True)
    crashed, stopped = listener.heard("worker ended")
    assert crashed["pid"] == error.pid
    assert (crashed["reason"], crashed["exitcode"]) == ("crash", -9)
    assert (stopped["pid"], stopped["reason"]) == (pid, "cancel")
    (told,) = [found for found in listener.heard("worker killed") if found["pid"] == pid]
    assert told["reason"] == "cancel"
    assert not listener.heard("worker started"), "of a lower level"


def test_workers_that_are_replaced_after_some_tasks(listener: Listener) -> None:
    with ProcessPoolExecutor(1, max_tasks_per_child=1) as executor:
        pids = [executor.submit(os.getpid).result() for _ in range(2)]
    assert [found["pid"] for found in listener.heard("worker recycled")] == pids


def test_a_broken_pool(listener: Listener) -> None:
    with ProcessPoolExecutor(1, initializer=bad_initializer, initargs=("x",)) as executor:
        assert executor.submit(abs, 1).exception() is not None
    (broken,) = listener.heard("pool broken")
    assert "initializer" in broken["reason"]
    assert len(listener.heard("pool closed")) == 1


def test_a_resize(listener: Listener) -> None:
    with ProcessPoolExecutor(2) as executor:
        executor.submit(abs, 1).result()
        executor._resize(1)
    (resized,) = listener.heard("pool resized")
    assert resized["max_workers"] == 1


def test_a_handler_may_use_the_pool(listener: Listener) -> None:
    """Waiting for a future of the same pool is the hardest it can do."""
    results = []
    with ProcessPoolExecutor(2) as executor:

        def emit(record: logging.LogRecord) -> None:
            if vars(record)["loky"]["event"] == "worker ready":
                results.append(executor.submit(abs, -7).result(PATIENCE))

        listener.emit = emit  # type: ignore[method-assign]
        assert executor.submit(abs, -1).result() == 1
    assert results and set(results) == {7}


def test_a_slow_handler_keeps_nobody_waiting(listener: Listener) -> None:
    let_go = threading.Event()
    entered = threading.Event()

    def emit(record: logging.LogRecord) -> None:
        if vars(record)["loky"]["event"] == "worker ready":
            entered.set()
            let_go.wait(PATIENCE)

    listener.emit = emit  # type: ignore[method-assign]
    with ProcessPoolExecutor(1) as executor:
        executor.submit(abs, -1).result()
        assert entered.wait(PATIENCE)
        assert [executor.submit(abs, -i).result() for i in range(50)] == list(range(50))
        let_go.set()


def test_a_handler_that_raises_is_shown_and_harms_nobody(
    listener: Listener, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise RuntimeError("a bad filter")

    listener.addFilter(refuse)
    with ProcessPoolExecutor(1) as executor:
        assert executor.submit(abs, -1).result() == 1
        assert executor.submit(abs, -2).result() == 2
    assert "RuntimeError: a bad filter" in capsys.readouterr().err


def test_nothing_is_told_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise AssertionError("it was told")

    monkeypatch.setattr(events, "emit", fail)
    with ProcessPoolExecutor(1) as executor:
        assert isinstance(executor.submit(killed).exception(), TerminatedWorkerError)
        assert executor.submit(abs, -1).result() == 1


def test_nothing_is_printed_unless_asked_for(tmp_path: Path) -> None:
    code = """
import logging, os
from loky import ProcessPoolExecutor
logging.getLogger("loky").setLevel("DEBUG")  # a level, but no handler
with ProcessPoolExecutor(1) as executor:
    executor.submit(os._exit, 3).exception()
    logging.getLogger("loky").error("not even this")
"""
    done = run_script(tmp_path, code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_who_wants_to_know() -> None:
    """The same answers as `Logger.isEnabledFor`, without its lock."""
    root = logging.getLogger()
    old = root.level, LOGGER.level, LOGGER.disabled, LOGGER.manager.disable
    try:
        for level in (logging.NOTSET, logging.DEBUG, logging.INFO, logging.WARNING):
            for below in (logging.NOTSET, logging.DEBUG, logging.INFO, logging.ERROR):
                for disabled in (logging.NOTSET, logging.DEBUG, logging.INFO):
                    for off in (False, True):
                        root.setLevel(level)
                        LOGGER.setLevel(below)
                        LOGGER.disabled = off
                        logging.disable(disabled)
                        for asked in (logging.DEBUG, logging.INFO):
                            assert events.is_wanted(asked) == LOGGER.isEnabledFor(asked)
    finally:
        root.setLevel(old[0])
        LOGGER.setLevel(old[1])
        LOGGER.disabled = old[2]
        logging.disable(old[3])
