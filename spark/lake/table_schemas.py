"""The columns of every Delta table of the lake, as Spark types. Needs no JVM. All timestamps are UTC."""

from __future__ import annotations

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

STRING, LONG, INT, TIMESTAMP, DOUBLE = StringType(), LongType(), IntegerType(), TimestampType(), DoubleType()

HEADERS = ArrayType(StructType([StructField("key", STRING), StructField("value", BinaryType())]))
"""Kafka headers as Spark's source gives them."""

LEDGER_CAUSES = ("duplicate", "late", "replayed", "added", "corrected", "unexplained")
"""The values of the ledger's column `cause`; the glossary defines each."""


def _struct(columns: dict[str, DataType]) -> StructType:
    return StructType([StructField(name, type_) for name, type_ in columns.items()])


SYSTEM: dict[str, StructType] = {
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
            "topic_id": STRING,
            "made_anew": BooleanType(),
            "through_batch": LONG,
            "version": LONG,
            "recorded_at": TIMESTAMP,
        }
    ),
}
"""The columns of the tables under `system/`, by the table's name."""

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
"""The first columns of bronze. `original` (topic/partition/offset) is null for a record that was never replayed, which
is its own original."""

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
    """Returns the columns of bronze, which has one row for each Kafka record: the coordinates, the contract's fields
    (nullable), `event_time` and the verdict."""
    columns = {field.name: field.dataType for field in avro_types.columns(contract)}
    return _struct(COORDINATES | columns | {"event_time": TIMESTAMP} | VERDICT)


def dimension_columns(contract: Contract, aggregate: Aggregate) -> dict[str, DataType]:
    """Returns the dimensions of an aggregate and their types."""
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
"""The columns of an alert log, which has one row for each alert. `kafka_timestamp` is when its record was produced,
`alerted_at` when the alert was on the topic; topic, partition and offset are the original's; `record` and `references`
are JSON."""


def speed_schema(contract: Contract, aggregate: Aggregate) -> StructType:
    """Returns the columns of an aggregate's speed table: `window_start` (of 1 minute), the dimensions, one column for
    each state, and `batch`."""
    states = {state.name: state.type for state in measures.states(aggregate, contract)}
    return _struct({"window_start": TIMESTAMP} | dimension_columns(contract, aggregate) | states | {"batch": LONG})


def batch_schema(contract: Contract, aggregate: Aggregate) -> StructType:
    """Returns the columns of an aggregate's batch table: `window` (1m, 5m or 1h), its start and its end, the
    dimensions, the measures, the `hour` that holds the window, and `run_id`."""
    values = {measure.name: measures.final_type(measure, contract) for measure in aggregate.measures}
    return _struct(
        {"window": STRING, "window_start": TIMESTAMP, "window_end": TIMESTAMP}
        | dimension_columns(contract, aggregate)
        | values
        | {"hour": TIMESTAMP, "run_id": STRING}
    )


def stateful_speed_schema(contract: Contract, result: StatefulResult) -> StructType:
    """Returns the columns of a stateful result's speed table: those of `stateful_results.columns`, when the row closes,
    and `batch`, which numbers the micro-batches of the result's own query."""
    return _struct(stateful_results.columns(contract, result) | {stateful_results.CLOSES_AT: TIMESTAMP, "batch": LONG})


def stateful_batch_schema(contract: Contract, result: StatefulResult) -> StructType:
    """Returns the columns of a stateful result's batch table: those of `stateful_results.columns`, when the row closes,
    and `run_id`."""
    return _struct(
        stateful_results.columns(contract, result) | {stateful_results.CLOSES_AT: TIMESTAMP, "run_id": STRING}
    )
