"""The checks that the start of every query has in common: its files can be read, its checkpoint and its table fit
together, and its contract has not changed what may not change. One that fails refuses the start, with the way out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from schemas.contract.model import Contract
from schemas.errors import Halt
from spark.speed.checkpoint.fingerprint import Fingerprint, changes
from spark.speed.checkpoint.spark_log import Unreadable

T = TypeVar("T")


class CheckpointRefused(Halt):
    """A query must not start from its checkpoint; the message says why and what to do."""


@dataclass(frozen=True)
class StartCheck:
    """The checks of one query. `query` is how messages name it, and `way_out` what a reset of its checkpoint does, with
    the command. Every check raises `CheckpointRefused`."""

    query: str
    way_out: str

    def readable(self, read: Callable[[], T]) -> T:
        """Returns what `read` does; refuses the start if that raises `Unreadable`."""
        try:
            return read()
        except Unreadable as error:
            raise self._refused(f"{error}. Put the file back from a copy, or {self.way_out}") from error

    def require_fit(self, misfit: str | None) -> None:
        """Refuses the start if there is a `misfit`: why checkpoint and table do not belong together."""
        if misfit:
            raise self._refused(f"{misfit}. Put the right checkpoint back from a copy, or {self.way_out}")

    def require_unchanged(self, contract: Contract, before: Fingerprint, now: Fingerprint, otherwise: str) -> None:
        """Refuses the start if what both fingerprints name differs. `otherwise` is the way out of a change that a reset
        does not allow."""
        changed = changes(before, now)
        if changed:
            shown = "; ".join(f"{change.name}: {change.before!r} became {change.now!r}" for change in changed)
            way_out = self.way_out if all(change.resettable for change in changed) else otherwise
            file = contract.folder / "stream.yaml"
            raise self._refused(f"{file} changed what may not change ({shown}). Undo it, or {way_out}")

    def _refused(self, why: str) -> CheckpointRefused:
        return CheckpointRefused(f"{self.query} does not start: {why}")
