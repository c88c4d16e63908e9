"""Partials, rollup, finalize: the only definition of an aggregate, for the speed and the batch layer alike."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from schemas.model import Aggregate, Contract
from schemas.model import Window as WindowName
from spark import measures, tables
from spark.transforms.windows import SECONDS


def truncated(time: str, window: WindowName) -> Column:
    """The start of the window that holds the timestamp column `time`; windows are aligned to the UTC epoch."""
    micros, size = F.unix_micros(F.col(time)), SECONDS[window] * 1_000_000
    return F.timestamp_micros(micros - F.pmod(micros, F.lit(size)))


def partials(events: DataFrame, contract: Contract, aggregate: Aggregate) -> DataFrame:
    """One row per 1-minute window and dimensions: `window_start`, the dimensions, the states of the measures.

    `events` has `event_time` and the contract's fields. Repeats are counted as they come: drop them first.
    """
    return (
        events.groupBy(truncated("event_time", "1m").alias("window_start"), *_dimensions(aggregate))
        .agg(*(F.expr(state.make).alias(state.name) for state in measures.states(aggregate, contract)))
    )  # fmt: skip


def rollup(partials: DataFrame, contract: Contract, aggregate: Aggregate, window: WindowName) -> DataFrame:
    """Partials merged to `window`: one row per window and dimensions, in the columns of `partials` without `batch`."""
    return (
        partials.groupBy(truncated("window_start", window).alias("window_start"), *_dimensions(aggregate))
        .agg(*(F.expr(state.merge["spark"]).alias(state.name) for state in measures.states(aggregate, contract)))
    )  # fmt: skip


def finalize(states: DataFrame, contract: Contract, aggregate: Aggregate, window: WindowName) -> DataFrame:
    """Merged states as values: `window`, `window_start`, `window_end`, the dimensions, the measures."""
    values = {measure.name: F.expr(measures.final(measure, contract, "spark")) for measure in aggregate.measures}
    return _with_window(states, contract, aggregate, window, values)


def exact(events: DataFrame, contract: Contract, aggregate: Aggregate, window: WindowName) -> DataFrame:
    """The columns of `finalize` straight from distinct events, with exact distincts and quantiles; the other measures
    come from the same states as in the speed layer."""
    states = {state.name: F.expr(state.make) for state in _exact_states(aggregate, contract)}
    estimated = [measure for measure in aggregate.measures if measures.is_estimate(measure)]
    direct = {f"exact_{m.name}": F.expr(str(measures.exact(m, contract))) for m in estimated}
    grouped = (
        events.groupBy(truncated("event_time", window).alias("window_start"), *_dimensions(aggregate))
        .agg(*(column.alias(name) for name, column in (states | direct).items()))
    )  # fmt: skip
    values = {
        measure.name: F.col(f"exact_{measure.name}")
        if measure in estimated
        else F.expr(measures.final(measure, contract, "spark"))
        for measure in aggregate.measures
    }
    return _with_window(grouped, contract, aggregate, window, values)


def distinct_events(events: DataFrame, contract: Contract) -> DataFrame:
    """`events` (rows of bronze) with one row per event id: the first by batch, topic, partition, offset."""
    order = Window.partitionBy(*contract.event_id).orderBy("batch", "topic", "partition", "offset")
    return events.withColumn("_nth", F.row_number().over(order)).where("_nth = 1").drop("_nth")


def event_columns(contract: Contract) -> list[str]:
    """The columns that `partials` and deduplication read: event time, identity, dimensions, measured fields."""
    measured = [measure.of for aggregate in contract.aggregates for measure in aggregate.measures if measure.of]
    dimensions = [name for aggregate in contract.aggregates for name in aggregate.dimensions]
    return list(dict.fromkeys(["event_time", *contract.event_id, *dimensions, *measured]))


def _exact_states(aggregate: Aggregate, contract: Contract) -> list[measures.State]:
    plain = [measure for measure in aggregate.measures if not measures.is_estimate(measure)]
    return measures.states(aggregate.model_copy(update={"measures": plain}), contract)


def _dimensions(aggregate: Aggregate) -> list[Column]:
    return [F.col(name) for name in aggregate.dimensions]


def _with_window(
    states: DataFrame, contract: Contract, aggregate: Aggregate, window: WindowName, values: dict[str, Column]
) -> DataFrame:
    end = F.timestamp_micros(F.unix_micros("window_start") + SECONDS[window] * 1_000_000)
    types = {field.name: field.dataType for field in tables.batch_schema(contract, aggregate)}
    return states.select(
        F.lit(window).alias("window"),
        "window_start",
        end.alias("window_end"),
        *_dimensions(aggregate),
        *(column.cast(types[name]).alias(name) for name, column in values.items()),
    )
