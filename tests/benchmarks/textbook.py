"""The job that most people would write for the same work: one query that appends the decoded records to a table, and a
stateful windowed query per window that merges its results into another.

It is what Millrace's ingest is measured against, so it gets the same session (tuned for a small machine), the same
jars, heap and compression; and it has less to do: no validation, no dead letters, no deduplication, and its writes are
at least once.
"""

from __future__ import annotations

from collections.abc import Callable

from delta.tables import DeltaTable
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.avro.functions import from_avro
from pyspark.sql.streaming.query import StreamingQuery

from infra.settings import Settings
from schemas.model import Contract

WINDOWS = {"1m": "1 minute", "5m": "5 minutes", "1h": "1 hour"}


def place(settings: Settings, table: str) -> str:
    """URI of the job's table `raw`, `1m`, `5m` or `1h`; the windows have window_start, device, readings, total, least
    and most."""
    return f"{settings.lake_uri}/textbook/{table}"


def queries(spark: SparkSession, settings: Settings, contract: Contract) -> list[StreamingQuery]:
    """Starts the four queries; they end when they have taken what the topic holds now."""
    raw = (
        _events(spark, settings, contract)
        .writeStream.format("delta")
        .option("checkpointLocation", f"{place(settings, 'raw')}_checkpoint")
        .trigger(availableNow=True)
        .start(place(settings, "raw"))
    )
    return [raw, *(_windowed(_events(spark, settings, contract), settings, window) for window in WINDOWS)]


def _events(spark: SparkSession, settings: Settings, contract: Contract) -> DataFrame:
    connection = {f"kafka.{key}": value for key, value in settings.kafka_java("stream").items()}
    records = (
        spark.readStream.format("kafka")
        .options(**connection, subscribe=contract.stream, startingOffsets="earliest")
        .option("groupIdPrefix", "stream.textbook")
        .option("maxOffsetsPerTrigger", settings.max_offsets_per_trigger)
        .option("kafka.max.poll.records", 10_000)
        .load()
    )
    return records.select(from_avro(F.expr("substring(value, 6)"), contract.versions[-1]).alias("event")).select(
        "event.*"
    )


def _windowed(events: DataFrame, settings: Settings, window: str) -> StreamingQuery:
    totals = (
        events.withWatermark("event_time", "1 hour")
        .groupBy(F.window("event_time", WINDOWS[window]).alias("window"), "device")
        .agg(
            F.count("*").alias("readings"),
            F.sum("amount").alias("total"),
            F.min("amount").alias("least"),
            F.max("amount").alias("most"),
        )
        .select(F.col("window.start").alias("window_start"), "device", "readings", "total", "least", "most")
    )
    return (
        totals.writeStream.outputMode("update")
        .option("checkpointLocation", f"{place(settings, window)}_checkpoint")
        .trigger(availableNow=True)
        .foreachBatch(_merge_into(place(settings, window)))
        .start()
    )


def _merge_into(uri: str) -> Callable[[DataFrame, int], None]:
    same: Column = F.expr("old.window_start = new.window_start and old.device = new.device")

    def merge(totals: DataFrame, _: int) -> None:
        spark = totals.sparkSession
        DeltaTable.createIfNotExists(spark).location(uri).addColumns(totals.schema).execute()
        table = DeltaTable.forPath(spark, uri)
        matched = table.alias("old").merge(totals.alias("new"), same).whenMatchedUpdateAll()
        matched.whenNotMatchedInsertAll().execute()

    return merge
