"""Compares the exact windows of a run with what was served for the same hours, and lets the ledger explain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas.contract.model import Aggregate
from spark.batch import ledger
from spark.batch.planner import PlannedHours
from spark.definitions.times import literal, time_of
from spark.lake import table_schemas
from spark.lake.publications import Publication, published_without
from spark.transforms.aggregates import HOUR, exact, folded, truncated


@dataclass(frozen=True)
class Comparer:
    """One comparison. `rows` are `planned.rows()`, `windows` the exact windows by aggregate, `published` the
    publications so far, oldest first; `run_id` and `now` stand in the rows of the ledger."""

    planned: PlannedHours
    rows: DataFrame
    windows: Mapping[str, DataFrame]
    published: list[Publication]
    run_id: str
    now: datetime

    def differences(self) -> DataFrame:
        """The ledger rows of the run, all aggregates together."""
        contract, found = self.planned.store.contract, []
        for aggregate in contract.aggregates:
            served = self._served(aggregate)
            different = ledger.differences(self.windows[aggregate.name], served, contract, aggregate)
            different = self._without_unserved(different, aggregate).persist()
            if different.isEmpty():
                continue
            # A checkpoint and not `persist`: Spark would compute cached rows again, from what is published by then, as
            # soon as the batch tables change.
            explained = ledger.explained(different, self.rows, contract, aggregate).localCheckpoint()
            explained = self._reconsidered(explained, aggregate)
            output = {name: F.col(f"${name}") for name in ledger.OUTPUT}
            output |= {side: F.col(f"${side}")["number"] for side in ("speed", "exact")}
            names = [F.lit(name) for name in aggregate.dimensions]
            values = [F.col(name).cast("string") for name in aggregate.dimensions]
            found.append(
                explained.select(
                    F.lit(self.run_id).alias("run_id"),
                    F.lit(contract.stream).alias("stream"),
                    F.lit(aggregate.name).alias("aggregate"),
                    "window", "window_start",
                    F.map_from_arrays(F.array(*names), F.array(*values)).alias("keys"),
                    *(column.alias(name) for name, column in output.items()),
                    F.expr(literal(self.now)).alias("recorded_at"),
                )
            )  # fmt: skip
        nothing = self.planned.store.spark.createDataFrame([], table_schemas.SYSTEM["ledger"])
        return ledger.union(found or [nothing])

    def _without_unserved(self, different: DataFrame, aggregate: Aggregate) -> DataFrame:
        """`different` less the measures of hours that were published before the measure was added: what was not served
        was not wrong."""
        late_hours = self.planned.plan.late_hours
        if not late_hours:
            return different
        for measure in aggregate.measures:
            until, since = published_without(self.published, f"{aggregate.name}.{measure.name}")
            if until is None or until <= late_hours[0]:
                continue
            again = self.planned.store.hours_of(aggregate, since)
            lacking = [hour for hour in late_hours if hour < until and hour not in again]
            hour, hours = truncated("window_start", "1h"), [F.expr(literal(hour)) for hour in lacking]
            different = different.where((F.col("$measure") != measure.name) | ~hour.isin(*hours))
        return different

    def _reconsidered(self, found: DataFrame, aggregate: Aggregate) -> DataFrame:
        """`found` after a second look at what is unexplained in it."""

        def left() -> bool:
            return not found.where("`$cause` = 'unexplained'").isEmpty()

        if not left():
            return found
        store, plan, rows = self.planned.store, self.planned.plan, self.rows
        if not rows.where("original is not null").isEmpty():
            lost = ledger.lost(rows, self.planned.partials(aggregate), store.contract, aggregate)
            lost = lost.withColumn("$is_new", F.col("batch") > plan.batch_before)
            history = rows.unionByName(lost)
            found = ledger.reconsidered(found, history, "replayed", store.contract, aggregate).localCheckpoint()
        if left() and plan.new_hours:
            since: dict[int, list[str]] = {}
            for measure, batch in store.first_batches(aggregate, plan.through_batch).items():
                since.setdefault(batch, []).append(measure)
            for batch, names in since.items():
                history = rows.where(F.col("$is_late_hour") | (F.col("batch") >= batch))
                found = ledger.reconsidered(found, history, "added", store.contract, aggregate, *names)
            found = found.localCheckpoint()
        corrected = (F.col("$cause") == "unexplained") & self.planned.is_forced("window_start")
        return found.withColumn("$cause", F.when(corrected, "corrected").otherwise(F.col("$cause")))

    def by_hour(self, found: DataFrame) -> list[dict[str, Any]]:
        """The run in hours of event time, oldest first: `hour`, the `windows` that were computed, and how many of the
        differences `found` have which cause."""
        hour = F.unix_micros(truncated("window_start", "1h")).alias("hour")
        counted = ledger.union([windows.select("window_start") for windows in self.windows.values()])
        hours: dict[int, dict[str, Any]] = {
            row.hour: {"hour": time_of(row.hour).isoformat(), "windows": row.n}
            for row in counted.groupBy(hour).agg(F.count("*").alias("n")).collect()
        }
        for row in found.groupBy(hour, "cause").agg(F.count("*").alias("n")).collect():
            mine = hours.setdefault(row.hour, {"hour": time_of(row.hour).isoformat(), "windows": 0})
            mine[row.cause] = row.n
        return [hours[hour] for hour in sorted(hours)]

    def _served(self, aggregate: Aggregate) -> DataFrame:
        """What was served so far for the windows of the plan's hours: the folded speed layer for new hours, the
        published rows for late ones."""
        store, late_hours = self.planned.store, self.planned.plan.late_hours
        speed = folded(self.planned.new_partials(aggregate), store.contract, aggregate, *aggregate.windows).withColumn(
            "$estimated", F.lit(True)
        )
        if not late_hours:
            return speed
        late = store.hours_frame(late_hours)
        present = store.published(aggregate).join(F.broadcast(late), "hour", "left_semi")
        runs = store.runs_frame(publication.run_id for publication in self.published)
        # A run that died while it published has replaced these hours; what it replaced is computed again.
        orphaned = present.join(F.broadcast(runs), "run_id", "left_anti").select("hour").distinct().persist()
        served = present.join(F.broadcast(orphaned), "hour", "left_anti").select(
            *(name for name in present.columns if name not in ("hour", "run_id"))
        )
        if not orphaned.isEmpty():
            as_published = self.rows.where("`$is_late_hour` and `$distinct_event` and not `$is_new`").join(
                F.broadcast(orphaned.withColumnRenamed("hour", HOUR)), HOUR, "left_semi"
            )
            served = served.unionByName(exact(as_published, store.contract, aggregate, *aggregate.windows))
        return speed.unionByName(served.withColumn("$estimated", F.lit(False)))
