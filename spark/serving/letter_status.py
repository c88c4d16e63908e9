"""Which dead letters there are, in what status: the questions that operators ask the view `<stream>_letters`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from duckdb import DuckDBPyConnection

Status = Literal["waiting", "replayed", "landed", "parked", "discarded"]
STATUSES: tuple[Status, ...] = get_args(Status)
"""Of a letter, as the view derives it:

- `waiting`: on `.dlq`, until it is due or the next replay parks it;
- `replayed`: on `.retry`, on its way through the ingest;
- `landed`: accepted;
- `parked`: given up, for a person to decide;
- `discarded`: by a person, for good."""


@dataclass(frozen=True)
class Filter:
    """What letters must have, where given: one of the `ids`, the error class, words in the reason (upper and lower case
    are the same), the status, to have been moved last before `until` (UTC), and none of the ids in `other_than`. With
    `exactly` class and reason are the very ones of the filter, also when they are None, as they are in a row of
    `counts`."""

    ids: Sequence[str] = ()
    error_class: str | None = None
    reason: str | None = None
    status: str | None = None
    until: datetime | None = None
    exactly: bool = False
    other_than: Collection[str] = ()

    @property
    def predicate(self) -> str:
        return """(len($ids) = 0 or id in $ids)
            and ((not $exactly and $error_class is null) or error_class is not distinct from $error_class)
            and ((not $exactly and ($reason is null or contains(lower(reason), lower($reason))))
                or reason is not distinct from $reason)
            and ($status is null or status = $status)
            and ($until is null or moved_at <= $until)
            and id not in (select unnest($other_than))"""

    @property
    def parameters(self) -> dict[str, Any]:
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
    """The number of `letters` by stream, error_class, reason and status, most first."""
    return _rows(
        served,
        f"""select '{stream}' as stream, error_class, reason, status, count(*) as letters from {stream}_letters
            where {which.predicate} group by all order by letters desc, error_class, reason, status""",
        which.parameters,
    )


def letters(served: DuckDBPyConnection, stream: str, which: Filter, limit: int | None = None) -> list[dict[str, Any]]:
    """The letters with all columns of the view, and their stream, by id; at most `limit`."""
    return _rows(
        served,
        f"""select '{stream}' as stream, * from {stream}_letters where {which.predicate}
            order by id limit {limit if limit is not None else "all"}""",
        which.parameters,
    )


def history(served: DuckDBPyConnection, stream: str, letter: str) -> list[dict[str, Any]]:
    """What happened to a letter, oldest first: its rejections and its moves (status, attempt, what was wrong, who
    decided what and why, the place in Kafka)."""
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
