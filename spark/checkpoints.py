"""Checkpoint generations: where a stream's checkpoint is, and which batches are complete.

A checkpoint is `<checkpoints_uri>/<stream>/g<generation>`. A reset makes the next generation instead of reusing a
folder: Delta would silently skip the writes of a fresh checkpoint that kept its transaction ids. A `batch` number is
`generation << 40 | batch_id`, so it is unique over resets and grows in commit order.
"""

from __future__ import annotations

import json
import re

from pyarrow import fs

from infra.offsets import Offsets
from infra.settings import Settings
from schemas.errors import TransientError
from schemas.model import Contract
from spark.tables import local_path

_BITS = 40


class NothingSettled(TransientError):
    """No batch of the stream is complete yet."""


def batch_number(generation: int, batch_id: int) -> int:
    return generation << _BITS | batch_id


def generation_of(batch: int) -> int:
    return batch >> _BITS


def generation(settings: Settings, stream: str) -> int:
    """The newest generation that has a folder, else 1."""
    return max(_numbers(f"{settings.checkpoints_uri}/{stream}", r"g(\d+)"), default=1)


def location(settings: Settings, stream: str, generation: int) -> str:
    """URI of a generation's checkpoint."""
    return f"{settings.checkpoints_uri}/{stream}/g{generation}"


def application(stream: str, generation: int) -> str:
    """The Delta transaction id (and the base of Kafka transaction ids) of a stream's generation."""
    return f"{stream}.g{generation}"


def settled_batch(contract: Contract, settings: Settings) -> int | None:
    """The newest batch whose ingest is complete in every table and on the dead-letter topic: the newest entry of the
    newest generation's commit log, as a `batch` number. None before the first. A new generation without a commit
    answers with the last of the generation before, which is complete as well."""
    return max(_settled_batches(contract, settings), default=None)


def settled_offsets(contract: Contract, settings: Settings, through: int) -> Offsets:
    """How far the batches up to the settled batch `through` reach: the offset after the last record, of every partition
    that was read. A generation that began again from an earlier offset takes nothing back of what was covered."""
    earlier = [batch for batch in _settled_batches(contract, settings) if generation_of(batch) < generation_of(through)]
    ends: Offsets = {}
    for batch in (*earlier, through):
        folder = location(settings, contract.stream, generation_of(batch))
        for place, end in _offsets(f"{folder}/offsets/{batch & (1 << _BITS) - 1}").items():
            ends[place] = max(end, ends.get(place, 0))
    return ends


def first_offsets(contract: Contract, settings: Settings) -> Offsets:
    """Where the oldest generation began to read: what the lake has promised to hold. A partition that is not among
    them was added later, and is read from its beginning."""
    folder = f"{settings.checkpoints_uri}/{contract.stream}"
    oldest = min(_numbers(folder, r"g(\d+)"), default=None)
    return {} if oldest is None else _offsets(f"{folder}/g{oldest}/sources/0/0")


def _settled_batches(contract: Contract, settings: Settings) -> list[int]:
    """The newest settled batch of each generation that has one."""
    folder = f"{settings.checkpoints_uri}/{contract.stream}"
    newest = {number: _numbers(f"{folder}/g{number}/commits", r"(\d+)") for number in _numbers(folder, r"g(\d+)")}
    return [batch_number(number, max(commits)) for number, commits in newest.items() if commits]


def _offsets(uri: str) -> Offsets:
    """The offsets in a file of Spark's: after lines about the format, one of JSON by topic and partition."""
    system, path = fs.FileSystem.from_uri(local_path(uri))
    with system.open_input_stream(path) as file:
        topics = json.loads(file.read().splitlines()[-1])
    return {(topic, int(number)): offset for topic, found in topics.items() for number, offset in found.items()}


def _numbers(uri: str, pattern: str) -> list[int]:
    """The numbers in the names of `uri`'s entries that match `pattern` whole; none if it does not exist."""
    system, path = fs.FileSystem.from_uri(local_path(uri))
    entries = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return [int(match[1]) for entry in entries if (match := re.fullmatch(pattern, entry.base_name))]
