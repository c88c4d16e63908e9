"""JSON that every parser reads: Python's own writes NaN and Infinity, for which JSON (RFC 8259) has no numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any


def dumps(document: Any, default: Callable[[Any], Any] | None = None, indent: int | None = None) -> str:
    """Returns `document` as JSON. NaN, which means that a value is missing, becomes null, as a missing value is; the
    infinities become the strings "Infinity" and "-Infinity". `default` and `indent` are those of `json.dumps`; what
    `default` gives is written in the same way.

    Raises TypeError for a value that has no form."""
    return json.dumps(_finite(document, default), indent=indent, allow_nan=False)


def _finite(value: Any, default: Callable[[Any], Any] | None) -> Any:
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {_key(key, default): _finite(item, default) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item, default) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if default is None:
        raise TypeError(f"{type(value).__name__} has no form in JSON: {value!r}")
    return _finite(default(value), default)


def _key(key: Any, default: Callable[[Any], Any] | None) -> str:
    """The name of an object's member; a map may have keys of any type."""
    found = _finite(key, default)
    return found if isinstance(found, str) else json.dumps(found)
