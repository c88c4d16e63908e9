"""The join of two streams in event time: one definition, for streams with watermarks and for all events alike."""

from __future__ import annotations

from datetime import timedelta

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from schemas.contract.model import Contract, Join
from spark.definitions import stateful_results
from spark.definitions.windows import interval


def joined(events: DataFrame, others: DataFrame, contract: Contract, one: Join) -> DataFrame:
    """`events` of the contract's stream with the matching `others`, both distinct and with `event_time` and their
    contract's fields: the columns of `stateful_results.columns` and `closes_at`."""
    theirs = stateful_results.other(contract, one)
    mine = list(dict.fromkeys(["event_time", *contract.event_id, *one.on, *one.fields]))
    shown = {f"{one.other}_event_time": F.col("event_time")}
    shown |= {f"{one.other}_{name}": F.col(name) for name in stateful_results.other_fields(theirs, one)}
    right = others.select(
        *(F.col(name).alias(f"_on_{name}") for name in one.on), *(column.alias(name) for name, column in shown.items())
    )
    time, their_time = F.col("event_time"), F.col(f"{one.other}_event_time")
    matches: Column = (their_time > time - F.expr(interval(one.before))) & (
        their_time <= time + F.expr(interval(one.after))
    )
    for name in one.on:
        matches = matches & (F.col(name) == F.col(f"_on_{name}"))
    found = events.select(*mine).join(right, matches, "left" if one.kind == "left" else "inner")
    closes_at = time + F.expr(interval(one.after + timedelta(microseconds=1)))
    return found.select(*stateful_results.columns(contract, one), closes_at.alias(stateful_results.CLOSES_AT))
