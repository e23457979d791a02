"""The life of a worker: start, receive, call, reply, leave.

Guarantees to the parent:

- a result is out of this process's hands before the next task starts, so a crash costs one task;
- tasks run in the main thread, one at a time, in the order in which they were sent;
- whatever a task, its arguments, its result or its exception do while being unpickled or pickled,
  the reply is about that task, and the worker goes on;
- a fork inside a task can neither read the next task nor answer this one.

Assumption: whoever started this process passed the descriptors that `main` takes.

Imports here are on the path of every cold start: builtin modules only, the rest where needed.
"""

from __future__ import annotations

import os
import sys
from _thread import RLock, allocate_lock
from time import perf_counter

from .. import nesting
from ..wire import inheritance, picklers, pickling, protocol
from ..wire.channel import open_worker_end
from . import compat, guard

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..wire.channel import WorkerEnd


class Line:
    """The worker's end of its channel, with the manners that several threads need."""

    def __init__(self, end: WorkerEnd) -> None:
        self.end = end
        self.forked = False
        self.sending = RLock()  # whoever holds it may ask whether it does: see `relay`
        self._asking = allocate_lock()
        os.register_at_fork(after_in_child=self._leave)

    def send(self, kind: int, task_id: int, payload: bytes = b"", seconds: float = 0.0) -> None:
        """Send a frame whole."""
        if self.forked:  # this is a child that the task made and let return: not ours to answer
            _leave_as_child(kind, payload)
        head = protocol.frame_head(kind, task_id, len(payload), seconds)
        with self.sending:
            self.end.send(head, payload)

    def tracker_fd(self, which: int) -> int:
        """Ask the parent for a descriptor of its resource tracker."""
        if self.forked:  # its line was closed: it will have to start a tracker of its own
            return -1
        with self._asking:
            self.send(protocol.TRACKER, which)
            return self.end.receive_descriptor()

    def _leave(self) -> None:
        """In the child of a fork: this line is not ours."""
        self.forked = True
        self.end.close()


def main(arguments: list[str]) -> None:
    """Be a worker until the parent says EXIT or is gone.

    Parameters
    ----------
    arguments : list of str
        Descriptors: tasks, results, lifeline, faults, the end of standard error (each of these
        three may be -1), and those that the initializer's arguments need.
    """
    tasks_fd, results_fd, life_fd, fault_fd, ring_fd, *inherited = map(int, arguments)
    inheritance.numbers[:] = inherited
    guard.die_with_parent(life_fd)
    guard.report_faults(fault_fd)
    guard.keep_last_words(ring_fd)
    guard.be_the_first_to_go()
    line = Line(open_worker_end(tasks_fd, results_fd))
    settings = pickling.loads(line.end.receive_settings())
    nesting.depth = settings["depth"]
    sys.argv[:] = settings["argv"]
    sys.path[:] = settings["path"]
    compat.install(settings, life_fd, line.tracker_fd)
    send = line.send
    if settings["relay"]:
        from .relay import Relay

        compat.relay = relay = Relay(line, settings["relay"], settings["name"])
        send = relay.answer
    if not _initialize(send, settings["pickler"], settings["initializer"]):
        return
    send(protocol.READY, 0)
    serve(line, send, settings["limits"])


def serve(line: Line, send: Callable[..., None], limits: tuple[int | None, int | None]) -> None:
    """Answer one message after the other; `limits` are those of `footprint.Footprint`."""
    end = line.end
    look_at = 0.0
    look: Callable[[], float] | None = None
    while True:
        try:
            kind, task_id, prefix, payload = end.receive()
        except (EOFError, OSError):  # closed by the parent, or by a task that closed everything
            return
        if kind == protocol.EXIT:
            return
        reply, data, seconds, used = run(payload, prefix)
        payload = None  # frees a large one before waiting for the next
        try:
            send(reply, task_id, data, seconds)
        except OSError:  # a task has closed every descriptor: the parent will see this end
            sys.exit(1)
        del data, used
        if perf_counter() >= look_at:
            if look is None:
                from .footprint import Footprint

                look = Footprint(line.send, limits).look
            look_at = look()
            if look_at < 0:  # it leaves, see there
                return


def _leave_as_child(reply: int, data: bytes) -> None:
    """End a child that a task made and let return, as if the task had been its program."""
    code = 0
    try:
        if reply not in (protocol.VALUE, protocol.PICKLE):
            code = 1
            text, _, pickled = protocol.unpack_error(data)
            error = pickling.loads(pickled) if pickled else None
            if isinstance(error, SystemExit) and (error.code is None or type(error.code) is int):
                code = error.code or 0
            else:
                sys.stderr.write(text)
                sys.stderr.flush()
    finally:
        os._exit(code & 0xFF)


def run(
    payload: memoryview | bytearray | None, prefix: memoryview
) -> tuple[int, bytes, float, object]:
    """Unpickle a task, call it, pickle what comes of it: kind of reply, payload, seconds.

    And what it used, to be let go of once the reply is sent: a finalizer that kills this process
    then must not take a finished result with it.
    """
    if payload is None:
        error = MemoryError("no memory or no descriptor left to receive the task's arguments")
        return protocol.UNREADABLE, pack_exception(error, "unpickling the task"), 0.0, None
    try:
        if prefix:
            compat.update(pickling.loads(prefix))
        fn, args, kwargs = used = pickling.loads(payload)
    except BaseException as error:
        return protocol.UNREADABLE, pack_exception(error, "unpickling the task"), 0.0, None
    start = perf_counter()
    try:
        value = fn(*args, **kwargs)
    except BaseException as error:
        seconds = perf_counter() - start
        return protocol.ERROR, pack_exception(error), seconds, used
    seconds = perf_counter() - start
    try:
        if pickling.is_plain(value):
            return protocol.VALUE, pickling.dumps_plain(value), seconds, used
        return protocol.PICKLE, pickling.dumps_result(value), seconds, used
    except BaseException as error:
        where = pickling.where_it_fails(value, "result", pickling.dumps_result)
        return protocol.BAD_RESULT, pack_exception(error, where), seconds, used


def _initialize(send: Callable[..., None], pickler: str | None, initializer: bytes | None) -> bool:
    if initializer is None and pickler is None:
        return True
    try:
        picklers.set_loky_pickler(pickler)
        if initializer is None:
            return True
        main_module, reducers, call = pickling.loads(initializer)
        if main_module is not None:
            compat.import_main(main_module)
        pickling.result_reducers = pickling.loads(reducers) if reducers else None
        if call:
            fn, args = pickling.loads(call)
            fn(*args)
    except BaseException as error:
        send(protocol.INIT_FAILED, 0, pack_exception(error))
        return False
    return True


def pack_exception(error: BaseException, where: str = "") -> bytes:
    """Pickle an exception so that the parent can surely read at least its text."""
    import traceback

    # The first entry is this file's own call of the task: not the user's business.
    tb = error.__traceback__
    text = "".join(
        traceback.format_exception(type(error), error, tb.tb_next if tb is not None else None)
    )
    BaseException.with_traceback(error, None)  # its class may refuse to have attributes set
    obstacle = ""
    try:
        pickled = pickling.dumps_result(error)
        pickling.loads(pickled)  # some exceptions can be pickled but not rebuilt
    except BaseException as problem:
        obstacle = f"{type(problem).__name__}: {_safe_str(problem)}"
        text += f"\n(The exception itself could not be sent: {obstacle})\n"
        pickled = b""
    summary: Any = (where, type(error).__qualname__, _safe_str(error), obstacle)
    return protocol.pack_error(text, pickling.dumps_plain(summary), pickled)


def _safe_str(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as problem:
        return f"<{type(problem).__name__} in str()>"
