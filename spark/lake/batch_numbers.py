"""Batch numbers, `generation << 40 | batch_id`: the column `batch`, which orders all micro-batches of a query over the
resets of its checkpoint."""

from __future__ import annotations

_BITS = 40


def batch_number(generation: int, batch_id: int) -> int:
    """Returns the batch number of a generation's micro-batch `batch_id`, which is Spark's number of it."""
    return generation << _BITS | batch_id


def generation_of(batch: int) -> int:
    """Returns the generation of a batch number."""
    return batch >> _BITS


def batch_id_of(batch: int) -> int:
    """Returns Spark's number of the micro-batch that a batch number names."""
    return batch & (1 << _BITS) - 1
