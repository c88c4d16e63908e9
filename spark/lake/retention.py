"""Removes rows of speed and batch tables that are older than the contract's `retention`. Needs no JVM.

Age is counted in event time, back from the horizon, so that a replay of the past loses nothing by its age. The process
that writes a table removes its rows, whole days (UTC) at a time, after it has noted in a property of the table since
when rows are kept: what compares the layers or recomputes hours leaves older hours alone. Speed rows are only removed
once they are published, and so not served any more. Older versions of a table stay readable as after any other change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow
from deltalake import CommitProperties, DeltaTable

from schemas.contract.model import Contract, StatefulResult
from spark.definitions import stateful_results
from spark.definitions.times import BEGINNING_OF_TIME
from spark.lake import names
from spark.lake.publications import in_force, publications

KEPT_SINCE = "millrace.keptSince"
"""The name of the table property with the instant since when rows are kept, in ISO 8601."""

MARK = {"millrace": "retention"}
"""The metadata by which the commit of a removal is recognised."""


@dataclass(frozen=True)
class RetentionRule:
    """Rows of the table at `uri` whose time in `column` is more than `keep` before the horizon of `title` (a stream or
    a stateful result) are removed."""

    uri: str
    column: str
    title: str
    keep: timedelta

    def since(self, lake_uri: str) -> datetime | None:
        """Returns the start (UTC) of the oldest day that is kept; None while nothing is published."""
        published = in_force(publications(lake_uri, self.title)).get(self.title)
        return day_before(published.final_through, self.keep) if published else None


def day_before(final_through: datetime, keep: timedelta) -> datetime | None:
    """Returns the start (UTC) of the day that holds the instant `keep` before `final_through`; None if that is before
    the beginning of time."""
    if final_through - BEGINNING_OF_TIME <= keep:
        return None
    return (final_through - keep).replace(hour=0, minute=0, second=0, microsecond=0)


def rules_of_partials(lake_uri: str, contract: Contract) -> list[RetentionRule]:
    """Returns the rules for the speed tables of a stream's aggregates."""
    stream, keep = contract.stream, contract.retention.speed
    return [
        RetentionRule(names.speed(lake_uri, stream, a.name), "window_start", stream, keep) for a in contract.aggregates
    ]


def rule_of_stateful_result(lake_uri: str, contract: Contract, result: StatefulResult) -> RetentionRule:
    """Returns the rule for the speed table of a stateful result."""
    uri = names.speed(lake_uri, contract.stream, result.name)
    return RetentionRule(
        uri, stateful_results.CLOSES_AT, stateful_results.title(contract, result), contract.retention.speed
    )


def kept_since(uri: str) -> datetime | None:
    """Returns the instant (UTC) since when the table has all of its rows; None while none were removed for their
    age."""
    path = names.local_path(uri)
    found = DeltaTable(path).metadata().configuration.get(KEPT_SINCE) if DeltaTable.is_deltatable(path) else None
    return datetime.fromisoformat(found) if found else None


def newest_kept_since(uris: Iterable[str]) -> datetime | None:
    """Returns the instant (UTC) since when all of the tables have all of their rows; None if no table lost any."""
    return max((since for uri in uris if (since := kept_since(uri))), default=None)


def remove(uri: str, column: str, since: datetime, may_commit: Callable[[], None] = lambda: None) -> int:
    """Removes the rows whose `column` is before `since` and returns their number. Without such rows nothing is
    written. `since` must have a time zone. `may_commit` is called before each commit and raises when this process must
    not."""
    table = DeltaTable(names.local_path(uri))
    files = pyarrow.table(table.get_add_actions(flatten=True))
    oldest = f"min.{column}"
    if oldest not in files.column_names or not any(
        found is None or found < since for found in files[oldest].to_pylist()
    ):
        return 0
    may_commit()
    if (known := kept_since(uri)) is None or known < since:
        table.alter.set_table_properties({KEPT_SINCE: since.isoformat()}, raise_if_not_exists=False)
    may_commit()
    done = table.delete(
        f"{column} < '{since.astimezone(UTC).isoformat(' ')}'", commit_properties=CommitProperties(custom_metadata=MARK)
    )
    return int(done["num_deleted_rows"])
