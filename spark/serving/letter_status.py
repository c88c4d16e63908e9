"""Counts, lists and histories of dead letters by their status, from the view `<stream>_letters`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from duckdb import DuckDBPyConnection

Status = Literal["waiting", "replayed", "landed", "parked", "discarded"]
STATUSES: tuple[Status, ...] = get_args(Status)
"""The statuses of a letter, which the view derives:

- `waiting`: on `.dlq`, until it is due or a replay parks it;
- `replayed`: on `.retry`, on its way through the ingest;
- `landed`: accepted;
- `parked`: given up by the replay, for a person to decide;
- `discarded`: given up for good by a person."""


@dataclass(frozen=True)
class Filter:
    """The conditions on letters, of which those that are given must all be fulfilled: the id is one of `ids` and not
    one of `other_than`, the error class and the status are equal, the reason contains the words of `reason` (in upper
    or lower case), and the last move was recorded at or before `until` (UTC).

    With `exactly`, error class and reason must equal those of the filter even where they are None, as in a row of
    `counts`.
    """

    ids: Sequence[str] = ()
    error_class: str | None = None
    reason: str | None = None
    status: str | None = None
    until: datetime | None = None
    exactly: bool = False
    other_than: Collection[str] = ()

    @property
    def predicate(self) -> str:
        """The conditions as DuckDB SQL with named parameters."""
        return """(len($ids) = 0 or id in $ids)
            and ((not $exactly and $error_class is null) or error_class is not distinct from $error_class)
            and ((not $exactly and ($reason is null or contains(lower(reason), lower($reason))))
                or reason is not distinct from $reason)
            and ($status is null or status = $status)
            and ($until is null or moved_at <= $until)
            and id not in (select unnest($other_than))"""

    @property
    def parameters(self) -> dict[str, Any]:
        """The values of the parameters of `predicate`."""
        return {
            "ids": list(self.ids),
            "error_class": self.error_class,
            "reason": self.reason,
            "status": self.status,
            "until": self.until,
            "exactly": self.exactly,
            "other_than": list(self.other_than),
        }


def counts(served: DuckDBPyConnection, stream: str, which: Filter) -> list[dict[str, Any]]:
    """Returns rows with the number of `letters` for each stream, error_class, reason and status, the greatest first."""
    return _rows(
        served,
        f"""select '{stream}' as stream, error_class, reason, status, count(*) as letters from {stream}_letters
            where {which.predicate} group by all order by letters desc, error_class, reason, status""",
        which.parameters,
    )


def letters(
    served: DuckDBPyConnection, stream: str, which: Filter, limit: int | None = None, whole: bool = True
) -> list[dict[str, Any]]:
    """Returns at most `limit` letters, ordered by id, with their stream and all columns of the view; unless `whole`,
    without key, value and headers, of which many letters may have more than fits into memory."""
    columns = "*" if whole else "* exclude (key, value, headers)"
    return _rows(
        served,
        f"""select '{stream}' as stream, {columns} from {stream}_letters where {which.predicate}
            order by id limit {limit if limit is not None else "all"}""",
        which.parameters,
    )


def history(served: DuckDBPyConnection, stream: str, letter: str) -> list[dict[str, Any]]:
    """Returns the rejections and moves of the letter with the id `letter`, oldest first: status, attempt, error class
    and reason, the decision with its author, time (UTC) and reason, and the coordinates in Kafka."""
    return _rows(
        served,
        f"""
        select * from (
        select 'rejected' as status, attempt, error_class, reason, null as parked_because, null as decision,
            null as decided_by, null as decided_because, null::timestamptz as decided_at, topic, partition, "offset"
        from {stream}_dead_letters where original = $letter
        union all
        select status, attempt, error_class, reason, parked_because, decision, decided_by, decided_because, decided_at,
            topic, partition, "offset"
        from moves where stream = '{stream}' and id = $letter
        ) order by attempt, case status when 'replayed' then 0 when 'rejected' then 1 when 'parked' then 2 else 3 end
        """,
        {"letter": letter},
    )


def _rows(served: DuckDBPyConnection, sql: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    cursor = served.execute(sql, parameters)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
