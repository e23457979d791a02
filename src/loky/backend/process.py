"""Processes that are started by fork and exec, as clean as those of "spawn".

A `LokyProcess` does not import the parent's `__main__`, so scripts need no
``if __name__ == "__main__"``; what it runs is pickled with loky's pickler, so it may be defined
there all the same.

Everything about a running process is multiprocessing's; how one is started is in
`popen_loky_posix` and `popen_loky_win32`.
"""

from __future__ import annotations

from multiprocessing import process as _multiprocessing
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["AuthenticationKey", "LokyInitMainProcess", "LokyProcess"]

AuthenticationKey: type[bytes] = _multiprocessing.AuthenticationString  # type: ignore[attr-defined]


class LokyProcess(BaseProcess):
    """A process of the start method "loky".

    Parameters
    ----------
    group, target, name, args, kwargs, daemon
        As for `multiprocessing.Process`.
    init_main_module : bool, default False
        Whether the process imports the parent's `__main__`, as those of "spawn" do.
    env : mapping, optional
        What to change in the environment for this process, from its very start.
    """

    _start_method = "loky"
    _imports_main = False

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        daemon: bool | None = None,
        init_main_module: bool = False,
        env: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(
            group=group, target=target, name=name, args=args, kwargs=kwargs or {}, daemon=daemon
        )
        self.init_main_module = init_main_module
        self.env = dict(env or {})

    @classmethod
    def _Popen(cls, process_obj: Any) -> Any:
        from ._platform import platform

        if not isinstance(process_obj, LokyProcess):
            # A `multiprocessing.Process`, where "loky" is multiprocessing's default start method.
            process_obj._start_method = cls._start_method
            process_obj.init_main_module = cls._imports_main
            process_obj.env = {}
        return platform.start_process(process_obj)

    @staticmethod
    def _after_fork() -> None:
        """Nothing: what registers for this in a forked child has nothing to do in a new one."""


class LokyInitMainProcess(LokyProcess):
    """A process of the start method "loky_init_main": it imports the parent's `__main__`.

    Parameters
    ----------
    group, target, name, args, kwargs, daemon, env
        As for `LokyProcess`.
    """

    _start_method = "loky_init_main"
    _imports_main = True

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        daemon: bool | None = None,
        env: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(group, target, name, args, kwargs, daemon, init_main_module=True, env=env)
