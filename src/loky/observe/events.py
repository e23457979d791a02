"""What happens in a pool, told to the logger "loky", for whoever has asked for it.

Guarantees:

- nothing is printed unless the user sets a level and a handler: not even by the standard library's
  handler of last resort;
- `is_wanted` runs no code of the user's and takes no lock, so the leader may ask at any time;
- `emit` may run the user's handlers and filters, so it is called where user code may run; whatever
  they raise is shown and goes no further.

A record has, besides its text, an attribute `loky`: a dict with the event's name under ``"event"``,
the pool's number under ``"pool"``, and what else is known.
"""

from __future__ import annotations

import logging
from typing import Any

LOGGER = logging.getLogger("loky")
if not LOGGER.handlers:
    LOGGER.addHandler(logging.NullHandler())

DEBUG = logging.DEBUG
INFO = logging.INFO


def is_wanted(level: int) -> bool:
    """Whether anybody may want to know of events of this level.

    `Logger.isEnabledFor` says the same, but may be overridden, and takes logging's lock, which
    somebody may hold for long who reads a configuration.
    """
    if LOGGER.disabled or LOGGER.manager.disable >= level:
        return False
    logger: logging.Logger | None = LOGGER
    while logger is not None:
        if logger.level:
            return logger.level <= level
        logger = logger.parent
    return True


def emit(level: int, event: tuple[str, tuple[Any, ...], dict[str, Any]]) -> None:
    """Tell of an event: text, its arguments, and the record's attribute `loky`."""
    text, arguments, fields = event
    try:
        LOGGER.log(level, text, *arguments, extra={"loky": fields})
    except BaseException:  # of a filter or a handler; the pool has to go on
        if logging.raiseExceptions:
            import traceback

            traceback.print_exc()
