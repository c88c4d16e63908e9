"""Velocity: the instants at which a key crosses its limit, found in streaming events as they come.

They follow the definition of `schemas.contract.model.Velocity`. A streaming crossing is reported at once, and each run
of events above the limit is reported once. A late event may show that a run began earlier or that two runs are one,
which the batch layer corrects. It may also show that one run is two: then the second one is reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F
from pyspark.sql.streaming.stateful_processor import StatefulProcessor, StatefulProcessorHandle
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    DecimalType,
    DoubleType,
    FloatType,
    LongType,
    StringType,
    StructField,
    StructType,
)

from schemas.contract.model import Contract, Velocity
from schemas.contract.operands import SUMMED_DIGITS
from spark.definitions import measures, stateful_results
from spark.definitions.avro_types import scalar

MICRO = timedelta(microseconds=1)

_CONTEXT_DIGITS = 60
"""Digits of Python's decimals while sums are made: more than a sum of decimal(38,9) needs. The default of 28 would
round it."""


def crossings(events: DataFrame, contract: Contract, velocity: Velocity) -> DataFrame:
    """Returns the crossings among streaming `events`, which have a watermark on `event_time`: the columns of
    `stateful_results.columns` and `closes_at` (UTC)."""
    identity = F.to_json(F.array(*(F.col(name).cast("string") for name in contract.event_id)))
    rows = events.select(
        *velocity.key,
        "event_time",
        F.unix_micros("event_time").alias("$at"),
        identity.alias("$id"),
        addend(contract, velocity).alias("$amount"),
    )
    amount = rows.schema["$amount"].dataType
    output = StructType(
        [StructField(name, scalar(contract.fields[name])) for name in velocity.key]
        + [StructField("$at", LongType()), StructField("$done", _summed(amount))]
    )
    found = rows.groupBy(*velocity.key).transformWithState(
        Crossings(velocity.key, velocity.within // MICRO, Decimal(repr(velocity.more_than)), amount),
        output,
        "Append",
        "EventTime",
    )
    return _finished(found, contract, velocity)


def addend(contract: Contract, velocity: Velocity) -> Column:
    """Returns what an event adds to what its key has done, never null: 1 or, with `of`, the field as a number that sums
    exactly."""
    if velocity.of is None:
        return F.lit(1).cast("bigint")
    sql, type_ = measures.addend(velocity.of, contract, "spark")
    # It has fewer digits than the sum, which therefore never overflows and is the same in every order.
    narrow = DecimalType(SUMMED_DIGITS, type_.scale) if isinstance(type_, DecimalType) else type_
    terms = [F.expr(sql).cast(narrow)]
    if isinstance(scalar(contract.fields[velocity.of]), (FloatType, DoubleType)):
        value, most = F.expr(f"nanvl(`{velocity.of}`, null)"), Decimal(10**SUMMED_DIGITS - 1).scaleb(-9)
        # A float that the decimal does not hold counts as the greatest one: adding nothing would hide the burst.
        terms += [F.when(value > 0, F.lit(most)).when(value < 0, F.lit(-most)).cast(narrow)]
    return F.coalesce(*terms, F.lit(0).cast(narrow))


def _summed(type_: DataType) -> DataType:
    """The type of a sum of values of the type."""
    return DecimalType(38, type_.scale) if isinstance(type_, DecimalType) else type_


def _finished(found: DataFrame, contract: Contract, velocity: Velocity) -> DataFrame:
    """The columns of the result, from rows with the key, `$at` (microseconds since 1970, UTC) and `$done`."""
    at = F.timestamp_micros("$at")
    named = F.concat_ws("|", F.lit(velocity.name), *map(_escaped, velocity.key), F.col("$at"))
    return found.select(
        *velocity.key,
        at.alias("event_time"),
        F.col("$done").cast(stateful_results.done_type(contract, velocity)).alias("done"),
        named.alias("alert_id"),
        F.timestamp_micros(F.col("$at") + 1).alias(stateful_results.CLOSES_AT),
    )


def _escaped(name: str) -> Column:
    """A field of the key as a part of an alert's id. It is escaped, so that no two keys share an id."""
    return F.coalesce(F.regexp_replace(F.col(name).cast("string"), r"([|\\])", r"\\$1"), F.lit(r"\N"))


class Event(NamedTuple):
    """What the state keeps of an event. The names of the fields are also those of the columns of the state on disk, on
    which a checkpoint depends."""

    at: int
    """Event time in microseconds since 1970 (UTC)."""
    id: str
    """The event id, as JSON."""
    amount: Any
    """What the event adds."""
    told: bool = False
    """Whether a crossing at this time has been reported."""
    above: bool = False
    """Whether the key was above the limit at this time."""


def judged(events: Iterable[Event], width: int, more_than: Decimal, sure_after: int) -> tuple[list[Event], list[Event]]:
    """Returns the events of a key in order, with `told` and `above` brought up to date, and the new crossings: the
    first event of each run above the limit of which none was reported yet, with what was done as its `amount`.

    `width` and `sure_after` are microseconds. Events at or before `sure_after` keep their `above` and count as
    reported, because events that they depended on may have been forgotten.
    """
    ordered = sorted(events)
    instants = sorted({event.at for event in ordered})
    done: dict[int, Any] = {}
    first, total, added = 0, ordered[0].amount * 0, 0
    for at in instants:
        while added < len(ordered) and ordered[added].at <= at:
            total += ordered[added].amount
            added += 1
        while ordered[first].at <= at - width:
            total -= ordered[first].amount
            first += 1
        done[at] = total
    reported = {event.at for event in ordered if event.told}
    was_above = {event.at for event in ordered if event.above}
    above = [at for at in instants if (at in was_above if at <= sure_after else done[at] > more_than)]
    runs: list[list[int]] = []
    before = dict(zip(instants[1:], instants, strict=False))
    for at in above:
        joins = runs and runs[-1][-1] == before.get(at) and at - runs[-1][-1] < width
        runs[-1].append(at) if joins else runs.append([at])
    begins = (run[0] for run in runs if run[0] > sure_after and not reported.intersection(run))
    new = [Event(at, "", done[at], told=True, above=True) for at in begins]
    reported |= {event.at for event in new}
    is_above = set(above)
    return [event._replace(told=event.at in reported, above=event.at in is_above) for event in ordered], new


class Crossings(StatefulProcessor):
    """The stateful processor of a velocity: keeps each event of a key once, as long as it is less than twice `width`
    (microseconds) older than the watermark, and forgets the key by a timer when all of its events have gone."""

    def __init__(self, key: list[str], width: int, more_than: Decimal, amount: DataType) -> None:
        self._key, self._width, self._more_than, self._amount = key, width, more_than, amount

    def init(self, handle: StatefulProcessorHandle) -> None:
        """Declares the state, one array for each field of `Event`."""
        self._handle = handle
        types = (LongType(), StringType(), self._amount, BooleanType(), BooleanType())
        columns = zip(Event._fields, map(ArrayType, types), strict=True)
        schema = StructType([StructField(name, type_) for name, type_ in columns])
        self._events = handle.getValueState("events", schema)

    def handleInputRows(self, key: Any, rows: Any, timerValues: Any) -> Iterator[Row]:
        """Takes a micro-batch's events of a key into the state, and yields the new crossings."""
        watermark = timerValues.getCurrentWatermarkInMs() * 1000
        kept = {event.id: event for event in self._state() if event.at > watermark - 2 * self._width}
        latest = max((event.at for event in kept.values()), default=None)
        for row in rows:
            kept.setdefault(row["$id"], Event(row["$at"], row["$id"], row["$amount"]))
        with localcontext() as context:
            context.prec = _CONTEXT_DIGITS
            events, found = judged(kept.values(), self._width, self._more_than, watermark - self._width)
        self._events.update(tuple(list(column) for column in zip(*events, strict=True)))
        if latest is None or events[-1].at > latest:
            self._handle.registerTimer(self._forgotten_at(events[-1]))
        for crossing in found:
            yield Row(**dict(zip(self._key, key, strict=True)), **{"$at": crossing.at, "$done": crossing.amount})

    def handleExpiredTimer(self, key: Any, timerValues: Any, expiredTimerInfo: Any) -> Iterator[Row]:
        """Forgets a key whose newest event has become too old, and yields nothing."""
        events = self._state()
        if events and self._forgotten_at(events[-1]) <= timerValues.getCurrentWatermarkInMs():
            self._events.clear()
        return iter(())

    def close(self) -> None:
        """Does nothing; Spark requires the method."""
        pass

    def _state(self) -> list[Event]:
        if not self._events.exists():
            return []
        return [Event(*event) for event in zip(*(self._events.get() or ()), strict=True)]

    def _forgotten_at(self, event: Event) -> int:
        return (event.at + 2 * self._width) // 1000 + 1
