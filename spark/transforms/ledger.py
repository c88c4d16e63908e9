"""The ledger: where a served number differs from the exact one, and the cause, proved by calculation.

A run compares its exact values with what was served for the same windows: the folded speed layer for hours that are
published for the first time, the published value for hours that are published again. Each difference is explained by
computing the served value again from the rows that it must have been made of:

- a new hour: its rows with repeats dropped only within a batch, as the speed layer drops them. If that gives the
  served value, the cause is `duplicate`;
- a late hour: the distinct events of batches up to the last publication's. If that gives the published value, new
  rows made the difference: `replayed` if one of them is a replayed dead letter, else `late`;
- anything else is `unexplained`.

Estimates of the speed layer (distinct, quantile) are not compared with exact values: they differ within the stated
error of their sketch by nature, and repeated events that move them show in the counts of the same window. Their
published, exact values are compared when an hour is published again.
"""

from __future__ import annotations

from functools import reduce

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import BinaryType, DateType, StringType, TimestampType

from schemas.model import Aggregate, Contract, Measure
from spark import measures
from spark.transforms import aggregates

RELATIVE = 1e-9
"""Values closer than this, relative to the greater, are equal: an average is a division of doubles."""


def marked(rows: DataFrame, contract: Contract) -> DataFrame:
    """Rows of bronze, each hour in one partition, with `hour` and two flags: `distinct_event`, for the row that exact
    deduplication keeps, and `distinct_in_batch`, for the rows that the speed layer counted. Needs every row that has
    one of the events' ids."""
    repeats_share_an_hour = contract.event_time in contract.event_id
    identity = ["hour", *contract.event_id] if repeats_share_an_hour else contract.event_id
    order = Window.partitionBy(*identity).orderBy("batch", "topic", "partition", "offset")
    placed = aggregates.by_hour(rows, "event_time") if repeats_share_an_hour else rows
    flagged = (
        placed.withColumn("_before", F.lag("batch").over(order))
        .withColumn("distinct_event", F.col("_before").isNull())
        .withColumn("distinct_in_batch", ~F.col("_before").eqNullSafe(F.col("batch")))
        .drop("_before")
    )
    return flagged if repeats_share_an_hour else aggregates.by_hour(flagged, "event_time")


def differences(exact: DataFrame, served: DataFrame, contract: Contract, aggregate: Aggregate) -> DataFrame:
    """The measures that differ, one row each: `window`, `window_start`, the dimensions, `measure`, `speed` (the served
    value) and `exact`, both double.

    `served` has the columns of `exact` and `estimated` (boolean): whether it comes from the speed layer, which has no
    exact distincts and quantiles to compare. A window that is missing on one side counts 0 events there, and has no
    other values. Extremes that are no numbers (strings) are not compared; times are, as seconds
    since the epoch, and dates as days.
    """
    keys = ["window", "window_start", *aggregate.dimensions]
    numbers = _numbers(contract, aggregate)
    nothing = F.lit(None).cast("double")
    sides = [
        frame.select(
            *keys,
            (F.col("estimated") if side == "s" else F.lit(None).cast("boolean")).alias("estimated"),
            *((value if side == "e" else nothing).alias(f"e_{name}") for name, value in numbers.items()),
            *((value if side == "s" else nothing).alias(f"s_{name}") for name, value in numbers.items()),
        )
        for side, frame in (("e", exact), ("s", served))
    ]
    compared = [measure for measure in aggregate.measures if measure.name in numbers]
    # A group has at most one row of each side, and grouping takes null keys as equal.
    joined = (
        union(sides)
        .groupBy(*keys)
        .agg(
            F.coalesce(F.bool_or("estimated"), F.lit(True)).alias("estimated"),
            *(
                _counted(measure, F.max(f"{own}_{measure.name}")).alias(f"{own}_{measure.name}")
                for own in ("e", "s")
                for measure in compared
            ),
        )
    )
    found = F.filter(
        F.array(
            *(
                F.when(
                    ~_equal(measure, F.col(f"s_{measure.name}"), F.col(f"e_{measure.name}"), F.col("estimated")),
                    F.struct(
                        F.lit(measure.name).alias("measure"),
                        F.col(f"s_{measure.name}").alias("speed"),
                        F.col(f"e_{measure.name}").alias("exact"),
                    ),
                )
                for measure in compared
            )
        ),
        lambda difference: difference.isNotNull(),
    )
    return joined.select(*keys, F.inline(found))


def explained(differences: DataFrame, rows: DataFrame, contract: Contract, aggregate: Aggregate) -> DataFrame:
    """`differences` with the cause and its evidence.

    `rows` are the `marked` rows of the hours with `is_late_hour` (the hour was published before) and `is_new` (the row
    came after the last publication), `attempt` and the event columns. Adds `cause` and, of the window and key, `rows`,
    `repeats` (rows that are no new event), `late` (rows that came after the hour was published) and `replayed` (rows
    that are replayed dead letters).
    """
    counted = F.when(F.col("is_late_hour"), F.col("distinct_event") & ~F.col("is_new")).otherwise(
        F.col("distinct_in_batch")
    )
    keys = ["window", "window_start", *aggregate.dimensions]
    in_windows = aggregates.in_windows(rows.withColumn("counted", counted), "event_time", *aggregate.windows)
    concerned = _join(in_windows, differences.select(*keys).distinct(), keys, "left_semi")
    evidence = concerned.groupBy(*keys).agg(
        F.count("*").alias("rows"),
        F.count_if(~F.col("distinct_event")).alias("repeats"),
        F.count_if(F.col("is_late_hour") & F.col("is_new")).alias("late"),
        F.count_if(F.col("attempt") > 0).alias("replayed"),
        F.bool_or("is_late_hour").alias("_late_hour"),
        F.count_if(F.col("is_new") & (F.col("attempt") > 0)).alias("_new_replayed"),
    )
    again = aggregates.exact_in_windows(concerned.where("counted"), contract, aggregate)
    proofs = (
        F.struct(F.lit(name).alias("measure"), value.alias("proof"))
        for name, value in _numbers(contract, aggregate).items()
    )
    proof = again.select(*keys, F.inline(F.array(*proofs)))
    joined = _join(differences, evidence, keys, "left")
    joined = _join(joined, proof, [*keys, "measure"], "left")
    cause = F.lit("unexplained")
    for measure in aggregate.measures:
        is_this = F.col("measure") == measure.name
        equal = _equal(measure, F.col("speed"), _counted(measure, F.col("proof")), F.lit(False))
        late_cause = F.when(F.col("_new_replayed") > 0, "replayed").otherwise("late")
        cause = (
            F.when(is_this & F.col("_late_hour") & equal, late_cause)
            .when(is_this & ~F.col("_late_hour") & equal, "duplicate")
            .otherwise(cause)
        )
    zero = [F.coalesce(name, F.lit(0)).alias(name) for name in ("rows", "repeats", "late", "replayed")]
    return joined.select(*keys, "measure", "speed", "exact", cause.alias("cause"), *zero)


def _numbers(contract: Contract, aggregate: Aggregate) -> dict[str, Column]:
    """The measures as doubles, by name; not those that are no numbers."""
    found = {}
    for measure in aggregate.measures:
        match measures.final_type(measure, contract):
            case StringType() | BinaryType():
                continue
            case TimestampType():
                found[measure.name] = F.unix_micros(measure.name) / 1e6
            case DateType():
                found[measure.name] = F.unix_date(measure.name).cast("double")
            case _:
                found[measure.name] = F.col(measure.name).cast("double")
    return found


def _counted(measure: Measure, value: Column) -> Column:
    """The value; a window that is not there has counted nothing."""
    return F.coalesce(value, F.lit(0.0)) if measure.kind in ("count", "distinct") else value


def _equal(measure: Measure, served: Column, exact: Column, estimated: Column) -> Column:
    close = (served == exact) | (F.abs(served - exact) <= RELATIVE * F.greatest(F.abs(served), F.abs(exact)))
    same = F.coalesce(close, served.isNull() & exact.isNull())
    return same | estimated if measures.is_estimate(measure) else same


def _join(left: DataFrame, right: DataFrame, keys: list[str], how: str) -> DataFrame:
    """A join on null-safe keys: a dimension may be null. The keys are those of the left side."""
    renamed = right.select(*(F.col(c).alias(f"_r_{c}") if c in keys else F.col(c) for c in right.columns))
    same = reduce(Column.__and__, [F.col(key).eqNullSafe(F.col(f"_r_{key}")) for key in keys])
    return left.join(renamed, same, how).drop(*(f"_r_{key}" for key in keys))


def union(frames: list[DataFrame]) -> DataFrame:
    return reduce(DataFrame.unionByName, frames)
