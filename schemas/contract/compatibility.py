"""Avro compatibility of a contract's versions, as the registry would judge it or more strictly, before anything reaches
the registry."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import avro.schema
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.errors import IgnoredLogicalType

from schemas.contract.named_types import spelled_out


def incompatibilities(versions: Sequence[dict[str, Any]], level: str) -> Iterator[tuple[int, str | None, str]]:
    """Yields each breach of `level` (a compatibility level of Confluent's schema registry) as (index of the newer
    version, its field or None, message). A transitive level compares a version with every older one, the others with
    the one before. What can be read with what follows the schema resolution of the Avro specification.

    One rule is stricter than the registry's, which looks at the bytes alone: what a field means (its logical type,
    precision and scale) may not change, for a reader takes what was written for what it knows. Microseconds read as
    milliseconds are other times. (A field that was renamed by an alias is not compared.)"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IgnoredLogicalType)  # what a logical type means, `_other_meanings` compares
        parsed = [avro.schema.parse(json.dumps(version), validate_names=False) for version in versions]
    for newer in range(1, len(versions)):
        for older in range(newer - 1, -1, -1) if level.endswith("_TRANSITIVE") else (newer - 1,):
            directions = []  # name, reader, writer
            if level.startswith(("BACKWARD", "FULL")):
                directions.append(("backward", newer, older))
            if level.startswith(("FORWARD", "FULL")):
                directions.append(("forward", older, newer))
            for name, what in _other_meanings(versions[newer], versions[older]) if directions else ():
                yield newer, name, f"not compatible: v{newer + 1} and v{older + 1} mean other things by it: {what}"
            for name, reader, writer in directions:
                said = f"not {name} compatible: v{reader + 1} cannot read records of v{writer + 1}"
                for field, what in _faults(parsed[reader], parsed[writer], versions[reader]):
                    yield newer, field, f"{said}: {what}"


def other_columns(versions: Sequence[dict[str, Any]]) -> Iterator[tuple[int, str, str]]:
    """Yields (index of the version, field, message) for each field that has another column type in a version than in
    the newest one before which has it: tables keep the type that a column had first, whatever Avro could read."""
    columns: dict[str, tuple[int, str]] = {}
    for index, version in enumerate(versions):
        for field in spelled_out(version)["fields"]:
            name, now = field["name"], _column(field["type"])
            before, was = columns.get(name, (index, now))
            if was != now:
                yield (
                    index,
                    name,
                    f"v{before + 1} has {was} and v{index + 1} has {now}, and tables keep the type that a column had "
                    f"first: give the field another name in v{index + 1}",
                )
            columns[name] = index, now


def _column(avro: Any) -> str:
    """The type of the column of a field, in the words of Avro. Whether it may be null makes no difference."""
    match avro:
        case [*branches]:
            return " or ".join(_column(branch) for branch in branches if branch != "null")
        case {"logicalType": "timestamp-micros" | "timestamp-millis"}:
            return "timestamp"
        case {"logicalType": "date"}:
            return "date"
        case {"logicalType": "decimal"}:
            return _meaning(avro)
        case {"type": "record", "fields": fields}:
            columns = (f"{field['name']}: {_column(field['type'])}" for field in fields)
            return f"record<{', '.join(columns)}>"
        case {"items": inner}:
            return f"array<{_column(inner)}>"
        case {"values": inner}:
            return f"map<{_column(inner)}>"
        case {"type": inner}:
            return _column(inner)
        case _:
            return {"enum": "string", "fixed": "bytes"}.get(avro, str(avro))


def _other_meanings(newer: dict[str, Any], older: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (top-level field, what differs) for each path that both versions have, with another logical type."""
    now, before = dict(_meanings(newer, {})), dict(_meanings(older, {}))
    for path in sorted(now.keys() & before.keys()):
        if now[path] != before[path]:
            yield path[0], f"{now[path]} and {before[path]} at {'.'.join(path[:-1])}"


def _meanings(schema: Any, named: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yields each path in a schema (the names of the fields that lead to a value, and the value's Avro type, of which a
    union has each once) with the logical type there, 'plain' if there is none. `named` collects the named types."""
    match schema:
        case [*branches]:
            for branch in branches:
                yield from _meanings(branch, named, path)
        case {"type": "record", "fields": fields}:
            named[schema["name"]] = schema["name"]  # one that holds itself is not followed
            for field in fields:
                yield from _meanings(field["type"], named, (*path, field["name"]))
            named[schema["name"]] = schema
        case {"type": "array", "items": inner} | {"type": "map", "values": inner}:
            yield from _meanings(inner, named, (*path, "*"))
        case {"type": str(base)}:
            if "name" in schema:
                named[schema["name"]] = schema
            yield (*path, base), _meaning(schema)
        case {"type": inner}:
            yield from _meanings(inner, named, path)
        case str() if isinstance(named.get(schema), dict):
            yield from _meanings(named[schema], named, path)
        case str():
            yield (*path, schema), "plain"


def _meaning(schema: dict[str, Any]) -> str:
    match schema.get("logicalType"):
        case "decimal":
            return f"decimal({schema.get('precision')}, {schema.get('scale', 0)})"
        case logical:
            return logical or "plain"


def _faults(reader: Any, writer: Any, schema: dict[str, Any]) -> Iterator[tuple[str | None, str]]:
    result = ReaderWriterCompatibilityChecker().get_compatibility(reader, writer)  # type: ignore[no-untyped-call]
    if result.compatibility is SchemaCompatibilityType.compatible:
        return
    faults: dict[str | None, str] = {}  # one a field, at its innermost location
    for location in sorted(result.locations):  # such as /fields/1/type
        steps = location.strip("/").split("/")
        index = int(steps[1]) if len(steps) > 1 and steps[0] == "fields" and steps[1].isdigit() else None
        faults[schema["fields"][index]["name"] if index is not None else None] = location
    if len(faults) > 1:
        faults.pop(None, None)
    for field, location in faults.items():
        yield field, _explanation(result, field, location)


def _explanation(result: Any, field: str | None, location: str) -> str:
    if field is not None and field in result.messages:  # the library names just the field when its default is missing
        return f"field {field} has no default and the other version does not have it"
    messages = sorted(str(message) for message in result.messages)
    kinds = ", ".join(sorted({kind.value.replace("_", " ") for kind in result.incompatibilities}))
    return f"{kinds} at {location} ({'; '.join(messages)})"
