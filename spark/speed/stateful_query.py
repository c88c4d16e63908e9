"""Velocity, sessions and joins as streaming queries: each is one query over bronze, with state of its own.

Bronze is what the ingest has decoded, judged and committed, so nothing is decoded twice, and a query that begins anew
finds everything from the beginning. Compaction (commits that change no data) is not news to it, and rewritten rows are
not read again. Events older than the watermark (event time less the allowed lateness) come too late for the state; the
batch layer repairs what they would have changed.

A batch is appended to the speed table under the transaction id of the query's checkpoint, so a batch that runs again
appends nothing twice. But it must run: a write that is skipped does not look at its rows, and then the state would lack
what they changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from infra.settings import Settings
from schemas.contract.model import Contract, Join, Sessions, StatefulResult, Velocity
from spark.definitions import stateful_results
from spark.lake import batch_numbers, contents, names, retention
from spark.speed import delta_append
from spark.speed.checkpoint import generations
from spark.speed.checkpoint.stateful_start import opening, remember, reset_advice
from spark.speed.heartbeat import NO_PROGRESS
from spark.speed.small_files import Upkeep
from spark.speed.standstill import Standstill
from spark.transforms.joins import joined
from spark.transforms.sessions import sessions
from spark.transforms.velocity import crossings

log = logging.getLogger(__name__)

EVERYTHING = 1_000_000
"""Files a batch takes at most. All that is there when a query begins must be one batch: files come in the order in
which they were last written, and compaction would make old events late."""

SLOWER = 5
"""Times the ingest's trigger interval: a batch with state costs more than its rows."""


# -- what it computes ----------------------------------------------------------------------------------------------


def events(spark: SparkSession, contract: Contract, lake_uri: str) -> DataFrame:
    """The accepted rows of bronze as a stream of `event_time` and the contract's fields, with the watermark."""
    return (
        spark.readStream.format("delta")
        .option("skipChangeCommits", "true")
        .option("maxFilesPerTrigger", EVERYTHING)
        .load(names.bronze(lake_uri, contract.stream))
        .where("accepted")
        .select(*dict.fromkeys(["event_time", *contract.fields]))
        .withWatermark("event_time", f"{contract.allowed_lateness // timedelta(milliseconds=1)} milliseconds")
    )


def results(spark: SparkSession, contract: Contract, result: StatefulResult, lake_uri: str) -> DataFrame:
    """The streaming rows of the result's speed table, without `batch`."""
    mine = events(spark, contract, lake_uri)
    match result:
        case Velocity():
            return crossings(mine, contract, result)
        case Sessions():
            return sessions(mine.dropDuplicatesWithinWatermark(contract.event_id), contract, result)
        case Join():
            other = stateful_results.other(contract, result)
            theirs = events(spark, other, lake_uri).dropDuplicatesWithinWatermark(other.event_id)
            return joined(mine.dropDuplicatesWithinWatermark(contract.event_id), theirs, contract, result)


def append(rows: DataFrame, uri: str, application: str, batch_id: int, may_commit: Callable[[], None]) -> None:
    """Appends a batch of a stateful query to the table at `uri` once, and lets its state have the batch every time.
    Raises as `spark.speed.delta_append.append` does."""
    written = contents.newest_append(uri, application)
    if written is not None and written >= batch_id:
        rows.write.format("noop").mode("append").save()
    else:
        delta_append.append(rows, uri, application, batch_id, may_commit)


# -- the running query ---------------------------------------------------------------------------------------------


@dataclass
class StatefulQuery:
    """The query of one stateful result as a `spark.speed.query.Query`. If it fails it halts itself alone: the ingest
    goes on, and the driver tries it again. `may_commit` is called before each commit and raises when this process must
    not."""

    contract: Contract
    result: StatefulResult
    settings: Settings
    may_commit: Callable[[], None] = lambda: None
    once: bool = False
    """Whether it ends when it has taken what is there."""
    query: StreamingQuery | None = None
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    standstill: Standstill = field(init=False)

    def __post_init__(self) -> None:
        self.standstill = Standstill(self.title, reset_advice(self.title), self.clock)

    def start(self, spark: SparkSession) -> None:
        """Starts the query. What keeps it from that is in `halted` and `progress`."""
        try:
            self._start(spark)
        except Exception as error:  # a refused checkpoint, Spark, Delta, the disk
            self.standstill.failed(error)

    def _start(self, spark: SparkSession) -> None:
        settings = self.settings
        generation = opening(self.contract, self.result, settings)
        remember(self.contract, self.result, settings, generation)
        every = f"{int(SLOWER * settings.trigger_interval * 1000)} milliseconds"
        spark.sparkContext.setLocalProperty("spark.scheduler.pool", self.title)
        rows = results(spark, self.contract, self.result, settings.lake_uri)
        with self.standstill.trying():
            self.query = (
                rows.writeStream.queryName(self.title)
                .option("checkpointLocation", generations.location(settings, self.title, generation))
                .trigger(**({"availableNow": True} if self.once else {"processingTime": every}))
                .foreachBatch(self._batch(generation))
                .start()
            )

    def _batch(self, generation: int) -> Callable[[DataFrame, int], None]:
        """The foreachBatch function of a generation: appends a batch, and cares for the table after it."""
        lake_uri, history = self.settings.lake_uri, timedelta(hours=self.settings.history_hours)
        uri = names.speed(lake_uri, self.contract.stream, self.result.name)
        application = generations.application(self.title, generation)
        kept = [retention.rule_of_stateful_result(lake_uri, self.contract, self.result)]
        upkeep = Upkeep([uri], history, self.may_commit, lake_uri, kept)

        def batch(rows: DataFrame, batch_id: int) -> None:
            try:
                number = delta_append.stamp(batch_numbers.batch_number(generation, batch_id))
                append(rows.withColumn("batch", number), uri, application, batch_id, self.may_commit)
                upkeep.after_batch(waiting=False)  # the batch is in the served view by now
                self.may_commit()  # else Spark would note the batch as done in a checkpoint that is another driver's
                self.standstill.finished()
            except BaseException as error:
                self.standstill.failed(error)
                raise

        return batch

    @property
    def title(self) -> str:
        """The name of the result, of its checkpoint and of the query: `<stream>.<result>`."""
        return stateful_results.title(self.contract, self.result)

    @property
    def active(self) -> bool:
        """Whether Spark runs the query."""
        return self.query is not None and self.query.isActive

    @property
    def halted(self) -> bool:
        """Whether it stands still."""
        return self.standstill.of(self.query)

    @property
    def due(self) -> bool:
        """Whether it is time to try again."""
        return self.standstill.due

    def progress(self) -> dict[str, Any]:
        """The newest batch_id, its rows and `halted`, as an ingest's. It has no lag: its first batch is all that there
        is, and however long that takes, the driver of the other streams must not be replaced for it."""
        last: Any = self.query.lastProgress if self.query else None
        found = {"batch_id": last["batchId"], "rows": last["numInputRows"]} if last else {}
        return NO_PROGRESS | found | {"halted": self.standstill.reported() if self.halted else None}

    def tend(self, spark: SparkSession) -> None:
        """Does nothing: the query has nothing to do beside its batches."""

    def error(self) -> str | None:
        """Why the driver must end: the query has lost the lease. None while there is no reason."""
        return self.standstill.concerns_all()

    def finish(self) -> bool:
        """Stops the query if it is between two batches; returns whether it has ended."""
        if self.query is not None and self.query.isActive:
            if self.query.status["isTriggerActive"]:
                return False
            self.query.stop()
        self.query = None
        return True

    def close(self) -> None:
        """Does nothing: the query has no connection."""
