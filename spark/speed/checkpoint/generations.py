"""Checkpoint generations: where a stream's checkpoint is, and which batches are complete.

A checkpoint is `<checkpoints_uri>/<stream>/g<generation>`. A reset makes the next generation instead of reusing a
folder: Delta would silently skip the writes of a fresh checkpoint that kept its transaction ids. A `batch` number is
`generation << 40 | batch_id`, so it is unique over resets and grows in commit order.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from infra.broker.offsets import Offsets, flat
from infra.broker.ranges import Partition, Range
from infra.settings import Settings
from schemas.contract.model import Contract
from schemas.errors import TransientError
from spark.lake import contents
from spark.lake.batch_numbers import batch_number, generation_of
from spark.speed.checkpoint.spark_log import Log, beginning, document, model, numbers, offsets, put


class NothingSettled(TransientError):
    """No batch of the stream is complete yet."""


class Start(BaseModel):
    """The content of a generation's `start.json`, which a reset notes: the `offsets` it starts from, nested as Spark
    does; the newest batch that bronze held then (`after`); whether that one is `finished` (see
    `spark.speed.checkpoint.ingest_start`); and what somebody accepted: the loss of ranges of offsets (`lost`, topic to
    partition to the first and the last one), and topics that were made anew and are read from their beginning (`anew`).
    An alert lane notes the ids of the `schemas` that its query knows as well,
    None until it has run (see `spark.speed.alert_lane`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    offsets: dict[str, dict[str, int]]
    after: int | None
    finished: bool = False
    lost: dict[str, dict[str, tuple[int, int]]] = {}
    anew: list[str] = []
    schemas: list[int] | None = None


def generation(settings: Settings, stream: str) -> int:
    """The newest generation that has a folder, else 1."""
    return max(generations(settings, stream), default=1)


def generations(settings: Settings, stream: str) -> list[int]:
    """Every generation that has a folder."""
    return numbers(f"{settings.checkpoints_uri}/{stream}", r"g(\d+)")


def location(settings: Settings, stream: str, generation: int) -> str:
    """URI of a generation's checkpoint."""
    return f"{settings.checkpoints_uri}/{stream}/g{generation}"


def application(stream: str, generation: int) -> str:
    """The Delta transaction id (and the base of Kafka transaction ids) of a stream's generation."""
    return f"{stream}.g{generation}"


def misfit(settings: Settings, stream: str, generation: int, log: Log, uri: str, table: str) -> str | None:
    """Why the checkpoint of `generation`, whose `log` is given, and the table at `uri`, to which each of its batches is
    one append, do not belong together; None if they do. The message calls it `table`."""
    checkpoint = location(settings, stream, generation)
    newest = contents.newest_batch(uri)
    written = contents.newest_append(uri, application(stream, generation))
    if newest is not None and (found := generation_of(newest)) > generation:
        return f"{table} holds batches of generation {found}, but the newest checkpoint is {checkpoint}"
    if written is not None and (log.planned is None or log.planned < written):
        has = "no batch" if log.planned is None else f"batches up to {log.planned}"
        return f"{table} holds batch {written} of generation {generation}, but {checkpoint}/offsets has {has}"
    if log.committed is not None and (written is None or written < log.committed):
        has = "none" if written is None else f"those up to {written}"
        return f"{checkpoint}/commits has batch {log.committed}, but of generation {generation} {table} holds {has}"
    return None


def begun(location: str) -> Start | None:
    """How a reset began the generation whose checkpoint is at the URI `location`; None if no reset made it. Raises
    `spark_log.Unreadable`."""
    return model(Start, f"{location}/start.json")


def put_start(location: str, start: Start) -> None:
    """Notes how the generation begins whose checkpoint is at the URI `location`."""
    put(f"{location}/start.json", start.model_dump_json(indent=1))


def settled_batch(contract: Contract, settings: Settings) -> int | None:
    """The newest batch whose ingest is complete in every table and on the dead-letter topic: the newest entry of the
    newest generation's commit log, as a `batch` number. None before the first. A new generation without a commit
    answers with the batch that it finished (see `spark.speed.checkpoint.ingest_start`), or with the last of the
    generation before."""
    for number in sorted(generations(settings, contract.stream), reverse=True):
        if (committed := _committed(contract, settings, number)) is not None:
            return batch_number(number, committed)
        start = begun(location(settings, contract.stream, number))
        if start and start.finished:
            return start.after
    return None


def settled_offsets(contract: Contract, settings: Settings, through: int) -> Offsets:
    """How far the batches up to the settled batch `through` reach: the offset after the last record, of every partition
    that was read. A generation that began again from an earlier offset takes nothing back of what was covered, and
    where a reset found bronze's end, the files of the generation before are not needed. Of a topic that was made anew
    the generations before count no more. Raises `spark_log.Unreadable`."""
    ends: Offsets = {}

    def reach(found: Offsets) -> None:
        for partition, end in found.items():
            ends[partition] = max(end, ends.get(partition, 0))

    for number in generations(settings, contract.stream):
        start = begun(location(settings, contract.stream, number))
        if start and start.anew:
            for partition in [partition for partition in ends if partition[0] in start.anew]:
                del ends[partition]
        if start and start.finished and start.after is not None and start.after <= through:
            reach(flat(start.offsets))
        committed = _committed(contract, settings, number)
        if committed is None or (batch := batch_number(number, committed)) > through:
            continue
        log = f"{location(settings, contract.stream, number)}/offsets/{committed}"
        if batch == through or document(log) is not None:
            reach(offsets(log))
    return ends


@dataclass(frozen=True)
class Accepted:
    """What somebody accepted at resets: the `lost` ranges of each partition, in the order of the resets, and the topics
    that were made `anew`. Ranges of a topic from before it was made anew are not among them."""

    lost: dict[Partition, list[Range]]
    anew: set[str]


def accepted(contract: Contract, settings: Settings) -> Accepted:
    """What somebody accepted at the stream's resets. Raises `spark_log.Unreadable`."""
    found = Accepted({}, set())
    for number in generations(settings, contract.stream):
        start = begun(location(settings, contract.stream, number))
        if start is None:
            continue
        found.anew.update(start.anew)
        for partition in [partition for partition in found.lost if partition[0] in start.anew]:
            del found.lost[partition]
        for topic, partitions in start.lost.items():
            for number_, (first, last) in partitions.items():
                found.lost.setdefault((topic, int(number_)), []).append(Range(first, last))
    return found


def first_offsets(contract: Contract, settings: Settings) -> Offsets:
    """Where the oldest generation began to read: what the lake has promised to hold. A partition that is not among
    them was added later, and is read from its beginning. Nothing when that checkpoint is lost."""
    oldest = min(generations(settings, contract.stream), default=None)
    return {} if oldest is None else beginning(location(settings, contract.stream, oldest))


def _committed(contract: Contract, settings: Settings, generation: int) -> int | None:
    """The newest batch id in a generation's commit log."""
    return max(numbers(f"{location(settings, contract.stream, generation)}/commits", r"(\d+)"), default=None)
