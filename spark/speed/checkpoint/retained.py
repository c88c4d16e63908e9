"""Whether Kafka still holds what a stream's ingest reads next. Retention, or `DeleteRecords`, can overtake it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from infra.broker.offsets import Offsets, broker_offsets, flat
from infra.broker.ranges import Partition, Range
from infra.settings import Settings
from schemas.contract.model import Contract
from schemas.errors import Halt
from spark.lake import contents, names
from spark.speed.checkpoint import generations, spark_log


class RecordsDropped(Halt):
    """Kafka has dropped records before they were read."""


def require_retained(contract: Contract, settings: Settings, generation: int) -> None:
    """Raises `RecordsDropped`, with the ranges and the way out, if Kafka no longer holds the offsets at which the
    ingest of `generation` goes on; and `TransientError` when Kafka cannot be reached."""
    going_on = positions(contract, settings, generation)
    if not going_on:
        return
    first = broker_offsets(settings, contract.ingest_topics, earliest=True, principal="stream")
    if lost := dropped(going_on, first):
        raise RecordsDropped(
            f"Kafka has dropped records of stream {contract.stream} before they were ingested ({words(lost)}): "
            "retention was shorter than the stream's pause, or somebody deleted them. They are lost, unless the "
            f"producer still has them. To go on without them: `millrace stream stop`, `millrace checkpoint reset "
            f"{contract.stream} --accept-loss`, `millrace stream start`; the conservation audit keeps the ranges as "
            "accepted"
        )


def positions(contract: Contract, settings: Settings, generation: int) -> Offsets:
    """The offsets at which the ingest of `generation` goes on, of each partition that it knows: after the newest batch
    in bronze, else where it begins. Empty if it begins with what there is, or if its checkpoint cannot be read."""
    location = generations.location(settings, contract.stream, generation)
    bronze = names.bronze(settings.lake_uri, contract.stream)
    written = contents.newest_append(bronze, generations.application(contract.stream, generation))
    with suppress(spark_log.Unreadable):
        log = spark_log.read(location)
        if written is not None:
            return log.ends.get(written, {})
        if log.planned is not None:
            return spark_log.beginning(location)
        if (start := generations.begun(location)) is not None:
            return flat(start.offsets)
    return {}


def dropped(positions: Mapping[Partition, int], first: Mapping[Partition, int]) -> dict[Partition, Range]:
    """The ranges from each position to before the `first` offset that Kafka holds. A partition without a position, of a
    topic that has some, was added since and begins at 0."""
    topics = {topic for topic, _ in positions}
    return {
        partition: Range(positions.get(partition, 0), held - 1)
        for partition, held in first.items()
        if partition[0] in topics and positions.get(partition, 0) < held
    }


def words(lost: Mapping[Partition, Range]) -> str:
    """Ranges of partitions for people."""
    return "; ".join(
        f"{topic}/{number} from {range_.first} to {range_.last}" for (topic, number), range_ in sorted(lost.items())
    )
