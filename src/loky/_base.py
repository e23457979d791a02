"""Compatibility only: `loky._base.Future`, under the module path that callers know."""

from __future__ import annotations

from .future import Future

__all__ = ["Future"]
