"""The ingest of one stream as a query of the driver: started, watched, halted and tried again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from infra.broker.offsets import require_topics
from infra.settings import Settings
from schemas.contract.model import Contract
from schemas.errors import Halt, TransientError
from spark.lake import batch_numbers, retention, tables
from spark.speed import kafka_source, large_records
from spark.speed.checkpoint import generations, ingest_start, retained
from spark.speed.checkpoint.topic_identity import SameTopics
from spark.speed.dead_letters import Letters
from spark.speed.heartbeat import NO_PROGRESS, progress
from spark.speed.ingest import Ingest
from spark.speed.open_transactions import OpenTransactions
from spark.speed.small_files import Upkeep, of_ingest
from spark.speed.standstill import Standstill
from spark.speed.writer_schemas import RegisteredSchemas

log = logging.getLogger("millrace.stream")

LOOK = 30.0
"""Seconds between two looks at the topics of a stream beside its batches."""


class Stopping(Exception):
    """Ends a query at the start of a batch, before it has done anything; the batch runs again after the restart."""


@dataclass
class IngestQuery:
    """The ingest of one stream as a `spark.speed.query.Query`. `stopping` ends the waiting for the registry and keeps
    batches from beginning; `may_commit` is called before each commit and raises when this process must not."""

    contract: Contract
    settings: Settings
    stopping: threading.Event
    may_commit: Callable[[], None]
    query: StreamingQuery | None = None
    letters: Letters | None = None
    writers: RegisteredSchemas | None = None
    running: bool = field(default=False)
    """Whether a batch runs."""
    standstill: Standstill = field(init=False)
    _topics: SameTopics = field(init=False)
    _transactions: OpenTransactions = field(init=False)
    _look_at: float = field(default=0.0, init=False)
    """When `tend` looks at the topics again, by the monotonic clock."""

    def __post_init__(self) -> None:
        self._topics = SameTopics(self.contract, self.settings)
        self._transactions = OpenTransactions(self.contract, self.settings)
        self.standstill = Standstill(f"stream {self.contract.stream}", "its log says more: `millrace logs stream`")

    def start(self, spark: SparkSession) -> None:
        """Creates the tables that the stream lacks, finishes what a reset left to be finished and starts the query.
        What keeps it from that is in `halted` and `progress`."""
        try:
            self._start(spark)
        except Exception as error:  # a refused checkpoint, Spark, Delta, Kafka, the disk
            self.standstill.failed(error)

    def _start(self, spark: SparkSession) -> None:
        name, settings = self.contract.stream, self.settings
        for change in tables.create_of_stream(settings.lake_uri, self.contract):
            log.info("%s", change)
        if generations.settled_batch(self.contract, settings) is None:  # else it costs each recovery a connection
            with suppress(TransientError):  # a broker that is away is waited for by the query
                require_topics(settings, self.contract, "stream")
        opening = ingest_start.opening(self.contract, settings)
        self._topics.begin()
        with suppress(TransientError):
            retained.require_retained(self.contract, settings, opening.generation)
        if opening.unfinished is not None:
            self._finish_batch(spark, opening.unfinished, opening.generation)
        ingest_start.remember(self.contract, settings, opening.generation)
        ingest = self._ingest(opening.generation)
        spark.sparkContext.setLocalProperty("spark.scheduler.pool", name)
        records = kafka_source.records(spark, self.contract, settings, opening.start)
        with self.standstill.trying():
            self.query = (
                records.writeStream.queryName(name)
                .option("checkpointLocation", generations.location(settings, name, opening.generation))
                .trigger(processingTime=f"{int(settings.trigger_interval * 1000)} milliseconds")
                .foreachBatch(self._batch(ingest))
                .start()
            )

    def _finish_batch(self, spark: SparkSession, number: int, generation: int) -> None:
        """Sends the batch `number`, which an older generation left in bronze, onward, and notes that it did."""
        ingest = self._ingest(batch_numbers.generation_of(number))
        ingest.onward(spark, batch_numbers.batch_id_of(number))
        ingest_start.finished(self.contract, self.settings, generation)

    def _batch(self, ingest: Ingest) -> Callable[[DataFrame, int], None]:
        """The foreachBatch function: the ingest of a batch, and the care for the stream's tables after it."""
        lake_uri, history = self.settings.lake_uri, timedelta(hours=self.settings.history_hours)
        kept = retention.rules_of_partials(lake_uri, self.contract)
        upkeep = Upkeep(of_ingest(lake_uri, self.contract), history, self.may_commit, lake_uri, kept)

        def batch(records: DataFrame, batch_id: int) -> None:
            if self.stopping.is_set():
                raise Stopping
            self.running = True
            try:
                ingest.batch(records, batch_id)
                # The batch is in the served view by now: nobody waits for this but a batch to come.
                upkeep.after_batch(waiting=self.query is not None and progress(self.query, False)["lag"] > 0)
                self.may_commit()  # else Spark would note the batch as done in a checkpoint that is another driver's
                self.standstill.finished()
            except BaseException as error:
                self.standstill.failed(error)
                raise
            finally:
                self.running = False

        return batch

    def _ingest(self, generation: int) -> Ingest:
        name, settings = self.contract.stream, self.settings
        self.close()
        self.letters = Letters(
            self.contract, settings.kafka_client("stream"), generations.application(name, generation)
        )
        self.writers = self.writers or RegisteredSchemas(self.contract, settings, self.stopping)
        return Ingest(
            self.contract,
            settings.lake_uri,
            generation,
            self.writers,
            self.letters,
            self.may_commit,
            partial(ingest_start.is_accepted, settings, name),
            partial(large_records.read, self.contract, settings, generation),
            self._topics.require,
        )

    @property
    def active(self) -> bool:
        """Whether Spark runs the query."""
        return self.query is not None and self.query.isActive

    @property
    def halted(self) -> bool:
        """Whether the stream stands still."""
        return self.standstill.of(self.query)

    @property
    def due(self) -> bool:
        """Whether it is time to try again."""
        return self.standstill.due

    def tend(self, spark: SparkSession) -> None:
        """Looks each `LOOK` seconds which transactions are open on the topics, and whether these are still the ones
        that bronze was read from; halts if one is not: a batch would find it too, but a topic that was made anew may
        have nothing for one."""
        if time.monotonic() < self._look_at:
            return
        self._transactions.look()
        try:
            self._topics.require()
        except TransientError:
            pass
        except Halt as halt:
            self.standstill.failed(halt)
            if not self.finish():  # a batch runs, which finds the same
                return
        self._look_at = time.monotonic() + LOOK

    def progress(self) -> dict[str, Any]:
        """As `spark.speed.heartbeat.progress`, and `halted`: why and since when (ISO-8601, UTC), None while it runs;
        `open_transaction`: as `spark.speed.open_transactions` reports it; `waiting`: why a batch waits for the schema
        registry, None while none does; and `within`: the seconds in which its contract wants a batch finished, None if
        it does not say."""
        found = progress(self.query, self.running) if self.query else dict(NO_PROGRESS)
        within = self.contract.progress_within
        return found | {
            "halted": self.standstill.reported() if self.halted else None,
            "open_transaction": self._transactions.reported(),
            "waiting": self.writers and self.writers.waiting,
            "within": within and within.total_seconds(),
        }

    def error(self) -> str | None:
        """Why the driver must end: the query has lost the lease. None while there is no reason."""
        return self.standstill.concerns_all()

    def finish(self) -> bool:
        """Stops the query if it is between two batches, with `stopping` set; returns whether it has ended."""
        if self.query is None or not self.query.isActive:
            return True
        if not self.query.status["isTriggerActive"]:
            self.query.stop()
            return True
        return False

    def close(self) -> None:
        """Closes the connection of the dead letters."""
        if self.letters is not None:
            self.letters.close()
