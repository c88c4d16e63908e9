"""The log of dead-letter replays, written by the replay task alone and without a JVM."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from spark import tables


def record(lake_uri: str, run_id: str, stream: str, at: datetime, counts: Mapping[str, int]) -> None:
    """Appends a row to `system/replays`: `read`, `retried`, `waiting` and `parked` letters of `counts`, at `at`
    (UTC)."""
    given: dict[str, object] = {"run_id": run_id, "stream": stream, "recorded_at": at, **counts}
    tables.append_rows(lake_uri, "replays", [{name: given[name] for name in tables.SYSTEM["replays"].names}])
