"""The windows of aggregates: their sizes, aligned to the UTC epoch."""

from __future__ import annotations

from schemas.model import Window

SECONDS: dict[Window, int] = {"1m": 60, "5m": 300, "1h": 3600}
