"""No `if __name__ == "__main__"` is needed, wherever code comes from.

The same cells run as a script, with `-c`, from standard input, in interactive interpreters and in
the way of a notebook; each leaves a mark. A worker that imported or ran the main program again
would leave more marks, or start a pool of its own.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rendezvous import PATIENCE

# No blank lines inside a statement: an interactive interpreter would take them for its end.
CELLS = [
    """
import sys, enum, dataclasses
from loky import get_reusable_executor
executor = get_reusable_executor(max_workers=2)
print("begun")
""",
    """
def square(x):
    return x * x
""",
    """
assert list(executor.map(square, range(10))) == [x * x for x in range(10)]
print("function")
""",
    """
assert executor.submit(lambda x, y=1: x + y, 2).result() == 3
print("lambda")
""",
    """
def adder(n):
    def add(x):
        return x + n
    return add
""",
    """
assert list(executor.map(adder(5), [1, 2])) == [6, 7]
print("closure")
""",
    """
def is_even(n):
    return n == 0 or is_odd(n - 1)
""",
    """
def is_odd(n):
    return n != 0 and is_even(n - 1)
""",
    """
assert executor.submit(is_even, 10).result() is True
assert executor.submit(is_odd, 10).result() is False
print("mutual recursion")
""",
    """
class Point:
    def __init__(self, x):
        self.x = x
    def moved(self, by):
        return Point(self.x + by)
    @staticmethod
    def origin():
        return Point(0)
    @classmethod
    def at(cls, x):
        return cls(x)
class Point3(Point):
    def moved(self, by):
        assert isinstance(self, Point)
        return super().moved(by)
""",
    """
moved = executor.submit(Point(1).moved, 2).result()
assert type(moved) is Point and moved.x == 3
assert type(executor.submit(Point3(1).moved, 2).result()) is Point
assert type(executor.submit(lambda p: p, Point3(1)).result()) is Point3
assert type(executor.submit(Point.origin).result()) is Point
assert type(executor.submit(Point3.at, 1).result()) is Point3
assert executor.submit(lambda p: isinstance(p, Point), Point3(0)).result()
print("instances")
""",
    """
def make():
    class Local:
        value = 7
    return Local
""",
    """
Local = make()
assert isinstance(executor.submit(Local).result(), Local)
assert executor.submit(lambda: Local).result() is Local
foreign = executor.submit(make).result()
assert foreign is not Local and foreign().value == 7
print("local classes")
""",
    """
class Colour(enum.Enum):
    RED = 1
@dataclasses.dataclass
class Record:
    colour: Colour
class Trouble(Exception):
    pass
def trouble():
    raise Trouble("here")
""",
    """
assert executor.submit(lambda c: c, Colour.RED).result() is Colour.RED
assert executor.submit(Record, Colour.RED).result() == Record(Colour.RED)
try:
    executor.submit(trouble).result()
except Trouble as error:
    assert error.args == ("here",)
    print("enum, dataclass, exception")
""",
    """
offset = 3
def shifted(x):
    return x + offset
""",
    """
assert executor.submit(shifted, 1).result() == 4
offset = 10
assert set(executor.map(shifted, [1] * 20)) == {11}
print("globals as they are now")
""",
    """
from functools import lru_cache
@lru_cache(maxsize=20)
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)
""",
    """
assert executor.submit(fibonacci, 15).result() == 610
info = executor.submit(lambda: (fibonacci(15), fibonacci.cache_info())[1]).result()
assert info.maxsize == 20 and info.hits and info.misses == 16
assert executor.submit(lru_cache(shifted), 1).result() == 11
print("cached functions")
""",
    """
def nested(x):
    from loky import ProcessPoolExecutor
    with ProcessPoolExecutor(1) as inner:
        return inner.submit(square, x).result()
""",
    """
assert executor.submit(nested, 4).result() == 16
print("nested")
""",
    """
assert executor.submit(lambda: hasattr(sys.modules["__main__"], "__file__")).result() is False
assert executor.submit(lambda: sys.argv).result() == sys.argv
print("end")
""",
]
SCRIPT = "\n".join(CELLS)
MARKS = [
    "begun",
    "function",
    "lambda",
    "closure",
    "mutual recursion",
    "instances",
    "local classes",
    "enum, dataclass, exception",
    "globals as they are now",
    "cached functions",
    "nested",
    "end",
]


def script(folder: Path) -> tuple[list[str], str]:
    (folder / "program.py").write_text(SCRIPT)
    return [str(folder / "program.py"), "an argument"], ""


def module(folder: Path) -> tuple[list[str], str]:
    script(folder)
    return ["-m", "program"], ""


def package(folder: Path) -> tuple[list[str], str]:
    (folder / "packed").mkdir()
    (folder / "packed" / "__main__.py").write_text(SCRIPT)
    return ["packed"], ""


def command_line(folder: Path) -> tuple[list[str], str]:
    return ["-c", SCRIPT, "an argument"], ""


def standard_input(folder: Path) -> tuple[list[str], str]:
    return ["-"], SCRIPT


def interactive(folder: Path) -> tuple[list[str], str]:
    lines = SCRIPT.splitlines()
    typed = ""
    for statement in ast.parse(SCRIPT).body:
        decorators = [d.lineno for d in getattr(statement, "decorator_list", [])]
        start = min([statement.lineno, *decorators])
        typed += "\n".join(lines[start - 1 : statement.end_lineno]) + "\n\n"
    return ["-q", "-i"], typed


def interpreter(folder: Path) -> tuple[list[str], str]:
    """Like an embedded console: what is typed belongs to no module at all."""
    driver = (
        "import code\n"
        "console = code.InteractiveInterpreter()\n"
        f"for cell in {CELLS!r}:\n"
        "    assert console.runsource(cell, symbol='exec') is False\n"
    )
    (folder / "driver.py").write_text(driver)
    return ["driver.py"], ""


def notebook(folder: Path) -> tuple[list[str], str]:
    """Like IPython: cells run in a module that takes the place of `__main__`."""
    driver = (
        "import sys, types\n"
        "main = sys.modules['__main__'] = types.ModuleType('__main__')\n"
        f"for number, cell in enumerate({CELLS!r}):\n"
        "    exec(compile(cell, f'<cell {number}>', 'exec'), main.__dict__)\n"
    )
    (folder / "driver.py").write_text(driver)
    return ["driver.py"], ""


@pytest.mark.parametrize(
    "way",
    [
        script,
        module,
        package,
        command_line,
        standard_input,
        interactive,
        interpreter,
        notebook,
    ],
    ids=lambda way: way.__name__,
)
def test_without_a_guard(way: Callable[[Path], tuple[list[str], str]], tmp_path: Path) -> None:
    arguments, typed = way(tmp_path)
    done = subprocess.run(
        [sys.executable, *arguments],
        input=typed,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.splitlines() == MARKS, done.stderr
    noise = done.stderr.replace(">>>", "").replace("...", "").strip()  # the prompts
    assert noise == ""
    assert done.returncode == 0
