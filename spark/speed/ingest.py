"""The ingest of a stream: what happens to one micro-batch. Every step can be repeated and happens once.

1. decode, validate, append every record to bronze, good or bad; if a record has a schema that is not in the cache,
   nothing is appended: the registry is asked, and the batch decoded again;
2. read back what was just written (also when a retried append was skipped);
3. append the partials of the accepted rows to the speed tables, repeats within the batch dropped;
4. send the rejected rows to the dead-letter topic.

The Delta appends carry the checkpoint's application id and the batch id, the letters a marker in their transaction, so
a batch that is run again after a crash at any point completes what is missing and repeats nothing. Steps 2 to 4 need
bronze alone, so a batch can also be finished without its checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.contract.model import TOMBSTONE, TOMBSTONE_REASON, Contract
from schemas.errors import Halt
from spark.lake import batch_numbers, names
from spark.speed import delta_append
from spark.speed.checkpoint import generations
from spark.speed.dead_letters import Letters, letters
from spark.speed.large_records import BOUNDS, OUT_OF_MEMORY, Pieces, ReadInPieces
from spark.speed.writer_schemas import Known, WriterSchemas
from spark.transforms.aggregates import distinct_events, event_columns, partials
from spark.transforms.decode import UNREGISTERED, decoding
from spark.transforms.validate import validating

log = logging.getLogger(__name__)

OVERSIZED = (
    "once it is decompressed, the record or the batch that it was sent in does not fit into memory: its bytes are on "
    "Kafka alone"
)
"""The reason of a quarantined record."""

MOST_SUSPECTS = 1000
"""Identities that are looked at one by one when a batch repeats some; with more of them the whole batch is sorted."""


class PoisonStorm(Halt):
    """Too many records of a batch are bad: somebody produces garbage, and draining it into the dead letters would hide
    it. The batch is in bronze; no partials and no dead letters were made of it. They are made when the batch is run
    again and somebody has accepted it, or when the schemas that it lacked are registered by then. Velocity, sessions
    and joins read the accepted rows from bronze and do not wait: they are good events, whatever is decided about the
    others."""


@contextmanager
def _row_by_row(spark: SparkSession) -> Iterator[None]:
    """Lets Spark read Parquet row by row inside the block. It reads columns in blocks of 4,096 values otherwise, and
    those of rejected records may be megabytes each. The session is the query's own, and one thread uses it."""
    vectorized = "spark.sql.parquet.enableVectorizedReader"
    before = spark.conf.get(vectorized) or "true"
    spark.conf.set(vectorized, "false")
    try:
        yield
    finally:
        spark.conf.set(vectorized, before)


@dataclass
class Ingest:
    """The ingest of a stream under one generation of its checkpoint. `batch` is the foreachBatch function.

    `writers` gives the schemas that records were written with, `letters` takes the dead letters, `may_commit` is called
    before each commit and raises when this process must not (any more), `may_store` before each commit to bronze and
    raises when its rows may be of other topics than the rows there, `storm_accepted` returns whether somebody accepted
    the storm of a batch, given its number with the generation.
    """

    contract: Contract
    lake_uri: str
    generation: int
    writers: WriterSchemas
    letters: Letters
    may_commit: Callable[[], None] = lambda: None
    storm_accepted: Callable[[int], bool] = lambda batch: False
    in_pieces: ReadInPieces | None = None
    may_store: Callable[[], None] = lambda: None
    _judging: tuple[Known, Callable[[DataFrame], DataFrame], Callable[[DataFrame], DataFrame]] | None = field(
        default=None, init=False
    )
    """The schemas of the last batch, and the functions that decode and validate with them."""

    def batch(self, records: DataFrame, batch_id: int) -> None:
        """Ingests the rows of Spark's Kafka source (with headers) as batch `batch_id` of the checkpoint. Raises
        `PoisonStorm`, and whatever Spark, Kafka, the registry or `may_commit` raise."""
        try:
            self._take(Pieces(records, None), batch_id)
        except Exception as error:
            if OUT_OF_MEMORY not in str(error) or self.in_pieces is None:
                raise
            self._take_in_pieces(records.sparkSession, batch_id, self.in_pieces)
        self.onward(records.sparkSession, batch_id)

    def _take_in_pieces(self, spark: SparkSession, batch_id: int, read: ReadInPieces) -> None:
        for most in BOUNDS:
            log.error(
                "%s batch %d does not fit into memory: it is read in pieces of %d MiB at most",
                self.contract.stream, batch_id, most // 1024**2,
            )  # fmt: skip
            try:
                return self._take(read(spark, batch_id, most), batch_id)
            except Exception as error:
                if OUT_OF_MEMORY not in str(error) or most == BOUNDS[-1]:
                    raise

    def _take(self, pieces: Pieces, batch_id: int) -> None:
        try:
            self._to_bronze(pieces, batch_id, self.writers.current())
        except Exception as error:
            if UNREGISTERED not in str(error):
                raise
            log.info("%s batch %d has a schema that is not in the cache", self.contract.stream, batch_id)
            self._to_bronze(pieces, batch_id, self.writers.asked())

    def _to_bronze(self, pieces: Pieces, batch_id: int, known: Known) -> None:
        records = pieces.records
        slots = records.sparkSession.sparkContext.defaultParallelism
        number = batch_numbers.batch_number(self.generation, batch_id)
        application = generations.application(self.contract.stream, self.generation)
        bronze = names.bronze(self.lake_uri, self.contract.stream)
        judged = self._judged(records.coalesce(slots), known)
        if pieces.too_large is not None:
            verdict = {"error_class": F.lit("oversized"), "reason": F.lit(OVERSIZED)}
            judged = judged.unionByName(self._judged(pieces.too_large, known).withColumns(verdict)).coalesce(1)
        stamped = judged.withColumn("batch", delta_append.stamp(number))
        delta_append.append(stamped, bronze, application, batch_id, self._may_store)

    def _may_store(self) -> None:
        self.may_commit()
        self.may_store()

    def _judged(self, records: DataFrame, known: Known) -> DataFrame:
        if self._judging is None or self._judging[0] != known:
            self._judging = (
                known,
                decoding(self.contract, known.schemas, known.complete),
                validating(self.contract),
            )
        _, decoded, validated = self._judging
        return validated(decoded(records))

    def onward(self, spark: SparkSession, batch_id: int) -> None:
        """Sends what bronze holds of the batch onward: partials and dead letters. Raises as `batch` does."""
        number = batch_numbers.batch_number(self.generation, batch_id)
        application = generations.application(self.contract.stream, self.generation)
        written = delta_append.written(spark, self.lake_uri, self.contract, number)
        policy = self.contract.dead_letters
        # Records that replays sent again are no storm, and must not hide one: where there are some, they are counted.
        if policy.is_storm(policy.storm_minimum if written.replays else written.rows, written.rows_rejected):
            self._stop_poison(written, number)
        if written.rows_rejected < written.rows:
            self._append_partials(written.accepted, application, batch_id, number)
        if written.rows_rejected:
            self.may_commit()
            with _row_by_row(spark):
                sent = self.letters.send(batch_id, letters(written.rejected, self.contract).toLocalIterator)
            log.info("%s batch %d: %d dead letters", self.contract.stream, batch_id, sent)

    def _append_partials(self, accepted: DataFrame, application: str, batch_id: int, number: int) -> None:
        coordinates = ("topic", "partition", "offset", "batch")
        events = self._distinct(accepted.select(*event_columns(self.contract), *coordinates))
        for aggregate in self.contract.aggregates:
            states = partials(events, self.contract, aggregate).withColumn("batch", delta_append.stamp(number))
            speed = names.speed(self.lake_uri, self.contract.stream, aggregate.name)
            delta_append.append(states, speed, application, batch_id, self.may_commit)

    def _distinct(self, events: DataFrame) -> DataFrame:
        """The distinct ones of `events`. `distinct_events` sorts what it is given, so it is given only the events that
        may be repeats: those whose identities have the same hash. Eight bytes an event come to this process for that,
        and a batch has a bounded number of them."""
        identity = F.xxhash64(*self.contract.event_id)
        hashes = np.sort(events.select(identity.alias("identity")).toArrow()["identity"].to_numpy())
        repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        if not len(repeated):
            return events
        if len(repeated) > MOST_SUSPECTS:
            return distinct_events(events, self.contract)
        suspect = identity.isin(repeated.tolist())
        return events.where(~suspect).unionByName(distinct_events(events.where(suspect), self.contract))

    def _stop_poison(self, written: delta_append.Written, number: int) -> None:
        stream, batch_id = self.contract.stream, batch_numbers.batch_id_of(number)
        if self.storm_accepted(number):
            log.warning("%s batch %d: its %d bad records were accepted", stream, batch_id, written.rows_rejected)
            return
        # Records that a replay sent again say nothing about those who produce now: bad ones are left to their policy.
        first = F.col("attempt") == 0
        # A tombstone is what a compacted topic has for a deleted key, and says nothing about those who produce either.
        tombstone = (F.col("error_class") == TOMBSTONE) | (
            (F.col("error_class") == "malformed") & (F.col("reason") == TOMBSTONE_REASON)
        )
        bad = written.rejected.where(first & ~tombstone)
        rejected = bad.count()
        total = rejected + written.accepted.where(first).count()
        # Letters whose schema is registered by now come back by replay, and then they are not bad.
        lacking = (F.col("error_class") == "unknown_schema") & F.col("schema_id").isin(*self.writers.asked().schemas)
        if not self.contract.dead_letters.is_storm(total, rejected - bad.where(lacking).count()):
            log.warning(
                "%s batch %d: its bad records were replayed, were tombstones or lacked schemas that are there",
                stream, batch_id,
            )  # fmt: skip
            return
        raise PoisonStorm(
            f"{rejected:,} of the {total:,} records of batch {batch_id} of stream {stream} are bad: more than the "
            f"share of {self.contract.dead_letters.storm_share:g} that its contract allows. They are in "
            f"{stream}_dead_letters with their reasons; of this batch nothing was counted and no dead letter was sent. "
            f"Stop the producer that sends them; then `millrace checkpoint accept-storm {stream}` lets this one batch "
            "go onward, its bad records as dead letters. If they lack a schema, register it instead: the stream then "
            "goes on by itself"
        )
