"""The rows of each layer that a run recomputes: those in the hours of its plan."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from schemas.contract.model import Aggregate
from spark.batch import ledger
from spark.batch.plan import Plan, TouchedHour, plan
from spark.batch.store import BatchStore
from spark.definitions.times import BEGINNING_OF_TIME, Hours, literal, time_of
from spark.lake.publications import Publication
from spark.transforms.aggregates import truncated

COORDINATES = ("topic", "partition", "offset", "batch", "attempt", "original")
"""Which record of Kafka a row is, and how it came."""


def plan_hours(store: BatchStore, through: int, last: Publication | None, forced: Hours | None) -> PlannedHours:
    """The plan of a run up to the batch `through`, from the hours that bronze has new or not yet final rows for.
    `forced` are hours to recompute in any case."""
    accepted = store.accepted(through)
    before = last.through_batch if last else -1
    if last:
        not_final = F.col("event_time") >= F.expr(literal(last.final_through))
        news = F.col("batch") > before
        if (since := store.kept_since()) is not None:  # hours that are not kept any more are not made again
            news &= F.col("event_time") >= F.expr(literal(since))
        accepted = accepted.where(news | not_final | ~F.expr(not_forced(forced, "event_time")))
    newest = F.max(F.least("event_time", "kafka_timestamp")).alias("newest")
    new_rows = F.count_if(F.col("batch") > before).alias("new_rows")
    hours = (
        accepted.groupBy(truncated("event_time", "1h").alias("hour"))
        .agg(newest, new_rows)
        .select(F.unix_micros("hour").alias("hour"), F.unix_micros("newest").alias("newest"), "new_rows")
    )
    touched = [TouchedHour(time_of(row.hour), time_of(row.newest), row.new_rows) for row in hours.collect()]
    return PlannedHours(store, plan(touched, through, last, store.contract.allowed_lateness, forced))


def not_forced(forced: Hours | None, time: str) -> str:
    """The hours that a person has not ordered, as a SQL predicate on the column `time`."""
    if forced is None:
        return "true"
    since, until = forced
    return f"({time} < {literal(since)} or {time} >= {literal(until)})"


@dataclass(frozen=True)
class PlannedHours:
    """The hours of a plan in the tables of one stream."""

    store: BatchStore
    plan: Plan

    def rows(self) -> DataFrame:
        """The accepted rows of bronze with the flags of `ledger.marked`, `$is_late_hour` (the hour was published
        before) and `$is_new` (the row came after the last publication)."""
        contract = self.store.contract
        columns = dict.fromkeys([*COORDINATES, "event_time", *contract.fields])
        accepted = self.store.accepted(self.plan.through_batch).select(*columns)
        inside = self.inside(accepted, "event_time")
        if contract.event_time in contract.event_id:
            marked = ledger.marked(inside, contract)  # all copies of an event are in the same hour
        else:
            ids = inside.select(*contract.event_id).distinct()
            copies = accepted.join(ids, contract.event_id, "left_semi")
            marked = self.inside(ledger.marked(copies, contract), "event_time")
        return marked.withColumns(
            {
                "$is_late_hour": F.col("event_time") < self._published_before(),
                "$is_new": F.col("batch") > self.plan.batch_before,
            }
        )

    def partials(self, aggregate: Aggregate) -> DataFrame:
        """The speed layer's partials of the cut."""
        return self.inside(self.store.partials(aggregate, self.plan.through_batch), "window_start")

    def new_partials(self, aggregate: Aggregate) -> DataFrame:
        """Those of hours that are published for the first time."""
        return self._new(self.store.partials(aggregate, self.plan.through_batch), "window_start")

    def is_forced(self, time: str) -> Column:
        """Whether a person has ordered the hour of the column `time`."""
        return ~F.expr(not_forced(self.plan.forced, time))

    def inside(self, frame: DataFrame, time_column: str) -> DataFrame:
        """The rows whose time is in an hour of the plan."""
        if not self.plan.late_hours:
            return self._new(frame, time_column)
        final = F.expr(literal(self.plan.final_through))
        since = F.expr(literal(self.plan.late_hours[0]))
        late = self.store.hours_frame(self.plan.late_hours).withColumnRenamed("hour", "$late")
        time_ = F.col(time_column)
        recent = frame.where((time_ >= since) & (time_ < final))  # prunes files
        matched = recent.join(F.broadcast(late), truncated(time_column, "1h") == F.col("$late"), "left")
        is_new_hour = time_ >= F.expr(literal(self.plan.final_before))
        return matched.where(F.col("$late").isNotNull() | is_new_hour).drop("$late")

    def _new(self, frame: DataFrame, time_column: str) -> DataFrame:
        """The rows whose time is in an hour that is published for the first time."""
        time_ = F.col(time_column)
        return frame.where((time_ >= self._published_before()) & (time_ < F.expr(literal(self.plan.final_through))))

    def _published_before(self) -> Column:
        return F.expr(literal(self.plan.final_before or BEGINNING_OF_TIME))
