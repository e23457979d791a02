"""What workers print, log and warn reaches the parent's streams, loggers and filters, in time.

"In time" is what each test relies on: as soon as a future has its end, what its task has said is
here, and nothing is waited for.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pool_tasks
import pytest
import relay_tasks
from rendezvous import PATIENCE, Gate, command, run_script

import loky.observe.relay
from loky import ProcessPoolExecutor, get_reusable_executor

HERE = {"PYTHONPATH": str(Path(__file__).parent)}


class Sink(io.StringIO):
    """Stands for standard output or error; may be held up."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.open = threading.Event()
        self.open.set()

    def write(self, text: str) -> int:
        self.reached.set()
        assert self.open.wait(PATIENCE), "this sink is still closed"
        return super().write(text)

    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


# pytest puts its own objects in place just before a test is called, so it is their method that is
# replaced.


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sink]:
    sink = Sink()
    monkeypatch.setattr(sys.stdout, "write", sink.write)
    yield sink
    sink.open.set()


@pytest.fixture
def err(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sink]:
    sink = Sink()
    monkeypatch.setattr(sys.stderr, "write", sink.write)
    yield sink
    sink.open.set()


@pytest.fixture
def soon_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loky.observe.relay, "STUCK_SECONDS", 0.05)


def untagged(lines: list[str], tag: str = r"\[[\w.<>-]+ \d+\] ") -> list[str]:
    """The lines without their tags, which each must have."""
    for line in lines:
        assert re.match(tag, line), line
    return [re.sub(tag, "", line, count=1) for line in lines]


# ---------------------------------------------------------------------- the option


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (None, ()),
        ("", ()),
        ("stdout", ("stdout",)),
        ("stderr, stdout", ("stdout", "stderr")),
        (["warnings", "logging"], ("logging", "warnings")),
        (iter({"stderr"}), ("stderr",)),
        ("stdout,stderr,logging,warnings", ("stdout", "stderr", "logging", "warnings")),
    ],
)
def test_any_subset_may_be_chosen(given: Any, taken: tuple[str, ...]) -> None:
    with ProcessPoolExecutor(1, relay=given) as executor:
        assert executor._options.relay == taken


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ("stdout,prints", ValueError, "'prints'.*'stdout', 'stderr', 'logging', 'warnings'"),
        (True, TypeError, "True"),
        ([1], TypeError, "1"),
    ],
)
def test_anything_else_is_refused(given: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        ProcessPoolExecutor(1, relay=given)
    with pytest.raises(kind, match=message):
        get_reusable_executor(1, relay=given)


def test_the_reusable_executor_is_chosen_by_it(out: Sink) -> None:
    executor = get_reusable_executor(1, relay="stdout,stderr")
    assert get_reusable_executor(1, relay=("stderr", "stdout")) is executor
    assert executor.submit(relay_tasks.say, "hello").result() == "hello"
    assert untagged(out.lines()) == ["hello"]
    other = get_reusable_executor(1)
    assert other is not executor
    other.shutdown()
    executor.shutdown()


# ---------------------------------------------------------------------- prints


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_prints_come_tagged_and_before_the_result(
    unbuffered: str, out: Sink, err: Sink, no_leftovers: None
) -> None:
    env = {"PYTHONUNBUFFERED": unbuffered}
    with ProcessPoolExecutor(1, relay="stdout,stderr", env=env) as executor:
        pid = executor.submit(os.getpid).result()
        executor.submit(relay_tasks.say, "one\ntwo").result()
        assert out.lines() == [f"[relay_tasks.say {pid}] one", f"[relay_tasks.say {pid}] two"]
        executor.submit(relay_tasks.say, "three", "stderr").result()
        assert err.lines() == [f"[relay_tasks.say {pid}] three"]
        executor.submit(relay_tasks.say, "no end", end="").result()
        assert out.getvalue().endswith(f"[relay_tasks.say {pid}] no end\n")
        executor.submit(lambda: print("lambda")).result()
        assert re.search(r"lambda> \d+\] lambda\n$", out.getvalue())


def test_what_is_not_chosen_goes_where_it_went(tmp_path: Path) -> None:
    code = """
import io, sys
from loky import ProcessPoolExecutor
from relay_tasks import say
with ProcessPoolExecutor(1, relay="stderr") as executor:
    executor.submit(say, "plain").result()
    executor.submit(say, "tagged", "stderr").result()
"""
    done = run_script(tmp_path, code, env=HERE)
    assert done.stdout == "plain\n"
    assert untagged(done.stderr.splitlines()) == ["tagged"]


def test_every_result_finds_its_prints_here(out: Sink) -> None:
    """Many short tasks: workers hold several at a time, and run on while the parent reads."""
    with ProcessPoolExecutor(2, relay="stdout") as executor:
        wanted = [str(number) for number in range(600)]
        for number, text in enumerate(executor.map(relay_tasks.say, wanted)):
            assert text == str(number)
            assert f"] {text}\n" in out.getvalue()
    assert sorted(untagged(out.lines()), key=int) == wanted


def test_lines_are_their_tasks_own(out: Sink) -> None:
    with ProcessPoolExecutor(2, relay="stdout") as executor:
        functions = [relay_tasks.say, relay_tasks.say_too, lambda text: print(text, end="")]
        names = ["relay_tasks.say ", "relay_tasks.say_too ", "<lambda> "]
        texts = [names[number % 3] for number in range(300)]
        futures = [executor.submit(functions[n % 3], text) for n, text in enumerate(texts)]
        for future in futures:
            future.result()
    lines = out.lines()
    assert len(lines) == 300
    for line in lines:
        tag, _, text = line.partition("] ")
        assert text in tag + " "


def test_other_languages_and_programs_are_heard(out: Sink, err: Sink) -> None:
    with ProcessPoolExecutor(1, relay="stdout,stderr") as executor:
        executor.submit(relay_tasks.say_in_c, "in C").result()
        assert untagged(out.lines()) == ["in C"]
        executor.submit(relay_tasks.say_in_c, "without end", "").result()
        executor.submit(relay_tasks.say_by_another_program, "program").result()
    assert untagged(out.lines()) == ["in C", "without end", "program"]
    assert untagged(err.lines()) == ["program"]


def test_children_of_tasks_are_heard(out: Sink, err: Sink) -> None:
    with ProcessPoolExecutor(1, relay="stdout,stderr") as executor:
        executor.submit(relay_tasks.say_in_a_fork).result()
        assert untagged(err.lines()) == ["from the child", "from the worker"]
        executor.submit(relay_tasks.return_twice, "returned").result()
        assert untagged(out.lines()) == ["returned"]


@pytest.mark.parametrize("death", [pool_tasks.killed, pool_tasks.fault, pool_tasks.leave_happily])
def test_what_was_said_before_a_crash_is_here(
    death: Callable[[], None], err: Sink, no_leftovers: None
) -> None:
    with ProcessPoolExecutor(1, relay="stderr") as executor:
        for _ in range(3):
            future = executor.submit(relay_tasks.say_and, "last words", death)
            assert future.exception() is not None
            assert untagged(err.lines(), r"\[relay_tasks.say_and \d+\] ")[-1] == "last words"
            assert future.exception().post_mortem.stderr == "last words\n"  # type: ignore[union-attr]
    assert len(err.lines()) == 3


def test_c_prints_before_a_crash_are_here(out: Sink) -> None:
    with ProcessPoolExecutor(1, relay="stdout") as executor:
        executor.submit(relay_tasks.say_in_c_and_die, "in C").exception()
        assert untagged(out.lines()) == ["in C"]


def test_initializers_are_heard(out: Sink) -> None:
    with ProcessPoolExecutor(1, relay="stdout", initializer=print, initargs=("hello",)) as executor:
        executor.submit(relay_tasks.say, "task").result()
    assert untagged(out.lines()[:1], r"\[worker \d+\] ") == ["hello"]
    assert untagged(out.lines()) == ["hello", "task"]


def test_an_initializer_that_fails_is_heard_first(out: Sink) -> None:
    def initializer() -> None:
        print("about to fail")
        raise LookupError

    with ProcessPoolExecutor(1, relay="stdout", initializer=initializer) as executor:
        assert executor.submit(abs, 1).exception() is not None
        assert untagged(out.lines(), r"\[worker \d+\] ") == ["about to fail"]


def test_what_workers_say_when_they_leave_is_here_after_shutdown(out: Sink) -> None:
    with ProcessPoolExecutor(1, relay="stdout") as executor:
        executor.submit(relay_tasks.say_at_exit, "goodbye").result()
    assert untagged(out.lines(), r"\[worker \d+\] ") == ["goodbye"]


def test_programs_that_tasks_leave_behind_are_heard(
    tmp_path: Path, out: Sink, no_leftovers: None
) -> None:
    """As long as the pool is there, and they do not die of a pipe that nobody reads."""
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    with ProcessPoolExecutor(1, relay="stdout", max_tasks_per_child=1) as executor:
        pids = [executor.submit(os.getpid).result()]
        executor.submit(relay_tasks.leave_a_program, fifo, "left behind").result()
        pids += [executor.submit(os.getpid).result() for _ in range(2)]
        out.reached.clear()
        with open(fifo) as file:
            file.read()
        assert out.reached.wait(PATIENCE)
    assert len(set(pids)) == 3
    assert untagged(out.lines(), r"\[worker \d+\] ") == ["left behind"]


def test_a_task_may_take_its_output_away(tmp_path: Path, out: Sink) -> None:
    path = tmp_path / "file"
    with ProcessPoolExecutor(1, relay="stdout") as executor:
        executor.submit(relay_tasks.put_a_file_in_place_of_stdout, str(path)).result()
        for number in range(20):
            assert executor.submit(abs, -number).result() == number
    assert path.read_text() == "into the file\n"
    assert out.getvalue() == ""
    with ProcessPoolExecutor(1, relay="stdout") as executor:
        executor.submit(relay_tasks.close_stdout).result()
        for number in range(20):
            assert executor.submit(abs, -number).result() == number


def test_a_line_that_is_written_over_counts_once(out: Sink) -> None:
    with ProcessPoolExecutor(1, relay="stdout") as executor:
        executor.submit(relay_tasks.show_progress).result()
        executor.submit(relay_tasks.say, "dos", end="\r\n").result()
    assert untagged(out.lines()) == ["100 %", "dos"]


def test_what_is_no_text_is_shown(out: Sink) -> None:
    with ProcessPoolExecutor(1, relay="stdout") as executor:
        executor.submit(os.write, 1, b"\xff\xfe caf\xc3\xa9\n").result()
    assert untagged(out.lines()) == ["\\xff\\xfe café"]


def test_a_very_long_line_comes_in_parts(out: Sink) -> None:
    size = 3_000_000
    with ProcessPoolExecutor(1, relay="stdout") as executor:
        executor.submit(relay_tasks.flood, 1, size).result()
    parts = untagged(out.lines())
    assert sum(map(len, parts)) == size - 1
    assert 1 < len(parts) < 40


def test_the_last_words_are_those_that_were_relayed(err: Sink) -> None:
    with ProcessPoolExecutor(1, relay="stderr") as executor:
        executor.submit(relay_tasks.say_lines, 500, 100).result()
        (port,) = executor._pool.ports()
        words = port.last_words().splitlines()
    assert [int(line) for line in words] == list(range(460, 500))
    assert len(err.lines()) == 500


def test_the_parent_s_fork_says_nothing_twice(out: Sink) -> None:
    with ProcessPoolExecutor(1, relay="stdout") as executor:
        executor.submit(relay_tasks.say, "before").result()
        pid = os.fork()
        if pid == 0:
            os._exit(0 if out.lines()[-1].endswith("before") else 1)
        assert os.waitpid(pid, 0)[1] == 0
        executor.submit(relay_tasks.say, "after").result()
    assert untagged(out.lines()) == ["before", "after"]


def test_pools_in_tasks_are_heard(out: Sink, caplog: pytest.LogCaptureFixture) -> None:
    relay = "stdout,logging"
    with ProcessPoolExecutor(1, relay=relay) as executor:
        executor.submit(relay_tasks.use_a_pool, relay).result()
        once = untagged(out.lines(), r"\[relay_tasks.use_a_pool \d+\] ")
        assert untagged(once, r"\[relay_tasks.say \d+\] ") == ["inner"]
        executor.submit(relay_tasks.use_a_pool, None).result()
    assert untagged(out.lines()[1:], r"\[relay_tasks.use_a_pool \d+\] ")[0] == "inner"
    record = caplog.records[0]
    assert (record.name, record.getMessage()) == ("inner", "logged")
    assert record.loky_task == "relay_tasks.log"  # type: ignore[attr-defined]


def test_tasks_are_called_what_they_are_called(out: Sink) -> None:
    with ProcessPoolExecutor(1, relay="stdout") as executor:
        executor.options(name="my task").submit(relay_tasks.say, "hello").result()
    assert untagged(out.lines(), r"\[my task \d+\] ") == ["hello"]


def test_each_attempt_is_heard(tmp_path: Path, out: Sink) -> None:
    def fail_once() -> str:
        print("trying")
        pool_tasks.exit_the_first_time(str(tmp_path / "file"))
        return "done"

    with ProcessPoolExecutor(1, relay="stdout") as executor:
        future = executor.options(retries=1, retry_on=["crash"]).submit(fail_once)
        assert future.result() == "done"
        assert [line.partition("] ")[2] for line in out.lines()] == ["trying", "trying"]


def test_a_task_that_is_stopped_is_heard_first(out: Sink) -> None:
    def hang() -> None:
        print("before")
        signal.pause()

    with ProcessPoolExecutor(1, relay="stdout") as executor:
        future = executor.submit(hang)
        assert out.reached.wait(PATIENCE)
        assert future.cancel(kill=True)
        assert [line.partition("] ")[2] for line in out.lines()] == ["before"]


# ---------------------------------------------------------------------- the parent's end


def test_a_blocked_output_holds_up_nothing_but_itself(
    out: Sink, soon_stuck: None, no_leftovers: None
) -> None:
    out.open.clear()
    with ProcessPoolExecutor(2, relay="stdout") as executor:
        first = executor.submit(relay_tasks.say, "first")
        assert first.result(PATIENCE) == "first"
        results = list(executor.map(relay_tasks.say, map(str, range(100))))
        assert results == [str(number) for number in range(100)]
        assert executor.submit(os._exit, 1).exception() is not None
        assert out.getvalue() == ""
        out.open.set()
    lines = untagged(out.lines())
    assert lines[0] == "first"
    assert sorted(map(int, lines[1:])) == list(range(100))


def test_a_flood_waits_for_the_parent_and_is_not_kept_in_memory(
    out: Sink, soon_stuck: None
) -> None:
    lines, size = 100_000, 100
    out.open.clear()
    with ProcessPoolExecutor(2, relay="stdout") as executor:
        flood = executor.submit(relay_tasks.flood, lines, size)
        assert out.reached.wait(PATIENCE)
        # Others go on meanwhile.
        for number in range(100):
            assert executor.submit(abs, -number).result() == number
        relay = executor._pool._relay
        assert relay._unwritten <= loky.observe.relay.HARD_LIMIT
        assert not flood.done()
        out.open.set()
        assert flood.result() == lines
        assert out.lines()[-1].split()[-1] == str(lines - 1)
    assert [int(line) for line in untagged(out.lines())] == list(range(lines))


@pytest.mark.parametrize("when", ["while the pool lives", "when the pool is gone"])
def test_crashes_that_nobody_hears_do_not_fill_the_memory(
    when: str, out: Sink, err: Sink, soon_stuck: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loky.observe.relay, "LIMIT", 10_000)
    monkeypatch.setattr(loky.observe.relay, "HARD_LIMIT", 20_000)
    out.open.clear()
    with ProcessPoolExecutor(1, relay="stdout") as executor:
        for _ in range(5):
            future = executor.submit(os.write, 1, b"x" * 15_000 + b"\n")
            assert future.result() == 15_001
            assert executor.submit(os._exit, 1).exception() is not None
        assert executor._pool._relay._unwritten < 40_000
        if when == "while the pool lives":
            out.open.set()
            assert executor.submit(abs, -1).result() == 1
    # A pool that closes leaves what is not written to the thread that is stuck, see `_at_exit`.
    out.open.set()
    loky.observe.relay._at_exit()
    heard = sum(map(len, re.findall("x+", out.getvalue())))
    dropped = re.findall(r"\[loky \d+\] (\d+) bytes of output were dropped", err.getvalue())
    assert dropped
    assert 75_000 <= heard + sum(map(int, dropped)) <= 75_005  # with or without ends of lines


def test_an_output_may_wait_for_the_pool(soon_stuck: None) -> None:
    """Whoever writes is user code: as a callback, it may wait for another future."""

    class Asks(io.StringIO):
        answers: list[int] = []

        def write(self, text: str) -> int:
            if not self.answers:
                self.answers.append(executor.submit(abs, -7).result(PATIENCE))
            return super().write(text)

    sink = Asks()
    with contextlib.redirect_stdout(sink), ProcessPoolExecutor(1, relay="stdout") as executor:
        assert executor.submit(relay_tasks.say, "hello").result(PATIENCE) == "hello"
    assert Asks.answers == [7]
    assert untagged(sink.getvalue().splitlines()) == ["hello"]


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


class Strange:
    """No stream at all."""


def closed() -> io.StringIO:
    sink = io.StringIO()
    sink.close()
    return sink


@pytest.mark.parametrize("sink", [Broken(), closed(), Strange(), None], ids=repr)
def test_a_broken_output_costs_what_was_printed(sink: Any, no_leftovers: None) -> None:
    with contextlib.redirect_stdout(sink), ProcessPoolExecutor(1, relay="stdout") as executor:
        assert executor.submit(relay_tasks.say, "hello").result() == "hello"
        assert executor.submit(relay_tasks.say, "again").result() == "again"


def test_an_output_of_few_letters_gets_what_it_can_take() -> None:
    data = io.BytesIO()
    sink = io.TextIOWrapper(data, encoding="ascii")
    with contextlib.redirect_stdout(sink), ProcessPoolExecutor(1, relay="stdout") as executor:
        executor.submit(relay_tasks.say, "café").result()
    assert data.getvalue().endswith(b"] caf\\xe9\n")


def test_what_was_printed_arrives_before_the_interpreter_leaves(tmp_path: Path) -> None:
    code = """
from loky import ProcessPoolExecutor
from relay_tasks import say
executor = ProcessPoolExecutor(2, relay="stdout,stderr")
for number in range(50):
    executor.submit(say, str(number))
    executor.submit(say, str(number), "stderr")
"""
    done = run_script(tmp_path, code, env=HERE)
    for text in (done.stdout, done.stderr):
        assert sorted(map(int, untagged(text.splitlines()))) == list(range(50))


def test_a_slow_reader_gets_all_even_after_the_pool_is_closed(tmp_path: Path) -> None:
    code = """
import sys
import loky.observe.relay
from loky import ProcessPoolExecutor
from relay_tasks import flood
loky.observe.relay.STUCK_SECONDS = 0.05
executor = ProcessPoolExecutor(1, relay="stdout")
executor.submit(flood, 5000, 100).result()
executor.shutdown()
print("closed", file=sys.stderr, flush=True)
"""
    process = subprocess.Popen(
        command(tmp_path, code),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **HERE},
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == "closed\n"
        lines = process.stdout.read().splitlines()
    assert [int(line) for line in untagged(lines)] == list(range(5000))


# ---------------------------------------------------------------------- logging


def test_records_go_through_the_parent_s_loggers(
    caplog: pytest.LogCaptureFixture, no_leftovers: None
) -> None:
    with ProcessPoolExecutor(1, relay="logging") as executor:
        pid = executor.submit(os.getpid).result()
        executor.submit(
            relay_tasks.log, "some.name", logging.WARNING, "%s is %d", "one", 1
        ).result()
        (record,) = caplog.records
    assert record.name == "some.name"
    assert record.levelname == "WARNING"
    assert record.getMessage() == "one is 1"
    assert record.args == ("one", 1), "plain arguments come as they are"
    assert (record.process, record.loky_pid) == (pid, pid)  # type: ignore[attr-defined]
    assert record.loky_task == "relay_tasks.log"  # type: ignore[attr-defined]
    assert record.processName is not None
    assert record.processName.startswith("LokyProcess-")
    assert record.funcName == "log"
    assert record.filename == "relay_tasks.py"


def test_records_of_anything_can_be_sent(caplog: pytest.LogCaptureFixture) -> None:
    with ProcessPoolExecutor(1, relay="logging") as executor:
        executor.submit(relay_tasks.log_something_odd).result()
        odd, failed, itself = caplog.records
    assert odd.getMessage() == "it is chatty"
    assert odd.plain == (1, "two")  # type: ignore[attr-defined]
    assert odd.odd == "chatty"  # type: ignore[attr-defined]
    assert failed.getMessage() == "it went wrong"
    assert "ZeroDivisionError" in logging.Formatter().format(failed)
    assert failed.stack_info is not None
    assert itself.getMessage() == "chatty"


def test_a_record_that_cannot_be_formatted_costs_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with ProcessPoolExecutor(1, relay="logging") as executor:
        assert executor.submit(relay_tasks.log_badly).result() == "fine"
        executor.submit(relay_tasks.log, "good", logging.ERROR, "next").result()
    assert [record.name for record in caplog.records] == ["bad", "loky", "good"]


@contextlib.contextmanager
def levels_set(levels: dict[str, int]) -> Iterator[None]:
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def test_the_parent_s_levels_decide_in_the_worker_already(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = ["", "relay.fine", "relay.fine.inner", "relay.coarse"]
    chosen = {"": logging.INFO, "relay.fine": logging.DEBUG, "relay.coarse": logging.ERROR}
    with levels_set(chosen), ProcessPoolExecutor(1, relay="logging") as executor:
        for name in names:
            for level in (logging.DEBUG, logging.INFO, logging.ERROR):
                executor.submit(relay_tasks.log, name, level, name).result()
        seen = executor.submit(relay_tasks.levels, *names).result()
        assert seen == [logging.INFO, logging.DEBUG, logging.DEBUG, logging.ERROR]
        assert [(record.getMessage(), record.levelno) for record in caplog.records] == [
            ("", logging.INFO),
            ("", logging.ERROR),
            ("relay.fine", logging.DEBUG),
            ("relay.fine", logging.INFO),
            ("relay.fine", logging.ERROR),
            ("relay.fine.inner", logging.DEBUG),
            ("relay.fine.inner", logging.INFO),
            ("relay.fine.inner", logging.ERROR),
            ("relay.coarse", logging.ERROR),
        ]
        # The root's level reaches workers that are there already, with the next task.
        logging.getLogger().setLevel(logging.CRITICAL)
        assert executor.submit(relay_tasks.levels, "").result() == [logging.CRITICAL]


def test_filters_and_handlers_that_fail_cost_the_record(
    caplog: pytest.LogCaptureFixture, no_leftovers: None
) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise LookupError("no such record")

    logger = logging.getLogger("relay.refused")
    logger.addFilter(refuse)
    try:
        with ProcessPoolExecutor(1, relay="logging") as executor:
            executor.submit(relay_tasks.log, "relay.refused", logging.ERROR, "lost").result()
            executor.submit(relay_tasks.log, "relay.other", logging.ERROR, "found").result()
    finally:
        logger.removeFilter(refuse)
    about, found = caplog.records
    assert about.name == "loky"
    assert about.exc_info is not None
    assert about.exc_info[0] is LookupError
    assert found.getMessage() == "found"


def test_records_before_a_crash_are_here(caplog: pytest.LogCaptureFixture) -> None:
    def log_and_die() -> None:
        relay_tasks.log("dying", logging.ERROR, "last words")
        os.kill(os.getpid(), signal.SIGKILL)

    with ProcessPoolExecutor(1, relay="logging") as executor:
        assert executor.submit(log_and_die).exception() is not None
        assert [record.getMessage() for record in caplog.records] == ["last words"]
        assert caplog.records[0].loky_task.endswith("log_and_die")  # type: ignore[attr-defined]


def test_children_of_tasks_log_to_standard_error(err: Sink) -> None:
    with ProcessPoolExecutor(1, relay="logging,stderr") as executor:
        executor.submit(relay_tasks.log_in_a_fork).result()
    assert untagged(err.lines()) == ["from the child"]


def test_records_may_be_made_in_the_middle_of_a_send(caplog: pytest.LogCaptureFixture) -> None:
    with ProcessPoolExecutor(1, relay="logging") as executor:
        executor.submit(relay_tasks.log_from_signals, 5000).result()
        sizes = [number * 50 for number in range(400)]
        assert [len(data) for data in executor.map(pool_tasks.zeros, sizes)] == sizes
        executor.submit(signal.setitimer, signal.ITIMER_REAL, 0).result()
    assert {record.getMessage() for record in caplog.records} == {"struck"}
    assert len(caplog.records) > 10


def test_records_wait_for_a_slow_handler(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker that logs waits, and nothing is lost."""
    monkeypatch.setattr(loky.observe.relay, "LIMIT", 10_000)
    monkeypatch.setattr(loky.observe.relay, "HARD_LIMIT", 1_000_000)

    def log_much() -> None:
        for number in range(1000):
            relay_tasks.log("much", logging.WARNING, "%d %s", number, "x" * 1000)

    with ProcessPoolExecutor(1, relay="logging") as executor:
        executor.submit(log_much).result()
        assert len(caplog.records) == 1000
    assert [int(record.getMessage().split()[0]) for record in caplog.records] == list(range(1000))


def test_logging_is_not_imported_before_somebody_logs(out: Sink) -> None:
    with ProcessPoolExecutor(1, relay="logging") as executor:
        assert executor.submit(eval, "'logging' in __import__('sys').modules").result() is False


# ---------------------------------------------------------------------- warnings


@contextlib.contextmanager
def recorded(action: Any, **options: Any) -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()
        warnings.filterwarnings(action, **options)
        yield seen


def test_warnings_are_those_of_the_parent(no_leftovers: None) -> None:
    with recorded("always") as seen, ProcessPoolExecutor(1, relay="warnings") as executor:
        pid = executor.submit(os.getpid).result()
        executor.submit(relay_tasks.warn, "careful", DeprecationWarning).result()
        (warning,) = seen
    assert warning.category is DeprecationWarning
    assert str(warning.message) == "careful"
    assert warning.filename == relay_tasks.__file__
    line = Path(warning.filename).read_text().splitlines()[warning.lineno - 1]
    assert line.strip().startswith("warnings.warn(text")
    message: Any = warning.message
    assert (message.loky_task, message.loky_pid) == ("relay_tasks.warn", pid)


def test_once_per_location_is_once_for_all_workers(tmp_path: Path) -> None:
    with recorded("default") as seen, ProcessPoolExecutor(2, relay="warnings") as executor:
        with Gate(tmp_path) as gate:
            futures = [executor.submit(relay_tasks.warn_at, gate.path, "same") for _ in range(2)]
            gate.arrivals(2)
            gate.open(2)
            assert len({future.result() for future in futures}) == 2
        executor.submit(relay_tasks.warn, "another").result()
        executor.submit(relay_tasks.warn, "another").result()
        relay_tasks.warn("another")  # this process, at the same location
        assert [str(warning.message) for warning in seen] == ["same", "another"]


@pytest.mark.parametrize(("action", "count"), [("always", 4), ("once", 1), ("ignore", 0)])
def test_the_parent_s_filters_decide(action: Any, count: int) -> None:
    with recorded(action) as seen, ProcessPoolExecutor(2, relay="warnings") as executor:
        for _ in range(4):
            executor.submit(relay_tasks.warn, "careful").result()
        assert len(seen) == count


def test_filters_by_module_and_text_work() -> None:
    with recorded("ignore", module="relay_tasks") as seen:
        warnings.filterwarnings("always", message="care", module="relay_tasks")
        with ProcessPoolExecutor(1, relay="warnings") as executor:
            executor.submit(relay_tasks.warn, "careful").result()
            executor.submit(relay_tasks.warn, "careless").result()
            executor.submit(relay_tasks.warn, "other").result()
        assert [str(warning.message) for warning in seen] == ["careful", "careless"]


def test_what_would_be_an_error_here_is_shown_and_fails_nothing() -> None:
    with recorded("error") as seen, ProcessPoolExecutor(1, relay="warnings") as executor:
        executor.submit(relay_tasks.warn, "careful").result()
        executor.submit(relay_tasks.warn, "careful").result()
        assert [str(warning.message) for warning in seen] == ["careful"]


def test_the_interpreter_s_own_options_still_make_errors(tmp_path: Path) -> None:
    code = """
from loky import ProcessPoolExecutor
from relay_tasks import warn
with ProcessPoolExecutor(1, relay="warnings") as executor:
    print(type(executor.submit(warn, "careful").exception()).__name__)
    print(type(executor.submit(warn, "careful", FutureWarning).exception()).__name__)
"""
    done = run_script(tmp_path, code, flags=["-W", "error::UserWarning"], env=HERE)
    assert done.stdout == "UserWarning\nNoneType\n"
    assert "FutureWarning: careful" in done.stderr


def test_categories_of_the_main_module_are_found(tmp_path: Path) -> None:
    code = """
import warnings
from loky import ProcessPoolExecutor
class Mine(UserWarning):
    pass
class Quiet(UserWarning):
    pass
warnings.simplefilter("ignore", Quiet)
def warn():
    warnings.warn("careful", Mine)
    warnings.warn("quietly", Quiet)
with ProcessPoolExecutor(2, relay="warnings") as executor:
    for _ in range(4):
        executor.submit(warn).result()
"""
    done = run_script(tmp_path, code)
    assert done.stderr.count("Mine: careful") == 1
    assert "Quiet" not in done.stderr
    assert 'warnings.warn("careful", Mine)' in done.stderr, "the line itself is shown"


def test_a_warning_that_cannot_be_rebuilt_comes_as_what_it_inherits_from() -> None:
    with recorded("always") as seen, ProcessPoolExecutor(1, relay="warnings") as executor:
        executor.submit(relay_tasks.warn_oddly).result()
        (warning,) = seen
    assert warning.category is UserWarning
    assert str(warning.message) == "one two"


def test_all_at_once(
    out: Sink, err: Sink, caplog: pytest.LogCaptureFixture, no_leftovers: None
) -> None:
    relay = "stdout,stderr,logging,warnings"
    with recorded("always") as seen, ProcessPoolExecutor(2, relay=relay) as executor:

        def everything(number: int) -> None:
            relay_tasks.say(f"out {number}")
            relay_tasks.say(f"err {number}", "stderr")
            relay_tasks.log("all", logging.WARNING, "%d", number)
            relay_tasks.warn(f"warned {number}")

        futures = [executor.submit(everything, number) for number in range(50)]
        for number, future in enumerate(futures):
            future.result()
            assert f"out {number}" in untagged(out.lines())
            assert f"err {number}" in untagged(err.lines())
            assert str(number) in [record.getMessage() for record in caplog.records]
            assert f"warned {number}" in [str(warning.message) for warning in seen]
    assert [len(out.lines()), len(err.lines()), len(caplog.records), len(seen)] == [50] * 4


def test_without_it_nothing_of_it_is_there() -> None:
    script = (
        "import sys\n"
        "from loky import ProcessPoolExecutor\n"
        "with ProcessPoolExecutor(1) as executor:\n"
        "    there = executor.submit(eval, \"sorted(__import__('sys').modules)\").result()\n"
        "print([name for name in [*there, *sys.modules] if 'relay' in name])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert done.stdout == "[]\n"
