"""Where the replay goes on in a partition of `.dlq` when Kafka does not have its offset.

A broker forgets the offsets of a group that committed none for `offsets.retention.minutes`, by default a week, and has
none of a partition that is new. What replays did is on `.retry` and `.parked` for good, and what they sent back is on
`.dlq`; from these the offset follows, because a replay moves the letters of a partition in their order:

- a letter that a move is known of was moved, and so were those before it;
- a letter behind which the partition has one of the same id with a higher attempt was looked at and sent back;
- a letter that the partition has once more further on was sent back to wait, or is a copy.

All but the last of these are certain. Letters before the offset of which nothing is known are to be sent back as they
are, so that none is lost in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from schemas.dead_letter import Identity, Letter, attempts


class Position(NamedTuple):
    """The `offset` to go on from, and the offsets of letters before it that nobody is known to have moved (`left`)."""

    offset: int
    left: frozenset[int]


def position(letters: Iterable[Letter], moved_through: Mapping[str, int], decided: AbstractSet[Identity]) -> Position:
    """Returns where to go on in a partition of which `letters` are all. `moved_through` has, by id, the highest attempt
    with which a letter was moved, and `decided` the identities of those that people decided upon."""
    newest: dict[tuple[str, bool], tuple[int, int]] = {}  # attempt and offset of those that are not known to be moved
    unreadable: list[int] = []
    certain = offset = 0
    for letter in letters:
        identity, attempt = letter.identity, attempts(letter.about)
        if identity is None or attempt is None:
            unreadable.append(letter.offset)
            continue
        id_, _, is_decision = identity
        if identity in decided if is_decision else moved_through.get(id_, -1) >= attempt:
            certain = offset = letter.offset + 1
            continue
        known = newest.get((id_, is_decision))
        if known is not None and known[0] > attempt:
            unreadable.append(letter.offset)  # out of order: nothing follows from it
            continue
        if known is not None:
            offset = max(offset, known[1] + 1)
            certain = max(certain, known[1] + 1) if known[0] < attempt else certain
        newest[id_, is_decision] = (attempt, letter.offset)
    left = {its for _, its in newest.values() if its < offset} | {its for its in unreadable if certain <= its < offset}
    return Position(offset, frozenset(left))
