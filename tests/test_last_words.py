"""The last of a worker's standard error can be read by the parent, however the worker ended.

The parent's part is `Port.last_words`; here a worker is run on a port without a pool around it, so
that it can be asked after the worker's death.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pool_tasks
import pytest
import relay_tasks
from rendezvous import PATIENCE, ended, run_script

from loky import Future, ProcessPoolExecutor
from loky.options import pool_options
from loky.pool import outcome
from loky.pool.model import Task, Worker
from loky.pool.port import Port, WorkerSettings
from loky.wire import protocol


@contextmanager
def worker_that_ran(fn: Callable[..., Any], *args: Any, **options: Any) -> Iterator[Port]:
    """A worker that was given one task and the word to leave, and has ended."""
    port = Port(Worker(0, 0.0, -1), WorkerSettings(pool_options(max_workers=1, **options)))
    try:
        port.start()
        assert port.process is not None
        task = Task(1, fn, args, {}, Future())
        assert outcome.encode(task, None) is None
        assert port.send(task)
        assert port.channel.send(protocol.EXIT, 0, None, b"")
        assert ended(port.process.pid, PATIENCE)
        port.process.poll()
        yield port
    finally:
        port.close()


DEATHS = [
    pool_tasks.killed,
    pool_tasks.terminated,
    pool_tasks.fault,
    pool_tasks.read_address_zero,
    pool_tasks.abort,
    pool_tasks.leave_with_three,
    pool_tasks.leave_happily,
    relay_tasks.divide_by_zero,
    sys.exit,
]


@pytest.mark.parametrize("death", DEATHS, ids=lambda death: death.__name__)
def test_they_survive_every_kind_of_end(death: Callable[[], None], no_leftovers: None) -> None:
    with worker_that_ran(relay_tasks.say_and, "farewell", death) as port:
        assert port.last_words() == "farewell\n"


def test_a_worker_that_said_nothing_has_no_last_words() -> None:
    with worker_that_ran(abs, 1) as port:
        assert port.last_words() == ""
    assert port.last_words() == "", "harmless after close"


@pytest.mark.parametrize("count", [3, 40, 41, 42, 80, 81, 500])
def test_of_many_lines_the_last_are_kept_whole(count: int) -> None:
    with worker_that_ran(relay_tasks.say_lines, count, 100) as port:
        lines = port.last_words().splitlines()
    kept = min(count, protocol.LAST_WORDS // 100)
    assert [int(line) for line in lines] == list(range(count - kept, count))
    assert all(len(line) == 99 for line in lines)


def test_the_end_of_a_very_long_line_is_kept() -> None:
    with worker_that_ran(relay_tasks.say_and, "x" * 1_000_000 + "end", abs, 1) as port:
        words = port.last_words()
    assert words.endswith("xend\n")
    assert len(words) == protocol.LAST_WORDS


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_every_way_through_the_object_is_covered(unbuffered: str) -> None:
    env = {"PYTHONUNBUFFERED": unbuffered}
    with worker_that_ran(relay_tasks.say_in_every_way, env=env) as port:
        words = port.last_words()
    assert words.startswith("print\nlines\nbuffer\noriginal\nlogged\nlogged\n")
    assert "UserWarning: warned" in words
    assert words.endswith("ZeroDivisionError\n")


def test_the_object_is_what_it_was() -> None:
    with ProcessPoolExecutor(1, env={"PYTHONUNBUFFERED": ""}) as executor:
        seen = executor.submit(relay_tasks.about_stderr).result()
    assert seen == {
        "types": ["TextIOWrapper", "FileIO"],
        "fileno": 2,
        "isatty": os.isatty(2),
        "same": True,
        "pickled": True,
    }


def test_what_is_redirected_goes_where_it_was_redirected_to() -> None:
    with worker_that_ran(relay_tasks.redirect_stderr) as port:
        assert port.last_words() == ""
    with ProcessPoolExecutor(1) as executor:
        assert executor.submit(relay_tasks.redirect_stderr).result() == "elsewhere\n"


def test_the_user_sees_what_was_written(tmp_path: Path) -> None:
    code = """
from loky import ProcessPoolExecutor
from relay_tasks import say_and
with ProcessPoolExecutor(1) as executor:
    executor.submit(say_and, "once", abs, 1).result()
"""
    done = run_script(tmp_path, code, env={"PYTHONPATH": str(Path(__file__).parent)})
    assert done.stderr == "once\n"


def test_the_child_of_a_fork_speaks_into_the_same_ring() -> None:
    with worker_that_ran(relay_tasks.say_in_a_fork) as port:
        assert port.last_words() == "from the child\nfrom the worker\n"


def test_a_descriptor_that_was_closed_and_used_again_is_left_alone(tmp_path: Path) -> None:
    """A task that closes all descriptors must not find our text in its files."""
    path = str(tmp_path / "file")
    with worker_that_ran(relay_tasks.close_everything_and_write, path) as port:
        assert port.last_words() == ""
    files = list(tmp_path.iterdir())
    assert len(files) == 20
    assert all(file.read_bytes() == b"" for file in files)


def test_workers_of_a_process_without_standard_streams_work(tmp_path: Path) -> None:
    code = """
import os, sys
from loky import ProcessPoolExecutor
from relay_tasks import say_and
out = os.dup(1)
os.closerange(0, 3)
sys.stdin = sys.stdout = sys.stderr = None
with ProcessPoolExecutor(1) as executor:
    os.write(out, b"%d" % executor.submit(say_and, "nobody hears this", abs, -3).result())
"""
    done = run_script(tmp_path, code, env={"PYTHONPATH": str(Path(__file__).parent)})
    assert (done.stdout, done.stderr) == ("3", "")


def test_a_broken_standard_error_is_kept_too() -> None:
    def speak_after_it_broke() -> None:
        read, write = os.pipe()
        os.dup2(write, 2)
        os.close(read)
        os.close(write)
        print("nobody hears this", file=sys.stderr)

    with worker_that_ran(speak_after_it_broke) as port:
        assert port.last_words().startswith("nobody hears this")
