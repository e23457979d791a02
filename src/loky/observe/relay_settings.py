"""What workers are told so that they send nothing that nobody here wants.

Rule: plain data only, and nothing is imported for it that the user has not imported.
"""

from __future__ import annotations

import sys
from typing import Any


class Levels:
    """The levels of the parent's loggers: workers need not send what nobody would see."""

    def __init__(self) -> None:
        self._told: Any = None

    def changed(self) -> bool:
        """Whether the root logger's level is not the one that workers were told."""
        return bool(self._general() != self._told)

    def renew(self) -> dict[str, int]:
        """What every worker is to be told from now on."""
        self._told = self._general()
        return self.read()

    def read(self) -> dict[str, int]:
        """Levels by logger's name, of those that have one; "" is the root, "-" what is disabled."""
        level, disabled = self._general()
        levels = {"": level, "-": disabled}
        logging = sys.modules.get("logging")
        if logging is not None:
            for name, logger in list(logging.root.manager.loggerDict.items()):
                if getattr(logger, "level", 0):
                    levels[name] = logger.level
        return levels

    @staticmethod
    def _general() -> tuple[int, int]:
        logging = sys.modules.get("logging")
        if logging is None:
            return 30, 0  # as it will be when somebody imports it
        return logging.root.level, logging.root.manager.disable


def warning_filters() -> list[tuple[str, str, str, str, str, int]]:
    """This process's filters of warnings: action, text, class (module and name), module, line."""
    import warnings

    filters = []
    entry: Any
    for entry in warnings.filters:
        action, message, category, module, lineno = entry
        # One that cannot be had in the worker is replaced by one that it may inherit from: if that
        # lets more pass, this process's own filters decide.
        classes = getattr(category, "__mro__", ())
        kind = next((k for k in classes if _is_importable(k)), Warning)
        filters.append(
            (
                action if kind is category else "always",
                getattr(message, "pattern", message) or "",
                kind.__module__,
                kind.__qualname__,
                getattr(module, "pattern", module) or "",
                lineno,
            )
        )
    return filters


def _is_importable(kind: type) -> bool:
    if kind.__module__ == "__main__" or not issubclass(kind, Warning):
        return False
    found: Any = getattr(sys.modules.get(kind.__module__), kind.__qualname__, None)
    return found is kind
