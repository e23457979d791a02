"""Ours side by side with other process pools: `python benchmarks/run.py`.

Every (round, figure, peer) is measured in an interpreter of its own that has a time limit, so a
peer that hangs costs a row and not the run. Within a round the peers take turns figure by figure,
in an order that is drawn anew each time from a printed seed: a slow minute of the machine hits
all of them. See README.md for what the figures mean and how to read the table.

Does not belong here: what is measured (figures.py), who is measured (peers.py), how a process is
contained (isolate.py), how the table looks (table.py).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import isolate
from figures import FIGURES, MARK, PROBES, Figure, Sizes
from peers import PEERS, Ours, Peer, Upstream
from table import Sample, render, times_better

CHILD = Path(__file__).with_name("child.py")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    figures = [figure.name for figure in FIGURES]
    peers = [peer.key for peer in PEERS]
    parser = argparse.ArgumentParser(
        description="Measure loky and other process pools side by side.",
        epilog=f"figures: {', '.join(figures)}. peers: {', '.join(peers)}.",
    )
    parser.add_argument("--json", metavar="PATH", type=Path, help="write everything to this file")
    parser.add_argument("--only", metavar="FIGURE", nargs="+", choices=figures, default=figures)
    parser.add_argument("--peers", metavar="PEER", nargs="+", choices=peers, default=peers)
    parser.add_argument("--rounds", type=int, help="default: 5, with --quick 2")
    parser.add_argument("--quick", action="store_true", help="less of everything: a smoke test")
    parser.add_argument("--seed", type=int, help="of the order; default: drawn and printed")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds a measurement may take")
    parser.add_argument(
        "--upstream",
        metavar="DIR",
        type=Path,
        help="where `pip install --target DIR` put upstream's loky; without it, upstream is "
        "present as joblib's copy only, whose import and workers also import joblib",
    )
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = 2 if options.quick else 5
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {options.rounds}")
    if options.upstream is not None and not (options.upstream / "loky").is_dir():
        parser.error("--upstream names a directory without a package `loky` in it")
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    return options


class Run:
    """One run: asks the measured interpreters and collects what they say."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.peers = [peer for peer in PEERS if peer.key in options.peers]
        self.figures = [figure for figure in FIGURES if figure.name in options.only]
        self.versions: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.samples: dict[tuple[str, str], Sample] = {
            (figure.name, peer.key): Sample() for figure in self.figures for peer in self.peers
        }
        self.remarks: list[str] = []

    def _environment(self, peer: type[Peer]) -> dict[str, str]:
        # Byte code is part of an import's cost only the first time: let it be kept.
        environment = {"PYTHONDONTWRITEBYTECODE": ""}
        if peer is Upstream and self.options.upstream is not None:
            path = [str(self.options.upstream.resolve()), os.environ.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        return environment

    def _ask(self, peer: type[Peer], probe: str) -> dict[str, Any]:
        """One measurement; the answer has one of the keys figures, version, missing, error."""
        size = "quick" if self.options.quick else "full"

        def command(scratch: str) -> list[str]:
            begin = str(time.monotonic())
            return [sys.executable, str(CHILD), peer.key, probe, size, scratch, begin]

        ended = isolate.run(command, self.options.limit, self._environment(peer))
        answer: dict[str, Any] | None = None
        for line in ended.stdout.splitlines():
            if line.startswith(MARK):
                answer = json.loads(line.removeprefix(MARK))
        if answer is None:
            answer = {"error": f"ended with status {ended.code} and no answer"}
            if ended.code is None:
                answer = {"error": f"hangs ({self.options.limit:g} s)"}
        elif ended.code is None:
            self.remarks.append(f"{peer.key}, {probe}: measured, but did not exit")
        elif ended.left and "figures" in answer and not self._lost(answer):
            self.remarks.append(f"{peer.key}, {probe}: left {ended.left} processes behind")
        if "error" in answer:
            self.remarks.append(f"{peer.key}, {probe}: {answer['error']}")
            if ended.stderr:
                last = ended.stderr.strip().splitlines()[-20:]
                print("\n".join([f"--- {peer.key}, {probe}", *last]), file=sys.stderr)
        return answer

    @staticmethod
    def _lost(answer: dict[str, Any]) -> bool:
        """A probe that met a hang leaves in a hurry, and its pool is nobody's fault then."""
        return any(isinstance(value, str) for value in answer["figures"].values())

    def identify(self) -> None:
        """Which peers are there; also fills the caches that a first import fills."""
        for peer in self.peers:
            answer = self._ask(peer, "version")
            if "version" in answer:
                self.versions[peer.key] = answer["version"]
                continue
            why = answer.get("missing") or "fails to import: " + answer["error"]
            self.missing[peer.key] = why
            for figure in self.figures:
                self.samples[figure.name, peer.key].add(why)

    def measure(self) -> None:
        order = random.Random(self.options.seed)
        wanted = {figure.probe for figure in self.figures}
        for turn in range(self.options.rounds):
            for probe in (name for name in PROBES if name in wanted):
                self._progress(f"round {turn + 1}/{self.options.rounds}: {probe}")
                peers = [peer for peer in self.peers if peer.key in self.versions]
                order.shuffle(peers)
                for peer in peers:
                    self._one(peer, probe)
        self._progress("")

    @staticmethod
    def _progress(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{text:40}\r", end="", file=sys.stderr, flush=True)

    def _one(self, peer: type[Peer], probe: str) -> None:
        figures = [figure for figure in self.figures if figure.probe == probe]
        able = [figure for figure in figures if figure.name not in peer.cannot]
        for figure in figures:
            if figure not in able:
                self.samples[figure.name, peer.key].add(f"cannot: {peer.cannot[figure.name]}")
        if not able:
            return
        answer = self._ask(peer, probe)
        for figure in able:
            value = answer.get("figures", {}).get(figure.name, answer.get("error"))
            if value is not None:
                self.samples[figure.name, peer.key].add(value)

    def table(self) -> str:
        titles = {peer.key: peer.title for peer in self.peers}
        return render(self.figures, titles, self.samples, Ours.key)

    def document(self) -> dict[str, Any]:
        """What `--json` writes: everything but names of this machine and its users."""

        def entry(figure: Figure, peer: type[Peer]) -> dict[str, Any]:
            sample = self.samples[figure.name, peer.key]
            ratio = times_better(figure, self.samples.get((figure.name, Ours.key)), sample)
            return {"peer": peer.key, **sample.summary(), "ours_times_better": ratio}

        return {
            "environment": environment(),
            "seed": self.options.seed,
            "rounds": self.options.rounds,
            "sizes": vars(Sizes(self.options.quick)),
            "versions": self.versions,
            "missing": self.missing,
            "remarks": self.remarks,
            "figures": [
                {
                    "figure": figure.name,
                    "title": figure.title,
                    "unit": "items per second" if figure.is_rate else "seconds",
                    "peers": [entry(figure, peer) for peer in self.peers],
                }
                for figure in self.figures
            ],
        }


def environment() -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "python": platform.python_implementation() + " " + platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "usable_cpus": usable,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "date": datetime.date.today().isoformat(),
        # joblib, mpire and upstream import these when they are there, in their workers as well.
        "optional": {name: _version(name) for name in ("numpy", "psutil", "dill", "multiprocess")},
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    run = Run(options)
    here = environment()
    print(
        f"{here['python']}, {here['system']}, {here['usable_cpus'] or here['cpus']} cpus, "
        f"load {here['load_average'][0]}, rounds {options.rounds}, seed {options.seed}"
    )
    optional = [f"{name} {found}" for name, found in here["optional"].items() if found]
    print(f"optional packages that peers import when present: {', '.join(optional) or 'none'}")
    run.identify()
    for peer in run.peers:
        version = run.versions.get(peer.key)
        print(f"  {peer.key:20}{version or 'NOT MEASURED: ' + run.missing[peer.key]}")
    begin = time.monotonic()
    stopped = False
    try:
        run.measure()
    except KeyboardInterrupt:
        stopped = True
        run.remarks.append("interrupted: fewer rounds than asked for")
    print("\n" + run.table() + "\n")
    for remark, count in {text: run.remarks.count(text) for text in run.remarks}.items():
        print(f"note: {remark}" + (f" ({count} times)" if count > 1 else ""))
    print(f"{time.monotonic() - begin:.0f} s, load afterwards {os.getloadavg()[0]:.2f}")
    if options.json is not None:
        options.json.write_text(json.dumps(run.document(), indent=2) + "\n", encoding="utf-8")
        print(f"written: {options.json}")
    if stopped:
        return 130
    return 1 if Ours.key in options.peers and Ours.key not in run.versions else 0


if __name__ == "__main__":
    sys.exit(main())
