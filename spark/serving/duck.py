"""The served views in DuckDB: no JVM, no server, no network."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
from deltalake import DeltaTable
from duckdb_extensions import import_extension
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from infra.settings import Settings
from schemas.contract.catalog import catalog
from schemas.contract.model import Contract
from spark.lake.names import local_path
from spark.serving import sketches
from spark.serving.snapshot import Snapshot, published
from spark.serving.views import views


def connect(
    settings: Settings, contracts: list[Contract] | None = None, snapshot: Snapshot | None = None
) -> duckdb.DuckDBPyConnection:
    """A connection in memory with every view of `contracts` (default: all of `settings.contracts`); times are UTC.

    The views are of the `snapshot`. Without one the windows are those of what is published now, while logs, events and
    open windows show the newest committed state each time they are asked. A table that does not exist is empty.
    """
    import_extension("delta")
    connection = duckdb.connect()
    connection.execute("load delta")
    connection.execute("set TimeZone = 'UTC'")
    sketches.register(connection)
    shown = list(catalog(settings.contracts).values()) if contracts is None else contracts
    create_views(connection, shown, settings.lake_uri, snapshot or published(settings.lake_uri, shown))
    return connection


def write_catalog(settings: Settings) -> Path:
    """Writes the views into `settings.catalog_file`, which any DuckDB with the extension `delta` can open, and returns
    it. They show what is published now until the file is written again, and open windows live; what needs a sketch
    (distinct counts, quantiles) is null in open windows, because functions of Python are not kept in a file. Clients
    that have the last file open go on with that one."""
    contracts = list(catalog(settings.contracts).values())
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
    """Makes the views of `contracts` in a connection that has the extension `delta` and, for `estimates`, the functions
    of `sketches`."""
    connection.execute("create schema if not exists missing")

    def scan(uri: str, schema: StructType) -> str:
        if uri in snapshot.gone:
            return failing(uri, schema)
        path = local_path(uri)
        version = snapshot.versions.get(uri, "newest")
        if version is not None and DeltaTable.is_deltatable(path):
            quoted = "'" + path.replace("'", "''") + "'"
            return f"delta_scan({quoted})" if version == "newest" else f"delta_scan({quoted}, version = {version})"
        return empty(uri, schema)

    def empty(uri: str, schema: StructType) -> str:
        name = f'missing."{uri}"'
        connection.register("nothing", to_arrow_schema(schema, timezone="UTC").empty_table())
        connection.execute(f"create table if not exists {name} as from nothing")
        connection.unregister("nothing")
        return name

    def failing(uri: str, schema: StructType) -> str:
        """A relation that fails where a row of it is read, so that what needs none is answered."""
        why = "error('" + f"the state of {uri} at that time is not kept any more".replace("'", "''") + "')"
        columns = connection.execute(f"describe {empty(uri, schema)}").fetchall()
        values = ", ".join(f'cast({why}::varchar as {type_}) as "{name}"' for name, type_, *_ in columns)
        return f"(select {values})"

    for contract in contracts:
        horizon = snapshot.final_through(contract.stream)
        for name, select in views(contract, "duckdb", lake_uri, scan, horizon, estimates).items():
            connection.execute(f'create or replace view "{name}" as {select}')
