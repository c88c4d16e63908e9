"""Velocity: when a key crosses its limit. `exact` says it of all events; `Crossings` of events as they come.

Both follow the definition of `schemas.contract.model.Velocity`. `Crossings` tells a crossing at once, and each run of
events above the limit once. An event that comes late may show that a run began earlier, or that two runs are one, which
the batch layer corrects; or that one run is two, of which the second is told then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

from pyspark.sql import Column, DataFrame, Row, Window
from pyspark.sql import functions as F
from pyspark.sql.streaming.stateful_processor import StatefulProcessor, StatefulProcessorHandle
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    DecimalType,
    LongType,
    StringType,
    StructField,
    StructType,
)

from schemas.contract.model import Contract, Velocity
from spark.definitions import measures, stateful_results
from spark.definitions.avro_types import scalar

MICRO = timedelta(microseconds=1)

_CONTEXT_DIGITS = 60
"""More than a sum of decimal(38,9) needs: Python's own 28 would round it."""


def exact(events: DataFrame, contract: Contract, one: Velocity) -> DataFrame:
    """The crossings among `events`, which are distinct and have `event_time` and the contract's fields. Columns of
    `stateful_results.columns` and `closes_at`. An event's crossing depends on the key's events of twice `within` before
    it."""
    width = one.within // MICRO
    at_once = events.groupBy(*one.key, F.unix_micros("event_time").alias("_at")).agg(
        F.sum(addend(contract, one)).alias("_amount")
    )
    order = Window.partitionBy(*one.key).orderBy("_at")
    summed = at_once.withColumn("_done", F.sum("_amount").over(order.rangeBetween(1 - width, 0)))
    above = F.col("_done") > limit(one)
    was_above = F.lag(above).over(order) & (F.col("_at") - F.lag("_at").over(order) < width)
    crossed = summed.withColumn("_crosses", above & ~F.coalesce(was_above, F.lit(False))).where("_crosses")
    return _finished(crossed, contract, one)


def crossings(events: DataFrame, contract: Contract, one: Velocity) -> DataFrame:
    """The crossings among streaming `events`, which have a watermark on `event_time`, as they come: the columns of
    `exact`."""
    identity = F.to_json(F.array(*(F.col(name).cast("string") for name in contract.event_id)))
    rows = events.select(
        *one.key,
        "event_time",
        F.unix_micros("event_time").alias("_at"),
        identity.alias("_id"),
        addend(contract, one).alias("_amount"),
    )
    amount = rows.schema["_amount"].dataType
    output = StructType(
        [StructField(name, scalar(contract.fields[name])) for name in one.key]
        + [StructField("_at", LongType()), StructField("_done", _summed(amount))]
    )
    found = rows.groupBy(*one.key).transformWithState(
        Crossings(one.key, one.within // MICRO, Decimal(repr(one.more_than)), amount), output, "Append", "EventTime"
    )
    return _finished(found, contract, one)


def addend(contract: Contract, one: Velocity) -> Column:
    """What an event adds, never null: 1 or, with `of`, the field in the type that sums of it have."""
    if one.of is None:
        return F.lit(1).cast("bigint")
    sql, type_ = measures.addend(one.of, contract)
    # Of fewer digits than the sum, which therefore overflows nowhere and is the same in every order.
    narrow = DecimalType(28, type_.scale) if isinstance(type_, DecimalType) else type_
    return F.coalesce(F.expr(sql).cast(narrow), F.lit(0).cast(narrow))


def limit(one: Velocity) -> Column:
    return F.lit(Decimal(repr(one.more_than)))


def _summed(type_: DataType) -> DataType:
    """The type of a sum of values of the type."""
    return DecimalType(38, type_.scale) if isinstance(type_, DecimalType) else type_


def _finished(found: DataFrame, contract: Contract, one: Velocity) -> DataFrame:
    """Rows with the key, `_at` (microseconds) and `_done`, as the columns of the result."""
    at = F.timestamp_micros("_at")
    named = F.concat_ws("|", F.lit(one.name), *map(_escaped, one.key), F.col("_at"))
    return found.select(
        *one.key,
        at.alias("event_time"),
        F.col("_done").cast(stateful_results.done_type(contract, one)).alias("done"),
        named.alias("alert_id"),
        F.timestamp_micros(F.col("_at") + 1).alias(stateful_results.CLOSES_AT),
    )


def _escaped(name: str) -> Column:
    """A key's field as a part of an id: no two keys share one, whatever is in them."""
    return F.coalesce(F.regexp_replace(F.col(name).cast("string"), r"([|\\])", r"\\$1"), F.lit(r"\N"))


class Event(NamedTuple):
    """What the state keeps of an event: when (microseconds), which, what it adds, whether a crossing at its time was
    told, and whether more than the limit was done then."""

    at: int
    id: str
    amount: Any
    told: bool = False
    above: bool = False


def judged(events: Iterable[Event], width: int, more_than: Decimal, sure_after: int) -> tuple[list[Event], list[Event]]:
    """`events` of a key, in order and as they are now, and the crossings that are to be told: the first event of each
    run above the limit of which none was told yet, with `amount` being what was done.

    Of events up to `sure_after` the ones before may be forgotten, and nothing about them changes any more: they are
    above if they were, and their run was told.
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
    told = {event.at for event in ordered if event.told}
    was_above = {event.at for event in ordered if event.above}
    above = [at for at in instants if (at in was_above if at <= sure_after else done[at] > more_than)]
    runs: list[list[int]] = []
    before = dict(zip(instants[1:], instants, strict=False))
    for at in above:
        joins = runs and runs[-1][-1] == before.get(at) and at - runs[-1][-1] < width
        runs[-1].append(at) if joins else runs.append([at])
    begins = (run[0] for run in runs if run[0] > sure_after and not told.intersection(run))
    new = [Event(at, "", done[at], told=True, above=True) for at in begins]
    told |= {event.at for event in new}
    is_above = set(above)
    return [event._replace(told=event.at in told, above=event.at in is_above) for event in ordered], new


class Crossings(StatefulProcessor):
    """Keeps a key's events of twice `width` (microseconds) before the watermark, each event once, and forgets the key
    by a timer when all of them have gone."""

    def __init__(self, key: list[str], width: int, more_than: Decimal, amount: DataType) -> None:
        self._key, self._width, self._more_than, self._amount = key, width, more_than, amount

    def init(self, handle: StatefulProcessorHandle) -> None:
        self._handle = handle
        types = (LongType(), StringType(), self._amount, BooleanType(), BooleanType())
        columns = zip(Event._fields, map(ArrayType, types), strict=True)
        schema = StructType([StructField(name, type_) for name, type_ in columns])
        self._events = handle.getValueState("events", schema)

    def handleInputRows(self, key: Any, rows: Any, timerValues: Any) -> Iterator[Row]:
        watermark = timerValues.getCurrentWatermarkInMs() * 1000
        kept = {event.id: event for event in self._state() if event.at > watermark - 2 * self._width}
        latest = max((event.at for event in kept.values()), default=None)
        for row in rows:
            kept.setdefault(row["_id"], Event(row["_at"], row["_id"], row["_amount"]))
        with localcontext() as context:
            context.prec = _CONTEXT_DIGITS
            events, found = judged(kept.values(), self._width, self._more_than, watermark - self._width)
        self._events.update(tuple(list(column) for column in zip(*events, strict=True)))
        if latest is None or events[-1].at > latest:
            self._handle.registerTimer(self._forgotten_at(events[-1]))
        for crossing in found:
            yield Row(**dict(zip(self._key, key, strict=True)), _at=crossing.at, _done=crossing.amount)

    def handleExpiredTimer(self, key: Any, timerValues: Any, expiredTimerInfo: Any) -> Iterator[Row]:
        events = self._state()
        if events and self._forgotten_at(events[-1]) <= timerValues.getCurrentWatermarkInMs():
            self._events.clear()
        return iter(())

    def close(self) -> None:
        pass

    def _state(self) -> list[Event]:
        if not self._events.exists():
            return []
        return [Event(*event) for event in zip(*(self._events.get() or ()), strict=True)]

    def _forgotten_at(self, event: Event) -> int:
        return (event.at + 2 * self._width) // 1000 + 1
