"""Reads the Kafka coordinates that bronze holds, at one version of the table and without a JVM.

Only the columns `topic`, `partition`, `offset` and `batch` are read, and file statistics on `batch` skip the files of
batches that are not asked for. (Measured on two cores: 10 million rows of four partitions in 4.3 s with 550 MB
resident, and 60 million of one partition, most of them spilled to disk, in 40 s.)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType

import duckdb
from deltalake import DeltaTable
from duckdb_extensions import import_extension

from infra.broker.offsets import Offsets
from spark.conservation.accounting import Break
from spark.lake import contents, names

MEMORY = "256MB"
"""The memory that DuckDB may use; it spills the rest to disk."""


class BronzeCoordinates:
    """The coordinates in bronze of a stream at `version`, the newest one when the object was made. It is a context
    manager, which closes its connection and removes its spill files."""

    def __init__(self, lake_uri: str, stream: str) -> None:
        self._path = names.local_path(names.bronze(lake_uri, stream))
        self.version = DeltaTable(self._path).version()
        self._closing = ExitStack()
        import_extension("delta")
        spill = self._closing.enter_context(tempfile.TemporaryDirectory(prefix="millrace-audit-"))
        self._connection = self._closing.enter_context(duckdb.connect())
        self._connection.execute("load delta")
        self._connection.execute(f"set memory_limit = '{MEMORY}'")
        self._connection.execute("set temp_directory = $spill", {"spill": spill})
        quoted = self._path.replace("'", "''")
        self._connection.execute(f"create view bronze as from delta_scan('{quoted}', version = {self.version})")

    def __enter__(self) -> BronzeCoordinates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def breaks(self, ends: Offsets, after_batch: int) -> Iterator[Break]:
        """Yields the breaks among the offsets below `ends` of batches after `after_batch`, in the order of topic,
        partition and offset: the first and the last row of each partition, rows after a gap, and repeated offsets."""
        self._connection.execute(
            'create or replace temp table ends (topic varchar, "partition" integer, end_offset bigint)'
        )
        if ends:
            rows = [(topic, partition, end) for (topic, partition), end in ends.items()]
            self._connection.executemany("insert into ends values (?, ?, ?)", rows)
        found = self._connection.execute(
            """
            select topic, "partition", "offset", before from (
                select topic, "partition", "offset", lag("offset") over consecutive as before,
                    lead("offset") over consecutive as after
                from bronze join ends using (topic, "partition")
                where batch > $after_batch and "offset" < end_offset
                window consecutive as (partition by topic, "partition" order by "offset")
            ) where before is null or after is null or "offset" <> before + 1
            order by topic, "partition", "offset", before nulls first
            """,
            {"after_batch": after_batch},
        )
        while rows := found.fetchmany(10_000):
            yield from map(Break._make, rows)

    def rows(self, after_batch: int) -> int:
        """Returns the number of rows of batches after `after_batch`."""
        counted = self._connection.execute("select count(*) from bronze where batch > ?", [after_batch]).fetchone()
        assert counted is not None
        return int(counted[0])

    def all_rows(self) -> int:
        """Returns the number of rows, from the table's statistics alone."""
        return int(DeltaTable(self._path, version=self.version).count())

    def only_grew_since(self, version: int) -> bool:
        """Returns whether nothing but appends has changed the rows since that version. It is False if the table's
        history does not go back so far."""
        since = self.version - version
        if since <= 0:
            return since == 0
        commits = DeltaTable(self._path, version=self.version).history(since)
        return len(commits) == since and all(
            commit["operation"] in contents.CHANGES_NO_ROW
            or commit.get("operationParameters", {}).get("mode") == "Append"
            for commit in commits
        )

    def sent_again(self, retry_topic: str) -> set[tuple[str, int]]:
        """Returns the original (topic/partition/offset) and the attempt of each row of the retry topic."""
        found = self._connection.execute(
            "select distinct original, attempt from bronze where topic = ? and original is not null", [retry_topic]
        )
        return set(found.fetchall())
