"""What a pool uses, and that it gives everything back.

A measured interval is the subject of some of these tests: there, and only there, time is waited
for. Nothing is concluded from how long something took.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path

import psutil
import pytest
import worker_tasks
from rendezvous import PATIENCE, all_ended, ended, run_script

from loky import ProcessPoolExecutor, get_reusable_executor

CYCLES = int(40 * float(os.environ.get("LOKY_TEST_EFFORT", "1")))


def descriptors() -> dict[str, str]:
    return {
        name: os.readlink(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{name}")
    }


def named_memory(pid: int | str) -> list[str]:
    """Files of /dev/shm that a process has open or mapped, those without a name any more too.

    A look at the folder would show what everybody else on the machine does there meanwhile.
    """
    process = Path(f"/proc/{pid}")
    used = [line.partition("/")[2] for line in (process / "maps").read_text().splitlines()]
    used += [os.readlink(link)[1:] for link in (process / "fd").iterdir() if os.path.lexists(link)]
    return [name for name in used if name.startswith("dev/shm/")]


def threads() -> set[threading.Thread]:
    return set(threading.enumerate())


def wait_for_threads(before: set[threading.Thread]) -> None:
    """Threads of a closed pool end by themselves, a moment after `shutdown` returns."""
    for thread in threads() - before:
        thread.join(PATIENCE)
        assert not thread.is_alive(), thread


def anonymous_memory() -> int:
    """Private memory of this process, in kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1])
    raise AssertionError("no RssAnon in /proc/self/status")


def test_cycles_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor, process, thread, named memory, temporary file, nor much memory."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # of the workers
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with ProcessPoolExecutor(1) as executor:  # the lifeline stays for the life of the process
        executor.submit(abs, -1).result()
    quiet = {thread for thread in threads() if not thread.name.startswith("loky")}
    wait_for_threads(quiet)
    before = len(descriptors())
    named = set(named_memory("self"))
    children = set(psutil.Process().children(recursive=True))
    memory = 0
    for number in range(CYCLES):
        with ProcessPoolExecutor(2) as executor:
            large = b"x" * 100_000 if number % 4 == 0 else b""  # goes by descriptor
            assert executor.submit(len, large).result() == len(large)
            pids = set(executor.map(worker_tasks.say_hello, range(4)))
            assert not any(map(named_memory, pids))
        assert all(ended(pid, 0) for pid in pids)
        del executor
        wait_for_threads(quiet)
        if number == CYCLES // 2:  # by then, what is kept for ever is there
            gc.collect()
            memory = anonymous_memory()
    gc.collect()
    assert len(descriptors()) == before, descriptors()
    assert set(named_memory("self")) <= named
    assert not list(tmp_path.iterdir())
    assert set(psutil.Process().children(recursive=True)) == children
    # This shows buffers and large arguments that stay; the next test watches the small records.
    assert anonymous_memory() - memory < 1000, "kB more than half-way"


def test_a_closed_executor_is_collected() -> None:
    """Nothing of a pool that was shut down is kept alive by anything that goes on living."""
    executor = ProcessPoolExecutor(1)
    executor.submit(abs, -1).result()
    executor.shutdown()
    pool, scheduler = weakref.ref(executor._pool), weakref.ref(executor._pool.settings)
    quiet = {thread for thread in threads() if not thread.name.startswith("loky")}
    wait_for_threads(quiet)
    del executor
    gc.collect()
    assert pool() is None
    assert scheduler() is None


def test_results_and_arguments_are_not_kept() -> None:
    class Big:
        pass

    with ProcessPoolExecutor(1) as executor:
        argument = Big()
        kept = weakref.ref(argument)
        executor.submit(id, argument).result()
        del argument
        gc.collect()
        assert kept() is None, "the argument of a finished task"
        future = executor.submit(Big)
        kept = weakref.ref(future.result())
        del future
        # The pool's thread lets go of it when it turns to what is next.
        executor.submit(abs, -1).result()
        gc.collect()
        assert kept() is None, "the result of a task whose future is gone"


# ---------------------------------------------------------------------- idle


def switches(pid: int, thread_ids: list[str] | None = None) -> dict[str, int]:
    """Voluntary context switches of each thread: one for each time that it went to sleep."""
    found = {}
    for thread in thread_ids or os.listdir(f"/proc/{pid}/task"):
        for line in Path(f"/proc/{pid}/task/{thread}/status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                found[f"{pid}/{thread}"] = int(line.split()[1])
    return found


@pytest.mark.parametrize("timeout", [None, 1000])
def test_an_idle_pool_sleeps(timeout: float | None) -> None:
    before = set(os.listdir("/proc/self/task"))
    with ProcessPoolExecutor(2, timeout=timeout) as executor:
        pids = set()
        while len(pids) < 2:
            pids |= set(executor.map(worker_tasks.say_hello, range(50)))
        ours = [t for t in os.listdir("/proc/self/task") if t not in before]
        assert len(ours) >= 2, "the pool's threads"

        def count() -> dict[str, int]:
            found = switches(os.getpid(), ours)
            for pid in pids:
                found |= switches(pid)
            return found

        # What the last tasks set going comes to rest: a look for slow tasks, a guardian's count.
        last = count()
        deadline = time.monotonic() + PATIENCE
        while True:
            time.sleep(0.1)
            now = count()
            if now == last:
                break
            assert time.monotonic() < deadline, "it never comes to rest"
            last = now
        time.sleep(1.0)  # the measured interval
        assert count() == last


# ---------------------------------------------------------------------- all workers are used

README = """
import os
from loky import get_reusable_executor
def say_hello(k):
    return os.getpid()
executor = get_reusable_executor(max_workers=4, timeout=2)
executor.submit(say_hello, 1).result()
print(len(set(executor.map(say_hello, range(50)))))
"""


@pytest.mark.parametrize("attempt", range(5))
def test_all_workers_of_a_cold_pool_get_tasks(attempt: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", README], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.stdout, done.stderr) == ("4\n", "")


def test_idle_workers_give_their_memory_back() -> None:
    executor = get_reusable_executor(max_workers=2, timeout=0.05, reuse=False)
    pids = set(executor.map(worker_tasks.say_hello, range(50)))
    assert all_ended(pids)
    assert executor.submit(worker_tasks.say_hello, 0).result() not in pids
    executor.shutdown()


# ---------------------------------------------------------------------- few descriptors

FEW = """
import os, resource, sys
limit, workers = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
from loky import ProcessPoolExecutor
with ProcessPoolExecutor(workers) as executor:
    futures = [executor.submit(abs, -i) for i in range(10 * workers)]
    assert [f.result() for f in futures] == list(range(10 * workers))
    assert 0 < len(executor._pool.pids()) < workers, executor._pool.pids()
print("complete")
"""


def test_an_initializer_that_cannot_be_sent_leaves_no_descriptors() -> None:
    with multiprocessing.Pipe()[0] as end:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(pickle.PicklingError):
            ProcessPoolExecutor(1, initializer=print, initargs=(end, threading.Lock()))
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("limit", "workers"), [(64, 20), (128, 40)])
def test_a_pool_goes_on_with_as_many_workers_as_there_are_descriptors_for(
    tmp_path: Path, limit: int, workers: int
) -> None:
    done = run_script(tmp_path, FEW, str(limit), str(workers))
    assert (done.stdout, done.stderr) == ("complete\n", "")


NONE_LEFT = """
import os, resource, subprocess, sys  # of these, none can be imported below
from loky.pool.launcher_posix import launch
# Its copies of these descriptors would have numbers above the limit.
fds = [os.dup(0) for _ in range(20)]
resource.setrlimit(resource.RLIMIT_NOFILE, (max(fds) - 5, 1000))
try:
    launch(None, fds)
except OSError as error:
    print(type(error).__name__, error)
"""


def test_descriptors_above_the_limit_are_said_to_be_too_many(tmp_path: Path) -> None:
    done = run_script(tmp_path, NONE_LEFT)
    assert (done.stdout, done.stderr) == ("OSError [Errno 24] Too many open files\n", "")


ABOVE = """
import os, resource
os.dup2(0, 300, inheritable=True)
resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from loky import ProcessPoolExecutor
with ProcessPoolExecutor(1) as executor:
    there = executor.submit(os.listdir, "/proc/self/fd").result()
print(os.get_inheritable(300), "300" in there)
"""


def test_an_inheritable_descriptor_above_the_limit(tmp_path: Path) -> None:
    """Workers start, without it, and it stays what it is."""
    done = run_script(tmp_path, ABOVE)
    assert (done.stdout, done.stderr) == ("True False\n", "")
