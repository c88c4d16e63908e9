"""What the batch jobs read and write in Delta: bronze and speed up to a batch, staged and published hours, logs.

The batch jobs are the only writers of batch, staged, publications, ledger and quality, one job at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow
from deltalake import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.model import Aggregate, Contract
from spark import tables


@dataclass(frozen=True)
class BatchStore:
    """The tables of one stream in one lake."""

    spark: SparkSession
    lake_uri: str
    contract: Contract

    # -- reads ---------------------------------------------------------------------------------------------------

    def accepted(self, through: int) -> DataFrame:
        """Accepted rows of bronze of batches up to `through`."""
        bronze = self._read(tables.bronze(self.lake_uri, self.contract.stream))
        return bronze.where("accepted").where(F.col("batch") <= through)

    def partials(self, aggregate: Aggregate, through: int) -> DataFrame:
        """The speed layer's partials of batches up to `through`."""
        uri = tables.speed(self.lake_uri, self.contract.stream, aggregate.name)
        return self._read(uri).where(F.col("batch") <= through)

    def staged(self, aggregate: Aggregate) -> DataFrame:
        return self._read(tables.staged(self.lake_uri, self.contract.stream, aggregate.name))

    def published(self, aggregate: Aggregate) -> DataFrame:
        return self._read(tables.batch(self.lake_uri, self.contract.stream, aggregate.name))

    def versions(self) -> dict[str, int]:
        """The newest Delta version of the batch table of each aggregate."""
        found = {}
        for aggregate in self.contract.aggregates:
            uri = tables.batch(self.lake_uri, self.contract.stream, aggregate.name)
            found[aggregate.name] = int(DeltaTable(tables.local_path(uri)).version())
        return found

    # -- writes --------------------------------------------------------------------------------------------------

    def stage(self, aggregate: Aggregate, windows: DataFrame) -> None:
        """Makes `windows` the whole of what is staged."""
        columns = tables.batch_schema(self.contract, aggregate).names
        uri = tables.staged(self.lake_uri, self.contract.stream, aggregate.name)
        windows.select(*columns).write.format("delta").mode("overwrite").save(uri)

    def replace(self, aggregate: Aggregate, hours: str) -> None:
        """Publishes what is staged in one commit, in place of all rows that fulfil `hours`, a predicate on `hour`."""
        uri = tables.batch(self.lake_uri, self.contract.stream, aggregate.name)
        self.staged(aggregate).write.format("delta").mode("overwrite").option("replaceWhere", hours).save(uri)

    def forget_ledger(self, published_runs: Iterable[str], title: str | None = None) -> None:
        """Removes the ledger rows of runs that never published: they died, or were refused. Rows of the stream, or of
        the derived result of that `title`."""
        stream = title or self.contract.stream
        ledger = DeltaTable(tables.local_path(tables.system(self.lake_uri, "ledger")))
        mine = ledger.to_pyarrow_table(columns=["run_id"], filters=[("stream", "=", stream)])
        unpublished = set(mine["run_id"].to_pylist()) - set(published_runs)
        if unpublished:
            runs = ", ".join(_quoted(run) for run in sorted(unpublished))
            ledger.delete(f"stream = {_quoted(stream)} and run_id in ({runs})")

    def append_ledger(self, rows: DataFrame) -> None:
        columns = tables.SYSTEM["ledger"].names
        rows.select(*columns).write.format("delta").mode("append").save(tables.system(self.lake_uri, "ledger"))

    def log_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Appends a few rows to the table `system/<name>`."""
        tables.append_rows(self.lake_uri, name, rows)

    def hours_frame(self, hours: Iterable[datetime]) -> DataFrame:
        """A few hours as a frame with the column `hour`."""
        return self.spark.createDataFrame(
            pyarrow.table({"hour": pyarrow.array(list(hours), pyarrow.timestamp("us", "UTC"))})
        )

    def runs_frame(self, run_ids: Iterable[str]) -> DataFrame:
        """A few run ids as a frame with the column `run_id`."""
        return self.spark.createDataFrame(pyarrow.table({"run_id": pyarrow.array(list(run_ids), pyarrow.string())}))

    def _read(self, uri: str) -> DataFrame:
        return self.spark.read.format("delta").load(uri)


def _quoted(text: str) -> str:
    """`text` as a literal of standard SQL, which is what deltalake reads."""
    return "'" + text.replace("'", "''") + "'"
