"""The kernel's out-of-memory killer, in earnest: what it costs, and what the user learns of it.

Each test makes a control group with little memory and runs a pool in it, parent and workers.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from control_groups import MemoryGroup
from rendezvous import run_script

MB = 1_000_000

POOL = """
{enter}
import json, os, sys
sys.path.insert(0, {tests!r})
import pool_tasks
from rendezvous import Gate
from pathlib import Path
from loky import ProcessPoolExecutor

with Gate(Path({folder!r})) as gate, ProcessPoolExecutor(2) as executor:
    bystander = executor.submit(pool_tasks.pid_through, gate.path)
    (bystander_pid,) = gate.arrivals()
    before = [executor.submit(abs, -n) for n in range(50)]
    greedy = executor.submit(pool_tasks.hoard)
    behind = [executor.submit(abs, -n) for n in range(50)]
    error = greedy.exception()
    gate.open()
    print(json.dumps({{
        "kind": type(error).__name__,
        "text": str(error),
        "exitcode": error.exitcode,
        "victim": error.pid,
        "bystander": [bystander_pid, bystander.result()],
        "others": [future.result() for future in before + behind],
    }}))
"""


@pytest.mark.usefixtures("no_leftovers")
def test_the_kernel_ends_the_worker_that_takes_too_much_and_nothing_else_is_lost(
    tmp_path: Path,
) -> None:
    with MemoryGroup(150 * MB) as group:
        code = POOL.format(
            enter=group.enter, tests=str(Path(__file__).parent), folder=str(tmp_path)
        )
        done = run_script(tmp_path, code)
    assert done.returncode == 0, f"the parent itself did not survive: {done.stderr}"
    report = json.loads(done.stdout)
    assert report["kind"] == "TerminatedWorkerError"
    assert report["exitcode"] == -9
    assert "SIGKILL" in report["text"] and "pool_tasks.hoard" in report["text"]
    assert "The kernel's out-of-memory killer ended it" in report["text"]
    started_with, ended_with = report["bystander"]
    assert started_with == ended_with != report["victim"], "it was not disturbed"
    assert report["others"] == [*range(50), *range(50)]


LIMITED = """
{enter}
import json, sys
sys.path.insert(0, {tests!r})
import pool_tasks
from loky import ProcessPoolExecutor, memory

with ProcessPoolExecutor(2, memory_limit="80%") as executor:
    before = memory.oom_kills()
    futures = [executor.submit(pool_tasks.hoard_slowly) for _ in range(2)]
    errors = [future.exception() for future in futures]
    print(json.dumps({{
        "limit": executor._options.memory_limit,
        "kinds": [type(error).__name__ for error in errors],
        "kernel": memory.oom_kills() - before,
        "after": executor.submit(abs, -1).result(),
    }}))
"""


@pytest.mark.usefixtures("no_leftovers")
def test_with_a_limit_the_pool_chooses_who_goes_before_the_kernel_does(tmp_path: Path) -> None:
    with MemoryGroup(400 * MB) as group:
        code = LIMITED.format(enter=group.enter, tests=str(Path(__file__).parent))
        done = run_script(tmp_path, code)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["limit"] == pytest.approx(320 * MB, rel=0.01), "of the group, not the machine"
    assert report["kinds"] == ["TaskMemoryError"] * 2
    assert report["kernel"] == 0
    assert report["after"] == 1
