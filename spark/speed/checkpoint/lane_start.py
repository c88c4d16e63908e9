"""Where the alert lane of a stream starts, and its reset. A lane's checkpoint is called `<stream>.alerts`, and each of
its generations has a `start.json`, which is noted before anything is read."""

from __future__ import annotations

from contextlib import suppress

from infra.broker.offsets import Offsets, flat, nested
from infra.settings import Settings
from schemas.contract.model import Contract
from spark.speed.checkpoint import generations, spark_log
from spark.speed.checkpoint.generations import Start
from spark.speed.checkpoint.spark_log import Unreadable
from spark.speed.checkpoint.start_check import StartCheck


def opening(contract: Contract, settings: Settings) -> tuple[int, Start | None]:
    """The newest generation of the lane's checkpoint, and how it began: None before the first start, and after a crash
    that came before it was noted. Changes nothing. Raises `CheckpointRefused` when a file that the lane needs to go on
    is missing or broken."""
    name = contract.alerts_topic
    generation = generations.generation(settings, name)
    location = generations.location(settings, name, generation)
    check = StartCheck(name, f"begin a new generation, which loses no alert: `millrace checkpoint reset {name}`")
    check.readable(lambda: spark_log.read(location))
    return generation, check.readable(lambda: generations.begun(location))


def begin(contract: Contract, settings: Settings, behind_ingest: bool = False) -> tuple[int, Start]:
    """Makes the next generation of the lane's checkpoint, which sends every alert that older ones may not have sent,
    and notes where it starts before anything is read, for its first checkpoint comes late, and a crash may come before.
    With `behind_ingest` it passes over what the ingest has settled, and over the alerts of that. The lane must not run.
    Returns the generation and its start. Raises `Unreadable` if it is the first, and what the ingest has settled cannot
    be read."""
    offsets = _alerted_offsets(settings, contract.alerts_topic)
    if offsets is None or behind_ingest:
        alerted = offsets or {}
        # What the ingest had settled when alerts came into the contract is history, and alerts nobody any more.
        settled = generations.settled_batch(contract, settings)
        ingested = {} if settled is None else generations.settled_offsets(contract, settings, settled)
        offsets = alerted | {partition: max(end, alerted.get(partition, 0)) for partition, end in ingested.items()}
    generation = max(generations.generations(settings, contract.alerts_topic), default=0) + 1
    start = Start(offsets=nested(offsets), after=None, finished=True)
    generations.put_start(generations.location(settings, contract.alerts_topic, generation), start)
    return generation, start


def _alerted_offsets(settings: Settings, name: str) -> Offsets | None:
    """Where the last checkpoint but one ends: all alerts from before it have been sent. Not the last: a record of a new
    schema may have been read, and passed over, a moment before the lane knew the schema, with a checkpoint in between;
    the ingest knew the schema, so nothing would bring the record back. A file that cannot be read is passed over for
    an older one; if none can, nothing is returned, so all alerts are sent again. None if no lane has run."""
    ran = False
    for generation in sorted(generations.generations(settings, name), reverse=True):
        location = generations.location(settings, name, generation)
        committed = sorted(spark_log.numbers(f"{location}/commits", r"(\d+)"), reverse=True)
        for batch in committed[1:]:
            with suppress(Unreadable):
                return spark_log.offsets(f"{location}/offsets/{batch}")
        try:
            if (start := generations.begun(location)) is not None:
                return flat(start.offsets)
            ran = ran or bool(committed)
        except Unreadable:
            ran = True
    return {} if ran else None
