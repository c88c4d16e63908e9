"""A contract's examples: `examples/good/*.json` are records that the ingest must accept, `examples/bad/*.json` records
that it must turn away, each with the reason.

A good example is the record itself. A bad one is `{"error_class": …, "record": …}` with either `"rule"` (the first rule
that the record breaks) or `"fault"` (`bad_magic`, `truncated`, `unknown_schema`: how its bytes are broken); or, for a
value caught in the wild, `"value_hex"` in place of the record. Timestamps are ISO-8601 with an offset or `Z`. In an
example's bytes the schema id is the number of the version: 1 for `v1.avsc`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
from fastavro.validation import ValidationError, validate
from pydantic import BaseModel, ConfigDict, model_validator
from pydantic import ValidationError as ShapeError

from schemas.contract.document import Document, read_json
from schemas.contract.field_kinds import from_json, kind
from schemas.contract.model import Contract, ErrorClass
from schemas.contract.problem import ContractError, Problem
from schemas.wire import Fault, broken, header


class Misfit(ValueError):
    """A record does not fit the schema; `field` is the one that does not, None if no single field is to blame."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class Bad(BaseModel):
    """The shape of a file in `examples/bad`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    error_class: ErrorClass
    record: dict[str, Any] | None = None
    rule: str | None = None
    fault: Fault | None = None
    value_hex: str | None = None
    note: str = ""

    @model_validator(mode="after")
    def _shape(self) -> Bad:
        if (self.record is None) == (self.value_hex is None):
            raise ValueError("give either record or value_hex")
        if (self.rule is not None) != (self.error_class == "rule"):
            raise ValueError("rule belongs to error_class rule, and error_class rule needs it")
        if self.record is not None and (self.rule is None) == (self.fault is None):
            raise ValueError("a record needs either rule or fault: what is wrong with it")
        return self


@dataclass(frozen=True)
class Example:
    """One example: its bytes as a Kafka value, and the verdict it must get (without the reason of a decoding error)."""

    file: Path
    value: bytes
    record: dict[str, Any] | None
    error_class: ErrorClass | None
    rule: str | None


def encode(contract: Contract, record: Mapping[str, Any]) -> bytes:
    """Returns the Avro body of `record` in the newest version. Fields that it lacks get their defaults. Raises `Misfit`
    naming what does not fit, also fields that the schema does not have."""
    if unknown := sorted(set(record) - set(contract.fields)):
        raise Misfit(f"unknown field {', '.join(unknown)}", unknown[0])
    schema = fastavro.parse_schema(contract.schema_now)
    fields = contract.schema_now["fields"]
    complete = {f["name"]: _default(f) for f in fields if "default" in f} | dict(record)
    if missing := sorted(set(contract.fields) - set(complete)):
        raise Misfit(f"missing field {', '.join(missing)}")
    try:
        validate(complete, schema, raise_errors=True)
    except ValidationError as error:
        wrong = error.errors[0]
        field = str(wrong.field).removeprefix(f"{_full_name(contract.schema_now)}.")
        allowed = " or ".join(dict.fromkeys(_type(fault.schema) for fault in error.errors))
        raise Misfit(f"{field} is {json.dumps(wrong.datum, default=str)}, but must be {allowed}", field) from error
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, schema, complete)
    return buffer.getvalue()


def _default(field: Mapping[str, Any]) -> Any:
    """The default of a field as a value: Avro writes those of bytes as text, a character a byte."""
    value = field["default"]
    is_bytes = isinstance(value, str) and kind(field["type"]) in ("bytes", "decimal")
    return value.encode("latin-1") if is_bytes else value


def _type(avro: Any) -> str:
    if isinstance(avro, list):
        return " or ".join(map(_type, avro))
    return str(avro.get("logicalType") or avro["type"]) if isinstance(avro, dict) else str(avro)


def _full_name(schema: Mapping[str, Any]) -> str:
    name = str(schema["name"])
    return name if "." in name or "namespace" not in schema else f"{schema['namespace']}.{name}"


def good(contract: Contract) -> list[Example]:
    """The contract's good examples by name. Raises `ContractError` with every problem."""
    return _all(contract, "good")


def bad(contract: Contract) -> list[Example]:
    """The contract's bad examples by name. Raises `ContractError` with every problem."""
    return _all(contract, "bad")


def _all(contract: Contract, sort: str) -> list[Example]:
    examples: list[Example] = []
    problems: list[Problem] = []
    for path in sorted((contract.folder / "examples" / sort).glob("*.json")):
        try:
            document = read_json(path)
            examples.append(_good(contract, document) if sort == "good" else _bad(contract, document))
        except ContractError as error:
            problems += error.problems
    if problems:
        raise ContractError(problems)
    return examples


def _good(contract: Contract, document: Document) -> Example:
    record, value = _record(contract, document, ())
    return Example(document.path, value, record, None, None)


def _bad(contract: Contract, document: Document) -> Example:
    try:
        shape = Bad.model_validate(document.data)
    except ShapeError as error:
        raise ContractError(
            [document.problem(e["loc"], e["msg"].removeprefix("Value error, ")) for e in error.errors()]
        ) from error
    if shape.record is not None:
        record, value = _record(contract, document, ("record",))
        return Example(
            document.path, broken(value, shape.fault) if shape.fault else value, record, shape.error_class, shape.rule
        )
    try:
        value = bytes.fromhex(shape.value_hex or "")
    except ValueError as error:
        raise ContractError([document.problem(("value_hex",), str(error))]) from error
    return Example(document.path, value, None, shape.error_class, shape.rule)


def _record(contract: Contract, document: Document, loc: tuple[str, ...]) -> tuple[dict[str, Any], bytes]:
    raw = document.data
    for step in loc:
        raw = raw[step]
    if not isinstance(raw, dict):
        raise ContractError([document.problem(loc, "must be a record: an object of fields")])
    try:
        record = from_json(contract.fields, raw)
        return record, header(len(contract.versions)) + encode(contract, record)
    except ValueError as error:
        named = getattr(error, "field", None) or next((name for name in raw if str(error).startswith(f"{name} ")), None)
        raise ContractError([document.problem((*loc, named) if named else loc, str(error))]) from error


def _text(message: str) -> str:
    return message.removeprefix("Value error, ")
