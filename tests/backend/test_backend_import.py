"""Tests of what importing `loky.backend` does, and of what it does not.

All of it happens in interpreters of their own: this one has imported everything already.
"""

from __future__ import annotations

import pytest
from backend_helpers import check_code

import loky.backend

IMPORT_CONTEXT = "import loky.backend"
IMPORT_MULTIPROCESSING = "import multiprocessing"


@pytest.mark.parametrize("module", ["loky.backend", "loky.backend.reduction"])
def test_import_is_light(module: str) -> None:
    check_code(f"""
        import sys
        import {module}
        heavy = {{"multiprocessing", "cloudpickle", "pickle", "subprocess", "socket", "typing"}}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """)


@pytest.mark.parametrize(
    "imports",
    [
        [IMPORT_CONTEXT, IMPORT_MULTIPROCESSING],
        [IMPORT_MULTIPROCESSING, IMPORT_CONTEXT],
        ["from loky.backend import context", IMPORT_MULTIPROCESSING],
        ["import loky.backend.reduction", "import multiprocessing.queues, multiprocessing"],
    ],
    ids=" then ".join,
)
def test_multiprocessing_knows_our_start_methods(imports: list[str]) -> None:
    lines = "; ".join(imports)
    check_code(f"""
        {lines}
        for method in ("loky", "loky_init_main"):
            multiprocessing.set_start_method(method, force=True)
            assert multiprocessing.get_start_method() == method
        from loky.backend.context import ctx_loky
        assert multiprocessing.get_context("loky") is ctx_loky
    """)


def test_multiprocessing_is_loaded_as_it_would_be_without_us() -> None:
    check_code("""
        import sys
        before = list(sys.meta_path)
        import loky.backend, loky.backend.reduction
        assert len(sys.meta_path) == len(before) + 1
        import multiprocessing.context
        assert sys.meta_path == before
        context, process = multiprocessing.context, multiprocessing.process
        assert type(context.__loader__) is type(process.__loader__)
        assert context.__spec__.loader is context.__loader__
        assert context.__spec__.origin == context.__file__
    """)


def test_multiprocessing_can_be_imported_when_we_cannot() -> None:
    check_code("""
        import sys
        import loky.backend
        sys.modules["loky.backend.context"] = None  # makes importing it an ImportError
        import multiprocessing
        assert multiprocessing.get_all_start_methods()
    """)


@pytest.mark.parametrize(
    "imports", [[IMPORT_CONTEXT, IMPORT_MULTIPROCESSING], [IMPORT_MULTIPROCESSING, IMPORT_CONTEXT]]
)
def test_registering_imports_nothing(imports: list[str]) -> None:
    """A thread that imports multiprocessing never waits for one that imports a module of ours."""
    lines = "; ".join(imports)
    check_code(f"""
        import sys
        {lines}
        registry = multiprocessing.context._concrete_contexts
        assert "loky" in registry and "loky_init_main" in registry and "sporks" not in registry
        assert "loky.backend.context" not in sys.modules
        try:
            registry["sporks"]
        except KeyError:
            pass
        assert registry["loky"].get_start_method() == "loky"
    """)


def test_other_threads_go_on_looking_for_modules() -> None:
    """One that is going through the finders would miss one if their list changed under it."""
    check_code("""
        import sys
        import loky.backend
        finders = sys.meta_path
        before = list(finders)
        import multiprocessing
        assert finders == before and sys.meta_path == before[1:]
    """)


def test_import_starts_and_patches_nothing() -> None:
    check_code("""
        import multiprocessing.synchronize, subprocess, os
        name_maker = multiprocessing.synchronize.SemLock._make_name
        def forbidden(*args, **kwargs):
            raise AssertionError("a process was started")
        subprocess.Popen.__init__ = os.posix_spawn = os.fork = forbidden
        import loky.backend
        for name in dir(loky.backend):
            if name != "popen_loky_win32":
                getattr(loky.backend, name)
        from multiprocessing import resource_tracker
        assert resource_tracker._resource_tracker._fd is None
        assert loky.backend.resource_tracker._resource_tracker._fd is None
        assert multiprocessing.synchronize.SemLock._make_name is name_maker
        assert multiprocessing.get_start_method(allow_none=True) is None
    """)


def test_submodules_are_attributes() -> None:
    check_code("""
        import loky.backend
        assert "synchronize" in dir(loky.backend)
        assert loky.backend.synchronize.Lock.__module__ == "loky.backend.synchronize"
        assert loky.backend.get_context is loky.backend.context.get_context
    """)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match=r"'loky\.backend' has no attribute 'nothing'"):
        _ = loky.backend.nothing
