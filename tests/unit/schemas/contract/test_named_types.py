"""A type that is used again by its name is what it was defined as, in every version and in every namespace."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

import avro.schema
import fastavro
from hypothesis import given
from hypothesis import strategies as st

from schemas.contract.named_types import defined_once, spelled_out, with_full_names

NAMES = st.sampled_from(["A", "B", "C"])
SPACES = st.sampled_from([None, "x", "x.y"])


@st.composite
def schemas(draw: st.DrawFn) -> dict[str, Any]:
    """Records of records, whose later fields use types of earlier ones by name."""
    known: list[str] = []
    spaces: list[str] = [""]

    def type_(depth: int, namespace: str) -> Any:
        if known and bool(draw(st.integers(0, 1))):
            name: str = draw(st.sampled_from(known))
            return name.rpartition(".")[2] if name.rpartition(".")[0] == namespace else name
        if depth == 0:
            return draw(st.sampled_from(["int", "string", {"type": "array", "items": "long"}]))
        mine = draw(SPACES)
        full = f"{namespace if mine is None else mine}.N{len(known) + len(spaces)}".lstrip(".")
        spaces.append(full)
        fields = [
            {"name": f"f{n}", "type": type_(depth - 1, full.rpartition(".")[0])} for n in range(draw(st.integers(1, 3)))
        ]
        known.append(full)
        record = {"type": "record", "name": full.rpartition(".")[2], "fields": fields}
        return record | ({} if mine is None else {"namespace": mine})

    top = draw(st.sampled_from(["x", "z"]))
    fields = [{"name": f"f{n}", "type": type_(2, top)} for n in range(4)]
    return {"type": "record", "name": "R", "namespace": top, "fields": fields}


def value(avro_type: Any, number: int) -> Any:
    match avro_type:
        case "int" | "long":
            return number
        case "string":
            return str(number)
        case {"items": inner}:
            return [value(inner, number)]
        case {"fields": fields}:
            return {field["name"]: value(field["type"], number + n) for n, field in enumerate(fields)}
    raise AssertionError(avro_type)


@given(schema=schemas())
def test_what_is_spelled_out_has_no_names_and_means_the_same(schema: dict[str, Any]) -> None:
    before = copy.deepcopy(schema)
    spelled = spelled_out(schema)
    record = value(spelled, 1)  # fails for a name that is left
    assert schema == before
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(copy.deepcopy(schema)), record)
    once = defined_once(with_full_names(schema))
    avro.schema.parse(json.dumps(once))
    body.seek(0)
    parsed = fastavro.parse_schema(copy.deepcopy(schema)), fastavro.parse_schema(once)
    assert fastavro.schemaless_reader(body, *parsed) == record


def test_a_type_that_holds_itself_keeps_its_name() -> None:
    node = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}
    schema = {"type": "record", "name": "R", "namespace": "x", "fields": [{"name": "n", "type": node}]}
    [field] = spelled_out(schema)["fields"]
    assert field["type"]["fields"][0]["type"] == ["null", "Node"]
