"""Keys and values as they go over the wire."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.codec import Codec, EncodeError
from producers.sources import source
from schemas.contract.catalog import catalog
from schemas.contract.verdict import Judge
from schemas.wire import NO_SUCH_ID, broken, schema_id

CONTRACT = catalog()["flights"]
RECORD = next(iter(source("flights")))


def test_the_value_is_zero_id_and_avro() -> None:
    value = Codec(CONTRACT, 0x01020304).value(RECORD)
    assert value[:5] == b"\x00\x01\x02\x03\x04"
    decoded = fastavro.schemaless_reader(io.BytesIO(value[5:]), fastavro.parse_schema(CONTRACT.schema_now), None)
    assert isinstance(decoded, dict)
    assert decoded == {
        **RECORD,
        "event_time": datetime(2013, 1, 1, 10, 15, tzinfo=UTC),
        "dep_time": decoded["dep_time"],
    }


def test_the_key_is_the_contracts_fields() -> None:
    assert Codec(CONTRACT, 1).key(RECORD) == b"UA|1545"


def test_event_time_in_micros_from_integers_and_instants() -> None:
    codec = Codec(CONTRACT, 1)
    instant = datetime(2013, 1, 1, 10, 15, tzinfo=UTC)
    assert codec.event_time(RECORD) == codec.event_time({**RECORD, "event_time": instant}) == RECORD["event_time"]
    with pytest.raises(EncodeError, match="time zone"):
        codec.event_time({**RECORD, "event_time": datetime(2013, 1, 1)})  # noqa: DTZ001
    schema = {
        **CONTRACT.schema_now,
        "fields": [{"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-millis"}}],
    }
    millis = Codec(CONTRACT.model_copy(update={"versions": (schema,)}), 1)
    assert millis.event_time({"event_time": 5}) == 5000


@pytest.mark.parametrize(
    "change", [{"distance": None}, {"distance": "far"}, {"gate": "A1"}, {"carrier": 7}, {"event_time": "2013"}]
)
def test_a_record_that_does_not_fit_is_named(change: dict[str, object]) -> None:
    with pytest.raises(EncodeError, match="a record does not fit flights v2"):
        Codec(CONTRACT, 1).value({**RECORD, **change})


def test_a_missing_field_is_an_error_unless_it_has_a_default() -> None:
    codec = Codec(CONTRACT, 1)
    codec.value({name: value for name, value in RECORD.items() if name != "tailnum"})
    with pytest.raises(EncodeError):
        codec.value({name: value for name, value in RECORD.items() if name != "distance"})


@settings(max_examples=60, deadline=None)
@given(choice=st.integers(0, 2**32), number=st.integers(0, NO_SUCH_ID - 1))
def test_each_fault_is_what_it_says(choice: int, number: int) -> None:
    judge = Judge(CONTRACT, {number: CONTRACT.schema_now})
    value = Codec(CONTRACT, number).value(RECORD)
    assert judge.verdict(value).error_class is None
    assert judge.verdict(broken(value, "bad_magic", choice)).error_class == "malformed"
    assert judge.verdict(broken(value, "truncated", choice)).error_class == "malformed"
    assert judge.verdict(broken(value, "unknown_schema", choice)).error_class == "unknown_schema"


@pytest.mark.parametrize("value", [None, b"", b"\0", b"\0\0\0\0", b"\1\0\0\0\7"])
def test_a_value_without_a_header_has_no_schema_id(value: bytes | None) -> None:
    assert schema_id(value) is None
    assert Judge(CONTRACT).verdict(value).error_class == "malformed"
