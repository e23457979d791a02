"""Sends what is printed, logged and warned here to the parent, and marks whose it is.

Guarantees:

- what a task has printed is in the pipes, with a mark behind it, and what it has logged or warned
  is on the line, before its result is;
- whoever logs or warns does not fail by it, and only waits if the parent is behind;
- it may be done anywhere: in any thread, and in a finalizer that strikes in the middle of a send;
- in the child of a fork, where the line is closed, records and warnings go to standard error.

Only workers whose parent relays something import this.
"""

from __future__ import annotations

import os
import sys
from collections import deque

from ..wire import pickling, protocol
from . import compat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .loop import Line

# What every record has; other attributes are the user's (`extra`).
_REFUSED = frozenset({"exc_info", "msg", "args", "relativeCreated"})


class Relay:
    """See the top of the file.

    Parameters
    ----------
    line : Line
        This worker's.
    settings : dict
        What the parent says about it.
    name : str
        This worker's.
    """

    def __init__(self, line: Line, settings: dict[str, Any], name: str) -> None:
        self._line = line
        self._name = name
        self._frames: deque[bytes] = deque()
        self._mark: bytes = settings["mark"]
        self._pipes: list[tuple[int, os.stat_result]] = []
        self._libc: Any = None
        self._levels: dict[str, int] = {}
        names = settings["names"]
        if "stdout" in names:
            self._pipe(1, sys.stdout)
            self._find_libc()
        if "stderr" in names:
            self._pipe(2, sys.stderr)
        if "logging" in names:
            self._levels = settings["levels"]
            compat.after_import("logging", self._join_logging)
        if "warnings" in names:
            self._join_warnings(settings["filters"])

    # ------------------------------------------------------------------ on the line

    def answer(self, kind: int, task_id: int, payload: bytes = b"", seconds: float = 0.0) -> None:
        """Send a frame, `Line.send`, behind all that was said before."""
        self._end_of(task_id)
        if not self._line.forked:
            self._flush()
        self._line.send(kind, task_id, payload, seconds)
        if self._frames:  # from a finalizer that struck in there
            self._flush()

    def _forward(self, kind: str, content: Any) -> None:
        self._frames.append(pickling.dumps_plain((kind, content)))
        # A finalizer, or a signal's handler, may log in the middle of this thread's own send.
        if not self._line.sending._is_owned():  # type: ignore[attr-defined]
            self._flush()

    def _flush(self) -> None:
        with self._line.sending:
            while self._frames:
                payload = self._frames.popleft()
                head = protocol.frame_head(protocol.RELAY, 0, len(payload))
                self._line.end.send(head, payload)

    # ------------------------------------------------------------------ standard output and error

    def _pipe(self, fd: int, stream: Any) -> None:
        self._pipes.append((fd, os.fstat(fd)))
        if stream is not None:
            # Line by line, so that it arrives also if this process has no time to say farewell.
            stream.reconfigure(encoding="utf-8", errors=stream.errors, line_buffering=True)

    def _find_libc(self) -> None:
        """Have compiled code print line by line as well, where that can be done."""
        try:
            import ctypes

            libc = ctypes.CDLL(None)
            stdout = ctypes.c_void_p.in_dll(libc, "stdout")
            line_buffered = 1
            libc.setvbuf(stdout, None, line_buffered, ctypes.c_size_t(0))
            self._libc = libc, stdout
        except (ImportError, OSError, ValueError, AttributeError):
            self._libc = None

    def _end_of(self, task_id: int) -> None:
        """Push out what was printed, and mark where it ends."""
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            try:
                stream.flush()  # type: ignore[union-attr]
            except Exception:  # replaced by something else, or closed
                pass
        if self._libc is not None:
            libc, stdout = self._libc
            libc.fflush(stdout)
        if self._line.forked:
            return
        mark = self._mark + b"%016x" % task_id
        for fd, ours in self._pipes:
            try:
                # A task may have put something else in its place.
                if os.path.samestat(os.fstat(fd), ours):
                    os.write(fd, mark)
            except OSError:
                pass

    # ------------------------------------------------------------------ logging

    def set_levels(self, levels: dict[str, int]) -> None:
        """The parent's loggers have other levels now."""
        gone = self._levels.keys() - levels.keys()
        self._levels = levels
        logging = sys.modules.get("logging")
        if logging is not None:
            self._apply_levels(logging, gone)

    def _apply_levels(self, logging: Any, gone: Any = ()) -> None:
        for name in gone:
            logging.getLogger(name).setLevel(logging.NOTSET)
        for name, level in self._levels.items():
            if name == "-":
                logging.disable(level)
            else:
                logging.getLogger(name).setLevel(level)

    def _join_logging(self, logging: Any) -> None:
        relay = self

        class ToParent(logging.Handler):  # type: ignore[misc]
            """Stands for the handlers of the parent's loggers."""

            def emit(self, record: Any) -> None:
                try:
                    if relay._line.forked:
                        print(self.format(record), file=sys.stderr)
                    else:
                        relay._forward("logging", relay._describe(record, logging))
                except Exception:
                    self.handleError(record)

        logging.getLogger().addHandler(ToParent())
        self._apply_levels(logging)

    def _describe(self, record: Any, logging: Any) -> dict[str, Any]:
        """A record's attributes, plain: what is not is turned to text here, where it is known."""
        attributes = {}
        for key, value in record.__dict__.items():
            if key not in _REFUSED:
                attributes[key] = value if pickling.is_plain(value) else _text(value)
        # Arguments may change, or be large; what they look like in the message is what counts.
        if isinstance(record.msg, str) and pickling.is_plain(record.args):
            attributes["msg"], attributes["args"] = record.msg, record.args
        else:
            attributes["msg"], attributes["args"] = record.getMessage(), None
        if record.exc_info and not record.exc_text:
            attributes["exc_text"] = logging._defaultFormatter.formatException(record.exc_info)
        if "multiprocessing" not in sys.modules:
            attributes["processName"] = self._name
        return attributes

    # ------------------------------------------------------------------ warnings

    def _join_warnings(self, filters: Any) -> None:
        import warnings
        from importlib import import_module

        strict = {
            (
                getattr(text, "pattern", text) or None,
                kind,
                getattr(module, "pattern", module) or None,
                line,
            )
            for action, text, kind, module, line in warnings.filters
            if action == "error"
        }
        warnings.resetwarnings()
        for action, text, home, name, module, line in reversed(filters):
            try:
                kind = getattr(import_module(home), name)
            except Exception:  # whatever such a warning is, the parent's filters decide
                action, kind = "always", Warning
            # Relaying must not change what a task does: a warning is an error here only if it
            # would be one without, by the interpreter's options.
            if action == "error" and (text or None, kind, module or None, line) not in strict:
                action = "always"
            warnings.filterwarnings(action, text, kind, module, line)
        show = warnings.showwarning

        def forward(
            message: Any,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: Any = None,
            line: str | None = None,
        ) -> None:
            if file is not None or self._line.forked:
                show(message, category, filename, lineno, file, line)
                return
            classes = [(k.__module__, k.__qualname__) for k in category.__mro__[:-3]]
            content = (_text(message), classes, filename, lineno, _module_at(filename, lineno))
            self._forward("warnings", content)

        warnings.showwarning = forward


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception as problem:
        return f"<{type(problem).__name__} in str()>"


def _module_at(filename: str, lineno: int) -> str | None:
    """The module that a warning is about: that of the caller on this line."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_lineno == lineno and frame.f_code.co_filename == filename:
            name = frame.f_globals.get("__name__")
            return name if isinstance(name, str) else None
        frame = frame.f_back  # type: ignore[assignment]
    return None
