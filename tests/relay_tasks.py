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
