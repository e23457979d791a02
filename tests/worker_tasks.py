"""Functions that tests of workers and resources run in workers: light to import."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any


def say_hello(number: int) -> int:
    return os.getpid()


def who_am_i() -> dict[str, Any]:
    """What multiprocessing says about this process."""
    import multiprocessing

    me = multiprocessing.current_process()
    parent = multiprocessing.parent_process()
    assert parent is not None
    return {
        "name": me.name,
        "pid": (me.pid, os.getpid()),
        "authkey": bytes(me.authkey),
        "daemon": me.daemon,
        "parent": (parent.name, parent.pid, parent.is_alive()),
        "start_method": multiprocessing.get_start_method(allow_none=True),
        "children": multiprocessing.active_children(),
    }


def about_the_process() -> dict[str, Any]:
    """What the operating system says about it."""
    import signal

    return {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "group": os.getpgrp(),
        "stdin": os.readlink("/proc/self/fd/0"),
        "read": sys.stdin.read(),
        "blocked": list(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "main": sorted(sys.modules["__main__"].__dict__),
        "argv": sys.argv,
    }


def open_descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the one that listed the directory
            continue
    return found


def import_by_name(name: str) -> Any:
    from importlib import import_module

    return import_module(name).ANSWER


def run_a_process(value: int) -> int:
    """Start a process with multiprocessing from inside a task."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=send_back, args=(theirs, value))
    process.start()
    theirs.close()
    answer: int = ours.recv()
    process.join()
    ours.close()
    assert process.exitcode == 0
    return answer


def send_back(connection: Any, value: int) -> None:
    connection.send(value + 1)
    connection.close()


def change(proxy: Any, value: int) -> int:
    """Use a manager's proxy."""
    proxy["seen"] = value
    return len(proxy)


def interpreter_settings() -> dict[str, Any]:
    return {
        "optimize": sys.flags.optimize,
        "utf8": sys.flags.utf8_mode,
        "warnings": sys.warnoptions,
        "asserts": __debug__,
        "xoptions": dict(sys._xoptions),
    }


def wait_for_a_writer(fifo: str, *_: Any) -> str:
    with open(fifo) as file:
        return file.read()


def spin(seconds: float) -> float:
    """Keep the processor busy."""
    from time import perf_counter

    end = perf_counter() + seconds
    while perf_counter() < end:
        pass
    return seconds


def kill_me() -> None:
    os.kill(os.getpid(), 9)


def itself(value: Any) -> Any:
    return value


def oom_score() -> int:
    with open("/proc/self/oom_score_adj") as file:
        return int(file.read())


# ---------------------------------------------------------------------- where stacks are asked for


def hold_the_interpreter(path: str) -> int:
    """Wait in C code without letting other threads run."""
    import ctypes

    from pool_tasks import announce

    libc = ctypes.PyDLL(None)
    buffer = ctypes.create_string_buffer(1)
    announce(path)
    fd = os.open(path + ".out", os.O_RDWR)
    try:
        return int(libc.read(fd, buffer, 1))
    finally:
        os.close(fd)


def in_a_thread(path: str) -> None:
    from pool_tasks import pass_through

    thread = threading.Thread(target=pass_through, args=(path,))
    thread.start()
    thread.join()


def handle_signal(signum: int, handler: Any) -> int:
    signal.signal(signum, handler)
    return os.getpid()


def deep_down(levels: int, path: str) -> None:
    if levels:
        deep_down(levels - 1, path)
    else:
        from pool_tasks import pass_through

        pass_through(path)


# ---------------------------------------------------------------------- ends that are examined


def burn_and_die(seconds: float) -> None:
    import time

    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
    os._exit(1)


def use_memory_and_die(count: int) -> None:
    held = b"x" * count
    os._exit(len(held) and 1)


def take_and_die(*args: Any, **kwargs: Any) -> None:
    os._exit(1)


def burn(seconds: float) -> None:
    import time

    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
