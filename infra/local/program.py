"""What supervisor runs: a program, and the private files that it reads."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infra.private_files import write_private


@dataclass(frozen=True)
class Program:
    """A supervised process. `files` are its configuration: when their content changes, `up` restarts it."""

    name: str
    command: Sequence[str | Path]
    directory: Path
    files: Sequence[Path] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = "TERM"
    stop_seconds: int = 30
    signal_group: bool = True
    """Whether children get the stop signal too (else only the process itself, which stops its own children)."""

    @property
    def command_line(self) -> str:
        """The command, quoted for supervisord."""
        return shlex.join(str(part) for part in self.command)

    @property
    def fingerprint(self) -> str:
        """A hash of the configuration files, which changes when any of them does."""
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


def java_arguments(path: Path, arguments: Sequence[str | Path]) -> Path:
    """Writes arguments of `java` (options, main class and its arguments) as a file for `java @file`, so that neither
    passwords nor a class path of fifty jars appear in the process list. Returns the file."""
    quoted = ['"' + str(part).replace("\\", "\\\\").replace('"', '\\"') + '"' for part in arguments]
    return write_private(path, "\n".join(quoted) + "\n")
