"""The trigger over real heartbeat files and a real process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.module_loading import import_string

from infra.driver import airflow_triggers, process
from infra.settings import Settings
from tests.support.drivers import SMALL_DRIVER


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setattr(airflow_triggers, "EVERY", 0.05)
    settings = Settings(home=tmp_path)
    yield settings
    process.stop(settings, timeout=0)


def started(settings: Settings, *options: str) -> process.Driver:
    folder = settings.stream_dir
    it = process.start(settings, 1, [sys.executable, str(SMALL_DRIVER), str(folder), "1", *options])
    process.wait_started(settings, it, timeout=20)
    return it


def ending(
    settings: Settings, cause: Any = None, stall_after: float = 60, epoch: int = 1, since: str | None = None
) -> dict[str, Any]:
    """The event of a watch that has seen the driver alive before `cause` happened."""
    path, arguments = airflow_triggers.DriverWatch(str(settings.stream_dir), epoch, stall_after, since).serialize()
    trigger = import_string(path)(**arguments)  # as the triggerer makes it again, from what the database holds

    async def wait() -> dict[str, Any]:
        events = trigger.run()
        event = asyncio.ensure_future(anext(events))
        if cause is not None:
            done, _ = await asyncio.wait([event], timeout=0.3)
            assert not done, "fired while the driver was well"
            cause()
        payload: dict[str, Any] = (await asyncio.wait_for(event, timeout=20)).payload
        return payload

    return asyncio.run(wait())


@pytest.mark.parametrize("name", ["DriverWatch", "MayStart"])
def test_a_trigger_that_was_deferred_before_it_moved_is_found(name: str) -> None:
    """Airflow's database holds `infra.watch.<name>` on a platform that is upgraded while it runs."""
    assert import_string(f"infra.watch.{name}") is getattr(airflow_triggers, name)


def test_kill_9_is_an_exit(home: Settings) -> None:
    it = started(home)
    event = ending(home, lambda: os.kill(it.pid, signal.SIGKILL))
    assert (event["reason"], event["epoch"]) == ("exited", 1)
    assert str(it.pid) in event["detail"]


def test_an_exit_is_noticed_within_three_seconds(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # with the interval of the product
    it = started(home)
    killed: list[float] = []

    def kill() -> None:
        os.kill(it.pid, signal.SIGKILL)
        killed.append(time.monotonic())

    assert ending(home, kill)["reason"] == "exited"
    assert time.monotonic() - killed[0] < 3


def test_a_clock_that_jumps_is_no_silence() -> None:
    seen, now = airflow_triggers.Progress(), datetime(2026, 1, 1, tzinfo=UTC)
    for jump in (0, 3600, -7200, 86_400, 0):
        now += timedelta(seconds=1)
        assert seen.silence((now + timedelta(seconds=jump)).isoformat(), now) <= 1
    assert seen.silence(now.isoformat(), now + timedelta(seconds=60)) == 60
    assert airflow_triggers.Progress().silence(now.isoformat(), now + timedelta(seconds=60)) == 60, (
        "it was old at the first look"
    )


def test_a_stop_on_purpose_is_not_a_failure(home: Settings) -> None:
    started(home)
    assert ending(home, (home.stream_dir / "stop").touch)["reason"] == "stopped"


def test_a_paused_driver_stalls(home: Settings) -> None:
    it = started(home)
    event = ending(home, lambda: os.kill(it.pid, signal.SIGSTOP), stall_after=1)
    assert event["reason"] == "stalled"
    assert it.alive, "the watch only watches"


def test_a_driver_that_never_beats_stalls(home: Settings) -> None:
    process.start(home, 1, [sys.executable, str(SMALL_DRIVER), str(home.stream_dir), "1", "--beats", "0"])
    assert ending(home, stall_after=0.5)["reason"] == "stalled"


def test_records_that_wait_without_progress_are_lag(home: Settings) -> None:
    started(home, "--lag", "5000")
    event = ending(home, stall_after=1)
    assert event["reason"] == "lag"
    assert "flights at batch 1 for " in event["detail"]
    assert "5,000 records wait" in event["detail"]


def test_a_reported_error_is_passed_on(home: Settings) -> None:
    folder = home.stream_dir
    process.start(home, 1, [sys.executable, str(SMALL_DRIVER), str(folder), "1", "--state", "failed"])
    event = ending(home)
    assert (event["reason"], event["detail"]) == ("failed", "made to fail")


def test_a_stream_that_halts_is_told_and_the_driver_lives(home: Settings) -> None:
    it = started(home, "--halted", "2024-05-01T12:00:01+00:00")
    event = ending(home, (home.stream_dir / "storm").touch, since="2024-05-01T12:00:00+00:00")
    assert (event["reason"], event["detail"]) == ("halted", "flights waits for a decision")
    assert it.alive
    assert process.running(home) == it


def test_a_halt_is_told_once(home: Settings) -> None:
    """It began before this run did: the run before has told it."""
    folder = home.stream_dir
    folder.mkdir(parents=True)
    (folder / "storm").touch()
    started(home, "--halted", "2024-05-01T12:00:01+00:00")
    event = ending(home, (folder / "stop").touch, since="2024-05-01T12:00:02+00:00")
    assert event["reason"] == "stopped"


def test_a_transaction_that_stays_open_is_told_once_and_the_driver_lives(home: Settings) -> None:
    it = started(home, "--hanging", "2024-05-01T12:00:01+00:00")
    event = ending(home, (home.stream_dir / "storm").touch, since="2024-05-01T12:00:00+00:00")
    assert (event["reason"], event["detail"]) == ("transaction", "records of flights wait behind a transaction")
    assert it.alive
    event = ending(home, (home.stream_dir / "stop").touch, since="2024-05-01T12:00:02+00:00")
    assert event["reason"] == "stopped"


def test_another_driver_in_its_place_ends_the_watch(home: Settings) -> None:
    started(home)
    event = ending(home, epoch=99)
    assert event["reason"] == "exited"
    assert "epoch 1" in event["detail"]


def test_lag_that_shrinks_by_finished_batches_is_progress() -> None:
    progress, start = airflow_triggers.Progress(), datetime.now(UTC)

    def stuck(batch: int, lag: int, after: int) -> str:
        queries = {"flights": {"batch_id": batch, "lag": lag}}
        return progress.stuck(queries, start + timedelta(seconds=after), limit=60)

    for batch in range(10):
        assert stuck(batch, lag=1000, after=50 * batch) == ""
    assert "flights" in stuck(9, lag=1000, after=600)
    assert stuck(9, lag=0, after=601) == ""


def test_a_query_that_hangs_before_its_batch_is_stuck() -> None:
    """As one that waits for a dead connection: it was up to date when it last said something."""
    progress, start = airflow_triggers.Progress(), datetime.now(UTC)

    def stuck(busy: bool, after: int) -> str:
        queries = {"flights": {"batch_id": 4, "lag": 0, "busy": busy}}
        return progress.stuck(queries, start + timedelta(seconds=after), limit=60)

    for after, busy in ((0, True), (50, False), (100, True)):
        assert stuck(busy, after) == "", "it looks for records each second, and finds none"
    assert stuck(busy=True, after=120) == "flights at batch 4 for 70 s, 0 records wait"


def test_a_contract_says_how_long_a_batch_may_take() -> None:
    progress, start = airflow_triggers.Progress(), datetime.now(UTC)

    def stuck(after: int) -> list[str]:
        queries = {
            "flights": {"batch_id": 4, "lag": 9, "within": 30.0},
            "weather": {"batch_id": 4, "lag": 9, "within": 300.0},
            "clicks": {"batch_id": 4, "lag": 9, "within": None},
        }
        found = progress.stuck(queries, start + timedelta(seconds=after), limit=100)
        return [name for name in queries if f"{name} at batch 4" in found]

    assert [stuck(after) for after in (0, 31, 101)] == [[], ["flights"], ["flights", "clicks"]]
    assert stuck(301) == ["flights", "weather", "clicks"]


def test_a_stream_that_falls_behind_is_told_and_one_that_catches_up_is_not() -> None:
    progress, start = airflow_triggers.Progress(), datetime.now(UTC)

    def behind(after: int, lag: int) -> str:
        queries = {"flights": {"batch_id": after, "lag": lag}}
        return progress.behind(queries, start + timedelta(seconds=after), limit=60)

    assert [behind(*look) for look in ((0, 900), (50, 950), (59, 899), (100, 950), (119, 2000))] == [""] * 5
    assert behind(120, 1000) == "1,000 wait for flights, 61 s ago it was 899"
    assert behind(121, 800) == ""
    assert [behind(after, lag=1) for after in (200, 300, 400)] == [""] * 3, "a batch after the other, and none waits"


def test_a_driver_that_falls_behind_lives(home: Settings) -> None:
    it = started(home, "--grows")
    event = ending(home, stall_after=0.1)
    assert event["reason"] == "behind"
    assert "wait for flights" in event["detail"]
    assert it.alive


def test_records_that_wait_for_a_decision_are_no_lag() -> None:
    progress, start = airflow_triggers.Progress(), datetime.now(UTC)
    halted = {"why": "a storm", "since": start.isoformat()}
    for after in (0, 600, 1200):
        queries = {"flights": {"batch_id": 3, "lag": 1000, "halted": halted}}
        assert progress.stuck(queries, start + timedelta(seconds=after), limit=60) == ""
