"""The alert lane of a stream: Spark's real-time mode from `<stream>` and `<stream>.retry` to `<stream>.alerts`.

It runs beside the ingest and reads for itself, so an alert does not wait for a batch. Real-time mode knows how far it
is only at its checkpoints: after a crash it reads the interval since the last one again, and sends the same alerts once
more, with the same ids.

A query is planned once, with the writer schemas that are registered then. With others it begins a generation of its
checkpoint anew, which notes them beside where it starts, so a schema that came while no lane ran is noticed as well.

A record that does not fit into memory (`spark.speed.large_records`) ends the query. The lane then goes on where the
ingest is, as soon as that has passed the record: alerts of records in between are not sent, which the log says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from infra.broker.offsets import flat
from infra.settings import Settings
from schemas import sizes
from schemas.contract import references
from schemas.contract.model import Contract
from spark.speed import kafka_source
from spark.speed.alert_log import AlertLog
from spark.speed.checkpoint import generations, lane_start
from spark.speed.heartbeat import NO_PROGRESS
from spark.speed.large_records import OUT_OF_MEMORY
from spark.speed.standstill import REPORTED_AFTER, Standstill, words
from spark.speed.writer_schemas import RegisteredSchemas
from spark.transforms.alerts import alerts

log = logging.getLogger("millrace.lane")

_AT_ONCE = {"kafka.linger.ms": "0", "kafka.acks": "all", "kafka.compression.type": "none"}


class Lane:
    """A stream's lane and the log of its alerts as a `spark.speed.query.Query`: `tend` does all that is to be done.
    `may_commit` is called before each commit of the log and raises when this process must not; `clock` gives the time
    (UTC)."""

    def __init__(
        self,
        contract: Contract,
        settings: Settings,
        may_commit: Callable[[], None] = lambda: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.contract, self._settings = contract, settings
        self._name = contract.alerts_topic
        self._clock = clock
        self._writers = RegisteredSchemas(contract, settings)
        self._log = AlertLog(contract, settings, may_commit)
        self._query: StreamingQuery | None = None
        self._schemas: Mapping[int, str] = {}
        self._files: list[tuple[int, int]] = []
        self._started_at: datetime | None = None
        self._choked = False
        way_out = f"begin a new generation, which loses no alert: `millrace checkpoint reset {self._name}`"
        self.standstill = Standstill(f"the alert lane of {contract.stream}", way_out, clock)

    @property
    def halted(self) -> bool:
        """Whether the lane stands still."""
        return self.standstill.failure is not None

    @property
    def due(self) -> bool:
        """Whether it is time to try again."""
        return self.standstill.due

    def start(self, spark: SparkSession) -> None:
        """The same as `tend`."""
        self.tend(spark)

    def tend(self, spark: SparkSession) -> None:
        """Starts the query if it does not run, or anew if a schema was registered or a reference file changed, and
        copies its alerts to the lake. What goes wrong is reported by `progress` and tried again when it is `due`: a
        lane that stands still does not stop the ingest."""
        if self.halted and not self.due:
            return
        try:
            self._keep_running(spark)
            self._log.copy()
            # A query that dies does so a while after it was started: until then its failures are not forgotten.
            if self._started_at is None or self._clock() - self._started_at >= REPORTED_AFTER:
                self.standstill.finished()
        except Exception as error:  # Kafka, the registry, Spark, Delta, a lost lease
            self.standstill.failed(error)

    def progress(self) -> dict[str, Any]:
        """As `spark.speed.heartbeat.progress`, of the last checkpoint, and `halted`: why the lane stands still. It has
        no lag: what is between two checkpoints is unknown."""
        last: Any = self._query.lastProgress if self._query else None
        found = {"batch_id": last["batchId"], "rows": last["numInputRows"]} if last else {}
        return NO_PROGRESS | found | {"halted": self.standstill.reported()}

    def error(self) -> str | None:
        """Why the driver must end: the lane has lost the lease. None while there is no reason."""
        return self.standstill.concerns_all()

    def finish(self) -> bool:
        """Ends the query where it is, for real-time mode has no batch whose end would be worth waiting for, and copies
        what is on the topic already. Returns True."""
        self._stop()
        try:
            self._log.copy(at_once=True)
        except Exception as error:  # the next driver's lane goes on with it
            log.warning("%s: its last alerts are copied later: %s", self._name, words(error))
        return True

    def close(self) -> None:
        """Ends the query if it still runs, and closes the connection of the log."""
        self._stop()
        self._log.close()

    def _stop(self) -> None:
        if self._query is not None:
            self._query.stop()
            self._query = None

    def _keep_running(self, spark: SparkSession) -> None:
        if self._query is not None and not self._query.isActive:
            failure = self._query.exception()
            self._query = None
            self._choked = OUT_OF_MEMORY in str(failure)
            raise failure or RuntimeError("the query ended without a reason")
        schemas, files = self._writers.watched(), self._reference_files()
        if schemas != self._schemas or files != self._files:
            self._stop()
        self._schemas, self._files = schemas, files
        if self._query is None:
            self._query = self._started(spark)
            self._started_at = self._clock()

    def _started(self, spark: SparkSession) -> StreamingQuery:
        generation, start = lane_start.opening(self.contract, self._settings)
        known = sorted(self._schemas)
        if start is None or self._choked or start.schemas not in (None, known):
            generation, start = lane_start.begin(self.contract, self._settings, behind_ingest=self._choked)
            if self._choked:
                log.error("%s met a record that does not fit into memory: it goes on behind the ingest", self._name)
            self._choked = False
            log.info("%s begins generation %d of its checkpoint, with the schemas %s", self._name, generation, known)
        location = generations.location(self._settings, self._name, generation)
        if start.schemas is None:
            generations.put_start(location, start.model_copy(update={"schemas": known}))
        tables = {
            reference.name: spark.createDataFrame(references.table(self.contract, reference))
            for reference in self.contract.references
        }
        records = kafka_source.live_records(spark, self.contract, self._settings, flat(start.offsets))
        connection = {f"kafka.{key}": value for key, value in self._settings.kafka_java("stream").items()}
        spark.sparkContext.setLocalProperty("spark.scheduler.pool", self._name)
        query: StreamingQuery = (
            alerts(records, self.contract, self._schemas, tables)
            .writeStream.queryName(self._name)
            .format("kafka")
            .options(**connection, **_AT_ONCE, **self._bounds(), topic=self._name, checkpointLocation=location)
            .outputMode("update")
            .trigger(realTime=f"{int(self._settings.alert_checkpoint)} seconds")  # type: ignore[call-overload]
            .start()
        )
        return query

    def _bounds(self) -> dict[str, str]:
        """The options that let the sink send what the topic takes."""
        return {f"kafka.{key}": value for key, value in sizes.java_producer(sizes.of_topic(self.contract)).items()}

    def _reference_files(self) -> list[tuple[int, int]]:
        """Time and size of each reference file: another value means that one was changed."""
        found = [references.path(self.contract, reference).stat() for reference in self.contract.references]
        return [(file.st_mtime_ns, file.st_size) for file in found]
