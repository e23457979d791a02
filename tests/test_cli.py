"""Tests of `python -m loky`: the commands as a user runs them, and the parts they are made of.

Guarantee: what a command prints is compared with what the library says when it is asked directly,
so the tests hold on any machine.

Does not belong here: whether the CPU count is right (`test_cpu`), whether pools are.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import loky
from loky.cli import demo, info
from loky.cli.demo import Measured, ParallelRun
from loky.cli.table import format_table
from loky.errors import TerminatedWorkerError


def run_loky(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loky", *arguments],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


# The command line --------------------------------------------------------------------------------


def test_no_command_is_an_error_that_shows_the_usage() -> None:
    done = run_loky()
    assert done.returncode == 2
    assert "usage: python -m loky" in done.stderr
    assert "COMMAND" in done.stderr


def test_unknown_command() -> None:
    done = run_loky("frobnicate")
    assert done.returncode == 2
    assert "frobnicate" in done.stderr
    assert "demo" in done.stderr


@pytest.mark.parametrize("arguments", [["info"], ["demo", "--limit", "20"]], ids=str)
def test_nobody_reads_on(arguments: list[str]) -> None:
    """As `| head` does; nothing is said of it."""
    theirs, ours = os.pipe()
    os.close(theirs)
    command = [sys.executable, "-m", "loky", *arguments]
    with open(ours, "wb") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "")


def test_help_lists_the_commands() -> None:
    done = run_loky("--help")
    assert done.returncode == 0
    assert "\n  demo " in done.stdout
    assert "\n  info " in done.stdout


def test_version() -> None:
    assert run_loky("--version").stdout == f"loky {loky.__version__}\n"


@pytest.mark.parametrize(("command", "option"), [("demo", "--workers"), ("info", "--json")])
def test_help_of_a_command(command: str, option: str) -> None:
    done = run_loky(command, "--help")
    assert done.returncode == 0
    assert f"usage: python -m loky {command}" in done.stdout
    assert option in done.stdout


@pytest.mark.parametrize("value", ["0", "-1", "two"])
def test_demo_rejects_numbers_it_cannot_use(value: str) -> None:
    done = run_loky("demo", f"--workers={value}")
    assert done.returncode == 2
    assert "--workers" in done.stderr
    assert value in done.stderr


# info --------------------------------------------------------------------------------------------


def test_info_json_says_what_the_library_says() -> None:
    done = run_loky("info", "--json", LOKY_MAX_CPU_COUNT="")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    limits = loky.cpu.explain_cpu_count(only_physical_cores=True).limits
    assert found["cpus"]["cpu_count"]["count"] == loky.cpu_count()
    assert found["cpus"]["cpu_count_only_physical_cores"]["count"] == loky.cpu_count(True)
    assert [limit["name"] for limit in found["cpus"]["limits"]] == [each.name for each in limits]
    assert [limit["value"] for limit in found["cpus"]["limits"]] == [each.value for each in limits]
    assert found["versions"]["loky"] == loky.__version__
    assert found["versions"]["cloudpickle"]
    assert "loky" in found["start_methods"]["available"]
    assert found["pickler"] == {"name": "cloudpickle", "source": "default", "error": None}


def test_info_json_and_text_show_the_same() -> None:
    settings = {"LOKY_MAX_CPU_COUNT": "1", "LOKY_PICKLER": "pickle"}
    found = json.loads(run_loky("info", "--json", **settings).stdout)
    text = run_loky("info", **settings).stdout
    assert found["environment"]["LOKY_MAX_CPU_COUNT"] == "1"
    assert found["cpus"]["cpu_count"]["count"] == 1
    assert "LOKY_MAX_CPU_COUNT" in found["cpus"]["cpu_count"]["decided_by"]
    assert found["pickler"] == {"name": "pickle", "source": "LOKY_PICKLER", "error": None}
    assert "pickle, from LOKY_PICKLER" in text
    for limit in found["cpus"]["limits"]:
        assert limit["reason"] in text
    for name in [*found["versions"], *found["capabilities"], *found["start_methods"]["available"]]:
        assert name in text


def test_info_bad_cpu_limit_is_shown_as_ignored_and_only_there() -> None:
    done = run_loky("info", LOKY_MAX_CPU_COUNT="many")
    assert done.returncode == 0
    assert "LOKY_MAX_CPU_COUNT='many' is ignored" in done.stdout
    assert done.stderr == ""


def test_info_pickler_that_cannot_be_used() -> None:
    done = run_loky("info", LOKY_PICKLER="no_such_pickler")
    assert done.returncode == 1
    assert "CANNOT BE USED: ModuleNotFoundError" in done.stdout
    assert "pickler" in done.stderr


def test_info_capability_is_tried() -> None:
    def forbidden() -> None:
        raise PermissionError("not in this sandbox")

    def missing() -> None:
        os.no_such_function()  # type: ignore[attr-defined]

    assert info._try(lambda: None) == {"available": True, "reason": None}
    assert info._try(forbidden)["reason"] == "PermissionError: not in this sandbox"
    assert "no_such_function" in info._try(missing)["reason"]
    assert not info._try(missing)["available"]


def test_info_capabilities_agree_with_this_python(no_leftovers: None) -> None:
    found = info.collect()["capabilities"]
    assert set(found) == {"memfd_create", "pidfd_open", "SOCK_SEQPACKET", "F_SETSIG"}
    for name in ("memfd_create", "pidfd_open"):
        if not hasattr(os, name):
            assert name in found[name]["reason"]


def test_info_text_names_what_is_missing() -> None:
    found = info.collect()
    found["versions"]["psutil"] = None
    found["capabilities"]["pidfd_open"] = {"available": False, "reason": "too old"}
    found["environment"] = {}
    text = info.render(found)
    assert re.search(r"psutil +not installed\n", text)
    assert "no (too old)" in text
    assert "no variable LOKY_... is set" in text


# Tables ------------------------------------------------------------------------------------------


def test_table() -> None:
    text = format_table(["name", "n"], [["a", 1234], ["bcdefg", 5]], indent=1)
    assert text.split("\n") == [
        " name        n",
        " ------  -----",
        " a       1,234",
        " bcdefg      5",
    ]


def test_table_without_rows() -> None:
    assert format_table(["name", "n"], []) == "name  n\n----  -"


def test_table_with_a_row_of_another_length() -> None:
    with pytest.raises(ValueError, match="1 cells under 2 columns"):
        format_table(["name", "n"], [["a"]])


# The demo's parts --------------------------------------------------------------------------------

SOURCE = """
class Outer:
    def plain(self):
        return 1

    def branching(self, items):
        for item in items:
            if item and item > 1 or item is None:
                continue
        while items:
            try:
                items.pop()
            except IndexError:
                break
        return [x for x in items if x if x > 2] or (1 if items else 2)

def outer(x):
    assert x
    async def inner():
        async for _ in x:
            match _:
                case 1:
                    pass
                case _:
                    pass
    return inner

if __name__ == "__main__":
    outer(1)
"""


def test_complexities() -> None:
    functions, classes = demo.complexities(ast.parse(SOURCE))
    assert dict(functions) == {
        "Outer.plain": 1,
        # for, if, and, or, while, except, comprehension, if, if, or, if-else
        "Outer.branching": 12,
        "outer": 2,
        "outer.inner": 4,
    }
    assert classes == 1


def test_measure(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("# nothing\ndef f(x):\n    return x or 1\n\nclass C: pass\n")
    assert demo.measure(str(path)) == Measured(
        path=str(path),
        lines=5,
        tokens=14,
        functions=1,
        classes=1,
        complexity=2,
        highest=2,
        most_complex="f",
        pid=os.getpid(),
    )


@pytest.mark.parametrize(
    "content", [b"def f(:\n", b'"""never closed', b"x = '\0'\n", b"\xff\xfe = 1\n", b"  x\n y\n"]
)
def test_measure_file_that_cannot_be_parsed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "module.py"
    path.write_bytes(content)
    result = demo.measure(str(path))
    assert result.error
    assert result.tokens == result.functions == 0


def test_measure_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.touch()
    assert demo.measure(str(path)) == Measured(path=str(path), pid=os.getpid())


def test_standard_library() -> None:
    root, paths = demo.standard_library()
    assert str(root / "ast.py") in paths
    assert len(set(paths)) == len(paths)
    for path in paths:
        assert not {"test", "tests", "site-packages"} & set(Path(path).relative_to(root).parts)
    _, some = demo.standard_library(limit=10)
    assert len(some) == 10
    assert set(some) <= set(paths)
    # Not the first ten: those would all be of one package or two.
    assert len({demo.package_of(path, root) for path in some}) > 2
    assert demo.standard_library(limit=10**6)[1] == paths


def test_summary_adds_up() -> None:
    root = Path("lib")
    results = [
        Measured("lib/a/x.py", 10, 100, 2, 1, 6, 4, "f"),
        Measured("lib/a/y.py", 20, 200, 2, 0, 2, 1, "g"),
        Measured("lib/b.py", 1, 50, 0, 0),
        Measured("lib/c.py", 5, 10, 1, 0, 9, 9, "h"),
    ]
    lines = demo.summary(results, root, rows=1).split("\n")
    assert lines[2].split() == ["a", "2", "30", "300", "4", "1", "2.0", "4", "x.py:", "f"]
    assert lines[3].split() == ["(2", "others)", "2", "6", "60", "1", "0", "9.0", "9", "c.py:", "h"]
    assert lines[4].split()[:7] == ["all", "4", "36", "360", "5", "1", "3.4"]


# Whether the demo notices ------------------------------------------------------------------------

SERIAL = [Measured("a", 1, 2, pid=1), Measured("b", 3, 4, pid=1)]
RIGHT = ParallelRun([each._replace(pid=2) for each in SERIAL], 1.0, 3, TerminatedWorkerError("x"))


def test_problems_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.measure, "__module__", "__main__")
    assert demo.problems(SERIAL, RIGHT) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"results": RIGHT.results[:1]}, "1 of 2 files were measured"),
        ({"results": RIGHT.results[:1]}, "1 files have other figures, first b"),
        ({"results": [RIGHT.results[0], RIGHT.results[1]._replace(tokens=5)]}, "first b"),
        ({"results": RIGHT.results * 2}, "4 of 2"),
        ({"results": [each._replace(pid=os.getpid()) for each in SERIAL]}, "by this process"),
        ({"error": None}, "ended with None"),
        ({"error": RuntimeError("else")}, "ended with RuntimeError('else')"),
        ({}, "defined in loky.cli.demo, not in __main__"),  # true here, where it was imported
    ],
)
def test_problems(change: dict, complaint: str) -> None:
    assert any(complaint in problem for problem in demo.problems(SERIAL, RIGHT._replace(**change)))


def test_demo_fails_when_something_is_wrong(monkeypatch, capsys) -> None:
    def lose_one(paths: list[str], workers: int) -> ParallelRun:
        results = [demo.measure(path)._replace(pid=-1) for path in paths[1:]]
        return ParallelRun(results, 1.0, 3, TerminatedWorkerError("killed"))

    monkeypatch.setattr(demo, "run_in_pool", lose_one)
    assert demo.main(["--limit=3", "--workers=1"]) == 1
    output = capsys.readouterr().out
    assert "2 of 3 files measured" in output
    assert "WRONG: 2 of 3 files were measured" in output
    assert "All figures are the same" not in output


def test_demo_without_sources(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "standard_library", lambda limit: (tmp_path, []))
    assert demo.main([]) == 1
    assert str(tmp_path) in capsys.readouterr().out


# The demo itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "2"])
def test_demo(workers: str) -> None:
    done = run_loky("demo", "--limit=40", f"--workers={workers}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "    TerminatedWorkerError: " in done.stdout
    assert "40 of 40 files measured" in done.stdout
    assert f"with {workers} workers" in done.stdout
    assert "All figures are the same in both runs." in done.stdout
    assert "WRONG" not in done.stdout
