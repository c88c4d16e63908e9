"""The job that most people would write for the same work: one query that appends the decoded records to a table, and a
stateful windowed query per window that merges its results into another.

It is what Millrace's ingest is measured against, so as `textbook` it gets the same session (tuned for a small machine),
the same jars, heap and compression; and it has less to do: no validation, no dead letters, no deduplication, and its
writes are at least once. As `defaults` it runs with what Spark, Delta and the JVM do by default, which is what most
people would run, with the same heap and cores.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from delta.tables import DeltaTable
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.avro.functions import from_avro
from pyspark.sql.streaming.query import StreamingQuery

from infra.jvm.jars import spark_class_path
from infra.settings import Settings
from schemas.contract.model import Contract

WINDOWS = {"1m": "1 minute", "5m": "5 minutes", "1h": "1 hour"}


def place(settings: Settings, name: str, table: str) -> str:
    """URI of the table `raw`, `1m`, `5m` or `1h` of the job called `name`; the windows have window_start, device,
    readings, total, least and most."""
    return f"{settings.lake_uri}/{name}/{table}"


def default_session(settings: Settings) -> SparkSession:
    """A session with nothing set but what the job cannot do without."""
    return (
        SparkSession.builder.appName("bench-defaults")
        .master(settings.spark_master)
        .config("spark.driver.memory", settings.stream_memory)
        .config("spark.driver.extraClassPath", spark_class_path())
        .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
        .config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )


def queries(spark: SparkSession, settings: Settings, contract: Contract, name: str) -> list[StreamingQuery]:
    """Starts the four queries; they end when they have taken what the topic holds now."""
    raw = (
        _events(spark, settings, contract, name)
        .writeStream.format("delta")
        .option("checkpointLocation", f"{place(settings, name, 'raw')}_checkpoint")
        .trigger(availableNow=True)
        .start(place(settings, name, "raw"))
    )
    events = (_events(spark, settings, contract, name) for _ in WINDOWS)
    return [raw, *map(_windowed, events, (place(settings, name, window) for window in WINDOWS), WINDOWS.values())]


def _events(spark: SparkSession, settings: Settings, contract: Contract, name: str) -> DataFrame:
    connection = {f"kafka.{key}": value for key, value in settings.kafka_java("stream").items()}
    records = (
        spark.readStream.format("kafka")
        .options(**connection, subscribe=contract.stream, startingOffsets="earliest")
        .option("groupIdPrefix", f"stream.{name}")
        .option("maxOffsetsPerTrigger", settings.max_offsets_per_trigger)
        .option("kafka.max.poll.records", 10_000)
        .load()
    )
    return records.select(
        from_avro(F.expr("substring(value, 6)"), json.dumps(contract.schema_now)).alias("event")
    ).select("event.*")


def _windowed(events: DataFrame, uri: str, window: str) -> StreamingQuery:
    totals = (
        events.withWatermark("event_time", "1 hour")
        .groupBy(F.window("event_time", window).alias("window"), "device")
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
        .option("checkpointLocation", f"{uri}_checkpoint")
        .trigger(availableNow=True)
        .foreachBatch(_merge_into(uri))
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
