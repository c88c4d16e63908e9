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
from spark.speed.alert_lane import Lane
from spark.speed.checkpoint import generations, ingest_start
from spark.speed.dead_letters import Letters
from spark.speed.heartbeat import NO_PROGRESS, plain, progress
from spark.speed.ingest import Ingest
from spark.speed.small_files import Upkeep, of_ingest
from spark.speed.writer_schemas import Writers

log = logging.getLogger("millrace.stream")


class Stopping(Exception):
    """Ends a query at the start of a batch, before it has done anything; the batch runs again after the restart."""


@dataclass
class Stream:
    """One stream's ingest query and what is going on in it."""

    contract: Contract
    configured: Settings
    stopping: threading.Event
    may_commit: Callable[[], None]
    query: StreamingQuery | None = None
    letters: Letters | None = None
    writers: Writers | None = None
    failure: BaseException | None = None
    told: tuple[str, datetime] | None = None
    """The last halt's message and when it began; kept while the stream is tried again, until a batch is finished."""
    running: bool = field(default=False)
    lane: Lane | None = field(default=None, init=False)
    """If the contract has alerts; it runs whether the ingest is halted or not."""

    def __post_init__(self) -> None:
        if self.contract.alerts:
            self.lane = Lane(self.contract, self.configured, self.may_commit)

    def start(self, spark: SparkSession) -> None:
        """Finishes what a reset left to be finished and starts the query. What `Halt`s it, `halted` tells."""
        try:
            self._start(spark)
        except Halt as halt:
            self._failed(halt)

    def _start(self, spark: SparkSession) -> None:
        name, settings = self.contract.stream, self.configured
        if generations.settled_batch(self.contract, settings) is None:  # else it costs each recovery a connection
            with suppress(TransientError):  # a broker that is away is waited for by the query
                require_topics(settings, self.contract, "stream")
        opening = ingest_start.opening(self.contract, settings)
        if opening.unfinished is not None:
            ingest = self._ingest(batch_numbers.generation_of(opening.unfinished))
            ingest.onward(spark, batch_numbers.batch_id_of(opening.unfinished))
            ingest_start.finished(self.contract, settings, opening.generation)
        ingest_start.remember(self.contract, settings, opening.generation)
        ingest = self._ingest(opening.generation)
        history = timedelta(hours=settings.history_hours)
        lake = settings.lake_uri
        upkeep = Upkeep(
            of_ingest(lake, self.contract),
            history,
            self.may_commit,
            lake,
            retention.rules_of_partials(lake, self.contract),
        )

        def batch(records: DataFrame, batch_id: int) -> None:
            if self.stopping.is_set():
                raise Stopping
            self.running = True
            try:
                ingest.batch(records, batch_id)
                # The batch is in the served view by now: nobody waits for this but a batch to come.
                upkeep.after_batch(waiting=self.query is not None and progress(self.query, False)["lag"] > 0)
                self.may_commit()  # else Spark would note the batch as done in a checkpoint that is another driver's
                self.told = None
            except BaseException as error:
                self._failed(error)
                raise
            finally:
                self.running = False

        self.failure = None
        spark.sparkContext.setLocalProperty("spark.scheduler.pool", name)
        self.query = (
            kafka_source.records(spark, self.contract, settings, opening.start)
            .writeStream.queryName(name)
            .option("checkpointLocation", generations.location(settings, name, opening.generation))
            .trigger(processingTime=f"{int(settings.trigger_interval * 1000)} milliseconds")
            .foreachBatch(batch)
            .start()
        )

    def _ingest(self, generation: int) -> Ingest:
        name, settings = self.contract.stream, self.configured
        self.close()
        self.letters = Letters(
            self.contract, settings.kafka_client("stream"), generations.application(name, generation)
        )
        self.writers = self.writers or Writers(self.contract, settings, self.stopping)
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
        if isinstance(error, Halt) and (self.told is None or self.told[0] != str(error)):
            self.told = (str(error), datetime.now(UTC))
            log.error("stream %s is halted: %s", self.contract.stream, error)

    @property
    def active(self) -> bool:
        return self.query is not None and self.query.isActive

    @property
    def halted(self) -> bool:
        """Whether the stream stands still until somebody decides."""
        return not self.active and isinstance(self.failure, Halt)

    def progress(self) -> dict[str, Any]:
        """As `spark.speed.heartbeat.progress`, and `halted`: why and since when (ISO-8601, UTC), None while it runs;
        `waiting`: why a batch waits for the schema registry, None while none does; and `within`: the seconds in which
        its contract wants a batch finished, None if it does not say."""
        found = progress(self.query, self.running) if self.query else dict(NO_PROGRESS)
        halted = {"why": self.told[0], "since": self.told[1].isoformat()} if self.halted and self.told else None
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

    def close(self) -> None:
        if self.letters is not None:
            self.letters.close()

    def finish(self) -> bool:
        """With `stopping` set: stops the query if it is between two batches; returns whether it has ended."""
        if self.query is None or not self.query.isActive:
            return True
        if not self.query.status["isTriggerActive"]:
            self.query.stop()
            return True
        return False


def message(error: BaseException) -> str:
    if isinstance(error, MillraceError):
        return str(error)
    return f"{type(error).__name__}: {plain(error)}"
