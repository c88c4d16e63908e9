"""The served views in DuckDB, without a JVM, a server or a network."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from duckdb_extensions import import_extension
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from infra.deployed import contracts_in_service
from infra.settings import Settings
from schemas.contract.model import Contract
from spark.lake.names import local_path
from spark.serving import sketches
from spark.serving.snapshot import Snapshot, published
from spark.serving.views import Scan, views

UNREADABLE = (duckdb.Error, DeltaError, OSError)
"""What a table raises that is damaged, or whose files are away."""


def connect(
    settings: Settings, contracts: list[Contract] | None = None, snapshot: Snapshot | None = None
) -> duckdb.DuckDBPyConnection:
    """Returns a connection in memory that has every view of `contracts` (default: all that are in service). Times
    are UTC.

    The views show the `snapshot`. Without one, final windows show what is published now, while logs, events and open
    windows show the newest committed state at each query. A table that does not exist is empty.
    """
    connection = duckdb.connect()
    connection.execute("set TimeZone = 'UTC'")
    prepare(connection)
    shown = list(contracts_in_service(settings).values()) if contracts is None else contracts
    create_views(connection, shown, settings.lake_uri, snapshot or published(settings.lake_uri, shown))
    return connection


def prepare(connection: duckdb.DuckDBPyConnection) -> None:
    """Gives a connection what `create_views` needs: the extension `delta`, and the functions of sketches."""
    import_extension("delta")
    connection.execute("load delta")
    sketches.register(connection)


def write_catalog(settings: Settings) -> Path:
    """Writes the catalog file `settings.catalog_file`, which any DuckDB with the extension `delta` can open, and
    returns its path.

    Final windows show what is published now, until the file is written again; open windows show the newest state at
    each query. Measures that need a sketch (distinct counts, quantiles) are null in open windows, because a file does
    not keep functions of Python. Clients that have the previous file open keep reading that one.
    """
    contracts = list(contracts_in_service(settings).values())
    file = settings.catalog_file
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    import_extension("delta")
    try:
        with duckdb.connect(part) as connection:
            connection.execute("load delta")
            now = published(settings.lake_uri, contracts)
            create_views(connection, contracts, settings.lake_uri, now, estimates=False)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return file


def create_views(
    connection: duckdb.DuckDBPyConnection,
    contracts: list[Contract],
    lake_uri: str,
    snapshot: Snapshot,
    estimates: bool = True,
) -> None:
    """Creates the views of `contracts`, as the `snapshot` pins them, in a connection that has loaded the extension
    `delta`. With `estimates` the views use the functions of `spark.serving.sketches`, which the connection must
    have. A table that cannot be read (its log is damaged, say) is an error of the queries that need a row of it, and of
    no other."""
    connection.execute("create schema if not exists missing")
    relations = _Relations(connection, snapshot)

    def create(contract: Contract, scan: Scan) -> None:
        horizon = snapshot.final_through(contract.stream)
        for name, select in views(contract, "duckdb", lake_uri, scan, horizon, estimates).items():
            connection.execute(f'create or replace view "{name}" as {select}')

    for contract in contracts:
        try:
            create(contract, relations.scan)
        except UNREADABLE:  # a damaged table, or one without a column that came later
            create(contract, relations.completed)


@dataclass
class _Relations:
    """The tables of the lake as relations of DuckDB."""

    connection: duckdb.DuckDBPyConnection
    snapshot: Snapshot
    unreadable: dict[str, str] = field(default_factory=dict)
    """Why tables cannot be read, by URI."""

    def scan(self, uri: str, schema: StructType) -> str:
        if uri in self.snapshot.gone:
            return self._failing(uri, schema, f"the state of {uri} at that time is not kept any more")
        if uri in self.unreadable:
            return self._failing(uri, schema, self.unreadable[uri])
        path = local_path(uri)
        version = self.snapshot.versions.get(uri, "newest")
        if version is not None and DeltaTable.is_deltatable(path):
            quoted = "'" + path.replace("'", "''") + "'"
            return f"delta_scan({quoted})" if version == "newest" else f"delta_scan({quoted}, version = {version})"
        return self._empty(uri, schema)

    def completed(self, uri: str, schema: StructType) -> str:
        """As `scan`, with null for the columns that the table did not have yet (they came with a measure, or with a
        version of the platform), and failing if it cannot be read. It costs a look at the table's log."""
        try:
            relation = self.scan(uri, schema)
            present = {row[0].lower() for row in self.connection.execute(f"describe from {relation}").fetchall()}
        except UNREADABLE as error:
            self.unreadable[uri] = f"{uri} cannot be read: {str(error).splitlines()[0]}"
            return self._failing(uri, schema, self.unreadable[uri])
        columns = self.connection.execute(f"describe {self._empty(uri, schema)}").fetchall()
        lacking = [f'null::{type_} as "{name}"' for name, type_, *_ in columns if name.lower() not in present]
        return f"(select *, {', '.join(lacking)} from {relation})" if lacking else relation

    def _empty(self, uri: str, schema: StructType) -> str:
        name = f'missing."{uri}"'
        self.connection.register("nothing", to_arrow_schema(schema, timezone="UTC").empty_table())
        self.connection.execute(f"create table if not exists {name} as from nothing")
        self.connection.unregister("nothing")
        return name

    def _failing(self, uri: str, schema: StructType, reason: str) -> str:
        """A relation that fails when a row of it is read or counted, so that queries that need no row of it are
        answered. (Its values fail too: DuckDB would compare null ones with a condition, and find no row.)"""
        why = "error('" + reason.replace("'", "''") + "')"
        columns = self.connection.execute(f"describe {self._empty(uri, schema)}").fetchall()
        values = ", ".join(f'cast({why}::varchar as {type_}) as "{name}"' for name, type_, *_ in columns)
        return f"(select {values} from range(1) where {why}::boolean)"
