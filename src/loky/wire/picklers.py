"""Which pickler is used, and with which reducers. The public name is `loky.backend.reduction`.

Rule 1: the choice of the pickler lives here, once per process: `set_loky_pickler` and friends.

Rule 2: importing this module imports neither multiprocessing nor cloudpickle nor pickle. That
happens when the first pickler is built, so the choice can be passed on without paying for it.

A pickler is built from the chosen module's `Pickler` and, later ones winning: the reducers of
`reducers.py` if that module is cloudpickle, those of `copyreg`, those that the class itself has,
what multiprocessing knows how to send (connections, sockets and, while a process is started, shared
arrays), what `register` added, and the `reducers` argument.

Assumption: whatever unpickles has the same modules; `pickle.loads` does for every pickler.

Does not belong here: reducers for particular types. Methods, partials and the like need none in the
Pythons that we support, and multiprocessing's own would undo what cloudpickle does better (a bound
method of a parent class, or one with a mangled name).
"""

from __future__ import annotations

import os
import sys

try:
    from _pickle import loads
except ImportError:  # PyPy
    from pickle import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import IO, Any

    Reducer = Callable[[Any], "str | tuple[Any, ...]"]

__all__ = ["dump", "dumps", "loads", "register", "set_loky_pickler"]

PROTOCOL = 5

# What `register` was told, for all picklers.
_dispatch_table: dict[type, Reducer] = {}

# How often the choice has changed: tells with one comparison whether workers have to be told.
generation = 0
_requested: str | None = None  # by the caller of set_loky_pickler; None for the default
_pickler: type[Any] | None = None  # what `_requested` means, from the first use on


def register(type_: type, reduce_function: Reducer) -> None:
    """Add a reducer for a type, for all picklers of this process that are created from now on.

    Parameters
    ----------
    type_ : type
        Objects of exactly this type are reduced by the function, not those of its subclasses.
    reduce_function : callable
        Takes the object and returns what `object.__reduce__` may return.
    """
    _dispatch_table[type_] = reduce_function


# The choice --------------------------------------------------------------------------------------


def set_loky_pickler(loky_pickler: str | None = None) -> None:
    """Choose the pickler of this process.

    Parameters
    ----------
    loky_pickler : str, optional
        Name of a module that has a class ``Pickler``, such as "cloudpickle", "pickle" or "dill";
        "" for cloudpickle. By default the environment variable ``LOKY_PICKLER`` decides, as it was
        when this module was imported, and cloudpickle if it is not set.

    Raises
    ------
    ImportError
        If there is no such module.
    AttributeError
        If it has no ``Pickler``.
    """
    global _requested, _pickler, generation
    if loky_pickler is None:
        # The default need not be imported before something is pickled.
        if _requested is not None:
            _requested = _pickler = None
            generation += 1
        return
    name = loky_pickler or "cloudpickle"
    # Every task of a pool may ask for the current one again: that imports nothing.
    if name != get_loky_pickler_name():
        _pickler = _find_class(name)
        _requested = name
        generation += 1


def get_loky_pickler_name() -> str:
    """The name of the module whose pickler is used.

    Returns
    -------
    str
        A name that `set_loky_pickler` takes, here or in another process.
    """
    if _requested is not None:
        return _requested
    return _lazy("ENV_LOKY_PICKLER") or "cloudpickle"


def get_loky_pickler() -> type[Any]:
    """The class of the chosen pickler, with room for reducers.

    Returns
    -------
    type
        Its instances are made with a file to write to, and optionally `reducers`, a mapping from
        types to functions, and `protocol`.
    """
    global _pickler
    if _pickler is None:
        _pickler = _find_class(get_loky_pickler_name())
    return _pickler


_environment = os.environ.get("LOKY_PICKLER")


def _lazy(name: str) -> str:
    """`DEFAULT_ENV` or `ENV_LOKY_PICKLER`: looked for once, when somebody wants to know."""
    values = globals()
    if "DEFAULT_ENV" not in values:
        from importlib.machinery import PathFinder

        found = "cloudpickle" in sys.modules or PathFinder.find_spec("cloudpickle") is not None
        values["DEFAULT_ENV"] = "cloudpickle" if found else "pickle"
        values["ENV_LOKY_PICKLER"] = values["DEFAULT_ENV"] if _environment is None else _environment
    value: str = values[name]
    return value


def __getattr__(name: str) -> Any:
    if name in ("DEFAULT_ENV", "ENV_LOKY_PICKLER"):
        return _lazy(name)
    if name == "_LokyPickler":
        return get_loky_pickler()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Picklers ----------------------------------------------------------------------------------------


def dump(
    obj: object,
    file: IO[bytes],
    reducers: Mapping[type, Reducer] | None = None,
    protocol: int | None = None,
) -> None:
    """Pickle an object into a file.

    Parameters
    ----------
    obj : object
        What to pickle.
    file : file object
        Where to write it.
    reducers : mapping, optional
        Functions by the type that they reduce, see `register`.
    protocol : int, optional
        The pickle protocol, by default the newest that all supported Pythons have.
    """
    get_loky_pickler()(file, reducers, PROTOCOL if protocol is None else protocol).dump(obj)


def dumps(
    obj: object,
    reducers: Mapping[type, Reducer] | None = None,
    protocol: int | None = None,
) -> memoryview:
    """Pickle an object into memory.

    Parameters
    ----------
    obj, reducers, protocol
        As for `dump`.

    Returns
    -------
    memoryview
        The pickle.
    """
    from io import BytesIO

    file = BytesIO()
    dump(obj, file, reducers, protocol)
    return file.getbuffer()


def _find_class(name: str) -> type[Any]:
    from importlib import import_module

    try:
        base: type[Any] = import_module(name).Pickler
    except (ImportError, AttributeError) as error:
        # Only the first argument: an ImportError also carries the module's name and path.
        hint = (
            f"\nThis happened while setting loky_pickler to {name!r}, as the function "
            "set_loky_pickler or the environment variable LOKY_PICKLER asks for."
        )
        error.args = (f"{error.args[0] if error.args else ''}{hint}", *error.args[1:])
        if isinstance(error, ImportError):
            error.msg = error.args[0]
        raise
    return _make_class(base)


def _make_class(base: type[Any]) -> type[Any]:
    import copyreg
    from io import BytesIO
    from pickle import HIGHEST_PROTOCOL, Pickler

    from .reducers import for_cloudpickle

    # Going through a ChainMap (cloudpickle has one) for each pickler costs more than all the rest
    # together, so the mappings that it goes through are taken out of it.
    own = getattr(base(BytesIO()), "dispatch_table", None)
    layers = [copyreg.dispatch_table]
    layers += reversed(getattr(own, "maps", [] if own is None else [own]))
    if base.__module__.partition(".")[0] == "cloudpickle":
        layers.insert(0, for_cloudpickle())

    class LokyPickler(base):  # type: ignore[misc]
        """The chosen pickler, with reducers that belong to one object."""

        if issubclass(base, Pickler):
            # The C pickler reads its table from this slot, which a class attribute of the same
            # name in between (cloudpickle has one) would hide from assignments.
            dispatch_table = vars(Pickler)["dispatch_table"]

        def __init__(
            self,
            writer: IO[bytes],
            reducers: Mapping[type, Reducer] | None = None,
            protocol: int = HIGHEST_PROTOCOL,
            **options: Any,
        ) -> None:
            super().__init__(writer, protocol=protocol, **options)
            self.dispatch_table = _make_table(layers, reducers)

        def register(self, type: type, reduce_func: Reducer) -> None:
            """Add a reducer for this pickler only."""
            self.dispatch_table[type] = reduce_func

    return LokyPickler


def _make_table(
    layers: Sequence[Mapping[type, Reducer]], reducers: Mapping[type, Reducer] | None
) -> dict[type, Reducer]:
    table: dict[type, Reducer] = {}
    for layer in layers:
        table.update(layer)
    table.update(_multiprocessing_reducers())
    table.update(_dispatch_table)
    if reducers:
        table.update(reducers)
    return table


def _multiprocessing_reducers() -> dict[type, Reducer]:
    """What multiprocessing can send: connections, sockets and, while a process starts, arrays."""
    from .imported import imported

    found: dict[type, Reducer] = {}
    socket = imported("socket")
    if socket is not None:
        found[socket.socket] = _reduce_socket
    reduction = imported("multiprocessing.reduction")
    if reduction is not None:
        # Only these: what multiprocessing or other packages register there besides is either done
        # better by cloudpickle, or (tensors) for processes that share more than ours do.
        modules = ["multiprocessing.connection"]
        if reduction.context.get_spawning_popen() is not None:
            modules += ["multiprocessing.heap", "multiprocessing.sharedctypes"]
        for kind, function in reduction.ForkingPickler._extra_reducers.items():
            if function.__module__ in modules:
                found[kind] = function
    return found


def _reduce_socket(obj: Any) -> Any:
    from multiprocessing import reduction

    return reduction._reduce_socket(obj)  # type: ignore[attr-defined]
