"""What the batch layer of windows reads and writes in Delta: bronze and speed up to a batch, staged and published
hours.

The batch jobs are the only writers of batch, staged, publications, ledger and quality, one job at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
from deltalake import DeltaTable, write_deltalake
from pyspark.sql.types import DataType, StructType

from infra.settings import Settings
from schemas.contract.model import Aggregate, Contract
from spark.batch.logs import BatchLogs
from spark.definitions import measures
from spark.definitions.times import floor_hour, time_of
from spark.lake import contents, names, retention, table_schemas
from spark.lake.columnar import File, Queries, Wanted, connect, ident, instant, quoted


@contextmanager
def engine(config: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    """Gives a connection in which a batch job computes, within the memory that the settings give it. What does not fit
    is in a folder of the process's own, and goes with the connection."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(prefix="spilled-", dir=config.run_dir) as spilled,
        connect(config.batch_memory, Path(spilled)) as connection,
    ):
        yield connection


def iso(column: str) -> str:
    """Returns the SQL of a time as ISO 8601 in UTC, with microseconds: pandas and Python do not reach all years."""
    return f"strftime({column}, '%Y-%m-%dT%H:%M:%S.%fZ')"


def with_iso_hours(sql: str) -> str:
    """Returns the rows of a query whose column `hour` is `iso`."""
    return f"select * replace ({iso('hour')} as hour) from ({sql})"


def _types(uri: str) -> dict[str, DataType]:
    schema = StructType.fromJson(json.loads(DeltaTable(names.local_path(uri)).schema().to_json()))
    return {field.name: field.dataType for field in schema}


@dataclass(frozen=True)
class BatchStore(Queries):
    """The tables of one stream in one lake, as relations of DuckDB. `may_commit` is called before each write and raises
    when this process must not (any more)."""

    lake_uri: str
    contract: Contract
    may_commit: Callable[[], None] = lambda: None
    connection: duckdb.DuckDBPyConnection = field(default_factory=lambda: connect("1g"))

    @property
    def logs(self) -> BatchLogs:
        """The tables of `system/` that a batch job writes."""
        return BatchLogs(self.lake_uri, self.contract.stream, self.may_commit)

    # -- reads ---------------------------------------------------------------------------------------------------

    def accepted(self, columns: Iterable[str], through: int | None = None, wanted: Wanted = lambda file: True) -> str:
        """Returns the accepted rows of bronze as SQL, of batches up to `through` if that is given, with `$micros`, the
        event time. Rows of files that are not `wanted` need not be among them."""
        asked = dict.fromkeys([*columns, "batch", "event_time"])
        schema = table_schemas.bronze_schema(self.contract)

        def of_mine(file: File) -> bool:
            return file.partition("accepted") and file.may_hold("batch", most=through) and wanted(file)

        rows = self.scan(
            names.bronze(self.lake_uri, self.contract.stream),
            StructType([column for column in schema if column.name in asked]),
            of_mine,
        )
        cut = "true" if through is None else f"batch <= {through}"
        return f'(select *, epoch_us(event_time) as "$micros" from {rows} where {cut})'

    def partials(self, aggregate: Aggregate, through: int, wanted: Wanted = lambda file: True) -> str:
        """Returns the speed layer's partials of batches up to `through` as SQL, with `$micros`, the start of their
        minute."""
        rows = self.scan(
            names.speed(self.lake_uri, self.contract.stream, aggregate.name),
            table_schemas.speed_schema(self.contract, aggregate),
            lambda file: file.may_hold("batch", most=through) and wanted(file),
        )
        return f'(select *, epoch_us(window_start) as "$micros" from {rows} where batch <= {through})'

    def first_batches(self, aggregate: Aggregate, through: int) -> dict[str, int]:
        """For each measure of the aggregate the first batch whose partials have its states, `through` + 1 for none: a
        measure that is added to a running stream is in the speed layer from then on."""
        kept = {
            measure.name: " and ".join(
                f"{ident(state.name)} is not null"
                for state in measures.states(aggregate.model_copy(update={"measures": [measure]}), self.contract)
            )
            for measure in aggregate.measures
        }
        firsts = ", ".join(f"min(batch) filter ({there})" for there in kept.values())
        [found] = self.rows(f"select {firsts} from {self.partials(aggregate, through)}")
        return {name: through + 1 if first is None else first for name, first in zip(kept, found, strict=True)}

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
        parts = [f"not (aggregate = '{name}' and hour < {instant(since)})" for name, since in found.items() if since]
        return " and ".join(parts) or "true"

    def published(self, aggregate: Aggregate, wanted: Wanted = lambda file: True) -> str:
        """Returns the rows of the batch table as SQL. Rows of files that are not `wanted` need not be among them."""
        uri = names.batch(self.lake_uri, self.contract.stream, aggregate.name)
        return self.scan(uri, table_schemas.batch_schema(self.contract, aggregate), wanted)

    def staged(self, aggregate: Aggregate) -> str:
        """Returns what is staged as SQL."""
        uri = names.staged(self.lake_uri, self.contract.stream, aggregate.name)
        return self.scan(uri, table_schemas.batch_schema(self.contract, aggregate))

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
        mine = ", ".join(map(quoted, run_ids))
        hours = self.rows(f"select distinct epoch_us(hour) from {self.published(aggregate)} where run_id in ({mine})")
        return {time_of(micros) for (micros,) in hours}

    def bronze_rows(self) -> int:
        """The number of rows of bronze, from its log."""
        return contents.rows(names.bronze(self.lake_uri, self.contract.stream))

    def bronze_types(self) -> dict[str, DataType]:
        """The columns of bronze and their types, from its log."""
        return _types(names.bronze(self.lake_uri, self.contract.stream))

    def partial_types(self, aggregate: Aggregate) -> dict[str, DataType]:
        """The columns of the speed table and their types, from its log."""
        return _types(names.speed(self.lake_uri, self.contract.stream, aggregate.name))

    def staged_types(self, aggregate: Aggregate) -> dict[str, DataType]:
        """The columns of what is staged and their types, from its log."""
        return _types(names.staged(self.lake_uri, self.contract.stream, aggregate.name))

    def published_types(self, aggregate: Aggregate) -> dict[str, DataType]:
        """The columns of the batch table and their types, from its log."""
        return _types(names.batch(self.lake_uri, self.contract.stream, aggregate.name))

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

    def stage(self, aggregate: Aggregate, windows: str) -> None:
        """Makes `windows`, a query, the whole of what is staged."""
        schema = table_schemas.batch_schema(self.contract, aggregate)
        self.may_commit()
        uri = names.staged(self.lake_uri, self.contract.stream, aggregate.name)
        write_deltalake(names.local_path(uri), self.reader(windows, schema), mode="overwrite")

    def replace(self, aggregate: Aggregate, hours: str) -> None:
        """Publishes what is staged in one commit, in place of all rows that fulfil `hours`, a predicate on `hour`."""
        self.may_commit()
        uri = names.batch(self.lake_uri, self.contract.stream, aggregate.name)
        schema = table_schemas.batch_schema(self.contract, aggregate)
        staged = self.reader(f"select * from {self.staged(aggregate)} order by hour", schema)
        write_deltalake(names.local_path(uri), staged, mode="overwrite", predicate=hours)
