"""The ingest of a stream: what happens to one micro-batch. Every step can be repeated and happens once.

1. decode, validate, append every record to bronze, good or bad;
2. read back what was just written (also when a retried append was skipped);
3. append the partials of the accepted rows to the speed tables, repeats within the batch dropped;
4. send the rejected rows to the dead-letter topic.

The Delta appends carry the checkpoint's application id and the batch id, the letters a marker in their transaction, so
a batch that is run again after a crash at any point completes what is missing and repeats nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas.errors import TerminalError
from schemas.model import Contract
from spark import checkpoints, tables
from spark.letters import Letters, letters
from spark.transforms.aggregates import distinct_events, event_columns, partials
from spark.transforms.decode import decode
from spark.transforms.validate import validate

log = logging.getLogger(__name__)


class PoisonStorm(TerminalError):
    """Too many records of a batch are bad: somebody produces garbage, and draining it into the dead letters would hide
    it. The batch is in bronze; nothing was sent onward."""


@dataclass
class Ingest:
    """`batch` is the foreachBatch function of a stream.

    `writers` gives the registered schemas, `may_commit` is called before each commit and raises when this process must
    not (any more).
    """

    contract: Contract
    lake_uri: str
    generation: int
    writers: Callable[[], Mapping[int, str]]
    letters: Letters
    may_commit: Callable[[], None] = lambda: None

    def batch(self, records: DataFrame, batch_id: int) -> None:
        """Ingests the rows of Spark's Kafka source (with headers) as batch `batch_id` of the checkpoint. Raises
        `PoisonStorm`, and whatever Spark, Kafka or `may_commit` raise."""
        number = checkpoints.batch_number(self.generation, batch_id)
        application = checkpoints.application(self.contract.stream, self.generation)
        bronze = tables.bronze(self.lake_uri, self.contract.stream)
        spark = records.sparkSession

        self.may_commit()
        slots = spark.sparkContext.defaultParallelism
        judged = validate(decode(records.coalesce(slots), self.contract, self.writers()), self.contract)
        tables.append(judged.withColumn("batch", F.lit(number)), bronze, application, batch_id)

        written = spark.read.format("delta").load(bronze).where(F.col("batch") == number)
        total, rejected = written.agg(F.count("*"), F.count_if(~F.col("accepted"))).head() or (0, 0)
        self._stop_poison(batch_id, total, rejected)
        if rejected < total:
            self._append_partials(written.where("accepted"), application, batch_id, number)
        if rejected:
            self.may_commit()
            sent = self.letters.send(batch_id, letters(written.where("not accepted")).toLocalIterator)
            log.info("%s batch %d: %d dead letters", self.contract.stream, batch_id, sent)

    def _append_partials(self, accepted: DataFrame, application: str, batch_id: int, number: int) -> None:
        place = ("topic", "partition", "offset", "batch")
        events = distinct_events(accepted.select(*event_columns(self.contract), *place), self.contract)
        several = len(self.contract.aggregates) > 1
        if several:
            events = events.persist(StorageLevel.MEMORY_AND_DISK)
        try:
            for aggregate in self.contract.aggregates:
                states = partials(events, self.contract, aggregate).withColumn("batch", F.lit(number))
                self.may_commit()
                speed = tables.speed(self.lake_uri, self.contract.stream, aggregate.name)
                tables.append(states, speed, application, batch_id)
        finally:
            if several:
                events.unpersist()

    def _stop_poison(self, batch_id: int, total: int, rejected: int) -> None:
        limits = self.contract.dead_letters
        if total >= limits.storm_minimum and rejected > limits.storm_share * total:
            stream, yaml = self.contract.stream, self.contract.folder / "stream.yaml"
            raise PoisonStorm(
                f"{rejected:,} of the {total:,} records of batch {batch_id} of stream {stream} are bad: more than the "
                f"share of {limits.storm_share:g} that its contract allows. They are in {stream}_dead_letters with "
                "their reasons, and nothing was sent onward. Stop the producer, or accept the records by raising "
                f"dead_letters.storm_share in {yaml}. The stream goes on with this batch when it is restarted"
            )
