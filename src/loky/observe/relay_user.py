"""Hands what workers have said to the streams, loggers and filters of this process.

Rule: everything here is, or calls, the user's code. It runs without the pool's baton.

Guarantee: nothing of that kind that fails reaches the caller, and nothing but the one message is
lost by it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from ..wire import pickling

# What is to be handed on: the stream's name or FRAME, who said it (a task; ``None``: none), the
# worker's pid, and the lines or the frame's payload.
Item = tuple[str, Any, int, "bytes | memoryview"]
FRAME = "frame"


def write_next(items: deque[Item], name_of: Callable[[Any], str]) -> None:
    """Take the first of these, and of lines all that go to the same stream, and hand them on.

    Parameters
    ----------
    items : deque of Item
        At least one.
    name_of : callable
        A task's name.
    """
    what, speaker, pid, data = items.popleft()
    try:
        label = _label(speaker, name_of)
        if what == FRAME:
            kind, content = pickling.loads(data)
            (_log if kind == "logging" else _warn)(content, label, pid)
            return
        texts = [_tagged(data, label, pid)]
        while items and items[0][0] == what:
            _, speaker, pid, data = items.popleft()
            texts.append(_tagged(data, _label(speaker, name_of), pid))
        _print(what, "".join(texts))
    except BaseException as error:
        _report(error)


def _label(speaker: Any, name_of: Callable[[Any], str]) -> str | None:
    if speaker is None or isinstance(speaker, str):
        return speaker
    try:
        return name_of(speaker)
    except BaseException:  # a callable may answer to questions as it likes
        return "task"


def _tagged(data: bytes | memoryview, label: str | None, pid: int) -> str:
    """Whole lines, each with its prefix."""
    text = bytes(data).decode("utf-8", "backslashreplace")
    if "\r" in text:
        lines = (line.removesuffix("\r").rpartition("\r")[2] for line in text.split("\n"))
        text = "\n".join(lines)
    prefix = f"[{label or 'worker'} {pid}] "
    return prefix + text.removesuffix("\n").replace("\n", "\n" + prefix) + "\n"


def _print(name: str, text: str) -> None:
    """Write to the parent's stream of that name: the object that is there now."""
    stream = getattr(sys, name)
    if stream is None:
        return
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except Exception:  # closed, or at its end broken: what is written to it is lost
        pass


def _log(attributes: dict[str, Any], label: str | None, pid: int) -> None:
    """Hand a worker's record to the parent's logger of that name."""
    import logging

    record = logging.makeLogRecord(attributes)
    if not hasattr(record, "loky_pid"):  # else it comes from a pool in the worker
        record.loky_task = label
        record.loky_pid = pid
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def _warn(content: tuple[Any, ...], label: str | None, pid: int) -> None:
    """Warn as the worker did, through this process's filters."""
    import warnings

    text, classes, filename, lineno, module = content
    message = _rebuild_warning(text, classes)
    message.loky_task = label
    message.loky_pid = pid
    # Filters that let a warning pass once per location keep book in the module it is about.
    home = sys.modules.get(module or "")
    registry = _registries if home is None else home.__dict__
    if home is None:
        registry = registry.setdefault(filename, {})
    registry = registry.setdefault("__warningregistry__", {})
    try:
        warnings.warn_explicit(message, type(message), filename, lineno, module, registry)
    except Warning as error:
        if error is not message:
            raise
        # The filter says "error": there is no call here that could fail by it.
        key = (text, type(message), lineno)
        if key not in registry:
            registry[key] = True
            warnings.showwarning(message, type(message), filename, lineno)


_registries: dict[str, Any] = {}


def _rebuild_warning(text: str, classes: list[tuple[str, str]]) -> Any:
    """An instance of the first of these classes that can be had here and says this text."""
    from importlib import import_module

    for module, name in classes:
        try:
            kind: Any = sys.modules.get(module) or import_module(module)
            for part in name.split("."):
                kind = getattr(kind, part)
            message = kind.__new__(kind, text)
            message.args = (text,)
            if isinstance(message, Warning) and str(message) == text:
                return message
        except Exception:  # the next one is more general
            continue
    return UserWarning(text)


def _report(error: BaseException) -> None:
    """A filter, a handler or a hook of the user's has failed: say so, and go on."""
    try:
        import logging

        logging.getLogger("loky").error("a message of a worker was lost", exc_info=error)
    except BaseException:  # the same one, perhaps
        pass
