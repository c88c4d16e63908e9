"""Rows as Spark's Kafka source gives them, and Avro bytes to put into them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import fastavro
from pyspark.sql import DataFrame, SparkSession

from schemas.wire import header

SCHEMA = (
    "key binary, value binary, topic string, partition int, offset bigint, timestamp timestamp, timestampType int, "
    "headers array<struct<key: string, value: binary>>"
)

ARRIVAL = datetime(2026, 5, 1, 12, 0, 0, 123000, tzinfo=UTC)
"""Kafka's timestamp of every row: after the times of the generators' events, which would else be of the future."""


@dataclass(frozen=True)
class Row:
    value: bytes | None
    topic: str
    offset: int
    partition: int = 0
    key: bytes | None = b"key"
    headers: list[tuple[str, bytes]] = field(default_factory=list)


def frame(spark: SparkSession, rows: Sequence[Row]) -> DataFrame:
    data = [
        (
            None if row.key is None else bytearray(row.key),
            None if row.value is None else bytearray(row.value),
            row.topic,
            row.partition,
            row.offset,
            ARRIVAL,
            0,
            [(key, bytearray(value)) for key, value in row.headers] or None,
        )
        for row in rows
    ]
    return spark.createDataFrame(data, SCHEMA)


def wire(schema_id: int, schema: Mapping[str, Any], record: Mapping[str, Any]) -> bytes:
    """`record` in the Confluent wire format."""
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, dict(schema), dict(record))
    return header(schema_id) + buffer.getvalue()
