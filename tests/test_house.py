"""The rules of the house: who may import whom, what every file says, and what being there costs.

The imports are read from the source, wherever they stand, so that a function or a branch for type
checkers cannot hide one.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import loky
from loky.pool.scheduler import Scheduler

HOME = Path(loky.__file__).parent
MODULES = sorted(HOME.rglob("*.py"))

# What each room may import of this package, itself included. What stands outside of the rooms
# (the facade, the command line, ...) may import everything.
ROOMS = {
    "loky.wire": {"loky.wire"},
    "loky.worker": {"loky.worker", "loky.wire", "loky.memory", "loky.nesting"},
    "loky.observe": {"loky.observe", "loky.pool", "loky.wire"},
    "loky.observe.arguments": {"loky.wire"},
    "loky.observe.chronicle": {"loky.observe.events", "loky.pool"},
    "loky.observe.events": set(),
    "loky.observe.postmortem": {"loky.memory", "loky.observe.arguments"},
    "loky.pool": {
        "loky.observe.arguments",
        "loky.observe.chronicle",
        "loky.observe.postmortem",
        "loky.pool",
        "loky.wire",
        "loky.chunks",
        "loky.errors",
        "loky.future",
        "loky.memory",
        "loky.nesting",
        "loky.observe",
        "loky.options",
        "loky.task_options",
    },
    "loky.pool.model": {"loky.task_options"},
    "loky.pool.deadlines": {"loky.pool.model"},
    "loky.pool.intensity": set(),
    "loky.pool.pace": set(),
    "loky.pool.roster": {"loky.pool.model", "loky.pool.pace", "loky.pool.succession"},
    "loky.pool.succession": {"loky.pool.model"},
    "loky.pool.waiting": {"loky.pool.model"},
    "loky.pool.scheduler": {
        "loky.pool.deadlines",
        "loky.pool.intensity",
        "loky.pool.model",
        "loky.pool.pace",
        "loky.pool.roster",
        "loky.pool.waiting",
        "loky.task_options",
    },
    "loky.checks": set(),
    "loky.task_options": {"loky.checks"},
    "loky.chunks": {"loky.worker"},
    "loky.errors": {"loky.observe.postmortem"},
    "loky.future": {"loky.checks"},
    "loky.memory": {"loky._memory_linux"},
    "loky._memory_linux": {"loky._cgroup_linux"},
    "loky._cgroup_linux": set(),
    "loky.nesting": set(),
    "loky.initializers": set(),
    "loky.options": {
        "loky.checks",
        "loky.cpu",
        "loky.errors",
        "loky.initializers",
        "loky.memory",
        "loky.wire",
    },
    "loky.backend": {"loky.backend", "loky.cpu", "loky.wire"},
}
# Pure data structures: all that the state machine may know of the standard library.
PLAIN = {"__future__", "collections", "collections.abc", "heapq", "math", "typing"}
STATE_MACHINE = (
    "deadlines",
    "intensity",
    "model",
    "pace",
    "roster",
    "scheduler",
    "succession",
    "waiting",
)

HEAVY = {
    "asyncio",
    "cloudpickle",
    "concurrent",
    "logging",
    "multiprocessing",
    "numpy",
    "pickle",
    "psutil",
    "re",
    "selectors",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "traceback",
    "typing",
}


def name_of(path: Path) -> str:
    parts = path.relative_to(HOME.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, wherever it does so, and the line."""
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from . import x` may import a module: one that exists as a file.
                inner = HOME.parent.joinpath(*module.split("."), alias.name)
                if inner.with_suffix(".py").exists() or inner.is_dir():
                    yield f"{module}.{alias.name}", node.lineno
                else:
                    yield module, node.lineno


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


def rules_for(name: str) -> set[str] | None:
    rooms = [room for room in ROOMS if within(name, room)]
    return ROOMS[max(rooms, key=len)] if rooms else None


def test_the_walk_finds_the_imports() -> None:
    found = dict(imports_of(HOME / "pool" / "supervisor.py"))
    assert {"loky.pool.scheduler", "loky.future", "loky.pool.outcome", "weakref"} <= set(found)
    assert "loky.worker.guard" in dict(imports_of(HOME / "worker" / "loop.py"))
    assert len(MODULES) > 20


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    name = name_of(path)
    allowed = rules_for(name)
    if allowed is None:
        return
    wrong = [
        f"line {line}: {imported}"
        for imported, line in imports_of(path)
        if within(imported, "loky") and not any(within(imported, room) for room in allowed)
    ]
    assert not wrong, f"{name} may import {sorted(allowed)} of this package only"


@pytest.mark.parametrize("room", ["pool", "wire", "worker"])
def test_nothing_on_the_way_of_a_task_needs_the_backend(room: str) -> None:
    for path in HOME.joinpath(room).glob("*.py"):
        for imported, line in imports_of(path):
            assert not within(imported, "loky.backend"), f"{path.name}, line {line}"


@pytest.mark.parametrize("name", STATE_MACHINE)
def test_the_state_machine_knows_plain_data_structures_only(name: str) -> None:
    allowed = PLAIN | {"loky.task_options", *(f"loky.pool.{part}" for part in STATE_MACHINE)}
    for imported, line in imports_of(HOME / "pool" / f"{name}.py"):
        assert imported in allowed, f"line {line}: {imported}"


def test_whatever_the_scheduler_can_be_told_it_is_told_by_the_pool() -> None:
    """An event that only the simulation reports is a promise that nobody keeps."""
    told = set()
    for path in HOME.joinpath("pool").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("scheduler"):
                told.add(node.attr)
    events = {
        name
        for name, value in vars(Scheduler).items()
        if not name.startswith("_") and not isinstance(value, property)
    }
    assert {"submit", "lost", "start_failed"} <= events
    assert sorted(events - told) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_opens_with_a_header(path: Path) -> None:
    header = ast.get_docstring(ast.parse(path.read_bytes()))
    assert header, "no docstring"
    first = header.splitlines()[0]
    assert len(first) > 20
    assert first.rstrip()[-1] in ".:"


@pytest.mark.parametrize("room", ["pool", "wire", "worker"])
def test_operating_systems_are_told_apart_in_one_place(room: str) -> None:
    """`sys.platform` and `os.name` are asked only where the kind of a thing is chosen."""
    for path in HOME.joinpath(room).glob("*.py"):
        if path.name in ("channel.py", "launcher.py"):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                asked = f"{node.value.id}.{node.attr}"
                assert asked not in ("sys.platform", "os.name"), f"{path.name}, {node.lineno}"


# ---------------------------------------------------------------------- the cost of being there


def modules_after(code: str) -> set[str]:
    """What a bare interpreter has imported after running this code that it had not before."""
    script = (
        "import sys; before = set(sys.modules)\n"
        f"{code}\n"
        "print(*sorted(set(sys.modules) - before), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_else() -> None:
    assert modules_after("import loky") == {"loky"}


def test_what_the_first_executor_imports_is_light() -> None:
    code = "from loky import ProcessPoolExecutor, get_reusable_executor"
    new = {name.partition(".")[0] for name in modules_after(code)}
    # The base class of our executor lives in concurrent.futures, which needs these itself.
    base = {name.partition(".")[0] for name in modules_after("import concurrent.futures._base")}
    heavy = new & HEAVY - base
    assert not heavy & {"asyncio", "cloudpickle", "multiprocessing", "numpy", "psutil", "socket"}


def test_a_worker_that_has_done_nothing_has_imported_next_to_nothing() -> None:
    question = "sorted(__import__('sys').modules)"

    def answer(code: str) -> set[str]:
        """Of a new interpreter: what this one has imported makes a difference to workers."""
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return set(done.stdout.split())

    there = answer(
        "from loky import ProcessPoolExecutor\n"
        "with ProcessPoolExecutor(1) as executor:\n"
        f"    print(*executor.submit(eval, {question!r}).result())"
    )
    # The C pickler brings ten modules along, collections and functools among them.
    bare = answer(f"import _pickle; print(*{question})")
    new = there - bare
    assert "loky.worker.loop" in new
    heavy = {name for name in new if name.partition(".")[0] in HEAVY}
    assert not heavy
    assert not [name for name in new if name.startswith(("loky.pool", "loky.backend"))]
    others = {name for name in new if not name.startswith("loky")}
    # Each costs every cold start; raise the number only for a reason.
    assert len(others) <= 10, sorted(others)
