"""The same events counted in every layer, hour by hour: what the hand-written suite `layers` compares."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas.contract.model import Aggregate, Contract, Measure
from schemas.contract.model import Window as WindowName
from spark.definitions import measures

COUNTS = ("rows", "distinct_in_batch", "distinct_events", "repaired", "replayed", "speed")
"""Of accepted rows of bronze, of those that deduplication within a batch and over all keeps, of those that came by the
retry topic, because bronze had lost them (the speed layer has counted them before, or not) or as dead letters (which
bronze may have lost afterwards), and of the partials."""

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
    began: Mapping[str, int],
    published: str = "true",
    final: str = "true",
    compared: str = "true",
) -> DataFrame:
    """One row per aggregate and hour (UTC): `COUNTS`; `with_repairs` and `with_replays`, what the speed layer has
    counted at most if bronze lost and got back records, and replayed letters among them; and `batch_1m`, `batch_5m` and
    `batch_1h`, the sums over windows. 0 where a layer has nothing; `speed` is null where the speed layer does not have
    all of the hour, because its partials `began` (aggregate to batch) later, and where it is not `compared` (SQL over
    `aggregate` and `hour`).

    `rows` are `ledger.marked` rows of bronze, `partials` and `windows` the rows of the speed and of the batch layer by
    aggregate, all of the same hours. `published` (SQL over `rows`) tells which rows the windows are made of, and
    `final` (over `hour`) which hours they cover; in others, and for windows that the aggregate does not have,
    `batch_…` is null. Aggregates without a measure that counts are left out.
    """
    parts = [
        part
        for aggregate in contract.aggregates
        if (measure := counter(aggregate))
        for part in _counts_of(aggregate, measure, rows, partials, windows, contract, began, published)
    ]
    together = reduce(lambda left, right: left.unionByName(right, allowMissingColumns=True), parts)
    is_whole = F.coalesce(F.sum("_before"), F.lit(0)) + F.coalesce(F.sum("_without"), F.lit(0)) == 0
    totals = {name: F.coalesce(F.sum(name), F.lit(0)) for name in COUNTS}
    totals["speed"] = F.when(is_whole & F.expr(compared), totals["speed"])
    totals["with_repairs"] = totals["distinct_in_batch"] + totals["repaired"]
    totals["with_replays"] = totals["with_repairs"] + totals["replayed"]
    for window in WINDOWS:
        lacking = [aggregate.name for aggregate in contract.aggregates if window not in aggregate.windows]
        summed = F.sum(f"batch_{window}") if f"batch_{window}" in together.columns else F.lit(None)
        covered = F.expr(final) & ~F.col("aggregate").isin(lacking)
        totals[f"batch_{window}"] = F.when(covered, F.coalesce(summed, F.lit(0)))
    return together.groupBy("aggregate", "hour").agg(*(total.alias(name) for name, total in totals.items()))


def _counts_of(
    aggregate: Aggregate,
    measure: Measure,
    rows: DataFrame,
    partials: Mapping[str, DataFrame],
    windows: Mapping[str, DataFrame],
    contract: Contract,
    began: Mapping[str, int],
    published: str,
) -> list[DataFrame]:
    """What `measure` counts of one aggregate by hour, a frame a layer. `_before` are rows of batches before the
    aggregate's first partials, and `_without` partials that do not have the measure."""
    [state] = measures.states(aggregate.model_copy(update={"measures": [measure]}), contract)
    name = F.lit(aggregate.name).alias("aggregate")
    of_rows = {
        "rows": state.make,
        "distinct_in_batch": f"{state.make} filter (where `$distinct_in_batch`)",
        "repaired": f"{state.make} filter (where original is not null and attempt = 0)",
        "replayed": f"{state.make} filter (where original is not null and attempt > 0)",
        "distinct_events": f"{state.make} filter (where `$distinct_event` and ({published}))",
        "_before": f"count_if(batch < {began.get(aggregate.name, 0)})",
    }
    of_partials = {"speed": f"sum(`{state.name}`)", "_without": f"count_if(`{state.name}` is null)"}
    of_windows = {
        f"batch_{window}": f"coalesce(sum(`{measure.name}`) filter (where window = '{window}'), 0)"
        for window in aggregate.windows
    }
    return [
        _by_hour(rows, "event_time", of_rows).select(name, "*"),
        _by_hour(partials[aggregate.name], "window_start", of_partials).select(name, "*"),
        _by_hour(windows[aggregate.name], "hour", of_windows).select(name, "*"),
    ]


def _by_hour(frame: DataFrame, time: str, counts: Mapping[str, str]) -> DataFrame:
    return frame.groupBy(F.date_trunc("hour", F.col(time)).alias("hour")).agg(
        *(F.expr(sql).cast("bigint").alias(name) for name, sql in counts.items())
    )
