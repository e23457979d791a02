"""What holds for every test: a time limit, no process left behind, reproducible randomness.

Guarantee: no test runs without a limit. `timeout` in pyproject.toml sets it; a marker may set
another for one test, but neither switch it off nor reach the limit that ends the whole run.

Guarantee: a module that leaves a child process running fails, in its last test's teardown.

For tests to use: `no_leftovers`, which also looks at threads and descriptors, after one test.

Does not belong here: fixtures that only one module needs.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import hypothesis
import pytest
from leftovers import Snapshot

# How long an example takes says nothing on a machine that others use too. Where the answer must be
# the same each time (CI sets the variable), every run tries the same examples.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


# A shell's background jobs ignore the interrupt, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    last = float(config.getini("faulthandler_timeout"))
    for item in items:
        marker = item.get_closest_marker("timeout")
        if marker is None:
            continue
        limit = marker.kwargs.get("timeout", marker.args[0] if marker.args else None)
        if limit is None or not 0 < float(limit) < last:
            raise pytest.UsageError(
                f"{item.nodeid}: timeout({limit!r}) has to be above 0 and below {last:g} seconds, "
                "at which the whole run is ended"
            )


@pytest.fixture(autouse=True, scope="module")
def _module_leaves_no_process() -> Iterator[None]:
    before = Snapshot()
    yield
    if "loky.reusable_executor" in sys.modules and before.new_processes():
        # Perhaps they are those of the one pool that is meant to outlive its callers.
        from loky import get_reusable_executor

        get_reusable_executor(max_workers=1).shutdown(wait=True, kill_workers=True)
    left = before.processes_left()
    assert not left, "this module left behind: " + "; ".join(left)


@pytest.fixture(scope="session")
def _first_pool() -> None:
    """Open what all pools of a process share and keep, so that no test is charged for it."""
    from loky import ProcessPoolExecutor

    with ProcessPoolExecutor(max_workers=1) as pool:
        assert pool.submit(abs, -1).result() == 1


@pytest.fixture
def no_leftovers(_first_pool: None) -> Iterator[None]:
    """Fail the test if, at its end, it leaves a child process, a thread or a descriptor."""
    before = Snapshot()
    yield
    left = before.leftovers()
    assert not left, "this test left behind: " + "; ".join(left)
