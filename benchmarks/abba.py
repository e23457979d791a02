"""Two versions of loky against each other, in turns: `python benchmarks/abba.py OLD NEW`.

OLD and NEW are folders that `pip install --target DIR --no-deps .` has filled. They take turns in
the order ABBA, each measurement in an interpreter of its own; two neighbours make a pair. For each
figure the logarithm of the ratio new / old (of times: above 1 is slower) is averaged over the
pairs, with the 95 % interval of Student's t.

What is measured: see `PROBE`. Each figure is the best of several batches within a process, as what
disturbs a machine only ever makes it slower.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence

PROBE = """
import json, time
from concurrent.futures import wait
from loky import get_reusable_executor

executor = get_reusable_executor(max_workers=2)
list(executor.map(abs, range(2000)))

def best(batches, batch):
    return min(batch() for _ in range(batches))

def round_trips():
    start = time.perf_counter()
    for n in range(300):
        executor.submit(abs, n).result()
    return (time.perf_counter() - start) / 300

def submissions():
    start = time.perf_counter()
    wait([executor.submit(abs, n) for n in range(3000)])
    return (time.perf_counter() - start) / 3000

def mapped():
    start = time.perf_counter()
    for _ in executor.map(abs, range(5000)):
        pass
    return (time.perf_counter() - start) / 5000

print(json.dumps({
    "round trip": best(8, round_trips),
    "submit and wait, a task": best(8, submissions),
    "map, a task": best(8, mapped),
}))
"""

# Two-sided 95 % quantiles of Student's t by degrees of freedom (any table; between two entries the
# smaller one, which is the wider interval).
T95 = {5: 2.571, 9: 2.262, 14: 2.145, 19: 2.093, 24: 2.064, 29: 2.045, 39: 2.023, 59: 2.001}


def measure(folder: str) -> dict[str, float]:
    """The figures of one version, in seconds."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**os.environ, "PYTHONPATH": folder},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Mean ratio and its 95 % interval."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    degrees = len(logs) - 1
    t = T95[max(known for known in T95 if known <= max(5, degrees))]
    half = t * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare two versions of loky, in turns.")
    parser.add_argument("old", help="a folder that holds the old version's package")
    parser.add_argument("new", help="a folder that holds the new version's package")
    parser.add_argument("--pairs", type=int, default=20, help="at least 6; default: 20")
    options = parser.parse_args()
    if options.pairs < 6:
        parser.error(f"--pairs must be at least 6, not {options.pairs}")
    ratios: dict[str, list[float]] = {}
    for pair in range(options.pairs):
        order = (options.old, options.new) if pair % 2 == 0 else (options.new, options.old)
        first, second = measure(order[0]), measure(order[1])
        old, new = (first, second) if pair % 2 == 0 else (second, first)
        for name in old:
            ratios.setdefault(name, []).append(new[name] / old[name])
    print(f"{options.pairs} pairs, ABBA; time of the new version / time of the old one")
    for name, values in ratios.items():
        mean, low, high = interval(values)
        print(f"{name:28} {mean:.3f}   95 %: {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
