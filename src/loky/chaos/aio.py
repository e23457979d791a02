"""The actor that lives in an event loop: awaits calls and maps, and cancels whoever awaits.

Rule: as everywhere here, no choice is made, and everything is written into the stage's book.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import Any

from . import tasks
from .actions import Await, AwaitMap
from .judge import CANCELLED, ERROR, VALUE, Fate, Outcome
from .stage import Stage

REFUSAL = "cannot schedule new futures"


def perform(stage: Stage, actions: Sequence[Any], begin: float) -> None:
    """Carry out the actions, of which all may be under way at a time; return when all are over."""
    asyncio.run(_perform(stage, actions, begin))


async def _perform(stage: Stage, actions: Sequence[Any], begin: float) -> None:
    running = []
    for action in actions:
        await asyncio.sleep(max(0.0, begin + action.at - time.monotonic()))
        if isinstance(action, AwaitMap):
            running.append(asyncio.create_task(_map(stage, action)))
        else:
            running.append(asyncio.create_task(_await(stage, action)))
    await asyncio.gather(*running)


async def _await(stage: Stage, action: Await) -> None:
    fate = stage.fates[action.call.number] = Fate(action.call, "await")
    executor, function, arguments = stage.request(action.call)
    stage.note("async", f"await {action.call.number} {action.call.kind}")
    # What raises SystemExit or KeyboardInterrupt would end the loop: they come as values.
    work = asyncio.ensure_future(_outcome(executor, function, arguments))
    if action.patience is not None:
        await asyncio.wait([work], timeout=action.patience)
        if not work.done():
            stage.note("async", f"cancel whoever awaits {action.call.number}")
            work.cancel()
    try:
        outcome = await work
    except asyncio.CancelledError:
        fate.cancels.append((True, True))
        outcome = Outcome(CANCELLED)
    if isinstance(outcome, Outcome):
        fate.outcome = outcome
    else:
        fate.refused = outcome
    fate.told = 1
    stage.moved()


async def _outcome(executor: Any, function: Any, arguments: Any) -> Outcome | RuntimeError:
    try:
        return Outcome(VALUE, tasks.digest(await executor.asubmit(function, *arguments)))
    except asyncio.CancelledError:
        raise
    except CancelledError:
        return Outcome(CANCELLED)
    except BaseException as error:
        # Submitting is a part of this; a refusal has a text of its own.
        if isinstance(error, RuntimeError) and str(error).startswith(REFUSAL):
            return error.with_traceback(None)
        return Outcome(ERROR, error=error.with_traceback(None))


async def _map(stage: Stage, action: AwaitMap) -> None:
    fates = [Fate(call, "map") for call in action.calls]
    stage.fates.update((fate.call.number, fate) for fate in fates)
    columns = zip(*[(c.number, c.kind, c.seconds, c.size) for c in action.calls], strict=True)
    stage.note("async", f"map of {len(fates)} from {action.calls[0].number}")
    taken = 0
    try:
        results = stage.executor.amap(
            tasks.work,
            [stage.path] * len(fates),
            *columns,
            buffersize=action.buffersize,
            ordered=False,
            on_error="skip",
        )
        async for result in results:
            stage.took_unordered(fates, result)
            taken += 1
            if taken == action.take:
                break
        await results.aclose()
    except (RuntimeError, CancelledError) as error:
        if not (stage.facts.closing or stage.facts.breakable):
            stage.problems.append(f"after {taken} results an async map raised {error!r}")
