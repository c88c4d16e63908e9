"""Each Avro type that `millrace check` accepts goes the whole way; NaN is missing and an infinity is a value in every
layer; event times are of the years 1 to 9999."""

from __future__ import annotations

import json
import math
from collections import Counter
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pyspark.sql import SparkSession

from infra import strict_json
from infra.commands.query import text
from schemas.contract.verdict import Judge
from schemas.wire import header
from tests.support.kafka_rows import wire
from tests.support.whole_way import WholeWay, avro, written

TEN = datetime(2020, 1, 1, 10, tzinfo=UTC)
COUNTED = {"name": "by_id", "description": "c", "dimensions": ["id"], "measures": [{"name": "n", "kind": "count"}]}


def named(kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "name": name, **more}


def logical(type_: str, name: str, /, **more: Any) -> dict[str, Any]:
    return {"type": type_, "logicalType": name, **more}


VALUES: dict[str, tuple[Any, Any]] = {
    "boolean": ("boolean", True),
    "int": ("int", -(2**31)),
    "long": ("long", 2**63 - 1),
    "float": ("float", 0.5),
    "double": ("double", 1e300),
    "bytes": ("bytes", b"\x00\xff"),
    "string": ("string", "ä\n"),
    "long_string": ({"type": "string", "avro.java.string": "String"}, "x"),
    "uuid": (logical("string", "uuid"), UUID(int=7)),
    "date": (logical("int", "date"), date(1, 1, 1)),
    "time_millis": (logical("int", "time-millis"), time(23, 59, 59, 999000)),
    "time_micros": (logical("long", "time-micros"), time(23, 59, 59, 999999)),
    "millis": (logical("long", "timestamp-millis"), datetime(1, 1, 1, tzinfo=UTC)),
    "micros": (logical("long", "timestamp-micros"), datetime(9999, 12, 31, tzinfo=UTC)),
    "to_come": (logical("long", "something-to-come"), 5),
    "few": (logical("bytes", "decimal", precision=5, scale=2), Decimal("-999.99")),
    "many": (logical("bytes", "decimal", precision=38, scale=38), Decimal("1e-38")),
    "enum": (named("enum", "E", symbols=["A", "B"]), "B"),
    "fixed": (named("fixed", "F", size=3), b"abc"),
    "duration": (named("fixed", "D", size=12, logicalType="duration"), bytes(12)),
    "in_fixed": (named("fixed", "G", size=8, logicalType="decimal", precision=9, scale=2), Decimal("1.23")),
}  # fmt: skip


def around(name: str, type_: Any, value: Any) -> list[tuple[dict[str, Any], Any]]:
    """Fields of the type: one that is null, a required one, and one within an array, a map and a record. Their names
    are of types of their own."""

    def own(where: str) -> Any:
        return type_ | {"name": f"{type_['name']}_{where}"} if isinstance(type_, dict) and "name" in type_ else type_

    record = named("record", f"In_{name}", fields=[{"name": "inner", "type": own("record")}])
    return [
        ({"name": f"{name}_null", "type": ["null", own("null")], "default": None}, None),
        ({"name": f"{name}_value", "type": own("value")}, value),
        ({"name": f"{name}_list", "type": {"type": "array", "items": own("list")}}, [value]),
        ({"name": f"{name}_map", "type": {"type": "map", "values": ["null", own("map")]}}, {"k": value, "n": None}),
        ({"name": f"{name}_record", "type": record}, {"inner": value}),
    ]


def test_every_type_that_check_accepts_goes_the_whole_way(spark: SparkSession, tmp_path: Path) -> None:
    fields = [field for name, (type_, value) in VALUES.items() for field in around(name, type_, value)]
    folder = written(
        tmp_path, "types", [avro("types", *(field for field, _ in fields))], {}, aggregates=[COUNTED],
        rules=[], event_id=["id", "uuid_value", "date_value", "micros_value", "enum_value", "few_value"],
    )  # fmt: skip
    way = WholeWay(spark, folder, tmp_path / "home")
    record = {field["name"]: value for field, value in fields}
    hours = [0, 0.1, 5]
    way.send(*(record | {"id": f"e{n}", "at": TEN + timedelta(hours=hour)} for n, hour in enumerate(hours)))
    assert way.outbox.sent == []
    assert way.reconcile()["hours"] == 1
    assert all(outcome.success for outcome in way.standing_check())
    assert way.served("select count(*), sum(n) from by_id_1h where final") == [(2, 2)]
    columns = [field["name"] for field, _ in fields]
    shown = ", ".join(f'"{column}"' for column in columns)
    [row, *_] = way.served(f"select {shown} from types_events order by id")
    found = dict(zip(columns, row, strict=True))
    json.loads(strict_json.dumps(found, default=text), parse_constant=pytest.fail)
    for name, (_, value) in VALUES.items():
        wanted = COLUMN_FORM.get(name, lambda it: it)(value)
        assert found[f"{name}_value"] == wanted, name
        assert found[f"{name}_null"] is None
        assert found[f"{name}_list"] == [wanted], name
        assert found[f"{name}_map"] == {"k": wanted, "n": None}, name
        assert found[f"{name}_record"] == {"inner": wanted}, name


def since_midnight(moment: time) -> timedelta:
    return datetime.combine(date.min, moment) - datetime.combine(date.min, time.min)


COLUMN_FORM: dict[str, Any] = {
    "uuid": str,
    "time_millis": lambda it: since_midnight(it) // timedelta(milliseconds=1),
    "time_micros": lambda it: since_midnight(it) // timedelta(microseconds=1),
}


# -- decimals that do not fit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "scale"), [(12, 2), (19, 4), (38, 10)])
def test_bytes_that_do_not_fit_a_decimal_are_dead_letters(
    spark: SparkSession, precision: int, scale: int, tmp_path: Path
) -> None:
    """Of any length: 64 bits of a longer number would look right."""
    type_ = logical("bytes", "decimal", precision=precision, scale=scale)
    fields: list[dict[str, Any]] = [
        {"name": "d", "type": ["null", type_], "default": None},
        {"name": "ds", "type": {"type": "array", "items": type_}},
    ]
    folder = written(tmp_path, "money", [avro("money", *fields)], {"ds": []}, rules=[], aggregates=[COUNTED])
    way = WholeWay(spark, folder, tmp_path / "home")
    plain = json.loads(json.dumps(way.contract.schema_now).replace('"logicalType": "decimal", ', ""))
    most = 10**precision - 1
    units = [0, most, -most, most + 1, -most - 1, 2**64 + 5, 2**72, -(2**64) + 1, 2**63, 10**38 + 1, 10**60]
    judge = Judge(way.contract)
    fits, sent = {}, []
    for number, unscaled in enumerate(units):
        raw = unscaled.to_bytes((unscaled.bit_length() // 8) + 1, "big", signed=True)
        for place in ("d", "ds"):
            record = {"id": f"{place}{number}", "at": TEN, "d": None, "ds": []} | {
                place: raw if place == "d" else [raw]
            }
            sent.append(wire(1, plain, record))
            fits[f"{place}{number}"] = abs(unscaled) <= most
            verdict = judge.verdict(sent[-1])
            assert (verdict.error_class is None) == fits[f"{place}{number}"], (place, unscaled, verdict)
    way.send_bytes(*sent)
    accepted = {row[0]: row[1:] for row in way.served("select id, d, ds from money_events")}
    assert accepted.keys() == {name for name, fit in fits.items() if fit}
    for number, unscaled in enumerate(units):
        if abs(unscaled) <= most:
            value = Decimal(unscaled).scaleb(-scale) if precision < 29 else Decimal(f"{unscaled}e-{scale}")
            assert accepted[f"d{number}"] == (value, [])
            assert accepted[f"ds{number}"] == (None, [value])
    assert {letter["error_class"] for letter in way.outbox.sent} == {"malformed"}
    assert len(way.outbox.sent) == len(fits) - len(accepted)


# -- missing and infinite ----------------------------------------------------------------------------------------------

FLOATS: list[dict[str, Any]] = [
    {"name": "p", "type": ["null", "double"], "default": None},
    {"name": "q", "type": "double"},
    {"name": "f", "type": ["null", "float"], "default": None},
    {"name": "s", "type": ["null", named("record", "S", fields=[{"name": "x", "type": "double"}])], "default": None},
    {"name": "a", "type": {"type": "array", "items": "double"}},
    {"name": "m", "type": {"type": "map", "values": "float"}},
]
INF = math.inf
P: dict[str, tuple[float | None, float | None]] = {  # sent, and as it counts
    "plain": (5.0, 5.0), "missing": (None, None), "nan": (math.nan, None), "other nan": (-math.nan, None),
    "zero": (-0.0, -0.0), "large": (1e18, 1e18),
}  # fmt: skip
"""The hour of 10:00."""
BEYOND: dict[str, dict[str, float]] = {
    "upwards": {"one": 1.0, "inf": INF}, "downwards": {"one": 1.0, "inf": -INF}, "both": {"up": INF, "down": -INF},
    "too large": {"one": 1.0, "large": 1e300}, "too low": {"large": -1e19, "one": 3.0},
    "just fits": {"large": 9e18, "one": 3.0},
}  # fmt: skip
"""Hours of their own, and what the sum is: an infinity by IEEE 754, and one for what a sum does not hold."""
SUMS = {"upwards": INF, "downwards": -INF, "both": None, "too large": INF, "too low": -INF, "just fits": 9e18 + 3}


def of_floats(root: Path) -> Path:
    measured = [
        {"name": f"{kind}_{name}", "kind": kind, "of": name} | ({"rank": 0.5} if kind == "quantile" else {})
        for name in ("p", "q", "f")
        for kind in ("count", "sum", "avg", "min", "max", "quantile")
    ]
    one = {"name": "by_shop", "description": "c", "dimensions": ["shop"], "measures": measured}
    rules = [
        {"name": "p_is_small", "predicate": "p is null or p < 1e301 or p > 1e308", "reason": "p is large"},
        {"name": "s_is_small", "predicate": "s is null or s.x is null or s.x < 100", "reason": "s is large"},
    ]
    good = {"q": 1.0, "a": [], "m": {}, "shop": "s"}
    folder = written(
        root, "floats", [avro("floats", *FLOATS, {"name": "shop", "type": "string"})], good, rules=rules,
        aggregates=[one], quality={"ranges": {"p": [-2e19, 1e300], "q": [0, 100]}, "severity": {"p": "warning"}},
    )  # fmt: skip
    (folder / "examples/bad/b.json").write_text(json.dumps(
        {"error_class": "rule", "rule": "p_is_small",
         "record": good | {"at": "2020-01-01T00:00:00Z", "id": "b", "p": 1e305}}
    ))  # fmt: skip
    return folder


def test_nan_is_missing_and_an_infinity_is_a_value_in_every_layer(spark: SparkSession, tmp_path: Path) -> None:
    way = WholeWay(spark, of_floats(tmp_path), tmp_path / "home")
    assert way.problems() == []

    def event(name: str, hour: int, value: float | None) -> dict[str, Any]:
        q = math.nan if value is not None and math.isnan(value) else 1.0
        inner = None if value is None else {"x": value if math.isnan(value) else 1.0}
        many = [] if value is None else [value, 1.0]
        half = value if value is not None and not 1e19 <= abs(value) < INF else None  # a float holds no 1e300
        return {
            "id": name, "shop": "s", "at": TEN + timedelta(hours=hour), "p": value, "q": q, "f": half, "s": inner,
            "a": many, "m": {"k": half if half is not None else 0.0},
        }  # fmt: skip

    sent = [event(name, 0, value) for name, (value, _) in P.items()]
    for hour, (case, values) in enumerate(BEYOND.items(), 1):
        sent += [event(f"{case} {name}", hour, value) for name, value in values.items()]
    sent += [event("refused", 0, 1e305), event("last", 20, 1.0)]
    judge = Judge(way.contract)
    refused = {one["id"] for one in sent if judge.verdict(wire(1, way.contract.schema_now, one)).error_class}
    way.send(*sent)
    assert refused == {"refused"}
    assert way.served("select id from floats_dead_letters") == [("refused",)]
    assert way.served("select count(*) from floats_events where isnan(p) or isnan(q) or isnan(f) or isnan(s.x)"
                      " or list_bool_or([isnan(it) for it in a]) or isnan(m['k'])") == [(0,)]  # fmt: skip
    rows = way.served("from floats_events")
    json.loads(strict_json.dumps(rows, default=text), parse_constant=pytest.fail)
    shown = "hour(window_start), count_p, sum_p, avg_p, min_p, max_p, count_q, sum_f"
    before = {row[0]: row[1:] for row in way.served(f"select {shown} from by_shop_1h")}
    in_spark = {row[0]: row[1:] for row in way.served_by_spark(f"select {shown} from by_shop_1h")}
    assert way.reconcile()["hours"] == 1 + len(BEYOND)
    assert {outcome.suite for outcome in way.standing_check() if not outcome.success} == set()
    after = {row[0]: row[1:] for row in way.served(f"select {shown} from by_shop_1h")}
    assert before == in_spark == after
    counted = [value for _, value in P.values() if value is not None]
    assert after[10][:2] == (len(counted), sum(counted))
    assert after[10][3:6] == (min(counted), max(counted), len(P) - 2)  # q is NaN where p is
    for hour, (case, values) in enumerate(BEYOND.items(), 11):
        total = SUMS[case]
        mean = None if total is None else total / 2
        assert after[hour][:5] == (2, total, mean, min(values.values()), max(values.values())), case
    assert way.served("select count(*) from ledger") == [(0,)]


def test_a_range_finds_an_infinity_and_no_nan(spark: SparkSession, tmp_path: Path) -> None:
    from spark.quality.auditor import FailedExpectations

    field = {"name": "p", "type": ["null", "double"], "default": None}
    folder = written(
        tmp_path, "nans", [avro("nans", field)], {}, aggregates=[COUNTED], quality={"ranges": {"p": [0, 9]}}
    )
    way = WholeWay(spark, folder, tmp_path / "home")
    way.send({"id": "a", "at": TEN, "p": math.nan}, {"id": "b", "at": TEN + timedelta(hours=2)})
    assert way.reconcile()["hours"] == 1
    way.send({"id": "c", "at": TEN + timedelta(hours=3), "p": math.inf}, {"id": "d", "at": TEN + timedelta(hours=7)})
    with pytest.raises(FailedExpectations, match=r"between\(column=p"):
        way.reconcile()


# -- years -------------------------------------------------------------------------------------------------------------

INSTANTS = [
    "0001-01-01T00:00:00", "0001-01-01T00:59:59.999999", "0001-01-01T01:00:00", "1582-10-04T23:59:00",
    "1582-10-15T00:00:00", "1677-09-21T00:00:00", "1899-12-31T23:59:59.999999", "1969-12-31T23:59:59.999999",
    "1970-01-01T00:00:00", "2020-01-01T10:00:00", "2262-04-12T00:00:00", "9999-12-30T23:59:59.999999",
    "9999-12-31T00:00:00",
]  # fmt: skip


def test_event_times_of_the_years_1_to_9999(spark: SparkSession, tmp_path: Path) -> None:
    when = {"name": "when", "type": ["null", logical("long", "timestamp-micros")], "default": None}
    day = {"name": "day", "type": ["null", logical("int", "date")], "default": None}
    measured = [{"name": "n", "kind": "count"}] + [
        {"name": f"{kind}_{of}", "kind": kind, "of": of} for kind in ("min", "max") for of in ("when", "day")
    ]
    one = {"name": "by_day", "description": "c", "dimensions": ["day"], "measures": measured}
    burst = {"name": "burst", "description": "c", "key": ["id"], "within": "30d", "more_than": 0}
    visit = {"name": "visit", "description": "c", "key": ["id"], "gap": "10m"}
    folder = written(
        tmp_path, "times", [avro("times", when, day)], {}, aggregates=[one], future_skew="9999999d", velocity=[burst],
        sessions=[visit], retention={"speed": "1d", "batch": "1d"},
    )  # fmt: skip
    way = WholeWay(spark, folder, tmp_path / "home")
    assert way.problems() == []
    times = [datetime.fromisoformat(f"{instant}Z") for instant in INSTANTS]
    way.send({"id": "first", "at": times[0]})
    way.reconcile()  # of nothing but the first hour, which nothing closes
    way.send(*({"id": f"e{n}", "at": at, "when": at, "day": at.date()} for n, at in enumerate(times)))
    too_far = header(1) + b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01" + b"\x02a\x00\x00"
    way.send_bytes(too_far)
    assert [(letter["error_class"], letter["reason"]) for letter in way.outbox.sent] == [
        ("malformed", "at is outside of the years 1 to 9999")
    ]
    way.send({"id": "late", "at": times[0], "when": times[0], "day": times[0].date()})
    summary = way.reconcile()
    # Spark's watermarks begin in 1970: its streaming queries take what was before for late.
    summaries = way.reconcile_stateful(datetime(1960, 1, 1, tzinfo=UTC))
    assert [set(summary["ledger"]) for summary in summaries] == [{"late"}, {"late"}]
    assert {outcome.suite for outcome in way.standing_check() if not outcome.success} == set()
    closed = datetime.fromisoformat(summary["final_through"])
    assert closed == datetime(2026, 5, 1, 11, tzinfo=UTC)  # as far as Kafka's time of the records has come
    counted: Counter[tuple[datetime, date | None]] = Counter(
        (at.replace(minute=0, second=0, microsecond=0), at.date()) for at in [*times, times[0]]
    )
    counted[times[0], None] += 1
    shown = "select cast(window_start as string), day, n, min_when, max_when, min_day, final from by_day_1h"
    in_spark = shown.replace(
        "min_when, max_when, min_day", "1, 1, 1"
    )  # Python makes no instants of the year 1 of Spark's
    for found in (way.served(shown), way.served_by_spark(in_spark)):
        rows = {(datetime.fromisoformat(row[0]).replace(tzinfo=UTC), row[1]): row for row in found}
        assert {key: row[2] for key, row in rows.items()} == counted
        assert {row[6] for key, row in rows.items() if key[0] < closed} == {True}
        assert {row[6] for key, row in rows.items() if key[0] > closed} == {False}
    last = times[-1]
    [row] = way.served(f"{shown} where n > 0 and max_when = timestamptz '{last}'")
    assert row[3:6] == (last, last, last.date())
    parsed = json.loads(strict_json.dumps(way.served("select * from times_events"), default=text))
    assert {row[0] for row in parsed} >= {"0001-01-01T00:00:00+00:00", "9999-12-31T00:00:00+00:00"}
    assert way.served("select count(*) from visit") > [(8,)]
    assert way.served("select count(*) from burst") > [(8,)]


def test_a_type_that_is_used_again_by_its_name_is_read_and_stored_in_every_version(
    spark: SparkSession, tmp_path: Path
) -> None:
    """The second version defines it elsewhere, and does not have a field of the first one any more."""
    address = named("record", "Address", fields=[{"name": "town", "type": ["null", "string"], "default": None}])
    first = avro("homes", {"name": "a", "type": address}, {"name": "b", "type": ["null", "Address"], "default": None})
    own = {"name": "b", "type": ["null", address], "default": None}
    many = {"name": "c", "type": {"type": "array", "items": "cases.homes.Address"}, "default": []}
    folder = written(
        tmp_path, "homes", [first, avro("homes", own, many)], {"b": {"town": "x"}, "c": []}, compatibility="BACKWARD",
        aggregates=[COUNTED],
    )  # fmt: skip
    way = WholeWay(spark, folder, tmp_path / "home")
    assert way.problems() == []
    way.send({"id": "one", "at": TEN, "a": {"town": "x"}, "b": {"town": "y"}}, version=1)
    way.send({"id": "two", "at": TEN, "b": {"town": "z"}, "c": [{"town": "x"}, {"town": None}]})
    assert way.outbox.sent == []
    assert way.served("select id, a, b, c from homes_events order by id") == [
        ("one", {"town": "x"}, {"town": "y"}, []),
        ("two", None, {"town": "z"}, [{"town": "x"}, {"town": None}]),
    ]
    assert way.served_by_spark("select count(*) from homes_events where b.town in ('y', 'z')") == [(2,)]
