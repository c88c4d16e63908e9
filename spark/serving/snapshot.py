"""Snapshots: the state of the lake that a query sees, which is one publication of each stream and one version of each
Delta table.

A row of `publications` is the commit of a publication. It names the versions of the batch tables whose rows it makes
final, so that these rows, their horizon and the other aggregates of the stream belong together whatever is written
meanwhile, and what a dying run left in the batch tables is not served. Publications are pinned first and the other
tables after them: speed and bronze only grow, so they hold everything that was not final when publications were pinned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import PyFileSystem

from schemas.contract.model import Contract
from schemas.errors import TerminalError
from spark.definitions.times import BEGINNING_OF_TIME
from spark.lake import names
from spark.lake.publications import Publication, in_force, publications
from spark.serving.views import views


class NoSuchSnapshot(TerminalError):
    """No run of that id has published, or the state at that time is not kept any more."""


@dataclass(frozen=True)
class Snapshot:
    """The publications in force by stream, and the pinned versions of tables by URI. The version None stands for a
    table that did not exist. A table that is not in `versions` is read at its newest version at each query."""

    publications: Mapping[str, Publication] = field(default_factory=dict)
    versions: Mapping[str, int | None] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    """The URIs of tables whose state at that time is not kept any more. Speed and bronze are kept for less time than
    the batch tables, so the final windows of a past time can be asked for when its open windows cannot."""

    def final_through(self, stream: str) -> datetime:
        """Returns the stream's horizon (UTC): windows that end at or before it are served from the batch layer."""
        publication = self.publications.get(stream)
        return publication.final_through if publication else BEGINNING_OF_TIME


def published(lake_uri: str, contracts: Iterable[Contract]) -> Snapshot:
    """Returns the snapshot of what is published now, which pins the batch tables alone. Logs, events and open windows
    show the newest state at each query."""
    return _published(lake_uri, contracts, None)


def now(lake_uri: str, contracts: Iterable[Contract]) -> Snapshot:
    """Returns the snapshot that pins every table as it is now."""
    contracts = list(contracts)
    log = names.system(lake_uri, "publications")
    pinned = _published(lake_uri, contracts, _newest(log))
    versions = {uri: _newest(uri) for uri in _all(lake_uri, contracts) if uri not in pinned.versions}
    return Snapshot(pinned.publications, {**versions, **pinned.versions})


def at(lake_uri: str, contracts: Iterable[Contract], moment: datetime) -> Snapshot:
    """Returns the snapshot that pins every table as it was at `moment`, which has a time zone. Raises `NoSuchSnapshot`
    if the log of publications does not reach back so far."""
    contracts = list(contracts)
    log = names.system(lake_uri, "publications")
    return _at(lake_uri, contracts, moment, _version_at(log, moment))


def of_run(lake_uri: str, contracts: Iterable[Contract], run_id: str) -> Snapshot:
    """Returns the snapshot that pins every table as it was when the run `run_id` had just published the last of its
    streams. Raises `NoSuchSnapshot` if no such run has published, or if it did so too long ago."""
    contracts = list(contracts)
    log = names.system(lake_uri, "publications")
    total, low, high = _rows_of(run_id, publications(lake_uri)), 0, _newest(log) or 0
    if not total:
        raise NoSuchSnapshot(
            f"no run {run_id!r} has published (`from publications` lists the runs that did); a time is written "
            "2026-01-31T12:00"
        )
    while low < high:  # rows are only ever added, and versions that cannot be read any more are the oldest
        middle = (low + high) // 2
        try:
            whole = _rows_of(run_id, _publications_at(lake_uri, middle)) == total
        except NoSuchSnapshot:
            whole = False
        low, high = (low, middle) if whole else (middle + 1, high)
    if low:
        _publications_at(lake_uri, low - 1)  # if that is gone, the run may have published before `low` already
    return _at(lake_uri, contracts, _committed(log, low), low)


def taken(lake_uri: str, contracts: Iterable[Contract], as_of: datetime | str | None = None) -> Snapshot:
    """Returns the snapshot that pins every table as it is now, as it was at the time `as_of` (a text is ISO 8601; UTC
    if it names no zone), or as it was when the run with the id `as_of` had published. Raises `NoSuchSnapshot`."""
    if as_of is None:
        return now(lake_uri, contracts)
    try:
        moment = datetime.fromisoformat(as_of) if isinstance(as_of, str) else as_of
    except ValueError:
        return of_run(lake_uri, contracts, str(as_of))
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment > datetime.now(UTC):
        raise NoSuchSnapshot(f"{moment.isoformat(' ', 'minutes')} has not come yet")
    return at(lake_uri, contracts, moment)


def _rows_of(run_id: str, published: Iterable[Publication]) -> int:
    """The number of publications that the run made."""
    return sum(publication.run_id == run_id for publication in published)


def _publications_at(lake_uri: str, version: int) -> list[Publication]:
    """The publications at `version` of their log. Raises `NoSuchSnapshot` if it cannot be read."""
    try:
        return publications(lake_uri, version=version)
    except (DeltaError, OSError) as error:  # the entries of the log are gone, or the files that they name
        raise _not_kept(names.system(lake_uri, "publications"), f"version {version}", error) from error


def _not_kept(uri: str, state: str, why: object) -> NoSuchSnapshot:
    return NoSuchSnapshot(
        f"the state of {uri} at {state} is not kept any more ({str(why).splitlines()[0]}); ask for a later time "
        "(`from publications` lists when what was published) or, without a time, for what is served now"
    )


def _published(lake_uri: str, contracts: Iterable[Contract], version: int | None) -> Snapshot:
    found = in_force(publications(lake_uri) if version is None else _publications_at(lake_uri, version))
    versions = {
        names.batch(lake_uri, contract.stream, name): served
        for contract in contracts
        if contract.stream in found
        for name, served in found[contract.stream].versions.items()
    }
    log = {} if version is None else {names.system(lake_uri, "publications"): version}
    return Snapshot(found, log | versions)


def _at(lake_uri: str, contracts: list[Contract], moment: datetime, version: int | None) -> Snapshot:
    log = names.system(lake_uri, "publications")
    pinned = Snapshot(versions={log: None}) if version is None else _published(lake_uri, contracts, version)
    versions: dict[str, int | None] = {}
    gone = set()
    for uri in _all(lake_uri, contracts):
        if uri in pinned.versions:
            continue
        try:
            versions[uri] = _version_at(uri, moment)
        except NoSuchSnapshot:
            gone.add(uri)
    return Snapshot(pinned.publications, {**versions, **pinned.versions}, frozenset(gone))


def _all(lake_uri: str, contracts: Iterable[Contract]) -> list[str]:
    """The URIs of the tables that views read, in the order in which they are pinned. Bronze comes after the tables that
    are made of it, so that these never hold more than bronze does."""
    found: dict[str, None] = {}
    for contract in contracts:
        views(contract, "duckdb", lake_uri, lambda uri, _: str(found.setdefault(uri)), BEGINNING_OF_TIME)
    return list(found)


def _newest(uri: str) -> int | None:
    path = names.local_path(uri)
    return int(DeltaTable(path).version()) if DeltaTable.is_deltatable(path) else None


def _version_at(uri: str, moment: datetime) -> int | None:
    """The table's version at `moment`; None if there was no table. Raises `NoSuchSnapshot` if it is not kept."""
    path = names.local_path(uri)
    if not DeltaTable.is_deltatable(path):
        return None
    state = moment.astimezone(UTC).isoformat(" ", "seconds")
    try:
        table = DeltaTable(path)
        table.load_as_version(moment)  # if all are newer, this loads the oldest one that is kept
        version = int(table.version())
        committed = _committed(uri, version)
    except (DeltaError, OSError) as error:
        raise _not_kept(uri, state, error) from error
    if committed <= moment:
        return version
    if version == 0:
        return None
    oldest = f"version {version} of {committed.isoformat(' ', 'seconds')} is the oldest that is kept"
    raise _not_kept(uri, state, oldest)


def _committed(uri: str, version: int) -> datetime:
    """The instant (UTC) at which the version was committed: the modification time of its file in the log, as Delta
    defines it. Raises FileNotFoundError if the log does not have the file any more."""
    entry = f"_delta_log/{version:020}.json"
    found: datetime | None = PyFileSystem(DeltaStorageHandler(names.local_path(uri))).get_file_info(entry).mtime
    if found is None:
        raise FileNotFoundError(f"there is no {entry}")
    return found.astimezone(UTC)
