"""The measured halves of scale.py: each runs in an interpreter of its own, on our executor.

Guarantees: one line of JSON on standard output, as figures.py does it. Assumes Linux: memory,
context switches, threads and descriptors are read from /proc.
Does not belong here: bounds and verdicts (scale.py), other pools (run.py).
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import isolate
import workload
from figures import MARK
from meeting import Meeting

# How long workers may take to come up. Generous: sixty-four of them may share one core.
START_LIMIT = 60.0


def _executor(workers: int) -> Any:
    # Not at the top: run.py's environment may lack loky, and the probes import this module.
    from loky import ProcessPoolExecutor

    return ProcessPoolExecutor(max_workers=workers)


def _rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _occupy(executor: Any, workers: int, meeting: Meeting) -> list[Any]:
    """Give every worker a task that waits for release; proof that all of them are up."""
    handles = [executor.submit(workload.arrive, *meeting.args) for _ in range(workers)]
    pids = meeting.arrivals(workers, START_LIMIT)
    if len(set(pids)) < workers:
        raise RuntimeError(f"only {len(set(pids))} of {workers} workers took a task each")
    return handles


def queue(scratch: str, tasks: int) -> dict[str, float]:
    """Queue no-ops behind two busy workers, then let them run.

    A few tasks are over in a moment, and moments differ: they are run several times, so that
    every size is measured over at least 100,000 tasks.
    """
    with _executor(2) as executor, Meeting(scratch) as meeting:
        # Whatever is allocated once is not the price of a task. Few of them: what they free is
        # used again by the tasks that count.
        for handle in [executor.submit(workload.noop) for _ in range(100)]:
            handle.result()
        batches = [_queue_once(executor, meeting, tasks) for _ in range(-(-100_000 // tasks))]
    memory, *_ = batches[0]  # later batches use again what the first has freed
    return {
        "memory": memory,
        "submit": statistics.median(submit for _, submit, _ in batches),
        "drain": statistics.median(drain for _, _, drain in batches),
    }


def _queue_once(executor: Any, meeting: Meeting, tasks: int) -> tuple[float, float, float]:
    """Bytes, seconds to submit and seconds to drain, each for one task."""
    busy = _occupy(executor, 2, meeting)
    gc.collect()
    before = _rss()
    begin = time.perf_counter()
    handles = [executor.submit(workload.noop) for _ in range(tasks)]
    submitted = time.perf_counter() - begin
    grown = _rss() - before
    begin = time.perf_counter()
    meeting.release(2)
    for handle in handles:
        handle.result()
    drained = time.perf_counter() - begin
    for handle in busy:
        handle.result()
    return grown / tasks, submitted / tasks, drained / tasks


def workers(scratch: str, count: int, tasks: int) -> dict[str, float]:
    """The price of a no-op with `count` workers, all up."""
    with _executor(count) as executor:
        with Meeting(scratch) as meeting:
            begin = time.perf_counter()
            handles = _occupy(executor, count, meeting)
            started = time.perf_counter() - begin
            meeting.release(count)
            for handle in handles:
                handle.result()
        for handle in [executor.submit(workload.noop) for _ in range(10 * count)]:
            handle.result()
        begin, cpu = time.perf_counter(), time.process_time()
        for handle in [executor.submit(workload.noop) for _ in range(tasks)]:
            handle.result()
        wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return {"start": started, "wall": wall / tasks, "cpu": cpu / tasks}


def subject(scratch: str) -> None:
    """The idle pool that `idle` watches: works once, says so, and waits for end-of-file."""
    with _executor(2) as executor, Meeting(scratch) as meeting:
        handles = _occupy(executor, 2, meeting)
        meeting.release(2)
        print(" ".join(str(handle.result()) for handle in handles), flush=True)
        sys.stdin.read()


def _switches(pids: list[int]) -> dict[str, int]:
    """Context switches of every thread, by what it is called."""
    counts = {}
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            name = (task / "comm").read_text().strip()
            status = (task / "status").read_text().splitlines()
            counts[f"{pid}/{task.name} {name}"] = sum(
                int(line.split()[1]) for line in status if "ctxt_switches" in line
            )
    return counts


def _grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    grown = {thread: count - before.get(thread, 0) for thread, count in after.items()}
    return {thread: count for thread, count in grown.items() if count}


def idle(scratch: str, seconds: float) -> dict[str, Any]:
    """Wake-ups of an idle pool. Watched from outside, or the watching would be counted."""
    command = [sys.executable, __file__, "subject", scratch]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        if not pids:
            raise RuntimeError("the pool to watch did not come up")
        # All processes of the pool, should it have others than parent and workers.
        everyone = [pid for pid in _family() if pid != os.getpid()]
        # The end of the last task is not idleness: start when two looks agree, or after 5 s.
        deadline = time.monotonic() + 5
        before, earlier = _switches(everyone), None
        while before != earlier and time.monotonic() < deadline:
            time.sleep(0.5)
            before, earlier = _switches(everyone), before
        time.sleep(seconds)
        after = _switches(everyone)
        process.stdin.close()
    parent = [thread for thread in after if thread.startswith(f"{process.pid}/")]
    return {
        "processes": len(everyone),
        "parent_threads": len(parent),
        "threads": len(after),
        "wake_ups": _grown(before, after),
        "parent_wake_ups": sum(after[thread] - before.get(thread, 0) for thread in parent),
        "total_wake_ups": sum(_grown(before, after).values()),
    }


def _family() -> list[int]:
    """All processes of this measurement, this one included: they share the token."""
    token = os.environ.get(isolate.TOKEN)
    return isolate.holders(token) if token else [os.getpid()]


def _mapped_by_strangers() -> set[str]:
    """Names in /dev/shm that processes use which are not of this measurement."""
    family = set(_family())
    names: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        if int(maps.parent.name) in family:
            continue
        try:
            lines = maps.read_text().splitlines()
        except OSError:
            continue  # gone, or somebody else's
        names.update(line.partition("/dev/shm/")[2] for line in lines if "/dev/shm/" in line)
    return names


def _belongings(scratch: str) -> dict[str, list[str] | int]:
    """Everything that a pool could leave behind."""
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "processes": len(_family()),
        "shm": sorted(set(os.listdir("/dev/shm")) - _mapped_by_strangers()),
        "temporary": sorted(os.listdir(scratch)),
    }


def cycles(scratch: str, count: int, warm_up: int) -> dict[str, Any]:
    """Make a pool, use it, shut it down, `count` times; what is there before and after."""

    def cycle() -> None:
        with _executor(2) as executor:
            for handle in [executor.submit(workload.noop) for _ in range(4)]:
                handle.result()

    def look() -> tuple[dict[str, list[str] | int], int]:
        # A thread of the last pool may be on its last line. What is there a second later stays,
        # and before the cycles it would hide as much of what they leave.
        time.sleep(1)
        gc.collect()
        return _belongings(scratch), _rss()

    for _ in range(warm_up):
        cycle()
    before, rss = look()
    begin = time.perf_counter()
    for _ in range(count):
        cycle()
    seconds = time.perf_counter() - begin
    after, rss_after = look()
    return {
        "seconds": seconds / count,
        "before": before,
        "after": after,
        "rss": [rss, rss_after],
    }


PROBES: dict[str, Callable[..., Any]] = {
    "queue": queue,
    "workers": workers,
    "idle": idle,
    "cycles": cycles,
}


if __name__ == "__main__":
    name, scratch_directory, *numbers = sys.argv[1:]
    if name == "subject":
        subject(scratch_directory)
    else:
        measured = PROBES[name](scratch_directory, *map(int, numbers))
        print("\n" + MARK + json.dumps(measured), flush=True)
