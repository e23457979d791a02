"""joblib on ours, through its backend, and on its own loky: `python benchmarks/through_joblib.py`.

Every (round, figure, peer) is measured in an interpreter of its own with a time limit; within a
round the peers take turns figure by figure, in an order drawn from a printed seed. joblib is the
installed one, unmodified. See README.md for the figures.

Does not belong here: how a process is contained (isolate.py), how the table looks (table.py).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MARK = "through_joblib: "
OURS = "ours"
TITLES = {OURS: "loky (this one), register()", "joblib": "joblib's own loky"}


# What is measured, in an interpreter of its own ---------------------------------------------------


def tiny(size: int) -> Callable[[], object]:
    """Functions that do next to nothing: what remains is the cost of joblib and its backend."""
    from joblib import Parallel, delayed

    def call() -> None:
        results = Parallel(n_jobs=2)(delayed(abs)(-number) for number in range(size))
        assert results == list(range(size))

    return call


def shared(size: int) -> Callable[[], object]:
    """Tasks that all look at one array of 50 MB: it crosses as a file that all of them map."""
    import numpy as np
    from joblib import Parallel, delayed

    # A new one each time: joblib remembers which arrays it has written.
    def call() -> None:
        array = np.ones(6_250_000)
        results = Parallel(n_jobs=2)(delayed(np.sum)(array) for _ in range(size))
        assert results == [array.size] * size

    return call


def failing(size: int) -> Callable[[], object]:
    """A call of which one task raises, and one after it, which needs workers again."""
    from joblib import Parallel, delayed

    def call() -> None:
        try:
            Parallel(n_jobs=2)(delayed(int)(number) for number in ["x", *"123"])
        except ValueError:
            pass
        results = Parallel(n_jobs=2)(delayed(abs)(-number) for number in range(size))
        assert results == list(range(size))

    return call


WORK = {"tiny": (tiny, 10_000), "shared": (shared, 200), "failing": (failing, 10)}


def child(peer: str, work: str, quick: bool) -> None:
    """Measure: the first call, and the median of those that follow."""
    import statistics

    make, size = WORK[work]
    begin = time.perf_counter()
    import joblib  # noqa: F401

    if peer == OURS:
        from loky.integrations.joblib import register

        register(make_default=True)
    call = make(size // 10 if quick and size > 10 else size)
    ready = time.perf_counter()
    call()
    first = time.perf_counter()
    times = []
    for _ in range(2 if quick else 7):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    answer = {
        "import": ready - begin,
        f"{work}-first": first - ready,
        f"{work}-whole": first - begin,
        work: statistics.median(times),
    }
    print(MARK + json.dumps(answer), flush=True)


# The run -----------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    import isolate
    from figures import Figure
    from table import Sample, render

    parser = argparse.ArgumentParser(description="joblib on this library and on its own loky.")
    parser.add_argument("--json", metavar="PATH", type=Path, help="write every value to this file")
    parser.add_argument("--only", metavar="WORK", nargs="+", choices=list(WORK), default=list(WORK))
    parser.add_argument("--rounds", type=int, help="default: 7, with --quick 2")
    parser.add_argument("--quick", action="store_true", help="less of everything: a smoke test")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--limit", type=float, default=120.0, help="seconds one may take")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (2 if options.quick else 7)

    figures = [Figure("import", "import joblib, and register", "ms", "")]
    for work in options.only:
        _, size = WORK[work]
        figures += [
            Figure(work, f"{size:,} tasks, workers there: median of seven calls", "ms", work),
            Figure(f"{work}-first", "the first call, which starts them", "ms", work),
            Figure(f"{work}-whole", "the same with the imports", "ms", work),
        ]
    samples = {(figure.name, peer): Sample() for figure in figures for peer in TITLES}
    order = random.Random(options.seed)
    print(
        f"joblib {metadata.version('joblib')}, loky {metadata.version('loky')}, "
        f"Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.2f}, rounds {rounds}, "
        f"seed {options.seed}"
    )
    failed = False
    for _ in range(rounds):
        for work in options.only:
            for peer in order.sample(list(TITLES), len(TITLES)):

                def command(scratch: str, peer: str = peer, work: str = work) -> list[str]:
                    size = "quick" if options.quick else "full"
                    return [sys.executable, __file__, "child", peer, work, size]

                # Byte code is part of an import's cost only the first time: let it be kept.
                ended = isolate.run(command, options.limit, {"PYTHONDONTWRITEBYTECODE": ""})
                answer: dict[str, Any] = {}
                for line in ended.stdout.splitlines():
                    if line.startswith(MARK):
                        answer = json.loads(line.removeprefix(MARK))
                if not answer:
                    failed = True
                    print(ended.stderr, file=sys.stderr)
                    samples[work, peer].add(f"ended with status {ended.code} and no answer")
                for name, value in answer.items():
                    samples[name, peer].add(value)
    print("\n" + render(figures, TITLES, samples, OURS) + "\n")
    if options.json is not None:
        summary = {f"{name} {peer}": sample.summary() for (name, peer), sample in samples.items()}
        options.json.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], sys.argv[3], sys.argv[4] == "quick")
        sys.exit()
    sys.exit(main())
