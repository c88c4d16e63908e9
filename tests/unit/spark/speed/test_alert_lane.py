"""A lane that cannot run: it is tried again, told after a while, and harms nobody; and where its checkpoint begins.
What a lane does is tested against real servers in `tests/integration/test_lane.py`."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infra.broker.offsets import flat
from infra.cli import app
from infra.local.certificates import ensure_certificates
from infra.settings import Settings, settings
from schemas.contract.catalog import load
from schemas.contract.folders import USES
from spark.session import submit_conf
from spark.speed.alert_lane import Lane
from spark.speed.checkpoint import lane_start
from spark.speed.checkpoint.start_check import CheckpointRefused
from spark.speed.standstill import REPORTED_AFTER
from tests.support.checkpoints import SALES, spark_checkpoint

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    seconds = 0.0

    def __call__(self) -> datetime:
        return BEGAN + timedelta(seconds=self.seconds)


def test_a_lane_that_fails_is_tried_again_and_told_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, attempts = Clock(), []
    since: list[datetime] = []
    settings = Settings(home=tmp_path)
    ensure_certificates(settings)
    lane = Lane(load(USES / "telemetry"), settings, clock=clock)

    def fails(spark: Any) -> None:
        attempts.append(clock.seconds)
        raise OSError("no registry\nand no more")

    monkeypatch.setattr(lane, "_keep_running", fails)
    for clock.seconds in range(int(REPORTED_AFTER.total_seconds())):
        lane.tend(None)  # type: ignore[arg-type]
        assert lane.progress()["halted"] is None
    assert attempts == [0, 2, 6, 14], "the pauses double"
    for clock.seconds in (30, 62):
        lane.tend(None)  # type: ignore[arg-type]
        told = lane.progress()["halted"]
        assert told["why"].startswith("the alert lane of telemetry stands still: OSError: no registry\n")
        assert told["why"].endswith("if it stays so, begin a new generation, which loses no alert: "
                                    "`millrace checkpoint reset telemetry.alerts`")  # fmt: skip
        since.append(datetime.fromisoformat(told["since"]))
    assert since == 2 * [BEGAN + REPORTED_AFTER], "a watch that begins while it is not reported yet reports it then"

    monkeypatch.setattr(lane, "_keep_running", lambda spark: None)
    monkeypatch.setattr(lane._log, "copy", lambda: 0)
    clock.seconds += 60
    lane.tend(None)  # type: ignore[arg-type]
    assert lane.progress()["halted"] is None


def test_the_driver_has_a_slot_more_for_each_partition_that_a_lane_reads(tmp_path: Path) -> None:
    conf = submit_conf(Settings(home=tmp_path, contracts=USES, spark_master="local[3]"), "stream")
    partitions = sum(load(USES / stream).topic.partitions for stream in ("transactions", "telemetry"))
    assert conf["spark.master"] == f"local[{3 + 2 * partitions}]"
    assert conf["spark.default.parallelism"] == "3"
    assert submit_conf(Settings(home=tmp_path, contracts=USES), "batch")["spark.master"] == "local[2]"
    assert submit_conf(Settings(home=tmp_path, contracts=USES, spark_master="yarn"), "stream")["spark.master"] == "yarn"


class Site:
    """The checkpoints of the stream `sales` and of its lane, whose batch n ends at the offset 10 * (n + 1)."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home)

    def folder(self, name: str, generation: int = 1) -> Path:
        return self.settings.home / "checkpoints" / name / f"g{generation}"

    def begun(self) -> tuple[int, int | None]:
        """The generation that begins, and the offset of the topic from which it reads."""
        generation, start = lane_start.begin(SALES, self.settings)
        assert lane_start.opening(SALES, self.settings) == (generation, start)
        return generation, flat(start.offsets).get(("sales", 0))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """The ingest had settled one batch when the lane came, and is far ahead now; the lane died after its fourth
    checkpoint."""
    found = Site(tmp_path)
    spark_checkpoint(found.folder("sales"), planned=1, committed=0)
    found.begun()
    spark_checkpoint(found.folder("sales"), planned=90, committed=90)
    spark_checkpoint(found.folder("sales.alerts"), planned=4, committed=3)
    return found


def test_a_first_lane_starts_where_the_ingest_has_settled(tmp_path: Path) -> None:
    found = Site(tmp_path)
    spark_checkpoint(found.folder("sales"), planned=1, committed=0)
    assert found.begun() == (1, 10)


def test_where_nothing_was_settled_all_records_alert(tmp_path: Path) -> None:
    assert Site(tmp_path).begun() == (1, None)


def test_a_lane_that_begins_again_goes_back_one_interval_and_not_to_where_the_ingest_is(site: Site) -> None:
    assert site.begun() == (2, 30)
    assert site.begun() == (3, 30), "it has not run since"


def test_a_lane_that_choked_on_a_record_goes_on_behind_the_ingest(site: Site) -> None:
    generation, start = lane_start.begin(SALES, site.settings, behind_ingest=True)
    assert (generation, flat(start.offsets)["sales", 0]) == (2, 910)
    assert site.begun() == (3, 910), "what it passed over is not taken up again"


def test_what_cannot_be_read_is_passed_over_for_what_is_older(site: Site) -> None:
    place = site.folder("sales.alerts")
    (place / "offsets" / "2").write_text("v1")
    assert site.begun() == (2, 20)
    shutil.rmtree(site.folder("sales.alerts", 2))
    shutil.rmtree(place / "offsets")
    assert site.begun() == (2, 10)
    shutil.rmtree(site.folder("sales.alerts", 2))
    (place / "start.json").write_text("{")
    assert site.begun() == (2, None), "everything is told again"


def test_a_crash_before_the_start_is_noted_loses_no_alert(site: Site) -> None:
    site.folder("sales.alerts", 2).mkdir()
    assert lane_start.opening(SALES, site.settings) == (2, None)
    assert site.begun() == (3, 30)


def test_a_damaged_checkpoint_is_refused_with_the_way_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    lane_start.opening(SALES, site.settings)
    (site.folder("sales.alerts") / "commits" / "3").write_text("")
    with pytest.raises(
        CheckpointRefused, match=r"commits/3 is cut short.*loses no alert: `millrace checkpoint reset sales\.al"
    ):
        lane_start.opening(SALES, site.settings)

    shutil.copytree(site.folder("sales.alerts"), site.folder("telemetry.alerts"))
    monkeypatch.setenv("MILLRACE_HOME", str(site.settings.home))
    monkeypatch.setenv("MILLRACE_CONTRACTS", str(USES))
    settings.cache_clear()
    try:
        monkeypatch.setattr("infra.broker.offsets.broker_offsets", lambda *_, **__: {})
        shown = CliRunner().invoke(app, ["checkpoint", "show", "--json"])
        streams = json.loads(shown.stdout)["streams"]
        assert streams["activity"]["lane"] is None
        lane = streams["telemetry"]["lane"]
        assert (lane["generation"], lane["committed"]) == (1, 3)
        assert lane["refused"].endswith("`millrace checkpoint reset telemetry.alerts`")
        told = CliRunner().invoke(app, ["checkpoint", "show", "telemetry"]).stdout
        assert "telemetry.alerts: generation 1" in told
        assert lane["refused"] in told
    finally:
        settings.cache_clear()
