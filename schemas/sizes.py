"""How large a record may be: on a topic, in a dead letter, and in the memory of a client.

A topic bounds a batch of records as it travels and is stored, which is compressed: its `max.message.bytes`. A client
bounds a record as it is, before it is compressed. So a record that compresses well is small for its topic and large for
all who send it again, and each of them takes its bounds from here: a client never refuses what a topic would accept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schemas.contract.model import Contract

RECORD = 1_048_588
"""`max.message.bytes` of a stream's topics unless the contract sets it: Kafka's own default, whatever the brokers' is.
"""

LETTER_HEADERS = 65_536
"""Room for the headers that a dead letter gets in addition to its record."""

BATCH_OVERHEAD = 512
"""Bytes, at most, by which a batch of one record without headers exceeds the record's key and value. (The format needs
61 for the batch and 21 for the record; an encrypting or rewriting proxy may need more.)"""

HEADER_OVERHEAD = 10
"""Bytes, at most, by which a header exceeds its name and value in a record."""

IN_MEMORY = 64 * 1024 * 1024
"""Bytes of key, value and headers, as they are when they are decompressed, above which a record may be too large for
the memory of the driver: such a record is quarantined if its batch cannot be read otherwise."""

_LARGEST = 4 * IN_MEMORY
"""The bound of the clients themselves: more than any of them is given to send."""


def of_topic(contract: Contract) -> int:
    """Returns the bytes that a batch on the stream's topic may have: `max.message.bytes`."""
    return int(contract.topic.configs.get("max.message.bytes", RECORD))


def of_letters(contract: Contract) -> int:
    """Returns the same of `.retry`, `.dlq` and `.parked`, which take every record of the stream's topic with the
    headers that make it a dead letter."""
    return of_topic(contract) + LETTER_HEADERS


def of(headers: Sequence[tuple[str, bytes | None]], *parts: bytes | None) -> int:
    """Returns the bytes of `headers`, with some for the lengths of each, and of a record's other `parts`."""
    size = sum(len(part) for part in parts if part)
    for name, value in headers:
        size += len(name.encode()) + len(value or b"") + HEADER_OVERHEAD
    return size


def producer(limit: int, batch: int = 512 * 1024) -> dict[str, Any]:
    """Returns options for a librdkafka producer which sends to topics that take `limit` bytes. A record is refused by
    the topic alone. Records are sent together only as far as they fit uncompressed, `batch` bytes at most, so whatever
    a topic refuses was sent by itself, and no other record is refused because of it."""
    return {
        # As well as the producers of the letters' records may have done it, for the topic's limit is the same.
        "compression.type": "zstd",
        "message.max.bytes": _LARGEST,
        "queue.buffering.max.kbytes": 2 * _LARGEST // 1024,  # it must hold the largest record, else it waits for ever
        "batch.size": max(1, min(batch, limit - BATCH_OVERHEAD)),
    }


def consumer() -> dict[str, Any]:
    """Returns options for a librdkafka consumer of any topic of a stream. It fetches a batch that is larger than what
    it asks for, and decompresses one as a whole, into a buffer which it makes three times as large until the batch
    fits or this bound is passed; a batch above it stops the partition (librdkafka #5260)."""
    return {"receive.message.max.bytes": 3 * _LARGEST}


def java_producer(limit: int) -> dict[str, str]:
    """Returns the same for a Java producer, whose bounds are on the uncompressed record, too."""
    return {
        "max.request.size": str(limit + BATCH_OVERHEAD),
        "buffer.memory": str(max(32 * 1024 * 1024, 2 * limit)),
    }
