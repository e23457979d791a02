"""What the tests of `loky.backend` run in other processes, and how they run scripts.

Imported by the children that tests start, so it imports next to nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any


def run_code(code: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own; returns when all that hold its output have ended."""
    command = [sys.executable, *flags, "-c", textwrap.dedent(code)]
    return _run(command, environment)


def run_script(
    path: Path, code: str, *flags: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Write code to a file and run that."""
    path.write_text(textwrap.dedent(code))
    return _run([sys.executable, *flags, str(path)], environment)


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def check_code(code: str, *flags: str, **environment: str) -> str:
    """Run code that is to end well and to complain about nothing; returns its output."""
    done = run_code(code, *flags, **environment)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


# Targets of processes ----------------------------------------------------------------------------


def send(queue: Any, *values: object) -> None:
    for value in values:
        queue.put(value)


def send_environment(queue: Any, name: str) -> None:
    queue.put(os.environ.get(name))


def send_identity(queue: Any) -> None:
    import multiprocessing

    current, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    assert parent is not None
    queue.put(
        {
            "pid": os.getpid(),
            "name": current.name,
            "authkey": bytes(current.authkey),
            "parent": parent.pid,
            "parent is alive": parent.is_alive(),
            "start method": multiprocessing.get_start_method(),
            "argv": sys.argv,
            "main": getattr(sys.modules["__main__"], "__file__", None),
        }
    )


def send_trackers(queue: Any) -> None:
    from multiprocessing.resource_tracker import _resource_tracker as theirs

    from loky.backend.resource_tracker import _resource_tracker as ours

    for tracker in (ours, theirs):
        fd, pid = tracker._fd, tracker._pid
        assert fd is not None
        queue.put((identify(fd), pid, os.get_inheritable(fd)))


def identify(fd: int | None) -> tuple[int, int]:
    """What is the same for the same file under any descriptor, in any process."""
    assert fd is not None
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def send_descriptors(queue: Any) -> None:
    kinds = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            kinds[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the one that lists them
            continue
    queue.put(kinds)


def echo_bytes(connection: Any) -> None:
    connection.send_bytes(connection.recv_bytes())


def echo_socket(sock: Any) -> None:
    sock.sendall(sock.recv(1024))


def echo_from(queue: Any) -> None:
    received = queue.get()
    (echo_socket if hasattr(received, "recv_into") else echo_bytes)(received)


def add_one(value: Any, array: Any, barrier: Any) -> None:
    value.value += 1
    array[1] = 2.5
    barrier.wait()


def leave(code: int) -> None:
    os._exit(code)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(event: Any) -> None:
    event.wait()


def set_when_set(first: Any, second: Any) -> None:
    first.wait()
    second.set()


def notify(condition: Any, semaphore: Any) -> None:
    with condition:
        semaphore.release()
        condition.notify()


def hold(lock: Any, held: Any, let_go: Any) -> None:
    with lock:
        held.set()
        let_go.wait()


def pass_on(shared: Any) -> None:
    """Give it to a process of one's own."""
    from loky.backend.context import ctx_loky

    process = ctx_loky.Process(target=repr, args=(shared,))
    process.start()
    process.join()
    sys.exit(process.exitcode)


def relay(queue: Any, generations: int) -> None:
    """Count down, one process for each number."""
    from loky.backend.context import ctx_loky

    queue.put(generations)
    if generations:
        process = ctx_loky.Process(target=relay, args=(queue, generations - 1))
        process.start()
        process.join()
        sys.exit(process.exitcode)


def start_family(context_name: str, *connections: Any) -> None:
    """Start a chain of processes that never end, one for each connection.

    Each sends its process id on its own connection, which no other process holds then.
    """
    from loky.backend import get_context

    own, *others = connections
    if others:
        process = get_context(context_name).Process(
            target=start_family, args=(context_name, *others)
        )
        process.start()
    for connection in others:
        connection.close()
    own.send(os.getpid())
    signal.pause()


def unlink_reference(name: str) -> None:
    from loky.backend import resource_tracker

    resource_tracker.maybe_unlink(name, "file")


class Fatal:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> Any:
        return leave, (7,)


class Plain:
    """Can have reducers."""

    def __init__(self, value: object) -> None:
        self.value = value


def reduce_plain(obj: Plain) -> Any:
    return Plain, (("reduced", obj.value),)


def reduce_plain_back(obj: Plain) -> Any:
    return Plain, (("back", obj.value),)


def send_back(incoming: Any, outgoing: Any) -> None:
    outgoing.put(incoming.get())
