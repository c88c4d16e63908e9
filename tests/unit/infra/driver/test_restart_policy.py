"""When a driver may be started again: over the files of real dead processes, with the clock in the test's hand."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.module_loading import import_string

from infra import json_files
from infra.driver import actions, airflow_triggers, process, restart_policy
from infra.settings import PROJECT, Settings
from tests.support.drivers import started

SECOND = timedelta(seconds=1)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Settings]:
    settings = Settings(home=tmp_path)
    yield settings
    process.stop(settings, timeout=0)


def die_young(settings: Settings, epoch: int) -> datetime:
    """A driver that ends at once; returns its last sign of life."""
    it = process.start(settings, epoch, [sys.executable, "-c", ""])
    with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended already
        psutil.Process(it.pid).wait(10)
    return process.last_sign(settings.stream_dir, it)


def test_pauses_grow_with_early_deaths_and_are_the_same_for_every_reader(home: Settings) -> None:
    assert restart_policy.breaker(home, datetime.now(UTC)) == restart_policy.Breaker("closed", 0, None)
    pauses = []
    for epoch in range(1, restart_policy.BACKOFF.attempts):
        died = die_young(home, epoch)
        state = restart_policy.breaker(home, died)
        assert (state.state, state.deaths) == ("closed", epoch)
        assert restart_policy.breaker(home, died) == state
        pauses.append((state.until - died).total_seconds() if state.until else 0)
        assert restart_policy.breaker(home, died + timedelta(minutes=1)).until is None
    assert pauses[0] == 0
    for pause, longest in zip(pauses[1:], (2, 4, 8), strict=True):
        assert longest / 2 <= pause <= longest


def test_a_crash_loop_opens_the_breaker_until_it_cooled_down_and_one_long_life_closes_it(home: Settings) -> None:
    for epoch in range(1, restart_policy.BACKOFF.attempts + 1):
        died = die_young(home, epoch)
    state = restart_policy.breaker(home, died + SECOND)
    assert (state.state, state.until) == ("open", died + restart_policy.COOL_DOWN)
    assert "the circuit breaker is open: 5 drivers" in str(restart_policy.waits(home, died + SECOND))
    after = died + restart_policy.COOL_DOWN + SECOND
    assert restart_policy.breaker(home, after) == restart_policy.Breaker("half-open", 5, None)
    assert restart_policy.waits(home, after) is None

    it = started(home, 6)
    assert restart_policy.breaker(home, datetime.now(UTC)).state == "half-open", "it is being tried"
    document = asdict(it) | {
        "started_at": (datetime.now(UTC) - timedelta(seconds=process.HEALTHY_LIFE + 9)).isoformat()
    }
    (home.stream_dir / "driver.json").write_text(json.dumps(document))
    assert restart_policy.breaker(home, datetime.now(UTC)) == restart_policy.Breaker("closed", 0, None)


@pytest.mark.parametrize(
    ("query", "deaths"),
    [
        ({"batch_id": None, "lag": 9}, 1),
        ({"batch_id": None, "lag": 1, "waiting": "the registry is away"}, 0),
        ({"batch_id": 4, "lag": 9}, 0),
        ({"batch_id": None, "lag": 0}, 0),
    ],
    ids=["in its first batch", "waiting for the registry", "in a later one", "idle"],
)
def test_a_driver_that_dies_of_its_first_batch_dies_young_however_long_that_takes(
    home: Settings, query: dict[str, Any], deaths: int
) -> None:
    die_young(home, 1)
    folder, now = home.stream_dir, datetime.now(UTC)
    document = json.loads((folder / "driver.json").read_text())
    json_files.swap(folder / "driver.json", document | {"started_at": (now - timedelta(minutes=9)).isoformat()})
    beat = {"epoch": 1, "state": "running", "updated_at": now.isoformat(), "queries": {"flights": query}}
    json_files.swap(folder / "heartbeat.json", beat)
    assert process.deaths(folder) == deaths


def test_a_failed_try_opens_it_again_and_a_person_closes_it(home: Settings) -> None:
    for epoch in range(1, restart_policy.BACKOFF.attempts + 2):
        died = die_young(home, epoch)
    assert restart_policy.breaker(home, died + SECOND).state == "open"
    assert restart_policy.close_breaker(home)
    assert restart_policy.waits(home, died) is None
    assert not restart_policy.close_breaker(home)
    again = die_young(home, 7)
    assert restart_policy.breaker(home, again) == restart_policy.Breaker("closed", 1, None)


def test_a_stopped_stream_stays_stopped_until_it_is_started(home: Settings) -> None:
    started(home, 1)
    done = actions.operate(home, "stop", "ann", "broker moves")
    assert (done.before, process.running(home)) == (1, None)
    why = str(restart_policy.waits(home, datetime.now(UTC)))
    assert why.startswith("ann stopped the stream at ")
    assert "broker moves. `millrace stream start`" in why
    with pytest.raises(actions.NotOperated, match="no driver to restart: ann stopped the stream"):
        actions.operate(home, "restart", "bob", "")
    assert restart_policy.let_go(home)
    assert restart_policy.waits(home, datetime.now(UTC)) is None


def test_a_stream_that_is_stopped_while_its_driver_is_started_stays_stopped(
    home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.settings.settings", lambda: home)
    monkeypatch.syspath_prepend(str(PROJECT / "dags"))
    drive = importlib.import_module("stream_supervisor").Drive(task_id="drive")

    def ensure(settings: Settings, lease: Any, command: Any) -> process.Driver:
        """What starts a driver, and is overtaken by somebody who stops the stream and finds none yet."""
        done = actions.operate(settings, "stop", "ann", "broker moves")
        assert done.before is None
        return started(settings, 5)

    monkeypatch.setattr(process, "ensure", ensure)
    with pytest.raises(TaskDeferred):
        drive.execute({})
    assert process.running(home) is None
    assert restart_policy.held(home)


def test_a_start_that_waits_holds_no_worker_and_goes_on_when_it_may(
    home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.settings.settings", lambda: home)
    monkeypatch.setattr(airflow_triggers, "EVERY", 0.05)
    monkeypatch.syspath_prepend(str(PROJECT / "dags"))
    drive = importlib.import_module("stream_supervisor").Drive(task_id="drive")
    restart_policy.hold(home, "ann", "broker moves")
    with pytest.raises(TaskDeferred) as deferred:
        drive.execute({})
    path, arguments = deferred.value.trigger.serialize()
    trigger: Any = import_string(path)(**arguments)

    async def wait() -> bool:
        event = asyncio.ensure_future(anext(trigger.run()))
        done, _ = await asyncio.wait([event], timeout=0.3)
        assert not done, "fired while the stream was held"
        restart_policy.let_go(home)
        return bool((await asyncio.wait_for(event, timeout=20)).payload)

    assert asyncio.run(wait())
