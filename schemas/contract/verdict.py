"""The verdict that the ingest must give on a record, found by independent means: fastavro and DuckDB, not Spark."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal

import fastavro

from schemas.contract.model import TOMBSTONE, TOMBSTONE_REASON, Contract, ErrorClass
from schemas.contract.named_types import spelled_out
from schemas.contract.predicates import Rules
from schemas.contract.wide_decimals import widened
from schemas.wire import HEADER, schema_id

_EVERY_DIGIT = 10_000
"""More digits than a decimal of a record has."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of a record: accepted (`error_class` None, with the `record`), a dead letter with a reason, or a
    tombstone that is skipped."""

    error_class: ErrorClass | Literal["tombstone"] | None
    rule: str | None = None
    reason: str | None = None
    record: dict[str, Any] | None = None


class Judge:
    """Gives the verdict that examples and tests expect of the ingest. `writer_schemas` maps schema ids to Avro schemas;
    by default they are the contract's versions, with ids from 1."""

    def __init__(self, contract: Contract, writer_schemas: Mapping[int, Mapping[str, Any]] | None = None) -> None:
        schemas = dict(enumerate(contract.versions, 1)) if writer_schemas is None else writer_schemas
        self._writer_schemas = {number: _parsed(schema) for number, schema in schemas.items()}
        self._reader = _parsed(contract.schema_now)
        self._declared = spelled_out(contract.schema_now)
        self._rules = Rules(contract)
        self._tombstone = Verdict(TOMBSTONE if contract.tombstones == "skip" else "malformed", reason=TOMBSTONE_REASON)

    def verdict(self, value: bytes | None) -> Verdict:
        """Returns what the ingest must make of `value`, the bytes of a Kafka record. Raises nothing for bad bytes."""
        if value is None:
            return self._tombstone
        if (number := schema_id(value)) is None:
            return Verdict("malformed", reason="no Confluent header")
        if number not in self._writer_schemas:
            return Verdict("unknown_schema", reason=f"schema id {number} is unknown")
        try:
            body = io.BytesIO(value[HEADER.size :])
            record: Any = fastavro.schemaless_reader(body, self._writer_schemas[number], self._reader)
        except Exception as error:  # a decoder of arbitrary bytes may raise anything
            return Verdict("malformed", reason=f"not Avro of schema {number}: {error}")
        if too_long := next(_too_long(self._declared, record), None):
            return Verdict("malformed", reason=f"{too_long} has more digits than its type")
        record = _as_stored(self._declared, record)
        for rule in self._rules.broken(record):
            return Verdict("rule", rule.name, rule.reason, record)
        return Verdict(None, record=record)


def _parsed(schema: Mapping[str, Any]) -> Any:
    """The schema with room in its decimals, because fastavro rounds to the digits of the type."""
    return fastavro.parse_schema(widened(dict(schema), _EVERY_DIGIT))


def _too_long(avro: Any, value: Any, path: str = "the record") -> Iterator[str]:
    """Yields where a decoded value has a decimal with more digits than its type."""
    match avro:
        case {"logicalType": "decimal", "precision": digits}:
            if isinstance(value, Decimal) and len(value.as_tuple().digits) > digits:
                yield path
        case {"fields": fields} if value is not None:
            for field in fields:
                yield from _too_long(field["type"], value[field["name"]], field["name"])
        case {"items": inner} | {"values": inner} if value is not None:
            for item in value.values() if isinstance(value, dict) else value:
                yield from _too_long(inner, item, path)
        case {"type": dict() as inner}:
            yield from _too_long(inner, value, path)
        case [*branches]:
            for branch in branches:
                yield from _too_long(branch, value, path)


def _as_stored(avro: Any, value: Any) -> Any:
    """A decoded value as its column has it: null for NaN, which means that a number is missing, and times of the day as
    numbers."""
    match avro, value:
        case _, float() if math.isnan(value):
            return None
        case [*branches], _:
            others = [branch for branch in branches if branch != "null"]
            return _as_stored(others[0], value) if len(others) == 1 else value
        case {"fields": fields}, dict():
            return {field["name"]: _as_stored(field["type"], value[field["name"]]) for field in fields}
        case {"items": inner}, list():
            return [_as_stored(inner, item) for item in value]
        case {"values": inner}, dict():
            return {key: _as_stored(inner, item) for key, item in value.items()}
        case {"logicalType": "time-millis" | "time-micros" as unit}, time():
            passed = datetime.combine(date.min, value) - datetime.combine(date.min, time.min)
            return passed // timedelta(**{"milliseconds" if unit == "time-millis" else "microseconds": 1})
        case {"type": (dict() | list()) as inner}, _:
            return _as_stored(inner, value)
        case _:
            return value
