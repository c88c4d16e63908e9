"""The log of dead-letter replays, written by the replay task alone and without a JVM."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import pyarrow as pa
from deltalake import write_deltalake
from pyspark.sql.pandas.types import to_arrow_schema

from spark import tables


def record(lake_uri: str, run_id: str, stream: str, at: datetime, counts: Mapping[str, int]) -> None:
    """Appends a row to `system/replays`: `read`, `retried`, `waiting` and `parked` letters of `counts`, at `at`
    (UTC)."""
    schema = to_arrow_schema(tables.SYSTEM["replays"], timezone="UTC")
    given: dict[str, object] = {"run_id": run_id, "stream": stream, "recorded_at": at, **counts}
    row = pa.Table.from_pylist([{name: given[name] for name in schema.names}], schema=schema)
    write_deltalake(tables.local_path(tables.system(lake_uri, "replays")), row, mode="append")
