"""Tests of `loky.wire.picklers`: the choice of the pickler, and where reducers come from.

Does not belong here: sending sockets and connections to processes (`test_backend_process`).
"""

from __future__ import annotations

import copyreg
import io
import pickle
import socket
import sys
import types
from collections.abc import Iterator
from functools import lru_cache, partial
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import ForkingPickler
from typing import Any

import cloudpickle
import pytest
from backend_helpers import Plain, check_code, reduce_plain

from loky.wire import picklers as reduction
from loky.wire.picklers import (
    dump,
    dumps,
    get_loky_pickler,
    get_loky_pickler_name,
    loads,
    register,
    set_loky_pickler,
)


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(reduction, "_dispatch_table", {})
    set_loky_pickler("cloudpickle")
    yield
    set_loky_pickler()


@pytest.fixture
def python_pickler(monkeypatch: pytest.MonkeyPatch) -> str:
    """A module whose `Pickler` is not made from the one in C, as dill's is."""
    module: Any = types.ModuleType("python_pickler")
    module.Pickler = type("Pickler", (pickle._Pickler,), {})
    monkeypatch.setitem(sys.modules, "python_pickler", module)
    return "python_pickler"


PICKLERS = ["cloudpickle", "pickle", "python_pickler"]


class Base:
    def name(self) -> str:
        return "base"

    def call_mangled(self) -> Any:
        return self.__mangled

    def __mangled(self) -> str:
        return "mangled"


class Derived(Base):
    def name(self) -> str:
        return "derived"

    def parents(self) -> Any:
        return super().name


# The choice --------------------------------------------------------------------------------------


def test_default() -> None:
    set_loky_pickler()
    assert get_loky_pickler_name() == "cloudpickle"
    assert issubclass(get_loky_pickler(), cloudpickle.Pickler)
    assert reduction.DEFAULT_ENV == reduction.ENV_LOKY_PICKLER == "cloudpickle"
    assert reduction._LokyPickler is get_loky_pickler()


@pytest.mark.parametrize("name", PICKLERS)
def test_choice(name: str, python_pickler: str) -> None:
    set_loky_pickler(name)
    assert get_loky_pickler_name() == name
    assert issubclass(get_loky_pickler(), sys.modules[name].Pickler)
    set_loky_pickler(name)
    set_loky_pickler()
    assert get_loky_pickler_name() == "cloudpickle"
    assert issubclass(get_loky_pickler(), cloudpickle.Pickler)


def test_empty_name_is_cloudpickle() -> None:
    set_loky_pickler("pickle")
    set_loky_pickler("")
    assert get_loky_pickler_name() == "cloudpickle"
    assert issubclass(get_loky_pickler(), cloudpickle.Pickler)


def test_choice_is_what_pickles() -> None:
    assert loads(dumps(lambda: 1))() == 1
    set_loky_pickler("pickle")
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        dumps(lambda: 1)


@pytest.mark.parametrize(
    ("name", "error"), [("no_module", ImportError), ("os", AttributeError)], ids=str
)
def test_choice_that_cannot_be(name: str, error: type[Exception]) -> None:
    set_loky_pickler("pickle")
    with pytest.raises(error, match=f"loky_pickler to '{name}'"):
        set_loky_pickler(name)
    assert get_loky_pickler_name() == "pickle"
    assert loads(dumps(1)) == 1


def test_environment() -> None:
    out = check_code(
        """
        import pickle
        from loky.wire import picklers as reduction
        print(reduction.get_loky_pickler_name(), reduction.ENV_LOKY_PICKLER)
        reduction.set_loky_pickler("cloudpickle")
        print(reduction.get_loky_pickler_name(), reduction.DEFAULT_ENV)
        reduction.set_loky_pickler()
        print(reduction.get_loky_pickler_name())
        assert not issubclass(reduction.get_loky_pickler(), reduction._find_class("cloudpickle"))
        """,
        LOKY_PICKLER="pickle",
    )
    assert out.split() == ["pickle", "pickle", "cloudpickle", "cloudpickle", "pickle"]


def test_empty_environment_is_cloudpickle() -> None:
    code = "from loky.wire import picklers as r; print(r.get_loky_pickler_name())"
    assert check_code(code, LOKY_PICKLER="") == "cloudpickle\n"


def test_without_cloudpickle() -> None:
    out = check_code("""
        import sys
        from importlib.machinery import PathFinder
        find_spec = PathFinder.find_spec
        PathFinder.find_spec = lambda name, *rest: (
            None if name == "cloudpickle" else find_spec(name, *rest))
        from loky.wire import picklers as reduction
        print(reduction.DEFAULT_ENV, reduction.get_loky_pickler_name())
        assert reduction.loads(reduction.dumps([1])) == [1]
        assert "cloudpickle" not in sys.modules
    """)
    assert out == "pickle pickle\n"


def test_passing_the_choice_on_imports_nothing() -> None:
    check_code("""
        import sys
        from loky.wire import picklers as reduction
        reduction.set_loky_pickler()
        reduction.set_loky_pickler(reduction.get_loky_pickler_name())
        assert not {"cloudpickle", "pickle", "multiprocessing"} & set(sys.modules)
    """)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = reduction.nothing


# Reducers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICKLERS)
def test_where_reducers_come_from(
    name: str, python_pickler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_loky_pickler(name)

    def value() -> object:
        return loads(dumps(Plain(1))).value

    assert value() == 1
    monkeypatch.setitem(copyreg.dispatch_table, Plain, lambda obj: (Plain, ("copyreg",)))
    assert value() == "copyreg"
    register(Plain, lambda obj: (Plain, ("registered",)))
    assert value() == "registered"
    assert loads(dumps([Plain(1)], {Plain: reduce_plain}))[0].value == ("reduced", 1)
    assert value() == "registered", "the argument is for one call"


@pytest.mark.parametrize("name", PICKLERS)
def test_reducers_belong_to_one_pickler(name: str, python_pickler: str) -> None:
    set_loky_pickler(name)
    files = [io.BytesIO(), io.BytesIO()]
    first = get_loky_pickler()(files[0], reducers={Plain: reduce_plain})
    second = get_loky_pickler()(files[1])
    second.register(int, abs)
    assert Plain in first.dispatch_table and Plain not in second.dispatch_table
    assert int in second.dispatch_table and int not in first.dispatch_table
    for pickler in (first, second):
        pickler.dump(Plain(1))
    assert [loads(file.getvalue()).value for file in files] == [("reduced", 1), 1]
    assert Plain not in copyreg.dispatch_table


def test_reducers_of_the_pickler_itself_are_kept() -> None:
    # cloudpickle has one for this type in its table.
    logger_type = type(sys.modules["logging"].getLogger("loky"))
    assert logger_type in get_loky_pickler()(io.BytesIO()).dispatch_table


def test_pickler_takes_what_its_base_takes() -> None:
    buffers: list[Any] = []
    file = io.BytesIO()
    pickler = get_loky_pickler()(file, protocol=5, buffer_callback=buffers.append)
    pickler.dump(pickle.PickleBuffer(b"out of band"))
    assert [bytes(buffer) for buffer in buffers] == [b"out of band"]


@pytest.mark.parametrize("name", ["cloudpickle", "pickle"])
@pytest.mark.parametrize(
    "call",
    [
        Base().name,
        partial(int, base=2),
        partial(partial(max, 1), 2),
        list.append,
        int.__add__,
        dict.fromkeys,
        str.maketrans,
    ],
    ids=repr,
)
def test_callables(name: str, call: Any) -> None:
    set_loky_pickler(name)
    copy = loads(dumps(call))
    assert type(copy) is type(call)


def test_methods_by_value_are_the_very_methods() -> None:
    assert loads(dumps(Derived().parents()))() == "base"
    assert loads(dumps(Base().call_mangled()))() == "mangled"


def test_dump_and_dumps() -> None:
    file = io.BytesIO()
    dump([1, "two"], file)
    assert bytes(dumps([1, "two"])) == file.getvalue()
    assert isinstance(dumps(1), memoryview)
    assert bytes(dumps(1))[:2] == b"\x80\x05", "the same protocol with every Python"
    assert bytes(dumps(1, protocol=2))[:2] == b"\x80\x02"


# What multiprocessing brings ---------------------------------------------------------------------


def test_connections_and_sockets_have_reducers() -> None:
    table = get_loky_pickler()(io.BytesIO()).dispatch_table
    assert {Connection, socket.socket} <= set(table)


def test_reducers_of_others_for_multiprocessing_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ForkingPickler._extra_reducers, Plain, reduce_plain)
    assert loads(dumps(Plain(1))).value == 1


def test_registered_ones_win_over_those_of_multiprocessing() -> None:
    ours, theirs = Pipe()
    with ours, theirs:
        register(Connection, lambda connection: (str, ("mine",)))
        assert loads(dumps(ours)) == "mine"


def test_sockets_need_no_multiprocessing() -> None:
    check_code("""
        import io, socket, sys
        from loky.wire import picklers as reduction
        table = reduction._make_table([], None)
        assert socket.socket in table
        assert "multiprocessing" not in sys.modules
    """)


# What cloudpickle sends by name -------------------------------------------------------------------


@lru_cache(maxsize=7)
def cached(number: int) -> int:
    return number


def test_a_cached_function_that_can_be_imported_goes_by_name() -> None:
    assert loads(dumps(cached)) is cached
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        copy = loads(dumps(cached))
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert copy is not cached
    assert copy(3) == 3
    assert copy.cache_parameters() == {"maxsize": 7, "typed": False}


@pytest.mark.parametrize("typed", [False, True])
def test_a_cached_function_of_a_function_goes_by_value(typed: bool) -> None:
    offset = 10

    @lru_cache(maxsize=None, typed=typed)
    def inner(number: int) -> int:
        """About it."""
        return number + offset

    inner(1)
    copy = loads(dumps(inner))
    assert copy(2) == 12
    assert copy.__doc__ == "About it."
    assert copy.cache_info().currsize == 1
    assert copy.cache_parameters() == {"maxsize": None, "typed": typed}
    assert loads(dumps([inner, inner]))[0](1) == 11
