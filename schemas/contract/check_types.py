"""Whether the lake can hold what an Avro schema declares: each type has a column, and each column a name of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from schemas.contract.document import Document, Step
from schemas.contract.named_types import PRIMITIVES, full_name, namespace_of, of_definition
from schemas.contract.problem import Problem
from schemas.contract.wide_decimals import digits_of_fixed

MAX_PRECISION = 38
"""Digits of a decimal that Spark and Delta hold at most."""

DURATION_BYTES = 12

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
NO_NAME = "is no name in Avro: letters a to z in both cases, digits and _, and no digit first"

Loc = tuple[Step, ...]


def problems(document: Document) -> Iterator[Problem]:
    """Yields the problems of the record schema in `document`, which is an Avro schema already, at any depth of it."""
    yield from _record(document, document.data, (), ("",))


def _record(document: Document, avro: dict[str, Any], loc: Loc, within: tuple[str, ...]) -> Iterator[Problem]:
    """`within` are the full names of the records around this one, after the empty one of no record."""
    own = of_definition(avro, namespace_of(within[-1]))
    yield from _type_name(document, avro, loc)
    fields = avro.get("fields") or []
    if not fields:
        yield document.problem(loc, f"record {avro.get('name')!r} has no fields, and the lake no column for that")
    first: dict[str, str] = {}
    for index, field in enumerate(fields):
        at = (*loc, "fields", index)
        name = field["name"]
        if not NAME.fullmatch(name):
            yield document.problem((*at, "name"), f"{name!r} {NO_NAME}")
        if (before := first.setdefault(name.lower(), name)) != name:
            yield document.problem(
                (*at, "name"),
                f"{name!r} differs from {before!r} only in case, and Delta does not tell such columns apart",
            )
        elif sum(other["name"] == name for other in fields[:index]):
            yield document.problem((*at, "name"), f"{name!r} is defined twice")
        yield from _type(document, field["type"], (*at, "type"), (*within, own))


def _type(document: Document, avro: Any, loc: Loc, within: tuple[str, ...]) -> Iterator[Problem]:
    match avro:
        case list():
            others = [(index, branch) for index, branch in enumerate(avro) if branch != "null"]
            if len(others) != 1:
                kinds = ", ".join(_named(branch) for branch in avro)
                yield document.problem(
                    loc, f"a union may only add null to one type, and this one is of {kinds}; use a field for each type"
                )
            for index, branch in others:
                yield from _type(document, branch, (*loc, index), within)
        case "null":
            yield document.problem(loc, "a field of type null has no value; leave it out, or add a type to it")
        case str():
            if avro not in PRIMITIVES and full_name(avro, namespace_of(within[-1])) in within:
                yield document.problem(
                    loc,
                    f"a value of type {avro!r} may hold another one, to any depth, and the lake has no column for that",
                )
        case {"type": "record" | "error"}:
            yield from _record(document, avro, loc, within)
        case {"type": "array", "items": items}:
            yield from _type(document, items, (*loc, "items"), within)
        case {"type": "map", "values": values}:
            yield from _type(document, values, (*loc, "values"), within)
        case {"type": "enum" | "fixed"}:
            yield from _type_name(document, avro, loc)
            yield from _logical(document, avro, loc)
        case {"type": inner}:
            yield from _type(document, inner, (*loc, "type"), within)
            yield from _logical(document, avro, loc)


def _type_name(document: Document, avro: dict[str, Any], loc: Loc) -> Iterator[Problem]:
    for key in ("name", "namespace"):
        if not all(NAME.fullmatch(part) for part in str(avro.get(key) or "_").split(".")):
            yield document.problem((*loc, key), f"{avro[key]!r} {NO_NAME}")


BASES: dict[str, tuple[str, ...]] = {
    "decimal": ("bytes", "fixed"), "date": ("int",), "time-millis": ("int",), "time-micros": ("long",),
    "timestamp-millis": ("long",), "timestamp-micros": ("long",), "uuid": ("string",), "duration": ("fixed",),
}  # fmt: skip
"""The types that each logical type may annotate. On others Avro ignores it, and each reader takes it for something
else."""


def _logical(document: Document, avro: dict[str, Any], loc: Loc) -> Iterator[Problem]:
    logical, base = avro.get("logicalType"), avro["type"]
    if logical in BASES and base not in BASES[logical]:
        yield document.problem(loc, f"{_article(logical)} must be of type {' or '.join(BASES[logical])}, not {base}")
    elif logical == "decimal":
        yield from _decimal(document, avro, loc)
    elif logical == "duration" and avro["size"] != DURATION_BYTES:
        yield document.problem(loc, f"a duration has {DURATION_BYTES} bytes, not {avro['size']}")
    elif str(logical).startswith("local-timestamp-"):
        yield document.problem(
            loc, f"{logical} says no instant, and the lake has instants alone; use timestamp-micros, or a string"
        )


def _article(logical: str) -> str:
    return f"a {logical}" if logical in ("decimal", "date", "uuid", "duration") else logical


def _decimal(document: Document, avro: dict[str, Any], loc: Loc) -> Iterator[Problem]:
    precision, scale = avro.get("precision"), avro.get("scale", 0)
    if not (isinstance(precision, int) and isinstance(scale, int) and 0 <= scale <= precision and precision > 0):
        yield document.problem(loc, f"a decimal has a precision above 0 and a scale from 0 to that: {avro}")
    elif precision > MAX_PRECISION:
        yield document.problem(
            loc, f"a decimal of {precision} digits is more than the {MAX_PRECISION} that the lake holds"
        )
    elif avro["type"] == "fixed" and precision > (most := digits_of_fixed(avro["size"])):
        yield document.problem(loc, f"{avro['size']} bytes hold decimals of {most} digits, not of {precision}")


def _named(avro: Any) -> str:
    if isinstance(avro, dict):
        return str(avro.get("logicalType") or avro.get("name") or avro["type"])
    return str(avro)
