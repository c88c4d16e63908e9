"""The Spark type for each Avro type, which is the type of a contract's field as a column of the lake. Needs no JVM.

The types are those of the Avro specification 1.12, "Schema Declaration" and "Logical Types". What has no type here is
refused when a contract is loaded, with file and line (`schemas.contract.check_types`).
"""

from __future__ import annotations

from typing import Any

from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    MapType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from schemas.contract.model import Contract
from schemas.errors import TerminalError

_PLAIN: dict[str, DataType] = {
    "boolean": BooleanType(),
    "int": IntegerType(),
    "long": LongType(),
    "float": FloatType(),
    "double": DoubleType(),
    "string": StringType(),
    "bytes": BinaryType(),
    "enum": StringType(),
    "fixed": BinaryType(),
}

_LOGICAL: dict[str, DataType] = {
    "timestamp-micros": TimestampType(),
    "timestamp-millis": TimestampType(),
    "date": DateType(),
}


class UnsupportedType(TerminalError):
    """An Avro type that the lake has no column type for; the message shows the type."""


def scalar(avro: Any) -> DataType:
    """Returns the Spark type of an Avro type, given as parsed JSON. A union may only add null to one type.

    Raises `UnsupportedType` for any other union and for types that the lake has no column type for.
    """
    found: DataType | None = None
    if isinstance(avro, list):
        others = [branch for branch in avro if branch != "null"]
        found = scalar(others[0]) if len(others) == 1 else None
    elif isinstance(avro, str):
        found = _PLAIN.get(avro)
    elif isinstance(avro, dict):
        found = _of_object(avro)
    if found is None:
        raise UnsupportedType(f"Avro type {avro!r} has no column type in the lake; use a plain type or a nullable one")
    return found


def _of_object(avro: dict[str, Any]) -> DataType | None:
    """The Spark type of a type that is written as a JSON object; None if it has none."""
    logical, kind = avro.get("logicalType"), avro["type"]
    if not isinstance(kind, str):
        return scalar(kind)
    if logical in _LOGICAL:
        return _LOGICAL[logical]
    if logical == "decimal":
        return DecimalType(avro["precision"], avro.get("scale", 0))
    match kind:
        case "array":
            return ArrayType(scalar(avro["items"]))
        case "map":
            return MapType(StringType(), scalar(avro["values"]))
        case "record" | "error":
            return StructType([StructField(f["name"], scalar(f["type"])) for f in avro["fields"]])
    return _PLAIN.get(kind)


def without_unknown_logical_types(avro: Any) -> Any:
    """Returns an Avro type, given as parsed JSON, without the logical types that make no difference to `scalar`."""
    if isinstance(avro, list):
        return [without_unknown_logical_types(branch) for branch in avro]
    if not isinstance(avro, dict):
        return avro
    kept = {key: value for key, value in avro.items() if key != "logicalType" or value in (*_LOGICAL, "decimal")}
    for key in ("type", "items", "values"):
        if key in kept:
            kept[key] = without_unknown_logical_types(kept[key])
    if isinstance(kept.get("fields"), list):
        kept["fields"] = [field | {"type": without_unknown_logical_types(field["type"])} for field in kept["fields"]]
    return kept


def columns(contract: Contract) -> list[StructField]:
    """Returns the fields of the contract's newest schema as nullable columns, in its order, and after them the fields
    that only older schemas have."""
    return [StructField(name, scalar(type_)) for name, type_ in contract.columns.items()]
