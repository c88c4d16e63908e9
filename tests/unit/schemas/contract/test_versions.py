"""Over the versions of a schema a field keeps the type of its column: what Avro promotes, tables do not."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from avro.schema import parse

from schemas.contract.catalog import load
from schemas.contract.check import check
from tests.support.whole_way import avro, written

POINT: dict[str, Any] = {"type": "record", "name": "P", "fields": [{"name": "x", "type": "int"}]}
WIDER = {"type": "record", "name": "P", "fields": [{"name": "x", "type": "long"}]}
MORE = {**POINT, "fields": [*POINT["fields"], {"name": "y", "type": "int", "default": 0}]}
SYMBOLS = [{"type": "enum", "name": "E", "symbols": ["A", *more], "default": "A"} for more in ([], ["B"])]

CHANGED: list[tuple[Any, Any]] = [
    *permutations(["int", "long", "float", "double"], 2),
    *permutations(["string", "bytes"], 2),
    (POINT, WIDER), (POINT, MORE), ({"type": "array", "items": "int"}, {"type": "array", "items": "long"}),
    ({"type": "map", "values": "int"}, {"type": "map", "values": "double"}), (["null", "int"], ["null", "long"]),
]  # fmt: skip
KEPT: list[tuple[Any, Any]] = [
    ("int", "int"), (["null", "int"], "int"), ("int", ["null", "int"]), ("string", {"type": "string"}),
    (SYMBOLS[0], SYMBOLS[1]), (POINT, POINT),
]  # fmt: skip


def versions(root: Path, types: tuple[Any, ...], form: Any, compatibility: str) -> list[str]:
    schemas = [avro("changes", {"name": "n", "type": type_}) for type_ in types]
    folder = written(root, "changes", schemas, {"n": form}, compatibility=compatibility)
    problems = check(root)
    assert {problem.file for problem in problems} <= {folder / f"v{len(types)}.avsc"}
    assert all(problem.field == "n" and problem.line > 1 for problem in problems)
    return [problem.message for problem in problems]


def form_of(avro_type: Any) -> Any:
    match avro_type:
        case [_, inner]:
            return form_of(inner)
        case {"fields": fields}:
            return {field["name"]: form_of(field["type"]) for field in fields}
        case {"items": inner}:
            return [form_of(inner)]
        case {"values": inner}:
            return {"k": form_of(inner)}
        case {"symbols": _}:
            return "A"
        case {"type": inner}:
            return form_of(inner)
    return {"string": "00", "bytes": "00"}.get(avro_type, 1)


@pytest.mark.parametrize("compatibility", ["BACKWARD", "NONE"])
@pytest.mark.parametrize(("older", "newer"), CHANGED, ids=lambda it: str(it)[:30])
def test_a_field_whose_column_would_change_is_refused(
    older: Any, newer: Any, compatibility: str, tmp_path: Path
) -> None:
    [message] = versions(tmp_path, (older, newer), form_of(newer), compatibility)
    assert "not backward compatible" in message or "another name" in message
    assert compatibility == "BACKWARD" or "another name" in message


@pytest.mark.parametrize(("older", "newer"), KEPT, ids=lambda it: str(it)[:30])
def test_a_field_whose_column_stays_is_accepted(older: Any, newer: Any, tmp_path: Path) -> None:
    assert versions(tmp_path, (older, newer), form_of(newer), "NONE") == []


def test_a_change_is_found_over_versions_that_lack_the_field(tmp_path: Path) -> None:
    one, other = ({"name": "n", "type": type_} for type_ in ("int", "long"))
    schemas = [avro("changes", *fields) for fields in ([one], [], [other])]
    written(tmp_path, "changes", schemas, {"n": 1}, compatibility="NONE")
    [problem] = check(tmp_path)
    assert "v1 has int and v3 has long" in problem.message


def test_the_reader_defines_a_type_once_that_removed_fields_share_with_others(tmp_path: Path) -> None:
    other = {"type": "record", "name": "P", "fields": [{"name": "z", "type": "string"}]}
    first = avro("changes", {"name": "a", "type": POINT}, {"name": "b", "type": "P"})
    second = avro("changes", {"name": "b", "type": POINT}, {"name": "c", "type": ["null", "P"], "default": None})
    third = avro("changes", {"name": "d", "type": ["null", other], "default": None})
    folder = written(tmp_path, "changes", [first, second, third], {}, compatibility="NONE")
    contract = load(folder)
    parse(json.dumps(contract.reader))
    assert list(contract.columns) == ["at", "id", "d", "a", "b", "c"]
    assert all(contract.columns[name][1]["fields"] == POINT["fields"] for name in "abc")
    assert contract.columns["d"][1]["fields"] == other["fields"]
