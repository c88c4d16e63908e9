"""Small JSON documents that one process keeps and others read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any] | None:
    """The document in the file; None if there is no file."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        return document
    except FileNotFoundError:
        return None


def swap(path: Path, document: dict[str, Any]) -> None:
    """Writes `document` in place of what is there, whole or not at all, so that a reader never sees half of it. Makes
    the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(document))
    scratch.replace(path)
