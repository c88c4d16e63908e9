"""The maintenance of Delta tables by the process that writes them, without a JVM.

Small files are merged into large ones (`spark.speed.small_files` does it for the streaming driver's tables), and files
that no version within `TIME_TRAVEL` needs are removed. What is served stays the same, except for published windows that
are older than the contract's retention: they are removed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from deltalake import DeltaTable, WriterProperties
from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import FileSelector, PyFileSystem

from schemas.contract.model import Contract
from spark.definitions import stateful_results
from spark.lake import contents, names, retention, tables
from spark.lake.publications import Publication, in_force, publications, unique_run_id

TIME_TRAVEL = timedelta(days=7)
"""How far back every table can be read as it was."""

ROW_GROUP = 64 * 1024
"""The number of rows in a row group of a compacted file, which is read or skipped as a whole. In most tables it holds a
day of one window length."""

Owner = Literal["batch", "letters", "audits"]
"""The process that writes tables: the batch jobs, the replay task or the audit task, by the name of its pool in
Airflow."""

_LOGS: dict[Owner, tuple[str, ...]] = {
    "batch": ("ledger", "quality", "refusals"),
    "letters": ("moves", "replays"),
    "audits": ("audits",),
}


@dataclass(frozen=True)
class TableMaintenance:
    """What maintenance did to one table."""

    table: str
    compacted: int = 0
    """Small files that became part of larger ones."""
    removed: int = 0
    """Files that none of the versions within `TIME_TRAVEL` needs."""
    expired: int = 0
    """Rows that were older than the contract's retention."""
    left_alone: str = ""
    """Why nothing was done; empty if something was."""


@dataclass(frozen=True)
class Usage:
    """The size of a table. `bytes` and `files` count the newest version, and `bytes_on_disk` counts all versions that
    can still be read, and the log. `rows` is taken from statistics. `written_at` is UTC."""

    table: str
    owner: str
    rows: int
    files: int
    bytes: int
    bytes_on_disk: int
    version: int
    written_at: datetime


def maintain(
    lake_uri: str, contracts: Iterable[Contract], owner: Owner, run_id: str, now: datetime
) -> list[TableMaintenance]:
    """Maintains the tables that `owner` writes, at the time `now` (UTC), and returns what was done to each. The caller
    must be the only writer of these tables.

    The batch tables of a stream are published again at their new versions, under the same horizon, by the run
    `maintain <run_id>`.
    """
    done = [_keep_up(lake_uri, names.system(lake_uri, name)) for name in _LOGS[owner] if _exists(lake_uri, name)]
    if owner == "batch":
        for contract in contracts:
            done += _batch_tables(lake_uri, contract, run_id, now) + _stateful_tables(lake_uri, contract)
        if _exists(lake_uri, "publications"):
            done.append(_keep_up(lake_uri, names.system(lake_uri, "publications")))
    return done


def usage(lake_uri: str, contracts: Iterable[Contract]) -> list[Usage]:
    """Returns the size of every table that exists, in the order of their names."""
    uris = dict.fromkeys(uri for contract in contracts for uri in tables.uris(lake_uri, contract))
    return [
        _usage(lake_uri, uri, names.owner(lake_uri, uri))
        for uri in sorted(uris)
        if DeltaTable.is_deltatable(names.local_path(uri))
    ]


def _batch_tables(lake_uri: str, contract: Contract, run_id: str, now: datetime) -> list[TableMaintenance]:
    published = publications(lake_uri, contract.stream)
    last = in_force(published).get(contract.stream)
    done, versions = [], dict(last.versions) if last else {}
    for aggregate in contract.aggregates:
        staged = names.staged(lake_uri, contract.stream, aggregate.name)
        batch = names.batch(lake_uri, contract.stream, aggregate.name)
        if DeltaTable.is_deltatable(names.local_path(staged)):
            done.append(_keep_up(lake_uri, staged))
        if aggregate.name not in versions or not DeltaTable.is_deltatable(names.local_path(batch)):
            continue
        expired = 0
        if last and _is_served(batch, versions[aggregate.name]):
            if since := retention.day_before(last.final_through, contract.retention.batch):
                expired = retention.remove(batch, "hour", since)
            done.append(replace(_keep_up(lake_uri, batch, keep=[versions[aggregate.name]]), expired=expired))
            versions[aggregate.name] = int(DeltaTable(names.local_path(batch)).version())
        else:
            done.append(TableMaintenance(_name(lake_uri, batch), left_alone="holds rows that are not published"))
    if last and versions != last.versions:
        again: Publication = replace(
            last, run_id=unique_run_id(f"maintain {run_id}", published), hours=0, rows=0, published_at=now,
            versions=versions, kind="maintain",
        )  # fmt: skip
        tables.create_system(lake_uri, "publications")  # a lake of an older version lacks its newest columns
        contents.append_rows(lake_uri, "publications", [again.row])
    return done


def _stateful_tables(lake_uri: str, contract: Contract) -> list[TableMaintenance]:
    """Maintains the staged and the batch tables of the stateful results, which are served at their newest version.

    A table with rows of a run that died is left alone: the next run takes them back
    (`spark.batch.stateful_reconciliation`), and needs the files of the version before for it.
    """
    done = []
    for result in contract.stateful_results:
        title = stateful_results.title(contract, result)
        known = {publication.run_id for publication in publications(lake_uri, title)}
        for uri in (
            names.staged(lake_uri, contract.stream, result.name),
            names.batch(lake_uri, contract.stream, result.name),
        ):
            if not DeltaTable.is_deltatable(names.local_path(uri)):
                continue
            runs = [commit.get("userMetadata") for commit in DeltaTable(names.local_path(uri)).history()
                    if "userMetadata" in commit or commit["operation"] == "RESTORE"]  # fmt: skip
            if runs and runs[0] not in {None, *known}:
                done.append(TableMaintenance(_name(lake_uri, uri), left_alone="holds rows that are not published"))
            else:
                done.append(_keep_up(lake_uri, uri))
    return done


def _is_served(uri: str, version: int) -> bool:
    """Whether the newest version of the table has the rows of `version`: only maintenance has changed it since."""
    table = DeltaTable(names.local_path(uri))
    later = int(table.version()) - version
    commits = table.history(later) if later else []
    return len(commits) == later and all(
        commit["operation"] in contents.CHANGES_NO_ROW or commit.items() >= retention.MARK.items() for commit in commits
    )


def _keep_up(lake_uri: str, uri: str, keep: Iterable[int] = ()) -> TableMaintenance:
    table = DeltaTable(names.local_path(uri))
    properties = WriterProperties(compression="ZSTD", max_row_group_size=ROW_GROUP)
    compacted = table.optimize.compact(writer_properties=properties)
    hours = int(TIME_TRAVEL / timedelta(hours=1))
    removed = table.vacuum(hours, dry_run=False, keep_versions=list(keep) or None)
    return TableMaintenance(_name(lake_uri, uri), int(compacted["numFilesRemoved"]), len(removed))


def _usage(lake_uri: str, uri: str, owner: str) -> Usage:
    path = names.local_path(uri)
    table = DeltaTable(path)
    sizes = table.get_add_actions(flatten=True).column("size_bytes").to_pylist()
    stored = PyFileSystem(DeltaStorageHandler(path)).get_file_info(FileSelector("", recursive=True))
    [newest] = table.history(1)
    return Usage(
        _name(lake_uri, uri), owner, int(table.count()), len(sizes), sum(sizes),
        sum(file.size or 0 for file in stored if file.is_file), int(table.version()),
        datetime.fromtimestamp(newest["timestamp"] / 1000, UTC),
    )  # fmt: skip


def _exists(lake_uri: str, name: str) -> bool:
    return bool(DeltaTable.is_deltatable(names.local_path(names.system(lake_uri, name))))


def _name(lake_uri: str, uri: str) -> str:
    return uri.removeprefix(f"{lake_uri}/")
