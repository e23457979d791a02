"""The joblib backend: joblib, as it is installed, runs on this library when it is asked to."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")
joblib = pytest.importorskip("joblib")

import joblib_tasks as tasks  # noqa: E402
import pool_tasks  # noqa: E402
from joblib import Parallel, delayed, parallel_config  # noqa: E402
from joblib.externals.loky import process_executor as theirs  # noqa: E402
from rendezvous import PATIENCE, Gate, all_ended, ended, run_script  # noqa: E402

import loky  # noqa: E402
from loky.integrations import joblib as integration  # noqa: E402

BIG = 300_000  # float64s: above the megabyte from which on joblib maps arrays


def end_workers() -> None:
    loky.get_reusable_executor(1, reuse=True).shutdown(wait=True, kill_workers=True)


@pytest.fixture
def registered() -> Iterator[None]:
    """This library is joblib's default."""
    integration.register(make_default=True)
    yield
    integration.unregister()


@pytest.fixture(autouse=True, scope="module")
def _workers_end() -> Iterator[None]:
    yield
    end_workers()


def backend_of(**options: Any) -> str:
    module: str = type(Parallel(n_jobs=2, **options)._backend).__module__
    return module


OURS, JOBLIBS = "loky.integrations.joblib", "joblib._parallel_backends"

# ---------------------------------------------------------------------- register, unregister


def test_register_is_for_those_who_name_it() -> None:
    assert backend_of() == backend_of(backend="loky") == JOBLIBS
    integration.register()
    try:
        assert backend_of(backend="loky") == OURS
        with parallel_config(backend="loky", n_jobs=2):
            assert backend_of() == OURS
            assert Parallel()(delayed(tasks.whose)() for _ in range(4)) == ["ours"] * 4
        assert backend_of() == backend_of(backend="joblib-loky") == JOBLIBS
    finally:
        integration.unregister()
    assert backend_of() == backend_of(backend="loky") == JOBLIBS
    assert "joblib-loky" not in joblib.parallel.BACKENDS


def test_register_as_the_default_is_for_all() -> None:
    integration.register(make_default=True)
    try:
        assert backend_of() == backend_of(backend="loky") == OURS
        assert Parallel(n_jobs=2)(delayed(tasks.whose)() for _ in range(4)) == ["ours"] * 4
        integration.register()  # takes nothing back
        assert backend_of() == OURS
    finally:
        integration.unregister()
    assert backend_of() == backend_of(backend="loky") == JOBLIBS
    integration.unregister()  # harmless


@pytest.mark.parametrize("make_default", [True, False])
def test_unregister_gives_back_a_default_that_was_chosen_before(make_default: bool) -> None:
    backends = joblib.parallel.BACKENDS
    joblib.register_parallel_backend("threading", backends["threading"], make_default=True)
    try:
        integration.register(make_default)
        assert ("loky" if make_default else "threading") == joblib.parallel.DEFAULT_BACKEND
        integration.unregister()
        assert joblib.parallel.DEFAULT_BACKEND == "threading"
    finally:
        joblib.register_parallel_backend("loky", backends["loky"], make_default=True)


@pytest.mark.parametrize(
    ("prelude", "said"),
    [
        ("sys.modules['joblib'] = None", "pip install 'loky[joblib]'"),
        ("import joblib; joblib.__version__ = '1.4.2'", "joblib 1.4.2 is too old"),
        ("import joblib._memmapping_reducer as m; del m.get_memmapping_reducers", "reducers"),
    ],
    ids=["absent", "too old", "too new"],
)
def test_joblib_that_will_not_do_is_an_import_error_with_a_remedy(prelude: str, said: str) -> None:
    code = f"import sys; {prelude}\nimport loky.integrations.joblib"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: loky.integrations.joblib needs joblib 1.5 or newer")
    assert said in last


# ---------------------------------------------------------------------- memory mapping


def gone(path: str) -> bool:
    """Wait until there is no such file; whether that came true. Its tracker removes it."""
    deadline = time.monotonic() + PATIENCE
    while os.path.exists(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@pytest.mark.usefixtures("registered")
def test_large_arrays_are_mapped_and_their_files_go_with_the_call(tmp_path: Path) -> None:
    big, small = np.ones(BIG), np.ones(3)
    with parallel_config(temp_folder=str(tmp_path)):
        seen = Parallel(n_jobs=2)(delayed(tasks.look_at)(a) for a in [big, small, big, big])
    kinds, files, sums, pids = zip(*seen, strict=True)
    assert kinds == ("memmap", "ndarray", "memmap", "memmap")
    assert sums == (BIG, 3, BIG, BIG)
    assert files[0] == files[2] == files[3], "one array, one file"
    assert Path(files[0]).is_relative_to(tmp_path)
    # The workers are still there: it is not their end that lets go of the file.
    assert gone(files[0])
    assert not any(ended(pid, 0) for pid in pids)


@pytest.mark.usefixtures("registered")
def test_an_array_that_a_worker_keeps_stays_until_it_lets_go(tmp_path: Path) -> None:
    with parallel_config(temp_folder=str(tmp_path)), Gate(tmp_path) as gate:
        file, _ = Parallel(n_jobs=2)([delayed(tasks.keep)(np.ones(BIG)), delayed(str)()])
        assert os.path.exists(file)
        gate.open(2)
        seen = Parallel(n_jobs=2)(delayed(tasks.forget_through)(gate.path) for _ in range(2))
    assert sum(seen) == BIG
    assert gone(file)


@pytest.mark.usefixtures("registered")
def test_options_of_memory_mapping_are_heeded(tmp_path: Path) -> None:
    big = np.ones(BIG)
    (seen,) = {s[:2] for s in Parallel(n_jobs=2, max_nbytes=None)([delayed(tasks.look_at)(big)])}
    assert seen == ("ndarray", None)
    # Another folder, though the executor that is there has been made with none.
    (seen,) = Parallel(n_jobs=2, temp_folder=tmp_path)([delayed(tasks.look_at)(big)])
    assert seen[1] is not None and Path(seen[1]).is_relative_to(tmp_path)


@pytest.mark.usefixtures("registered")
def test_results_that_are_large_come_back_as_plain_arrays() -> None:
    for result in Parallel(n_jobs=2)(delayed(np.add)(np.ones(BIG), n) for n in range(2)):
        assert type(result) is np.ndarray


@pytest.mark.parametrize("how", ["return", "raise", "crash"])
def test_nothing_is_left_behind_by_a_program(how: str, tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import numpy as np
import joblib_tasks as tasks
from joblib import Parallel, delayed
from loky.integrations.joblib import register
register(make_default=True)
def work(array, n):
    return getattr(tasks, {how!r} + "_at")(n, 7) if {how!r} != "return" else array.sum()
try:
    Parallel(n_jobs=2)(delayed(work)(np.ones({BIG}), n) for n in range(10))
except Exception as error:
    print(type(error).__name__)
""".replace("'raise'", "'fail'").replace("'crash'", "'die'")
    done = run_script(tmp_path, code, env={"JOBLIB_TEMP_FOLDER": str(tmp_path)})
    assert done.stderr == "", "joblib's tracker complains about what is left"
    assert done.returncode == 0
    expected = {"return": "", "raise": "LookupError\n", "crash": "TerminatedWorkerError\n"}
    assert done.stdout == expected[how]
    assert os.listdir(tmp_path) == ["script.py"]


# ---------------------------------------------------------------------- workers


@pytest.mark.usefixtures("registered")
def test_calls_share_workers_and_a_change_of_arguments_gets_new_ones(tmp_path: Path) -> None:
    def pids(**options: Any) -> set[int]:
        with Gate(tmp_path, str(time.perf_counter_ns())) as gate:
            gate.open(2)
            return set(
                Parallel(n_jobs=2, **options)(
                    delayed(pool_tasks.pid_through)(gate.path) for _ in range(2)
                )
            )

    first = pids()
    assert first & pids()
    assert not first & pids(mmap_mode="c")


@pytest.mark.usefixtures("registered")
def test_the_executor_of_others_is_not_taken_for_joblib_s() -> None:
    executor = loky.get_reusable_executor(2)
    assert executor.submit(abs, -1).result() == 1
    assert Parallel(n_jobs=2)(delayed(abs)(-n) for n in range(3)) == [0, 1, 2]
    ours = loky.get_reusable_executor(2, reuse=True)
    assert type(ours).__name__ == "MemmappingExecutor"
    assert ours.submit(abs, -1).result() == 1
    executor = loky.get_reusable_executor(2)
    assert executor is not ours
    # The same arguments as before, and yet what is there will not do.
    assert Parallel(n_jobs=2)(delayed(abs)(-n) for n in range(3)) == [0, 1, 2]


@pytest.mark.usefixtures("registered")
def test_idle_workers_leave() -> None:
    with parallel_config(backend="loky", idle_worker_timeout=0.01):
        pids = Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(4))
        assert all_ended(set(pids))
        Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(4))


@pytest.mark.usefixtures("registered")
def test_the_name_of_the_idle_timeout_is_joblib_s() -> None:
    with parallel_config(backend="loky", timeout=3):
        with pytest.raises(ValueError, match="idle_worker_timeout"):
            Parallel(n_jobs=2)(delayed(abs)(n) for n in range(2))


@pytest.mark.usefixtures("registered")
def test_threads_inside_of_workers_are_limited() -> None:
    with parallel_config(backend="loky", inner_max_num_threads=3):
        seen = Parallel(n_jobs=2)(delayed(tasks.variable)("OMP_NUM_THREADS") for _ in range(2))
    assert seen == ["3", "3"]


@pytest.mark.usefixtures("registered")
def test_an_initializer_of_the_user_is_called() -> None:
    with parallel_config(
        backend="loky", initializer=pool_tasks.set_variable, initargs=("LOKY_TEST", "here")
    ):
        seen = Parallel(n_jobs=2)(delayed(tasks.variable)("LOKY_TEST") for _ in range(2))
    assert seen == ["here", "here"]


@pytest.mark.usefixtures("registered")
def test_n_jobs_one_runs_here() -> None:
    with parallel_config(backend="loky"):
        assert Parallel(n_jobs=1)(delayed(os.getpid)() for _ in range(2)) == [os.getpid()] * 2


# ---------------------------------------------------------------------- nesting


@pytest.mark.usefixtures("registered")
def test_nested_calls_use_threads_and_when_asked_to_our_workers() -> None:
    for pid, done, backend in Parallel(n_jobs=2)(delayed(tasks.nested)(None) for _ in range(2)):
        assert {inner for _, inner in done} == {pid}
        assert backend == JOBLIBS, "joblib's threads"
    for pid, done, backend in Parallel(n_jobs=2)(delayed(tasks.nested)("loky") for _ in range(2)):
        assert backend == OURS
        assert {whose for whose, _ in done} == {"ours"}
        assert pid not in {inner for _, inner in done}


@pytest.mark.parametrize("make_default", [True, False])
def test_workers_have_the_same_default(make_default: bool) -> None:
    integration.register(make_default)
    try:
        seen = Parallel(n_jobs=2, backend="loky")(
            delayed(tasks.default_backend_of_a_thread)() for _ in range(2)
        )
    finally:
        integration.unregister()
    assert seen == [OURS if make_default else JOBLIBS] * 2


@pytest.mark.usefixtures("registered")
def test_joblib_knows_that_it_is_in_a_worker() -> None:
    """It does not let multiprocessing make pools there."""
    assert Parallel(n_jobs=2)(delayed(tasks.multiprocessing_workers)() for _ in range(2)) == [1, 1]


# ---------------------------------------------------------------------- failures


@pytest.mark.usefixtures("registered")
def test_a_task_s_exception_is_raised_and_the_next_call_works() -> None:
    with pytest.raises(LookupError, match="this is 5"):
        Parallel(n_jobs=2)(delayed(tasks.fail_at)(n, 5) for n in range(10))
    assert Parallel(n_jobs=2)(delayed(tasks.whose)() for _ in range(2)) == ["ours"] * 2
    with Parallel(n_jobs=2) as kept:
        # No more calls than workers: joblib 1.6 may keep one for the next time.
        with pytest.raises(LookupError, match="this is 1"):
            kept(delayed(tasks.fail_at)(n, 1) for n in range(2))
        assert kept(delayed(tasks.whose)() for _ in range(2)) == ["ours"] * 2


@pytest.mark.usefixtures("registered")
def test_a_crash_is_an_error_under_both_names_and_the_next_call_works() -> None:
    with pytest.raises(theirs.TerminatedWorkerError, match="SIGKILL") as caught:
        Parallel(n_jobs=2, batch_size=2)(delayed(tasks.die_at)(n, 3) for n in range(6))
    error = caught.value
    assert isinstance(error, loky.TerminatedWorkerError)
    assert error.exitcode == -9
    assert error.task == "joblib_tasks.die_at (in a batch of 2)"
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error) and back.args == error.args and back.exitcode == -9
    assert Parallel(n_jobs=2)(delayed(tasks.whose)() for _ in range(2)) == ["ours"] * 2


@pytest.mark.usefixtures("registered")
def test_what_cannot_be_pickled_says_so() -> None:
    with pytest.raises(pickle.PicklingError, match="Could not pickle the task"):
        Parallel(n_jobs=2)([delayed(abs)(sys._getframe())])
    with pytest.raises(theirs.BrokenProcessPool, match="un-serialize") as caught:
        Parallel(n_jobs=2)([delayed(pool_tasks.echo)(pool_tasks.Unloadable())])
    assert isinstance(caught.value, loky.TaskUnpicklingError)


@pytest.mark.usefixtures("registered")
def test_an_initializer_that_raises_is_an_error_under_both_names() -> None:
    with parallel_config(
        backend="loky", initializer=pool_tasks.bad_initializer, initargs=("custard",)
    ):
        with pytest.raises(theirs.TerminatedWorkerError, match="custard") as caught:
            Parallel(n_jobs=2)(delayed(abs)(n) for n in range(2))
    assert isinstance(caught.value, loky.TerminatedWorkerError)


@pytest.mark.usefixtures("registered")
def test_an_executor_that_others_have_shut_down_is_explained(tmp_path: Path) -> None:
    with Gate(tmp_path) as gate:
        call = Parallel(n_jobs=2, return_as="generator")
        results = call(delayed(pool_tasks.pid_through)(gate.path) for _ in range(2))
        gate.arrivals(2)
        end_workers()
        with pytest.raises(RuntimeError, match="executor underlying Parallel has been shutdown"):
            next(results)


# ---------------------------------------------------------------------- generators


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_results_come_while_others_run(return_as: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate:
        results = Parallel(n_jobs=2, return_as=return_as, batch_size=1)(
            delayed(tasks.first_then_wait)(n, gate.path) for n in range(4)
        )
        assert next(results) == 0
        gate.open(3)
        assert sorted(results) == [1, 2, 3]


@pytest.mark.usefixtures("registered")
def test_a_generator_that_is_dropped_stops_what_it_runs(tmp_path: Path) -> None:
    with Gate(tmp_path) as gate:
        results = Parallel(n_jobs=2, return_as="generator", batch_size=1)(
            delayed(tasks.first_then_wait)(n, gate.path) for n in range(50)
        )
        assert next(results) == 0
        pids = gate.arrivals(2)
        with pytest.warns(UserWarning, match="cancelled"):
            del results
        assert all(ended(pid) for pid in pids)
    assert Parallel(n_jobs=2)(delayed(tasks.whose)() for _ in range(2)) == ["ours"] * 2


# ---------------------------------------------------------------------- scikit-learn


@pytest.mark.timeout(85)
def test_a_grid_search_has_the_same_scores() -> None:
    """The slow lane: skipped where scikit-learn is not installed, as in the `test` extra."""
    pytest.importorskip("sklearn")
    example = Path(__file__).parent.parent / "examples" / "gridsearch.py"
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=80)
    assert done.stderr == ""
    assert done.returncode == 0
    assert "the same scores: True; all fits in our workers: True" in done.stdout
