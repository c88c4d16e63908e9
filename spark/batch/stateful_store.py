"""What the batch layer reads and writes of one stateful result: its tables of each layer, and the logs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import duckdb
from deltalake import CommitProperties, DeltaTable, write_deltalake
from pyspark.sql.types import StructType

from schemas.contract.model import Contract, StatefulResult
from spark.batch.logs import BatchLogs
from spark.definitions import stateful_results
from spark.definitions.times import time_of
from spark.lake import names, table_schemas
from spark.lake.columnar import Queries, Wanted, delta_instant, ident

log = logging.getLogger("millrace.reconcile")

Layer = Callable[[str, str, str], str]
"""A function of `spark.lake.names` that names the tables of a layer: `speed`, `staged` or `batch`."""


@dataclass(frozen=True)
class StatefulStore(Queries):
    """The tables of the `result` of `contract` in one lake, as relations of DuckDB. `may_commit` is called before each
    write and raises when this process must not (any more)."""

    lake_uri: str
    contract: Contract
    result: StatefulResult
    may_commit: Callable[[], None]
    connection: duckdb.DuckDBPyConnection

    @property
    def logs(self) -> BatchLogs:
        """The tables of `system/` that a batch job writes."""
        return BatchLogs(self.lake_uri, stateful_results.title(self.contract, self.result), self.may_commit)

    def uri(self, layer: Layer) -> str:
        """The place of the result's table in a layer."""
        return layer(self.lake_uri, self.contract.stream, self.result.name)

    def read(self, layer: Layer, wanted: Wanted = lambda file: True) -> str:
        """Returns the rows of the result's table in a layer, with `$at`, the time of the row in microseconds. Rows of
        files that are not `wanted` need not be among them."""
        rows = self.scan(self.uri(layer), self._schema(layer), wanted)
        return f'(select *, epoch_us({ident(self.time_column)}) as "$at" from {rows})'

    @property
    def time_column(self) -> str:
        """The column by whose time a row has its place among those of its key."""
        return stateful_results.time_column(self.result)

    def replace(self, removed: str, added: str, run_id: str) -> None:
        """Publishes in one commit: the rows of the batch table that `removed` has are gone, and those of `added` are
        there, of the run `run_id`. Both have the columns of the table. Rows that only come are appended; else the time
        from the first to the last row that comes or goes is written anew."""
        schema = self._schema(names.batch)
        columns, at = ", ".join(map(ident, schema.names)), f"epoch_us({ident(self.time_column)})"
        staged, written_anew = f"select {columns} from {added}", None
        if self.has_rows(removed):
            [span] = self.rows(f"select min({at}), max({at}) from (from {removed} union all by name from {added})")
            first, last = map(time_of, span)
            inside = self.read(names.batch, lambda file: file.may_hold(self.time_column, first, last))
            kept = f"""select {columns} from {inside} where "$at" between {span[0]} and {span[1]}"""
            staged += f" union all ({kept} except all select {columns} from {removed})"
            time = ident(self.time_column)
            written_anew = f"{time} >= {delta_instant(first)} and {time} <= {delta_instant(last)}"
        self.may_commit()
        rows = self.reader(f"select * from ({staged}) order by {ident(self.time_column)}", schema)
        write_deltalake(names.local_path(self.uri(names.staged)), rows, mode="overwrite")
        table, committed = names.local_path(self.uri(names.batch)), CommitProperties({"userMetadata": run_id})
        published = self.reader(f"select {columns} from {self.read(names.staged)}", schema)
        self.may_commit()
        if written_anew is None:
            write_deltalake(table, published, mode="append", commit_properties=committed)
        else:
            write_deltalake(table, published, mode="overwrite", predicate=written_anew, commit_properties=committed)

    def undo(self, known: set[str], title: str) -> None:
        """Takes the batch table back to its last published version, if a run that is not among those `known` to have
        published has written it since."""
        table = DeltaTable(names.local_path(self.uri(names.batch)))
        # Newest first; what is neither a run's nor takes one back (a compaction) changes no row.
        telling = [
            entry
            for entry in table.history()
            if "userMetadata" in entry or entry["operation"] in ("RESTORE", "CREATE TABLE")
        ]
        good = next(entry for entry in telling if entry.get("userMetadata") is None or entry["userMetadata"] in known)
        if good is not telling[0]:
            log.warning("%s: an unfinished run is undone, back to version %d", title, good["version"])
            self.may_commit()
            table.restore(good["version"])

    def _schema(self, layer: Layer) -> StructType:
        make = table_schemas.stateful_speed_schema if layer is names.speed else table_schemas.stateful_batch_schema
        return make(self.contract, self.result)
