"""What is measured, and how: the figures, and the probes that produce them.

A probe runs in a fresh interpreter for one peer and returns one number or one word for each of its
figures. Guarantees: all times are seconds of the monotonic clock; nothing is imported before the
first clock reading that the peer's own import could profit from (hence no `typing`, `json` or
`dataclasses` at the top). Assumes POSIX (named pipes, signals).
Does not belong here: anything that knows one peer from another (peers.py), statistics and
printing (table.py), rounds and order (run.py).
"""

from __future__ import annotations

import os
import sys
import time

import workload
from meeting import Meeting
from peers import NotInstalled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from peers import Peer

    Outcome = dict[str, "float | str"]

SIGKILL = 9  # the module `signal` would cost an import


class Figure:
    """One line of the table: a time (less is better) or a rate (more is better)."""

    def __init__(self, name: str, title: str, unit: str, probe: str) -> None:
        self.name = name
        self.title = title
        self.unit = unit
        self.probe = probe

    @property
    def is_rate(self) -> bool:
        return self.unit == "/s"


FIGURES = (
    Figure("import", "import the package, minus a bare interpreter's life", "ms", "import"),
    Figure("import-whole", "the same, whole life of the interpreter", "ms", "import"),
    Figure("import-pool", "import the pool's name, minus a bare interpreter", "ms", "import"),
    Figure("import-pool-whole", "the same, whole life of the interpreter", "ms", "import"),
    Figure("cold-start", "make a pool of two, first result (imports excluded)", "ms", "cold-start"),
    Figure("cold-start-whole", "the same, from the launch of the interpreter", "ms", "cold-start"),
    Figure("cold-all", "make a pool of two, both busy (imports excluded)", "ms", "cold-all"),
    Figure("round-trip", "one submit(no-op).result(), median", "us", "round-trip"),
    Figure("submit", "submit many no-ops, all results", "/s", "submit"),
    Figure("submit-lambda", "submit many lambdas, all results", "/s", "submit-lambda"),
    Figure("map", "map, chunks of one item", "/s", "map"),
    Figure("map-chunked", "map, chunks that suit the peer", "/s", "map-chunked"),
    Figure("kill-reported", "worker killed in a task: until that task fails", "ms", "kill"),
    Figure("kill-next", "worker killed in a task: until the next result", "ms", "kill"),
    Figure("kill-full", "worker killed in a task: until two workers are busy", "ms", "kill"),
)


class Sizes:
    """How much each probe does; a run states them, `--quick` shrinks them."""

    def __init__(self, quick: bool) -> None:
        self.launches = 3 if quick else 5
        self.warm_up = 50 if quick else 200
        self.round_trips = 200 if quick else 1000
        self.submits = 1000 if quick else 5000
        self.lambdas = 500 if quick else 2000
        self.items = 1000 if quick else 5000
        self.chunked_items = 50_000 if quick else 200_000
        self.hang_limit = 3.0 if quick else 5.0


class Hangs(Exception):
    """No answer within the time limit."""


def _median(values: list[float]) -> float:
    # Not `statistics.median`: that module imports half of the standard library.
    values = sorted(values)
    middle = len(values) // 2
    if len(values) % 2:
        return values[middle]
    return (values[middle - 1] + values[middle]) / 2


def _lifetime(statement: str) -> float:
    """Seconds from starting an interpreter that runs one statement until it is gone."""
    command = [sys.executable, "-c", statement]
    begin = time.perf_counter()
    pid = os.posix_spawn(sys.executable, command, os.environ)
    _, status = os.waitpid(pid, 0)
    end = time.perf_counter()
    if status:
        raise RuntimeError(f"{statement!r} failed")
    return end - begin


def probe_import(peer: Peer, sizes: Sizes, scratch: str, launched: float) -> Outcome:
    package, pool = peer.statements
    times: dict[str, list[float]] = {"pass": [], package: [], pool: []}
    for statement in times:
        _lifetime(statement)  # files into the page cache, byte code onto the disk
    for _ in range(sizes.launches):
        for statement, seen in times.items():
            seen.append(_lifetime(statement))
    bare = _median(times["pass"])
    if package == "pass":
        return {"import-whole": bare, "import-pool-whole": bare}
    return {
        "import": _median(times[package]) - bare,
        "import-whole": _median(times[package]),
        "import-pool": _median(times[pool]) - bare,
        "import-pool-whole": _median(times[pool]),
    }


def probe_cold_start(peer: Peer, sizes: Sizes, scratch: str, launched: float) -> Outcome:
    peer.load()
    begin = time.perf_counter()
    peer.open()
    peer.wait(peer.submit(workload.noop))
    result = time.perf_counter() - begin
    return {"cold-start": result, "cold-start-whole": time.monotonic() - launched}


def probe_cold_all(peer: Peer, sizes: Sizes, scratch: str, launched: float) -> Outcome:
    peer.load()
    with Meeting(scratch) as meeting:
        begin = time.perf_counter()
        peer.open()
        handles = _meet(peer, meeting, sizes.hang_limit)
        taken = time.perf_counter() - begin
        _part(peer, meeting, handles, sizes.hang_limit)
    return {"cold-all": taken}


def _meet(peer: Peer, meeting: Meeting, limit: float) -> list[Any]:
    """Return once every worker holds a task that waits to be released."""
    handles = [peer.submit(workload.arrive, *meeting.args) for _ in range(peer.workers)]
    pids = meeting.arrivals(peer.workers, limit)
    if len(set(pids)) < peer.workers:
        meeting.release(len(pids))
        raise Hangs(f"only {len(set(pids))} of {peer.workers} workers took a task")
    return handles


def _part(peer: Peer, meeting: Meeting, handles: list[Any], limit: float) -> None:
    meeting.release(len(handles))
    for handle in handles:
        peer.wait(handle, limit)


def _warm(peer: Peer, sizes: Sizes, scratch: str) -> None:
    """A pool with all of its workers up and its code paths walked."""
    peer.load()
    with Meeting(scratch) as meeting:
        peer.open()
        _part(peer, meeting, _meet(peer, meeting, 30.0), sizes.hang_limit)
    for handle in [peer.submit(workload.noop) for _ in range(sizes.warm_up)]:
        peer.wait(handle)


def probe_round_trip(peer: Peer, sizes: Sizes, scratch: str, launched: float) -> Outcome:
    _warm(peer, sizes, scratch)
    submit, wait, noop, clock = peer.submit, peer.wait, workload.noop, time.perf_counter
    times = []
    for _ in range(sizes.round_trips):
        begin = clock()
        wait(submit(noop))
        times.append(clock() - begin)
    return {"round-trip": _median(times)}


def _submit_rate(peer: Peer, task: Callable[[], Any], count: int) -> float:
    submit, wait = peer.submit, peer.wait
    begin = time.perf_counter()
    handles = [submit(task) for _ in range(count)]
    for handle in handles:
        wait(handle)
    return count / (time.perf_counter() - begin)


def probe_submit(peer: Peer, sizes: Sizes, scratch: str, launched: float) -> Outcome:
    _warm(peer, sizes, scratch)
    return {"submit": _submit_rate(peer, workload.noop, sizes.submits)}


def probe_submit_lambda(peer: Peer, sizes: Sizes, scratch: str, launched: float) -> Outcome:
    _warm(peer, sizes, scratch)
    peer.wait(peer.submit(lambda: None))  # the pickler that lambdas need may be imported lazily
    return {"submit-lambda": _submit_rate(peer, lambda: None, sizes.lambdas)}


def _map_rate(peer: Peer, count: int, chunk: int) -> float:
    items = range(count)
    peer.map(workload.echo, range(peer.workers * chunk), chunk)
    begin = time.perf_counter()
    results = peer.map(workload.echo, items, chunk)
    taken = time.perf_counter() - begin
    if results != list(items):
        raise RuntimeError("map returned something else than the items")
    return count / taken


def probe_map(peer: Peer, sizes: Sizes, scratch: str, launched: float) -> Outcome:
    _warm(peer, sizes, scratch)
    return {"map": _map_rate(peer, sizes.items, 1)}


def probe_map_chunked(peer: Peer, sizes: Sizes, scratch: str, launched: float) -> Outcome:
    _warm(peer, sizes, scratch)
    chunk = peer.good_chunk(sizes.chunked_items)
    return {"map-chunked": _map_rate(peer, sizes.chunked_items, chunk)}


def probe_kill(peer: Peer, sizes: Sizes, scratch: str, launched: float) -> Outcome:
    """Kill one busy worker; what a caller sees who waits for that task and then goes on.

    The order matters: the other worker is idle and would answer at once, also in a pool that
    has not noticed yet that it is broken. So the next task is given when the victim has failed.
    """
    _warm(peer, sizes, scratch)
    limit = sizes.hang_limit
    hangs = f"hangs ({limit:g} s)"
    outcome: Outcome = {}
    with Meeting(scratch) as meeting:
        victim = peer.submit(workload.arrive, *meeting.args)
        pids = meeting.arrivals(1, limit)
        if not pids:
            raise Hangs("no worker took the task")
        begin = time.monotonic()
        os.kill(pids[0], SIGKILL)
        try:
            peer.wait(victim, limit)
        except Exception:
            # The peers have five kinds of time-out between them; the clock tells it as well.
            if time.monotonic() - begin >= limit:
                return {
                    "kill-reported": hangs,
                    "kill-next": f"{hangs}, {_still_alive(peer, limit)}",
                    "kill-full": hangs,
                }
        else:
            raise RuntimeError("the task of a killed worker returned")
        outcome["kill-reported"] = time.monotonic() - begin
        try:
            _insist(peer, begin, limit, lambda: peer.wait(peer.submit(workload.noop), limit))
            outcome["kill-next"] = time.monotonic() - begin
            if "kill-full" in peer.cannot:
                return outcome
            handles = _insist(peer, begin, limit, lambda: _meet(peer, meeting, limit))
            outcome["kill-full"] = time.monotonic() - begin
            _part(peer, meeting, handles, limit)
        except Hangs:
            outcome.setdefault("kill-next", hangs)
            outcome.setdefault("kill-full", hangs)
    return outcome


def _still_alive(peer: Peer, limit: float) -> str:
    """For a peer that lost a task: whether it still answers others."""
    try:
        peer.wait(peer.submit(workload.noop), limit)
    except Exception:
        return "and so do new tasks"
    return "new tasks are answered"


def _insist(peer: Peer, begin: float, limit: float, attempt: Callable[[], Any]) -> Any:
    """Try until it works, with a replaced pool after every failure, as a caller would."""
    while True:
        try:
            return attempt()
        except Exception as error:
            if isinstance(error, Hangs) or time.monotonic() - begin >= limit:
                raise Hangs from error
            peer.replace()


PROBES: dict[str, Callable[[Peer, Sizes, str, float], Outcome]] = {
    "import": probe_import,
    "cold-start": probe_cold_start,
    "cold-all": probe_cold_all,
    "round-trip": probe_round_trip,
    "submit": probe_submit,
    "submit-lambda": probe_submit_lambda,
    "map": probe_map,
    "map-chunked": probe_map_chunked,
    "kill": probe_kill,
}


MARK = "measured: "


def main(arguments: Sequence[str]) -> None:
    """The life of a measured interpreter: one peer, one probe, one line of JSON."""
    key, probe, quick, scratch, launched = arguments
    from peers import peer as peer_of

    peer = peer_of(key)
    answer: dict[str, Any] = {}
    try:
        if probe == "version":
            answer["version"] = peer.version()
        else:
            sizes = Sizes(quick == "quick")
            answer["figures"] = PROBES[probe](peer, sizes, scratch, float(launched))
    except NotInstalled as error:
        answer["missing"] = str(error)
    except Exception as error:
        # One line: the whole traceback follows on standard error.
        answer["error"] = f"{type(error).__name__}: {error}".partition("\n")[0]
        import traceback

        traceback.print_exc()

    import json

    print("\n" + MARK + json.dumps(answer), flush=True)
    outcome: Outcome = answer.get("figures", {})
    opened = bool(outcome) and probe != "import"
    if opened and not any(isinstance(value, str) for value in outcome.values()):
        peer.close()
    else:
        # A pool that lost something may not let go, and its exit is not what is measured; the
        # run ends whatever is left of it.
        sys.stderr.flush()
        os._exit(0)
