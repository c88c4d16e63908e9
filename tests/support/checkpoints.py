"""Checkpoints as Spark leaves them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.feed import contract

SALES = contract()


def spark_checkpoint(place: Path, planned: int, committed: int | None) -> None:
    """Batch n reads ten records of partition 0 of the topic."""
    for folder in ("offsets", "commits", "sources/0"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    (place / "metadata").write_text('{"id":"1f0ae7ce-8c53-4e0a-8b7e-61d1e1d6c1b5"}')
    (place / "sources" / "0" / "0").write_bytes(b'\0v1\n{"sales":{"0":0},"sales.retry":{"0":0}}')
    for batch in range(planned + 1):
        offsets = {"sales": {"0": 10 * (batch + 1)}, "sales.retry": {"0": 0}}
        text = f'v1\n{{"batchWatermarkMs":0,"batchTimestampMs":0,"conf":{{}}}}\n{json.dumps(offsets)}'
        (place / "offsets" / str(batch)).write_text(text)
    for batch in range(-1 if committed is None else committed, -1, -1):
        (place / "commits" / str(batch)).write_text('v1\n{"nextBatchWatermarkMs":0}')
