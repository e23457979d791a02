"""Tests of `loky.initializers`: several initializers as one, and the profiler's among them."""

from __future__ import annotations

import pickle
import sys
from types import ModuleType
from typing import Any

import pytest

from loky.initializers import (
    _chain_initializers,
    _ChainedInitializer,
    _make_viztracer_initializer_and_initargs,
    _prepare_initializer,
    _viztracer_init,
)

calls: list[Any] = []


def note(*args: Any) -> None:
    calls.append(args)


@pytest.fixture(autouse=True)
def _forget() -> None:
    calls.clear()


class Tracer:
    """What is used of viztracer.VizTracer."""

    def __init__(self, **init_kwargs: Any) -> None:
        self.init_kwargs = init_kwargs
        self.enable = True

    def register_exit(self) -> None:
        calls.append(("register_exit", self.init_kwargs))

    def start(self) -> None:
        calls.append(("start", self.init_kwargs))


@pytest.fixture
def viztracer(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("viztracer")
    module.VizTracer = Tracer
    module.get_tracer = lambda: None
    monkeypatch.setitem(sys.modules, "viztracer", module)
    return module


# Chains ------------------------------------------------------------------------------------------


def test_no_initializer() -> None:
    assert _chain_initializers([]) == (None, ())
    assert _chain_initializers([(None, (1,)), (None, ())]) == (None, ())
    assert _prepare_initializer(None, (1,)) == (None, ())


def test_one_initializer_stays_as_it_is() -> None:
    assert _chain_initializers([(None, ()), (note, (1, 2))]) == (note, (1, 2))
    assert _prepare_initializer(note, (1, 2)) == (note, (1, 2))


def test_several_are_called_in_order_with_their_own_arguments() -> None:
    chained, args = _chain_initializers([(note, (1, 2)), (None, (0,)), (note, ()), (note, (3,))])
    assert isinstance(chained, _ChainedInitializer)
    assert list(args) == [(1, 2), (), (3,)]
    pickle.loads(pickle.dumps(chained))(*args)
    assert calls == [(1, 2), (), (3,)]


@pytest.mark.parametrize("initializer", [1, "f", ()])
def test_what_cannot_be_called(initializer: object) -> None:
    with pytest.raises(TypeError, match="initializer must be a callable, got"):
        _prepare_initializer(initializer, ())


# VizTracer ---------------------------------------------------------------------------------------


def test_not_imported_for_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "viztracer", raising=False)
    assert _make_viztracer_initializer_and_initargs() == (None, ())
    assert "viztracer" not in sys.modules


def test_no_tracer(viztracer: Any) -> None:
    assert _prepare_initializer(note, (1,)) == (note, (1,))


def test_tracer_that_is_off(viztracer: Any) -> None:
    tracer = Tracer()
    tracer.enable = False
    viztracer.get_tracer = lambda: tracer
    assert _prepare_initializer(None, ()) == (None, ())


def test_tracer_alone(viztracer: Any) -> None:
    viztracer.get_tracer = lambda: Tracer(verbose=0)
    initializer, args = _prepare_initializer(None, ())
    assert (initializer, args) == (_viztracer_init, ({"verbose": 0},))
    assert initializer is not None
    initializer(*args)
    assert calls == [("register_exit", {"verbose": 0}), ("start", {"verbose": 0})]


def test_tracer_after_the_users_initializer(viztracer: Any) -> None:
    viztracer.get_tracer = lambda: Tracer(verbose=0)
    initializer, args = _prepare_initializer(note, ("user",))
    assert initializer is not None
    initializer(*args)
    assert [call[0] for call in calls] == ["user", "register_exit", "start"]


def test_viztracer_of_another_time(viztracer: Any) -> None:
    def changed() -> None:
        raise AttributeError("no such thing any more")

    viztracer.get_tracer = changed
    with pytest.warns(UserWarning, match=r"introspect viztracer state: no such thing any more"):
        assert _prepare_initializer(note, (1,)) == (note, (1,))
