"""The served views in DuckDB, without a JVM, a server or a network."""

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
    """Returns a connection in memory that has every view of `contracts` (default: all of `settings.contracts`). Times
    are UTC.

    The views show the `snapshot`. Without one, final windows show what is published now, while logs, events and open
    windows show the newest committed state at each query. A table that does not exist is empty.
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
    """Writes the catalog file `settings.catalog_file`, which any DuckDB with the extension `delta` can open, and
    returns its path.

    Final windows show what is published now, until the file is written again; open windows show the newest state at
    each query. Measures that need a sketch (distinct counts, quantiles) are null in open windows, because a file does
    not keep functions of Python. Clients that have the previous file open keep reading that one.
    """
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
    """Creates the views of `contracts`, as the `snapshot` pins them, in a connection that has loaded the extension
    `delta`. With `estimates` the views use the functions of `spark.serving.sketches`, which the connection must
    have."""
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
        """A relation that fails when a row of it is read, so that queries that need no row of it are answered."""
        why = "error('" + f"the state of {uri} at that time is not kept any more".replace("'", "''") + "')"
        columns = connection.execute(f"describe {empty(uri, schema)}").fetchall()
        values = ", ".join(f'cast({why}::varchar as {type_}) as "{name}"' for name, type_, *_ in columns)
        return f"(select {values})"

    for contract in contracts:
        horizon = snapshot.final_through(contract.stream)
        for name, select in views(contract, "duckdb", lake_uri, scan, horizon, estimates).items():
            connection.execute(f'create or replace view "{name}" as {select}')
