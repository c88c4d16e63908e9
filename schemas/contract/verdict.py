"""What the ingest must make of a record, found by independent means: fastavro and DuckDB instead of Spark."""

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
    """The ingest's verdict by independent means (fastavro and DuckDB instead of Spark): the expectation of examples
    and tests. `writers` maps schema ids to Avro schemas; by default the contract's versions from 1."""

    def __init__(self, contract: Contract, writers: Mapping[int, Mapping[str, Any]] | None = None) -> None:
        writers = dict(enumerate(contract.versions, 1)) if writers is None else writers
        self._writers = {number: fastavro.parse_schema(dict(schema)) for number, schema in writers.items()}
        self._reader = fastavro.parse_schema(contract.schema_now)
        self._rules = Rules(contract)

    def verdict(self, value: bytes | None) -> Verdict:
        """What the ingest makes of `value`, the bytes of a Kafka record."""
        if value is None or (number := schema_id(value)) is None:
            return Verdict("malformed", reason="no Confluent header")
        if number not in self._writers:
            return Verdict("unknown_schema", reason=f"schema id {number} is unknown")
        try:
            body = io.BytesIO(value[HEADER.size :])
            record: Any = fastavro.schemaless_reader(body, self._writers[number], self._reader)
        except Exception as error:  # a decoder of arbitrary bytes may raise anything
            return Verdict("malformed", reason=f"not Avro of schema {number}: {error}")
        for rule in self._rules.broken(record):
            return Verdict("rule", rule.name, rule.reason, record)
        return Verdict(None, record=record)
