"""What user code in a worker expects to find: a proper `multiprocessing` child, and a `__main__`.

Guarantees:

- nothing of multiprocessing is imported until user code does; what it should find there is set
  the moment its modules have been imported;
- `multiprocessing.current_process()`, `parent_process()`, the authentication key and the start
  method are those of a child of the parent;
- the resource trackers (`protocol.TRACKERS`) are the parent's. A tracker of the worker's own would
  unlink what the parent still uses. They are asked for when they are first needed, so that no
  tracker is started for those who need none;
- what multiprocessing's logger is told to show, in the parent, is shown here as well;
- `__main__` is an empty module without `__file__`: what lives in the parent's travels by value.
"""

from __future__ import annotations

import sys

from ..wire import picklers
from ..wire.protocol import TRACKERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    from .relay import Relay

_settings: dict[str, Any] = {}
_tracker_fd: Callable[[int], int]
_life_fd = -1
relay: Relay | None = None  # if the parent wants what is said here


def install(settings: dict[str, Any], life_fd: int, tracker_fd: Callable[[int], int]) -> None:
    """Make this process look like a child of the parent."""
    global _tracker_fd, _life_fd
    _settings.update(settings)
    _tracker_fd = tracker_fd
    _life_fd = life_fd
    sys.modules["__main__"] = type(sys)("__main__")
    sys.meta_path.insert(0, _AfterImport)
    for name, after in _AFTER.items():
        if name in sys.modules:  # imported by a sitecustomize or a .pth file
            after(sys.modules[name])


def after_import(name: str, function: Callable[[Any], None]) -> None:
    """Have this called with the module of that name, now or once it has been imported."""
    _AFTER[name] = function
    if name in sys.modules:
        function(sys.modules[name])


def update(news: dict[str, Any]) -> None:
    """Take over what has changed in the parent since this worker started."""
    _settings.update(news)
    sys.path[:] = _settings["path"]
    picklers.set_loky_pickler(_settings["pickler"])
    process = sys.modules.get("multiprocessing.process")
    if process is not None and _settings["authkey"]:
        process.current_process().authkey = _settings["authkey"]
    if relay is not None and "levels" in news:
        relay.set_levels(news["levels"])


def import_main(main: dict[str, Any]) -> None:
    """Import the parent's main module here, as the start method "spawn" does."""
    from multiprocessing import spawn

    try:
        spawn.prepare(main)
    except Exception as error:
        raise RuntimeError(
            "the main module could not be imported in a worker, as the executor's context asks. If "
            "it uses an executor as soon as it is imported, guard that with `if __name__ == "
            "'__main__':`, or use context='loky', which needs no guard"
        ) from error


class _AfterImport:
    """A finder that finds nothing itself: it acts once one of a few modules has been imported."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        after = _AFTER.get(name)
        if after is None:
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                after(module)

            loader.exec_module = exec_module
        return spec


def _after_process(module: Any) -> None:
    process = module.BaseProcess.__new__(module.BaseProcess)
    process.__dict__.update(module.current_process().__dict__)
    process._name = _settings["name"]
    process._identity = (_settings["number"],)
    process._parent_pid = _settings["parent_pid"]
    process._parent_name = _settings["parent_name"]
    process._config = dict(process._config)
    if _settings["authkey"]:
        process._config["authkey"] = module.AuthenticationString(_settings["authkey"])
    module._current_process = process
    module._parent_process = module._ParentProcess(
        _settings["parent_name"], _settings["parent_pid"], _life_fd
    )


def _after_context(module: Any) -> None:
    method = _settings["start_method"]
    if method is not None and method in module._concrete_contexts:
        module._default_context.set_start_method(method, force=True)


def _after_util(module: Any) -> None:
    if _settings["log_level"] is not None:
        module.get_logger().setLevel(_settings["log_level"])
    if _settings["log_to_stderr"]:
        module.log_to_stderr()


def _after_tracker(module: Any) -> None:
    tracker = module._resource_tracker
    which = TRACKERS.index(module.__name__)

    class InheritedTracker(type(tracker)):  # type: ignore[misc]
        """The parent's tracker; its descriptor is fetched when it is first looked at."""

        @property
        def _fd(self) -> int | None:
            if "_fetched_fd" not in self.__dict__:
                fd = _tracker_fd(which)
                self.__dict__["_fetched_fd"] = fd if fd >= 0 else None
            fetched: int | None = self.__dict__["_fetched_fd"]
            return fetched

        @_fd.setter
        def _fd(self, fd: int | None) -> None:
            self.__dict__["_fetched_fd"] = fd

        def __del__(self) -> None:
            """Stopping the tracker is the parent's business."""

    tracker.__class__ = InheritedTracker


def _after_our_tracker(module: Any) -> None:
    def locate() -> int | None:
        fd = _tracker_fd(TRACKERS.index(module.__name__))
        return fd if fd >= 0 else None

    module._resource_tracker.locate = locate


_AFTER: dict[str, Callable[[ModuleType], None]] = {
    "multiprocessing.process": _after_process,
    "multiprocessing.context": _after_context,
    "multiprocessing.util": _after_util,
    "multiprocessing.resource_tracker": _after_tracker,
    "loky.backend.resource_tracker": _after_our_tracker,
    "joblib.externals.loky.backend.resource_tracker": _after_tracker,
}
