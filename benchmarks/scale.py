"""Does our executor stay cheap and clean when there is a lot of it? `python benchmarks/scale.py`.

Four questions, each with a bound that can be set: does a task cost the same with a million queued
as with ten thousand, and with 64 workers as with 2; is an idle pool asleep; does a pool that was
shut down leave anything behind. Prints a table for each, and exits with 1 if a bound is violated
or a measurement fails. Every measurement runs in an interpreter of its own, with a time limit;
those that are compared with each other take turns over the rounds, and medians are compared.

Assumes Linux. Does not belong here: what happens in the measured interpreters (scale_probes.py),
comparison with other pools (run.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import isolate
from figures import MARK
from run import environment
from table import grid, number

PROBES = Path(__file__).with_name("scale_probes.py")


class Failed(Exception):
    """A measurement gave no answer."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="smaller defaults: a smoke test")
    parser.add_argument("--rounds", type=int, help="of queue and workers; default 3, quick 1")
    parser.add_argument("--json", metavar="PATH", type=Path)
    parser.add_argument("--limit", type=float, default=900.0, help="seconds for one measurement")

    part = parser.add_argument_group("queue: memory and time of a task, by tasks queued")
    part.add_argument("--tasks", type=int, nargs="+", help="default 10000 100000 1000000")
    part.add_argument("--max-memory-growth", type=float, default=1.5, help="x the smallest's")
    part.add_argument("--max-time-growth", type=float, default=1.5, help="x the smallest's")

    part = parser.add_argument_group("workers: time of a task, by number of workers")
    part.add_argument("--worker-counts", type=int, nargs="+", help="default 2 4 8 16 32 64")
    part.add_argument("--worker-tasks", type=int, help="default 20000")
    part.add_argument("--max-cost-growth", type=float, default=1.5, help="x the fewest's")

    part = parser.add_argument_group("idle: wake-ups of an idle pool of two")
    part.add_argument("--idle-seconds", type=int, help="default 10")
    part.add_argument("--max-wake-ups", type=int, default=0)

    part = parser.add_argument_group("cycles: what is left after many pools")
    part.add_argument("--cycles", type=int, help="default 1000")
    part.add_argument("--warm-up-cycles", type=int, default=20)
    part.add_argument("--max-left", type=int, default=0, help="of anything that can be counted")
    part.add_argument("--max-rss-growth", type=float, default=2.0, help="MB")

    options = parser.parse_args(arguments)
    unknown = set(options.what) - set(PARTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    options.what = options.what or list(PARTS)
    quick = options.quick
    options.rounds = options.rounds or (1 if quick else 3)
    options.tasks = options.tasks or ([10_000, 50_000] if quick else [10_000, 100_000, 1_000_000])
    options.worker_counts = options.worker_counts or ([2, 8] if quick else [2, 4, 8, 16, 32, 64])
    options.worker_tasks = options.worker_tasks or (5_000 if quick else 20_000)
    options.idle_seconds = options.idle_seconds or (3 if quick else 10)
    options.cycles = options.cycles or (50 if quick else 1000)
    return options


def ask(options: argparse.Namespace, probe: str, *numbers: int) -> Any:
    """Run one probe in a fresh interpreter and return what it measured."""

    def command(scratch: str) -> list[str]:
        return [sys.executable, str(PROBES), probe, scratch, *map(str, numbers)]

    ended = isolate.run(command, options.limit)
    for line in ended.stdout.splitlines():
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    if ended.code is None:
        raise Failed(f"no answer within {options.limit:g} s")
    raise Failed("\n".join(ended.stderr.strip().splitlines()[-20:]) or f"status {ended.code}")


def by_size(
    options: argparse.Namespace, probe: str, sizes: Sequence[int], *numbers: int
) -> dict[int, dict[str, float]]:
    """Medians for each size; the sizes take turns, so that a slow minute hits them all."""
    seen: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    for _ in range(options.rounds):
        for size in sizes:
            seen[size].append(ask(options, probe, size, *numbers))
    return {
        size: {name: statistics.median(one[name] for one in answers) for name in answers[0]}
        for size, answers in seen.items()
    }


class Verdicts:
    """Collects the bounds that were checked."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def check(self, what: str, value: float, bound: float) -> None:
        good = value <= bound
        self.all.append({"what": what, "value": value, "bound": bound, "good": good})
        print(f"  {'ok      ' if good else 'VIOLATED'}  {what}: {value:.4g}, at most {bound:.4g}")


def check_queue(options: argparse.Namespace, verdicts: Verdicts) -> Any:
    found = by_size(options, "queue", options.tasks)
    first = found[options.tasks[0]]
    rows = [
        [
            f"{size:,}",
            number(one["memory"]),
            number(one["submit"] * 1e6),
            number(one["drain"] * 1e6),
            number((one["submit"] + one["drain"]) * 1e6),
            "",
        ]
        for size, one in found.items()
    ]
    head = ["tasks queued", "bytes/task", "submit us/task", "drain us/task", "total us/task", ""]
    print(grid(head, [("", rows)]))
    memory = max(one["memory"] / first["memory"] for one in found.values())
    total = max(
        (one["submit"] + one["drain"]) / (first["submit"] + first["drain"])
        for one in found.values()
    )
    verdicts.check("growth of memory per queued task", memory, options.max_memory_growth)
    verdicts.check("growth of time per queued task", total, options.max_time_growth)
    return found


def check_workers(options: argparse.Namespace, verdicts: Verdicts) -> Any:
    found = by_size(options, "workers", options.worker_counts, options.worker_tasks)
    first = found[options.worker_counts[0]]
    rows = [
        [
            f"{size}",
            number(one["start"] * 1e3),
            number(one["wall"] * 1e6),
            number(one["cpu"] * 1e6),
            "",
        ]
        for size, one in found.items()
    ]
    head = ["workers", "all busy after ms", "us/task", "of it parent's cpu us/task", ""]
    print(grid(head, [("", rows)]))
    growth = max(one["wall"] / first["wall"] for one in found.values())
    verdicts.check("growth of time per task", growth, options.max_cost_growth)
    return found


def check_idle(options: argparse.Namespace, verdicts: Verdicts) -> Any:
    found = ask(options, "idle", options.idle_seconds)
    others = found["total_wake_ups"] - found["parent_wake_ups"]
    rows = [
        ["parent", str(found["parent_threads"]), str(found["parent_wake_ups"]), ""],
        [
            f"{found['processes'] - 1} others",
            str(found["threads"] - found["parent_threads"]),
            str(others),
            "",
        ],
    ]
    print(grid(["process", "threads", f"wake-ups in {options.idle_seconds} s", ""], [("", rows)]))
    for thread, count in found["wake_ups"].items():
        print(f"  woke {count} times: pid/tid {thread}")
    verdicts.check("wake-ups while idle", found["total_wake_ups"], options.max_wake_ups)
    return found


def check_cycles(options: argparse.Namespace, verdicts: Verdicts) -> Any:
    found = ask(options, "cycles", options.cycles, options.warm_up_cycles)
    rows = []
    left: dict[str, int] = {}
    for name, before in found["before"].items():
        after = found["after"][name]
        if isinstance(before, list):
            new = sorted(set(after) - set(before))
            left[name] = len(new)
            rows.append([name, str(len(before)), str(len(after)), " ".join(new[:5])])
        else:
            left[name] = after - before
            rows.append([name, str(before), str(after), ""])
    grown = [value / 1e6 for value in found["rss"]]
    rows.append(["memory, MB", number(grown[0]), number(grown[1]), ""])
    print(grid(["what", "before", f"after {options.cycles} pools", "new"], [("", rows)]))
    print(f"  {found['seconds'] * 1e3:.1f} ms for a pool: make, use, shut down")
    for name, count in left.items():
        verdicts.check(f"{name} left", count, options.max_left)
    verdicts.check("growth of memory, MB", grown[1] - grown[0], options.max_rss_growth)
    return found


PARTS: dict[str, Callable[[argparse.Namespace, Verdicts], Any]] = {
    "queue": check_queue,
    "workers": check_workers,
    "idle": check_idle,
    "cycles": check_cycles,
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    verdicts = Verdicts()
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name in options.what:
        print(f"\n== {name}")
        try:
            found[name] = PARTS[name](options, verdicts)
        except Failed as error:
            failed[name] = str(error)
            print(f"  FAILED: {error}")
    bad = [verdict["what"] for verdict in verdicts.all if not verdict["good"]]
    print("\nviolated: " + "; ".join(bad) if bad else "\nno bound violated")
    if failed:
        print(f"failed: {', '.join(failed)}")
    if options.json is not None:
        document = {
            "environment": environment(),
            "found": found,
            "verdicts": verdicts.all,
            "failed": failed,
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 1 if bad or failed else 0


if __name__ == "__main__":
    sys.exit(main())
