"""Tests of the resource tracker's bookkeeping: what it is told, what it counts, what it removes.

All in this process, and nothing is really removed (see `test_backend_resource_tracker`).
"""

from __future__ import annotations

import os
import re
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loky.backend import _resource_tracker_process as process_side
from loky.backend import resource_tracker
from loky.backend._resource_tracker_process import (
    LEAKED,
    NOT_REMOVED,
    NOT_UNDERSTOOD,
    Ledger,
    decode_message,
    encode_message,
)


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What ledgers of this process remove, without removing anything."""
    removed: list[tuple[str, str]] = []
    for rtype in ("file", "folder", "semlock", "dummy"):
        monkeypatch.setitem(
            process_side._CLEANUP_FUNCS,
            rtype,
            lambda name, rtype=rtype: removed.append((rtype, name)),
        )
    return removed


def tell(ledger: Ledger, *messages: tuple[str, str, str]) -> None:
    for message in messages:
        ledger.handle(encode_message(*message))


# Lines -------------------------------------------------------------------------------------------

NAMES = st.text(min_size=1).filter(lambda name: "\0" not in name)


@given(NAMES, st.sampled_from(["file", "folder", "semlock"]))
def test_every_name_survives_the_line(name: str, rtype: str) -> None:
    line = encode_message("REGISTER", name, rtype)
    assert line.isascii() and line.count(b"\n") == 1 and line.endswith(b"\n")
    assert decode_message(line) == ("REGISTER", rtype, name)


@pytest.mark.parametrize("name", ["/plain", "C:\\with:colons", " spaces ", os.fsdecode(b"/\xff")])
def test_names_of_files(name: str) -> None:
    assert decode_message(encode_message("UNREGISTER", name, "file")) == (
        "UNREGISTER",
        "file",
        name,
    )


def test_plain_names_travel_plainly() -> None:
    assert encode_message("REGISTER", "/a:b", "file") == b"REGISTER:/a:b:file\n"
    assert decode_message(process_side.PROBE) == ("PROBE", "noop", "0")


@pytest.mark.parametrize("line", [b"\n", b"REGISTER\n", b"REGISTER:name\n", b"{}\n", b"{\n"])
def test_lines_that_are_none(line: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((ValueError, KeyError)):
        decode_message(line)
    ledger = Ledger()
    ledger.handle(line)
    assert ledger.exit_code == NOT_UNDERSTOOD
    complaint = capfd.readouterr().err
    assert complaint.startswith("resource_tracker: ") and complaint.count("\n") == 1


# Bookkeeping -------------------------------------------------------------------------------------


def test_removed_with_the_last_reference(removed: list[Any]) -> None:
    ledger = Ledger()
    tell(ledger, *[("REGISTER", "a", "file")] * 2, ("MAYBE_UNLINK", "a", "file"))
    assert removed == []
    tell(ledger, ("MAYBE_UNLINK", "a", "file"))
    assert removed == [("file", "a")]
    ledger.close()
    assert removed == [("file", "a")]
    assert ledger.exit_code == 0


def test_forgotten_and_counted_anew(removed: list[Any]) -> None:
    ledger = Ledger()
    tell(ledger, *[("REGISTER", "a", "file")] * 2, ("UNREGISTER", "a", "file"))
    tell(ledger, ("REGISTER", "a", "file"), ("MAYBE_UNLINK", "a", "file"))
    assert removed == [("file", "a")]


def test_kinds_are_counted_apart(removed: list[Any]) -> None:
    ledger = Ledger()
    tell(ledger, ("REGISTER", "a", "file"), ("REGISTER", "a", "folder"))
    tell(ledger, ("MAYBE_UNLINK", "a", "folder"))
    assert removed == [("folder", "a")]


def test_what_is_left_is_removed_folders_last_inner_ones_first(removed: list[Any]) -> None:
    ledger = Ledger()
    for name, rtype in [("/t", "folder"), ("/t/sub", "folder"), ("/t/f", "file"), ("s", "semlock")]:
        tell(ledger, ("REGISTER", name, rtype))
    with pytest.warns(UserWarning, match="There appear to be") as caught:
        ledger.close()
    assert [name for _, name in removed] == ["/t/f", "s", "/t/sub", "/t"]
    assert ledger.exit_code == LEAKED
    assert str(caught[0].message) == (
        "resource_tracker: There appear to be 1 leaked file objects to clean up at shutdown: "
        "{'/t/f'}"
    )
    ledger.close()
    assert len(removed) == 4


def test_dummies_leak_silently(removed: list[Any]) -> None:
    ledger = Ledger()
    tell(ledger, ("REGISTER", "a", "dummy"))
    ledger.close()
    assert removed == [("dummy", "a")]
    assert ledger.exit_code == LEAKED


def test_one_that_cannot_be_removed_does_not_save_the_others(
    removed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise PermissionError(name)

    monkeypatch.setitem(process_side._CLEANUP_FUNCS, "file", fail)
    ledger = Ledger()
    for name in "abc":
        tell(ledger, ("REGISTER", name, "file"))
    tell(ledger, ("REGISTER", "d", "folder"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tell(ledger, ("MAYBE_UNLINK", "a", "file"))
        ledger.close()
    assert removed == [("folder", "d")]
    complaints = [str(warning.message) for warning in caught]
    for name in "abc":
        assert f"resource_tracker: {name}: PermissionError({name!r})" in complaints
    assert ledger.exit_code == NOT_REMOVED


def test_warnings_as_errors_do_not_save_anything_either(
    removed: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger()
    tell(ledger, ("REGISTER", "a", "file"))
    ledger.close()  # this test runs with warnings as errors
    assert removed == [("file", "a")]
    assert "There appear to be 1 leaked file objects" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (("REGISTER", "a", "spoon"), r"Cannot register a .* unknown resource type \(spoon\)"),
        (("MAYBE_UNLINK", "a", "file"), "file a is not registered"),
        (("UNREGISTER", "a", "file"), "file a is not registered"),
        (("SING", "a", "file"), "unrecognized command 'SING'"),
    ],
)
def test_mistakes_of_clients(
    message: tuple[str, str, str],
    complaint: str,
    removed: list[Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    ledger = Ledger()
    tell(ledger, message, ("REGISTER", "b", "file"), ("MAYBE_UNLINK", "b", "file"))
    assert re.search(complaint, capfd.readouterr().err)
    assert removed == [("file", "b")], "it goes on"
    assert ledger.exit_code == NOT_UNDERSTOOD


def test_verbose(removed: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(verbose=True)
    tell(ledger, ("REGISTER", "a", "file"), ("MAYBE_UNLINK", "a", "file"))
    ledger.close()
    assert capfd.readouterr().err.splitlines() == [
        "[ResourceTracker] incremented refcount of file a (current 1)",
        "[ResourceTracker] decremented refcount of file a (current 0)",
        "[ResourceTracker] unlink file a",
        "[ResourceTracker] resource tracker shut down",
    ]


def test_cleanup_functions_can_be_replaced() -> None:
    # As joblib does, by this name.
    assert resource_tracker._CLEANUP_FUNCS is process_side._CLEANUP_FUNCS
    assert {"noop", "dummy", "file", "folder", "semlock"} <= set(resource_tracker._CLEANUP_FUNCS)
    with pytest.raises(RuntimeError, match="noop should never be"):
        resource_tracker._CLEANUP_FUNCS["noop"]("0")
