"""loky: a process pool that a crash cannot break.

This file holds the public names and nothing else.

Guarantee: importing it imports nothing, not even from the standard library: every name is
looked up when it is first used (PEP 562). Workers import this package too, so a line added here
is paid by every worker that ever starts.
"""

TYPE_CHECKING = False  # `typing` itself would be an import
if TYPE_CHECKING:
    from concurrent.futures import (
        ALL_COMPLETED,
        FIRST_COMPLETED,
        FIRST_EXCEPTION,
        CancelledError,
        Executor,
        TimeoutError,
        as_completed,
        wait,
    )

    from .cloudpickle_wrapper import wrap_non_picklable_objects
    from .cpu import cpu_count
    from .errors import (
        BrokenProcessPool,
        LokyRecursionError,
        ResultUnpicklingError,
        ShutdownExecutorError,
        TaskMemoryError,
        TaskPicklingError,
        TaskTimeoutError,
        TaskUnpicklingError,
        TerminatedWorkerError,
    )
    from .future import Future
    from .observe.postmortem import PostMortem
    from .process_executor import ProcessPoolExecutor
    from .reusable_executor import get_reusable_executor
    from .task_options import TaskOptions
    from .wire.picklers import set_loky_pickler

__version__ = "4.0.0.dev1"

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "BrokenProcessPool",
    "CancelledError",
    "Executor",
    "Future",
    "LokyRecursionError",
    "PostMortem",
    "ProcessPoolExecutor",
    "ResultUnpicklingError",
    "ShutdownExecutorError",
    "TaskMemoryError",
    "TaskOptions",
    "TaskPicklingError",
    "TaskTimeoutError",
    "TaskUnpicklingError",
    "TerminatedWorkerError",
    "TimeoutError",
    "as_completed",
    "cpu_count",
    "get_reusable_executor",
    "set_loky_pickler",
    "wait",
    "wrap_non_picklable_objects",
]

_HOME = {
    "ALL_COMPLETED": "concurrent.futures",
    "FIRST_COMPLETED": "concurrent.futures",
    "FIRST_EXCEPTION": "concurrent.futures",
    "CancelledError": "concurrent.futures",
    "Executor": "concurrent.futures",
    "TimeoutError": "concurrent.futures",
    "as_completed": "concurrent.futures",
    "wait": "concurrent.futures",
    "BrokenProcessPool": "loky.errors",
    "LokyRecursionError": "loky.errors",
    "ResultUnpicklingError": "loky.errors",
    "ShutdownExecutorError": "loky.errors",
    "TaskOptions": "loky.task_options",
    "TaskPicklingError": "loky.errors",
    "TaskMemoryError": "loky.errors",
    "TaskTimeoutError": "loky.errors",
    "TaskUnpicklingError": "loky.errors",
    "TerminatedWorkerError": "loky.errors",
    "Future": "loky.future",
    "PostMortem": "loky.observe.postmortem",
    "ProcessPoolExecutor": "loky.process_executor",
    "cpu_count": "loky.cpu",
    "get_reusable_executor": "loky.reusable_executor",
    "set_loky_pickler": "loky.wire.picklers",
    "wrap_non_picklable_objects": "loky.cloudpickle_wrapper",
}

# Modules that callers of this library's namesake reach as attributes of the package.
_SUBMODULES = frozenset(
    {
        "_base",
        "backend",
        "cloudpickle_wrapper",
        "errors",
        "initializers",
        "process_executor",
        "reusable_executor",
    }
)


def __getattr__(name: str) -> object:
    if name not in _HOME and name not in _SUBMODULES:  # asked for by every `from . import x`
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
