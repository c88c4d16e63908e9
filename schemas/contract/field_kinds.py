"""What the Avro type of a field means for the platform: whether it may be null, and whether it is a number, a time or a
dimension."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal, InvalidOperation, localcontext
from typing import Any, Literal

Kind = Literal["integer", "float", "decimal", "string", "bytes", "boolean", "timestamp", "date", "time", "nested"]

_PRIMITIVES: dict[str, Kind] = {
    "int": "integer", "long": "integer", "float": "float", "double": "float", "string": "string", "enum": "string",
    "bytes": "bytes", "fixed": "bytes", "boolean": "boolean",
}  # fmt: skip
_LOGICAL: dict[str, Kind] = {
    "timestamp-millis": "timestamp", "timestamp-micros": "timestamp", "date": "date", "decimal": "decimal",
    "time-millis": "time", "time-micros": "time", "uuid": "string",
}  # fmt: skip

_DUCKDB: dict[Kind, str] = {
    "integer": "BIGINT", "float": "DOUBLE", "string": "VARCHAR", "bytes": "BLOB", "boolean": "BOOLEAN",
    "timestamp": "TIMESTAMPTZ", "date": "DATE", "time": "BIGINT",
}  # fmt: skip

NUMERIC: frozenset[Kind] = frozenset({"integer", "float", "decimal"})
DIMENSION: frozenset[Kind] = frozenset({"integer", "decimal", "string", "boolean", "date", "timestamp"})
"""Kinds that group: floats do not, because equal numbers may differ in their last bit."""
ORDERED: frozenset[Kind] = NUMERIC | {"string", "date", "timestamp", "boolean"}


def nullable(avro: Any) -> bool:
    """Whether null is among the type's values."""
    return avro == "null" or (isinstance(avro, list) and any(nullable(branch) for branch in avro))


def logical_type(avro: Any) -> str | None:
    """Avro's logical type of a field that is not nullable, or None."""
    return avro.get("logicalType") if isinstance(avro, dict) else None


def precision(avro: Any) -> int | None:
    """The digits of a decimal type, nullable or not; None for any other type."""
    if isinstance(avro, list):
        others = [branch for branch in avro if branch != "null"]
        return precision(others[0]) if len(others) == 1 else None
    return int(avro["precision"]) if kind(avro) == "decimal" else None


def _scale(avro: Any) -> int:
    if isinstance(avro, list):
        return next(_scale(branch) for branch in avro if branch != "null")
    return int(avro.get("scale", 0))


def duckdb_type(avro: Any) -> str | None:
    """The DuckDB type that holds the values of an Avro type; None for nested types, which are inferred from the
    value."""
    if kind(avro) == "decimal":
        return f"DECIMAL({precision(avro)}, {_scale(avro)})"
    return _DUCKDB.get(kind(avro))


def kind(avro: Any) -> Kind:
    """The kind of the type's values other than null; a union of several other types is `nested`."""
    if isinstance(avro, list):
        others = [branch for branch in avro if branch != "null"]
        return kind(others[0]) if len(others) == 1 else "nested"
    if isinstance(avro, dict):
        return _LOGICAL.get(avro.get("logicalType", "")) or kind(avro["type"])
    return _PRIMITIVES.get(avro, "nested")


JSON_FORMS: dict[str, str] = {
    "integer": "number without a fraction", "float": 'number, or `"NaN"`, `"Infinity"`, `"-Infinity"`',
    "decimal": 'text such as `"12.34"`, or a number without a fraction', "string": "text", "boolean": "true or false",
    "bytes": "text of hexadecimal digits", "date": "text, ISO 8601", "nested": "as its parts",
    "timestamp": "text, ISO 8601 with an offset or `Z`",
    "time": "number since midnight, or text such as `10:15:00.123`",
}  # fmt: skip
"""How the values of each kind are written in JSON: in examples, in files of records, in letters that are edited."""


def from_json(fields: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the JSON `record` as Python values for Avro, at any depth, from the forms of `JSON_FORMS`. Raises
    ValueError, whose message begins with the name of the field, for what is not in its form or does not fit its type.
    Values of other JSON types, and fields that the contract does not have, are passed on as they are."""
    return {name: _value(fields[name], name, value) if name in fields else value for name, value in record.items()}


def _value(avro: Any, name: str, value: Any) -> Any:
    match avro, value:
        case _, None:
            return None
        case [*branches], _:
            others = [branch for branch in branches if branch != "null"]
            return _value(others[0], name, value) if len(others) == 1 else value
        case {"type": "record", "fields": fields}, dict():
            return from_json({field["name"]: field["type"] for field in fields}, value)
        case {"type": "array", "items": inner}, list():
            return [_value(inner, name, item) for item in value]
        case {"type": "map", "values": inner}, dict():
            return {key: _value(inner, name, item) for key, item in value.items()}
        case {"type": (dict() | list()) as inner}, _ if "logicalType" not in avro:
            return _value(inner, name, value)
    if kind(avro) == "decimal":
        return _decimal(avro, name, value)
    return _from_text(kind(avro), name, value) if isinstance(value, str) else value


def _from_text(what: Kind, name: str, text: str) -> Any:
    match what:
        case "date":
            return _parsed(date.fromisoformat, name, text, "an ISO-8601 date such as 2013-01-01")
        case "timestamp":
            instant = _parsed(datetime.fromisoformat, name, text, "an ISO-8601 timestamp such as 2013-01-01T10:15:00Z")
            if instant.tzinfo is None:
                raise ValueError(f"{name} is {text!r} without an offset; write the instant in UTC with a Z")
            return instant
        case "time":
            return _parsed(time.fromisoformat, name, text, "a time of the day such as 10:15:00.123")
        case "bytes":
            return _parsed(bytes.fromhex, name, text, "hexadecimal digits such as 00ff, two a byte")
        case "float" if text in ("NaN", "Infinity", "-Infinity"):
            return float(text)
    return text


def _parsed(parse: Callable[[str], Any], name: str, text: str, form: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{name} must be {form}, not {text!r}") from error


def _decimal(avro: Any, name: str, value: Any) -> Decimal:
    """The decimal with the scale of its type, exactly."""
    form = f'a decimal of {avro["precision"]} digits, {_scale(avro)} of them behind the point, as text such as "12.34"'
    if isinstance(value, bool) or not isinstance(value, (str, int)):  # a float may be another number than was meant
        raise ValueError(f"{name} must be {form}, not {value!r}")
    try:
        found = Decimal(value)
    except InvalidOperation as error:
        raise ValueError(f"{name} must be {form}, not {value!r}") from error
    if not found.is_finite() or found.adjusted() > avro["precision"]:
        raise ValueError(f"{name} must be {form}, not {value!r}")
    with localcontext() as context:
        context.prec = 2000
        units = found.scaleb(_scale(avro))
        if units != int(units) or abs(units) >= 10 ** avro["precision"]:
            raise ValueError(f"{name} must be {form}, not {value!r}")
        return Decimal(int(units)).scaleb(-_scale(avro))
