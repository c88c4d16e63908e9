"""The same events counted in every layer, hour by hour: what the hand-written suite `layers` compares."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from schemas.model import Aggregate, Contract, Measure
from spark import measures

COUNTS = ("rows", "distinct_in_batch", "distinct_events", "speed", "batch_1m", "batch_5m", "batch_1h")
"""The first three are of accepted rows of bronze; `speed` and `batch_…` are sums over the rows of those layers."""


def counter(aggregate: Aggregate) -> Measure | None:
    """The measure by which layers are compared: the first that counts, events rather than values."""
    counts = [measure for measure in aggregate.measures if measure.kind == "count"]
    return next((measure for measure in counts if measure.of is None), counts[0] if counts else None)


def layers(
    rows: DataFrame,
    partials: Mapping[str, DataFrame],
    windows: Mapping[str, DataFrame],
    contract: Contract,
) -> DataFrame:
    """One row per aggregate and hour (UTC) with `COUNTS`: 0 where a layer has nothing, null where the aggregate has no
    such window.

    `rows` are `ledger.marked` rows of bronze, `partials` and `windows` the rows of the speed and of the batch layer by
    aggregate, all of the same hours. Aggregates without a measure that counts are left out.
    """
    long = []
    for aggregate in contract.aggregates:
        measure = counter(aggregate)
        if measure is None:
            continue
        [state] = measures.states(aggregate.model_copy(update={"measures": [measure]}), contract)
        counted = F.expr(state.make)
        long += [
            _counts(rows, aggregate, "event_time", "rows", counted),
            _counts(rows.where("distinct_in_batch"), aggregate, "event_time", "distinct_in_batch", counted),
            _counts(rows.where("distinct_event"), aggregate, "event_time", "distinct_events", counted),
            _counts(partials[aggregate.name], aggregate, "window_start", "speed", F.sum(state.name)),
            _counts(
                windows[aggregate.name], aggregate, "hour", F.concat(F.lit("batch_"), "window"), F.sum(measure.name)
            ),
        ]
    found = reduce(DataFrame.unionByName, long)
    lacking = [
        F.when(F.col("aggregate") == aggregate.name, F.lit(f"batch_{window}"))
        for aggregate in contract.aggregates
        for window in ("1m", "5m", "1h")
        if window not in aggregate.windows
    ]
    absent = F.array(*lacking) if lacking else F.array().cast("array<string>")
    return found.groupBy("aggregate", "hour").agg(
        *(
            F.when(~F.coalesce(F.array_contains(absent, name), F.lit(False)), _total(name)).alias(name)
            for name in COUNTS
        )
    )  # fmt: skip


def _total(layer: str) -> Column:
    return F.coalesce(F.sum(F.when(F.col("layer") == layer, F.col("n"))), F.lit(0))


def _counts(frame: DataFrame, aggregate: Aggregate, time: str, layer: str | Column, counted: Column) -> DataFrame:
    name = F.lit(layer) if isinstance(layer, str) else layer
    return (
        frame.groupBy(F.date_trunc("hour", F.col(time)).alias("hour"), name.alias("layer"))
        .agg(counted.cast("bigint").alias("n"))
        .select(F.lit(aggregate.name).alias("aggregate"), "hour", "layer", "n")
    )
