"""asyncio: awaiting calls and maps, and what cancelling does."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pool_tasks import call, fail_with, invert, killed, pass_through, stuck_in_a_loop
from rendezvous import PATIENCE, Gate, ended

from loky import CancelledError, ProcessPoolExecutor, TaskTimeoutError, TerminatedWorkerError


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2) as executor:
        executor.submit(abs, -1).result()
        yield executor


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path) as gate:
        yield gate


async def arrivals(gate: Gate, count: int = 1) -> list[int]:
    """Wait for tasks at the gate in a thread, as the loop has to run meanwhile."""
    return await asyncio.to_thread(gate.arrivals, count)


def test_calls_are_awaited_without_threads(pool: ProcessPoolExecutor) -> None:
    async def main() -> list[int]:
        before = threading.active_count()
        results = await asyncio.gather(*[pool.asubmit(abs, -n) for n in range(100)])
        assert threading.active_count() == before
        return results

    assert asyncio.run(main()) == list(range(100))


@pytest.mark.parametrize(
    ("fn", "arguments", "error"),
    [(fail_with, (LookupError("no"),), LookupError), (killed, (), TerminatedWorkerError)],
)
def test_errors_arrive(
    pool: ProcessPoolExecutor, fn: Any, arguments: tuple[Any, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        asyncio.run(pool.asubmit(fn, *arguments))


def test_a_view_awaits_with_its_options(pool: ProcessPoolExecutor, gate: Gate) -> None:
    with pytest.raises(TaskTimeoutError):
        asyncio.run(pool.options(timeout=0.2).asubmit(stuck_in_a_loop, gate.path))


def test_cancelling_who_awaits_kills_the_work(pool: ProcessPoolExecutor, gate: Gate) -> None:
    async def main() -> int:
        task = asyncio.ensure_future(pool.asubmit(stuck_in_a_loop, gate.path))
        (pid,) = await arrivals(gate)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pid

    assert ended(asyncio.run(main()))
    assert pool.submit(abs, -1).result() == 1


def test_cancelling_who_awaits_a_call_that_has_not_begun(gate: Gate) -> None:
    async def main(executor: ProcessPoolExecutor) -> None:
        first = executor.submit(pass_through, gate.path, 1)
        await arrivals(gate)
        task = asyncio.ensure_future(executor.asubmit(pass_through, gate.path, 2))
        await asyncio.sleep(0)  # it submits
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open(1)
        assert await asyncio.wrap_future(first) == 1
        assert await executor.asubmit(abs, -3) == 3
        assert gate.nobody_came()

    with ProcessPoolExecutor(1) as executor:
        asyncio.run(main(executor))


def test_cancelling_a_call_that_is_being_taken_kills_it(gate: Gate) -> None:
    with ProcessPoolExecutor(1) as executor:
        first = executor.submit(pass_through, gate.path, 1)
        gate.arrivals()
        future = executor.submit(pass_through, gate.path, 2)
        with future._condition:  # whoever cancels has looked, and waits for the lock
            thread = threading.Thread(target=future._stop_soon)
            thread.start()
            gate.open(1)
            gate.arrivals()  # the pool has taken it, without the lock
        thread.join()
        with pytest.raises(CancelledError):
            future.result(PATIENCE)
        assert first.result() == 1


def test_an_awaited_map_does_not_keep_what_it_has_handed_out(
    pool: ProcessPoolExecutor, gate: Gate
) -> None:
    async def main() -> bool:
        results = pool.amap(call, [set, pass_through], [(), (gate.path,)])
        first = weakref.ref(await anext(results))
        second = asyncio.ensure_future(anext(results))
        await arrivals(gate)
        await pool.asubmit(abs, -1)  # so that whoever told of the first has gone on
        kept = first() is not None
        gate.open()
        await second
        return kept

    assert not asyncio.run(main())


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("buffersize", [None, 2])
@pytest.mark.parametrize("chunksize", [1, 3])
def test_maps_are_awaited(
    pool: ProcessPoolExecutor, ordered: bool, buffersize: int | None, chunksize: int
) -> None:
    async def main() -> list[float]:
        options: Any = {"ordered": ordered, "buffersize": buffersize, "chunksize": chunksize}
        return [x async for x in pool.amap(abs, range(20), **options)]

    results = asyncio.run(main())
    assert (results if ordered else sorted(results)) == list(range(20))


def test_a_failing_map_says_so(pool: ProcessPoolExecutor) -> None:
    async def main() -> None:
        found = []
        with pytest.raises(ZeroDivisionError):
            async for x in pool.amap(invert, [1, 2, 0, 4]):
                found.append(x)
        assert found == [1.0, 0.5]
        assert [
            type(x) async for x in pool.amap(invert, [1, 0], on_error="collect", chunksize=2)
        ] == [float, ZeroDivisionError]

    asyncio.run(main())


def test_leaving_an_awaited_map_kills_what_runs(pool: ProcessPoolExecutor, gate: Gate) -> None:
    async def take(results: AsyncIterator[Any]) -> None:
        async for _ in results:
            raise AssertionError("there is no result")

    async def main() -> list[int]:
        task = asyncio.ensure_future(take(pool.amap(stuck_in_a_loop, [gate.path] * 2)))
        pids = await arrivals(gate, 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pids

    for pid in asyncio.run(main()):
        assert ended(pid)
    assert pool.submit(abs, -1).result() == 1


def test_a_loop_that_is_gone_hurts_nobody(pool: ProcessPoolExecutor, gate: Gate) -> None:
    """The call completes after its loop was closed: nothing is raised or printed in the pool."""
    loop = asyncio.new_event_loop()

    async def main() -> None:
        asyncio.ensure_future(pool.asubmit(pass_through, gate.path))  # noqa: RUF006
        await arrivals(gate)

    task = loop.create_task(main())
    loop.run_until_complete(task)
    for pending in asyncio.all_tasks(loop):
        pending._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    gate.open()
    assert pool.submit(abs, -1).result() == 1
