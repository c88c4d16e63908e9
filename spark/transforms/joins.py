"""The join of two streams in event time, of streaming events."""

from __future__ import annotations

from datetime import timedelta

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from schemas.contract.model import Contract, Join
from spark.definitions import stateful_results
from spark.definitions.windows import interval


def joined(events: DataFrame, others: DataFrame, contract: Contract, join: Join) -> DataFrame:
    """Returns the events of the contract's stream with the matching events of the other stream, as
    `schemas.contract.model.Join` defines it: the columns of `stateful_results.columns` and `closes_at` (UTC).

    `events` and `others` are streaming and distinct, and have `event_time`, with a watermark on it, and the fields of
    their contracts. Raises `ContractError` if the other stream's contract cannot be read.
    """
    theirs = stateful_results.other(contract, join)
    mine = list(dict.fromkeys(["event_time", *contract.event_id, *join.on, *join.fields]))
    shown = {f"{join.other}_event_time": F.col("event_time")}
    shown |= {f"{join.other}_{name}": F.col(name) for name in stateful_results.other_fields(theirs, join)}
    right = others.select(
        *(F.col(name).alias(f"_on_{name}") for name in join.on), *(column.alias(name) for name, column in shown.items())
    )
    time, their_time = F.col("event_time"), F.col(f"{join.other}_event_time")
    matches: Column = (their_time > time - F.expr(interval(join.before))) & (
        their_time <= time + F.expr(interval(join.after))
    )
    for name in join.on:
        matches = matches & (F.col(name) == F.col(f"_on_{name}"))
    found = events.select(*mine).join(right, matches, "left" if join.kind == "left" else "inner")
    closes_at = time + F.expr(interval(join.after + timedelta(microseconds=1)))
    return found.select(*stateful_results.columns(contract, join), closes_at.alias(stateful_results.CLOSES_AT))
