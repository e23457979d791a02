"""Which pickler, and what travels by value.

Guarantees:

- plain builtins and importable functions are pickled by the C pickler and run no code of the
  user's on the way (`is_plain`, `is_importable`); everything else goes through cloudpickle, which
  sends by reference what a worker can import and by value what lives in `__main__` or in closures;
- a failure says which attribute, item or cell could not be pickled, where that can be found.

Assumption: the other side has the same Python and the same modules (workers are started so).

`_pickle`, the C module, instead of `pickle`: it saves each worker several ms of imports, and
`pickle` itself takes `dumps`, `loads` and the exceptions from there.
"""

from __future__ import annotations

import sys
from io import BytesIO
from time import monotonic

from . import picklers
from .reducers import is_by_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

try:
    from _pickle import PicklingError, dumps, loads
except ImportError:  # PyPy
    from pickle import PicklingError, dumps, loads

__all__ = [
    "PicklingError",
    "dumps_any",
    "dumps_plain",
    "is_importable",
    "is_plain",
    "loads",
    "where_it_fails",
]

PROTOCOL = 5

_ATOMS = frozenset({int, float, str, bytes, bool, complex, type(None), type(Ellipsis)})
_SEQUENCES = frozenset({tuple, list, set, frozenset})
# Objects looked at before giving up: a check dearer than cloudpickle's fixed cost (about 5 us in
# the parent, measured by benchmarks/run.py's round trip) would be no gain.
_LOOK_AT_MOST = 32


def is_plain(value: object) -> bool:
    """Whether the value is made of a few builtin atoms and containers only."""
    kind = type(value)
    if kind in _ATOMS:
        return True
    return _count_plain(value, _LOOK_AT_MOST) >= 0


def _count_plain(value: object, left: int) -> int:
    """How many more objects may be looked at after this one; negative if it is not plain."""
    kind = type(value)
    left -= 1  # before what is inside, so that this bounds the depth as well
    if kind in _ATOMS:
        return left
    if kind in _SEQUENCES:
        items = value
    elif kind is dict:
        items = [*value, *value.values()] if len(value) < left else ()  # type: ignore
        left = left if items or not value else -1
    else:
        return -1
    if left < len(items):  # type: ignore[arg-type]
        return -1
    for item in items:  # type: ignore[attr-defined]
        left = _count_plain(item, left)
        if left < 0:
            return -1
    return left


_importable: dict[int, object] = {}


def is_importable(fn: object) -> bool:
    """Whether a worker finds this very function by its module and name.

    Asks no module for an attribute, but looks into its namespace: a module may have a
    `__getattr__`, which is code of the user's.
    """
    if _importable.get(id(fn)) is fn:
        return True
    if type(fn) not in _FUNCTIONS:
        return False
    name, home = fn.__name__, fn.__module__  # type: ignore[attr-defined]
    if type(home) is not str or fn.__qualname__ != name:  # type: ignore[attr-defined]
        return False
    module = sys.modules.get(home)
    if not issubclass(type(module), _Module):
        return False
    namespace: dict[str, Any] = _namespace_of(module)
    if namespace.get("__name__") == "__main__" or "__file__" not in namespace:
        if home not in sys.builtin_module_names:
            return False
    if namespace.get(name) is not fn or is_by_value(home):
        return False
    if len(_importable) < 1000:  # keeps the function alive, so its id stays its own
        _importable[id(fn)] = fn
    return True


_FUNCTIONS = frozenset({type(is_plain), type(len)})
_Module = type(sys)
# Whatever a subclass may say.
_namespace_of: Callable[[Any], dict[str, Any]] = vars(_Module)["__dict__"].__get__


def dumps_plain(value: object) -> bytes:
    """Pickle what `is_plain` and `is_importable` let through."""
    return dumps(value, PROTOCOL)


def dumps_any(value: object, reducers: dict[type, Callable[[Any], Any]] | None = None) -> bytes:
    """Pickle anything that can be pickled, with the pickler that the user has chosen.

    Parameters
    ----------
    value : object
        What to pickle.
    reducers : dict of type to callable, optional
        How to reduce instances of these types, in the manner of `copyreg`.

    Raises
    ------
    Exception
        Whatever the objects raise while being pickled.
    """
    file = BytesIO()
    picklers.dump(value, file, reducers, PROTOCOL)
    return file.getvalue()


# In a worker: how to reduce results, set once by its bootstrap.
result_reducers: dict[type, Callable[[Any], Any]] | None = None


def dumps_result(value: object) -> bytes:
    """Pickle a result or exception, with the executor's `result_reducers`."""
    return dumps_any(value, result_reducers)


def where_it_fails(value: Any, name: str, dump: Callable[[Any], bytes] = dumps_any) -> str:
    """Find the path to the innermost part of a value that cannot be pickled.

    Parameters
    ----------
    value : object
        What could not be pickled.
    name : str
        What to call it in the answer.
    dump : callable
        How it was pickled.

    Returns
    -------
    str
        For example ``"arg 0.model['lock']"``, or `name` itself when no part alone is to blame.
    """
    labels: list[str] = []
    seen: set[int] = set()
    deadline = monotonic() + _SEARCH_SECONDS
    while len(seen) < 50 and monotonic() < deadline:
        seen.add(id(value))
        try:
            parts, label = _parts(value)
            found = _first_that_fails(parts, seen, dump, deadline)
            if found < 0:
                break
            labels.append(label(found))
        except Exception:  # it does not even tell what it is made of, or how that is called
            break
        value = parts[found]
    if len(labels) > _MOST_LABELS:  # nested too deep, say
        labels[_MOST_LABELS // 2 : -_MOST_LABELS // 2] = [" ... "]
    return name + "".join(labels)


# A courtesy must not take long; what a single attempt takes comes on top.
_SEARCH_SECONDS = 1.0
_MOST_LABELS = 12


def _first_that_fails(
    parts: Sequence[object], seen: set[int], dump: Callable[[Any], bytes], deadline: float
) -> int:
    """Which part cannot be pickled, -1 for none. Halves, so that many parts cost hardly more."""
    first, last = 0, len(parts)
    while last - first > 1:
        if monotonic() > deadline:
            return -1
        middle = (first + last) // 2
        if fails([part for part in parts[first:middle] if id(part) not in seen], dump):
            last = middle
        else:
            first = middle
    if first == last or id(parts[first]) in seen or not fails(parts[first], dump):
        return -1
    return first


def fails(value: object, dump: Callable[[Any], bytes] = dumps_any) -> bool:
    """Whether the value cannot be pickled."""
    try:
        dump(value)
    except BaseException:  # a `__reduce__` may raise anything
        return True
    return False


def _parts(value: Any) -> tuple[Sequence[object], Callable[[int], str]]:
    """What a value is made of, and what to call the part at a position."""
    kind = type(value)
    if kind in (tuple, list):
        return value, lambda i: f"[{i}]"
    if kind is dict:
        keys = list(value)
        return list(value.values()), lambda i: f"[{keys[i]!r}]"
    if kind in (set, frozenset):
        items = list(value)
        return items, lambda i: f"{{{items[i]!r}}}"
    named = _named_parts(value, kind)
    return [part for _, part in named], lambda i: named[i][0]


_Method = type(_parts.__get__(0))


def _named_parts(value: Any, kind: type) -> list[tuple[str, object]]:
    # By type and not by what it has: some objects, mocks for instance, have all that is asked for.
    parts: list[tuple[str, object]] = []
    if kind is type(where_it_fails):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=False)
        for free, cell in cells:
            try:
                parts.append((f" closure variable {free!r}", cell.cell_contents))
            except ValueError:  # not yet bound
                continue
        names = [n for n in value.__code__.co_names if n in value.__globals__]
        parts += [(f" global {n!r}", value.__globals__[n]) for n in names]
        parts += [(f" default {i}", item) for i, item in enumerate(value.__defaults__ or ())]
        return parts
    if kind is _Method:
        return [(".__self__", value.__self__), (".__func__", value.__func__)]
    try:
        value.__reduce_ex__(PROTOCOL)
    except BaseException:  # it is to blame itself, whatever it is made of
        return []
    functools = sys.modules.get("functools")  # which a worker need not import for this
    if functools is not None and issubclass(kind, functools.partial):
        parts += [(".func", value.func), (".args", value.args), (".keywords", value.keywords)]
    if issubclass(kind, type):
        return parts
    parts += [(f".{key}", item) for key, item in getattr(value, "__dict__", {}).items()]
    for cls in kind.__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, slot) and slot not in ("__dict__", "__weakref__"):
                parts.append((f".{slot}", getattr(value, slot)))
    return parts
