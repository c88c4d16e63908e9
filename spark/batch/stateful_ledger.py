"""The ledger of stateful results: where the rows that were served differ from the exact ones, and why.

A row is named by `stateful_results.identity`, and compared by a few numbers: of an alert that it is there, and what was
`done`; of a session its `events`, `seconds` and measures that are numbers; of the join of an event its `rows` and
`matches`. A row that is not there has 0 of each; a measure that is null in one that is, which was published before the
contract had it, is not compared.

The cause is found among the events that the row is made of, in the order in which they came: `replayed` if a replayed
dead letter came too late for the state, `late` if another event did, `duplicate` if an event came again. A difference
without any of these is `unexplained`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import reduce

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, NumericType

from schemas.contract.model import Contract, Join, Sessions, StatefulResult, Velocity
from spark.definitions import stateful_results
from spark.definitions.windows import interval

SLACK = timedelta(seconds=1)
"""Watermarks have milliseconds and pass through operators one by one: so much later a row has surely been emitted."""


def numbers(result: StatefulResult, contract: Contract) -> dict[str, Column]:
    """What is compared of the rows with one identity: aggregates, by measure."""
    match result:
        case Velocity():
            return {"alerts": F.count("*"), "done": F.sum("done")}
        case Sessions():
            types = stateful_results.columns(contract, result)
            measured = [m.name for m in result.measures if isinstance(types[m.name], NumericType)]
            seconds = (F.unix_micros("session_end") - F.unix_micros("session_start")) / 1e6
            sums = {name: F.sum(name) for name in [*measured, "events"]}
            return sums | {"session_seconds" if "seconds" in sums else "seconds": F.sum(seconds)}
        case Join():
            return {"rows": F.count("*"), "matches": F.count(f"{result.other}_event_time")}


def reach(result: StatefulResult) -> timedelta:
    """How long before the place of a row the events are that it depends on."""
    match result:
        case Velocity():
            return 2 * result.within
        case Sessions():
            return result.gap
        case Join():
            return result.before


def differences(
    exact: DataFrame, served: DataFrame, contract: Contract, result: StatefulResult, emitted: Column | None
) -> DataFrame:
    """One row per identity and measure that differ: the identity, `closes_at`, and `$measure`, `$speed`, `$exact` and
    `$difference`, whose names no key has.

    A row that was not served is a difference if it closed before `emitted`, up to where the speed layer has come (null:
    nowhere)."""
    names, compared_by = stateful_results.identity(result, contract), numbers(result, contract)
    sides = []
    for side, frame in (("e", exact), ("s", served)):
        of_side = frame.groupBy(*names).agg(
            F.max(stateful_results.CLOSES_AT).alias(f"${side}_closes_at"),
            *(column.alias(f"${side}_{measure}") for measure, column in compared_by.items()),
        )
        sides.append(of_side)
    both = sides[0].join(sides[1], names, "full")
    due = F.lit(False) if emitted is None else F.col("$e_closes_at") + F.expr(interval(SLACK)) <= emitted
    compared = both.where(F.col("$s_closes_at").isNotNull() | due)
    pairs = [_difference(measure, both.schema[f"$e_{measure}"].dataType) for measure in compared_by]
    unequal = F.filter(F.array(*pairs), lambda found: found.isNotNull())
    closes_at = F.greatest("$e_closes_at", "$s_closes_at").alias(stateful_results.CLOSES_AT)
    return compared.select(*names, closes_at, F.inline(unequal))


def _difference(measure: str, type_: DataType) -> Column:
    """The measure with the served value (`$s_…`) and the exact one (`$e_…`); null unless both are there and differ.
    They are compared in their own types, because different decimals may be the same double."""
    nothing = F.lit("0").cast(type_)
    served, exact = (
        F.when(F.col(f"${side}_closes_at").isNull(), nothing).otherwise(F.col(f"${side}_{measure}")) for side in "se"
    )
    values = F.struct(
        F.lit(measure).alias("$measure"),
        served.cast("double").alias("$speed"),
        exact.cast("double").alias("$exact"),
        (exact - served).cast("double").alias("$difference"),
    )
    return F.when(served != exact, values)


def arrivals(rows: DataFrame, source: Contract, after_all: Column, keys: DataFrame | None = None) -> DataFrame:
    """Accepted rows of bronze with `$repeat` (their event came before) and `$behind` (they came too late for the state,
    as far as the order of batches tells, or `after_all`: after the rows that they belong to had been published).

    Too late is what is not newer than the newest event of an earlier batch less the allowed lateness, the watermark.
    With `keys` (values of fields) only rows with those are returned, and too late is also what is not newer than the
    newest of an earlier batch with the same values, which is the order that matters to who tells at once."""
    order = Window.partitionBy(*source.event_id).orderBy("batch", "topic", "partition", "offset")
    before_watermarks = F.unix_micros("event_time") <= 0  # Spark's watermarks begin in 1970
    told = rows if keys is None else rows.join(keys, keys.columns, "left_semi")
    found = told.withColumns({"$repeat": F.row_number().over(order) > 1, "$behind": after_all | before_watermarks})
    found = _passed(found, rows, [], source.allowed_lateness)
    return found if keys is None else _passed(found, told, keys.columns, timedelta())


def _passed(found: DataFrame, rows: DataFrame, names: list[str], lateness: timedelta) -> DataFrame:
    """`found` with `$behind` also where an earlier batch of `rows`, those with the same values of `names`, has an event
    that is `lateness` newer, or as new."""
    before = Window.partitionBy(*names).orderBy("batch").rowsBetween(Window.unboundedPreceding, -1)
    newest = rows.groupBy(*names, "batch").agg(F.max("event_time").alias("$newest"))
    earlier = newest.withColumn("$newest", F.max("$newest").over(before) - F.expr(interval(lateness)))
    passed = F.coalesce(F.col("event_time") <= F.col("$newest"), F.lit(False))
    joined = found.join(earlier, [*names, "batch"], "left")
    return joined.withColumn("$behind", F.col("$behind") | passed).drop("$newest")


def explained(
    differences: DataFrame, arrived: Mapping[str, DataFrame], contract: Contract, result: StatefulResult
) -> DataFrame:
    """`differences` with `$cause` and its evidence: how many `$rows` the row is made of, how many of them are
    `$repeats`, came `$late` or are `$replayed`. `arrived` are the `arrivals` of each source."""
    names, key, place = (
        stateful_results.identity(result, contract),
        stateful_results.key(result),
        stateful_results.time_column(result),
    )
    subjects = differences.select(*names, stateful_results.CLOSES_AT).distinct()
    evidence = ("$behind", "$repeat", "attempt")
    rows = reduce(
        DataFrame.unionByName,
        [frame.select(*key, F.col("event_time").alias("$came_for"), *evidence) for frame in arrived.values()],
    )
    inside = (F.col("$came_for") >= F.col(place) - F.expr(interval(reach(result)))) & (
        F.col("$came_for") <= F.col(stateful_results.CLOSES_AT)
    )
    same_key = reduce(Column.__and__, [F.col(name) == F.col(f"$key_{name}") for name in key])
    found = (
        subjects.join(rows.withColumnsRenamed({name: f"$key_{name}" for name in key}), same_key & inside, "left")
        .groupBy(*names)
        .agg(
            F.count("$came_for").alias("$rows"),
            F.count_if("$repeat").alias("$repeats"),
            F.count_if(F.col("$behind") & ~F.col("$repeat")).alias("$late"),
            F.count_if(F.col("attempt") > 0).alias("$replayed"),
            F.count_if(F.col("$behind") & (F.col("attempt") > 0)).alias("$late_replayed"),
        )
    )
    cause = (
        F.when(F.col("$late_replayed") > 0, "replayed")
        .when(F.col("$late") > 0, "late")
        .when(F.col("$repeats") > 0, "duplicate")
        .otherwise("unexplained")
    )
    return differences.join(found, names).withColumn("$cause", cause).drop("$late_replayed")
