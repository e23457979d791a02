"""A joblib backend: `register` makes joblib, and what is built on it, run on this library.

Guarantees:

- nothing of joblib is changed but its table of backends, and `unregister` puts that back;
- what runs in a worker finds the same backend under the same name, so nested calls stay here;
- the temporary folders of memory-mapped arrays are joblib's own, counted by joblib's own resource
  tracker, which workers share with their parent;
- errors are both this library's and joblib's, so that either name catches them.

Assumption: `joblib._memmapping_reducer` and `LokyBackend` keep the shape that they have had since
joblib 1.5; both are joblib's business, and the only private parts of it that are used.

Does not belong here: anything about how tasks are run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from .. import errors, nesting, reusable_executor
from ..pool.outcome import name_of

OLDEST = (1, 5)

try:
    import joblib

    if tuple(int(part) for part in joblib.__version__.split(".")[:2]) < OLDEST:
        raise ImportError(f"joblib {joblib.__version__} is too old")
    from joblib import parallel
    from joblib._memmapping_reducer import TemporaryResourcesManager, get_memmapping_reducers
    from joblib._parallel_backends import FallbackToBackend, SequentialBackend
    from joblib._parallel_backends import LokyBackend as _JoblibsBackend
    from joblib.externals.loky import process_executor as _theirs
    from joblib.externals.loky.backend import resource_tracker
except ImportError as error:
    raise ImportError(
        f"loky.integrations.joblib needs joblib 1.5 or newer, of a shape that it knows: {error}. "
        "Try: pip install 'loky[joblib]'"
    ) from error

__all__ = ["LokyBackend", "register", "unregister"]

NAME = "loky"
# What joblib's own backend is called while we have its name and it is the default.
JOBLIBS_OWN = "joblib-loky"

# Before the first `register`: what "loky" was, and which name was the default.
_before: tuple[Any, str] | None = None


def register(make_default: bool = False) -> None:
    """Make ``backend="loky"`` mean this library, for all of joblib in this process.

    Parameters
    ----------
    make_default : bool
        Also run here what names no backend: plain ``Parallel(n_jobs=2)``, and everything that is
        built on it, such as scikit-learn's ``n_jobs``. Otherwise that stays as it is; joblib's own
        loky is then called ``"joblib-loky"``.
    """
    global _before
    backends, default = parallel.BACKENDS, parallel.DEFAULT_BACKEND
    before = backends.get(NAME, _JoblibsBackend)
    if _before is None:
        _before = before, default
    parallel.register_parallel_backend(NAME, LokyBackend, make_default=make_default)
    if not make_default and default == NAME and before is not LokyBackend:
        parallel.register_parallel_backend(JOBLIBS_OWN, before, make_default=True)


def unregister() -> None:
    """Undo `register`: ``backend="loky"`` and the default are what they were before it.

    Workers that are there leave when they have been idle for long enough, as after any call.
    """
    global _before
    if _before is None:
        return
    (factory, default), _before = _before, None
    parallel.register_parallel_backend(NAME, factory)
    if parallel.DEFAULT_BACKEND in (NAME, JOBLIBS_OWN):
        parallel.register_parallel_backend(default, parallel.BACKENDS[default], make_default=True)
    parallel.BACKENDS.pop(JOBLIBS_OWN, None)


class LokyBackend(_JoblibsBackend):  # type: ignore[misc]
    """joblib's backend of this name, with this library's executor."""

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        idle_worker_timeout: float | None = None,
        **options: Any,
    ) -> int:
        """Get hold of an executor; how many workers it has.

        Parameters
        ----------
        n_jobs : int
            How many are wanted, in joblib's way of counting.
        parallel : joblib.Parallel
            Whom it is for.
        prefer, require : str, optional
            For other backends.
        idle_worker_timeout : float, optional
            Seconds after which a worker without work leaves, by default 300.
        **options
            Those of memory mapping, and `initializer` and `initargs`.

        Raises
        ------
        ValueError
            There is a `timeout` among the options.
        """
        workers: int = self.effective_n_jobs(n_jobs)
        if workers == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        options = {**self.backend_kwargs, **options}
        if "timeout" in options:
            raise ValueError(
                "The 'timeout' parameter is not supported by the LokyBackend: how long workers "
                "stay without work is called idle_worker_timeout."
            )
        kept = options.pop("idle_worker_timeout", 300)
        self._workers = MemmappingExecutor.get_memmapping_executor(
            workers,
            timeout=kept if idle_worker_timeout is None else idle_worker_timeout,
            env=self._prepare_worker_env(n_jobs=workers),
            context_id=parallel._id,
            **options,
        )
        self.parallel = parallel
        return workers

    def submit(self, func: Any, callback: Callable[[Any], object] | None = None) -> Any:
        """Have a worker call a batch; its future."""
        # What a message about the batch calls it: by itself it has no name.
        func.__qualname__ = f"{name_of(func.items[0][0])} (in a batch of {len(func)})"
        func.__module__ = None
        return super().submit(func, callback)

    def retrieve_result_callback(self, future: Any) -> Any:
        """A call's result, or its error as joblib's users know it."""
        try:
            return future.result()
        except errors.ShutdownExecutorError as error:
            raise RuntimeError(
                "The executor underlying Parallel has been shutdown, by another call of Parallel "
                "that failed, or because a generator (return_as='generator') was collected "
                "before it was exhausted. Keep a reference to it, or exhaust it first."
            ) from error
        except errors.BrokenProcessPool as error:
            raise _in_both_families(error) from error.__cause__


class MemmappingExecutor(reusable_executor._ReusablePoolExecutor):
    """The reusable executor, with joblib's way to share large arrays."""

    # What it was made with, and who looks after its temporary folders.
    _arguments: dict[str, Any]
    _temp_folder_manager: Any

    @classmethod
    def get_memmapping_executor(
        cls,
        n_jobs: int,
        *,
        context_id: str,
        timeout: float | None,
        env: dict[str, str],
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        temp_folder: str | None = None,
        **reducing: Any,
    ) -> MemmappingExecutor:
        """The executor that is there if it was made with the same arguments, or a new one."""
        is_default = parallel.BACKENDS[parallel.DEFAULT_BACKEND] is LokyBackend
        making: dict[str, Any] = {
            "timeout": timeout,
            "env": env,
            "initializer": _begin,
            "initargs": (is_default, initializer, initargs),
        }
        arguments = {**making, "temp_folder": temp_folder, **reducing}
        manager = _Folders(temp_folder)
        # They ask for the folder each time: an executor serves one call of Parallel after another.
        forward, backward = get_memmapping_reducers(
            temp_folder_resolver=manager.resolve_temp_folder_name,
            unlink_on_gc_collect=True,
            **reducing,
        )
        with reusable_executor._executor_lock:
            there = reusable_executor._executor
            executor, is_reused = cls.get_reusable_executor(
                n_jobs,
                # Not left to the comparison there: the reducers are new ones each time.
                reuse=isinstance(there, cls) and there._arguments == arguments,
                job_reducers=forward,
                result_reducers=backward,
                **making,
            )
            assert isinstance(executor, cls)
            if not is_reused:
                executor._arguments = arguments
                executor._temp_folder_manager = manager
            executor._temp_folder_manager.register_new_context(context_id)
        return executor

    def terminate(self, kill_workers: bool = False) -> None:
        """Shut down, and remove what was in the temporary folders."""
        self.shutdown(kill_workers=kill_workers)
        with self._submit_resize_lock:
            # Workers that were killed have not said that they need their files no more.
            self._temp_folder_manager._clean_temporary_resources(
                force=kill_workers, allow_non_empty=True
            )


class _Folders(TemporaryResourcesManager):  # type: ignore[misc]
    """joblib's temporary folders, without the tenth of a second that it waits for most of them.

    It asks the tracker to remove the files, looks at once whether they are gone, and if not looks
    again 0.1 seconds later; the tracker needs a fraction of a millisecond.
    """

    def _clean_temporary_resources(
        self, context_id: str | None = None, force: bool = False, allow_non_empty: bool = False
    ) -> None:
        folder = self._cached_temp_folders.get(context_id)
        if folder is not None and not force and os.path.exists(folder):
            files = [os.path.join(folder, name) for name in os.listdir(folder)]
            for file in files:
                resource_tracker.maybe_unlink(file, "file")
            pause = 5e-5
            while pause < 0.1 and (files := [file for file in files if os.path.exists(file)]):
                time.sleep(pause)
                pause *= 2
            # A worker keeps what is still there. joblib is going to count one reference less.
            for file in files:
                resource_tracker.register(file, "file")
        super()._clean_temporary_resources(context_id, force, allow_non_empty)


def _begin(
    make_default: bool, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
) -> None:
    """In a new worker: what joblib finds there, then what the user wants to be called."""
    register(make_default)
    _theirs._CURRENT_DEPTH = nesting.depth
    if initializer is not None:
        initializer(*initargs)


# Errors in both families -------------------------------------------------------------------------


class BrokenProcessPool(errors.BrokenProcessPool, _theirs.BrokenProcessPool):  # type: ignore[misc]
    """`loky.BrokenProcessPool`, and the one that is in joblib."""


class TerminatedWorkerError(errors.TerminatedWorkerError, _theirs.TerminatedWorkerError):  # type: ignore[misc]
    """`loky.TerminatedWorkerError`, and the one that is in joblib."""


class TaskUnpicklingError(errors.TaskUnpicklingError, _theirs.BrokenProcessPool):  # type: ignore[misc]
    """`loky.TaskUnpicklingError`, and what joblib's own loky raises in its place."""


class ResultUnpicklingError(errors.ResultUnpicklingError, _theirs.BrokenProcessPool):  # type: ignore[misc]
    """`loky.ResultUnpicklingError`, and what joblib's own loky raises in its place."""


_BOTH = {
    kind.__mro__[1]: kind
    for kind in (
        BrokenProcessPool,
        TerminatedWorkerError,
        TaskUnpicklingError,
        ResultUnpicklingError,
    )
}


def _in_both_families(error: errors.BrokenProcessPool) -> BaseException:
    kind = _BOTH.get(type(error))
    if kind is None:  # raised by a task, say: not one of this pool's
        return error
    both: BaseException = kind(*error.args)
    both.__dict__.update(error.__dict__)
    return both
