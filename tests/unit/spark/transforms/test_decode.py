"""Decoding is total: whatever bytes arrive, each record is one row, and a bad one says why."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.contract.catalog import catalog
from schemas.contract.examples import bad, good
from schemas.contract.model import Contract
from schemas.contract.verdict import Judge
from schemas.wire import header
from spark.lake import table_schemas
from spark.transforms.decode import UNREGISTERED, decode
from spark.transforms.validate import LEAST_ARRIVAL, validate
from tests.support.kafka_rows import ARRIVAL, Row, frame, wire

FLIGHTS = catalog()["flights"]
FLIGHT = {
    "event_time": datetime(2013, 1, 1, 10, 15, tzinfo=UTC),
    "carrier": "UA",
    "flight": 1545,
    "origin": "EWR",
    "dest": "IAH",
    "tailnum": "N14228",
    "dep_time": datetime(2013, 1, 1, 10, 17, tzinfo=UTC),
    "dep_delay": 2,
    "arr_delay": 11,
    "air_time": 227,
    "distance": 1400,
}
GOOD = wire(7, FLIGHTS.schema_now, FLIGHT)


def varint(number: int) -> bytes:
    """Avro's zig-zag variable-length long."""
    number = (number << 1) ^ (number >> 63)
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


TIME = varint(1_357_035_300_000_000)


def judged(spark: SparkSession, rows: list[Row], contract: Contract = FLIGHTS, schema_id: int = 7) -> DataFrame:
    writers = {schema_id: json.dumps(contract.schema_now)}
    return validate(decode(frame(spark, rows), contract, writers), contract).orderBy("offset")


def test_an_event_of_the_future_is_a_dead_letter_and_one_a_little_ahead_is_not(spark: SparkSession) -> None:
    ahead = FLIGHTS.future_skew
    times = [ARRIVAL - timedelta(days=4000), ARRIVAL, ARRIVAL + ahead, ARRIVAL + ahead + timedelta(milliseconds=1)]
    rows = [Row(wire(7, FLIGHTS.schema_now, FLIGHT | {"event_time": at}), "flights", n) for n, at in enumerate(times)]
    found = [(row["error_class"], row["reason"]) for row in judged(spark, rows).collect()]
    assert found == [(None, None)] * 3 + [("rule", "event_time is more than 1d after its arrival")]


@pytest.mark.parametrize("unknown", [-1, 0, 1, 1_767_225_600, 4_102_444_800, LEAST_ARRIVAL - 1])
def test_an_arrival_that_is_not_known_judges_nothing(spark: SparkSession, unknown: int) -> None:
    """No timestamp (-1), none that was set (0), and seconds where milliseconds belong: the events are good, whenever
    they happened, and a time that says when they came judges them again."""
    times = [ARRIVAL, datetime(2026, 1, 1, tzinfo=UTC)]
    rows = [Row(wire(7, FLIGHTS.schema_now, FLIGHT | {"event_time": at}), "flights", n) for n, at in enumerate(times)]
    found = []
    for arrival in (unknown, LEAST_ARRIVAL):
        stamped = frame(spark, rows).withColumn("timestamp", F.timestamp_millis(F.lit(arrival)))
        writers = {7: json.dumps(FLIGHTS.schema_now)}
        judged_rows = validate(decode(stamped, FLIGHTS, writers), FLIGHTS).orderBy("offset").collect()
        found.append([row["error_class"] for row in judged_rows])
    assert found == [[None, None], ["rule", "rule"]]


BAD: dict[str, tuple[bytes | None, str, str]] = {
    "no value": (None, "malformed", "a tombstone: a record without a value"),
    "empty": (b"", "malformed", "0 bytes"),
    "short": (b"\0\0\0", "malformed", "3 bytes"),
    "wrong magic": (b"\x2a" + GOOD[1:], "malformed", "0x2A"),
    "unknown id": (header(12) + GOOD[5:], "unknown_schema", "schema id 12 is not registered under flights-value"),
    "id beyond int": (b"\0\xff\xff\xff\xff" + GOOD[5:], "unknown_schema", "schema id 4294967295"),
    "header alone": (header(7), "malformed", "cut short or corrupt: schema id 7"),
    "cut short": (GOOD[:-2], "malformed", "cut short or corrupt"),
    "negative length": (header(7) + TIME + varint(-9) + b"UA", "malformed", "corrupt"),
    "a text of a gigabyte": (header(7) + TIME + varint(1 << 30) + b"UA", "malformed", "corrupt"),
    "a number too long": (header(7) + b"\xff" * 12, "malformed", "corrupt"),
    "not UTF-8": (GOOD.replace(b"\x04UA", b"\x04\xff\xfe"), "malformed", "carrier is not UTF-8"),
    "year 148109": (header(7) + varint(2**62) + GOOD[5 + len(TIME) :], "malformed", "event_time is outside"),
}


def test_every_kind_of_bad_bytes_is_one_rejected_row_with_its_reason(spark: SparkSession) -> None:
    rows = [Row(value, "flights", offset) for offset, (value, _, _) in enumerate(BAD.values())]
    found = judged(spark, rows).collect()
    assert len(found) == len(BAD)
    for row, (name, (value, error_class, reason)) in zip(found, BAD.items(), strict=True):
        assert (row.error_class, row.accepted) == (error_class, False), name
        assert reason in row.reason, name
        assert row.value == value, name
        assert row.event_time is None, name


def test_an_accepted_row_has_every_field_and_no_bytes(spark: SparkSession) -> None:
    [row] = judged(spark, [Row(GOOD, "flights", 3, partition=2, headers=[("trace", b"1")])]).collect()
    assert row.accepted
    assert (row.topic, row.partition, row.offset, row.schema_id, row.attempt) == ("flights", 2, 3, 7, 0)
    assert (row.original, row.error_class, row.reason, row.key, row.value, row.headers) == (None,) * 6
    assert {name: row[name] for name in FLIGHT if "time" not in name or name == "air_time"} == {
        name: value for name, value in FLIGHT.items() if "time" not in name or name == "air_time"
    }
    assert {*judged(spark, []).columns, "batch"} == set(table_schemas.bronze_schema(FLIGHTS).names)


@pytest.mark.parametrize(
    ("tombstones", "value", "error_class"),
    [
        ("reject", None, "malformed"),
        ("skip", None, "tombstone"),
        ("skip", b"", "malformed"),  # a value of no bytes is a value
        ("skip", GOOD[:-2], "malformed"),
        ("skip", GOOD, None),
    ],
)
@pytest.mark.parametrize("topic", ["flights", "flights.retry"])
def test_a_tombstone_is_what_the_contract_says_and_nothing_else_is_one(
    spark: SparkSession, tombstones: str, value: bytes | None, error_class: str | None, topic: str
) -> None:
    contract = FLIGHTS.model_copy(update={"tombstones": tombstones})
    [row] = judged(spark, [Row(value, topic, 0, key=b"UA|1")], contract).collect()
    assert (row.error_class, row.accepted, row.value) == (
        error_class,
        error_class is None,
        None if row.accepted else value,
    )
    assert row.key == (None if row.accepted else b"UA|1"), "which says what was deleted"
    if value is None:
        assert "tombstone" in row.reason
    verdict = Judge(contract, {7: FLIGHTS.schema_now}).verdict(value)
    assert (verdict.error_class, "tombstone" in (verdict.reason or "")) == (error_class, value is None)


@pytest.mark.parametrize("stream", ["flights", "weather"])
def test_the_contracts_own_examples_get_the_verdict_they_name(spark: SparkSession, stream: str) -> None:
    contract = catalog()[stream]
    examples = good(contract) + bad(contract)
    rows = [Row(example.value, stream, offset) for offset, example in enumerate(examples)]
    reasons = {rule.name: rule.reason for rule in contract.rules}
    for row, example in zip(judged(spark, rows, contract, len(contract.versions)).collect(), examples, strict=True):
        assert row.error_class == example.error_class, example.file
        if example.rule:
            assert row.reason == reasons[example.rule], example.file


def test_any_damage_gets_a_verdict_and_what_is_accepted_is_what_fastavro_reads(spark: SparkSession) -> None:
    chance = random.Random(11)
    values = [GOOD[:size] for size in range(len(GOOD))]
    for _ in range(400):
        damaged = bytearray(GOOD)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        values.append(bytes(damaged))
    found = judged(spark, [Row(value, "flights", offset) for offset, value in enumerate(values)]).collect()
    assert [row.offset for row in found] == list(range(len(values)))
    judge = Judge(FLIGHTS, {7: FLIGHTS.schema_now})
    for row, value in zip(found, values, strict=True):
        if row.accepted:
            expected = judge.verdict(value)
            assert expected.error_class is None, value
            assert expected.record is not None
            assert (row.carrier, row.flight, row.tailnum) == tuple(
                expected.record[name] for name in ("carrier", "flight", "tailnum")
            )
        else:
            assert row.reason, value


def test_each_record_is_read_with_the_schema_that_wrote_it(spark: SparkSession) -> None:
    v1 = {
        "type": "record",
        "name": "Visit",
        "fields": [
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "who", "type": "string"},
            {"name": "gone", "type": ["null", "int"], "default": None},
        ],
    }
    v2 = {**v1, "fields": [*v1["fields"][:2], {"name": "pages", "type": "long", "default": 1}]}
    visits = Contract(
        stream="visits", description="", owner="", key=["who"], event_id=["at", "who"], event_time="at",
        folder=Path("visits"), versions=(v1, v2),
    )  # fmt: skip
    at = datetime(2024, 2, 29, 23, 59, 59, 500000, tzinfo=UTC)
    rows = [
        Row(wire(3, v1, {"at": at, "who": "ann", "gone": 5}), "visits", 0),
        Row(wire(90, v2, {"at": at, "who": "bob", "pages": 8}), "visits", 1),
        Row(wire(3, v1, {"at": at, "who": "cid"}), "visits", 2),
        Row(wire(4, v2, {"at": at, "who": "dan", "pages": 2}), "visits", 3),
    ]
    writers = {3: json.dumps(v1), 90: json.dumps(v2)}
    found = validate(decode(frame(spark, rows), visits, writers), visits).orderBy("offset")
    assert [(row.schema_id, row.who, row.pages, row.error_class) for row in found.collect()] == [
        (3, "ann", 1, None), (90, "bob", 8, None), (3, "cid", 1, None), (4, None, None, "unknown_schema"),
    ]  # fmt: skip
    early = decode(frame(spark, rows[:1]), visits, {3: json.dumps(v1)})  # deployed before v2 is registered
    assert [(row.who, row.pages, row.error_class) for row in early.collect()] == [("ann", 1, None)]
    times = found.selectExpr("unix_millis(at) as at", "unix_millis(event_time) as event_time").where("at is not null")
    assert {tuple(row) for row in times.collect()} == {(int(at.timestamp() * 1000),) * 2}


def test_nothing_registered_yet_rejects_as_unknown_schema(spark: SparkSession) -> None:
    [row] = validate(decode(frame(spark, [Row(GOOD, "flights", 0)]), FLIGHTS, {}), FLIGHTS).collect()
    assert row.error_class == "unknown_schema"


def test_only_the_retry_topic_speaks_for_another_record(spark: SparkSession) -> None:
    headers = [("dl-id", b"flights/3/77"), ("dl-attempt", b"2")]
    odd = [("dl-id", b"flights/3/78"), ("dl-attempt", b"many")]
    rows = [
        Row(GOOD, "flights", 0, headers=headers),
        Row(GOOD, "flights.retry", 1, headers=headers),
        Row(GOOD, "flights.retry", 2, headers=odd),
        Row(GOOD, "flights.retry", 3),
    ]
    found = judged(spark, rows).collect()
    assert [(row.original, row.attempt) for row in found] == [
        (None, 0), ("flights/3/77", 2), ("flights/3/78", 0), (None, 0),
    ]  # fmt: skip


def test_a_rule_that_fails_or_is_null_rejects_with_the_first_broken_reason(spark: SparkSession) -> None:
    rules = [
        {"name": "ratio", "predicate": "100 / (flight - 1545) < 50", "reason": "the ratio is too high"},
        {"name": "tail", "predicate": "tailnum like 'N%'", "reason": "no American tail number"},
    ]
    contract = Contract.model_validate(
        FLIGHTS.model_dump() | {"rules": rules, "folder": FLIGHTS.folder, "versions": FLIGHTS.versions}
    )
    flights = [FLIGHT, FLIGHT | {"flight": 1645}, FLIGHT | {"flight": 1645, "tailnum": None}]
    rows = [Row(wire(7, FLIGHTS.schema_now, flight), "flights", i) for i, flight in enumerate(flights)]
    found = judged(spark, rows, contract).collect()
    assert [(row.error_class, row.reason) for row in found] == [
        ("rule", "the ratio is too high"), (None, None), ("rule", "no American tail number"),
    ]  # fmt: skip
    assert found[0].flight == 1545


def test_versions_mix_in_a_batch_what_came_is_null_before_and_what_went_stays_readable(spark: SparkSession) -> None:
    at, note = FLIGHTS.versions[0]["fields"][0], {"name": "note", "type": ["null", "string"], "default": None}
    gate = {"name": "gate", "type": ["null", "int"], "default": None}
    versions = tuple({"type": "record", "name": "F", "fields": [at, *more]} for more in ([note], [note, gate], [gate]))
    contract = Contract.model_validate(
        {"stream": "flights", "description": "", "owner": "", "key": ["event_time"], "event_id": ["event_time"],
         "event_time": "event_time", "folder": Path("flights"), "versions": versions}
    )  # fmt: skip
    time = FLIGHT["event_time"]
    records = [{"event_time": time, "note": "a"}, {"event_time": time, "note": "b", "gate": 2},
               {"event_time": time, "gate": 3}]  # fmt: skip
    rows = [
        Row(wire(number, version, record), "flights", number)
        for number, (version, record) in enumerate(zip(versions, records, strict=True), 1)
    ]
    writers = {number: json.dumps(version) for number, version in enumerate(versions, 1)}
    found = validate(decode(frame(spark, rows), contract, writers), contract).orderBy("offset").collect()
    assert [(row.schema_id, row.accepted, row.note, row.gate) for row in found] == [
        (1, True, "a", None), (2, True, "b", 2), (3, True, None, 3),
    ]  # fmt: skip
    assert [name for name in table_schemas.bronze_schema(contract).names if name in ("note", "gate")] == [
        "gate",
        "note",
    ]


def test_an_id_that_may_be_new_fails_the_batch_before_anything_is_decided(spark: SparkSession) -> None:
    writers = {7: json.dumps(FLIGHTS.schema_now)}
    known = [Row(GOOD, "flights", 0), Row(b"nonsense", "flights", 1), Row(None, "flights", 2)]
    assert decode(frame(spark, known), FLIGHTS, writers, complete=False).count() == 3
    with pytest.raises(Exception, match=f"{UNREGISTERED}12"):
        decode(frame(spark, [*known, Row(header(12) + GOOD[5:], "flights", 3)]), FLIGHTS, writers, False).collect()
