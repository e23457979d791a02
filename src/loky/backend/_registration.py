"""Makes loky's start methods known to multiprocessing without importing it.

`multiprocessing.set_start_method("loky")` has to work after `import loky.backend`, but importing
multiprocessing takes longer than everything else that a worker imports together. So: if
multiprocessing is there, our contexts are registered now; if not, when it comes.

Guarantees:

- until multiprocessing is imported, the only trace is one finder at the front of `sys.meta_path`
  that answers for one module name; then it is gone, and multiprocessing is loaded by the loader
  that would have loaded it anyway, and says so;
- a failure on our side never makes `import multiprocessing` fail.

Assumption: the registry is a dictionary in `multiprocessing.context`; it is filled at the end of
`loky.backend.context`, which is all that needs importing for it.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_REGISTRY = "multiprocessing.context"


def register_contexts() -> None:
    """Register the contexts now if multiprocessing is imported, else as soon as it is."""
    if _REGISTRY in sys.modules:
        from . import context  # noqa: F401
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds the registry's module with the other finders, and comes between it and its loader."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _REGISTRY:
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
        try:
            from . import context  # noqa: F401
        except ImportError:
            # Nobody asked for us just now. `import loky.backend.context` will say what is wrong.
            pass
