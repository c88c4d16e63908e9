"""Decodes Kafka records to typed rows, in Spark's own expressions.

Values are in the Confluent wire format: 0x00, a schema id of 4 bytes (big-endian), Avro binary data
(https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format). No
input makes the evaluation fail: a record that cannot be decoded gets an `error_class` and a `reason` in words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import reduce
from operator import or_
from typing import Any, cast

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.avro.functions import from_avro
from pyspark.sql.types import (
    ArrayType,
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    MapType,
    StringType,
    StructType,
    TimestampType,
)

from schemas.contract.field_kinds import nullable
from schemas.contract.model import TOMBSTONE, TOMBSTONE_REASON, Contract
from schemas.contract.wide_decimals import widened
from schemas.dead_letter import ATTEMPT, ID
from schemas.wire import HEADER, header
from spark.definitions import avro_types

_PREFIX = HEADER.size

_UNSOUND: dict[type[DataType], str] = {
    StringType: "is not UTF-8",
    TimestampType: "is outside of the years 1 to 9999",
    DateType: "is outside of the years 1 to 9999",
    DecimalType: "has more digits than its type",
}

_MOST_DIGITS = 38
"""Digits of a decimal that Spark holds."""


_UNSOUND_INSIDE = (
    "holds text that is not UTF-8, a time outside of years 1 to 9999 or a decimal with more digits than its type"
)


UNREGISTERED = "millrace: a record of a schema that this micro-batch does not know, id "
"""The message of the error that ends an evaluation by `decode` with incomplete writers; the schema id follows it."""


def decode(records: DataFrame, contract: Contract, writers: Mapping[int, str], complete: bool = True) -> DataFrame:
    """Returns `records` as decoded rows; `decoding` describes the arguments and the columns."""
    return decoding(contract, writers, complete)(records)


def decoding(contract: Contract, writers: Mapping[int, str], complete: bool = True) -> Callable[[DataFrame], DataFrame]:
    """Returns the function that decodes rows of Spark's Kafka source (with headers). It may be kept and called again:
    making the expressions costs more than applying them.

    The decoded rows have the columns topic, partition, offset, kafka_timestamp (UTC), schema_id, original, attempt, the
    fields of the contract's `reader`, event_time (UTC), error_class, reason, key, value and headers.

    `writers` maps the registered schema ids of the stream to their Avro JSON; each record is read with its writer's
    schema and resolved to the newest version. `error_class` is `malformed` (no value, no wire format, undecodable
    Avro, text that is not UTF-8, a time outside of the years 1 to 9999, a decimal with more digits than its type),
    `unknown_schema` (id not in `writers`), `tombstone` (no value, and the contract skips those), or null; then `reason`
    is null too. The fields of a row with an error are
    null. NaN means that a number is missing, so it becomes null, wherever in a field it stands.

    Unless `writers` are `complete`, a schema id that they lack fails the evaluation, with `UNREGISTERED` in the error,
    because only the registry knows whether the id exists. The check costs nothing for records of known ids.
    """
    stranger = F.lit(None).cast("int")
    if not complete:
        failure = F.raise_error(F.concat(F.lit(UNREGISTERED), _parsed_id().cast("string")))
        stranger = F.when(_has_header(), failure.cast("int"))
    placed: tuple[Column | str, ...] = (
        "topic",
        "partition",
        "offset",
        F.col("timestamp").alias("kafka_timestamp"),
        _replay_header(contract, ID).alias("original"),
        F.coalesce(_replay_header(contract, ATTEMPT).try_cast("int"), F.lit(0)).alias("attempt"),
        _by_writer(writers, lambda schema_id, _: F.lit(schema_id), stranger).alias("$known"),
        _record(contract, writers).alias("$record"),
        "key",
        "value",
        "headers",
    )
    error = _error(contract)
    sound = F.isnull("$error")
    columns = {field.name: (field.dataType, F.col("$record")[field.name]) for field in avro_types.columns(contract)}
    values = {name: F.when(sound, _stored(type_, value)) for name, (type_, value) in columns.items()}
    values.setdefault("event_time", values[contract.event_time])
    judged: tuple[Column | str, ...] = (
        "topic",
        "partition",
        "offset",
        "kafka_timestamp",
        F.coalesce("$known", F.when(_has_header(), _parsed_id().try_cast("int"))).alias("schema_id"),
        "original",
        "attempt",
        *(value.alias(name) for name, value in values.items()),
        F.col("$error")["class"].alias("error_class"),
        F.col("$error")["reason"].alias("reason"),
        "key",
        "value",
        "headers",
    )
    return lambda records: records.select(*placed).withColumn("$error", error).select(*judged)


def _by_writer(writers: Mapping[int, str], then: Any, otherwise: Column) -> Column:
    """`then(schema_id, avro_json)` for the writer whose 5-byte header the value has, else `otherwise`. Comparing
    headers costs less than parsing an id from every record."""
    chosen: Any = F  # F.when(…).when(…): the first is the module's function, the next ones are the column's method
    for schema_id, avro_json in writers.items():
        mine = F.substring("value", 1, _PREFIX) == F.lit(header(schema_id))
        chosen = chosen.when(mine, then(schema_id, avro_json))
    return otherwise if chosen is F else cast(Column, chosen.otherwise(otherwise))


def _record(contract: Contract, writers: Mapping[int, str]) -> Column:
    """The Avro record as a struct of the contract's reader. With PERMISSIVE, corrupt data becomes a struct of nulls."""
    reader = _with_room(json.dumps(contract.reader))

    def read(_: int, writer: str) -> Column:
        body = F.expr(f"substring(value, {_PREFIX + 1})")
        return from_avro(body, _with_room(writer), {"mode": "PERMISSIVE", "avroSchema": reader})

    nothing = from_avro(F.lit(None).cast("binary"), reader, {"mode": "PERMISSIVE"})
    return _by_writer(writers, read, nothing)


def _with_room(avro_json: str) -> str:
    """An Avro schema as Spark is to read it: without the logical types that `avro_types` does not know, of which Spark
    may make types of its own (a time of the day, of which a bigint keeps the seconds), and with decimals that have room
    for all digits that Spark holds: of a decimal of at most 18 digits it would read the last 64 bits alone."""
    if "logicalType" not in avro_json:
        return avro_json
    return json.dumps(widened(avro_types.without_unknown_logical_types(json.loads(avro_json)), _MOST_DIGITS))


def _stored(type_: DataType, value: Column) -> Column:
    """A decoded value as bronze has it: decimals with the digits that they declare, and null for NaN."""
    found = _without_nan(type_, value)
    return found.try_cast(type_) if _has(type_, DecimalType) else found


def _without_nan(type_: DataType, value: Column) -> Column:
    if not _has(type_, FloatType, DoubleType):
        return value
    match type_:
        case ArrayType():
            element = type_.elementType
            return F.transform(value, lambda item: _without_nan(element, item))
        case MapType():
            of = type_.valueType
            return F.transform_values(value, lambda _, item: _without_nan(of, item))
        case StructType():
            fields = (_without_nan(field.dataType, value[field.name]).alias(field.name) for field in type_.fields)
            return F.when(value.isNotNull(), F.struct(*fields))
        case _:
            return F.nanvl(value, F.lit(None))


def _has(type_: DataType, *wanted: type[DataType]) -> bool:
    """Whether values of the type are of one of the `wanted` types, or hold some."""
    match type_:
        case ArrayType():
            return _has(type_.elementType, *wanted)
        case MapType():
            return _has(type_.valueType, *wanted)
        case StructType():
            return any(_has(field.dataType, *wanted) for field in type_.fields)
        case _:
            return isinstance(type_, wanted)


def _has_header() -> Column:
    return (F.length("value") >= _PREFIX) & (F.hex(F.substring("value", 1, 1)) == "00")


def _parsed_id() -> Column:
    return F.conv(F.hex(F.substring("value", 2, 4)), 16, 10)


def _error(contract: Contract) -> Column:
    """struct(class, reason) for the first fault of a record; null for a record without any."""
    magic, size = F.hex(F.substring("value", 1, 1)), F.length("value")
    wire = f"and the Confluent wire format begins with 0x00 and {_PREFIX - 1} bytes of schema id"
    unregistered = f"schema id %s is not registered under {contract.subject}"
    undecodable = "the Avro data is cut short or corrupt: schema id %s cannot decode it"
    required = next(name for name, avro in contract.fields.items() if not nullable(avro))
    record = F.col("$record")
    checks: list[tuple[Column, str, Column]] = [
        (F.isnull("value"), TOMBSTONE if contract.tombstones == "skip" else "malformed", F.lit(TOMBSTONE_REASON)),
        (size < _PREFIX, "malformed", F.format_string(f"the value has %d bytes, {wire}", size)),
        (magic != "00", "malformed", F.format_string(f"the value begins with 0x%s, {wire}", magic)),
        (F.isnull("$known"), "unknown_schema", F.format_string(unregistered, _parsed_id())),
        # A corrupt record is a struct of nulls, so one required field shows it.
        (record[required].isNull(), "malformed", F.format_string(undecodable, F.col("$known"))),
    ]
    for field in avro_types.columns(contract):
        unsound = _unsound(field.dataType, record[field.name])
        if unsound is not None:
            what = _UNSOUND.get(type(field.dataType), _UNSOUND_INSIDE)
            checks.append((unsound, "malformed", F.lit(f"{field.name} {what}")))
    error: Any = F
    for wrong, error_class, reason in checks:
        error = error.when(wrong, F.struct(F.lit(error_class).alias("class"), reason.alias("reason")))
    return cast(Column, error)


def _unsound(type_: DataType, value: Column) -> Column | None:
    """Whether a value can be decoded but not be stored so that every reader accepts it; None for a type all of whose
    values can."""
    match type_:
        case StringType():
            return ~F.is_valid_utf8(value)
        case TimestampType():
            return ~value.between(F.expr("timestamp'0001-01-01 00:00:00Z'"), F.expr("timestamp'9999-12-31 00:00:00Z'"))
        case DateType():
            return ~value.between(F.expr("date'0001-01-01'"), F.expr("date'9999-12-31'"))
        case DecimalType() if type_.precision < _MOST_DIGITS:
            return value.isNotNull() & value.try_cast(type_).isNull()
        case ArrayType():
            element = type_.elementType
            if _unsound(element, value) is None:
                return None
            return F.exists(value, lambda item: cast(Column, _unsound(element, item)))
        case MapType():
            parts = [(type_.keyType, F.map_keys(value)), (type_.valueType, F.map_values(value))]
            found = [_unsound(ArrayType(part), items) for part, items in parts]
        case StructType():
            found = [_unsound(field.dataType, value[field.name]) for field in type_.fields]
        case _:
            return None
    present = [condition for condition in found if condition is not None]
    return reduce(or_, present) if present else None


def _replay_header(contract: Contract, name: str) -> Column:
    """The text of a dead-letter header of a replayed record; null for records of other topics, because only records of
    the retry topic may stand for another record. What is before the last `dl-id` is the producer's, whatever its
    name."""
    # Not `F.filter`: Spark does not compile lambdas, nor the plan around them.
    names, values = F.reverse(F.col("headers.key")), F.reverse(F.col("headers.value"))
    index = F.array_position(names, name)
    ours = (F.col("topic") == contract.retry_topic) & (index <= F.array_position(names, ID))
    return F.when(ours, F.get(values, (index - 1).cast("int")).cast("string"))
