"""The Delta tables that a contract needs, and their creation. No JVM is needed.

Tables are named by their URIs, which are under `settings().lake_uri`. Each table has one process that writes it
(`spark.lake.names.owner`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from deltalake import DeltaTable, Field, Schema
from pyspark.sql.types import StructType

from schemas.contract.model import Contract
from schemas.errors import TerminalError
from spark.definitions import stateful_results
from spark.lake import names
from spark.lake.table_schemas import (
    ALERTS,
    SYSTEM,
    batch_schema,
    bronze_schema,
    speed_schema,
    stateful_batch_schema,
    stateful_speed_schema,
)


class OtherType(TerminalError):
    """A table has a column of another type than the contract needs; the message names both, and the way out."""


class _Table(NamedTuple):
    uri: str
    schema: StructType
    partition_by: tuple[str, ...] = ()
    statistics: str | None = None
    """The columns that files have statistics of, separated by commas; None for all. Given for the tables that grow with
    each micro-batch."""
    typed: bool = True
    """Whether the types of its columns follow from a contract, which may change them."""


def create(lake_uri: str, contract: Contract) -> list[str]:
    """Creates the tables that `contract` needs (and those of `system/`) where they are missing, and adds nullable
    columns that the contract gained. Returns what was done, one line for each changed table; a second call returns
    nothing."""
    return [done for table in _tables(lake_uri, contract) if (done := _ensure(table))]


def create_of_stream(lake_uri: str, contract: Contract) -> list[str]:
    """As `create`, without the tables of `system/`."""
    return [done for table in _of_stream(lake_uri, contract) if (done := _ensure(table))]


def create_all_system(lake_uri: str) -> list[str]:
    """As `create`, the tables of `system/` alone."""
    return [done for name in SYSTEM if (done := create_system(lake_uri, name))]


def create_system(lake_uri: str, name: str) -> str | None:
    """Creates the table `system/<name>`, or adds the columns that it lacks. Returns what was done in words; None if
    nothing was."""
    return _ensure(_Table(names.system(lake_uri, name), SYSTEM[name], typed=False))


def uris(lake_uri: str, contract: Contract) -> list[str]:
    """Returns the URIs of the tables that `contract` needs, and of those of `system/`."""
    return [table.uri for table in _tables(lake_uri, contract)]


def _tables(lake_uri: str, contract: Contract) -> list[_Table]:
    system = [_Table(names.system(lake_uri, name), schema, typed=False) for name, schema in SYSTEM.items()]
    return _of_stream(lake_uri, contract) + system


def _of_stream(lake_uri: str, contract: Contract) -> list[_Table]:
    stream = contract.stream
    # Statistics on every column of a wide table cost a third of the append; who reads it needs only these three.
    wanted = [
        _Table(names.bronze(lake_uri, stream), bronze_schema(contract), ("accepted",), "batch,event_time,attempt")
    ]
    for aggregate in contract.aggregates:
        published = batch_schema(contract, aggregate)
        wanted += [
            _Table(
                names.speed(lake_uri, stream, aggregate.name), speed_schema(contract, aggregate),
                statistics="window_start,batch",
            ),
            _Table(names.batch(lake_uri, stream, aggregate.name), published),
            _Table(names.staged(lake_uri, stream, aggregate.name), published),
        ]  # fmt: skip
    if contract.alerts:
        wanted.append(_Table(names.alerts(lake_uri, stream), ALERTS, statistics="offset,event_time"))
    for result in contract.stateful_results:
        published = stateful_batch_schema(contract, result)
        wanted += [
            _Table(
                names.speed(lake_uri, stream, result.name), stateful_speed_schema(contract, result),
                statistics=f"{stateful_results.time_column(result)},{stateful_results.CLOSES_AT},batch",
            ),
            _Table(names.batch(lake_uri, stream, result.name), published),
            _Table(names.staged(lake_uri, stream, result.name), published),
        ]  # fmt: skip
    return wanted


def _ensure(table: _Table) -> str | None:
    """What was done to create the table, or to add the columns that it lacks; None if it was as it must be."""
    path = names.local_path(table.uri)
    delta = Schema.from_json(table.schema.json())
    if not DeltaTable.is_deltatable(path):
        if urlsplit(table.uri).scheme == "file":
            Path(path).mkdir(parents=True, exist_ok=True)
        configuration: dict[str, str | None] = {}
        if table.statistics:
            # A checkpoint of the log takes longer than a small commit, so tables that grow each second make fewer.
            configuration = {"delta.dataSkippingStatsColumns": table.statistics, "delta.checkpointInterval": "50"}
        DeltaTable.create(
            path, delta, mode="ignore", partition_by=list(table.partition_by), configuration=configuration
        )
        return f"created {table.uri}"
    found = DeltaTable(path)
    present = {field.name for field in found.schema().fields}
    if table.typed:
        _require_types(table, found.schema().fields)
    added = [field for field in delta.fields if field.name not in present]
    if not added:
        return None
    found.alter.add_columns(added)
    return f"added {', '.join(field.name for field in added)} to {table.uri}"


def _require_types(table: _Table, fields: Iterable[Field]) -> None:
    """Raises `OtherType` if a column has another type than the contract needs: writing into it would round, cut off or
    fail."""
    wanted = {column.name: column.dataType.simpleString() for column in table.schema}
    for field in fields:
        found = StructType.fromJson({"type": "struct", "fields": [json.loads(field.to_json())]}).fields[0]
        of_table = found.dataType.simpleString()
        if field.name in wanted and of_table != wanted[field.name]:
            raise OtherType(
                f"{table.uri} has the column {field.name} as {of_table}, and the contract needs {wanted[field.name]}: "
                "the type of a column does not change, so give the field or the measure another name"
            )
