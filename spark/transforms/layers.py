"""The same events counted in every layer, hour by hour: what the hand-written suite `layers` compares."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from schemas.model import Aggregate, Contract, Measure
from schemas.model import Window as WindowName
from spark import measures

COUNTS = ("rows", "distinct_in_batch", "distinct_events", "speed")
"""Of accepted rows of bronze, of those that deduplication within a batch and over all keeps, and of the partials."""

WINDOWS: tuple[WindowName, ...] = ("1m", "5m", "1h")


def counter(aggregate: Aggregate) -> Measure | None:
    """The measure by which layers are compared: the first that counts, events rather than values."""
    counts = [measure for measure in aggregate.measures if measure.kind == "count"]
    return next((measure for measure in counts if measure.of is None), counts[0] if counts else None)


def layers(
    rows: DataFrame,
    partials: Mapping[str, DataFrame],
    windows: Mapping[str, DataFrame],
    contract: Contract,
    published: str = "true",
    final: str = "true",
) -> DataFrame:
    """One row per aggregate and hour (UTC): `COUNTS`, and `batch_1m`, `batch_5m` and `batch_1h`, the sums over windows.
    0 where a layer has nothing.

    `rows` are `ledger.marked` rows of bronze, `partials` and `windows` the rows of the speed and of the batch layer by
    aggregate, all of the same hours. `published` (SQL over `rows`) tells which rows the windows are made of, and
    `final` (over `hour`) which hours they cover; in others, and for windows that the aggregate does not have,
    `batch_…` is null. Aggregates without a measure that counts are left out.
    """
    parts = []
    for aggregate in contract.aggregates:
        measure = counter(aggregate)
        if measure is None:
            continue
        [state] = measures.states(aggregate.model_copy(update={"measures": [measure]}), contract)
        name = F.lit(aggregate.name).alias("aggregate")
        of_rows = {
            "rows": state.make,
            "distinct_in_batch": f"{state.make} filter (where distinct_in_batch)",
            "distinct_events": f"{state.make} filter (where distinct_event and ({published}))",
        }
        of_windows = {
            f"batch_{window}": f"coalesce(sum(`{measure.name}`) filter (where window = '{window}'), 0)"
            for window in aggregate.windows
        }
        parts += [
            _by_hour(rows, "event_time", of_rows).select(name, "*"),
            _by_hour(partials[aggregate.name], "window_start", {"speed": f"sum(`{state.name}`)"}).select(name, "*"),
            _by_hour(windows[aggregate.name], "hour", of_windows).select(name, "*"),
        ]
    together = reduce(lambda left, right: left.unionByName(right, allowMissingColumns=True), parts)
    lacking = {
        window: [aggregate.name for aggregate in contract.aggregates if window not in aggregate.windows]
        for window in WINDOWS
    }
    return together.groupBy("aggregate", "hour").agg(
        *(_total(name, together).alias(name) for name in COUNTS),
        *(
            F.when(
                F.expr(final) & ~F.col("aggregate").isin(lacking[window]),
                F.coalesce(
                    F.sum(f"batch_{window}") if f"batch_{window}" in together.columns else F.lit(None), F.lit(0)
                ),
            ).alias(f"batch_{window}")
            for window in WINDOWS
        ),
    )


def _total(name: str, frame: DataFrame) -> Column:
    return F.coalesce(F.sum(name), F.lit(0)) if name in frame.columns else F.lit(0)


def _by_hour(frame: DataFrame, time: str, counts: Mapping[str, str]) -> DataFrame:
    return frame.groupBy(F.date_trunc("hour", F.col(time)).alias("hour")).agg(
        *(F.expr(sql).cast("bigint").alias(name) for name, sql in counts.items())
    )
