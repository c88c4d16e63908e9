"""What is wrong with a contract, and where. Loading and checking both report it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import TerminalError


@dataclass(frozen=True, order=True)
class Problem:
    """One fault of a contract: `file`, 1-based `line`, `field` (a dotted path, "" for the whole file), `message`."""

    file: Path
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        file = self.file.relative_to(Path.cwd()) if self.file.is_relative_to(Path.cwd()) else self.file
        return f"{file}:{self.line}: {self.field + ': ' if self.field else ''}{self.message}"


class ContractError(TerminalError):
    """A contract cannot be used. `problems` holds every fault; `file`, `line` and `field` are those of the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        first = self.problems[0]
        self.file, self.line, self.field = first.file, first.line, first.field
        super().__init__("\n".join(str(problem) for problem in self.problems))
