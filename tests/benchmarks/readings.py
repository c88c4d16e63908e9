"""The readings that the ingest benchmarks are fed with: numbered, seeded, the same in every run."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import fastavro
import numpy as np
from confluent_kafka import KafkaError, Producer

from infra.settings import Settings
from producers.codec import registry, schema_id
from producers.produce import OPTIONS
from schemas.contract.model import Contract
from schemas.wire import header

CONTRACTS = Path(__file__).parent / "contracts"
STREAM = "readings"
DEVICES = 1000
EACH_SECOND = 20_000
"""Readings per second of event time."""

_BEGINNING = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
_CHUNK = 100_000
_FLUSH_SECONDS = 120.0


def columns(start: int, count: int) -> dict[str, np.ndarray]:
    """The readings `start` to `start + count` as arrays of 64-bit integers: `id`, `device` (its number, Zipf-like),
    `event_time` (microseconds), `amount`, `battery`. They depend on the ids alone."""
    ids = np.arange(start, start + count, dtype=np.int64)
    mixed = (ids * 2_654_435_761 + 12_345) % 2**32  # Knuth's multiplicative hash
    share = mixed / 2**32
    return {
        "id": ids,
        "device": (DEVICES * share**3).astype(np.int64),
        "event_time": _BEGINNING + ids * 1_000_000 // EACH_SECOND,
        "amount": mixed % 1000,
        "battery": mixed % 101,
    }


def values(contract: Contract, schema: int, start: int, count: int) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of each reading, in the Confluent wire format."""
    parsed, prefix = fastavro.parse_schema(contract.schema_now), header(schema)
    names = [f"device-{number:04d}" for number in range(DEVICES)]
    keys = [name.encode() for name in names]
    for first in range(start, start + count, _CHUNK):
        chunk = columns(first, min(_CHUNK, start + count - first))
        rows = zip(*(chunk[name].tolist() for name in ("id", "device", "event_time", "amount", "battery")), strict=True)
        for number, device, event_time, amount, battery in rows:
            buffer = io.BytesIO(prefix)
            buffer.seek(0, io.SEEK_END)
            record = {
                "id": number, "device": names[device], "event_time": event_time, "amount": amount, "battery": battery,
            }  # fmt: skip
            fastavro.schemaless_writer(buffer, parsed, record)
            yield keys[device], buffer.getvalue()


def load(settings: Settings, contract: Contract, start: int, count: int) -> None:
    """Sends the readings `start` to `start + count` and waits until Kafka has all of them. Raises RuntimeError if it
    does not take them."""
    failures: list[KafkaError] = []
    options = {"queue.buffering.max.messages": 1_000_000, "error_cb": failures.append}
    producer = Producer(settings.kafka_client("producer") | OPTIONS | options)
    for number, (key, value) in enumerate(values(contract, schema_id(contract, registry(settings)), start, count)):
        while True:
            try:
                producer.produce(contract.stream, value, key)
                break
            except BufferError:
                producer.poll(0.1)
        if number % 10_000 == 0:
            producer.poll(0)
    left = producer.flush(_FLUSH_SECONDS)
    if left or failures:
        raise RuntimeError(f"{left} readings were not taken by Kafka: {failures[:3]}")
