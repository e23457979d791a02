"""Reducers for types that cloudpickle sends by name, also where no name leads to them.

Guarantee: what a worker can import keeps going by name; what lives in `__main__` or in a closure
goes by value, as plain functions do with cloudpickle. Caches travel empty.

What does not belong here: types that cloudpickle is right about, and the choice of a pickler.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def for_cloudpickle() -> dict[type, Callable[[Any], str | tuple[Any, ...]]]:
    """The reducers by type."""
    import functools

    # What `functools.lru_cache` and `functools.cache` return; elsewhere than in CPython a function.
    cached = getattr(functools, "_lru_cache_wrapper", None)
    return {cached: _reduce_cached} if isinstance(cached, type) else {}


def is_by_value(module: str) -> bool:
    """Whether the user asked cloudpickle to send what this module has by value."""
    cloudpickle = sys.modules.get("cloudpickle.cloudpickle")
    registry = getattr(cloudpickle, "_PICKLE_BY_VALUE_MODULES", None)
    return bool(registry) and any(
        module == name or module.startswith(name + ".") for name in registry or ()
    )


def _reduce_cached(cached: Any) -> str | tuple[Any, ...]:
    name: str = cached.__qualname__
    found: Any = None
    if cached.__module__ != "__main__" and not is_by_value(cached.__module__):
        found = sys.modules.get(cached.__module__)
        for part in name.split("."):
            found = getattr(found, part, None)
    if found is cached:
        return name
    return _cache_again, (cached.__wrapped__, cached.cache_parameters())


def _cache_again(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    import functools

    return functools.lru_cache(**parameters)(function)
