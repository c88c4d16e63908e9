"""The alert lane of a stream: Spark's real-time mode from `<stream>` and `<stream>.retry` to `<stream>.alerts`.

It runs beside the ingest and reads for itself, so an alert does not wait for a batch. Real-time mode knows how far it
is only at its checkpoints: after a crash it reads the interval since the last one again, and tells the same alerts once
more, with the same ids.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from infra.offsets import Offsets, flat, nested
from infra.settings import Settings
from schemas import references
from schemas.model import Contract
from spark import checkpoint_log, checkpoints, source
from spark.alert_log import AlertLog
from spark.heartbeat import NO_PROGRESS
from spark.transforms.alerts import alerts
from spark.writers import Writers

log = logging.getLogger("millrace.lane")

_AT_ONCE = {"kafka.linger.ms": "0", "kafka.acks": "all", "kafka.compression.type": "none"}

RETRY = 10.0
"""Seconds between the attempts to start a lane that failed."""
TOLD_AFTER = 30.0
"""Seconds that a lane stands still before it counts as halted: a broker that restarts is no news for people."""


class Lane:
    """A stream's lane and the log of its alerts. `tend` is called about once a second and does what is to be done."""

    def __init__(
        self,
        contract: Contract,
        settings: Settings,
        may_commit: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.contract, self._settings = contract, settings
        self._name = contract.alerts_topic
        self._clock = clock
        self._writers = Writers(contract, settings)
        self._log = AlertLog(contract, settings, may_commit)
        self._query: StreamingQuery | None = None
        self._schemas: Mapping[int, str] = {}
        self._files: list[tuple[int, int]] = []
        self._retry = float("-inf")
        self._fails_since: tuple[float, datetime] | None = None
        self._why = ""

    def tend(self, spark: SparkSession) -> None:
        """Starts the query if it does not run, or anew if a schema was registered or a reference file changed, and
        copies its alerts to the lake. What goes wrong is told by `progress` and tried again after `RETRY` seconds: a
        lane that stands still does not stop the ingest."""
        if self._clock() < self._retry:
            return
        try:
            self._keep_running(spark)
            self._log.copy()
            self._fails_since = None
        except Exception as error:  # Kafka, the registry, Spark, Delta, a lost lease: all of them are told
            self._fails_since = self._fails_since or (self._clock(), datetime.now(UTC))
            self._why = f"the alert lane of {self.contract.stream} stands still and is tried again: {_words(error)}"
            self._retry = self._clock() + RETRY
            log.error("%s", self._why)

    def progress(self) -> dict[str, Any]:
        """As `spark.heartbeat.progress`, of the last checkpoint; `halted` says why the lane stands still, if it has for
        `TOLD_AFTER` seconds. It has no lag: what is between two checkpoints is unknown."""
        last: Any = self._query.lastProgress if self._query else None
        halted = None
        if self._fails_since is not None and self._clock() - self._fails_since[0] >= TOLD_AFTER:
            halted = {"why": self._why, "since": self._fails_since[1].isoformat()}
        found = {"batch_id": last["batchId"], "rows": last["numInputRows"]} if last else {}
        return NO_PROGRESS | found | {"halted": halted}

    def stop(self) -> None:
        """Ends the query where it is: real-time mode has no batch whose end would be worth waiting for."""
        if self._query is not None:
            self._query.stop()
            self._query = None

    def close(self) -> None:
        """`stop`, and copies what is on the topic already."""
        self.stop()
        try:
            self._log.copy(at_once=True)
        except Exception as error:  # the next driver's lane goes on with it
            log.warning("%s: its last alerts are copied later: %s", self._name, _words(error))
        self._log.close()

    def _keep_running(self, spark: SparkSession) -> None:
        if self._query is not None and not self._query.isActive:
            failure = self._query.exception()
            self._query = None
            raise failure or RuntimeError("the query ended without a reason")
        schemas, files = self._writers.watched(), self._reference_files()
        if self._query is not None and schemas != self._schemas:
            log.info("%s: a schema was registered; the last interval is read again", self._name)
            self.stop()
            self._rewind()
        elif files != self._files:
            self.stop()
        self._schemas, self._files = schemas, files
        if self._query is None:
            self._query = self._started(spark)

    def _started(self, spark: SparkSession) -> StreamingQuery:
        generation = checkpoints.generation(self._settings, self._name)
        place = checkpoints.location(self._settings, self._name, generation)
        start = checkpoints.begun(place)
        if start is None:
            # What the ingest had settled when alerts came into the contract is history, and alerts nobody any more.
            settled = checkpoints.settled_batch(self.contract, self._settings)
            offsets = {} if settled is None else checkpoints.settled_offsets(self.contract, self._settings, settled)
            start = self._begin(generation, offsets)
        tables = {
            reference.name: spark.createDataFrame(references.table(self.contract, reference))
            for reference in self.contract.references
        }
        records = source.live_records(spark, self.contract, self._settings, flat(start.offsets))
        connection = {f"kafka.{key}": value for key, value in self._settings.kafka_java("stream").items()}
        spark.sparkContext.setLocalProperty("spark.scheduler.pool", self._name)
        query: StreamingQuery = (
            alerts(records, self.contract, self._schemas, tables)
            .writeStream.queryName(self._name)
            .format("kafka")
            .options(**connection, **_AT_ONCE, topic=self._name, checkpointLocation=place)
            .outputMode("update")
            .trigger(realTime=f"{int(self._settings.alert_checkpoint)} seconds")  # type: ignore[call-overload]
            .start()
        )
        return query

    def _rewind(self) -> None:
        """Begins a generation that starts one interval before the last checkpoint. A record of a new schema may have
        been read, and passed over, a moment before the schema was known here, with a checkpoint in between; the ingest
        knew the schema, so nothing would bring the record back."""
        generation = checkpoints.generation(self._settings, self._name)
        place = checkpoints.location(self._settings, self._name, generation)
        committed = max(checkpoint_log.numbers(f"{place}/commits", r"(\d+)"), default=0)
        if committed:
            self._begin(generation + 1, checkpoint_log.offsets(f"{place}/offsets/{committed - 1}"))
        elif (start := checkpoints.begun(place)) is not None:
            self._begin(generation + 1, flat(start.offsets))

    def _begin(self, generation: int, offsets: Offsets) -> checkpoints.Start:
        """Notes where a generation starts, for its first checkpoint comes late, and a crash may come before."""
        start = checkpoints.Start(offsets=nested(offsets), after=None, finished=True)
        place = checkpoints.location(self._settings, self._name, generation)
        checkpoint_log.put(f"{place}/start.json", start.model_dump_json())
        return start

    def _reference_files(self) -> list[tuple[int, int]]:
        """What tells that a reference file was changed: time and size of each."""
        found = [references.path(self.contract, reference).stat() for reference in self.contract.references]
        return [(file.st_mtime_ns, file.st_size) for file in found]


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:500]
