"""Notices that nothing moves any more, and says all that helps to find out why.

Guarantee: it needs nobody's help: its thread only sleeps, compares a number and, in the end, writes
to standard error and leaves with `os._exit`. The kernel then ends the workers.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable
from time import monotonic

HUNG = 3  # the exit code


class Watchdog:
    """Ends the process when `progress` has not changed for that many seconds."""

    def __init__(
        self, patience: float, progress: Callable[[], object], describe: Callable[[], str]
    ) -> None:
        self._patience = patience
        self._progress = progress
        self._describe = describe
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        last = self._progress()
        since = monotonic()
        while not self._over.wait(min(1.0, self._patience / 4)):
            now = self._progress()
            if now != last:
                last, since = now, monotonic()
            elif monotonic() - since > self._patience:
                self._bark(monotonic() - since)

    def _bark(self, seconds: float) -> None:
        sys.stdout.flush()
        print(f"HANG: nothing has happened for {seconds:.0f} s", file=sys.stderr)
        try:
            print(self._describe(), file=sys.stderr)
        except Exception as error:  # what it describes is changing, or broken
            print(f"(no description: {error!r})", file=sys.stderr)
        sys.stderr.flush()
        faulthandler.dump_traceback(all_threads=True)
        os._exit(HUNG)
