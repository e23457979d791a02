"""Tests of `loky.cloudpickle_wrapper`: wrapped objects look like the objects and go by value."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from functools import partial
from typing import Any

import pytest

from loky import cloudpickle_wrapper
from loky.cloudpickle_wrapper import (
    WRAP_CACHE,
    CallableObjectWrapper,
    CloudpickledClassWrapper,
    CloudpickledObjectWrapper,
    _reconstruct_wrapper,
    _wrap_objects_when_needed,
    wrap_non_picklable_objects,
)


def importable(x: int) -> int:
    return x + 1


class Adder:
    """Something to wrap."""

    kind = "adder"

    def __init__(self, amount: int, *, twice: bool = False) -> None:
        self.amount = amount * (2 if twice else 1)

    def add(self, x: int) -> int:
        return self.amount + x


@pytest.fixture(autouse=True)
def _empty_cache() -> None:
    WRAP_CACHE.clear()


def travel(obj: Any) -> Any:
    """Through the pickler that can the least."""
    return pickle.loads(pickle.dumps(obj))


# Functions and objects ---------------------------------------------------------------------------


def test_function() -> None:
    step = 10
    wrapped = wrap_non_picklable_objects(lambda x: x + step)
    assert type(wrapped) is CallableObjectWrapper
    assert wrapped(1) == 11
    assert travel(wrapped)(1) == 11


def test_decorator() -> None:
    @wrap_non_picklable_objects
    def double(x: int) -> int:
        return 2 * x

    assert double.__name__ == "double"
    assert travel(double)(2) == 4


def test_object() -> None:
    adder = Adder(1)
    adder.extra = lambda: "not picklable"  # type: ignore[attr-defined]
    wrapped = wrap_non_picklable_objects(adder)
    assert type(wrapped) is CloudpickledObjectWrapper
    assert not callable(wrapped)
    for each in (wrapped, travel(wrapped)):
        assert (each.amount, each.add(2), each.extra()) == (1, 3, "not picklable")
    with pytest.raises(AttributeError, match="'Adder' object has no attribute 'nothing'"):
        _ = wrapped.nothing


def test_wrapper_stays_so_that_the_object_can_travel_on() -> None:
    wrapped = travel(travel(wrap_non_picklable_objects(lambda: 1)))
    assert type(wrapped) is CallableObjectWrapper
    assert wrapped() == 1


def test_wrapper_that_does_not_stay() -> None:
    assert type(travel(wrap_non_picklable_objects(Adder(1), keep_wrapper=False))) is Adder
    assert type(travel(CloudpickledObjectWrapper(Adder(1)))) is Adder


def test_copies() -> None:
    wrapped = wrap_non_picklable_objects(Adder(1))
    assert copy.copy(wrapped).add(1) == copy.deepcopy(wrapped).add(1) == 2


def test_before_it_is_made() -> None:
    """Asking an object that has nothing yet ends: unpickling and copying do ask."""
    empty = CloudpickledObjectWrapper.__new__(CloudpickledObjectWrapper)
    with pytest.raises(AttributeError, match="_obj"):
        _ = empty.anything
    assert not hasattr(empty, "_keep_wrapper")


def test_reconstruct() -> None:
    data = pickle.dumps(Adder(1))
    assert type(_reconstruct_wrapper(data, True)) is CloudpickledObjectWrapper
    assert _reconstruct_wrapper(data, True)._keep_wrapper is True


# Classes -----------------------------------------------------------------------------------------


def test_class_makes_wrapped_objects() -> None:
    wrapped = wrap_non_picklable_objects(Adder)
    assert isinstance(wrapped, type) and issubclass(wrapped, CloudpickledClassWrapper)
    assert (wrapped.__name__, wrapped.__doc__) == ("Adder", Adder.__doc__)
    adder = wrapped(1, twice=True)
    assert isinstance(adder, CloudpickledObjectWrapper)
    for each in (adder, travel(adder)):
        assert (each.amount, each.add(1), each.kind) == (2, 3, "adder")


def test_local_class() -> None:
    @wrap_non_picklable_objects
    class Local:
        def __init__(self) -> None:
            self.x = 42

    assert travel(Local()).x == 42
    with pytest.raises(TypeError, match="'Local' object is not callable"):
        Local()()


def test_class_whose_objects_are_not_kept_wrapped() -> None:
    wrapped = wrap_non_picklable_objects(Adder, keep_wrapper=False)
    assert type(travel(wrapped(1))) is Adder


# Only where it is needed -------------------------------------------------------------------------


def test_importable_things_are_not_wrapped() -> None:
    for obj in (importable, Adder(1), len, 1, None, "__main__"):
        assert _wrap_objects_when_needed(obj) is obj
    assert not WRAP_CACHE


def test_others_are_wrapped_once() -> None:
    def nested() -> int:
        return 1

    for obj in (nested, lambda: 1):
        wrapped = _wrap_objects_when_needed(obj)
        assert type(wrapped) is CallableObjectWrapper
        assert wrapped is _wrap_objects_when_needed(obj)
        assert travel(wrapped)() == 1


def test_things_from_main() -> None:
    in_main = type("InMain", (), {"__module__": "__main__", "__hash__": None})
    assert isinstance(_wrap_objects_when_needed(in_main()), CloudpickledObjectWrapper)
    assert not WRAP_CACHE, "what has no hash has no place there"
    in_none = type("InNone", (), {"__module__": None})()
    assert _wrap_objects_when_needed(in_none) is in_none


def test_partials_by_their_parts() -> None:
    wrapped = _wrap_objects_when_needed(partial(max, 3, key=lambda x: -x))
    assert type(wrapped) is partial
    assert wrapped.func is max
    assert type(wrapped.keywords["key"]) is CallableObjectWrapper
    assert travel(wrapped)(2) == 2


def test_import_is_light() -> None:
    code = (
        f"import {cloudpickle_wrapper.__name__}, sys; "
        "assert not {'cloudpickle', 'pickle', 'inspect'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
