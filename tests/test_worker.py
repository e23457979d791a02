"""What user code finds in a worker: a proper child of its parent, as multiprocessing makes them.

Where warnings of helper processes or the whole life of the parent matter, the parent is a script
of its own, whose standard error must stay empty.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import pytest
import worker_tasks
from rendezvous import ended, run_script

import loky.backend
from loky import ProcessPoolExecutor


@pytest.fixture(scope="module")
def executor() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1) as executor:
        yield executor


def run(folder: Path, code: str, **options: Any) -> str:
    """Run a script; what it printed, and it must not have complained."""
    done = run_script(folder, code, **options)
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


# ---------------------------------------------------------------------- identity


def test_multiprocessing_sees_a_child_of_the_parent(executor: ProcessPoolExecutor) -> None:
    worker = executor.submit(os.getpid).result()
    seen = executor.submit(worker_tasks.who_am_i).result()
    assert seen["name"].startswith("LokyProcess-")
    assert seen["pid"] == (worker, worker)
    assert seen["parent"] == (multiprocessing.current_process().name, os.getpid(), True)
    assert seen["authkey"] == bytes(multiprocessing.current_process().authkey)
    assert seen["daemon"] is False, "daemons may not have children, and tasks may"
    assert seen["children"] == []


def test_multiprocessing_s_log_shows_workers_too(tmp_path: Path) -> None:
    code = """
import multiprocessing.util, sys
from loky import ProcessPoolExecutor
multiprocessing.util.log_to_stderr(20)
def say(): multiprocessing.util.info("said by a task"); multiprocessing.util.debug("too much")
with ProcessPoolExecutor(1) as executor:
    executor.submit(say).result()
"""
    lines = run_script(tmp_path, code).stderr.splitlines()
    assert "[INFO/LokyProcess-1] said by a task" in lines
    assert not [line for line in lines if "too much" in line]


def test_workers_have_names_of_their_own() -> None:
    with ProcessPoolExecutor(2, max_tasks_per_child=1) as executor:
        seen = list(executor.map(lambda _: worker_tasks.who_am_i()["name"], range(4)))
    assert len(set(seen)) == 4


def test_the_start_method_of_the_parent_is_the_worker_s(tmp_path: Path) -> None:
    code = """
import multiprocessing
from loky import ProcessPoolExecutor
multiprocessing.set_start_method("forkserver")
def method():
    import multiprocessing
    return multiprocessing.get_start_method()
with ProcessPoolExecutor(1) as executor:
    print(executor.submit(method).result())
"""
    assert run(tmp_path, code) == "forkserver\n"


def test_the_process_is_cut_off_from_the_terminal(executor: ProcessPoolExecutor) -> None:
    seen = executor.submit(worker_tasks.about_the_process).result()
    assert seen["session"] == seen["group"] == seen["pid"]
    assert seen["stdin"] == os.devnull
    assert seen["read"] == ""


def test_signals_are_as_in_a_new_process() -> None:
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ProcessPoolExecutor(1) as executor:
            seen = executor.submit(worker_tasks.about_the_process).result()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
        signal.signal(signal.SIGINT, handler)
    assert seen["blocked"] == []
    assert seen["interrupt"]


def test_the_main_module_is_synthetic(executor: ProcessPoolExecutor) -> None:
    seen = executor.submit(worker_tasks.about_the_process).result()
    assert "__name__" in seen["main"]
    assert "__file__" not in seen["main"]
    assert seen["argv"] == sys.argv


def test_no_descriptor_of_the_parent_leaks_into_workers() -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)  # as compiled code makes them
    with ProcessPoolExecutor(2) as executor:
        executor.submit(os.getpid).result()
        seen = executor.submit(worker_tasks.open_descriptors).result()
        os.close(write)
        assert os.read(read, 1) == b"", "the end of the pipe is not seen: a worker holds it open"
    os.close(read)
    # Its channel (2), the lifeline and its own copy of it, the files for faults and for the end of
    # standard error, and 0-2.
    extra = {fd: where for fd, where in seen.items() if fd > 2}
    assert len(extra) == 6, extra


def test_flags_of_the_interpreter_reach_the_workers(tmp_path: Path) -> None:
    code = """
import sys
from loky import ProcessPoolExecutor
from worker_tasks import interpreter_settings
with ProcessPoolExecutor(1) as executor:
    there = executor.submit(interpreter_settings).result()
here = interpreter_settings()
assert here["optimize"] == 1 and here["utf8"] == 1 and here["warnings"], here
assert there == here, (there, here)
print("same")
"""
    flags = ["-O", "-X", "utf8", "-W", "error::UserWarning", "-X", "pycache_prefix=cache"]
    tests = os.path.dirname(__file__)
    assert run(tmp_path, code, flags=flags, env={"PYTHONPATH": tests}, cwd=tmp_path) == "same\n"


# ---------------------------------------------------------------------- news from the parent


def test_additions_to_sys_path_reach_workers_that_run_already(
    executor: ProcessPoolExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = executor.submit(os.getpid).result()
    (tmp_path / "come_late_one.py").write_text("ANSWER = 41\ndef answer(): return ANSWER\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import come_late_one  # type: ignore[import-not-found]

    assert executor.submit(come_late_one.answer).result() == 41
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "come_late_two.py").write_text("ANSWER = 42\n")
    sys.path.append(str(tmp_path / "deeper"))  # in place; the fixture puts back the old list
    assert executor.submit(worker_tasks.import_by_name, "come_late_two").result() == 42
    assert executor.submit(eval, "__import__('sys').path").result() == sys.path
    assert executor.submit(os.getpid).result() == pid, "the same worker"


def test_a_change_of_sys_path_survives_being_taken_back(tmp_path: Path) -> None:
    """The message that carries the news may be recalled and given to a worker that has them."""
    code = f"""
import sys
from loky import ProcessPoolExecutor
path = {str(tmp_path)!r}
with ProcessPoolExecutor(2) as executor:
    def here(_):
        import sys
        return sys.path[-1]
    list(executor.map(here, range(200)))
    for number in range(20):
        sys.path.append(f"{{path}}/{{number}}")
        futures = [executor.submit(here, None) for _ in range(50)]
        for future in futures[::3]:
            future.cancel()
        seen = {{f.result() for f in futures if not f.cancelled()}}
        assert seen == {{sys.path[-1]}}, (seen, sys.path[-1])
print("done")
"""
    assert run(tmp_path, code) == "done\n"


# ---------------------------------------------------------------------- multiprocessing in tasks


SHARED = """
import multiprocessing, os, signal
from multiprocessing.shared_memory import SharedMemory
from loky import ProcessPoolExecutor
from rendezvous import ended

def create(text):
    memory = SharedMemory(create=True, size=100)
    memory.buf[: len(text)] = text
    memory.close()
    return memory.name

def write(name, text):
    memory = SharedMemory(name)
    memory.buf[: len(text)] = text
    memory.close()
    return os.getpid()

def read(name, size):
    memory = SharedMemory(name)
    text = bytes(memory.buf[:size])
    memory.close()
    return text
"""


@pytest.fixture
def helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts can import the modules of this folder."""
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))


@pytest.mark.usefixtures("helpers")
def test_shared_memory_made_in_a_task_is_used_in_the_parent(tmp_path: Path) -> None:
    code = """
with ProcessPoolExecutor(2) as executor:
    name = executor.submit(create, b"from a task").result()
# The worker that made it is gone.
assert read(name, 11) == b"from a task"
memory = SharedMemory(name)
memory.close()
memory.unlink()
print("done")
"""
    assert run(tmp_path, SHARED + code) == "done\n"


@pytest.mark.usefixtures("helpers")
@pytest.mark.parametrize("early", [True, False], ids=["tracker before pool", "pool before tracker"])
def test_shared_memory_of_the_parent_outlives_workers_that_used_it(
    early: bool, tmp_path: Path
) -> None:
    code = """
executor = ProcessPoolExecutor(2)
if not EARLY:
    executor.submit(os.getpid).result()
memory = SharedMemory(create=True, size=100)
executor.submit(write, memory.name, b"written there").result()
pid = executor.submit(os.getpid).result()
executor.shutdown()
assert bytes(memory.buf[:13]) == b"written there"
with ProcessPoolExecutor(1) as executor:
    pid = executor.submit(write, memory.name, b"once more").result()
    os.kill(pid, signal.SIGKILL)  # no farewell at all
    assert ended(pid)
    assert executor.submit(read, memory.name, 9).result() == b"once more"
memory.close()
memory.unlink()
print("done")
""".replace("EARLY", str(early))
    assert run(tmp_path, SHARED + code) == "done\n"


@pytest.mark.usefixtures("helpers")
def test_shared_memory_that_a_dead_worker_left_is_cleaned_up_by_the_parent_s_tracker(
    tmp_path: Path,
) -> None:
    code = """
with ProcessPoolExecutor(1) as executor:
    print(executor.submit(create, b"left behind").result())
"""
    done = run_script(tmp_path, SHARED + code)
    name = done.stdout.strip()
    assert name
    assert not os.path.exists(f"/dev/shm/{name}")
    assert "leaked shared_memory" in done.stderr, "it is the user's leak: the tracker says so"


def test_shared_memory_from_this_process(executor: ProcessPoolExecutor) -> None:
    memory = SharedMemory(create=True, size=16)
    try:
        code = (
            "(lambda m: (m.buf.__setitem__(0, 77), m.close()))"
            "(__import__('multiprocessing.shared_memory').shared_memory"
            f".SharedMemory({memory.name!r}))"
        )
        executor.submit(eval, code).result()
        assert memory.buf[0] == 77
    finally:
        memory.close()
        memory.unlink()


@pytest.mark.parametrize("pool_first", [True, False])
def test_manager_proxies_can_be_passed(pool_first: bool, tmp_path: Path) -> None:
    code = """
from loky import ProcessPoolExecutor
executor = ProcessPoolExecutor(2)
if POOL_FIRST:  # then the workers are told the key of multiprocessing's connections later
    list(executor.map(abs, range(100)))
from multiprocessing.managers import SyncManager
def change(proxy, number):
    proxy[number] = number * number
    return dict(proxy.copy())[number]
def add(shared, lock, number):
    with lock:
        shared.append(number)
manager = SyncManager()
from multiprocessing import get_context
manager = SyncManager(ctx=get_context("forkserver"))
if __name__ == "__main__":
    manager.start()
    proxy = manager.dict()
    futures = [executor.submit(change, proxy, number) for number in range(20)]
    assert [f.result() for f in futures] == [n * n for n in range(20)]
    assert dict(proxy.copy()) == {n: n * n for n in range(20)}
    shared, lock = manager.list(), manager.Lock()
    list(executor.map(add, [shared] * 20, [lock] * 20, range(20)))
    assert sorted(shared) == list(range(20))
    executor.shutdown()
    manager.shutdown()
    print("done")
""".replace("POOL_FIRST", str(pool_first))
    assert run(tmp_path, code) == "done\n"


def test_a_task_can_start_processes_of_its_own(executor: ProcessPoolExecutor) -> None:
    assert executor.submit(worker_tasks.run_a_process, 41).result() == 42


def test_a_search_path_with_more_than_texts_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Text(str):
        __slots__ = ()

    odd: list[Any] = [Text("/text"), Path("/path"), lambda: 1, b"/bytes"]
    monkeypatch.setattr(sys, "path", [*sys.path, *odd])
    with ProcessPoolExecutor(1) as executor:
        there = executor.submit(eval, "[(type(x).__name__, x) for x in __import__('sys').path]")
        assert there.result()[-2:] == [("str", "/text"), ("str", "/path")]


@pytest.mark.parametrize(
    ("text", "told"), [("", False), ("abc", True), ("-1", True), ("1.5", True)]
)
def test_a_limit_of_nesting_that_is_no_number_is_left_out(
    tmp_path: Path, text: str, told: bool
) -> None:
    code = "from loky.process_executor import MAX_DEPTH; print(MAX_DEPTH)"
    done = run_script(tmp_path, code, env={"LOKY_MAX_DEPTH": text})
    assert done.stdout == "10\n"
    assert (
        f"LOKY_MAX_DEPTH must be a whole number of at least 0, got '{text}'" in done.stderr
    ) is told
    assert bool(done.stderr) is told


def test_executors_can_be_nested_up_to_the_limit(tmp_path: Path) -> None:
    code = """
from loky import ProcessPoolExecutor
def nest(depth):
    from loky.process_executor import LokyRecursionError, _CURRENT_DEPTH
    assert _CURRENT_DEPTH == depth
    try:
        with ProcessPoolExecutor(1) as executor:
            return executor.submit(nest, depth + 1).result()
    except LokyRecursionError as error:
        return depth, str(error)
print(*nest(0))
"""
    depth, _, message = run(tmp_path, code, env={"LOKY_MAX_DEPTH": "3"}).partition(" ")
    assert depth == "3"
    assert "LOKY_MAX_DEPTH" in message


def test_a_nested_executor_beyond_the_limit_raises_in_the_task(tmp_path: Path) -> None:
    code = """
from loky import ProcessPoolExecutor
from loky.process_executor import LokyRecursionError
def nest():
    with ProcessPoolExecutor(1) as executor:
        return executor.submit(abs, -1).result()
with ProcessPoolExecutor(1) as executor:
    try:
        executor.submit(nest).result()
    except LokyRecursionError as error:
        print(type(error).__name__)
    print(executor.submit(abs, -2).result())
"""
    assert run(tmp_path, code, env={"LOKY_MAX_DEPTH": "1"}) == "LokyRecursionError\n2\n"
    assert run(tmp_path, code, env={"LOKY_MAX_DEPTH": "0"}) == "2\n"


# ---------------------------------------------------------------------- contexts

IMPORTS_MAIN = """
import multiprocessing, os, sys
import loky.backend
from loky import ProcessPoolExecutor
executions = os.environ.get("EXECUTIONS", "0")
os.environ["EXECUTIONS"] = str(int(executions) + 1)
MARK = "set when the main module is imported"
def look():
    main = sys.modules["__main__"]
    return getattr(main, "MARK", None), sys.modules.get("__mp_main__") is main
if __name__ == "__main__":
    for context in CONTEXTS:
        with ProcessPoolExecutor(1, context=context) as executor:
            print(*executor.submit(look).result(), sep=", ")
"""


def test_contexts_that_import_the_main_module_and_those_that_do_not(tmp_path: Path) -> None:
    contexts = """[
        "spawn", "forkserver", "loky_init_main",
        multiprocessing.get_context("spawn"), multiprocessing.get_context("forkserver"),
        loky.backend.get_context("loky_init_main"),
    ]"""
    seen = run(tmp_path, IMPORTS_MAIN.replace("CONTEXTS", contexts)).splitlines()
    assert seen == ["set when the main module is imported, True"] * 6

    contexts = '["loky", None, loky.backend.get_context("loky"), loky.backend.get_context()]'
    seen = run(tmp_path, IMPORTS_MAIN.replace("CONTEXTS", contexts)).splitlines()
    assert seen == ["None, False"] * 4


def test_a_main_module_without_the_guard_that_it_needs_does_not_start_processes_for_ever(
    tmp_path: Path,
) -> None:
    """Its workers make pools of their own while they import it; theirs do not import it again."""
    code = """
import os
from loky import ProcessPoolExecutor
os.write(1, b"imported\\n")
with ProcessPoolExecutor(1, context="spawn") as executor:
    assert executor.submit(abs, -1).result() == 1
"""
    assert run(tmp_path, code) == "imported\n" * 2


def test_what_goes_wrong_without_the_guard_says_that_one_is_needed(tmp_path: Path) -> None:
    code = """
from loky import ProcessPoolExecutor
def double(x):
    return 2 * x
executor = ProcessPoolExecutor(1, context="spawn")
print(executor.submit(double, 3).result())
"""
    done = run_script(tmp_path, code)
    assert done.stdout == ""
    assert "guard that with `if __name__ == '__main__':`, or use context='loky'" in done.stderr


@pytest.mark.parametrize("option", ["context", "mp_context"])
def test_fork_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match="fork"):
        ProcessPoolExecutor(1, **{option: multiprocessing.get_context("fork")})
    with (
        pytest.warns(UserWarning, match="fork") as caught,
        pytest.raises(ValueError, match=r"'fork'.*'loky', .*'spawn', 'forkserver'"),
    ):
        ProcessPoolExecutor(1, **{option: "fork"})
    assert caught[0].filename == __file__


def test_an_unknown_context_is_refused() -> None:
    with pytest.raises(ValueError, match="'spawn'"):
        ProcessPoolExecutor(1, context="thread")


def test_loky_contexts_are_accepted_by_object() -> None:
    with ProcessPoolExecutor(1, mp_context=loky.backend.get_context("loky")) as executor:
        assert executor.submit(abs, -1).result() == 1


def test_workers_end_with_their_pool() -> None:
    with ProcessPoolExecutor(2) as executor:
        pids = set(executor.map(worker_tasks.say_hello, range(20)))
    assert all(ended(pid, 0) for pid in pids)


def test_the_kernel_prefers_a_worker_to_its_parent_when_memory_runs_out() -> None:
    with ProcessPoolExecutor(1) as executor:
        there = executor.submit(worker_tasks.oom_score).result()
    assert there == min(1000, worker_tasks.oom_score() + 200)
