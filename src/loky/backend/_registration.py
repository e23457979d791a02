"""Makes loky's start methods known to multiprocessing without importing it.

`multiprocessing.set_start_method("loky")` has to work after `import loky.backend`, but importing
multiprocessing takes longer than everything else that a worker imports together. So: if
multiprocessing is there, our contexts are registered now; if not, when it comes.

Guarantees:

- until multiprocessing is imported, the only trace is one finder at the front of `sys.meta_path`
  that answers for one module name; then it is gone, and multiprocessing is loaded by the loader
  that would have loaded it anyway, and says so;
- no module of ours is imported for registering: a thread that imports multiprocessing may hold
  locks that one that imports a module of ours waits for, and the other way round. Our contexts are
  imported when somebody asks for one;
- whoever has multiprocessing then has `multiprocessing.util` too, without importing it: scripts
  were written when importing loky brought it along.

Assumption: multiprocessing looks contexts up by subscription, in a dictionary that is a global of
its module `context`.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_MODULE = "multiprocessing.context"
_OURS = ("loky", "loky_init_main")


def register_contexts() -> None:
    """Register the contexts now if multiprocessing is imported, else as soon as it is."""
    if _MODULE in sys.modules:
        # Imported again, because another thread may be in the middle of it: this waits for that.
        import multiprocessing.context

        _register_in(multiprocessing.context)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register_in(module: Any) -> None:
    try:
        import multiprocessing.util  # noqa: F401
    except RuntimeError:  # importlib's: a thread that is importing it waits for this one
        pass
    if not isinstance(module._concrete_contexts, _Registry):
        module._concrete_contexts = _Registry(module._concrete_contexts)


class _Registry(dict[str, object]):
    """Multiprocessing's contexts by start method, and ours as soon as one is asked for."""

    def __missing__(self, method: str) -> object:
        if method in _OURS:
            from . import context

            self.update(context._OUR_CONTEXTS)
            return self[method]
        raise KeyError(method)

    def __contains__(self, method: object) -> bool:
        return method in _OURS or super().__contains__(method)


class _Finder:
    """Finds the module with the other finders, and comes between it and its loader."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        # A new list, because another thread may be going through the old one: it would miss the
        # finder that moves into our place.
        sys.meta_path = others
        for finder in others:
            spec = finder.find_spec(name, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """Loads a module as its own loader does, then registers the contexts."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register_in(module)
