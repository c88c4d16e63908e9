"""`batch`, the number that orders all micro-batches of a query: `generation << 40 | batch_id`."""

from __future__ import annotations

_BITS = 40


def batch_number(generation: int, batch_id: int) -> int:
    return generation << _BITS | batch_id


def generation_of(batch: int) -> int:
    return batch >> _BITS


def batch_id_of(batch: int) -> int:
    return batch & (1 << _BITS) - 1
