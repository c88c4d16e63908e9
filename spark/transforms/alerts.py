"""Turns records of a stream into the alerts that its contract declares.

Only operations are used that Spark's real-time mode runs: projections, filters and broadcast joins. The records are
decoded and judged by the very expressions of the ingest.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from schemas import sizes
from schemas.contract.model import Alert, Contract
from spark.transforms.decode import decode
from spark.transforms.validate import validate

_OMITTED = "the record and what was looked up for it: with them the alert is larger than its topic takes"
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

    An alert that would be larger than its topic takes comes without the record, the references and the key, and with
    `omitted`, which says so: `original` says where the record is.
    """
    judged = validate(decode(records, contract, writers), contract)
    joined = reduce(
        lambda frame, name: _looked_up(frame, contract, name, references[name]),
        [reference.name for reference in contract.references],
        judged,
    )
    coordinates = F.concat_ws("/", "topic", F.col("partition").cast("string"), F.col("offset").cast("string"))
    own = joined.withColumn("$original", F.coalesce("original", coordinates))
    key = F.concat_ws("|", *(F.col(name).cast("string") for name in contract.key))
    raised = own.select(
        key.alias("$key"),
        F.explode(F.array(*(_raised(contract, alert) for alert in contract.alerts))).alias("$alert"),
    ).where(F.isnotnull("$alert"))
    size = F.octet_length("$key") + F.octet_length(F.col("$alert")["whole"])
    fits = size <= sizes.of_topic(contract) - sizes.BATCH_OVERHEAD
    return raised.select(
        F.when(fits, F.col("$key")).alias("key"),
        F.when(fits, F.col("$alert")["whole"]).otherwise(F.col("$alert")["short"]).alias("value"),
    )


def _looked_up(frame: DataFrame, contract: Contract, name: str, rows: DataFrame) -> DataFrame:
    """`frame` with the struct column `name`: the row of the reference table that has the record's key, else null."""
    key = contract.reference(name).key
    found = rows.select(F.struct("*").alias(name), *(F.col(column).alias(f"${name}_{column}") for column in key))
    on = [frame[column] == found[f"${name}_{column}"] for column in key]
    return frame.join(F.broadcast(found), on, how="left").drop(*(f"${name}_{column}" for column in key))


def _raised(contract: Contract, alert: Alert) -> Column:
    """The alert's document, `whole` and `short`, if the row is accepted and the predicate true for it, else null."""
    about: tuple[Column | str, ...] = (
        F.concat_ws("/", "$original", F.lit(alert.name)).alias("id"),
        F.lit(alert.name).alias("alert"),
        F.lit(alert.severity).alias("severity"),
        F.col("$original").alias("original"),
        "event_time",
        "kafka_timestamp",
    )
    references = [F.struct(*alert.references).alias("references")] if alert.references else []
    whole = F.struct(*about, F.struct(*contract.fields).alias("record"), *references)
    short = F.struct(*about, F.lit(None).cast("string").alias("record"), F.lit(_OMITTED).alias("omitted"))
    document = F.struct(F.to_json(whole, _JSON).alias("whole"), F.to_json(short, _JSON).alias("short"))
    # Not a filter of rows: Spark would push it below the decoding and decode each record 46 times to judge it.
    return F.when(F.col("accepted") & F.expr(f"({alert.predicate})"), document)
