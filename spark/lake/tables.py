"""Names, schemas and creation of the Delta tables, and which batches they hold.

No JVM is needed for any of it. Every path is a URI under `settings().lake_uri`. Each table has one writing
process: the streaming driver writes bronze and speed, the batch jobs everything else but `system/replays` and
`system/moves`, which the replay task writes, and `system/audits`, which the audit task of `reconcile` writes.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from deltalake import DeltaTable, Schema
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    DataType,
    DoubleType,
    IntegerType,
    LongType,
    MapType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from schemas.contract.model import Aggregate, Contract, StatefulResult
from spark.definitions import avro_types, measures, stateful_results
from spark.lake.names import alerts, batch, bronze, local_path, speed, staged, system

STRING, LONG, INT, TIMESTAMP, DOUBLE = StringType(), LongType(), IntegerType(), TimestampType(), DoubleType()

HEADERS = ArrayType(StructType([StructField("key", STRING), StructField("value", BinaryType())]))
"""Kafka headers as Spark's source gives them."""

LEDGER_CAUSES = ("duplicate", "late", "replayed", "added", "corrected", "unexplained")

UNTOUCHED = {"OPTIMIZE", "ADD COLUMN", "ADD COLUMNS", "SET TBLPROPERTIES", "VACUUM START", "VACUUM END"}
"""Operations of Delta's history that change no row."""

SYSTEM: dict[str, StructType] = {}
"""Schemas of the tables under `system/`, by name."""


# -- names ---------------------------------------------------------------------------------------------------------


# -- schemas -------------------------------------------------------------------------------------------------------


def _struct(columns: dict[str, DataType]) -> StructType:
    return StructType([StructField(name, type_) for name, type_ in columns.items()])


SYSTEM |= {
    "publications": _struct(
        {
            "run_id": STRING,
            "stream": STRING,
            "final_through": TIMESTAMP,
            "through_batch": LONG,
            "hours": INT,
            "rows": LONG,
            "published_at": TIMESTAMP,
            "versions": MapType(STRING, LONG),
            "measures": ArrayType(STRING),
            "kind": STRING,
        }
    ),
    "refusals": _struct(
        {
            "run_id": STRING,
            "stream": STRING,
            "final_through": TIMESTAMP,
            "reason": STRING,
            "recorded_at": TIMESTAMP,
        }
    ),
    "ledger": _struct(
        {
            "run_id": STRING,
            "stream": STRING,
            "aggregate": STRING,
            "window": STRING,
            "window_start": TIMESTAMP,
            "keys": MapType(STRING, STRING),
            "measure": STRING,
            "speed": DOUBLE,
            "exact": DOUBLE,
            "difference": DOUBLE,
            "cause": STRING,
            "rows": LONG,
            "repeats": LONG,
            "late": LONG,
            "replayed": LONG,
            "recorded_at": TIMESTAMP,
        }
    ),
    "quality": _struct(
        {
            "run_id": STRING,
            "stream": STRING,
            "suite": STRING,
            "success": BooleanType(),
            "evaluated": INT,
            "failed": INT,
            "warnings": INT,
            "failures": STRING,
            "docs": STRING,
            "through_batch": LONG,
            "recorded_at": TIMESTAMP,
        }
    ),
    "moves": _struct(
        {
            "stream": STRING,
            "status": STRING,
            "id": STRING,
            "attempt": INT,
            "error_class": STRING,
            "reason": STRING,
            "first_failed_at": TIMESTAMP,
            "parked_because": STRING,
            "decision": STRING,
            "decided_by": STRING,
            "decided_because": STRING,
            "decided_at": TIMESTAMP,
            "edited": BinaryType(),
            "topic": STRING,
            "partition": INT,
            "offset": LONG,
            "run_id": STRING,
            "recorded_at": TIMESTAMP,
        }
    ),
    "replays": _struct(
        {
            "run_id": STRING,
            "stream": STRING,
            "recorded_at": TIMESTAMP,
            "read": LONG,
            "retried": LONG,
            "waiting": LONG,
            "parked": LONG,
            "discarded": LONG,
            "repeated": LONG,
            "landed": LONG,
            "returned": LONG,
            "in_flight": LONG,
            "lost": LONG,
        }
    ),
    "audits": _struct(
        {
            "run_id": STRING,
            "stream": STRING,
            "topic": STRING,
            "partition": INT,
            "from_offset": LONG,
            "to_offset": LONG,
            "rows": LONG,
            "doubled": LONG,
            "gaps": MapType(STRING, LONG),
            "missing": LONG,
            "residual": LONG,
            "not_ingested": LONG,
            "findings": ArrayType(_struct({"first": LONG, "last": LONG, "reason": STRING})),
            "through_batch": LONG,
            "version": LONG,
            "recorded_at": TIMESTAMP,
        }
    ),
}

COORDINATES: dict[str, DataType] = {
    "topic": STRING,
    "partition": INT,
    "offset": LONG,
    "kafka_timestamp": TIMESTAMP,
    "batch": LONG,
    "schema_id": INT,
    "original": STRING,
    "attempt": INT,
}
"""The first columns of bronze. `original` (topic/partition/offset) is null when it is the record's own place."""

VERDICT: dict[str, DataType] = {
    "error_class": STRING,
    "reason": STRING,
    "key": BinaryType(),
    "value": BinaryType(),
    "headers": HEADERS,
    "accepted": BooleanType(),
}
"""The last columns of bronze; all but `accepted` are null for accepted rows."""


def bronze_schema(contract: Contract) -> StructType:
    """One row per Kafka record: coordinates, every field of the newest version (nullable), event_time, verdict."""
    columns = {field.name: field.dataType for field in avro_types.columns(contract)}
    return _struct(COORDINATES | columns | {"event_time": TIMESTAMP} | VERDICT)


def dimension_columns(contract: Contract, aggregate: Aggregate) -> dict[str, DataType]:
    return {name: avro_types.scalar(contract.fields[name]) for name in aggregate.dimensions}


ALERTS = _struct(
    {
        "id": STRING,
        "alert": STRING,
        "severity": STRING,
        "event_time": TIMESTAMP,
        "kafka_timestamp": TIMESTAMP,
        "alerted_at": TIMESTAMP,
        "topic": STRING,
        "partition": INT,
        "offset": LONG,
        "record": STRING,
        "references": STRING,
    }
)
"""One row an alert. `kafka_timestamp` is when its record was produced, `alerted_at` when the alert was on the topic;
topic, partition and offset are the original's; `record` and `references` are JSON."""


def speed_schema(contract: Contract, aggregate: Aggregate) -> StructType:
    """`window_start` (1 minute, UTC), the dimensions, one column per state, `batch`."""
    states = {state.name: state.type for state in measures.states(aggregate, contract)}
    return _struct({"window_start": TIMESTAMP} | dimension_columns(contract, aggregate) | states | {"batch": LONG})


def batch_schema(contract: Contract, aggregate: Aggregate) -> StructType:
    """`window` (1m, 5m, 1h), its start and end, the dimensions, the measures, `hour` that holds it, `run_id`."""
    values = {measure.name: measures.final_type(measure, contract) for measure in aggregate.measures}
    return _struct(
        {"window": STRING, "window_start": TIMESTAMP, "window_end": TIMESTAMP}
        | dimension_columns(contract, aggregate)
        | values
        | {"hour": TIMESTAMP, "run_id": STRING}
    )


def stateful_speed_schema(contract: Contract, one: StatefulResult) -> StructType:
    """The columns of `stateful_results.columns`, when the row closes, and `batch`, a number of the query's own."""
    return _struct(stateful_results.columns(contract, one) | {stateful_results.CLOSES_AT: TIMESTAMP, "batch": LONG})


def stateful_batch_schema(contract: Contract, one: StatefulResult) -> StructType:
    """The columns of `stateful_results.columns`, when the row closes, `run_id`."""
    return _struct(stateful_results.columns(contract, one) | {stateful_results.CLOSES_AT: TIMESTAMP, "run_id": STRING})


# -- creation ------------------------------------------------------------------------------------------------------


def create(lake_uri: str, contract: Contract) -> list[str]:
    """Creates the tables that `contract` needs (and those of `system/`) where missing, and adds nullable columns that
    the contract gained. Returns what was done, one line per changed table; a second call returns nothing."""
    wanted = _wanted(lake_uri, contract)
    return [done for uri, schema, by, stats in wanted if (done := _ensure(uri, schema, by, stats))]


def create_system(lake_uri: str, name: str) -> str | None:
    """`create` for one table of `system/`: what was done, None if it is there with all its columns."""
    return _ensure(system(lake_uri, name), SYSTEM[name], [], None)


def uris(lake_uri: str, contract: Contract) -> list[str]:
    """The tables that `contract` needs, and those of `system/`."""
    return [uri for uri, *_ in _wanted(lake_uri, contract)]


def _wanted(lake_uri: str, contract: Contract) -> list[tuple[str, StructType, list[str], str | None]]:
    """URI, schema, partition columns and statistics columns (None: all) of each table."""
    wanted: list[tuple[str, StructType, list[str], str | None]] = [
        # Statistics on every column of a wide table cost a third of the append; who reads it needs only these three.
        (bronze(lake_uri, contract.stream), bronze_schema(contract), ["accepted"], "batch,event_time,attempt")
    ]
    for aggregate in contract.aggregates:
        place = (lake_uri, contract.stream, aggregate.name)
        wanted.append((speed(*place), speed_schema(contract, aggregate), [], "window_start,batch"))
        wanted.append((batch(*place), batch_schema(contract, aggregate), [], None))
        wanted.append((staged(*place), batch_schema(contract, aggregate), [], None))
    if contract.alerts:
        wanted.append((alerts(lake_uri, contract.stream), ALERTS, [], "offset,event_time"))
    for one in contract.stateful_results:
        place = (lake_uri, contract.stream, one.name)
        statistics = f"{stateful_results.time_column(one)},{stateful_results.CLOSES_AT},batch"
        wanted.append((speed(*place), stateful_speed_schema(contract, one), [], statistics))
        wanted.append((batch(*place), stateful_batch_schema(contract, one), [], None))
        wanted.append((staged(*place), stateful_batch_schema(contract, one), [], None))
    return wanted + [(system(lake_uri, name), schema, [], None) for name, schema in SYSTEM.items()]


def _ensure(uri: str, schema: StructType, partition_by: list[str], stats_columns: str | None) -> str | None:
    path = local_path(uri)
    delta = Schema.from_json(schema.json())
    if not DeltaTable.is_deltatable(path):
        if urlsplit(uri).scheme == "file":
            Path(path).mkdir(parents=True, exist_ok=True)
        # A checkpoint of the log takes longer than a small commit, so tables that grow each second make fewer.
        configuration: dict[str, str | None] = (
            {"delta.dataSkippingStatsColumns": stats_columns, "delta.checkpointInterval": "50"} if stats_columns else {}
        )
        DeltaTable.create(path, delta, mode="ignore", partition_by=partition_by, configuration=configuration)
        return f"created {uri}"
    table = DeltaTable(path)
    present = {field.name for field in table.schema().fields}
    added = [field for field in delta.fields if field.name not in present]
    if not added:
        return None
    table.alter.add_columns(added)
    return f"added {', '.join(field.name for field in added)} to {uri}"


# -- a few rows ------------------------------------------------------------------------------------------------------


# -- which batches a table holds -----------------------------------------------------------------------------------
