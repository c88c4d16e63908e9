"""A stream's records from Kafka, as Spark's structured streaming reads them."""

from __future__ import annotations

from pyspark.sql import DataFrame, SparkSession

from infra.settings import Settings
from schemas.model import Contract


def records(spark: SparkSession, contract: Contract, settings: Settings) -> DataFrame:
    """The committed records of `<stream>` and `<stream>.retry`, from the beginning when there is no checkpoint, with
    headers. Records that Kafka dropped before they were read fail the query: they are lost, and nobody may miss it."""
    connection = {f"kafka.{key}": value for key, value in settings.kafka_java("stream").items()}
    options = {
        "subscribe": ",".join(contract.ingest_topics),
        "startingOffsets": "earliest",
        "includeHeaders": "true",
        "failOnDataLoss": "true",
        "maxOffsetsPerTrigger": str(settings.max_offsets_per_trigger),
        # ACLs name consumer groups, so generated ones need a prefix.
        "groupIdPrefix": f"stream.{contract.stream}",
        "kafka.isolation.level": "read_committed",
        # Each batch reads to a known end, where the default long poll of 500 ms would be waited for in vain; and a poll
        # of 500 records costs more than the records.
        "kafka.fetch.max.wait.ms": "20",
        "kafka.max.poll.records": "10000",
    }
    return spark.readStream.format("kafka").options(**connection, **options).load()
