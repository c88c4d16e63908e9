"""What Kafka dropped before it was read, and what of that was accepted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from infra.broker.ranges import Partition, Range
from spark.conservation import accounting
from spark.conservation.source_topics import SourceTopics
from spark.speed.checkpoint import retained
from spark.speed.checkpoint.generations import Accepted

PARTITIONS = st.tuples(st.sampled_from(["s", "s.retry"]), st.integers(0, 2))
OFFSETS = st.dictionaries(PARTITIONS, st.integers(0, 9))


@given(OFFSETS, OFFSETS)
def test_what_was_dropped_unread_is_every_offset_that_neither_was_read_nor_is_held(
    read: dict[Partition, int], held: dict[Partition, int]
) -> None:
    """A partition that nobody has read of a topic that was read was added since, and owes all of its offsets."""
    found = retained.dropped(read, held)
    owed = {(place, offset) for place in held for offset in range(10)
            if place[0] in {topic for topic, _ in read} and read.get(place, 0) <= offset < held[place]}  # fmt: skip
    assert {
        (place, offset) for place, range_ in found.items() for offset in range(range_.first, range_.last + 1)
    } == owed
    assert all(range_.size > 0 for range_ in found.values())


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8))))
def test_ranges_that_several_resets_accepted_cover_each_offset_once(given_: list[tuple[int, int]]) -> None:
    ranges = [Range(first, first + more) for first, more in given_]
    topics = SourceTopics({}, [], Accepted({("s", 0): ranges}, set()))
    found = topics.accepted("s", 0)
    covered = [offset for finding in found for offset in range(finding.first, finding.last + 1)]
    assert covered == sorted({offset for range_ in ranges for offset in range(range_.first, range_.last + 1)})
    explained, rest = accounting.split([Range(0, 40)], found)
    assert (explained, sum(range_.size for range_ in rest)) == (found, 41 - len(covered))
    assert topics.accepted("s", 1) == []
