"""The arithmetic of the conservation audit: which offsets of a partition are exactly one row of bronze.

All functions are pure. An audit covers the offsets from the first one that the lake has promised to hold to before a
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
"""The reasons why an offset need not have a row:

- `marker`: it is the mark of a transaction's end;
- `aborted`: its record belongs to an aborted transaction;
- `compacted`: compaction has removed its record, or it is a mark: in a compacted topic the two look alike;
- `repaired`: the same record was sent again, and is in bronze under other coordinates;
- `accepted`: a person has accepted the loss."""

Fault = Literal["missing", "expired", "replaced", "doubled"]
"""What is wrong with an offset: Kafka holds its record and bronze does not (`missing`), neither of them does
(`expired`; `replaced` if the topic that had it was made anew), or it has several rows (`doubled`)."""

LOST = ("missing", "expired", "replaced")
"""What is wrong with an offset that has no row."""

PROOFS: tuple[Proof, ...] = get_args(Proof)


class Finding(NamedTuple):
    """The reason that was found for a range of offsets, both ends included."""

    first: int
    last: int
    reason: Proof | Fault

    @property
    def range(self) -> Range:
        """The offsets without the reason."""
        return Range(self.first, self.last)


class Break(NamedTuple):
    """A row of bronze that is the first or the last of its partition, or whose offset is not one more than the offset
    of the row before it (`before`; None for the first row)."""

    topic: str
    partition: int
    offset: int
    before: int | None


@dataclass
class BronzeOffsets:
    """The offsets of a partition that bronze holds: all from `first` to `last` except the `gaps`, with `surplus` rows
    too many at the offsets in `doubled`."""

    first: int
    last: int
    gaps: list[Range] = field(default_factory=list)
    doubled: list[Range] = field(default_factory=list)
    surplus: int = 0

    @property
    def rows(self) -> int:
        """The number of rows, with the surplus."""
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
    """Rows too many: all rows of an offset but the first."""
    gaps: Mapping[str, int]
    """The number of offsets that need no row, by the reason that was proved."""
    missing: int
    """The number of offsets without a row and without a reason."""
    not_ingested: int
    """The number of offsets on the broker from `to_offset` on, which a later audit covers; all offsets there if the
    topic was made anew."""
    findings: tuple[Finding, ...] = ()
    """The reasons that this audit proved and no earlier one had, and everything that is wrong."""
    topic_id: str | None = None
    """The id of the topic that bronze was read from; None if none was noted."""
    made_anew: bool = False
    """Whether the topic on the broker is another one of the same name. How many records the old one had is known up to
    the end that the last audit saw."""

    @property
    def residual(self) -> int:
        """The number of missing offsets and of rows too many."""
        return self.missing + self.doubled

    @property
    def topic_partition(self) -> Partition:
        """Topic and number of the partition."""
        return self.topic, self.partition


def held(breaks: Iterable[Break]) -> dict[Partition, BronzeOffsets]:
    """Returns the offsets that bronze holds, from its breaks in the order of topic, partition and offset."""
    found: dict[Partition, BronzeOffsets] = {}
    for topic, partition, offset, before in breaks:
        if (topic, partition) not in found:
            found[topic, partition] = BronzeOffsets(offset, offset)
            continue
        mine = found[topic, partition]
        mine.last = offset
        if before == offset:
            mine.surplus += 1
            mine.doubled = _with(mine.doubled, Range(offset, offset))
        elif before is not None and before < offset - 1:
            mine.gaps.append(Range(before + 1, offset - 1))
    return found


def gaps(mine: BronzeOffsets | None, start: int, end: int) -> list[Range]:
    """Returns the offsets from `start` to before `end` that have no row, as ranges in order. `mine` are the offsets
    that bronze holds, all of them within these bounds; None if it holds none."""
    if mine is None:
        around = [Range(start, end - 1)]
    else:
        around = [Range(start, mine.first - 1), *mine.gaps, Range(mine.last + 1, end - 1)]
    return [gap for gap in around if gap.size > 0]


def split(gaps: Sequence[Range], known: Sequence[Finding]) -> tuple[list[Finding], list[Range]]:
    """Returns the parts of `gaps` that `known` findings cover, and the other parts. `gaps` and `known` are in order,
    and neither overlaps itself."""
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
    """Returns ascending offsets as ranges."""
    found: list[Range] = []
    for offset in offsets:
        found = _with(found, Range(offset, offset))
    return found


def account(
    partition: Partition,
    start: int,
    end: int,
    broker_end: int,
    mine: BronzeOffsets | None,
    explained: Iterable[Finding],
    found: Sequence[Finding],
    before: PartitionAccount | None,
    topic_id: str | None = None,
    made_anew: bool = False,
) -> PartitionAccount:
    """Returns the account of a partition from `start` to before `end`. The account `before` of an earlier audit, which
    ended at `start`, is added to it.

    The findings `explained` by earlier audits and those `found` by this one cover the gaps. `broker_end` is the offset
    of the next record on the broker.
    """
    doubled = [Finding(*range_, "doubled") for range_ in mine.doubled] if mine else []
    sizes: Counter[str] = Counter(before.gaps if before else {})
    for finding in (*explained, *found):
        sizes[finding.reason] += finding.range.size
    topic, number = partition
    return PartitionAccount(
        topic=topic,
        partition=number,
        from_offset=before.from_offset if before else start,
        to_offset=end,
        rows=(before.rows if before else 0) + (mine.rows if mine else 0),
        doubled=mine.surplus if mine else 0,
        gaps={reason: sizes[reason] for reason in PROOFS if sizes[reason]},
        missing=sum(sizes[fault] for fault in LOST),
        not_ingested=broker_end if made_anew else max(0, broker_end - end),
        findings=tuple(sorted((*found, *doubled))),
        topic_id=topic_id,
        made_anew=made_anew,
    )


def _with(ranges: list[Range], more: Range) -> list[Range]:
    """`ranges`, to which `more` is added in place. `more` does not begin before the last range."""
    if ranges and more.first <= ranges[-1].last + 1:
        ranges[-1] = Range(ranges[-1].first, max(more.last, ranges[-1].last))
    else:
        ranges.append(more)
    return ranges
