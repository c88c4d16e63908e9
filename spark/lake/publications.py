"""The log of publications: which batch run made which numbers final. It is read without a JVM."""

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
"""What made a publication: a run that made numbers final (a backfill too), or maintenance, which publishes the same
numbers again at new versions of their tables."""


@dataclass(frozen=True)
class Publication:
    """A row of `system/publications`. Times are UTC. `stream` is a stream, or the title of a stateful result."""

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
    """The version of each aggregate's batch table that is served by this publication. It is empty in rows that older
    installations wrote: they serve the newest version."""
    measures: tuple[str, ...] | None = None
    """The measures that its windows hold, as `<aggregate>.<measure>`; None in rows from before that was recorded."""
    kind: Kind = "reconcile"

    @property
    def row(self) -> dict[str, Any]:
        """The publication as columns of `system/publications`."""
        return vars(self) | {"versions": list(self.versions.items())}

    def holds(self, measure: str) -> bool:
        """Returns whether its windows hold the measure `<aggregate>.<measure>`."""
        return self.measures is None or measure in self.measures


def publications(lake_uri: str, stream: str | None = None, version: int | None = None) -> list[Publication]:
    """Returns the publications of a stream or of a stateful result's title (default: all), oldest first, as the log had
    them at `version` (default: now). There are none while the log does not exist.

    Raises what deltalake raises if the version cannot be read any more.
    """
    path = names.local_path(names.system(lake_uri, "publications"))
    if not DeltaTable.is_deltatable(path):
        return []
    mine = None if stream is None else [("stream", "=", stream)]
    rows = DeltaTable(path, version=version).to_pyarrow_table(filters=mine).to_pylist()
    return sorted(
        map(_publication, rows), key=lambda publication: (publication.published_at, publication.through_batch)
    )


def in_force(found: Iterable[Publication]) -> dict[str, Publication]:
    """Returns the newest of `found` (oldest first) for each stream and each title of a stateful result."""
    return {publication.stream: publication for publication in found}


def behind(contracts: Mapping[str, Contract], stream: str, newest: Mapping[str, Publication]) -> list[str]:
    """Returns the titles of the stateful results made of `stream` whose publication is older than the stream's own,
    although everything that they are made of is published: their reconciliation failed. `newest` are the publications
    `in_force`."""
    found = []
    for contract in contracts.values():
        for result in contract.stateful_results:
            made_of = [source.stream for source in stateful_results.sources(contract, result)]
            if stream not in made_of or not set(made_of) <= set(newest):
                continue
            whole = stateful_results.title(contract, result)
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
    """Returns, for a measure (`<aggregate>.<measure>`) that was added to a published stream, the instant (UTC) before
    which hours were published without it, and the ids of the runs that have published since. The instant is None if no
    publication lacks the measure."""
    lacking = [publication for publication in published if not publication.holds(measure)]
    if not lacking:
        return None, set()
    return lacking[-1].final_through, {
        later.run_id for later in published if later.published_at > lacking[-1].published_at
    }


def unique_run_id(run_id: str, published: list[Publication]) -> str:
    """Returns `run_id`, or `run_id#2` and so on if runs of that id published before.

    An id names one publication, so that rows with an id of no publication are known to come from a run that died.
    """
    taken = {publication.run_id for publication in published}
    candidate, number = run_id, 1
    while candidate in taken:
        number += 1
        candidate = f"{run_id}#{number}"
    return candidate
