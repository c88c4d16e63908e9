"""Partials, rollups and final values of aggregates: the one definition that the speed and the batch layer share.

Columns that only these computations have begin with `$`, which no field of Avro and no name of a contract does.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from schemas.contract.model import Aggregate, Contract
from schemas.contract.model import Window as WindowName
from spark.definitions import measures
from spark.definitions.windows import SECONDS
from spark.lake import table_schemas


def truncated(time: str, window: WindowName) -> Column:
    """Returns the start (UTC) of the window that holds the timestamp column `time`. Windows are aligned to the UTC
    epoch."""
    micros, size = F.unix_micros(F.col(time)), SECONDS[window] * 1_000_000
    return F.timestamp_micros(micros - F.pmod(micros, F.lit(size)))


def partials(events: DataFrame, contract: Contract, aggregate: Aggregate) -> DataFrame:
    """Returns one row for each 1-minute window (UTC) and values of the dimensions: `window_start`, the dimensions and
    the states of the measures.

    `events` has `event_time` and the contract's fields. An event that is there twice counts twice: use
    `distinct_events` first.
    """
    return (
        events.groupBy(truncated("event_time", "1m").alias("window_start"), *_dimensions(aggregate))
        .agg(*(F.expr(state.make["spark"]).alias(state.name) for state in measures.states(aggregate, contract)))
    )  # fmt: skip


def rollup(partials: DataFrame, contract: Contract, aggregate: Aggregate, window: WindowName) -> DataFrame:
    """Returns the partials merged to `window`: one row for each window and values of the dimensions, with the columns
    of `partials` without `batch`."""
    return (
        partials.groupBy(truncated("window_start", window).alias("window_start"), *_dimensions(aggregate))
        .agg(*(F.expr(state.merge["spark"]).alias(state.name) for state in measures.states(aggregate, contract)))
    )  # fmt: skip


def finalize(states: DataFrame, contract: Contract, aggregate: Aggregate, window: WindowName) -> DataFrame:
    """Returns the values of merged states: the columns `window`, `window_start` and `window_end` (UTC), the dimensions
    and the measures."""
    values = {measure.name: F.expr(measures.final(measure, contract, "spark")) for measure in aggregate.measures}
    return _finished(states.withColumn("window", F.lit(window)), contract, aggregate, values)


def distinct_events(events: DataFrame, contract: Contract) -> DataFrame:
    """Returns `events` (rows of bronze) with one row for each event id: the first by batch, topic, partition,
    offset."""
    order = Window.partitionBy(*contract.event_id).orderBy("batch", "topic", "partition", "offset")
    return events.withColumn("$nth", F.row_number().over(order)).where("`$nth` = 1").drop("$nth")


def event_columns(contract: Contract) -> list[str]:
    """Returns the columns that `partials` and `distinct_events` need of events: event time, event id, dimensions and
    measured fields."""
    measured = [measure.of for aggregate in contract.aggregates for measure in aggregate.measures if measure.of]
    dimensions = [name for aggregate in contract.aggregates for name in aggregate.dimensions]
    return list(dict.fromkeys(["event_time", *contract.event_id, *dimensions, *measured]))


def _dimensions(aggregate: Aggregate) -> list[Column]:
    return [F.col(name) for name in aggregate.dimensions]


def _finished(states: DataFrame, contract: Contract, aggregate: Aggregate, values: dict[str, Column]) -> DataFrame:
    """The `values` computed from `states` (which have a column `window`), in the batch table's types, and the window's
    end."""
    sizes = F.create_map(*(F.lit(word) for window, size in SECONDS.items() for word in (window, size * 1_000_000)))
    end = F.timestamp_micros(F.unix_micros("window_start") + sizes[F.col("window")])
    types = {field.name: field.dataType for field in table_schemas.batch_schema(contract, aggregate)}
    return states.select(
        "window",
        "window_start",
        end.alias("window_end"),
        *_dimensions(aggregate),
        *(column.cast(types[name]).alias(name) for name, column in values.items()),
    )
