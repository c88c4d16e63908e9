"""Checkpoint generations: where a stream's checkpoint is, and which batches are complete.

A checkpoint is `<checkpoints_uri>/<stream>/g<generation>`. A reset makes the next generation instead of reusing a
folder: Delta would silently skip the writes of a fresh checkpoint that kept its transaction ids. A `batch` number is
`generation << 40 | batch_id`, so it is unique over resets and grows in commit order.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from infra.broker.offsets import Offsets, flat
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
    does; the newest batch that bronze held then (`after`); and whether that one is `finished` (see
    `spark.speed.checkpoint.ingest_start`). An alert lane notes the ids of the `schemas` that its query knows as well,
    None until it has run (see `spark.speed.alert_lane`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    offsets: dict[str, dict[str, int]]
    after: int | None
    finished: bool = False
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
    where a reset found bronze's end, the files of the generation before are not needed. Raises
    `spark_log.Unreadable`."""
    ends: Offsets = {}

    def reach(found: Offsets) -> None:
        for partition, end in found.items():
            ends[partition] = max(end, ends.get(partition, 0))

    for number in generations(settings, contract.stream):
        start = begun(location(settings, contract.stream, number))
        if start and start.finished and start.after is not None and start.after <= through:
            reach(flat(start.offsets))
    for number in generations(settings, contract.stream):
        committed = _committed(contract, settings, number)
        if committed is None or (batch := batch_number(number, committed)) > through:
            continue
        log = f"{location(settings, contract.stream, number)}/offsets/{committed}"
        if batch == through or document(log) is not None:
            reach(offsets(log))
    return ends


def first_offsets(contract: Contract, settings: Settings) -> Offsets:
    """Where the oldest generation began to read: what the lake has promised to hold. A partition that is not among
    them was added later, and is read from its beginning. Nothing when that checkpoint is lost."""
    oldest = min(generations(settings, contract.stream), default=None)
    return {} if oldest is None else beginning(location(settings, contract.stream, oldest))


def _committed(contract: Contract, settings: Settings, generation: int) -> int | None:
    """The newest batch id in a generation's commit log."""
    return max(numbers(f"{location(settings, contract.stream, generation)}/commits", r"(\d+)"), default=None)
