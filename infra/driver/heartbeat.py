"""The streaming driver's last heartbeat, and what it says of each stream."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from infra.broker.offsets import Offsets, flat
from infra.settings import Settings


def heartbeat(settings: Settings) -> dict[str, Any] | None:
    """The streaming driver's last heartbeat, or None when it never wrote one."""
    try:
        beat: dict[str, Any] = json.loads((settings.run_dir / "stream" / "heartbeat.json").read_text())
    except FileNotFoundError:
        return None
    return beat


def halts(beat: Mapping[str, Any] | None) -> dict[str, str]:
    """The streams that are halted according to a heartbeat, and what each waits for."""
    queries = ((beat or {}).get("queries") or {}).items()
    return {stream: query["halted"]["why"] for stream, query in queries if query.get("halted")}


def ingested_offsets(settings: Settings, stream: str) -> Offsets:
    """The offset up to which the stream's last finished micro-batch has read, per partition; empty before the first."""
    query = ((heartbeat(settings) or {}).get("queries") or {}).get(stream) or {}
    return flat(query.get("offsets") or {})
