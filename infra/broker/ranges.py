"""A partition, and ranges of its offsets."""

from __future__ import annotations

from typing import NamedTuple

Partition = tuple[str, int]
"""Topic and partition."""


class Range(NamedTuple):
    """Offsets, both ends included."""

    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first + 1
