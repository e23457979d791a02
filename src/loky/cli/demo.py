"""`python -m loky demo`: real work in parallel, with a worker killed on the way.

The work: every source file of the running Python's standard library is measured (tokens, functions,
classes, and for each function a complexity figure in the manner of McCabe), once in this process
and once in a pool. While the pool works, one worker is killed in the middle of a task.

Guarantee: the exit code is 0 only if every file was measured, the pool's figures are the same as
those of the serial run, and the killed task, and only that one, failed with TerminatedWorkerError.

Assumption: this file is executed as `__main__` (`loky.__main__` sees to that), so that `measure`,
its helpers and `Measured` cannot be imported by the workers and have to travel there by value.
That is what happens to functions of a script, a notebook or a prompt.

Does not belong here: anything that a dependency other than loky's own is needed for.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import platform
import signal
import socket
import sys
import sysconfig
import time
import tokenize
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from loky import ProcessPoolExecutor, __version__, cpu_count
from loky.cli.table import format_table
from loky.process_executor import TerminatedWorkerError

# Folders of the standard library that are large and hold no library code: tests (some with syntax
# errors on purpose) and, in old versions, the grammar fixtures of 2to3. Installed packages live in
# folders below the standard library without being part of it.
LEFT_OUT = ("test", "tests", "lib2to3")
NOT_STANDARD = ("site-packages", "dist-packages", "__pycache__")

# How long the worker that is going to be killed may take to report for it, in seconds.
PATIENCE = 60.0

# The work: everything from here to `hold_still` runs in the workers ------------------------------

BRANCHES = frozenset(
    {
        ast.Assert,
        ast.AsyncFor,
        ast.ExceptHandler,
        ast.For,
        ast.If,
        ast.IfExp,
        ast.While,
        ast.match_case,
    }
)

WITHOUT_MEANING = frozenset(
    {
        tokenize.COMMENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
        tokenize.INDENT,
        tokenize.NEWLINE,
        tokenize.NL,
    }
)


class Measured(NamedTuple):
    """What was found in one file; `error` says why nothing was, when that is so."""

    path: str
    lines: int = 0
    tokens: int = 0
    functions: int = 0
    classes: int = 0
    complexity: int = 0  # the sum over all functions
    highest: int = 0  # the highest of one function, which is
    most_complex: str = ""
    error: str = ""
    pid: int = 0  # of the process that measured


def measure(path: str) -> Measured:
    """Measure one file. A file that cannot be parsed gives a result with an `error`."""
    source = Path(path).read_bytes()
    try:
        tokens = sum(
            token.type not in WITHOUT_MEANING
            for token in tokenize.tokenize(io.BytesIO(source).readline)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about a file is not our subject
            tree = ast.parse(source)
    except (SyntaxError, tokenize.TokenError, ValueError, RecursionError) as error:
        return Measured(path, error=f"{type(error).__name__}: {error}", pid=os.getpid())
    functions, classes = complexities(tree)
    highest, most_complex = max(
        ((figure, name) for name, figure in functions), default=(0, ""), key=lambda pair: pair[0]
    )
    return Measured(
        path,
        lines=len(source.splitlines()),
        tokens=tokens,
        functions=len(functions),
        classes=classes,
        complexity=sum(figure for _, figure in functions),
        highest=highest,
        most_complex=most_complex,
        pid=os.getpid(),
    )


def complexities(tree: ast.AST) -> tuple[list[tuple[str, int]], int]:
    """Return (qualified name, complexity) of each function, and the number of classes.

    The complexity of a function is 1 plus the points at which its control flow parts; a function
    within a function has a figure of its own.
    """
    names: list[str] = []
    figures: list[int] = []
    classes = 0
    # (node, index of the function that it belongs to or -1, prefix of names defined in it)
    to_visit: list[tuple[ast.AST, int, str]] = [(tree, -1, "")]
    while to_visit:
        node, owner, prefix = to_visit.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            owner = len(names)
            names.append(prefix + node.name)
            figures.append(1)
            prefix += node.name + "."
        elif isinstance(node, ast.ClassDef):
            classes += 1
            prefix += node.name + "."
        elif owner >= 0:
            figures[owner] += branches(node)
        to_visit.extend((child, owner, prefix) for child in ast.iter_child_nodes(node))
    return list(zip(names, figures, strict=True)), classes


def branches(node: ast.AST) -> int:
    """The number of ways that this node adds to those through its function."""
    if type(node) in BRANCHES:
        return 1
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return 0


def hold_still(address: tuple[str, int]) -> str:
    """Tell the process at `address` our own process id, then wait to be killed by it."""
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        connection.settimeout(None)
        connection.sendall(str(os.getpid()).encode())
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # nothing is ever sent: the other side kills, or closes and gives up
    return "was not killed"


# The two runs ------------------------------------------------------------------------------------


class ParallelRun(NamedTuple):
    """The outcome of the run with a pool."""

    results: list[Measured]
    seconds: float
    killed: int  # process id
    error: BaseException | None  # of the task whose worker was killed


def run_serially(paths: Sequence[str]) -> tuple[list[Measured], float]:
    """Measure all files in this process; return the results and the seconds it took."""
    began = time.perf_counter()
    results = [measure(path) for path in paths]
    return results, time.perf_counter() - began


def run_in_pool(paths: Sequence[str], workers: int) -> ParallelRun:
    """Measure all files in a pool that is started for it, and kill one of its workers meanwhile."""
    chunksize = max(1, len(paths) // (workers * 32))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        began = time.perf_counter()
        with ProcessPoolExecutor(max_workers=workers) as pool:
            held = pool.submit(hold_still, listener.getsockname())
            results = pool.map(measure, paths, chunksize=chunksize)
            # The worker that has `held` reports while the others already measure.
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(PATIENCE)
                pid = int(connection.recv(64))
                os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
                measured = list(results)
                seconds = time.perf_counter() - began
                error = held.exception(timeout=PATIENCE)
    return ParallelRun(measured, seconds, pid, error)


def problems(serial: Sequence[Measured], run: ParallelRun) -> list[str]:
    """Everything about the run with the pool that is not as it has to be."""
    found = []
    if len(run.results) != len(serial):
        found.append(f"{len(run.results)} of {len(serial)} files were measured")
    by_path = {result.path: result._replace(pid=0) for result in run.results}
    different = [each.path for each in serial if by_path.get(each.path) != each._replace(pid=0)]
    if different:
        found.append(f"{len(different)} files have other figures, first {different[0]}")
    if any(result.pid == os.getpid() for result in run.results):
        found.append("some files were measured by this process and not by a worker")
    if not isinstance(run.error, TerminatedWorkerError):
        found.append(f"the task whose worker was killed ended with {run.error!r}")
    if measure.__module__ != "__main__":
        found.append(f"the function is defined in {measure.__module__}, not in __main__")
    return found


# What is shown -----------------------------------------------------------------------------------


def standard_library(limit: int | None = None) -> tuple[Path, list[str]]:
    """Return the folder of the standard library and the files to measure, sorted by path.

    With a `limit`, they are spread evenly over all that there are.
    """
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {*LEFT_OUT, *NOT_STANDARD}
    found = sorted(
        str(path)
        for path in root.rglob("*.py")
        if skipped.isdisjoint(path.relative_to(root).parts[:-1])
    )
    if limit is not None and limit < len(found):
        found = [found[index * len(found) // limit] for index in range(limit)]
    return root, found


def package_of(path: str, root: Path) -> str:
    """The top-level package or module that a file of the standard library belongs to."""
    return Path(path).relative_to(root).parts[0].removesuffix(".py")


def summary(results: Iterable[Measured], root: Path, rows: int = 15) -> str:
    """A table of the largest packages and modules, the others together, and all together."""
    by_package: dict[str, list[Measured]] = {}
    every = list(results)
    for result in every:
        by_package.setdefault(package_of(result.path, root), []).append(result)
    largest = sorted(
        by_package, key=lambda name: (-sum(each.tokens for each in by_package[name]), name)
    )
    table = [_row(name, by_package[name]) for name in largest[:rows]]
    if largest[rows:]:
        others = [each for name in largest[rows:] for each in by_package[name]]
        table.append(_row(f"({len(largest) - rows} others)", others))
    table.append(_row("all", every))
    header = "package", "files", "lines", "tokens", "functions", "classes", "mean", "max", "in"
    return format_table(header, table)


def _row(name: str, results: Sequence[Measured]) -> list[str | int]:
    functions = sum(each.functions for each in results)
    top = max(results, key=lambda each: each.highest)
    return [
        name,
        len(results),
        sum(each.lines for each in results),
        sum(each.tokens for each in results),
        functions,
        sum(each.classes for each in results),
        f"{sum(each.complexity for each in results) / functions:4.1f}" if functions else "   -",
        top.highest,
        _short(f"{Path(top.path).name}: {top.most_complex}") if top.most_complex else "",
    ]


def _short(text: str, width: int = 34) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def main(arguments: Sequence[str]) -> int:
    """Run the demonstration.

    Parameters
    ----------
    arguments : sequence of str
        The options, see ``--help``.

    Returns
    -------
    int
        0 if everything came out right, 1 if not.
    """
    options = _parse(arguments)
    root, paths = standard_library(options.limit)
    if not paths:
        print(f"There are no source files in {root}: this Python ships without them.")
        return 1
    # Reading them here first also means that neither run below pays for a cold disk.
    size = sum(len(Path(path).read_bytes()) for path in paths)
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"loky {__version__}, {python} on {sys.platform}, {cpu_count()} usable CPUs\n")
    print(f"Measuring {len(paths)} files ({size / 1e6:.1f} MB) of the standard library")
    print(f"in {root} (left out: folders {', '.join(LEFT_OUT)}) ...\n", flush=True)

    serial, serial_seconds = run_serially(paths)
    run = run_in_pool(paths, options.workers)

    print(summary(run.results, root))
    print("mean, max: of the complexity of functions; in: where the highest is\n")
    unparsable = [each for each in run.results if each.error]
    print(f"Files that could not be parsed: {len(unparsable)}")
    for each in unparsable[:5]:
        print(f"    {each.path}: {each.error}")

    print(f"\nOne worker (process {run.killed}) was killed while it ran a task. That task got:")
    text = f"{type(run.error).__name__}: {run.error}"
    for line in text.splitlines()[:6]:
        print(f"    {line}")
    processes = len({each.pid for each in run.results})
    print(
        f"The rest of the work arrived: {len(run.results)} of {len(paths)} files measured, by "
        f"{processes} worker processes."
    )

    print(f"\nserial    {serial_seconds:6.2f} s in one process")
    print(
        f"parallel  {run.seconds:6.2f} s with {options.workers} workers, including their start and "
        f"the one that was killed: {serial_seconds / run.seconds:.2f} times as fast"
    )
    wrong = problems(serial, run)
    for problem in wrong:
        print(f"WRONG: {problem}")
    if not wrong:
        print("\nAll figures are the same in both runs.")
    return 1 if wrong else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loky demo",
        description="Measure the source files of the standard library, serially and with a pool of "
        "workers of which one is killed on the way, and check that nothing is missing.",
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        default=cpu_count(),
        metavar="N",
        help="number of worker processes; default: the usable CPUs, %(default)s",
    )
    parser.add_argument(
        "--limit", type=_positive, metavar="N", help="number of files; default: all"
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} given, a whole number from 1 on is needed")
    return number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
