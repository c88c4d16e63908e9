"""The streaming driver's last heartbeat, and what it says of each stream."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import json_files
from infra.settings import Settings

if TYPE_CHECKING:
    from infra.broker.offsets import Offsets


def heartbeat(folder: Path, epoch: int | None = None) -> dict[str, Any] | None:
    """Returns the last heartbeat in the streaming driver's `folder`; with `epoch` only if that driver wrote it. None
    before the first one."""
    beat = json_files.read(folder / "heartbeat.json")
    return beat if beat and epoch in (None, beat.get("epoch")) else None


def halts(beat: Mapping[str, Any] | None) -> dict[str, str]:
    """The streams that are halted according to a heartbeat, and what each waits for."""
    queries = ((beat or {}).get("queries") or {}).items()
    return {stream: query["halted"]["why"] for stream, query in queries if query.get("halted")}


def open_transactions(beat: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The streams of which records wait behind a transaction that stays open, according to a heartbeat: `records`,
    `why` and `since`."""
    queries = ((beat or {}).get("queries") or {}).items()
    return {stream: query["open_transaction"] for stream, query in queries if query.get("open_transaction")}


def ingested_offsets(settings: Settings, stream: str) -> Offsets:
    """The offset up to which the stream's last finished micro-batch has read, per partition; empty before the first."""
    from infra.broker.offsets import flat  # brings librdkafka, which the triggers of Airflow do without

    query = ((heartbeat(settings.stream_dir) or {}).get("queries") or {}).get(stream) or {}
    return flat(query.get("offsets") or {})
