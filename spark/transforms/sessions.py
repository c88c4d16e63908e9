"""Sessions of a key: one definition, for streaming events and for all of them alike."""

from __future__ import annotations

from datetime import timedelta

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from schemas.contract.model import Contract, Sessions
from spark.definitions import measures, stateful_results
from spark.definitions.windows import interval


def sessions(events: DataFrame, contract: Contract, one: Sessions) -> DataFrame:
    """The sessions of distinct `events`, which have `event_time` and the contract's fields: the columns of
    `stateful_results.columns` and `closes_at`. Of a stream, those that its watermark has closed."""
    gap = one.gap // timedelta(microseconds=1)
    found = events.groupBy(*one.key, F.session_window("event_time", f"{gap} microseconds").alias("_session")).agg(
        F.count("*").alias("events"),
        *_bounds(events, one),
        *(F.expr(state.make).alias(state.name) for state in measures.states(one, contract)),
    )
    types = stateful_results.columns(contract, one)
    values = {measure.name: F.expr(measures.final(measure, contract, "spark")) for measure in one.measures}
    start, end = ("_session.start", "_session.end") if events.isStreaming else ("_start", "_end")
    closes_at = F.timestamp_micros(F.unix_micros(end) + 1)  # an event at the end extends it
    return found.select(
        *one.key,
        F.col(start).alias("session_start"),
        F.col(end).alias("session_end"),
        "events",
        *(value.cast(types[name]).alias(name) for name, value in values.items()),
        closes_at.alias(stateful_results.CLOSES_AT),
    )


def _bounds(events: DataFrame, one: Sessions) -> list[Column]:
    """Where a session begins and ends, as aggregates of its events. The window says the same, but Spark takes it for a
    plain group: a condition on it is asked of each event before sessions are formed, and cuts off what lies beyond. A
    query needs no condition, and its state stays as it is."""
    if events.isStreaming:
        return []
    end = F.max("event_time") + F.expr(interval(one.gap))
    return [F.min("event_time").alias("_start"), end.alias("_end")]
