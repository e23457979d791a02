"""loky.backend: the parts of multiprocessing, for code that uses `loky.backend` directly.

A context with processes that are started by fork and exec and do not import the parent's
`__main__`, queues with reducers, named semaphores and a resource tracker that counts references.

Guarantees:

- importing this package, or `loky.backend.reduction`, imports neither multiprocessing nor
  cloudpickle: every name here is looked up when it is first used (PEP 562);
- as soon as multiprocessing is there as well, in either order, it knows the start methods "loky"
  and "loky_init_main" (see `_registration`);
- importing starts no process and changes nothing else outside this package.

Assumption: loky's own pool does not use this package, so nothing here has to be fast, and
everything that the standard library already does is left to it.

Does not belong here: anything that the pool needs (see `loky.pool`, `loky.worker`, `loky.wire`),
and code for one operating system (see `_posix` and `_win32`, chosen in `_platform`).
"""

from ._registration import register_contexts

TYPE_CHECKING = False  # `typing` itself would be an import
if TYPE_CHECKING:
    from .context import get_context

__all__ = ["get_context"]

_SUBMODULES = frozenset(
    {
        "context",
        "fork_exec",
        "popen_loky_posix",
        "popen_loky_win32",
        "process",
        "queues",
        "reduction",
        "resource_tracker",
        "spawn",
        "synchronize",
        "utils",
    }
)


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "get_context":
        value = import_module(f"{__name__}.context").get_context
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})


register_contexts()
