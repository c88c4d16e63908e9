"""A lane that cannot run: it is tried again, told after a while, and harms nobody. What a lane does is tested against
real servers in `tests/integration/test_lane.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.security.certificates import ensure_certificates
from infra.settings import Settings
from infra.uses import SHELF
from schemas.catalog import load
from spark.lane import RETRY, TOLD_AFTER, Lane
from spark.session import submit_conf


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_lane_that_fails_is_tried_again_and_told_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, attempts = Clock(), []
    settings = Settings(home=tmp_path)
    ensure_certificates(settings)
    lane = Lane(load(SHELF / "telemetry"), settings, clock=clock)

    def fails(spark: Any) -> None:
        attempts.append(clock.now)
        raise OSError("no registry\nand no more")

    monkeypatch.setattr(lane, "_keep_running", fails)
    for clock.now in range(int(TOLD_AFTER)):
        lane.tend(None)  # type: ignore[arg-type]
        assert lane.progress()["halted"] is None
    assert attempts == [0, RETRY, 2 * RETRY]
    clock.now = TOLD_AFTER
    assert lane.progress()["halted"]["why"].endswith("telemetry stands still and is tried again: OSError: no registry")

    monkeypatch.setattr(lane, "_keep_running", lambda spark: None)
    monkeypatch.setattr(lane._log, "copy", lambda: 0)
    lane.tend(None)  # type: ignore[arg-type]
    assert lane.progress()["halted"] is None


def test_the_driver_has_a_slot_more_for_each_partition_that_a_lane_reads(tmp_path: Path) -> None:
    conf = submit_conf(Settings(home=tmp_path, contracts=SHELF, spark_master="local[3]"), "stream")
    partitions = sum(load(SHELF / stream).topic.partitions for stream in ("transactions", "telemetry"))
    assert conf["spark.master"] == f"local[{3 + 2 * partitions}]"
    assert conf["spark.default.parallelism"] == "3"
    assert submit_conf(Settings(home=tmp_path, contracts=SHELF), "batch")["spark.master"] == "local[2]"
    assert (
        submit_conf(Settings(home=tmp_path, contracts=SHELF, spark_master="yarn"), "stream")["spark.master"] == "yarn"
    )
