"""The ledger: where a served number differs from the exact one, and the cause, proved by calculation.

A run compares its exact values with what was served for the same windows: the folded speed layer for hours that are
published for the first time, the published value for hours that are published again. Each difference is explained by
computing the served value again from the rows that it must have been made of:

- a new hour: its rows with repeats dropped only within a batch, as the speed layer drops them. If that gives the
  served value, the cause is `duplicate`;
- a late hour: the distinct events of batches up to the last publication's. If that gives the published value, new
  rows made the difference: `replayed` if one of them is a replayed dead letter, else `late`;
- anything else is `unexplained`.

Estimates of the speed layer (distinct, quantile) may differ from the exact value within the stated error of their
sketch; that is no difference.
"""

from __future__ import annotations

from functools import reduce

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from schemas.model import Aggregate, Contract, Measure
from schemas.model import Window as WindowName
from spark import measures
from spark.transforms import aggregates

RELATIVE = 1e-9
"""Values closer than this, relative to the greater, are equal: an average is a division of doubles."""

MARGIN = 2
"""Sketches may be off by this many times their stated error (3 sigma, 99%) before they count as different. A year has
some 10,000 windows a key, so the stated error alone would accuse an honest sketch every week."""


def marked(rows: DataFrame, contract: Contract) -> DataFrame:
    """Rows of bronze with two flags: `distinct_event`, for the row that exact deduplication keeps, and
    `distinct_in_batch`, for the rows that the speed layer counted. Needs every row that has one of the events' ids."""
    order = Window.partitionBy(*contract.event_id).orderBy("batch", "topic", "partition", "offset")
    before = F.lag("batch").over(order)
    return (
        rows.withColumn("_before", before)
        .withColumn("distinct_event", F.col("_before").isNull())
        .withColumn("distinct_in_batch", ~F.col("_before").eqNullSafe(F.col("batch")))
        .drop("_before")
    )


def exact_windows(events: DataFrame, contract: Contract, aggregate: Aggregate) -> DataFrame:
    """`aggregates.exact` of every window of the aggregate in one frame."""
    return union([aggregates.exact(events, contract, aggregate, window) for window in aggregate.windows])


def speed_windows(partials: DataFrame, contract: Contract, aggregate: Aggregate) -> DataFrame:
    """The speed layer's values of every window of the aggregate, in the columns of `exact_windows`."""
    return union(
        [
            aggregates.finalize(
                aggregates.rollup(partials, contract, aggregate, window), contract, aggregate, window
            )
            for window in aggregate.windows
        ]
    )  # fmt: skip


def differences(exact: DataFrame, served: DataFrame, aggregate: Aggregate) -> DataFrame:
    """The measures that differ, one row each: `window`, `window_start`, the dimensions, `measure`, `speed` (the served
    value) and `exact`, both double.

    `served` has the columns of `exact` and `estimated` (boolean): whether its sketch measures are estimates. A window
    that is missing on one side counts 0 events there, and has no other values. A difference of a quantile may still
    be within its error, see `explained`.
    """
    keys = ["window", "window_start", *aggregate.dimensions]
    names = [measure.name for measure in aggregate.measures]
    e, s = exact.alias("e"), served.alias("s")
    same = reduce(Column.__and__, [F.col(f"e.{key}").eqNullSafe(F.col(f"s.{key}")) for key in keys])
    joined = e.join(s, same, "full_outer").select(
        *(F.coalesce(f"e.{key}", f"s.{key}").alias(key) for key in keys),
        F.coalesce(F.col("s.estimated"), F.lit(True)).alias("estimated"),
        *(_value(measure, "e").alias(f"e_{measure.name}") for measure in aggregate.measures),
        *(_value(measure, "s").alias(f"s_{measure.name}") for measure in aggregate.measures),
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
                for measure in aggregate.measures
            )
        ),
        lambda difference: difference.isNotNull(),
    )
    assert names
    return joined.select(*keys, F.explode(found).alias("found")).select(*keys, "found.*")


def explained(differences: DataFrame, rows: DataFrame, contract: Contract, aggregate: Aggregate) -> DataFrame:
    """`differences` with the cause and its evidence, less those that are within a sketch's error.

    `rows` are the `marked` rows of the hours with `is_late_hour` (the hour was published before) and `is_new` (the row
    came after the last publication), `attempt` and the event columns. Adds `cause` and, of the window and key, `rows`,
    `repeats` (rows that are no new event), `late` (rows that came after the hour was published) and `replayed` (rows
    that are replayed dead letters).
    """
    counted = F.when(F.col("is_late_hour"), F.col("distinct_event") & ~F.col("is_new")).otherwise(
        F.col("distinct_in_batch")
    )
    rows = rows.withColumn("counted", counted)
    return union(
        [
            _explained(differences.where(F.col("window") == window), rows, contract, aggregate, window)
            for window in aggregate.windows
        ]
    )


def _explained(
    found: DataFrame, rows: DataFrame, contract: Contract, aggregate: Aggregate, window: WindowName
) -> DataFrame:
    keys = ["window_start", *aggregate.dimensions]
    in_window = rows.withColumn("window_start", aggregates.truncated("event_time", window))
    concerned = _join(in_window, found.select(*keys).distinct(), keys, "left_semi")
    evidence = concerned.groupBy(*keys).agg(
        F.count("*").alias("rows"),
        F.count_if(~F.col("distinct_event")).alias("repeats"),
        F.count_if(F.col("is_late_hour") & F.col("is_new")).alias("late"),
        F.count_if(F.col("attempt") > 0).alias("replayed"),
        F.bool_or("is_late_hour").alias("_late_hour"),
        F.count_if(F.col("is_new") & (F.col("attempt") > 0)).alias("_new_replayed"),
    )
    again = aggregates.exact(concerned.where("counted"), contract, aggregate, window)
    proof = again.select(
        *keys,
        F.explode(
            F.array(
                *(
                    F.struct(F.lit(m.name).alias("measure"), F.col(m.name).cast("double").alias("proof"))
                    for m in aggregate.measures
                )
            )
        ).alias("_again"),
    ).select(*keys, "_again.*")
    ranks = _ranks(found, concerned, aggregate, keys)
    joined = _join(found, evidence, keys, "left")
    joined = _join(joined, proof, [*keys, "measure"], "left")
    joined = _join(joined, ranks, [*keys, "measure"], "left")
    cause = F.lit("unexplained")
    honest = F.lit(False)
    for measure in aggregate.measures:
        is_this = F.col("measure") == measure.name
        proved = _value(measure, None, F.col("proof"))
        equal = _equal(measure, F.col("speed"), proved, F.lit(False))
        remade = equal
        if measure.kind == "distinct":
            remade = _equal(measure, F.col("speed"), proved, F.lit(True))
        if measure.kind == "quantile":
            remade = equal | _holds_rank(measure, "counted")
            honest = F.when(is_this, ~F.col("_late_hour") & _holds_rank(measure, "exact")).otherwise(honest)
        late_cause = F.when(F.col("_new_replayed") > 0, "replayed").otherwise("late")
        cause = (
            F.when(is_this & F.col("_late_hour") & equal, late_cause)
            .when(is_this & ~F.col("_late_hour") & remade, "duplicate")
            .otherwise(cause)
        )
    zero = [F.coalesce(name, F.lit(0)).alias(name) for name in ("rows", "repeats", "late", "replayed")]
    return joined.where(~F.coalesce(honest, F.lit(False))).select(
        "window", *keys, "measure", "speed", "exact", cause.alias("cause"), *zero
    )


def _ranks(found: DataFrame, rows: DataFrame, aggregate: Aggregate, keys: list[str]) -> DataFrame:
    """Where the served quantiles stand among the values: for the exact and for the counted rows how many values are
    less (`less_`), not greater (`upto_`) and present at all (`all_`)."""
    parts = [
        _join(found.where(F.col("measure") == measure.name), rows, keys, "inner")
        .groupBy(*keys, "measure")
        .agg(
            *(
                F.count_if(F.col(flag) & condition).alias(f"{name}_{suffix}")
                for suffix, flag in (("exact", "distinct_event"), ("counted", "counted"))
                for name, condition in (
                    ("less", F.col(str(measure.of)).cast("double") < F.col("speed")),
                    ("upto", F.col(str(measure.of)).cast("double") <= F.col("speed")),
                    ("all", F.col(str(measure.of)).isNotNull() & ~F.isnan(F.col(str(measure.of)).cast("double"))),
                )
            )
        )
        for measure in aggregate.measures
        if measure.kind == "quantile"
    ]
    if parts:
        return union(parts)
    counts = [F.lit(0).alias(f"{n}_{suffix}") for suffix in ("exact", "counted") for n in ("less", "upto", "all")]
    return found.where("false").select(*keys, "measure", *counts)


def _holds_rank(measure: Measure, suffix: str) -> Column:
    """Whether the served quantile's rank is right within the sketch's error, which is none up to KLL_K values."""
    less, upto, all_ = (F.col(f"{name}_{suffix}") for name in ("less", "upto", "all"))
    error = F.when(all_ <= measures.KLL_K, 0.0).otherwise(MARGIN * measures.rank_error())
    rank, slack = F.lit(measure.rank), 1e-9
    holds = (all_ > 0) & (less < (rank + error) * all_ + slack) & (upto >= (rank - error) * all_ - slack)
    return F.coalesce(holds, F.lit(False))


def _value(measure: Measure, side: str | None, column: Column | None = None) -> Column:
    """The measure as a double; a window that is not there has counted nothing."""
    value = (F.col(f"{side}.{measure.name}") if column is None else column).cast("double")
    return F.coalesce(value, F.lit(0.0)) if measure.kind in ("count", "distinct") else value


def _equal(measure: Measure, served: Column, exact: Column, estimated: Column) -> Column:
    close = F.abs(served - exact) <= RELATIVE * F.greatest(F.abs(served), F.abs(exact))
    if measure.kind == "distinct":
        close = close | (estimated & (F.abs(served - exact) <= MARGIN * measures.distinct_error() * exact))
    return F.coalesce(close, served.isNull() & exact.isNull())


def _join(left: DataFrame, right: DataFrame, keys: list[str], how: str) -> DataFrame:
    """A join on null-safe keys: a dimension may be null. The keys are those of the left side."""
    renamed = right.select(*(F.col(c).alias(f"_r_{c}") if c in keys else F.col(c) for c in right.columns))
    same = reduce(Column.__and__, [F.col(key).eqNullSafe(F.col(f"_r_{key}")) for key in keys])
    return left.join(renamed, same, how).drop(*(f"_r_{key}" for key in keys))


def union(frames: list[DataFrame]) -> DataFrame:
    return reduce(DataFrame.unionByName, frames)
