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

from collections.abc import Callable
from typing import Any

from .. import errors, nesting

OLDEST = (1, 5)

try:
    import joblib

    if tuple(int(part) for part in joblib.__version__.split(".")[:2]) < OLDEST:
        raise ImportError(f"joblib {joblib.__version__} is too old")
    from joblib import parallel

    # For `_memmapping`, which comes later: what is missing is to be said now.
    from joblib._memmapping_reducer import (  # noqa: F401
        TemporaryResourcesManager,
        get_memmapping_reducers,
    )
    from joblib._parallel_backends import FallbackToBackend, SequentialBackend
    from joblib._parallel_backends import LokyBackend as _JoblibsBackend
    from joblib.externals.loky import process_executor as _theirs
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
        from ._memmapping import MemmappingExecutor

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
        its_own = options.pop("initializer", None), options.pop("initargs", ())
        self._workers = MemmappingExecutor.for_call(
            parallel._id,
            workers,
            timeout=kept if idle_worker_timeout is None else idle_worker_timeout,
            env=self._prepare_worker_env(n_jobs=workers),
            initializer=_begin,
            initargs=(_is_default(), *its_own),
            **options,
        )
        self.parallel = parallel
        return workers

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


def _is_default() -> bool:
    return parallel.BACKENDS[parallel.DEFAULT_BACKEND] is LokyBackend


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
