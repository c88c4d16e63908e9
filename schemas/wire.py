"""The wire format of Confluent's serializers (a zero byte, the schema's id as 4 bytes big-endian, the Avro body), and
the ways in which it can be broken."""

from __future__ import annotations

import struct
from typing import Literal

HEADER = struct.Struct(">BI")
MAGIC = 0

Fault = Literal["bad_magic", "truncated", "unknown_schema"]
"""The ways in which a record can be broken whatever its contract says."""

NO_SUCH_ID = 2_000_000_000
"""Faults of kind `unknown_schema` carry this id or a greater one: no registry hands out ids that high."""


def header(schema_id: int) -> bytes:
    """The five bytes before the Avro body of a record that was written with the schema `schema_id`."""
    return HEADER.pack(MAGIC, schema_id)


def schema_id(value: bytes | None) -> int | None:
    """The schema id in a record's value, or None if the value has no such header."""
    if value is None or len(value) < HEADER.size or value[0] != MAGIC:
        return None
    return int(HEADER.unpack_from(value)[1])


def broken(value: bytes, fault: Fault, choice: int = 0) -> bytes:
    """Returns `value`, a record in the wire format, with the `fault`. `choice`, any number from 0, picks among the ways
    to do it: which wrong first byte, how much of the Avro body is cut off (at least a byte), which id. Raises
    ValueError if an empty body is to be truncated."""
    if fault == "bad_magic":
        return bytes([1 + choice % 255]) + value[1:]
    if fault == "truncated":
        body = len(value) - HEADER.size
        if body < 1:
            raise ValueError("a value with an empty Avro body cannot be truncated")
        return value[: len(value) - 1 - choice % body]
    return header(NO_SUCH_ID + choice % 1_000_000) + value[HEADER.size :]
