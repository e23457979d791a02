"""The command line: `python -m loky COMMAND`.

This file only finds the command and hands the rest of the line to it. Each command is a module of
`loky.cli` with a `main(arguments)` that returns an exit code and parses its own options.

Guarantee: a command is imported only when it is run. `demo` is even run *as* `__main__`, because
showing what happens to functions of `__main__` is its purpose.
"""

from __future__ import annotations

import argparse
import os
import sys

from loky import __version__

_COMMANDS = {
    "chaos": "strike a pool's workers while it works, and judge every outcome",
    "demo": "do real work in parallel, lose a worker on the way, and check the outcome",
    "info": "say what loky sees of this machine: CPUs and why, versions, capabilities",
}


def main(arguments: list[str]) -> int:
    """Run the command that `arguments` begin with.

    Parameters
    ----------
    arguments : list of str
        The command line without the program's name.

    Returns
    -------
    int
        Exit code: 0 when all went well, 1 when the command found something wrong.

    Raises
    ------
    SystemExit
        With code 2 for a command line that is not understood, with 0 after ``--help``.
    """
    commands = "\n".join(f"  {name:5}  {text}" for name, text in _COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m loky",
        description="A process pool that a crash cannot break.",
        epilog=f"commands:\n{commands}\n\n`COMMAND --help` lists the options of one of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"loky {__version__}")
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND")
    # Only the first word is ours: `--help` behind a command is about the command.
    command: str = parser.parse_args(arguments[:1]).command
    rest = arguments[1:]

    if command == "chaos":
        from loky.cli import chaos

        return chaos.main(rest)
    if command == "info":
        from loky.cli import info

        return info.main(rest)

    import runpy

    # As `python demo.py` would: sys.modules["__main__"] is the demo while it runs.
    sys.argv[1:] = rest
    runpy.run_module("loky.cli.demo", run_name="__main__", alter_sys=True)
    raise AssertionError("the demo ends with sys.exit")


def _run() -> int:
    """As `main` for the arguments of this process; quiet when nobody reads on (``| head``)."""
    try:
        try:
            return main(sys.argv[1:])
        finally:
            print(end="", flush=True)
    except BrokenPipeError:
        # Python flushes once more as it leaves; there is nobody to write to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(_run())
