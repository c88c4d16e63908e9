"""Whether a stream's ingest may start, where it starts, and how a person helps when it may not.

*Bronze is the commit point.* A batch is in bronze whole, by one Delta commit, or not at all, and everything that
comes after (partials, dead letters) is derived from bronze alone. So what a checkpoint says can be checked against
bronze, and what it lost can be found there:

- the start is refused, before the query exists, when the checkpoint and bronze do not fit together, when a file that
  Spark needs is missing or broken, and when the contract changed what may not change (see
  `spark.speed.checkpoint.fingerprint`);
- a reset makes the next generation, which starts at the offset after the last one that bronze holds, of each
  partition. A batch that had not reached bronze is read again, whole. One that had reached it, but whose partials or
  letters may be missing, is never read again: the new generation's driver finishes it first, from its rows in bronze
  and under the transaction ids of the old generation, so that what had been committed is skipped and what had not is
  made up for.

Beside Spark's own files a generation's folder holds `fingerprint.json`, and after a reset `start.json`: the offsets it
starts from, the newest batch that bronze held then, and whether that one is finished. `<stream>/accepted/<batch>` says
that somebody accepted the storm of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
from deltalake import DeltaTable

from infra.broker.offsets import Offsets, broker_offsets, flat, nested
from infra.broker.ranges import Partition, Range
from infra.broker.topic_ids import TopicIds
from infra.settings import Settings
from schemas.contract.model import TOMBSTONE, TOMBSTONE_REASON, Contract
from schemas.errors import TerminalError
from spark.lake import batch_numbers, contents, names, source_topics
from spark.speed.checkpoint import generations, retained, spark_log, topic_identity
from spark.speed.checkpoint.fingerprint import Fingerprint, fingerprint, note, noted
from spark.speed.checkpoint.generations import Start
from spark.speed.checkpoint.spark_log import Log, Unreadable
from spark.speed.checkpoint.start_check import StartCheck

NEW_NAME = (
    "use a new name for the field, the aggregate or the stream: the rows already written stay as they are, and a reset "
    "does not change them"
)
"""The way out of a change that a reset does not allow."""


class ResetRefused(TerminalError):
    """A reset would lose records or double them; nothing was changed."""


class NoStorm(TerminalError):
    """No storm of the stream waits for a decision."""


@dataclass(frozen=True)
class Opening:
    """How a stream's ingest starts: its `generation`; the offsets to `start` from if it has no batch yet (None: from
    the beginning); and the batch of an older generation that must be finished first."""

    generation: int
    start: Offsets | None = None
    unfinished: int | None = None


@dataclass(frozen=True)
class Reset:
    """What a reset did: the new `generation`, the offsets it starts from, the batch it finishes first, how many offsets
    of each partition Kafka has dropped before they were ingested, and the topics that were made `anew`, which it reads
    from their beginning."""

    generation: int
    start: Offsets
    unfinished: int | None
    lost: Offsets
    anew: list[str]


@dataclass(frozen=True)
class Storm:
    """A batch in bronze that halted the ingest: how many records, and how many bad ones by class and reason."""

    batch: int
    records: int
    bad: dict[tuple[str, str], int]


# -- start ---------------------------------------------------------------------------------------------------------


def opening(contract: Contract, settings: Settings) -> Opening:
    """How the stream's ingest starts. Changes nothing. Raises `CheckpointRefused`."""
    stream = contract.stream
    generation = generations.generation(settings, stream)
    location = generations.location(settings, stream, generation)
    reset_advice = f"go on where bronze ends, with nothing lost or doubled: `millrace checkpoint reset {stream}`"
    check = StartCheck(f"stream {stream}", reset_advice)
    log = check.readable(lambda: spark_log.read(location))
    start = check.readable(lambda: generations.begun(location))
    before = check.readable(lambda: remembered(contract, settings, generation))
    check.require_fit(_misfit(contract, settings, generation, log, start))
    check.require_unchanged(contract, before, fingerprint(contract), NEW_NAME)
    return Opening(
        generation,
        start=flat(start.offsets) if start and log.planned is None else None,
        unfinished=start.after if start and not start.finished else None,
    )


def remember(contract: Contract, settings: Settings, generation: int) -> None:
    """Notes the fingerprint that the query of `generation` starts with."""
    before = remembered(contract, settings, generation)
    known = fingerprint(contract).after(before)
    if known != before:
        note(generations.location(settings, contract.stream, generation), known)


def remembered(contract: Contract, settings: Settings, generation: int) -> Fingerprint:
    """The fingerprint noted beside the checkpoint of `generation`, an empty one if there is none. Raises
    `Unreadable`."""
    return noted(generations.location(settings, contract.stream, generation)) or Fingerprint()


def unread(contract: Contract, settings: Settings) -> list[str]:
    """The contract's fields that the stream's ingest did not know when it last started; an empty list if it never did,
    as the start to come knows all of them."""
    known = _known(settings, contract.stream, generations.generation(settings, contract.stream)).tables
    return [name for name in contract.fields if known and f"column {name}" not in known]


def finished(contract: Contract, settings: Settings, generation: int) -> None:
    """Notes that the batch before `generation` is complete."""
    location = generations.location(settings, contract.stream, generation)
    start = generations.begun(location)
    if start is not None:
        generations.put_start(location, start.model_copy(update={"finished": True}))


def _misfit(contract: Contract, settings: Settings, generation: int, log: Log, start: Start | None) -> str | None:
    """Why checkpoint and bronze do not belong together, None if they do."""
    stream = contract.stream
    bronze = names.bronze(settings.lake_uri, stream)
    misfit = generations.misfit(settings, stream, generation, log, bronze, "bronze")
    if misfit or log.planned is not None:
        return misfit
    location = generations.location(settings, stream, generation)
    newest = contents.newest_batch(bronze)
    if start is None:
        return f"bronze holds records, but {location} has no start.json: a reset was not finished" if newest else None
    if start.after != newest:
        return f"bronze ends with batch {newest}, and ended with {start.after} when {location} was made"
    return None


# -- reset ---------------------------------------------------------------------------------------------------------


def reset(
    contract: Contract, settings: Settings, *, accept_loss: bool = False, may_write: Callable[[], None] = lambda: None
) -> Reset:
    """Makes the next generation of the stream's checkpoint; the old one's files stay where they are. No driver may
    run: `may_write` is called right before the generation is made and raises when that is not sure.

    Raises `ResetRefused` if Kafka has dropped records that bronze lacks, or a topic was made anew of which bronze holds
    nothing, unless the loss is accepted; if a topic was made anew of which bronze holds records; and `TransientError`
    when Kafka cannot be reached."""
    stream = contract.stream
    before = generations.generation(settings, stream)
    after = contents.newest_batch(names.bronze(settings.lake_uri, stream))
    ends = bronze_ends(contract, settings)
    first = broker_offsets(settings, contract.ingest_topics, earliest=True)
    last = broker_offsets(settings, contract.ingest_topics)
    ids = TopicIds(settings).of(contract.ingest_topics)
    anew = _made_anew(contract, settings, ids, ends, accept_loss)
    shorter = [partition for partition in last if ends.get(partition, 0) > last[partition]]
    if shorter:
        shown = "; ".join(f"{_name(p)} ends at {last[p]}, bronze at {ends[p]}" for p in shorter)
        raise ResetRefused(
            f"the topics of {stream} are not those that bronze was read from ({shown}): new records would pass for old "
            "ones. Give the stream a new name"
        )
    read = {p: end for p, end in retained.positions(contract, settings, before).items() if p[0] not in anew}
    # Behind bronze's last record there may be offsets without one (the ends of transactions), which retention took too.
    overtaken = retained.dropped({p: max(ends.get(p, 0), read.get(p, 0)) for p in ends.keys() | read.keys()}, first)
    lost = {p: Range(ends.get(p, range_.first), range_.last) for p, range_ in overtaken.items()}
    if lost and not accept_loss:
        raise ResetRefused(
            f"Kafka has dropped records of {stream} before they were ingested ({retained.words(lost)}): retention was "
            "shorter than the stream's pause. They are lost; to go on without them, say so with --accept-loss"
        )
    start = {partition: max(end, first[partition]) for partition, end in ends.items() if partition in first}
    generation = max(before, batch_numbers.generation_of(after or 0)) + 1
    location = generations.location(settings, stream, generation)
    known = _known(settings, stream, before)
    may_write()
    note(location, Fingerprint(tables=known.tables))
    # The last file: without it the reset was not finished.
    generations.put_start(location, Start(offsets=nested(start), after=after, lost=_nested(lost), anew=anew))
    source_topics.note(settings.lake_uri, stream, {topic: topic_id for topic, topic_id in ids.items() if topic_id})
    return Reset(generation, start, after, {partition: range_.size for partition, range_ in lost.items()}, anew)


def _made_anew(
    contract: Contract, settings: Settings, ids: dict[str, str], ends: Offsets, accept_loss: bool
) -> list[str]:
    """The topics that were made anew and of which bronze holds nothing, so that they can be read from their beginning.
    Raises `ResetRefused` for others, and unless the loss of what the old ones had is accepted."""
    noted = source_topics.noted(settings.lake_uri, contract.stream)
    anew = topic_identity.changed(noted, ids)
    if anew and (not accept_loss or any(topic in anew for topic, _ in ends)):
        raise ResetRefused(topic_identity.words(contract, anew, noted, ids))
    return anew


def _nested(ranges: Mapping[Partition, Range]) -> dict[str, dict[str, tuple[int, int]]]:
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for (topic, number), range_ in sorted(ranges.items()):
        found.setdefault(topic, {})[str(number)] = (range_.first, range_.last)
    return found


def bronze_ends(contract: Contract, settings: Settings) -> Offsets:
    """The offset after the last one that bronze holds, of each partition of the ingest's topics that it knows."""
    ends = 'select topic, partition, max("offset") + 1 from bronze where list_contains($topics, topic) group by all'
    rows = _bronze(contract, settings, ends, {"topics": list(contract.ingest_topics)})
    return {(topic, partition): end for topic, partition, end in rows}


def _known(settings: Settings, stream: str, generation: int) -> Fingerprint:
    """The newest fingerprint that can be read, up to the one of `generation`; an empty one if there is none."""
    for number in range(generation, 0, -1):
        try:
            found = noted(generations.location(settings, stream, number))
        except Unreadable:
            continue
        if found:
            return found
    return Fingerprint()


# -- storms --------------------------------------------------------------------------------------------------------


def storm(contract: Contract, settings: Settings) -> Storm | None:
    """The storm that the stream's ingest halted at, if nobody has accepted it yet."""
    batch = contents.newest_batch(names.bronze(settings.lake_uri, contract.stream))
    settled = generations.settled_batch(contract, settings)
    if batch is None or (settled is not None and batch <= settled) or is_accepted(settings, contract.stream, batch):
        return None
    counts = (
        "select error_class, reason, count(*) from bronze where batch = $batch and attempt = 0 "
        "and error_class is distinct from $tombstone "
        "and not (error_class is not distinct from 'malformed' and reason is not distinct from $no_value) "
        "group by all order by 3 desc"
    )
    parameters = {"batch": batch, "tombstone": TOMBSTONE, "no_value": TOMBSTONE_REASON}
    rows = _bronze(contract, settings, counts, parameters)
    records = sum(count for _, _, count in rows)
    bad = {(class_, reason): count for class_, reason, count in rows if class_ is not None}
    return Storm(batch, records, bad) if contract.dead_letters.is_storm(records, sum(bad.values())) else None


def accept_storm(contract: Contract, settings: Settings) -> Storm:
    """Lets the batch that the stream halted at go onward, that batch and no other. Returns what was accepted; raises
    `NoStorm`."""
    found = storm(contract, settings)
    if found is None:
        raise NoStorm(f"no storm of {contract.stream} waits for a decision")
    spark_log.put(_accepted(settings, contract.stream, found.batch), "")
    return found


def is_accepted(settings: Settings, stream: str, batch: int) -> bool:
    """Whether somebody accepted the storm of `batch` (a number with its generation)."""
    return spark_log.document(_accepted(settings, stream, batch)) is not None


def _accepted(settings: Settings, stream: str, batch: int) -> str:
    return f"{settings.checkpoints_uri}/{stream}/accepted/{batch}"


# -- bronze --------------------------------------------------------------------------------------------------------


def _bronze(contract: Contract, settings: Settings, query: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The rows of a DuckDB query over the stream's `bronze`; none if the table does not exist."""
    path = names.local_path(names.bronze(settings.lake_uri, contract.stream))
    if not DeltaTable.is_deltatable(path):
        return []
    with duckdb.connect() as connection:
        connection.register("bronze", DeltaTable(path).to_pyarrow_dataset())
        return connection.execute(query, parameters).fetchall()


def _name(partition: tuple[str, int]) -> str:
    topic, number = partition
    return f"{topic}/{number}"
