"""Files that may hold secrets."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import NamedTemporaryFile


def write_private(path: Path, content: str | bytes) -> Path:
    """Writes a file with mode 0600 from its first byte, replacing an older one in one step. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    scratch.replace(path)
    return path


def create_private(path: Path, content: str) -> bool:
    """Makes a file with mode 0600 unless it is there; returns whether it did. Nobody ever sees it half written."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.") as scratch:  # has mode 0600
        scratch.write(content)
        scratch.flush()
        try:
            os.link(scratch.name, path)
        except FileExistsError:
            return False
    return True
