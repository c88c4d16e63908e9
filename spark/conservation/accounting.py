"""The arithmetic of the conservation audit: which offsets of a partition are exactly one row of bronze, and which not.

Everything here is pure. An audit looks at the offsets from the first one that the lake has promised to hold up to a
pinned end. For each partition

    to_offset - from_offset == rows - doubled + explained gaps + missing

holds by construction, so nothing can be forgotten; the *residual* is `missing + doubled`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from infra.broker.ranges import Partition, Range

Proof = Literal["marker", "aborted", "compacted", "repaired", "accepted"]
"""Why an offset has no row and need not have one: it is the mark of a transaction's end, a record of an aborted
transaction, a record that compaction removed (or a mark, in a compacted topic: nobody can tell); the same record is
there under another coordinate because it was sent again; or a person has accepted the loss."""

Fault = Literal["missing", "expired", "doubled"]
"""What is wrong with an offset: Kafka holds its record and bronze does not; neither does Kafka; or it has several
rows."""

PROOFS: tuple[Proof, ...] = get_args(Proof)


class Finding(NamedTuple):
    """What was found out about a range of offsets."""

    first: int
    last: int
    reason: Proof | Fault

    @property
    def range(self) -> Range:
        return Range(self.first, self.last)


class Break(NamedTuple):
    """A row of bronze whose offset does not follow the one before it in its partition (`before`, None for the first)
    by one, or that is the last of its partition."""

    topic: str
    partition: int
    offset: int
    before: int | None


@dataclass
class BronzeOffsets:
    """What bronze holds of a partition: every offset from `first` to `last` but the `gaps`, and `surplus` rows too many
    at the offsets in `doubled`."""

    first: int
    last: int
    gaps: list[Range] = field(default_factory=list)
    doubled: list[Range] = field(default_factory=list)
    surplus: int = 0

    @property
    def rows(self) -> int:
        return self.last - self.first + 1 - sum(gap.size for gap in self.gaps) + self.surplus


@dataclass(frozen=True)
class PartitionAccount:
    """The account of one partition, a row of `system/audits`: the offsets from `from_offset` to before `to_offset`."""

    topic: str
    partition: int
    from_offset: int
    to_offset: int
    rows: int
    """Rows of bronze with these offsets."""
    doubled: int
    """Rows too many: beyond the first one of their offset."""
    gaps: Mapping[str, int]
    """Offsets without a row that need none, by the reason that was proved."""
    missing: int
    """Offsets without a row and without a reason."""
    not_ingested: int
    """Offsets on the broker from `to_offset` on: they are for a later audit."""
    findings: tuple[Finding, ...] = ()
    """What this audit found out and no earlier one knew, and all that is wrong."""

    @property
    def residual(self) -> int:
        return self.missing + self.doubled

    @property
    def topic_partition(self) -> Partition:
        return self.topic, self.partition


def held(breaks: Iterable[Break]) -> dict[Partition, BronzeOffsets]:
    """What bronze holds, from the breaks of its partitions in order of partition and offset."""
    found: dict[Partition, BronzeOffsets] = {}
    for topic, partition, offset, before in breaks:
        place = (topic, partition)
        if place not in found:
            found[place] = BronzeOffsets(offset, offset)
            continue
        mine = found[place]
        mine.last = offset
        if before == offset:
            mine.surplus += 1
            mine.doubled = _with(mine.doubled, Range(offset, offset))
        elif before is not None and before < offset - 1:
            mine.gaps.append(Range(before + 1, offset - 1))
    return found


def gaps(mine: BronzeOffsets | None, start: int, end: int) -> list[Range]:
    """The offsets from `start` to before `end` without a row. All rows are of these offsets."""
    if mine is None:
        around = [Range(start, end - 1)]
    else:
        around = [Range(start, mine.first - 1), *mine.gaps, Range(mine.last + 1, end - 1)]
    return [gap for gap in around if gap.size > 0]


def split(gaps: Sequence[Range], known: Sequence[Finding]) -> tuple[list[Finding], list[Range]]:
    """`gaps` as those parts that `known` explains, and the rest. Both are in order, and `known` does not overlap."""
    explained, rest = [], []
    position = 0
    for gap in gaps:
        start = gap.first
        while position < len(known) and known[position].last < start:
            position += 1
        at = position
        while at < len(known) and known[at].first <= gap.last:
            first, last = max(known[at].first, start), min(known[at].last, gap.last)
            if start < first:
                rest.append(Range(start, first - 1))
            explained.append(Finding(first, last, known[at].reason))
            start = last + 1
            at += 1
        if start <= gap.last:
            rest.append(Range(start, gap.last))
    return explained, rest


def ranges(offsets: Iterable[int]) -> list[Range]:
    """Ascending offsets as ranges."""
    found: list[Range] = []
    for offset in offsets:
        found = _with(found, Range(offset, offset))
    return found


def account(
    place: Partition,
    start: int,
    end: int,
    broker_end: int,
    mine: BronzeOffsets | None,
    explained: Iterable[Finding],
    found: Sequence[Finding],
    before: PartitionAccount | None,
) -> PartitionAccount:
    """The account of a partition from `start` to before `end`, added to that of an audit `before` that ended there.

    `explained` (by earlier audits) and `found` (by this one) cover its gaps.
    """
    doubled = [Finding(*range_, "doubled") for range_ in mine.doubled] if mine else []
    sizes: Counter[str] = Counter(before.gaps if before else {})
    for finding in (*explained, *found):
        sizes[finding.reason] += finding.range.size
    topic, partition = place
    return PartitionAccount(
        topic=topic,
        partition=partition,
        from_offset=before.from_offset if before else start,
        to_offset=end,
        rows=(before.rows if before else 0) + (mine.rows if mine else 0),
        doubled=mine.surplus if mine else 0,
        gaps={reason: sizes[reason] for reason in PROOFS if sizes[reason]},
        missing=sizes["missing"] + sizes["expired"],
        not_ingested=max(0, broker_end - end),
        findings=tuple(sorted((*found, *doubled))),
    )


def _with(ranges: list[Range], more: Range) -> list[Range]:
    """`ranges`, extended in place by one that does not begin before the last one ends."""
    if ranges and more.first <= ranges[-1].last + 1:
        ranges[-1] = Range(ranges[-1].first, max(more.last, ranges[-1].last))
    else:
        ranges.append(more)
    return ranges
