"""The ledger: where a served number differs from the exact one, and the cause, proved by calculation.

A run compares its exact values with what was served for the same windows: the folded speed layer for hours that are
published for the first time, the published value for hours that are published again. Each difference is explained by
computing the served value again from the rows that it must have been made of:

- a new hour: its rows with repeats dropped only within a batch, as the speed layer drops them. If that gives the
  served value, the cause is `duplicate`;
- a late hour: the distinct events of batches up to the last publication's. If that gives the published value, new
  rows made the difference: `replayed` if one of them came by the retry topic, else `late`;
- what is unexplained so far is calculated from other histories of the same rows (`reconsidered`): with the records
  that bronze had `lost` and a repair sent again put back where they were first counted (`replayed`), and, where a
  measure was added to a stream that ran, from the batches that the speed layer has it of (`added`);
- anything else is `unexplained`. A backfill, which a person has ordered, replaces such values as `corrected`.

Estimates of the speed layer (distinct, quantile) are not compared with exact values: they differ within the stated
error of their sketch by nature, and repeated events that move them show in the counts of the same window. Their
published, exact values are compared when an hour is published again.
"""

from __future__ import annotations

from functools import reduce

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import (
    BinaryType,
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    StringType,
    TimestampType,
)

from schemas.contract.model import Aggregate, Contract, Measure
from spark.batch.layer_counts import counter
from spark.definitions import measures
from spark.transforms import aggregates

RELATIVE = 1e-12
"""Averages and sums of floats closer than this, relative to the greater, are equal: they are rounded to doubles."""

OUTPUT = ("measure", "speed", "exact", "difference", "cause", "rows", "repeats", "late", "replayed")
"""The columns of differences, which have `$` before their names here: a dimension may be called so."""


def marked(rows: DataFrame, contract: Contract) -> DataFrame:
    """Rows of bronze, each hour in one partition, with `aggregates.HOUR` and two flags: `$distinct_event`, for the row
    that exact deduplication keeps, and `$distinct_in_batch`, for the rows that the speed layer counted. Needs every row
    that has one of the events' ids."""
    repeats_share_an_hour = contract.event_time in contract.event_id
    identity = [aggregates.HOUR, *contract.event_id] if repeats_share_an_hour else contract.event_id
    order = Window.partitionBy(*identity).orderBy("batch", "topic", "partition", "offset")
    placed = aggregates.by_hour(rows, "event_time") if repeats_share_an_hour else rows
    flagged = (
        placed.withColumn("$before", F.lag("batch").over(order))
        .withColumn("$distinct_event", F.col("$before").isNull())
        .withColumn("$distinct_in_batch", ~F.col("$before").eqNullSafe(F.col("batch")))
        .drop("$before")
    )
    return flagged if repeats_share_an_hour else aggregates.by_hour(flagged, "event_time")


def differences(exact: DataFrame, served: DataFrame, contract: Contract, aggregate: Aggregate) -> DataFrame:
    """The measures that differ, one row each: `window`, `window_start`, the dimensions, `$measure`, `$speed` (the
    served value) and `$exact`, both `_VALUE`s, and `$difference`, a double.

    `served` has the columns of `exact` and `$estimated` (boolean): whether it comes from the speed layer, which has no
    exact distincts and quantiles to compare. A window that is missing on one side counts 0 events there, and has no
    other values. Extremes that are no numbers (strings) are not compared; times are, as seconds
    since the epoch, and dates as days.
    """
    keys = ["window", "window_start", *aggregate.dimensions]
    numbers = _numbers(contract, aggregate)
    nothing = F.lit(None).cast(_VALUE)
    sides = [
        frame.select(
            *keys,
            (F.col("$estimated") if side == "s" else F.lit(None).cast("boolean")).alias("$estimated"),
            *((value if side == "e" else nothing).alias(f"$e_{name}") for name, value in numbers.items()),
            *((value if side == "s" else nothing).alias(f"$s_{name}") for name, value in numbers.items()),
        )
        for side, frame in (("e", exact), ("s", served))
    ]
    compared = [measure for measure in aggregate.measures if measure.name in numbers]
    # A group has at most one row of each side, and grouping takes null keys as equal.
    joined = (
        union(sides)
        .groupBy(*keys)
        .agg(
            F.coalesce(F.bool_or("$estimated"), F.lit(True)).alias("$estimated"),
            *(
                _counted(measure, F.max(f"${own}_{measure.name}")).alias(f"${own}_{measure.name}")
                for own in ("e", "s")
                for measure in compared
            ),
        )
    )
    unequal = [_difference(measure, measures.final_type(measure, contract)) for measure in compared]
    found = F.filter(F.array(*unequal), lambda difference: difference.isNotNull())
    return joined.select(*keys, F.inline(found))


def _difference(measure: Measure, type_: DataType) -> Column:
    """The measure with the served value (`$s_…`) and the exact one (`$e_…`); null where they are equal."""
    served, exact = F.col(f"$s_{measure.name}"), F.col(f"$e_{measure.name}")
    values = F.struct(
        F.lit(measure.name).alias("$measure"),
        served.alias("$speed"),
        exact.alias("$exact"),
        _subtracted(exact, served, type_).alias("$difference"),
    )
    return F.when(~_equal(measure, served, exact, F.col("$estimated")), values)


def _subtracted(exact: Column, served: Column, type_: DataType) -> Column:
    """`exact` less `served`, rounded to a double after the subtraction where the type is exact: doubles of large
    numbers that differ may be equal."""
    rounded = exact["number"] - served["number"]
    if not isinstance(type_, (DecimalType, LongType, IntegerType)):
        return rounded
    # A digit less than Spark holds, or it would take one from the scale.
    narrow = DecimalType(37, min(type_.scale, 37) if isinstance(type_, DecimalType) else 0)
    return F.coalesce((exact["text"].try_cast(narrow) - served["text"].try_cast(narrow)).cast("double"), rounded)


def explained(differences: DataFrame, rows: DataFrame, contract: Contract, aggregate: Aggregate) -> DataFrame:
    """`differences` with the cause and its evidence.

    `rows` are the `marked` rows of the hours with `$is_late_hour` (the hour was published before) and `$is_new` (the
    row came after the last publication), `original` and the event columns. Adds `$cause` and, of the window and key,
    `$rows`, `$repeats` (rows that are no new event), `$late` (rows that came after the hour was published) and
    `$replayed` (rows that came by the retry topic: replayed dead letters, and lost records that were sent again).
    """
    keys = ["window", "window_start", *aggregate.dimensions]
    concerned = _concerned(differences, rows, aggregate)
    came_again = F.col("original").isNotNull()
    evidence = concerned.groupBy(*keys).agg(
        F.count("*").alias("$rows"),
        F.count_if(~F.col("$distinct_event")).alias("$repeats"),
        F.count_if(F.col("$is_late_hour") & F.col("$is_new")).alias("$late"),
        F.count_if(came_again).alias("$replayed"),
        F.bool_or("$is_late_hour").alias("$late_hour"),
        F.count_if(F.col("$is_new") & came_again).alias("$new_replayed"),
    )
    joined = _join(differences, evidence, keys, "left")
    joined = _join(joined, _proofs(concerned, contract, aggregate), [*keys, "$measure"], "left")
    late_cause = F.when(F.col("$new_replayed") > 0, "replayed").otherwise("late")
    cause = F.when(~_proved(aggregate), "unexplained").when(F.col("$late_hour"), late_cause).otherwise("duplicate")
    zero = [F.coalesce(name, F.lit(0)).alias(name) for name in ("$rows", "$repeats", "$late", "$replayed")]
    return joined.select(*keys, "$measure", "$speed", "$exact", "$difference", cause.alias("$cause"), *zero)


def reconsidered(
    found: DataFrame, history: DataFrame, cause: str, contract: Contract, aggregate: Aggregate, *of: str
) -> DataFrame:
    """`found` (rows of `explained`) with `cause` in place of `unexplained` where the served value is what `history`
    gives: other rows in the form of `explained`, from which it may have been made. Only measures in `of`, if given."""
    keys = ["window", "window_start", *aggregate.dimensions]
    open_ = (F.col("$cause") == "unexplained") & (F.col("$measure").isin(*of) if of else F.lit(True))
    concerned = _concerned(found.where(open_), history, aggregate)
    joined = _join(found, _proofs(concerned, contract, aggregate), [*keys, "$measure"], "left")
    new_cause = F.when(open_ & _proved(aggregate), cause).otherwise(F.col("$cause"))
    return joined.select(*(new_cause.alias(c) if c == "$cause" else F.col(c) for c in found.columns))


def lost(rows: DataFrame, partials: DataFrame, contract: Contract, aggregate: Aggregate) -> DataFrame:
    """The rows that bronze had and lost, as far as they came again by the retry topic: copies of those of `rows` (in
    the form of `explained`) with the `batch` in which the speed layer had counted them, each `$distinct_in_batch`.

    That there were such rows is what `partials` (of the same hours) tell: in some batch they count more events of a
    minute and key than bronze has of it. If that is as many as records of the minute and key came again, or as many as
    different events, it was those; sent again by a repair (attempt 0) rather than replayed. Otherwise nobody knows
    which, and there are none. Without a measure that counts there is no evidence either.
    """
    count = counter(aggregate)
    if count is None:
        return rows.limit(0)
    [state] = measures.states(aggregate.model_copy(update={"measures": [count]}), contract)
    keys = ["$minute", *aggregate.dimensions]
    placed = rows.withColumn("$minute", aggregates.truncated("event_time", "1m"))
    if count.of is not None:
        placed = placed.where(F.col(count.of).isNotNull())
    held = placed.where("`$distinct_in_batch`").groupBy(*keys, "batch").agg((-F.expr(state.make)).alias("$surplus"))
    counted = partials.select(
        F.col("window_start").alias("$minute"), *aggregate.dimensions, "batch", F.col(state.name).alias("$surplus")
    )
    surplus = (
        counted.unionByName(held)
        .groupBy(*keys, "batch")
        .agg(F.sum("$surplus").alias("$surplus"))
        .where("`$surplus` > 0")
        .groupBy(*keys)
        .agg(F.sum("$surplus").alias("$of_all"), F.min("batch").alias("$counted_in"))
    )
    again = _join(placed.where("original is not null"), surplus, keys, "inner").where("batch > `$counted_in`")
    of_minute = Window.partitionBy(*keys)
    first = (
        F.row_number().over(Window.partitionBy(*keys, *contract.event_id).orderBy("attempt", "batch", "offset")) == 1
    )
    numbered = again.withColumns({"$first": first, "$repaired": F.col("attempt") == 0})
    sizes = {
        "$rows": F.count_if("$repaired").over(of_minute),
        "$events": F.count_if(F.col("$repaired") & F.col("$first")).over(of_minute),
        "$all_rows": F.count("*").over(of_minute),
        "$all_events": F.count_if("$first").over(of_minute),
    }
    was_counted = (
        F.when(F.col("$of_all") == F.col("$rows"), F.col("$repaired"))
        .when(F.col("$of_all") == F.col("$events"), F.col("$repaired") & F.col("$first"))
        .when(F.col("$of_all") == F.col("$all_rows"), F.lit(True))
        .when(F.col("$of_all") == F.col("$all_events"), F.col("$first"))
    )
    found = numbered.withColumns(sizes).where(was_counted)
    return found.withColumns({"batch": F.col("$counted_in"), "$distinct_in_batch": F.lit(True)}).select(rows.columns)


def _concerned(differences: DataFrame, rows: DataFrame, aggregate: Aggregate) -> DataFrame:
    """`rows` in the windows and keys of `differences`, with `$counted`: the served value must contain the row."""
    counted = F.when(F.col("$is_late_hour"), F.col("$distinct_event") & ~F.col("$is_new")).otherwise(
        F.col("$distinct_in_batch")
    )
    keys = ["window", "window_start", *aggregate.dimensions]
    in_windows = aggregates.in_windows(rows.withColumn("$counted", counted), "event_time", *aggregate.windows)
    return _join(in_windows, differences.select(*keys).distinct(), keys, "left_semi")


def _proofs(concerned: DataFrame, contract: Contract, aggregate: Aggregate) -> DataFrame:
    """`$proof`, the value of each measure by the counted rows, one row a window, key and `$measure`."""
    again = aggregates.exact_in_windows(concerned.where("`$counted`"), contract, aggregate)
    proofs = (
        F.struct(F.lit(name).alias("$measure"), value.alias("$proof"))
        for name, value in _numbers(contract, aggregate).items()
    )
    return again.select("window", "window_start", *aggregate.dimensions, F.inline(F.array(*proofs)))


def _proved(aggregate: Aggregate) -> Column:
    """Whether the served value is the `proof`."""
    proved = F.lit(False)
    for measure in aggregate.measures:
        equal = _equal(measure, F.col("$speed"), _counted(measure, F.col("$proof")), F.lit(False))
        proved = F.when(F.col("$measure") == measure.name, equal).otherwise(proved)
    return proved


_VALUE = "struct<number: double, text: string>"
"""A value of a measure: as a double, for the ledger, and as text, which is null for doubles. Values of exact types are
compared as text, because different ones may be the same double."""


def _numbers(contract: Contract, aggregate: Aggregate) -> dict[str, Column]:
    """The measures as `_VALUE`s, by name; not those that are no numbers."""
    found = {}
    for measure in aggregate.measures:
        column, text = F.col(measure.name), F.col(measure.name).cast("string")
        match measures.final_type(measure, contract):
            case StringType() | BinaryType():
                continue
            case TimestampType():
                number, text = F.unix_micros(column) / 1e6, F.unix_micros(column).cast("string")
            case DateType():
                number, text = F.unix_date(column).cast("double"), F.unix_date(column).cast("string")
            case DoubleType() | FloatType():
                number, text = column.cast("double"), F.lit(None).cast("string")
            case _:
                number = column.cast("double")
        found[measure.name] = F.struct(number.alias("number"), text.alias("text")).cast(_VALUE)
    return found


def _counted(measure: Measure, value: Column) -> Column:
    """The value; a window that is not there has counted nothing."""
    if measure.kind not in ("count", "distinct"):
        return value
    number, text = F.coalesce(value["number"], F.lit(0.0)), F.coalesce(value["text"], F.lit("0"))
    return F.struct(number.alias("number"), text.alias("text")).cast(_VALUE)


def _equal(measure: Measure, served: Column, exact: Column, estimated: Column) -> Column:
    one, other = served["number"], exact["number"]
    close: Column = one == other
    if measure.kind in ("sum", "avg"):
        greatest = F.greatest(F.abs(one), F.abs(other))
        close = close | ((greatest < float("inf")) & (F.abs(one - other) <= RELATIVE * greatest))
    same = F.coalesce(close, one.isNull() & other.isNull())
    is_exact = served["text"].isNotNull() | exact["text"].isNotNull()
    same = F.when(is_exact, served["text"].eqNullSafe(exact["text"])).otherwise(same)
    return same | estimated if measures.is_estimate(measure) else same


def _join(left: DataFrame, right: DataFrame, keys: list[str], how: str) -> DataFrame:
    """A join on null-safe keys: a dimension may be null. The keys are those of the left side."""
    renamed = right.select(*(F.col(c).alias(f"$right_{c}") if c in keys else F.col(c) for c in right.columns))
    same = reduce(Column.__and__, [F.col(key).eqNullSafe(F.col(f"$right_{key}")) for key in keys])
    return left.join(renamed, same, how).drop(*(f"$right_{key}" for key in keys))


def union(frames: list[DataFrame]) -> DataFrame:
    """The rows of all `frames`, repeated rows included. The frames, at least one, have the same columns by name."""
    return reduce(DataFrame.unionByName, frames)
