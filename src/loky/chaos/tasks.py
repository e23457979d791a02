"""What the workers of a chaos run are asked to do, good and bad, and what has to come of it.

Guarantee: what a call returns or raises depends on its arguments only. So the parent can tell a
right result from a wrong one without having run anything: see `expected` and `END_CODES`.

Workers import this file, of any pool (the peers' too): nothing heavy at the top, nothing of the
parent's side.
"""

from __future__ import annotations

import os
import time

from .marks import ARMED, BEGIN, END, begun, leave

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

# How a worker ends that a task of this kind has ended: exit code, or minus the signal.
EXIT_CODE = 73
BOMB_CODE = 77
END_CODES = {
    "exit": EXIT_CODE,
    "flaky-exit": EXIT_CODE,
    "segfault": -11,
    "abort": -6,
    "kill-self": -9,
    "close-all": 1,
}
# These fail at their first attempts, `size` of them, and then have a value.
FLAKY = ("flaky-exit", "flaky-raise")

LOGGER = "loky.chaos.tasks"
# The worker may use this much more memory for what tasks leak, in bytes.
LEAK_LIMIT = 24 << 20
_leaked: list[bytearray] = []


class ChaosError(Exception):
    """What tasks raise on purpose."""


class ChaosWarning(UserWarning):
    """What tasks warn of."""


class HoldsALock(Exception):
    """Cannot be pickled."""

    def __init__(self, text: str) -> None:
        import threading

        super().__init__(text)
        self.lock = threading.Lock()


class TwoArguments(Exception):
    """Is pickled with one argument and rebuilt with two, as is common."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


class Unloadable:
    """Can be pickled, and raises whenever it is unpickled."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> NoReturn:
    raise ChaosError("not to be unpickled")


class Slow:
    """Takes its time whenever it is pickled, and again when it is unpickled."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __reduce__(self) -> Any:
        time.sleep(self.seconds)
        return _slowly, (self.seconds,)


def _slowly(seconds: float) -> Slow:
    time.sleep(seconds)
    return Slow(seconds)


def pattern(number: int, size: int) -> bytes:
    """That many bytes, others for each number."""
    word = b"%d." % number
    return (word * (size // len(word) + 1))[:size]


def digest(value: Any) -> Any:
    """A value small enough to be kept and compared: large bytes become length and checksum."""
    if isinstance(value, bytes) and len(value) > 64:
        import zlib

        return "bytes", len(value), zlib.crc32(value)
    if isinstance(value, Slow):
        return "slow", value.seconds
    return value


def expected(number: int, kind: str, seconds: float, size: int) -> Any:
    """The digest of what a call that returns has to return."""
    if kind in ("large-argument", "large-both"):
        argument = digest(pattern(number, size))
        return (number, argument) if kind == "large-argument" else argument
    if kind == "large-result":
        return digest(pattern(number, size))
    if kind == "slow-to-load":
        return "slow", seconds
    return number, kind


def argument(number: int, kind: str, seconds: float, size: int) -> Any:
    """What a call of this kind gets as its last argument."""
    if kind in ("large-argument", "large-both"):
        return pattern(number, size)
    if kind == "bad-argument":
        import threading

        return [threading.Lock()]
    if kind == "unloadable-argument":
        return Unloadable()
    if kind == "slow-to-pickle":
        return Slow(seconds)
    return None


def prepare(seconds: float) -> None:
    """An initializer."""
    time.sleep(seconds)


def work(path: str, number: int, kind: str, seconds: float, size: int, given: Any = None) -> Any:
    """Do what is asked for, and leave a mark at `path` when it begins and when it ends."""
    leave(path, number, BEGIN)
    try:
        return _do(path, number, kind, seconds, size, given)
    finally:
        leave(path, number, END)


def _do(path: str, number: int, kind: str, seconds: float, size: int, given: Any) -> Any:
    if kind in ("large-argument", "large-both"):
        return given if kind == "large-both" else (number, digest(given))
    if kind == "large-result":
        return pattern(number, size)
    if kind == "slow-to-load":
        return Slow(seconds)
    if kind == "bad-result":
        import threading

        return [threading.Lock()]
    if kind == "unloadable-result":
        return Unloadable()
    action = _ACTIONS.get(kind)
    if action is not None:
        action(path, number, seconds, size)
    return number, kind


def _spin(path: str, number: int, seconds: float, size: int) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


def _sleep(path: str, number: int, seconds: float, size: int) -> None:
    time.sleep(seconds)


def _hold_the_gil(path: str, number: int, seconds: float, size: int) -> None:
    import ctypes

    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def _sleep_with_the_gil(path: str, number: int, seconds: float, size: int) -> None:
    import ctypes

    left = int(seconds)
    while left:  # a signal, such as the one that asks for stacks, ends the sleep
        left = ctypes.PyDLL(None).sleep(left)


def _sleep_without_sigterm(path: str, number: int, seconds: float, size: int) -> None:
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(seconds)


def _raise(path: str, number: int, seconds: float, size: int) -> None:
    raise ChaosError(number)


def _raise_unpicklable(path: str, number: int, seconds: float, size: int) -> None:
    raise HoldsALock(str(number))


def _raise_unloadable(path: str, number: int, seconds: float, size: int) -> None:
    raise TwoArguments(str(number), "")


def _flaky_raise(path: str, number: int, seconds: float, size: int) -> None:
    if begun(path, number) <= size:
        raise ChaosError(number)


def _flaky_exit(path: str, number: int, seconds: float, size: int) -> None:
    if begun(path, number) <= size:
        os._exit(EXIT_CODE)


def _sys_exit(path: str, number: int, seconds: float, size: int) -> None:
    raise SystemExit(number)


def _interrupt(path: str, number: int, seconds: float, size: int) -> None:
    raise KeyboardInterrupt(number)


def _exit(path: str, number: int, seconds: float, size: int) -> None:
    os._exit(EXIT_CODE)


def _segfault(path: str, number: int, seconds: float, size: int) -> None:
    import ctypes

    ctypes.string_at(0)


def _abort(path: str, number: int, seconds: float, size: int) -> None:
    os.abort()


def _kill_self(path: str, number: int, seconds: float, size: int) -> None:
    os.kill(os.getpid(), 9)
    time.sleep(60)


def _close_all(path: str, number: int, seconds: float, size: int) -> None:
    os.closerange(0, 1024)


def _hog(path: str, number: int, seconds: float, size: int) -> None:
    """Take more and more memory, then hold it."""
    hoard: list[bytes] = []
    while len(hoard) << 20 < size:
        hoard.append(b"\1" * (1 << 20))
        time.sleep(0.0005)
    time.sleep(seconds)


def _talk(path: str, number: int, seconds: float, size: int) -> None:
    import logging
    import warnings

    logging.getLogger(LOGGER).warning("task %d", number)
    warnings.warn(f"task {number % 10}", ChaosWarning, stacklevel=1)


def _leak(path: str, number: int, seconds: float, size: int) -> None:
    if sum(map(len, _leaked)) < LEAK_LIMIT:
        _leaked.append(bytearray(size))


def _fork(path: str, number: int, seconds: float, size: int) -> None:
    """A child that outlives the task for a while."""
    if os.fork() == 0:
        time.sleep(seconds)
        os._exit(0)


def _fork_and_wait(path: str, number: int, seconds: float, size: int) -> None:
    pid = os.fork()
    if pid == 0:
        time.sleep(seconds)
        os._exit(0)
    os.waitpid(pid, 0)


def _fork_twice(path: str, number: int, seconds: float, size: int) -> None:
    """Both the worker and its child return from the task."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)


def _start_thread(path: str, number: int, seconds: float, size: int) -> None:
    import threading

    threading.Thread(target=time.sleep, args=(seconds,), daemon=bool(size)).start()


def _plant_bomb(path: str, number: int, seconds: float, size: int) -> None:
    """The task returns; its worker ends some time later, whatever it does then."""
    import threading

    def explode() -> None:
        time.sleep(seconds)
        os._exit(BOMB_CODE)

    leave(path, number, ARMED)
    threading.Thread(target=explode, daemon=True).start()


_ACTIONS = {
    "abort": _abort,
    "bomb": _plant_bomb,
    "close-all": _close_all,
    "exit": _exit,
    "flaky-exit": _flaky_exit,
    "flaky-raise": _flaky_raise,
    "fork": _fork,
    "fork-and-wait": _fork_and_wait,
    "fork-twice": _fork_twice,
    "hog": _hog,
    "hold-the-gil": _hold_the_gil,
    "ignore-sigterm": _sleep_without_sigterm,
    "interrupt": _interrupt,
    "kill-self": _kill_self,
    "leak": _leak,
    "overdue": _sleep,
    "overdue-deaf": _sleep_without_sigterm,
    "overdue-gil": _sleep_with_the_gil,
    "raise": _raise,
    "raise-unloadable": _raise_unloadable,
    "raise-unpicklable": _raise_unpicklable,
    "segfault": _segfault,
    "sleep": _sleep,
    "spin": _spin,
    "stuck": _sleep,
    "sys-exit": _sys_exit,
    "talk": _talk,
    "thread": _start_thread,
}
