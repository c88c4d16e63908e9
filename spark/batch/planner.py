"""The rows of each layer that a run recomputes: those in the hours of its plan, as relations of DuckDB."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from schemas.contract.model import Aggregate
from spark.batch import windows
from spark.batch.deduplication import mark
from spark.batch.plan import Plan, TouchedHour, plan
from spark.batch.store import BatchStore
from spark.definitions.times import BEGINNING_OF_TIME, HOUR, Hours, time_of
from spark.definitions.times import before as earlier
from spark.lake.columnar import File, instant, micros
from spark.lake.publications import Publication

COORDINATES = ("topic", "partition", "offset", "batch", "attempt", "original")
"""Which record of Kafka a row is, and how it came."""

INSTANT = timedelta(microseconds=1)


def plan_hours(store: BatchStore, through: int, last: Publication | None, forced: Hours | None) -> PlannedHours:
    """The plan of a run up to the batch `through`, from the hours that bronze has new or not yet final rows for.
    `forced` are hours to recompute in any case."""
    before = last.through_batch if last else -1
    kept_since = store.kept_since()  # hours that are not kept any more are not made again

    def wanted(file: File) -> bool:
        return (
            last is None
            or file.may_hold("batch", least=before + 1)
            or file.may_hold("event_time", least=last.final_through)
            or (forced is not None and file.may_hold("event_time", forced[0], forced[1] - INSTANT))
        )

    touching = "true"
    if last:
        kept = f" and event_time >= {instant(kept_since)}" if kept_since else ""
        touching = f"(batch > {before}{kept}) or event_time >= {instant(last.final_through)} or {is_forced(forced)}"
    accepted = store.accepted(["kafka_timestamp"], through, wanted)
    touched = store.rows(
        f"""
        select {windows.hour()}, max(epoch_us(least(event_time, kafka_timestamp))), count(*) filter (batch > {before})
        from {accepted} where {touching} group by 1
        """
    )
    found = [TouchedHour(time_of(hour), time_of(newest), new_rows) for hour, newest, new_rows in touched]
    return PlannedHours(store, plan(found, through, last, store.contract.allowed_lateness, forced))


def is_forced(forced: Hours | None, time: str = '"$micros"') -> str:
    """The hours that a person has ordered, as a SQL predicate on `time`, SQL for microseconds since 1970."""
    if forced is None:
        return "false"
    since, until = forced
    return f"({time} >= {micros(since)} and {time} < {micros(until)})"


@dataclass(frozen=True)
class PlannedHours:
    """The hours of a plan in the tables of one stream."""

    store: BatchStore
    plan: Plan

    def rows(self) -> str:
        """The accepted rows of bronze, marked (`deduplication.mark`), with `$micros`, `$is_late_hour` (the hour was
        published before) and `$is_new` (the row came after the last publication)."""
        store, contract = self.store, self.store.contract
        columns = [*dict.fromkeys([*COORDINATES, "event_time", *contract.fields])]
        inside = f"(select * from {self._accepted(columns, timedelta())} where {self.inside()})"
        marked = "marked rows"
        if contract.event_time in contract.event_id:  # all copies of an event are in the same hour
            mark(store.connection, contract, marked, [*columns, "$micros"], inside)
        else:
            history = self._accepted(columns, contract.repeats_within)
            mark(store.connection, contract, marked, [*columns, "$micros"], inside, history, self.inside())
        before = micros(self._published_before)
        return f"""(select *, "$micros" < {before} as "$is_late_hour", batch > {self.plan.batch_before} as "$is_new"
            from "{marked}")"""

    def _accepted(self, columns: Iterable[str], around: timedelta | None) -> str:
        """Accepted rows, all of those whose time is less than `around` from the hours of the plan among them."""

        def wanted(file: File) -> bool:
            return around is None or self._may_hold(file, "event_time", around)

        return self.store.accepted(columns, self.plan.through_batch, wanted)

    def partials(self, aggregate: Aggregate) -> str:
        """The speed layer's partials of the cut."""
        return f"(select * from {self._partials(aggregate)} where {self.inside()})"

    def new_partials(self, aggregate: Aggregate) -> str:
        """Those of hours that are published for the first time."""
        return f"(select * from {self._partials(aggregate)} where {self._is_new_hour()})"

    def _partials(self, aggregate: Aggregate) -> str:
        through = self.plan.through_batch
        return self.store.partials(aggregate, through, lambda file: self._may_hold(file, "window_start"))

    def published(self, aggregate: Aggregate) -> str:
        """The rows of the batch table in the late hours, with `$start`."""
        rows = self.store.published(aggregate, lambda file: self._may_hold(file, "hour"))
        return f"""(select *, epoch_us(window_start) as "$start", "window" as "$window" from {rows}
            where epoch_us(hour) in (select hour from {self.late_hours}))"""

    @cached_property
    def late_hours(self) -> str:
        """The late hours as a table with the column `hour`, in microseconds."""
        hours = ", ".join(f"({micros(hour)})" for hour in self.plan.late_hours)
        rows = f"from (values {hours}) as hours(hour)" if hours else "select 0 as hour where false"
        return self.store.keep("late hours", rows)

    def inside(self) -> str:
        """The hours of the plan as a SQL predicate on `$micros`."""
        if not self.plan.late_hours:
            return self._is_new_hour()
        return f"({self._is_new_hour()} or {windows.hour()} in (select hour from {self.late_hours}))"

    def _is_new_hour(self) -> str:
        assert self.plan.final_through is not None
        return f"""("$micros" >= {micros(self._published_before)} and "$micros" < {micros(self.plan.final_through)})"""

    def _may_hold(self, file: File, column: str, around: timedelta = timedelta()) -> bool:
        """Whether a file may have rows whose time, in `column`, is less than `around` from an hour of the plan."""
        least, spans = file.least(column), self._spans
        # Of the spans that end after the file's first time, the first decides.
        at = 0 if least is None else bisect_right(spans, earlier(least, around), key=lambda span: span[1])
        return at < len(spans) and file.may_hold(column, least=earlier(spans[at][0], around))

    @cached_property
    def _spans(self) -> list[Hours]:
        """The hours of the plan in order, those that are published for the first time as one."""
        late = [(hour, hour + HOUR) for hour in self.plan.late_hours]
        assert self.plan.final_through is not None  # a plan without it has no hours
        return [*late, (self._published_before, self.plan.final_through)]

    @property
    def _published_before(self) -> datetime:
        return self.plan.final_before or BEGINNING_OF_TIME
