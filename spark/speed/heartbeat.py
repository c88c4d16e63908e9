"""The heartbeat: the streaming driver's word about itself, each second, for the supervisor and for people."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pyspark.sql.streaming.query import StreamingQuery

from infra import json_files

State = Literal["starting", "running", "failed", "stopped"]


class Heartbeat:
    """Writes `heartbeat.json`: epoch, pid, started_at, updated_at (ISO-8601 UTC), state, error, and `queries`, name of
    a query to its `progress` and `halted`; an ingest adds what `IngestQuery.progress` says. The file is replaced whole,
    so a reader never sees half of it."""

    def __init__(self, path: Path, epoch: int, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._path = path
        self._epoch = epoch
        self._clock = clock
        self._started_at = clock().isoformat()

    def beat(self, state: State, queries: dict[str, dict[str, Any]], error: str | None = None) -> None:
        """Writes the file anew. `queries` maps the name of a query to its progress; `error` is why it failed."""
        document = {
            "epoch": self._epoch,
            "pid": os.getpid(),
            "started_at": self._started_at,
            "updated_at": self._clock().isoformat(),
            "state": state,
            "error": error,
            "queries": queries,
        }
        json_files.swap(self._path, document)


NO_PROGRESS: dict[str, Any] = {"batch_id": None, "lag": 0, "busy": False, "rows": 0, "offsets": {}}
"""The `progress` of a query that has not begun."""


def progress(query: StreamingQuery, running: bool) -> dict[str, Any]:
    """How far a query is: batch_id of the last finished batch (None before the first), rows the last trigger took,
    offsets (topic to partition to the next offset to read), lag: records on the broker that were not ingested then, at
    least 1 while a batch is `running`; and whether it is busy: with a batch, or with asking what there is for one."""
    last: Any = query.lastProgress
    busy = running or query.status["isTriggerActive"]
    if last is None:
        return NO_PROGRESS | {"lag": int(running), "busy": busy}
    source = last["sources"][0]
    offsets, latest = _offsets(source["endOffset"]), _offsets(source["latestOffset"])
    behind = sum(
        offset - offsets.get(topic, {}).get(partition, 0)
        for topic, partitions in latest.items()
        for partition, offset in partitions.items()
    )
    # Between batches Spark reports the next batch's id.
    finished = last["batchId"] if "addBatch" in last["durationMs"] else last["batchId"] - 1
    return {
        "batch_id": finished if finished >= 0 else None,
        "lag": max(behind, int(running)),
        "busy": busy,
        "rows": last["numInputRows"],
        "offsets": offsets,
    }


def plain(error: BaseException) -> str:
    """The message of an error for people: without the plan and the stack trace that Spark or Delta adds, 2,000
    characters at most."""
    return re.split(r"\n(?:=== Streaming Query ===|\s+at |\s+\d+: )", str(error))[0].strip()[:2000]


def _offsets(value: Any) -> dict[str, dict[str, int]]:
    """Spark gives Kafka offsets as a document, as its JSON text, or as null."""
    found: dict[str, dict[str, int]] = json.loads(value) if isinstance(value, str) else value
    return found or {}
