"""What the Avro type of a field means for the platform: whether it may be null, and whether it is a number, a time or a
dimension."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
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
    "timestamp": "TIMESTAMPTZ", "date": "DATE", "time": "TIME",
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


def from_json(fields: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the JSON `record` as Python values for Avro. Its timestamps and dates are ISO-8601 strings, timestamps
    with an offset or `Z`. Raises ValueError for a date or a timestamp that is not ISO-8601, and for a timestamp without
    a time zone. Fields that the contract does not have are passed on as they are."""
    return {name: _value(kind(fields[name]), name, v) if name in fields else v for name, v in record.items()}


def _value(what: Kind, name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if what == "date":
        try:
            return date.fromisoformat(value)
        except ValueError as error:
            raise ValueError(f"{name} must be an ISO-8601 date such as 2013-01-01, not {value!r}") from error
    if what != "timestamp":
        return value
    try:
        instant = datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError(f"{name} must be an ISO-8601 timestamp such as 2013-01-01T10:15:00Z, not {value!r}") from error
    if instant.tzinfo is None:
        raise ValueError(f"{name} is {value!r} without an offset; write the instant in UTC with a Z")
    return instant
