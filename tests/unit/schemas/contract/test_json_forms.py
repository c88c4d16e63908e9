"""Each type has one form in JSON: what is written so is what was meant, and what is shown can be sent again."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import strict_json
from infra.commands.query import text
from producers.sources import json_lines
from schemas.contract.catalog import load
from schemas.contract.check import check
from schemas.contract.examples import Misfit, encode
from schemas.contract.field_kinds import from_json
from tests.support.whole_way import avro, written


def logical(type_: str, name: str, /, **more: Any) -> dict[str, Any]:
    return {"type": type_, "logicalType": name, **more}


MONEY = logical("bytes", "decimal", precision=12, scale=2)
FORMS: list[tuple[Any, Any, Any]] = [
    ("boolean", True, True),
    ("int", -5, -5),
    ("long", 2**63 - 1, 2**63 - 1),
    ("double", 0.1, 0.1),
    ("double", "Infinity", math.inf),
    ("double", "-Infinity", -math.inf),
    ("string", "Infinity", "Infinity"),
    ("bytes", "00ff", b"\x00\xff"),
    ("bytes", "", b""),
    ({"type": "fixed", "name": "F", "size": 2}, "00ff", b"\x00\xff"),
    (logical("fixed", "duration", name="P", size=12), "00" * 12, bytes(12)),
    ({"type": "enum", "name": "E", "symbols": ["A"]}, "A", "A"),
    (MONEY, "12.34", Decimal("12.34")),
    (MONEY, "-9999999999.99", Decimal("-9999999999.99")),
    (MONEY, "12.3400", Decimal("12.34")),
    (MONEY, "1e3", Decimal("1000.00")),
    (MONEY, 7, Decimal("7.00")),
    (logical("bytes", "decimal", precision=38, scale=38), "1E-38", Decimal("1e-38")),
    (logical("fixed", "decimal", name="D", size=8, precision=9, scale=2), "1.23", Decimal("1.23")),
    (logical("string", "uuid"), "00000000-0000-0000-0000-000000000007", UUID(int=7)),
    (logical("int", "date"), "0001-01-01", date(1, 1, 1)),
    (logical("int", "time-millis"), 86_399_999, time(23, 59, 59, 999_000)),
    (logical("int", "time-millis"), "23:59:59.999", time(23, 59, 59, 999_000)),
    (logical("long", "time-micros"), "23:59:59.999999", time(23, 59, 59, 999_999)),
    (logical("long", "timestamp-millis"), "2013-01-01T01:00:00+01:00", datetime(2013, 1, 1, tzinfo=UTC)),
    (logical("long", "timestamp-micros"), "9999-12-31T00:00:00Z", datetime(9999, 12, 31, tzinfo=UTC)),
]


def around(type_: Any, form: Any, value: Any) -> list[tuple[Any, Any, Any]]:
    """The type itself, and within null, an array, a map and a record."""
    record = {"type": "record", "name": "S", "fields": [{"name": "x", "type": type_}]}
    return [
        (type_, form, value),
        (["null", type_], form, value),
        ({"type": "array", "items": type_}, [form, form], [value, value]),
        ({"type": "map", "values": ["null", type_]}, {"k": form, "n": None}, {"k": value, "n": None}),
        (["null", record], {"x": form}, {"x": value}),
    ]


def read(schema: Mapping[str, Any], body: bytes) -> Any:
    return fastavro.schemaless_reader(io.BytesIO(body), fastavro.parse_schema(dict(schema)), None)


@pytest.mark.filterwarnings("error::avro.errors.IgnoredLogicalType")
@pytest.mark.parametrize(("type_", "form", "value"), FORMS, ids=lambda it: str(it)[:40])
def test_a_value_in_its_form_is_what_was_meant_and_what_is_shown_is_its_form(
    type_: Any, form: Any, value: Any, tmp_path: Path
) -> None:
    for number, (avro_type, json_, wanted) in enumerate(around(type_, form, value)):
        root = tmp_path / str(number)
        contract = load(written(root, "forms", [avro("forms", {"name": "v", "type": avro_type})], {"v": json_}))
        assert check(root) == []
        line = {"at": "2020-01-01T00:00:00Z", "id": "a", "v": json_}
        (root / "records.jsonl").write_text(json.dumps(line) + "\n")
        [record] = json_lines(root / "records.jsonl", contract)
        body = encode(contract, record)
        decoded = read(contract.schema_now, body)
        assert decoded["v"] == wanted
        shown = strict_json.dumps(decoded, default=text)  # as `dead-letters show` writes it
        again = from_json(contract.fields, json.loads(shown, parse_constant=pytest.fail))
        assert encode(contract, again) == body


@pytest.mark.parametrize(
    ("type_", "form"),
    [
        (MONEY, "12.345"), (MONEY, "10000000000"), (MONEY, 12.34), (MONEY, True), (MONEY, "NaN"), (MONEY, "x"),
        (MONEY, "1e2000000"), (MONEY, [1]), ("bytes", "0"), ("bytes", "xy"),
        ({"type": "fixed", "name": "F", "size": 2}, "00"), (logical("int", "date"), "1.1.2013"),
        (logical("int", "time-millis"), "noon"), (logical("long", "timestamp-micros"), "2013-01-01T00:00:00"),
        ("int", 2**31), ("int", "5"), ("string", 5), (logical("string", "uuid"), 5),
    ],
)  # fmt: skip
def test_what_is_in_no_form_is_refused_with_its_field(type_: Any, form: Any, tmp_path: Path) -> None:
    good = {"id": "a", "at": "2020-01-01T00:00:00Z"}
    folder = written(tmp_path, "forms", [avro("forms", {"name": "v", "type": type_})], {"v": form})
    contract = load(folder)
    with pytest.raises((ValueError, Misfit), match=r"^v "):
        encode(contract, from_json(contract.fields, good | {"v": form}))
    assert {problem.file.name for problem in check(tmp_path)} == {"a.json", "b.json"}


@given(units=st.integers(-(10**12) + 1, 10**12 - 1))
def test_every_decimal_of_a_type_has_a_form(units: int) -> None:
    value = Decimal(units).scaleb(-2)
    for form in (str(value), f"{value:f}"):
        assert from_json({"v": MONEY}, {"v": form}) == {"v": value}
