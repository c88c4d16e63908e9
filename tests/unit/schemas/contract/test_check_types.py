"""What an Avro schema may declare: what is accepted has a column each, whatever it is made of; what has none is named
with its file, line and field, however deep it lies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import avro.schema
import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.contract.check_types import problems
from schemas.contract.document import read_json
from schemas.contract.problem import Problem
from spark.definitions.avro_types import scalar


def found(schema: dict[str, Any], folder: Path) -> list[Problem]:
    path = folder / "v1.avsc"
    path.write_text(json.dumps(schema, indent=1))
    return list(problems(read_json(path)))


def record(*types: Any) -> dict[str, Any]:
    fields = [{"name": f"f{number}", "type": avro} for number, avro in enumerate(types)]
    return {"type": "record", "name": "R", "fields": fields}


POINT = {"type": "record", "name": "Point", "fields": [{"name": "x", "type": "int"}]}
LIST = {"type": "record", "name": "List", "fields": [{"name": "next", "type": ["null", "List"]}]}
TWICE = {"type": "record", "name": "T", "fields": [{"name": "x", "type": "int"}, {"name": "x", "type": "int"}]}
CASES = {"type": "record", "name": "C", "fields": [{"name": "id", "type": "int"}, {"name": "ID", "type": "int"}]}
EMPTY = {"type": "record", "name": "E", "fields": []}


def decimal(precision: Any, scale: Any = 0, **of: Any) -> dict[str, Any]:
    return {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale} | of


REFUSED: list[tuple[Any, str]] = [
    (["null", "string", "long"], "a union may only add null to one type"),
    (["string", POINT], "a union may only add null to one type"),
    (["null"], "a union may only add null to one type"),
    ("null", "has no value"),
    (LIST, "may hold another one"),
    ({"type": "array", "items": "R"}, "may hold another one"),
    (TWICE, "'x' is defined twice"),
    (CASES, "'ID' differs from 'id' only in case"),
    (EMPTY, "record 'E' has no fields"),
    (decimal(64, 2), "a decimal of 64 digits is more than the 38"),
    (decimal(39, of=1), "a decimal of 39 digits"),
    (decimal(5, 6), "a scale from 0 to that"),
    ({"type": "long", "logicalType": "local-timestamp-micros"}, "says no instant"),
    ({"type": "long", "logicalType": "local-timestamp-millis"}, "says no instant"),
    ({"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}, "a uuid must be of type string"),
    (decimal(5) | {"type": "string"}, "a decimal must be of type bytes or fixed, not string"),
    ({"type": "int", "logicalType": "timestamp-micros"}, "timestamp-micros must be of type long, not int"),
    ({"type": "string", "logicalType": "date"}, "a date must be of type int, not string"),
    ({"type": "long", "logicalType": "time-millis"}, "time-millis must be of type int, not long"),
    ({"type": "fixed", "name": "P", "size": 8, "logicalType": "duration"}, "a duration has 12 bytes, not 8"),
    ({"type": "fixed", "name": "D", "size": 4} | decimal(10) | {"type": "fixed"}, "4 bytes hold decimals of 9 digits"),
]
AROUND: dict[str, Callable[[Any], Any]] = {
    "a field": lambda avro: avro,
    "null or": lambda avro: ["null", avro],
    "an array": lambda avro: {"type": "array", "items": avro},
    "a map": lambda avro: {"type": "map", "values": avro},
    "a record": lambda avro: {"type": "record", "name": "Around", "fields": [{"name": "inner", "type": avro}]},
    "all of them": lambda avro: {
        "type": "record",
        "name": "Around",
        "fields": [{"name": "inner", "type": ["null", {"type": "array", "items": {"type": "map", "values": avro}}]}],
    },
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize(("avro", "message"), REFUSED, ids=lambda it: it if isinstance(it, str) else "")
def test_what_the_lake_cannot_hold_is_refused_at_any_depth(
    avro: Any, message: str, around: str, tmp_path: Path
) -> None:
    if around == "null or" and (isinstance(avro, list) or avro == "null"):
        return  # Avro has no unions of unions
    schema = record("int", AROUND[around](avro))
    [problem] = found(schema, tmp_path)
    assert message in problem.message
    assert problem.file == tmp_path / "v1.avsc"
    assert problem.field.startswith("fields[1]")
    assert problem.line > 2


def test_a_type_that_is_used_again_by_its_name_is_accepted(tmp_path: Path) -> None:
    assert found(record(POINT, {"type": "array", "items": "Point"}), tmp_path) == []


LEAVES = st.sampled_from([
    "boolean", "int", "long", "float", "double", "bytes", "string",
    {"type": "long", "logicalType": "timestamp-micros"}, {"type": "long", "logicalType": "timestamp-millis"},
    {"type": "int", "logicalType": "date"}, {"type": "string", "logicalType": "uuid"}, {"type": "string"},
    {"type": "int", "logicalType": "time-millis"}, {"type": "long", "logicalType": "something-to-come"},
    {"type": "enum", "symbols": ["A", "B"]}, {"type": "fixed", "size": 3},
    decimal(38, 38), decimal(1), {"type": "fixed", "size": 8, "logicalType": "decimal", "precision": 9, "scale": 2},
])  # fmt: skip
TYPES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        inner.filter(lambda it: not isinstance(it, list)).map(lambda it: ["null", it]),
        inner.map(lambda it: {"type": "array", "items": it}),
        inner.map(lambda it: {"type": "map", "values": it}),
        st.lists(inner, min_size=1, max_size=3).map(lambda its: record(*its)),
    ),
    max_leaves=12,
)


def named(avro: Any, names: Any) -> Any:
    """The type with a name of its own for each record, enum and fixed in it."""
    if isinstance(avro, list):
        return [named(branch, names) for branch in avro]
    if not isinstance(avro, dict):
        return avro
    own = {"name": f"N{next(names)}"} if avro["type"] in ("record", "enum", "fixed") else {}
    inner = {key: named(avro[key], names) for key in ("items", "values") if key in avro}
    if "fields" in avro:
        inner["fields"] = [field | {"type": named(field["type"], names)} for field in avro["fields"]]
    return avro | own | inner


@pytest.mark.filterwarnings("ignore::avro.errors.IgnoredLogicalType")
@given(types=st.lists(TYPES, min_size=1, max_size=4))
def test_what_is_accepted_has_a_column_and_is_avro_to_every_parser(
    types: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    schema = named(record(*types), iter(range(1000)))
    assert found(schema, tmp_path_factory.getbasetemp()) == []
    fastavro.parse_schema(json.loads(json.dumps(schema)))
    avro.schema.parse(json.dumps(schema))
    columns = [scalar(field["type"]) for field in schema["fields"]]
    assert len(columns) == len(types)
