"""A lake of one small stream, with batches of a few rows."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction, write_deltalake
from pyspark.sql.pandas.types import to_arrow_schema

from spark.lake import names, table_schemas, tables
from spark.lake.batch_numbers import batch_number
from spark.speed.small_files import Upkeep, of_ingest
from tests.support.feed import T0, contract

ONE = contract(aggregates=contract().model_dump()["aggregates"][:1])


DAY = timedelta(days=1)


class Lake:
    """Bronze and speed of `sales`, written batch by batch as the ingest does: one commit with its transaction each."""

    def __init__(self, folder: Path) -> None:
        self.uri = f"file:{folder}/lake"
        self.batches = 0
        tables.create(self.uri, ONE)
        self.bronze = names.bronze(self.uri, "sales")
        self.speed = names.speed(self.uri, "sales", "by_shop")
        self._open = {uri: DeltaTable(names.local_path(uri)) for uri in (self.bronze, self.speed)}

    def batch(self, rows: int = 10, start: datetime = T0, ballast: bytes = b"\x00") -> None:
        number = batch_number(1, self.batches)
        records = [
            {
                "topic": "sales", "partition": 0, "offset": self.batches * rows + n, "batch": number, "attempt": 0,
                "accepted": n > 0, "event_time": T0 + timedelta(seconds=self.batches), "id": n, "shop": "a",
                "headers": [{"key": "trace", "value": ballast}] if n == 0 else None,
            }
            for n in range(rows)
        ]  # fmt: skip
        self._append(self.bronze, table_schemas.bronze_schema(ONE), records)
        partial = {"window_start": start, "shop": "a", "count_of_rows": rows, "kll_of_price": b"\xff", "batch": number}
        self._append(self.speed, table_schemas.speed_schema(ONE, ONE.aggregates[0]), [partial])
        self.batches += 1

    def _append(self, uri: str, schema: Any, rows: list[dict[str, Any]]) -> None:
        arrow = to_arrow_schema(schema, timezone="UTC")
        self._open[uri].update_incremental()  # the upkeep writes too
        whole = [{name: row.get(name) for name in arrow.names} for row in rows]
        write_deltalake(
            self._open[uri],
            pa.Table.from_pylist(whole, arrow),
            mode="append",
            commit_properties=CommitProperties(app_transactions=[Transaction("sales.g1", self.batches)]),
            post_commithook_properties=PostCommitHookProperties(cleanup_expired_logs=False),
        )

    def upkeep(self, history: timedelta = DAY, **given: Any) -> Upkeep:
        return Upkeep(of_ingest(self.uri, ONE), history, **given)

    def rows(self, uri: str, version: int | None = None) -> list[str]:
        return sorted(map(repr, DeltaTable(names.local_path(uri), version).to_pyarrow_table().to_pylist()))

    def files(self, uri: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pa.table(
            DeltaTable(names.local_path(uri)).get_add_actions(flatten=True)
        ).to_pylist()
        return found

    def log(self, uri: str) -> list[Path]:
        return sorted(Path(names.local_path(uri), "_delta_log").glob("*.json"))
