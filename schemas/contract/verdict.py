"""The verdict that the ingest must give on a record, found by independent means: fastavro and DuckDB, not Spark."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fastavro

from schemas.contract.model import Contract, ErrorClass
from schemas.contract.predicates import Rules
from schemas.wire import HEADER, schema_id


@dataclass(frozen=True)
class Verdict:
    """What becomes of a record: accepted (`error_class` None, with the `record`), or a dead letter with a reason."""

    error_class: ErrorClass | None
    rule: str | None = None
    reason: str | None = None
    record: dict[str, Any] | None = None


class Judge:
    """Gives the verdict that examples and tests expect of the ingest. `writer_schemas` maps schema ids to Avro schemas;
    by default they are the contract's versions, with ids from 1."""

    def __init__(self, contract: Contract, writer_schemas: Mapping[int, Mapping[str, Any]] | None = None) -> None:
        schemas = dict(enumerate(contract.versions, 1)) if writer_schemas is None else writer_schemas
        self._writer_schemas = {number: fastavro.parse_schema(dict(schema)) for number, schema in schemas.items()}
        self._reader = fastavro.parse_schema(contract.schema_now)
        self._rules = Rules(contract)

    def verdict(self, value: bytes | None) -> Verdict:
        """Returns what the ingest must make of `value`, the bytes of a Kafka record. Raises nothing for bad bytes."""
        if value is None or (number := schema_id(value)) is None:
            return Verdict("malformed", reason="no Confluent header")
        if number not in self._writer_schemas:
            return Verdict("unknown_schema", reason=f"schema id {number} is unknown")
        try:
            body = io.BytesIO(value[HEADER.size :])
            record: Any = fastavro.schemaless_reader(body, self._writer_schemas[number], self._reader)
        except Exception as error:  # a decoder of arbitrary bytes may raise anything
            return Verdict("malformed", reason=f"not Avro of schema {number}: {error}")
        for rule in self._rules.broken(record):
            return Verdict("rule", rule.name, rule.reason, record)
        return Verdict(None, record=record)
