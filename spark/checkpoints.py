"""Checkpoint generations: where a stream's checkpoint is, and which batches are complete.

A checkpoint is `<checkpoints_uri>/<stream>/g<generation>`. A reset makes the next generation instead of reusing a
folder: Delta would silently skip the writes of a fresh checkpoint that kept its transaction ids. A `batch` number is
`generation << 40 | batch_id`, so it is unique over resets and grows in commit order.
"""

from __future__ import annotations

import json

from infra.settings import Settings
from schemas.model import Contract
from spark.checkpoint_log import document, numbers

_BITS = 40


def batch_number(generation: int, batch_id: int) -> int:
    return generation << _BITS | batch_id


def generation_of(batch: int) -> int:
    return batch >> _BITS


def batch_id_of(batch: int) -> int:
    return batch & (1 << _BITS) - 1


def generation(settings: Settings, stream: str) -> int:
    """The newest generation that has a folder, else 1."""
    return max(numbers(f"{settings.checkpoints_uri}/{stream}", r"g(\d+)"), default=1)


def location(settings: Settings, stream: str, generation: int) -> str:
    """URI of a generation's checkpoint."""
    return f"{settings.checkpoints_uri}/{stream}/g{generation}"


def application(stream: str, generation: int) -> str:
    """The Delta transaction id (and the base of Kafka transaction ids) of a stream's generation."""
    return f"{stream}.g{generation}"


def settled_batch(contract: Contract, settings: Settings) -> int | None:
    """The newest batch whose ingest is complete in every table and on the dead-letter topic: the newest entry of the
    newest generation's commit log, as a `batch` number. None before the first. A new generation without a commit
    answers with the batch that it finished (see `spark.restart`), or with the last of the generation before."""
    folder = f"{settings.checkpoints_uri}/{contract.stream}"
    for number in sorted(numbers(folder, r"g(\d+)"), reverse=True):
        commits = numbers(f"{folder}/g{number}/commits", r"(\d+)")
        if commits:
            return batch_number(number, max(commits))
        start = json.loads(document(f"{folder}/g{number}/start.json") or "{}")
        if start.get("finished"):
            return int(start["after"])
    return None
