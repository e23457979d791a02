"""Objects that pickle themselves with cloudpickle, whatever pickler they meet.

For pools and queues that use another pickler: a wrapped object looks like the object, calls like
it, and travels by value.

Importing this module does not import cloudpickle; pickling a wrapped object does.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["wrap_non_picklable_objects"]

# What `_wrap_objects_when_needed` has wrapped, so that an object keeps its one wrapper.
WRAP_CACHE: dict[Any, CloudpickledObjectWrapper] = {}

_CO_NESTED = 0x10  # inspect.CO_NESTED: the code of a function that is defined in another one


class CloudpickledObjectWrapper:
    """Stands for an object, and is pickled with cloudpickle.

    Parameters
    ----------
    obj : object
        What to wrap. Its attributes are the wrapper's.
    keep_wrapper : bool, default False
        Whether the object is still wrapped where it is unpickled, so that it can travel on.
    """

    def __init__(self, obj: object, keep_wrapper: bool = False) -> None:
        self._obj = obj
        self._keep_wrapper = keep_wrapper

    def __reduce__(self) -> tuple[Any, ...]:
        from cloudpickle import dumps, loads

        data = dumps(self._obj)
        return (_reconstruct_wrapper, (data, True)) if self._keep_wrapper else (loads, (data,))

    def __getattr__(self, name: str) -> Any:
        # Only reached for what the wrapper has not. Its own two it lacks before __init__ (a copy, a
        # subclass): looking into the object for them would go round in circles.
        if name in ("_obj", "_keep_wrapper"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._obj, name)


class CallableObjectWrapper(CloudpickledObjectWrapper):
    """A `CloudpickledObjectWrapper` around something that can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._obj(*args, **kwargs)  # type: ignore[operator]


class CloudpickledClassWrapper(CloudpickledObjectWrapper):
    """Base of what `wrap_non_picklable_objects` makes of a class: its instances are wrapped.

    Parameters
    ----------
    *args, **kwargs
        For the wrapped class.
    """

    _wrapped_class: type
    _keep_instances: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(self._wrapped_class(*args, **kwargs), self._keep_instances)


def wrap_non_picklable_objects(obj: Any, keep_wrapper: bool = True) -> Any:
    """Make an object picklable with any pickler, by having cloudpickle do it.

    Needed only with `set_loky_pickler`, or for other pools: loky uses cloudpickle by itself.

    Parameters
    ----------
    obj : object
        A function, an object, or a class, whose instances are wrapped then. Can be used as a
        decorator.
    keep_wrapper : bool, default True
        Whether the object is still wrapped where it is unpickled.

    Returns
    -------
    object
        The object in a wrapper; of a class, a class whose instances are wrapped instances of it.
    """
    if isinstance(obj, type):
        namespace = {
            "_wrapped_class": obj,
            "_keep_instances": keep_wrapper,
            "__doc__": obj.__doc__,
            "__module__": obj.__module__,
            "__qualname__": obj.__qualname__,
        }
        return type(obj.__name__, (CloudpickledClassWrapper,), namespace)
    return _wrap(obj, keep_wrapper)


def _wrap(obj: Any, keep_wrapper: bool) -> CloudpickledObjectWrapper:
    kind = CallableObjectWrapper if callable(obj) else CloudpickledObjectWrapper
    return kind(obj, keep_wrapper)


def _reconstruct_wrapper(data: bytes, keep_wrapper: bool) -> CloudpickledObjectWrapper:
    from cloudpickle import loads

    return _wrap(loads(data), keep_wrapper)


def _wrap_objects_when_needed(obj: Any) -> Any:
    """The object, wrapped if pickle could not import it elsewhere; partials by their parts."""
    from functools import partial

    if isinstance(obj, partial):
        return partial(
            _wrap_objects_when_needed(obj.func),
            *map(_wrap_objects_when_needed, obj.args),
            **{name: _wrap_objects_when_needed(value) for name, value in obj.keywords.items()},
        )
    if not _needs_wrapping(obj):
        return obj
    try:
        return WRAP_CACHE.setdefault(obj, _wrap(obj, keep_wrapper=False))
    except TypeError:  # not hashable
        return _wrap(obj, keep_wrapper=False)


def _needs_wrapping(obj: Any) -> bool:
    if "__main__" in (getattr(obj, "__module__", None) or ""):
        return True
    if not callable(obj):
        return False
    flags = getattr(getattr(obj, "__code__", None), "co_flags", 0)
    return bool(flags & _CO_NESTED) or "<lambda>" in getattr(obj, "__name__", "")
