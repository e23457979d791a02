"""`python -m loky chaos`: a pool under attack, and a judge who looks at every single task.

Guarantee: the exit code is 0 only if nothing at all was wrong; 1 for a wrong outcome or something
left behind, 3 for a hang (after the stacks of all threads). What is printed then names the command
that repeats the actions.
"""

from __future__ import annotations

import argparse
import logging
import random
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

from loky import ProcessPoolExecutor, __version__, cpu_count
from loky.chaos import strikes, tasks
from loky.chaos.driver import Drama, Report
from loky.chaos.plan import plan
from loky.chaos.remains import Remains
from loky.chaos.watchdog import Watchdog

LINE_SECONDS = 5.0
HISTORY_LINES = 60


def main(arguments: Sequence[str]) -> int:
    """Run episodes until the time is up or something is wrong.

    Parameters
    ----------
    arguments : sequence of str
        The options, see ``--help``.

    Returns
    -------
    int
        0 if all was well, 1 if something was wrong, 2 if there can be no chaos here.
    """
    options = _parse(arguments)
    why_not = strikes.possible()
    if why_not is not None:
        print(f"no chaos: {why_not}", file=sys.stderr)
        return 2
    _prepare()
    run = Run(options)
    print(
        f"loky {__version__}, Python {sys.version.split()[0]}, {cpu_count()} usable CPUs; "
        f"seed {options.seed}, up to {options.workers} workers",
        flush=True,
    )
    watchdog = Watchdog(options.patience, run.progress, run.describe)
    try:
        return run.run()
    finally:
        watchdog.stop()


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loky chaos",
        description="Strike the workers of a pool while it works, and judge every outcome.",
    )
    parser.add_argument("--seconds", type=_positive(float), default=30.0, help="default: 30")
    parser.add_argument("--seed", type=int, help="of all choices; default: drawn and printed")
    parser.add_argument(
        "--workers", type=_positive(int), default=4, help="in a pool, at most; default: 4"
    )
    parser.add_argument("--first", type=int, default=0, metavar="K", help="begin with episode K")
    parser.add_argument(
        "--episodes", type=_positive(int), metavar="N", help="end after so many, not by time"
    )
    parser.add_argument(
        "--patience",
        type=_positive(float),
        default=45.0,
        help="seconds without any event that count as a hang; default: 45",
    )
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    return options


def _positive(kind: Any) -> Any:
    def convert(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise ValueError
        return value

    convert.__name__ = f"positive {kind.__name__}"  # argparse names it in its message
    return convert


def _prepare() -> None:
    """What holds for this process and its workers."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    # Callbacks raise on purpose.
    logging.getLogger("concurrent.futures").setLevel(logging.CRITICAL + 1)
    # Tasks log and warn: it is to get here, not to be seen.
    logging.getLogger(tasks.LOGGER).addFilter(lambda record: False)
    warnings.simplefilter("ignore", tasks.ChaosWarning)
    with ProcessPoolExecutor(1) as pool:  # opens what all pools of a process share
        pool.submit(abs, -1).result()


class Run:
    """Episodes one after the other, and what came of them together."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.drama: Drama | None = None
        self._begin = time.monotonic()
        self._line = self._begin
        self._episodes = 0
        self._tasks = 0
        self._outcomes: Counter[str] = Counter()
        self._strikes: Counter[str] = Counter()

    def progress(self) -> object:
        """Changes whenever something happens."""
        return self._episodes, self.drama.stage.step if self.drama is not None else 0

    def describe(self) -> str:
        """What goes on now."""
        if self.drama is None:
            return "between two episodes"
        return f"{self.drama.describe()}\n{self._again(self.drama.episode.index)}"

    def run(self) -> int:
        """Until the time is up; the exit code."""
        options = self.options
        remains = Remains()
        while True:
            elapsed = time.monotonic() - self._begin
            if options.episodes is not None:
                if self._episodes >= options.episodes:
                    break
            elif elapsed >= options.seconds:
                break
            self.drama = Drama(
                plan(options.seed, options.first + self._episodes, options.workers), remains
            )
            report = self.drama.play()
            self.drama = None
            self._count(report)
            if report.problems:
                self._tell(report)
                return 1
            if time.monotonic() - self._line > LINE_SECONDS:
                self._line = time.monotonic()
                print(self._summary(), flush=True)
        print(f"{self._summary()}\nclean", flush=True)
        return 0

    def _count(self, report: Report) -> None:
        self._episodes += 1
        self._tasks += report.tasks
        self._outcomes.update(report.outcomes)
        self._strikes.update(report.strikes)

    def _summary(self) -> str:
        outcomes = ", ".join(f"{count:,} {name}" for name, count in self._outcomes.most_common())
        struck = ", ".join(f"{count:,} SIG{name}" for name, count in self._strikes.most_common())
        seconds = time.monotonic() - self._begin
        return (
            f"{seconds:6.1f} s  {self._episodes:,} pools, {self._tasks:,} tasks ({outcomes}); "
            f"strikes: {struck or 'none'}"
        )

    def _again(self, index: int) -> str:
        options = self.options
        return (
            "again: python -m loky chaos "
            f"--seed {options.seed} --workers {options.workers} --first {index} --episodes 1"
        )

    def _tell(self, report: Report) -> None:
        sys.stdout.flush()
        episode = report.episode
        text = "\n".join(report.problems)
        numbers = set(re.findall(r"\d+", text))
        lines = report.history[-HISTORY_LINES:]
        about = [
            line
            for line in report.history[:-HISTORY_LINES]
            if numbers & set(re.findall(r"\d+", line.partition(":")[2]))
        ]
        print(
            f"WRONG in episode {episode.index}: {episode.workers} workers, "
            f"{'reusable' if episode.reusable else 'own'}, {episode.options}, {episode.nuisances}, "
            f"ending {episode.ending}{' early' if episode.early else ''}",
            *["history of those concerned:", *about[-HISTORY_LINES:]],
            *["end of the history:", *lines],
            f"{len(report.problems)} problems:",
            *report.problems[:HISTORY_LINES],
            self._again(episode.index),
            sep="\n",
            file=sys.stderr,
        )
