"""What the batch jobs read and write in Delta: bronze and speed up to a batch, staged and published hours, logs.

The batch jobs are the only writers of batch, staged, publications, ledger and quality, one job at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from operator import and_
from typing import Any

import pyarrow
from deltalake import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.contract.model import Aggregate, Contract
from spark.definitions import measures
from spark.definitions.times import floor_hour, literal, time_of
from spark.lake import contents, names, retention, table_schemas


@dataclass(frozen=True)
class BatchStore:
    """The tables of one stream in one lake. `may_commit` is called before each write and raises when this process must
    not (any more)."""

    spark: SparkSession
    lake_uri: str
    contract: Contract
    may_commit: Callable[[], None] = lambda: None

    # -- reads ---------------------------------------------------------------------------------------------------

    def accepted(self, through: int | None = None) -> DataFrame:
        """Accepted rows of bronze, of batches up to `through` if that is given."""
        rows = self._read(names.bronze(self.lake_uri, self.contract.stream)).where("accepted")
        return rows if through is None else rows.where(F.col("batch") <= through)

    def partials(self, aggregate: Aggregate, through: int) -> DataFrame:
        """The speed layer's partials of batches up to `through`."""
        uri = names.speed(self.lake_uri, self.contract.stream, aggregate.name)
        return self._read(uri).where(F.col("batch") <= through)

    def first_batches(self, aggregate: Aggregate, through: int) -> dict[str, int]:
        """For each measure of the aggregate the first batch whose partials have its states, `through` + 1 for none: a
        measure that is added to a running stream is in the speed layer from then on."""
        kept = {
            measure.name: [
                F.col(state.name).isNotNull()
                for state in measures.states(aggregate.model_copy(update={"measures": [measure]}), self.contract)
            ]
            for measure in aggregate.measures
        }
        found = self.partials(aggregate, through).agg(
            *(F.min(F.when(reduce(and_, there), F.col("batch"))).alias(name) for name, there in kept.items())
        )
        [row] = found.collect()
        return {name: through + 1 if first is None else first for name, first in row.asDict().items()}

    def began(self) -> dict[str, int]:
        """By aggregate, the oldest batch of its partials; none for those without any. From file statistics."""
        place = (self.lake_uri, self.contract.stream)
        found = {a.name: contents.batches(names.speed(*place, a.name)) for a in self.contract.aggregates}
        return {name: oldest_newest[0] for name, oldest_newest in found.items() if oldest_newest}

    def kept_since(self) -> datetime | None:
        """Since when (UTC) the batch tables have all hours; None while they have all that were published."""
        place = (self.lake_uri, self.contract.stream)
        return retention.newest_kept_since(names.batch(*place, a.name) for a in self.contract.aggregates)

    def has_partials(self) -> str:
        """The hours of which the speed tables have all partials, as a SQL predicate on `aggregate` and `hour`."""
        place = (self.lake_uri, self.contract.stream)
        found = {a.name: retention.kept_since(names.speed(*place, a.name)) for a in self.contract.aggregates}
        parts = [f"not (aggregate = '{name}' and hour < {literal(since)})" for name, since in found.items() if since]
        return " and ".join(parts) or "true"

    def staged(self, aggregate: Aggregate) -> DataFrame:
        return self._read(names.staged(self.lake_uri, self.contract.stream, aggregate.name))

    def published(self, aggregate: Aggregate) -> DataFrame:
        return self._read(names.batch(self.lake_uri, self.contract.stream, aggregate.name))

    def versions(self) -> dict[str, int]:
        """The newest Delta version of the batch table of each aggregate."""
        found = {}
        for aggregate in self.contract.aggregates:
            uri = names.batch(self.lake_uri, self.contract.stream, aggregate.name)
            found[aggregate.name] = int(DeltaTable(names.local_path(uri)).version())
        return found

    def hours_of(self, aggregate: Aggregate, run_ids: Iterable[str]) -> set[datetime]:
        """The hours (UTC) whose published rows are of one of the runs."""
        if not (run_ids := list(run_ids)):
            return set()
        rows = self.published(aggregate).join(F.broadcast(self.runs_frame(run_ids)), "run_id", "left_semi")
        micros = rows.select(F.unix_micros("hour").alias("hour")).distinct().collect()
        return {time_of(row.hour) for row in micros}

    def corrected(self, run_ids: Iterable[str]) -> dict[str, set[datetime]]:
        """By aggregate, the hours (UTC) in which one of the runs has taken exact values that nothing explained, because
        a person ordered it."""
        ledger = DeltaTable(names.local_path(names.system(self.lake_uri, "ledger")))
        mine = [("stream", "=", self.contract.stream), ("cause", "=", "corrected")]
        rows = ledger.to_pyarrow_table(columns=["run_id", "aggregate", "window_start"], filters=mine).to_pylist()
        known, found = set(run_ids), dict[str, set[datetime]]()
        for row in rows:
            if row["run_id"] in known:
                found.setdefault(row["aggregate"], set()).add(floor_hour(row["window_start"].astimezone(UTC)))
        return found

    # -- writes --------------------------------------------------------------------------------------------------

    def stage(self, aggregate: Aggregate, windows: DataFrame) -> None:
        """Makes `windows` the whole of what is staged."""
        self.may_commit()
        columns = table_schemas.batch_schema(self.contract, aggregate).names
        uri = names.staged(self.lake_uri, self.contract.stream, aggregate.name)
        windows.select(*columns).write.format("delta").mode("overwrite").save(uri)

    def replace(self, aggregate: Aggregate, hours: str) -> None:
        """Publishes what is staged in one commit, in place of all rows that fulfil `hours`, a predicate on `hour`."""
        self.may_commit()
        uri = names.batch(self.lake_uri, self.contract.stream, aggregate.name)
        self.staged(aggregate).write.format("delta").mode("overwrite").option("replaceWhere", hours).save(uri)

    def forget_ledger(self, published_runs: Iterable[str], title: str | None = None) -> None:
        """Removes the ledger rows of runs that never published: they died, or were refused. Rows of the stream, or of
        the stateful result of that `title`."""
        self.may_commit()
        stream = title or self.contract.stream
        ledger = DeltaTable(names.local_path(names.system(self.lake_uri, "ledger")))
        mine = ledger.to_pyarrow_table(columns=["run_id"], filters=[("stream", "=", stream)])
        unpublished = set(mine["run_id"].to_pylist()) - set(published_runs)
        if unpublished:
            runs = ", ".join(_quoted(run) for run in sorted(unpublished))
            ledger.delete(f"stream = {_quoted(stream)} and run_id in ({runs})")

    def append_ledger(self, rows: DataFrame) -> None:
        self.may_commit()
        columns = table_schemas.SYSTEM["ledger"].names
        rows.select(*columns).write.format("delta").mode("append").save(names.system(self.lake_uri, "ledger"))

    def log_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Appends a few rows to the table `system/<name>`."""
        self.may_commit()
        contents.append_rows(self.lake_uri, name, rows)

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
