"""The publications log: which batch run made which numbers final. Read without a JVM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from deltalake import DeltaTable

from schemas.contract.model import Contract
from spark.definitions import stateful_results
from spark.lake import names

Kind = Literal["reconcile", "maintain"]
"""What published: a run that made numbers final (a backfill too), or maintenance, which publishes the same numbers
again at new versions of their tables."""


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
    versions: Mapping[str, int] = field(default_factory=dict)
    """The Delta version of the batch table of each aggregate that it made served. Empty in rows of older installations:
    the newest then."""
    measures: tuple[str, ...] | None = None
    """What its windows hold, as `<aggregate>.<measure>`; None in publications from before that was recorded."""
    kind: Kind = "reconcile"

    @property
    def row(self) -> dict[str, Any]:
        return vars(self) | {"versions": list(self.versions.items())}

    def holds(self, measure: str) -> bool:
        return self.measures is None or measure in self.measures


def publications(lake_uri: str, stream: str | None = None, version: int | None = None) -> list[Publication]:
    """The stream's publications (or of all streams), oldest first, as the log had them at `version` (default: now);
    none while the log does not exist."""
    path = names.local_path(names.system(lake_uri, "publications"))
    if not DeltaTable.is_deltatable(path):
        return []
    mine = None if stream is None else [("stream", "=", stream)]
    rows = DeltaTable(path, version=version).to_pyarrow_table(filters=mine).to_pylist()
    return sorted(map(_publication, rows), key=lambda one: (one.published_at, one.through_batch))


def in_force(found: Iterable[Publication]) -> dict[str, Publication]:
    """The newest of `found` (oldest first) of each stream."""
    return {publication.stream: publication for publication in found}


def behind(contracts: Mapping[str, Contract], stream: str, newest: Mapping[str, Publication]) -> list[str]:
    """The titles of the velocity, sessions and joins made of `stream` whose publication lacks what the stream's own
    has, although all that they are made of is published: their reconciliation failed. `newest` are those in force."""
    found = []
    for contract in contracts.values():
        for one in contract.stateful_results:
            made_of = [source.stream for source in stateful_results.sources(contract, one)]
            if stream not in made_of or not set(made_of) <= set(newest):
                continue
            whole = stateful_results.title(contract, one)
            mine = newest.get(whole if stream == contract.stream else f"{whole}.{stream}")
            if mine is None or mine.through_batch < newest[stream].through_batch:
                found.append(whole)
    return found


def _publication(row: dict[str, Any]) -> Publication:
    times = {name: row[name] and row[name].astimezone(UTC) for name in ("final_through", "published_at")}
    measures, kind = row.get("measures"), row.get("kind")
    if kind is None:  # older installations recorded it in the run's name alone
        kind = "maintain" if str(row["run_id"]).startswith("maintain ") else "reconcile"
    return Publication(
        **row
        | times
        | {"versions": dict(row.get("versions") or ()), "measures": None if measures is None else tuple(measures)}
        | {"kind": kind}
    )


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
