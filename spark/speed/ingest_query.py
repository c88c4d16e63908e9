"""The ingest of one stream as a query of the driver: started, watched, halted and tried again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from infra.broker.offsets import require_topics
from infra.settings import Settings
from schemas.contract.model import Contract
from schemas.errors import Halt, MillraceError, TransientError
from spark.lake import batch_numbers, retention
from spark.speed import kafka_source
from spark.speed.checkpoint import generations, ingest_start
from spark.speed.dead_letters import Letters
from spark.speed.heartbeat import NO_PROGRESS, plain, progress
from spark.speed.ingest import Ingest
from spark.speed.small_files import Upkeep, of_ingest
from spark.speed.writer_schemas import RegisteredSchemas

log = logging.getLogger("millrace.stream")


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
    failure: BaseException | None = None
    last_halt: tuple[str, datetime] | None = None
    """The last halt's message and when it began; kept while the query is tried again, until a batch is finished."""
    running: bool = field(default=False)
    """Whether a batch runs."""

    def start(self, spark: SparkSession) -> None:
        """Finishes what a reset left to be finished and starts the query. A `Halt` is in `halted`; raises what else
        goes wrong."""
        try:
            self._start(spark)
        except Halt as halt:
            self._failed(halt)

    def _start(self, spark: SparkSession) -> None:
        name, settings = self.contract.stream, self.settings
        if generations.settled_batch(self.contract, settings) is None:  # else it costs each recovery a connection
            with suppress(TransientError):  # a broker that is away is waited for by the query
                require_topics(settings, self.contract, "stream")
        opening = ingest_start.opening(self.contract, settings)
        if opening.unfinished is not None:
            self._finish_batch(spark, opening.unfinished, opening.generation)
        ingest_start.remember(self.contract, settings, opening.generation)
        ingest = self._ingest(opening.generation)
        self.failure = None
        spark.sparkContext.setLocalProperty("spark.scheduler.pool", name)
        self.query = (
            kafka_source.records(spark, self.contract, settings, opening.start)
            .writeStream.queryName(name)
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
                self.last_halt = None
            except BaseException as error:
                self._failed(error)
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
        )

    def _failed(self, error: BaseException) -> None:
        self.failure = error
        if isinstance(error, Halt) and (self.last_halt is None or self.last_halt[0] != str(error)):
            self.last_halt = (str(error), datetime.now(UTC))
            log.error("stream %s is halted: %s", self.contract.stream, error)

    @property
    def active(self) -> bool:
        """Whether Spark runs the query."""
        return self.query is not None and self.query.isActive

    @property
    def halted(self) -> bool:
        """Whether the stream stands still until somebody decides."""
        return not self.active and isinstance(self.failure, Halt)

    def tend(self, spark: SparkSession) -> None:
        """Does nothing: the ingest has nothing to do beside its batches."""

    def progress(self) -> dict[str, Any]:
        """As `spark.speed.heartbeat.progress`, and `halted`: why and since when (ISO-8601, UTC), None while it runs;
        `waiting`: why a batch waits for the schema registry, None while none does; and `within`: the seconds in which
        its contract wants a batch finished, None if it does not say."""
        found = progress(self.query, self.running) if self.query else dict(NO_PROGRESS)
        halted = None
        if self.halted and self.last_halt is not None:
            why, since = self.last_halt
            halted = {"why": why, "since": since.isoformat()}
        within = self.contract.progress_within
        return found | {
            "halted": halted,
            "waiting": self.writers and self.writers.waiting,
            "within": within and within.total_seconds(),
        }

    def error(self) -> str | None:
        """Why the query ended by itself, None while it runs or is halted."""
        if self.query is None or self.active or self.halted:
            return None
        return message(self.failure or self.query.exception() or RuntimeError("the query ended without a reason"))

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


def message(error: BaseException) -> str:
    """An error in words for people: the message of our own ones, type and message of others."""
    if isinstance(error, MillraceError):
        return str(error)
    return f"{type(error).__name__}: {plain(error)}"
