"""A dead letter's headers: the producer's and the platform's, whatever the producer calls its own; and pointers."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from schemas.dead_letter import (
    ATTEMPT,
    BRONZE,
    BRONZE_BYTES,
    BRONZE_DIGEST,
    DECISION,
    ERROR_CLASS,
    ID,
    PARKED_BECAUSE,
    SCHEMA_ID,
    Header,
    Letter,
    Stored,
    producers_headers,
)

NAMES = [ID, ATTEMPT, ERROR_CLASS, BRONZE, DECISION, SCHEMA_ID, "dl-", "dl-other", "trace", "ümlaut", ""]
OWN = st.lists(st.tuples(st.sampled_from(NAMES), st.none() | st.binary(max_size=4)), max_size=6)
PLACE = "clicks/1/17"


def letter(own: list[Header], value: bytes | None = b"value") -> Letter:
    """A letter as the ingest sends it, with the producer's headers `own`."""
    ours = [(ID, PLACE.encode()), (ERROR_CLASS, b"rule"), (ATTEMPT, b"0")]
    return Letter(0, 5, b"key", value, 1000, (*own, *ours))


@given(OWN)
def test_headers_of_a_producer_survive_whatever_their_names_are(own: list[Header]) -> None:
    there = letter(own).with_headers({ATTEMPT: "1", PARKED_BECAUSE: "because", DECISION: "approve"})
    assert producers_headers(there.headers, replayed=True) == tuple(own)
    assert (there.header(ID), there.header(ATTEMPT), there.header(PARKED_BECAUSE)) == (PLACE, "1", "because")
    assert there.identity == (PLACE, "1", True)
    assert letter(own).identity == (PLACE, "0", False)
    assert producers_headers(tuple(own), replayed=False) == tuple(own)


@given(OWN)
def test_a_record_that_is_sent_again_keeps_its_headers_and_is_who_it_is(own: list[Header]) -> None:
    again = Letter(0, 5, b"key", b"value", 1000, tuple(own)).sent_again_as(PLACE, 3)
    assert producers_headers(again.headers, replayed=True) == tuple(own)
    assert again.identity == (PLACE, "3", False)


def test_a_header_that_others_put_behind_the_platforms_is_the_producers() -> None:
    mixed = (*letter([("a", b"1")]).headers, ("trace", b"2"))
    assert producers_headers(mixed, replayed=True) == (("a", b"1"), ("trace", b"2"))


@given(OWN, st.none() | st.binary(max_size=20), st.none() | st.binary(max_size=20), st.booleans())
def test_a_pointer_becomes_the_letter_that_it_stands_for(
    own: list[Header], key: bytes | None, value: bytes | None, replayed: bool
) -> None:
    there = (*own, (ID, PLACE.encode()), (ATTEMPT, b"2")) if replayed else tuple(own)
    stored = Stored(key, value, there, replayed)
    pointing = letter([], None)._replace(key=None).with_headers(
        {BRONZE: "clicks.retry/0/9", BRONZE_DIGEST: stored.digest, BRONZE_BYTES: "77", SCHEMA_ID: "300"}
    )  # fmt: skip
    assert pointing.pointer == (("clicks.retry", 0, 9), stored.digest, 77)
    assert pointing.schema_id == 300
    whole = pointing.with_headers({ATTEMPT: "1"}).restored(stored)
    assert (whole.key, whole.value, whole.timestamp) == (key, value, 1000)
    assert producers_headers(whole.headers, replayed=True) == tuple(own)
    assert whole.about == {ID: PLACE.encode(), ERROR_CLASS: b"rule", ATTEMPT: b"1"}
    assert whole.pointer is None
    edited = pointing.with_headers({DECISION: "edit"})._replace(key=b"k", value=b"v").restored(stored)
    assert (edited.key, edited.value) == (b"k", b"v")
    assert producers_headers(edited.headers, replayed=True) == tuple(own)


def test_the_digest_is_what_the_documentation_says() -> None:
    def sha(text: bytes) -> str:
        return hashlib.sha256(text).hexdigest()

    lines = [sha(b"k"), "-", f"{b'trace'.hex()}:{sha(b'')}", f"{'ü'.encode().hex()}:-"]
    assert Stored(b"k", None, (("trace", b""), ("ü", None)), False).digest == sha("\n".join(lines).encode())


def test_what_points_nowhere_is_no_pointer() -> None:
    for place, digest in (("", "d"), ("clicks/1", "d"), ("clicks/1/x", "d"), ("clicks/1/2", "")):
        assert letter([]).with_headers({BRONZE: place, BRONZE_DIGEST: digest}).pointer is None
    assert letter([(BRONZE, b"clicks/1/2"), (BRONZE_DIGEST, b"d")]).pointer is None, "the producer says so"
