"""The tables of `system/` that batch jobs write: ledger, publications, quality and refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow
from deltalake import DeltaTable, write_deltalake

from spark.lake import contents, names
from spark.lake.columnar import quoted


@dataclass(frozen=True)
class BatchLogs:
    """The logs in one lake. `subject` is the stream, or the title of the stateful result, that ledger rows are about.
    `may_commit` is called before each write and raises when this process must not (any more)."""

    lake_uri: str
    subject: str
    may_commit: Callable[[], None] = lambda: None

    def forget_ledger(self, published_runs: Iterable[str]) -> None:
        """Removes the ledger rows of runs that never published: they died, or were refused."""
        self.may_commit()
        ledger = DeltaTable(self._ledger)
        mine = ledger.to_pyarrow_table(columns=["run_id"], filters=[("stream", "=", self.subject)])
        unpublished = set(mine["run_id"].to_pylist()) - set(published_runs)
        if unpublished:
            runs = ", ".join(quoted(run) for run in sorted(unpublished))
            ledger.delete(f"stream = {quoted(self.subject)} and run_id in ({runs})")

    def append_ledger(self, rows: pyarrow.RecordBatchReader | pyarrow.Table) -> None:
        """Appends rows in the columns of `table_schemas.SYSTEM["ledger"]`."""
        self.may_commit()
        write_deltalake(self._ledger, rows, mode="append")

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Appends a few rows to the table `system/<name>`."""
        self.may_commit()
        contents.append_rows(self.lake_uri, name, rows)

    @property
    def _ledger(self) -> str:
        return names.local_path(names.system(self.lake_uri, "ledger"))
