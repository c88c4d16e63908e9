"""Makes Kafka messages of records: the key, and the value in the Confluent wire format with the registry's schema id.

A message carries no timestamp of its own: Kafka's CreateTime stays the moment of sending, so that freshness (from
sending to the served number) can be measured; the event's time is a field of the value.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

import fastavro
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, SchemaRegistryError

from infra.settings import Settings
from producers.sources import Record
from schemas.contract.field_kinds import logical_type
from schemas.contract.model import Contract
from schemas.errors import TerminalError, TransientError
from schemas.wire import header

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class EncodeError(TerminalError):
    """A record does not fit its stream's newest Avro schema."""


class RegistryError(TerminalError):
    """The registry refuses: the subject is not there, or the schema is not compatible with it."""


class RegistryUnavailable(TransientError):
    """The registry does not answer, fails (HTTP 5xx) or has too many requests (429)."""


class Message(NamedTuple):
    """One Kafka message: `key` and `value` bytes, the event's time in microseconds since the epoch, and what it is:
    `event`, or a kind of `producers.inject`."""

    key: bytes
    value: bytes
    event_time: int
    kind: str = "event"


class Codec:
    """Encodes the records of one contract with its newest schema, registered as `schema_id`."""

    def __init__(self, contract: Contract, schema_id: int) -> None:
        self.contract = contract
        self._header = header(schema_id)
        self._schema = fastavro.parse_schema(contract.schema_now)
        millis = logical_type(contract.fields[contract.event_time]) == "timestamp-millis"
        self._micros = 1000 if millis else 1

    def key(self, record: Record) -> bytes:
        """The contract's key fields, joined with '|', in UTF-8."""
        return "|".join([str(record[name]) for name in self.contract.key]).encode()

    def value(self, record: Record) -> bytes:
        """The record's value. Raises `EncodeError` for a missing, unknown or wrong field."""
        buffer = io.BytesIO()
        buffer.write(self._header)
        try:
            fastavro.schemaless_writer(buffer, self._schema, record, strict_allow_default=True)
        except Exception as error:  # fastavro raises whatever the wrong value trips over
            raise EncodeError(
                f"a record does not fit {self.contract.stream} v{len(self.contract.versions)}: "
                f"{type(error).__name__}: {error}: {dict(record)}"
            ) from error
        return buffer.getvalue()

    def event_time(self, record: Record) -> int:
        """The record's event time in microseconds since the epoch. Raises `EncodeError` if it is naive."""
        time = record[self.contract.event_time]
        if isinstance(time, datetime):
            if time.tzinfo is None:
                raise EncodeError(f"{self.contract.event_time} is {time} without a time zone: {dict(record)}")
            return (time - EPOCH) // MICROSECOND
        return int(time) * self._micros

    def messages(self, records: Iterable[Record]) -> Iterator[Message]:
        """The records as messages, in their order. Raises `EncodeError` at the first that does not fit."""
        for record in records:
            value = self.value(record)
            yield Message(self.key(record), value, self.event_time(record))


def registry(settings: Settings) -> SchemaRegistryClient:
    """A client of the schema registry, with the settings' options."""
    return SchemaRegistryClient(settings.registry)


def schema_id(contract: Contract, client: SchemaRegistryClient) -> int:
    """The registry's id of the contract's newest schema, which `provision` alone registers, once the driver reads it.

    Raises `RegistryError` if it is not registered, `RegistryUnavailable` if the registry does not answer.
    """
    schema = Schema(json.dumps(contract.schema_now), "AVRO")
    with _registry_errors(f"subject {contract.subject}"):
        try:
            return int(client.lookup_schema(contract.subject, schema).schema_id)  # type: ignore[arg-type]
        except SchemaRegistryError as error:
            if error.http_status_code != 404:
                raise
    raise RegistryError(
        f"v{len(contract.versions)} of {contract.stream} is not registered under {contract.subject}: `millrace "
        "provision` does it"
    )


def writer_schema(client: SchemaRegistryClient, number: int) -> dict[str, Any] | None:
    """The Avro schema with the id `number`; None if the registry has none. Raises `RegistryError` and
    `RegistryUnavailable`."""
    with _registry_errors(f"schema id {number}"):
        try:
            schema: dict[str, Any] = json.loads(client.get_schema(number).schema_str or "null")
        except SchemaRegistryError as error:
            if error.http_status_code == 404:
                return None
            raise
    return schema


def schema_exists(contract: Contract, client: SchemaRegistryClient) -> Callable[[int], bool]:
    """Returns a function that says whether the schema of an id is registered under the contract's subject, whose
    schemas are what the ingest can read. It asks the registry once, at its first call, which may raise
    `RegistryUnavailable`."""

    @cache
    def registered() -> frozenset[int | None]:
        with _registry_errors(f"subject {contract.subject}"):
            try:
                versions = client.get_versions(contract.subject)
            except SchemaRegistryError as error:
                if error.http_status_code == 404:
                    return frozenset()
                raise
            return frozenset(client.get_version(contract.subject, version).schema_id for version in versions)

    return lambda number: number in registered()


@contextmanager
def _registry_errors(what: str) -> Iterator[None]:
    """Turns the registry client's errors into ours; `what` names what was asked for."""
    try:
        yield
    except SchemaRegistryError as error:
        if error.http_status_code < 500 and error.http_status_code != 429:
            raise RegistryError(f"the schema registry refuses {what}: {error.error_message}") from error
        raise RegistryUnavailable(f"the schema registry failed on {what}: {error.error_message}") from error
    except Exception as error:  # the client passes on what its HTTP library raises, and that is httpx or httpx2
        raise RegistryUnavailable(f"the schema registry does not answer for {what}: {error}") from error
