"""A partition, and ranges of its offsets."""

from __future__ import annotations

from typing import NamedTuple

Partition = tuple[str, int]
"""The name of a topic and the number of one of its partitions."""


class Range(NamedTuple):
    """Offsets, both ends included."""

    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first + 1
