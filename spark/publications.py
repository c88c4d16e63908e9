"""The publications log: which batch run made which numbers final. Read without a JVM."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from deltalake import DeltaTable

from spark import tables


@dataclass(frozen=True)
class Publication:
    """A row of `system/publications`. Times are UTC."""

    run_id: str
    stream: str
    final_through: datetime
    """Windows that end at or before this are served from the batch layer."""
    through_batch: int
    """The newest ingest batch whose rows the published numbers contain."""
    hours: int
    rows: int
    published_at: datetime
    measures: tuple[str, ...] | None = None
    """What its windows hold, as `<aggregate>.<measure>`; None in publications from before that was recorded."""

    def holds(self, measure: str) -> bool:
        return self.measures is None or measure in self.measures


def publications(lake_uri: str, stream: str) -> list[Publication]:
    """The stream's publications, oldest first; none while the log does not exist."""
    path = tables.local_path(tables.system(lake_uri, "publications"))
    if not DeltaTable.is_deltatable(path):
        return []
    rows = DeltaTable(path).to_pyarrow_table(filters=[("stream", "=", stream)]).to_pylist()
    found = [
        Publication(
            **row
            | {name: row[name].astimezone(UTC) for name in ("final_through", "published_at")}
            | {"measures": tuple(row["measures"]) if row.get("measures") is not None else None}
        )
        for row in rows
    ]  # fmt: skip
    return sorted(found, key=lambda publication: publication.published_at)


def published_without(published: list[Publication], measure: str) -> tuple[datetime | None, set[str]]:
    """For a measure (`<aggregate>.<measure>`) that was added to a published stream: before when hours were published
    without it, and the runs that have published it since. (None, …) if no publication lacks it."""
    lacking = [publication for publication in published if not publication.holds(measure)]
    if not lacking:
        return None, set()
    return lacking[-1].final_through, {it.run_id for it in published if it.published_at > lacking[-1].published_at}


def unique_run_id(run_id: str, published: list[Publication]) -> str:
    """`run_id`, or `run_id#2` and so on if runs of that name published before: an id names one publication, so rows
    that carry an id without a publication are known to come from a run that died."""
    taken = {publication.run_id for publication in published}
    candidate, number = run_id, 1
    while candidate in taken:
        number += 1
        candidate = f"{run_id}#{number}"
    return candidate
