"""How far the brokers and the stream are: offsets per topic and partition, from each side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from infra.settings import Principal, Settings
from schemas.contract.model import Contract
from schemas.errors import Halt, TransientError

Offsets = dict[tuple[str, int], int]
"""Offsets by (topic, partition)."""


def broker_offsets(
    settings: Settings,
    topics: Iterable[str],
    *,
    earliest: bool = False,
    uncommitted: bool = False,
    principal: Principal = "admin",
) -> Offsets:
    """Returns the end (or with `earliest` the first retained) offset of every partition of those `topics` that exist.

    The end is the last stable offset, as far as readers of committed records come: what stands behind the first record
    of an open transaction is not yet part of a topic. With `uncommitted` it is the end of the log. The question is
    asked as `principal`. Raises `TransientError` when the broker cannot be reached.
    """
    spec = OffsetSpec.earliest() if earliest else OffsetSpec.latest()
    try:
        admin = AdminClient(settings.kafka_client(principal) | {"socket.timeout.ms": 10_000, "log_level": 2})
        existing = admin.list_topics(timeout=10).topics
        wanted = {
            TopicPartition(topic, partition): spec
            for topic in topics
            if topic in existing
            for partition in existing[topic].partitions
        }
        if not wanted:
            return {}
        level = IsolationLevel.READ_UNCOMMITTED if uncommitted else IsolationLevel.READ_COMMITTED
        answers = admin.list_offsets(wanted, isolation_level=level, request_timeout=10)
        return {(p.topic, p.partition): answer.result().offset for p, answer in answers.items()}
    except KafkaException as error:
        raise TransientError(f"Kafka at {settings.bootstrap} is not reachable: {error}; is the stack up?") from error


class NotProvisioned(Halt):
    """A topic of the stream does not exist."""


def require_topics(settings: Settings, contract: Contract, principal: Principal = "admin") -> None:
    """Raises `NotProvisioned` while a topic of the stream that the driver needs is missing, and `TransientError` as
    `broker_offsets` does."""
    needed = [*contract.ingest_topics, contract.dlq_topic]
    there = {topic for topic, _ in broker_offsets(settings, needed, principal=principal)}
    if missing := [topic for topic in needed if topic not in there]:
        raise NotProvisioned(
            f"stream {contract.stream} is not provisioned: there is no topic {', '.join(missing)}; `millrace "
            "provision` makes what its contract says"
        )


def flat(document: Mapping[str, Mapping[str, int]]) -> Offsets:
    """Offsets as Spark and JSON nest them: topic to partition to offset."""
    return {
        (topic, int(partition)): int(offset)
        for topic, partitions in document.items()
        for partition, offset in partitions.items()
    }


def nested(offsets: Offsets) -> dict[str, dict[str, int]]:
    """The inverse of `flat`, in order."""
    document: dict[str, dict[str, int]] = {}
    for (topic, partition), offset in sorted(offsets.items()):
        document.setdefault(topic, {})[str(partition)] = offset
    return document
