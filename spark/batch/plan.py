"""The plan of a batch run: which hours to recompute, and how far the published numbers become final.

Everything here is pure. A batch run cuts the stream at `through`, the newest batch whose ingest is complete in every
table. Of the hours of event time that it finds

- *new* hours lie between the last `final_through` and the new one: they closed since, and are published for the first
  time, all of them, whenever their events arrived;
- *late* hours lie before the last `final_through` and got rows from batches after the last publication's: they are
  published again.

A backfill *forces* a range of hours: those in it that are published are recomputed like late ones, news or not.

An hour is closed when it ends at or before the watermark: the newest accepted event time (or the time of its record in
Kafka, if that is earlier: a wrong clock must not close the hours that are still being written) less the contract's
allowed lateness. So the cost of a run follows the new data, and a stream's hours close by its own events: replays of
the past and live streams behave alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from schemas.errors import TerminalError
from spark.definitions.times import Hours, floor_hour
from spark.definitions.times import before as earlier
from spark.lake.columnar import delta_instant
from spark.lake.publications import Publication


class UnexplainedDifference(TerminalError):
    """A served number differs from the exact one and no calculation explains it; the message lists the windows."""


@dataclass(frozen=True)
class TouchedHour:
    """An hour of event time that has accepted rows which the last publication did not cover, or that was not final."""

    hour: datetime
    newest: datetime
    """The newest event time in it."""
    new_rows: int
    """Rows of batches after the last publication's."""


@dataclass(frozen=True)
class Plan:
    """What a run recomputes. All times are UTC; `final_before` and `batch_before` are of the last publication."""

    through_batch: int
    final_through: datetime | None
    """End of the last closed hour; None while no hour ever closed."""
    new_hours: tuple[datetime, ...]
    late_hours: tuple[datetime, ...]
    final_before: datetime | None
    batch_before: int
    """-1 before the first publication."""
    forced: Hours | None = None
    """The hours that a backfill has ordered."""

    @property
    def hours(self) -> int:
        return len(self.new_hours) + len(self.late_hours)

    @property
    def is_idle(self) -> bool:
        """Nothing to recompute, and `final_through` stays where it is."""
        return not self.hours and self.final_through == self.final_before

    @property
    def replaced(self) -> str:
        """The hours as delta-rs' predicate on the column `hour`: every row of them is replaced, and no other row."""
        parts = []
        if self.new_hours:
            assert self.final_through is not None  # an hour is closed only before it
            since = f"hour >= {delta_instant(self.final_before)} and " if self.final_before else ""
            parts.append(f"({since}hour < {delta_instant(self.final_through)})")
        if self.late_hours:
            parts.append(f"hour in ({', '.join(delta_instant(hour) for hour in self.late_hours)})")
        return " or ".join(parts) or "false"


def plan(
    touched: Iterable[TouchedHour],
    through_batch: int,
    last: Publication | None,
    lateness: timedelta,
    forced: Hours | None = None,
) -> Plan:
    """The plan for the cut at `through_batch`.

    `touched` are the hours with accepted rows of batches up to `through_batch` that are newer than the last
    publication's batch, or whose event time is not before its `final_through` or is in the `forced` range.
    """
    touched = list(touched)
    before = last.final_through if last else None
    newest = max((hour.newest for hour in touched), default=None)
    watermark = floor_hour(earlier(newest, lateness)) if newest else None
    final = max((time for time in (before, watermark) if time), default=None)
    closed = sorted((hour for hour in touched if final and hour.hour < final), key=lambda hour: hour.hour)
    return Plan(
        through_batch=through_batch,
        final_through=final,
        new_hours=tuple(hour.hour for hour in closed if before is None or hour.hour >= before),
        late_hours=tuple(
            hour.hour
            for hour in closed
            if before and hour.hour < before and (hour.new_rows or (forced and forced[0] <= hour.hour < forced[1]))
        ),
        final_before=before,
        batch_before=last.through_batch if last else -1,
        forced=forced,
    )
