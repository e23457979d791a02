"""The same chaos for other pools: `python benchmarks/chaos_peers.py`.

Drives each pool with the same plans (`loky.chaos.plan`: the calls and strikes that any pool can be
asked for), each in an interpreter of its own with a time limit, and prints what became of the
tasks. docs/robustness.md explains the columns and shows the table of a real run.

Does not belong here: how one peer is driven (chaos_child.py), who the peers are (peers.py).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import isolate
from chaos_child import LEVELS, MARK
from peers import PEERS, Peer, Upstream
from run import environment
from table import grid

HERE = Path(__file__).parent
CHAOS = HERE.parent / "src" / "loky" / "chaos"
# Those that differ under chaos; workers of a fork server are not children that could be struck.
KEYS = ("ours", "upstream", "futures-spawn", "mp-pool", "pebble", "mpire")
COUNTS = ("tasks", "done", "own", "struck", "innocent", "lost", "wrong", "twice", "replaced")
LIMIT = 120.0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The same chaos for loky and other pools.")
    parser.add_argument("--peers", metavar="PEER", nargs="+", choices=KEYS, default=KEYS)
    parser.add_argument("--levels", nargs="+", choices=list(LEVELS), default=list(LEVELS))
    parser.add_argument("--episodes", type=int, default=3, help="for each level; default: 3")
    parser.add_argument("--seed", type=int, default=1, help="of the plans; default: 1")
    parser.add_argument("--json", metavar="PATH", type=Path, help="write everything to this file")
    parser.add_argument(
        "--upstream", metavar="DIR", type=Path, help="see `run.py`: upstream's own distribution"
    )
    return parser.parse_args(arguments)


def ask(
    peer: type[Peer], level: str, index: int, options: argparse.Namespace, path: str
) -> dict[str, Any]:
    """What one episode made of one peer."""
    first = [path]
    if peer is Upstream and options.upstream is not None:
        first.insert(0, str(options.upstream.resolve()))
    python_path = os.pathsep.join([*first, *filter(None, [os.environ.get("PYTHONPATH")])])

    def command(scratch: str) -> list[str]:
        script = str(HERE / "chaos_child.py")
        return [sys.executable, script, peer.key, level, str(options.seed), str(index), scratch]

    ended = isolate.run(command, LIMIT, {"PYTHONPATH": python_path})
    for line in ended.stdout.splitlines():
        if line.startswith(MARK):
            answer: dict[str, Any] = json.loads(line.removeprefix(MARK))
            return answer
    last = ended.stderr.strip().splitlines()[-1:] or ["no answer"]
    return {"error": f"status {ended.code}: {last[0]}"}


def row(title: str, answers: list[dict[str, Any]]) -> list[str]:
    """One peer's line: the episodes together."""
    good = [answer for answer in answers if "error" not in answer]
    cells = [str(sum(answer[name] for answer in good)) for name in COUNTS]
    remarks = [f"hung in {answer['hung']}" for answer in good if answer["hung"]]
    remarks += [answer["error"] for answer in answers if "error" in answer]
    counted = [
        remark if remarks.count(remark) == 1 else f"{remark} ({remarks.count(remark)} times)"
        for remark in dict.fromkeys(remarks)
    ]
    recovered = sum(bool(answer["recovered"]) for answer in good)
    return ["  " + title, *cells, f"{recovered} of {len(answers)}", "; ".join(counted)]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    here = environment()
    print(
        f"{here['python']}, {here['system']}, {here['usable_cpus'] or here['cpus']} cpus, "
        f"load {here['load_average'][0]}, seed {options.seed}, {options.episodes} episodes a level"
    )
    peers = [peer for peer in PEERS if peer.key in options.peers]
    answers: dict[str, dict[str, list[dict[str, Any]]]] = {}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="loky-chaos-") as path:
        # Under this name, upstream's `loky` does not hide it; its workers can import it as well.
        os.symlink(CHAOS, os.path.join(path, "loky_chaos"))
        for level in options.levels:
            for index in range(options.episodes):
                for peer in peers:
                    answer = ask(peer, level, index, options, path)
                    answers.setdefault(level, {}).setdefault(peer.key, []).append(answer)
                    if sys.stderr.isatty():
                        print(f"\r{level} {index} {peer.key:20}\r", end="", file=sys.stderr)
    blocks = [
        (level, [row(peer.title, answers[level][peer.key]) for peer in peers])
        for level in options.levels
    ]
    head = ["level / pool", *COUNTS, "recovered", "remark"]
    print("\n" + grid(head, blocks) + f"\n\n{time.monotonic() - begin:.0f} s")
    if options.json is not None:
        document = {"environment": here, "seed": options.seed, "answers": answers}
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
