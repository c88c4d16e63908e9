"""Small files: the streaming driver merges those of its own tables and removes what is superseded, between batches.

Every batch leaves a few small files and a log entry in bronze and in each speed table, those of velocity, sessions and
joins too, and every few seconds of alerts leave some in the alerts table. Merging moves rows and changes none: they
keep their `batch`, and one commit, an OPTIMIZE whose actions say that no data changed, replaces the old files with the
new ones. The query that writes a table looks after it, after a batch and before the next.

Rows of the speed layer that are older than the contract keeps them are removed together with superseded files
(`spark.lake.retention`).

Files are merged by size: many tiny ones become one, and those are merged again when there are many of them. So a
row is rewritten a few times for each of the `TIERS`, and a look merges the files of one of them at most in each table.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow
from deltalake import DeltaTable, WriterProperties
from deltalake.exceptions import DeltaError

from schemas.contract.model import Contract
from spark.lake import names, retention
from spark.speed import delta_append

log = logging.getLogger(__name__)

TIERS = (1 << 20, 16 << 20, 128 << 20)
"""Bytes of a file: merged ones are at most as large. A file counts for the first tier of which it is less than half:
any two of those fit into one, where larger ones would count for ever and never be merged."""

MANY = 32
"""Files that count, in one partition of a table, that are merged."""

LOOK = 20
"""Batches between two looks at the files."""

PATIENCE = 10
"""A stream that always has more waiting is looked at anyway, so much less often."""

CLEANINGS = 20
"""Looks between two removals of superseded files and log entries."""


@dataclass
class Upkeep:
    """The care for the tables at `uris`, which the caller alone writes; it calls `after_batch` after each batch.
    Superseded files and log entries stay for `history`, so that readers of an older version are not disturbed and time
    travel reaches back as far. `may_commit` is called before each commit and raises when this process must not (any
    more)."""

    uris: Sequence[str]
    history: timedelta
    may_commit: Callable[[], None] = lambda: None
    lake_uri: str = ""
    kept: Sequence[retention.RetentionRule] = ()
    """How long rows are kept, for each of the tables that does not keep them for ever."""
    _batches: int = field(default=0, init=False)
    _looks: int = field(default=0, init=False)

    def after_batch(self, *, waiting: bool) -> None:
        """Counts a batch, and looks after the tables when it is time; with records `waiting` that time comes later. A
        table that cannot be looked after now will be later: this is not worth a stop of the stream. Raises what
        `may_commit` does."""
        self._batches += 1
        if self._batches < LOOK * (PATIENCE if waiting else 1):
            return
        # More to merge: again after the next batch.
        self._batches = LOOK if self.merge() else 0
        self._looks += 1
        if self._looks % CLEANINGS == 1:
            self.clean()

    def merge(self) -> bool:
        """Merges the files of one tier of each table that has many of them. Returns whether any were merged."""
        return any([self._merged(uri) for uri in self.uris])

    def clean(self) -> None:
        """Removes rows that are older than the contract keeps them, and files and log entries that were superseded
        longer than `history` ago."""
        for rule in self.kept:
            self._expired(rule)
        for uri in self.uris:
            self._cleaned(uri)

    def _expired(self, rule: retention.RetentionRule) -> None:
        if (since := rule.since(self.lake_uri)) is None:
            return
        try:
            removed = retention.remove(rule.uri, rule.column, since, self.may_commit)
        except (DeltaError, OSError) as error:
            log.warning("the rows of %s from before %s could not be removed now: %s", rule.uri, since, error)
            return
        if removed:
            log.info("%s: %d rows from before %s were removed", rule.uri, removed, since)

    def _merged(self, uri: str) -> bool:
        table = DeltaTable(names.local_path(uri))
        tiers = zip(TIERS, (0, *TIERS), strict=False)
        size = next((size for size, below in tiers if _fullest(table, below, size) >= MANY), None)
        if size is None:
            return False
        self.may_commit()
        try:
            found = table.optimize.compact(
                target_size=size,
                max_concurrent_tasks=1,
                writer_properties=WriterProperties(compression="ZSTD", compression_level=1),
            )
        except (DeltaError, OSError) as error:
            log.warning("the files of %s could not be merged now: %s", uri, error)
            return False
        log.info("%s: %d files became %d", uri, found["numFilesRemoved"], found["numFilesAdded"])
        return bool(found["numFilesRemoved"])

    def _cleaned(self, uri: str) -> None:
        table = DeltaTable(names.local_path(uri))
        hours = f"interval {max(0, round(self.history / timedelta(hours=1)))} hours"
        wanted = {"delta.deletedFileRetentionDuration": hours, "delta.logRetentionDuration": hours}
        self.may_commit()
        try:
            if wanted.items() - table.metadata().configuration.items():
                table.alter.set_table_properties(wanted)
            table.vacuum(dry_run=False, full=True)  # also what a crash left without a commit
            _remove_empty_folders(uri)
            table.create_checkpoint()
            table.cleanup_metadata()
        except (DeltaError, OSError) as error:
            log.warning("what is superseded in %s could not be removed now: %s", uri, error)


def of_ingest(lake_uri: str, contract: Contract) -> list[str]:
    """The tables that a stream's ingest writes: bronze, and the speed tables of its aggregates."""
    speed = [names.speed(lake_uri, contract.stream, aggregate.name) for aggregate in contract.aggregates]
    return [names.bronze(lake_uri, contract.stream), *speed]


def _remove_empty_folders(uri: str) -> None:
    """Removes the folders of batches whose files are gone, with the checksums that Hadoop keeps beside them; object
    stores have neither. Nobody writes to the table meanwhile."""
    if urlsplit(uri).scheme != "file":
        return
    for folder in Path(names.local_path(uri)).glob(f"{delta_append.FOLDER}*"):
        if not any(folder.rglob("[!.]*.parquet")):
            shutil.rmtree(folder)


def _fullest(table: DeltaTable, below: int, size: int) -> int:
    """How many files have from half of `below` to half of `size` bytes, in the partition that has most of them."""
    files = pyarrow.table(table.get_add_actions(flatten=True))
    partition = next((name for name in files.column_names if name.startswith("partition.")), None)
    values = files[partition].to_pylist() if partition else [None] * files.num_rows
    sizes = files["size_bytes"].to_pylist()
    counted = Counter(value for value, size_ in zip(values, sizes, strict=True) if below // 2 <= size_ < size // 2)
    return max(counted.values(), default=0)
