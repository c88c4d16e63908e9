"""The served views in DuckDB: no JVM, no server, no network."""

from __future__ import annotations

import duckdb
from deltalake import DeltaTable
from duckdb_extensions import import_extension
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from infra.settings import Settings
from schemas.catalog import catalog
from schemas.model import Contract
from spark.serving import sketches
from spark.serving.views import views
from spark.tables import local_path


def connect(settings: Settings, contracts: list[Contract] | None = None) -> duckdb.DuckDBPyConnection:
    """A connection in memory with every view of `contracts` (default: all of `settings.contracts`); times are UTC.

    A view shows the newest committed state each time it is asked. A table that does not exist yet is empty.
    """
    import_extension("delta")
    connection = duckdb.connect()
    connection.execute("load delta")
    connection.execute("set TimeZone = 'UTC'")
    connection.execute("create schema missing")
    sketches.register(connection)

    def scan(uri: str, schema: StructType) -> str:
        path = local_path(uri)
        if DeltaTable.is_deltatable(path):
            return f"delta_scan('{path.replace(chr(39), chr(39) * 2)}')"
        name = f'missing."{uri}"'
        connection.register("nothing", to_arrow_schema(schema, timezone="UTC").empty_table())
        connection.execute(f"create table if not exists {name} as from nothing")
        connection.unregister("nothing")
        return name

    for contract in catalog(settings.contracts).values() if contracts is None else contracts:
        for name, select in views(contract, "duckdb", settings.lake_uri, scan).items():
            connection.execute(f'create or replace view "{name}" as {select}')
    return connection
