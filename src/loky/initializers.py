"""What a worker calls before its first task: the user's initializer, and a profiler's.

Rule 1: nothing is imported to find out whether a profiler is active: one that is not imported is
not.

The pairs that go in and out of here are an initializer, or ``None``, and its arguments.
"""

from __future__ import annotations

import sys
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    Initializer = Callable[..., object]
    Pair = tuple[Initializer | None, Sequence[Any]]


def _prepare_initializer(initializer: Any, initargs: Sequence[Any]) -> Pair:
    """The pair for the workers of a pool that was given this initializer."""
    if initializer is not None and not callable(initializer):
        raise TypeError(f"initializer must be a callable, got: {initializer!r}")
    return _chain_initializers(
        [(initializer, initargs), _make_viztracer_initializer_and_initargs()]
    )


def _chain_initializers(initializer_and_args: Iterable[Pair]) -> Pair:
    """One pair that does what all these do, one after the other."""
    pairs = [(function, args) for function, args in initializer_and_args if function is not None]
    if not pairs:
        return None, ()
    if len(pairs) == 1:
        return pairs[0]
    return _ChainedInitializer([function for function, _ in pairs]), [args for _, args in pairs]


class _ChainedInitializer:
    """Several initializers as one, whose arguments are the arguments of each."""

    def __init__(self, initializers: Sequence[Initializer]) -> None:
        self._initializers = initializers

    def __call__(self, *chained_args: Sequence[Any]) -> None:
        for initializer, args in zip(self._initializers, chained_args, strict=True):
            initializer(*args)


def _make_viztracer_initializer_and_initargs() -> Pair:
    """The pair that traces workers as VizTracer traces this process, if it does."""
    viztracer: Any = sys.modules.get("viztracer")
    if viztracer is None:
        return None, ()
    try:
        tracer = viztracer.get_tracer()
        if tracer is not None and getattr(tracer, "enable", False):
            return _viztracer_init, (tracer.init_kwargs,)
    except Exception as error:  # a VizTracer of another time must not stop a pool
        warnings.warn(f"Unable to introspect viztracer state: {error}", stacklevel=3)
    return None, ()


def _viztracer_init(init_kwargs: dict[str, Any]) -> None:
    """Start tracing a worker."""
    from viztracer import VizTracer

    tracer = VizTracer(**init_kwargs)
    tracer.register_exit()
    tracer.start()
