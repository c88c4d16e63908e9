"""The alerts of a stream in the lake: the topic `<stream>.alerts` copied to a Delta table, each id once. No JVM."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from pyspark.sql.pandas.types import to_arrow_schema

from infra.settings import Settings
from schemas import sizes
from schemas.contract.model import Contract
from spark.lake import names, table_schemas
from spark.speed.small_files import Upkeep

log = logging.getLogger(__name__)

EVERY = 5.0
"""Seconds between two commits, so that a storm of alerts does not become a storm of files."""
MOST = 100_000
"""Alerts of one commit."""
MOST_BYTES = 64 * 1024 * 1024
"""Bytes of alerts that are held for a commit; what passes them is committed at once."""
LIST = 60.0
"""Seconds between two looks at which partitions the topic has."""


class AlertLog:
    """Copies the alerts on `<stream>.alerts` into the stream's alerts table, of which it is the only writer.

    A commit carries, beside its rows, the offset of each partition that comes next (as Delta's transaction ids), so it
    holds nothing that could be lost or disagree. The lane repeats alerts after a crash: an id that the table has is
    passed over. Small files are merged as `spark.speed.small_files` says. `may_commit` is called before each commit and
    raises when this process must not (any more); `clock` gives seconds.
    """

    def __init__(
        self,
        contract: Contract,
        settings: Settings,
        may_commit: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._topic = contract.alerts_topic
        self._uri = names.alerts(settings.lake_uri, contract.stream)
        self._path = names.local_path(self._uri)
        self._may_commit = may_commit
        self._upkeep = Upkeep([self._uri], timedelta(hours=settings.history_hours), may_commit)
        self._clock = clock
        self._next = self._list = float("-inf")
        self._partitions: set[int] = set()
        self._held: list[Message] = []
        self._held_bytes = 0
        self._consumer = Consumer(
            {
                **settings.kafka_client("stream"),
                "group.id": f"stream.{contract.stream}.alerts",  # holds nothing: partitions are assigned
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                **sizes.consumer(),
                "queued.max.messages.kbytes": 4096,
                "log_level": 2,
            }
        )

    def copy(self, at_once: bool = False) -> int:
        """Takes the alerts that have come, and commits them if `EVERY` seconds have passed since the last commit or
        `at_once`. Returns the number of rows committed. Raises KafkaException, and what Delta and `may_commit`
        raise."""
        if not self._partitions or (not (self._held or at_once) and self._clock() >= self._list):
            self._assign()
        while (
            len(self._held) < MOST
            and self._held_bytes < MOST_BYTES
            and (messages := self._consumer.consume(100, 0.05 if at_once else 0))
        ):
            for message in messages:
                error = message.error()
                if error is None:
                    self._held.append(message)
                    self._held_bytes += len(message)
                elif error.code() not in (
                    KafkaError._PARTITION_EOF,
                    KafkaError._TRANSPORT,
                    KafkaError._ALL_BROKERS_DOWN,
                ):
                    raise KafkaException(error)
        if not self._held or not (at_once or self._held_bytes >= MOST_BYTES or self._clock() >= self._next):
            return 0
        self._next = self._clock() + EVERY
        rows = self._append(self._held)
        self._held, self._held_bytes = [], 0
        return rows

    def close(self) -> None:
        """Closes the connection. What was taken and not committed is read again by the next log."""
        self._consumer.close()

    def _assign(self) -> None:
        """Reads on where the table ends, in all partitions that there are by now. Nothing may be held."""
        try:
            topic = self._consumer.list_topics(self._topic, 2 if self._partitions else 10).topics[self._topic]
            if topic.error is not None:
                raise KafkaException(topic.error)
            partitions = self._partitions | set(topic.partitions)  # Kafka takes none away
        except KafkaException:
            if not self._partitions:
                raise
            partitions = self._partitions  # an outage: nothing new is known
        if partitions != self._partitions:
            table = DeltaTable(self._path)
            self._consumer.assign(
                [
                    # -2: the beginning. Kafka may have dropped what comes next; then it goes on with what is left.
                    TopicPartition(self._topic, number, -2 if (done := self._done(table, number)) is None else done)
                    for number in partitions
                ]
            )
            self._partitions = partitions
        self._list = self._clock() + LIST

    def _done(self, table: DeltaTable, partition: int) -> int | None:
        version: int | None = table.transaction_version(f"{self._topic}/{partition}")
        return version

    def _append(self, messages: list[Message]) -> int:
        found = {row["id"]: row for message in reversed(messages) if (row := _row(message)) is not None}
        table = DeltaTable(self._path)
        for known in self._known(table, found):
            del found[known]
        ends = {message.partition() or 0: (message.offset() or 0) + 1 for message in messages}
        schema = to_arrow_schema(table_schemas.ALERTS, timezone="UTC")
        rows = sorted(found.values(), key=lambda row: row["alerted_at"])
        self._may_commit()
        write_deltalake(
            table,
            pyarrow.Table.from_pylist(rows, schema=schema),
            mode="append",
            commit_properties=CommitProperties(
                app_transactions=[Transaction(f"{self._topic}/{number}", end) for number, end in ends.items()]
            ),
        )
        self._upkeep.after_batch(waiting=False)
        return len(rows)

    def _known(self, table: DeltaTable, found: Mapping[str, dict[str, Any]]) -> set[str]:
        """The ids in `found` that the table has. Their offsets prune the table to the files that may have them."""
        if not found:
            return set()
        offsets = [row["offset"] for row in found.values()]
        filters = [("offset", ">=", min(offsets)), ("offset", "<=", max(offsets))]
        return set(table.to_pyarrow_table(columns=["id"], filters=filters)["id"].to_pylist()) & found.keys()


def _row(message: Message) -> dict[str, Any] | None:
    """The row of the alerts table for a message; None if it is no alert."""
    try:
        alert = json.loads(message.value() or b"")
        topic, partition, offset = alert["original"].rsplit("/", 2)
        return {
            "id": alert["id"],
            "alert": alert["alert"],
            "severity": alert["severity"],
            "event_time": datetime.fromisoformat(alert["event_time"]),
            "kafka_timestamp": datetime.fromisoformat(alert["kafka_timestamp"]),
            "alerted_at": datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC),
            "topic": topic,
            "partition": int(partition),
            "offset": int(offset),
            "record": None if alert["record"] is None else json.dumps(alert["record"]),
            "references": json.dumps(alert["references"]) if alert.get("references") else None,
        }
    except (ValueError, KeyError, TypeError) as error:
        coordinates = f"{message.topic()}/{message.partition()}/{message.offset()}"
        log.warning("%s is no alert, and is passed over: %s", coordinates, error)
        return None
