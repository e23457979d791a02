"""The executor behind the joblib backend: the reusable one, with joblib's way to share arrays.

Rule: only `loky.integrations.joblib` imports this, once a call needs workers. It is apart because a
worker registers the backend too, and most never need an executor of their own.

Guarantee: temporary folders are joblib's business, under the names and with the counting of
references that it uses itself; here is only who asks for them, and when they can go.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from joblib._memmapping_reducer import TemporaryResourcesManager, get_memmapping_reducers
from joblib.externals.loky.backend import resource_tracker
from joblib.parallel import BatchedCalls

from .. import reusable_executor
from ..future import Future
from ..pool.names import name_of


class MemmappingExecutor(reusable_executor._ReusablePoolExecutor):
    """The reusable executor, with joblib's way to share large arrays."""

    # What it was made with, and who looks after its temporary folders.
    _arguments: dict[str, Any]
    _temp_folder_manager: Any

    @classmethod
    def for_call(
        cls,
        context_id: str,
        n_jobs: int,
        *,
        timeout: float | None,
        env: dict[str, str],
        initializer: Callable[..., object],
        initargs: tuple[Any, ...],
        temp_folder: str | None = None,
        **reducing: Any,
    ) -> MemmappingExecutor:
        """The executor that is there if it was made with the same arguments, or a new one."""
        making: dict[str, Any] = {
            "timeout": timeout,
            "env": env,
            "initializer": initializer,
            "initargs": initargs,
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

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As the others do; one of joblib's batches gets the name that messages are to use."""
        if isinstance(fn, BatchedCalls):
            fn.__qualname__ = f"{name_of(fn.items[0][0])} (in a batch of {len(fn)})"
            fn.__module__ = None
        return super().submit(fn, *args, **kwargs)

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
    again 0.1 seconds later, ten times; the tracker needs a fraction of a millisecond.
    """

    def _clean_temporary_resources(
        self, context_id: str | None = None, force: bool = False, allow_non_empty: bool = False
    ) -> None:
        folder = self._cached_temp_folders.get(context_id)
        patient = not force and not allow_non_empty
        if patient and folder is not None and os.path.exists(folder):
            for name in os.listdir(folder):
                resource_tracker.maybe_unlink(os.path.join(folder, name), "file")
            pause = 5e-5
            while os.listdir(folder):
                if pause > 0.5:  # a second altogether: a worker keeps one of the arrays
                    return  # joblib's function for the interpreter's exit is left to do it
                time.sleep(pause)
                pause *= 2
        super()._clean_temporary_resources(context_id, force, allow_non_empty)
