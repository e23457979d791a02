"""Tests of `loky.backend.context`: which start methods there are and what they give.

Does not belong here: what the processes and queues of a context do (see the tests named for them).
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from backend_helpers import check_code, kill_self, run_script

import loky.cpu
from loky.backend import context
from loky.backend.context import LokyContext, ctx_loky, get_context, set_start_method


@pytest.fixture(autouse=True)
def _default_start_method() -> Iterator[None]:
    yield
    set_start_method(None, force=True)


def test_start_methods_are_those_of_multiprocessing_and_ours() -> None:
    ours = {"loky", "loky_init_main"}
    assert set(context.START_METHODS) == ours | set(multiprocessing.get_all_start_methods())
    assert context.START_METHODS[0] == "loky"


@pytest.mark.parametrize("method", [name for name in context.START_METHODS if name != "fork"])
def test_get_context(method: str) -> None:
    assert get_context(method).get_start_method() == method
    assert get_context(method) is get_context(method)


def test_multiprocessing_has_the_same_contexts() -> None:
    check_code("""
        import multiprocessing
        from loky.backend.context import START_METHODS, get_context
        for method in set(START_METHODS) - {"fork"}:
            assert multiprocessing.get_context(method) is get_context(method), method
    """)


def test_others_who_register_contexts_of_the_same_names_do_not_matter() -> None:
    check_code("""
        import multiprocessing.context
        from loky.backend.context import ctx_loky, get_context
        multiprocessing.context._concrete_contexts["loky"] = object()
        assert get_context() is get_context("loky") is ctx_loky
    """)


def test_default_is_loky() -> None:
    assert get_context() is ctx_loky
    assert isinstance(get_context("loky_init_main"), LokyContext)
    assert context.get_start_method() is None


def test_fork_warns() -> None:
    with pytest.warns(UserWarning, match="`fork` start method should not be used") as caught:
        assert get_context("fork").get_start_method() == "fork"
    assert caught[0].filename == __file__


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match=r"Unknown context 'sporks'\. .*'loky_init_main'"):
        get_context("sporks")
    with pytest.raises(AssertionError, match="'sporks' is not a valid start_method"):
        set_start_method("sporks")
    assert context.get_start_method() is None


def test_set_start_method() -> None:
    set_start_method("spawn")
    assert context.get_start_method() == "spawn"
    assert get_context().get_start_method() == "spawn"
    assert get_context("loky") is ctx_loky
    with pytest.raises(RuntimeError, match="context has already been set"):
        set_start_method("loky")
    set_start_method("loky_init_main", force=True)
    assert get_context().get_start_method() == "loky_init_main"


def test_starting_a_process_leaves_multiprocessings_default_alone() -> None:
    check_code("""
        import multiprocessing
        from loky.backend import get_context
        process = get_context("loky").Process(target=print)
        process.start()
        process.join()
        assert process.exitcode == 0
        assert multiprocessing.get_start_method(allow_none=True) is None
    """)


@pytest.mark.parametrize("method", ["loky", "loky_init_main"])
def test_as_multiprocessings_default(method: str, tmp_path: Path) -> None:
    code = f"""
        import multiprocessing
        import loky.backend
        def report(queue):  # in __main__, not importable: only our pickler can send it
            queue.put((multiprocessing.get_start_method(), __name__))
        if __name__ == "__main__":
            multiprocessing.set_start_method("{method}")
            queue = multiprocessing.SimpleQueue()
            process = multiprocessing.Process(target=report, args=(queue,))
            process.start()
            print(*queue.get())
            process.join()
        else:
            print("imported as", __name__, flush=True)
    """
    done = run_script(tmp_path / "script.py", code)
    again = "imported as __mp_main__\n" if method == "loky_init_main" else ""
    assert (done.stdout, done.stderr) == (f"{again}{method} __main__\n", "")


def test_cpu_names_are_those_of_loky_cpu() -> None:
    for name in (
        "_MAX_WINDOWS_WORKERS",
        "_count_physical_cores",
        "_cpu_count_affinity",
        "_cpu_count_affinity_set",
        "_cpu_count_cgroup",
        "cpu_count",
        "physical_cores_cache",
    ):
        assert getattr(context, name) is getattr(loky.cpu, name)
    assert ctx_loky.cpu_count() == LokyContext.cpu_count() == loky.cpu.cpu_count()


def test_multiprocessing_builds_on_our_context() -> None:
    """What only combines a context's processes, locks and queues is not ours, but works."""
    with ctx_loky.Pool(1) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
    pool.join()
    with ctx_loky.Manager() as manager:
        shared = manager.dict(a=1)
        assert shared.copy() == {"a": 1}


def test_standard_library_executor_on_our_context() -> None:
    with ProcessPoolExecutor(1, mp_context=ctx_loky) as executor:
        assert executor.submit(abs, -3).result() == 3
        # It learns of the death from the process' sentinel.
        with pytest.raises(BrokenProcessPool):
            executor.submit(kill_self).result()
