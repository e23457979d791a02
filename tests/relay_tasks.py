"""Functions for `test_last_words` and `test_relay` that run in workers: light to import."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any


def say_and(text: str, then: Callable[..., Any], *args: Any) -> Any:
    print(text, file=sys.stderr)
    return then(*args)


def say_lines(count: int, size: int) -> None:
    for number in range(count):
        print(f"{number:<{size - 1}}", file=sys.stderr)


def say_in_every_way() -> None:
    """Through every layer of standard error, and through what holds on to it."""
    import logging
    import threading
    import warnings

    early = logging.StreamHandler()
    stream = sys.stderr
    print("print", file=stream)
    stream.writelines(["lines\n"])
    stream.buffer.write(b"buffer\n")
    stream.flush()
    assert sys.__stderr__ is not None
    sys.__stderr__.write("original\n")
    for handler in (early, logging.StreamHandler()):
        logger = logging.Logger("name")
        logger.addHandler(handler)
        logger.error("logged")
    warnings.warn("warned", stacklevel=1)
    thread = threading.Thread(target=divide_by_zero)
    thread.start()
    thread.join()


def divide_by_zero() -> None:
    raise ZeroDivisionError


def about_stderr() -> dict[str, Any]:
    import pickle

    import cloudpickle

    stream = sys.stderr
    buffer: Any = stream.buffer
    return {
        "types": [type(stream).__name__, type(getattr(buffer, "raw", buffer)).__name__],
        "fileno": stream.fileno(),
        "isatty": stream.isatty(),
        "same": stream is sys.__stderr__,
        "pickled": pickle.loads(cloudpickle.dumps(stream)) is stream,
    }


def redirect_stderr() -> str:
    import contextlib
    import io

    with contextlib.redirect_stderr(io.StringIO()) as file:
        print("elsewhere", file=sys.stderr)
    return file.getvalue()


def say_in_a_fork() -> None:
    pid = os.fork()
    if pid == 0:
        print("from the child", file=sys.stderr, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    print("from the worker", file=sys.stderr, flush=True)


def close_everything_and_write(path: str) -> None:
    """The file gets the number of a descriptor that this library has used."""
    os.closerange(3, 100)
    for number in range(20):
        os.open(f"{path}.{number}", os.O_CREAT | os.O_WRONLY)
    print("said after that", file=sys.stderr, flush=True)
    os._exit(0)


# ---------------------------------------------------------------------- for test_relay


def say(text: str, stream: str = "stdout", end: str = "\n") -> str:
    print(text, file=getattr(sys, stream), end=end)
    return text


def say_too(text: str) -> str:
    print(text)
    return text


def say_in_c(text: str, end: str = "\n") -> None:
    """By the C library's own buffer, as compiled code does."""
    import ctypes

    libc = ctypes.CDLL(None)
    libc.printf((text + end).encode())


def say_in_c_and_die(text: str) -> None:
    say_in_c(text)
    os._exit(1)


def say_by_another_program(text: str) -> None:
    import subprocess

    subprocess.run(["sh", "-c", f"echo {text}; echo {text} >&2"], check=True)


def return_twice(text: str) -> int:
    """Both the worker and a child of it return from the task; the child says something first."""
    pid = os.fork()
    if pid == 0:
        print(text, end="")
        return -1
    os.waitpid(pid, 0)
    return pid


def say_at_exit(text: str) -> None:
    import atexit

    atexit.register(print, text)


def leave_a_program(fifo: str, text: str) -> None:
    """Which prints when somebody has read from the fifo, after this worker has left."""
    import subprocess

    subprocess.Popen(["sh", "-c", f"echo > '{fifo}'; echo {text}"])


def close_stdout() -> None:
    os.close(1)


def put_a_file_in_place_of_stdout(path: str) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.dup2(fd, 1)
    os.close(fd)
    print("into the file", flush=True)


def flood(lines: int, size: int) -> int:
    for number in range(lines):
        print(f"{number:<{size - 1}}")
    return lines


def show_progress() -> None:
    for percent in range(0, 101, 10):
        print(f"\r{percent} %", end="", flush=True)


class Chatty:
    """Cannot be pickled, and says what it is when it is asked."""

    def __str__(self) -> str:
        return "chatty"

    def __reduce__(self) -> Any:
        raise TypeError("not to be pickled")


def log(name: str, level: int, message: str, *args: Any, **options: Any) -> None:
    import logging

    logging.getLogger(name).log(level, message, *args, **options)


def log_something_odd() -> None:
    import logging

    logger = logging.getLogger("odd")
    logger.warning("it is %s", Chatty(), extra={"plain": (1, "two"), "odd": Chatty()})
    try:
        divide_by_zero()
    except ZeroDivisionError:
        logger.exception("it went %s", "wrong", stack_info=True)
    logger.warning(Chatty())


def log_badly() -> str:
    import logging

    logging.getLogger("bad").warning("%s %s", "one")
    return "fine"


def log_in_a_fork() -> None:
    import logging

    pid = os.fork()
    if pid == 0:
        logging.getLogger("forked").warning("from the child")
        os._exit(0)
    os.waitpid(pid, 0)


def levels(*names: str) -> list[int]:
    import logging

    return [logging.getLogger(name).getEffectiveLevel() for name in names]


def log_from_signals(hertz: int) -> None:
    """From now on, log wherever the interpreter is, in the middle of a send as well."""
    import logging
    import signal

    def strike(*_: Any) -> None:
        logging.getLogger("signal").warning("struck")

    signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, 1 / hertz, 1 / hertz)


class OddWarning(UserWarning):
    """Is made of two arguments."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one, two)

    def __str__(self) -> str:
        return f"{self.args[0]} {self.args[1]}"


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    import warnings

    warnings.warn(text, category, stacklevel=1)


def warn_oddly() -> None:
    import warnings

    warnings.warn(OddWarning("one", "two"), stacklevel=1)


def warn_at(gate: str, text: str) -> int:
    from pool_tasks import pid_through

    pid = pid_through(gate)
    warn(text)
    return pid


def use_a_pool(relay: str | None) -> None:
    import logging

    from loky import ProcessPoolExecutor

    with ProcessPoolExecutor(1, relay=relay) as executor:
        executor.submit(say, "inner").result()
        executor.submit(log, "inner", logging.WARNING, "logged").result()
