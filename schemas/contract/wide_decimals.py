"""Avro decimals with room for more digits than they declare, so that a decoder keeps bytes that do not fit.

Avro's bytes may hold any number, whatever precision their type declares. Decoders round such a number or take its last
64 bits for it; both are wrong numbers that look right. Decoded with room, it can be told and turned away.
"""

from __future__ import annotations

from typing import Any


def widened(avro: Any, most: int) -> Any:
    """Returns an Avro type, given as parsed JSON, in which each decimal has `most` digits, or as many as its `fixed`
    holds if those are fewer. The scales stay as they are."""
    if isinstance(avro, list):
        return [widened(branch, most) for branch in avro]
    if not isinstance(avro, dict):
        return avro
    found = {key: widened(value, most) if key in ("type", "items", "values") else value for key, value in avro.items()}
    if isinstance(avro.get("fields"), list):
        found["fields"] = [field | {"type": widened(field["type"], most)} for field in avro["fields"]]
    if avro.get("logicalType") == "decimal" and isinstance(avro.get("precision"), int):
        room = most if avro["type"] == "bytes" else min(most, digits_of_fixed(avro["size"]))
        found["precision"] = max(room, avro["precision"])
    return found


def digits_of_fixed(size: int) -> int:
    """Returns how many decimal digits a two's complement number of `size` bytes always holds."""
    return len(str(2 ** (8 * size - 1) - 1)) - 1
