"""Functions that tests run in workers.

They are here and not in the test modules because a worker imports the module of a function that
it runs: this one is light, the test modules import pytest.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

# ---------------------------------------------------------------------- waiting, see rendezvous


def pass_through(path: str, value: Any = None) -> Any:
    """Say that you are here, wait until you may go on, return the value."""
    # Opened first: whoever learns that this is here may let it through and take the gate away
    # before it would get to opening it, which then waits for ever.
    with open(path + ".out", "rb", buffering=0) as gate:
        announce(path)
        wait_at(gate)
    return value


def pid_through(path: str) -> int:
    pass_through(path)
    return os.getpid()


def announce(path: str) -> None:
    """Say that you are here."""
    with open(path + ".in", "wb", buffering=0) as file:
        file.write(b"%d\n" % os.getpid())


def wait_at(gate: str | FileIO) -> None:
    """Wait until you may go on."""
    if isinstance(gate, str):
        gate = FileIO(gate + ".out")
    with gate:
        gate.read(1)


# ---------------------------------------------------------------------- plain calls


def echo(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def call(fn: Any, argument: Any) -> Any:
    return fn(*argument) if isinstance(argument, tuple) else fn(argument)


def fail_with(error: BaseException) -> None:
    raise error


def write_line(path: str, text: object) -> None:
    """One write of a short line in append mode is atomic."""
    with open(path, "ab", buffering=0) as file:
        file.write(f"{text}\n".encode())


def zeros(size: int) -> bytes:
    return bytes(size)


def pass_or_write(path: str, number: int) -> None:
    if number == 0:
        pass_through(path)
    else:
        write_line(path, number)


def fail_or_write(number: int, path: str) -> int:
    if number == 2:
        raise ZeroDivisionError
    if number == 3:
        write_line(path, number)
    return number


def echo_or_hold(path: str | None) -> None:
    if path is not None:
        pass_through(path)


def set_variable(name: str, value: str) -> None:
    os.environ[name] = value


def pid_and_variable(gate: str, name: str) -> tuple[int, str | None]:
    pass_through(gate)
    return os.getpid(), os.environ.get(name)


def bad_initializer(word: str) -> None:
    raise LookupError(f"there is no {word}")


def refuse_to_load() -> None:
    raise ValueError("cannot be loaded")


class Unloadable:
    def __reduce__(self) -> Any:
        return refuse_to_load, ()


# ---------------------------------------------------------------------- ways to die


class CrashesWhenCollected:
    """Ends the process that collects it, but for the one that made it."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.pid:
            os._exit(3)


def no_core() -> None:
    """No core file is to be written, wherever the tests run."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def die_by(signum: int) -> None:
    os.kill(os.getpid(), signum)
    signal.pause()


def killed() -> None:
    die_by(signal.SIGKILL)


def terminated() -> None:
    die_by(signal.SIGTERM)


def read_address_zero() -> None:
    import ctypes

    no_core()
    ctypes.string_at(0)


def fault() -> None:
    import faulthandler

    no_core()
    faulthandler._sigsegv()  # type: ignore[attr-defined]


def overflow_the_stack() -> None:
    import faulthandler

    no_core()
    faulthandler._stack_overflow()  # type: ignore[attr-defined]


def abort() -> None:
    no_core()
    os.abort()


def leave_happily() -> None:
    os._exit(0)


def leave_with_three() -> None:
    os._exit(3)


def exit_at_three(number: int) -> int:
    if number == 3:
        os._exit(1)
    return number


def exit_the_first_time(path: str) -> None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os._exit(1)


def close_all_beside_a_thread(working: bool) -> None:
    """Nothing can be told any more; and the process does not end by itself."""
    threading.Thread(target=signal.pause).start()
    os.closerange(3, 1000)
    if working:
        signal.pause()


def finish_then_die(path: str) -> str:
    """The result is sent as soon as this returns; what was left behind then ends the worker."""

    def die() -> None:
        wait_at(path)
        os._exit(1)

    threading.Thread(target=die, daemon=True).start()
    return "result"


def hoard(size: int = 1 << 40) -> int:
    """Take so many bytes of memory and use them, piece by piece, as long as the system allows."""
    kept = []
    while size > 0:
        piece = min(size, 1 << 20)
        kept.append(b"x" * piece)
        size -= piece
    return sum(map(len, kept))


def hoard_slowly() -> None:
    """Take memory without end, at 200 MB a second at most."""
    import time

    kept = []
    while True:
        kept.append(b"x" * (1 << 20))
        time.sleep(0.005)


def hoard_the_first_time(path: str) -> str:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "enough"
    return str(hoard())


def fill_shared_memory(path: str, name: str, size: int) -> None:
    """Use so much shared memory, and as much in a shared mapping; then pass the gate."""
    import mmap
    from multiprocessing import shared_memory

    piece = b"x" * (1 << 20)
    segment = shared_memory.SharedMemory(name)
    with mmap.mmap(-1, size) as mapping:  # MAP_SHARED
        for start in range(0, size, len(piece)):
            segment.buf[start : start + len(piece)] = piece
            mapping[start : start + len(piece)] = piece
        pass_through(path)
    segment.close()


_kept: list[Any] = []


def keep(size: int) -> int:
    """Leak so many bytes."""
    _kept.append(b"x" * size)
    return os.getpid()


def keep_cycle(size: int) -> int:
    """Leave so many bytes for the garbage collector."""
    cycle: list[Any] = [b"x" * size]
    cycle.append(cycle)
    return os.getpid()


def look_often() -> None:
    """An initializer: have the worker look after each task what it uses, not once a second."""
    from loky import process_executor

    process_executor._MEMORY_LEAK_CHECK_DELAY = 0.0  # type: ignore[attr-defined]


def exhaust_memory() -> None:
    import resource

    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (500_000_000, old[1]))
    try:
        bytearray(1_000_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


# ---------------------------------------------------------------------- forks


def fork_a_child_that_waits(path: str) -> None:
    if os.fork() == 0:
        try:
            announce(path)
            signal.pause()
        finally:
            os._exit(0)
    announce(path)
    signal.pause()


# ---------------------------------------------------------------------- pickling


class FailsIn:
    """Can be unpickled in any process but one."""

    def __init__(self, pid: int, error: BaseException | None = None) -> None:
        self.pid = pid
        self.error = error or ValueError("not to be loaded here")

    def __reduce__(self) -> Any:
        return rebuild_unless_in, (self.pid, self.error)


def rebuild_unless_in(pid: int, error: BaseException) -> FailsIn:
    if os.getpid() == pid:
        raise error
    return FailsIn(pid, error)


def make_fails_in(pid: int, error: BaseException | None = None) -> FailsIn:
    return FailsIn(pid, error)


class KillsItsReader:
    def __reduce__(self) -> Any:
        return os._exit, (5,)


class FailsToReduce:
    """Raises when it is pickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


def make_fails_to_reduce(error: BaseException, deep: bool = False) -> Any:
    return [FailsToReduce(error)] if deep else FailsToReduce(error)


class Rude:
    """Cannot be pickled, and does not answer questions either."""

    def __reduce__(self) -> Any:
        raise ValueError("never")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("go away")

    def __repr__(self) -> str:
        raise RuntimeError("go away")


def make_rude(how: str) -> Any:
    return {"plain": Rude(), "key": {1: Rude()}, "item": [Rude()]}[how]


class Box:
    def __init__(self, content: Any) -> None:
        self.content = content


class SlotBox:
    __slots__ = ("content",)

    def __init__(self, content: Any) -> None:
        self.content = content


def locks_in(how: str) -> Any:
    """Results that cannot be pickled."""
    lock = threading.Lock()
    return {
        "itself": lock,
        "item": [1, (2, lock)],
        "value": {"a": {"b": lock}},
        "attribute": Box(Box(lock)),
        "slot": SlotBox([lock]),
        "closure": lambda: lock,
    }[how]


class TwoArguments(Exception):
    """As is common: pickled with one argument, rebuilt with two."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


class HoldsALock(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class BadStr(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class FailsInException(Exception):
    """Can be rebuilt in any process but one."""

    def __reduce__(self) -> Any:
        return rebuild_exception, self.args


def rebuild_exception(pid: int) -> Any:
    if os.getpid() == pid:
        raise LookupError("not to be rebuilt here")
    return FailsInException(pid)


class NotAnExceptionIn(Exception):
    """Is rebuilt as something else in one process."""

    def __reduce__(self) -> Any:
        return rebuild_as_text, self.args


def rebuild_as_text(pid: int) -> Any:
    return "text" if os.getpid() == pid else NotAnExceptionIn(pid)


EXCEPTIONS = {
    "two arguments": lambda pid: TwoArguments("one", "two"),
    "lock": lambda pid: HoldsALock("locked"),
    "bad str": lambda pid: BadStr(threading.Lock()),
    "rebuild": FailsInException,
    "text": NotAnExceptionIn,
}


def raise_exception(kind: str, pid: int) -> None:
    raise EXCEPTIONS[kind](pid)


def checksum(data: bytes) -> tuple[int, int]:
    import zlib

    return len(data), zlib.crc32(data)


def pattern(size: int) -> bytes:
    return bytes(range(256)) * (size // 256) + bytes(size % 256)


class Coin:
    """What reducers of the tests are for."""

    def __init__(self, side: str) -> None:
        self.side = side


def make_coin(side: str) -> Coin:
    return Coin(side)


def side_of(coin: Coin) -> str:
    return coin.side


def reduce_to_heads(coin: Coin) -> Any:
    return make_coin, ("heads",)


def reduce_to_tails(coin: Coin) -> Any:
    return make_coin, ("tails",)


# ---------------------------------------------------------------------- endings


def hold_the_interpreter(path: str) -> None:
    """Be busy for minutes in C code that keeps the interpreter and looks at no signal."""
    announce(path)
    pow(7, 80_000_000)


def family(path: str) -> None:
    """A worker with a child, and a grandchild by another program; all of them stay."""
    import subprocess

    subprocess.Popen(["sh", "-c", f"echo $$ > '{path}.in'; sleep 1000"])
    if os.fork() == 0:
        announce(path)
        while True:
            signal.pause()
    hold_the_interpreter(path)


def fork_and_return_twice(path: str) -> int:
    """Both the worker and its child return from the task."""
    pid = os.fork()
    if pid == 0:
        announce(path)
        return -1
    os.waitpid(pid, 0)
    return pid


def fork_and_raise_twice(path: str) -> int:
    pid = os.fork()
    if pid == 0:
        announce(path)
        raise RuntimeError("the child's")
    os.waitpid(pid, 0)
    raise LookupError("the worker's")


def status_of_a_child_that(function: Callable[..., Any], *arguments: Any) -> int:
    """The exit status of a fork that calls this and returns, and what it wrote there."""
    pid = os.fork()
    if pid == 0:
        return function(*arguments)  # type: ignore[no-any-return]
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---------------------------------------------------------------------- to be stopped


def stuck_in_sleep(path: str) -> None:
    announce(path)
    time.sleep(1000)


def stuck_in_a_loop(path: str) -> None:
    announce(path)
    while True:
        pass


def stuck_in_c(path: str) -> None:
    """In C code that keeps the interpreter's lock."""
    announce(path)
    ctypes.PyDLL(None).sleep(1000)


def stuck_and_deaf(path: str) -> None:
    """SIGTERM does nothing, not even to the child that it has started."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sleep", "1000"])
    announce(path)
    while True:
        time.sleep(1000)


def stuck_with_a_last_word(path: str) -> str:
    """SIGTERM makes it return."""

    def leave(signum: int, frame: Any) -> None:
        raise InterruptedError

    signal.signal(signal.SIGTERM, leave)
    announce(path)
    try:
        while True:
            time.sleep(1000)
    except InterruptedError:
        return "not the result"


def clean_up_when_terminated(path: str, note: str) -> None:
    def leave(signum: int, frame: Any) -> None:
        write_line(note, "cleaned up")
        os._exit(0)

    signal.signal(signal.SIGTERM, leave)
    announce(path)
    while True:
        time.sleep(1000)


def crash_at_first(path: str, times: int) -> int:
    """Count the calls in a file; the first few end the process."""
    write_line(path, os.getpid())
    calls = len(Path(path).read_bytes().splitlines())
    if calls <= times:
        os._exit(7)
    return calls


def raise_at_first(path: str, times: int, error: BaseException) -> int:
    """Count the calls in a file; the first few raise."""
    write_line(path, os.getpid())
    calls = len(Path(path).read_bytes().splitlines())
    if calls <= times:
        raise error
    return calls


def invert(number: float) -> float:
    return 1 / number


class Frozen(Exception):
    """Refuses to have attributes set, as a frozen dataclass does."""

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError(f"{name} cannot be set")


def raise_frozen() -> None:
    raise Frozen("cold")
