"""Turns records of a stream into the alerts that its contract declares.

Only operations are used that Spark's real-time mode runs: projections, filters and broadcast joins. The records are
decoded and judged by the very expressions of the ingest.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from schemas.contract.model import Alert, Contract
from spark.transforms.decode import decode
from spark.transforms.validate import validate

_JSON = {"timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS'Z'", "ignoreNullFields": "false"}


def alerts(
    records: DataFrame, contract: Contract, writers: Mapping[int, str], references: Mapping[str, DataFrame]
) -> DataFrame:
    """Returns one row for each alert, with the string columns `key` and `value`.

    `records` are rows of Spark's Kafka source, with headers; `writers` is what `decode` takes; `references` are the
    rows of the contract's reference tables, by name.

    The key is the record's own (the contract's key fields, joined with '|'). The value is a JSON document:

    - `id`: `topic/partition/offset/alert`, with the coordinates of the original if the record was replayed, so that it
      is the same whenever the record is read again;
    - `alert`, `severity`, `original` (the id without the alert), `event_time` and `kafka_timestamp` (when the record
      was produced), both ISO-8601 in UTC with microseconds;
    - `record`: the record's fields; `references`: the rows that the alert names, by name, null where there was none.
    """
    judged = validate(decode(records, contract, writers), contract)
    joined = reduce(
        lambda frame, name: _looked_up(frame, contract, name, references[name]),
        [reference.name for reference in contract.references],
        judged,
    )
    coordinates = F.concat_ws("/", "topic", F.col("partition").cast("string"), F.col("offset").cast("string"))
    own = joined.withColumn("$original", F.coalesce("original", coordinates))
    raised = own.select(
        F.concat_ws("|", *(F.col(name).cast("string") for name in contract.key)).alias("key"),
        F.explode(F.array(*(_raised(contract, alert) for alert in contract.alerts))).alias("value"),
    )
    return raised.where(F.isnotnull("value"))


def _looked_up(frame: DataFrame, contract: Contract, name: str, rows: DataFrame) -> DataFrame:
    """`frame` with the struct column `name`: the row of the reference table that has the record's key, else null."""
    key = contract.reference(name).key
    found = rows.select(F.struct("*").alias(name), *(F.col(column).alias(f"${name}_{column}") for column in key))
    on = [frame[column] == found[f"${name}_{column}"] for column in key]
    return frame.join(F.broadcast(found), on, how="left").drop(*(f"${name}_{column}" for column in key))


def _raised(contract: Contract, alert: Alert) -> Column:
    """The alert's document if the row is accepted and the predicate true for it, else null."""
    document = F.to_json(
        F.struct(
            F.concat_ws("/", "$original", F.lit(alert.name)).alias("id"),
            F.lit(alert.name).alias("alert"),
            F.lit(alert.severity).alias("severity"),
            F.col("$original").alias("original"),
            "event_time",
            "kafka_timestamp",
            F.struct(*contract.fields).alias("record"),
            *([F.struct(*alert.references).alias("references")] if alert.references else []),
        ),
        _JSON,
    )
    # Not a filter of rows: Spark would push it below the decoding and decode each record 46 times to judge it.
    return F.when(F.col("accepted") & F.expr(f"({alert.predicate})"), document)
