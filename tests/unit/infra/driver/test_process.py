"""The driver's life with a real detached process in Spark's place."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from infra.driver import process
from infra.driver.heartbeat import heartbeat
from infra.operations.provisioning import require_deployed
from infra.settings import PROJECT, Settings
from schemas.contract.catalog import contract_in
from spark.speed.checkpoint import ingest_start
from tests.support.drivers import command, started


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Settings]:
    settings = Settings(home=tmp_path)
    yield settings
    process.stop(settings, timeout=0)


def test_is_found_again_by_another_process_and_not_a_child_of_its_group(home: Settings) -> None:
    first = started(home, 7)
    assert process.running(home) == first
    assert os.getpgid(first.pid) == os.getsid(first.pid) == first.pid != os.getpgid(0)
    assert len(first.processes()) == 2
    assert "driver with epoch 7" in process.log_end(home)
    assert "small driver 7" in process.log_end(home)


def test_survives_the_kill_of_the_process_group_that_started_it(home: Settings, tmp_path: Path) -> None:
    """As Airflow kills a task: SIGKILL to the process group of the task."""
    starter = (
        "import os, sys; from pathlib import Path\n"
        "from infra.driver import process as driver; from infra.settings import Settings\n"
        f"settings = Settings(home=Path({str(tmp_path)!r}))\n"
        f"driver.wait_started(settings, driver.start(settings, 3, {command(home, 3)!r}), 20)\n"
        "os.killpg(0, 9)"
    )
    task = subprocess.run([sys.executable, "-c", starter], start_new_session=True, check=False)
    assert task.returncode == -9
    again = process.running(home)
    assert again is not None
    assert again.epoch == 3


def test_a_process_that_only_has_the_same_id_is_not_the_driver(home: Settings) -> None:
    it = started(home, 1)
    older = replace(it, created=it.created - 3600)
    (home.stream_dir / "driver.json").write_text(json.dumps(asdict(older)))
    assert process.running(home) is None
    assert process.stop(home, timeout=0) is False, "a stranger must not be killed"
    assert it.alive
    (home.stream_dir / "driver.json").write_text(json.dumps(asdict(it)))


def test_a_driver_is_known_again_when_the_clock_was_set(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    it = started(home, 1)
    boot = psutil.boot_time()
    for step in (3600, -7200):
        monkeypatch.setattr(f"{psutil._psplatform.__name__}.boot_time", lambda step=step: boot + step)
        told = psutil.Process(it.pid).create_time() - boot
        assert told == pytest.approx(it.created + step), "psutil tells times by the clock of now"
        assert process.running(home) == it
        assert it.processes()


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_a_driver_that_has_ended_in_its_own_words_is_not_running(home: Settings, state: str) -> None:
    it = process.start(home, 1, command(home, 1, "--state", state))
    with pytest.raises(process.DriverError, match="did not start"):
        process.wait_started(home, it, timeout=20)
    assert it.alive
    assert process.running(home) is None


def test_stop_asks_first(home: Settings) -> None:
    it = started(home, 1)
    assert process.stop(home, timeout=20) is True
    assert not it.processes()
    beat = heartbeat(home.stream_dir, 1)
    assert beat is not None
    assert beat["state"] == "stopped"
    assert not (home.stream_dir / "stop").exists()
    assert process.stop(home, timeout=20) is False


def test_stop_kills_the_whole_session_of_a_driver_that_does_not_listen(home: Settings) -> None:
    it = started(home, 1, "--deaf")
    assert process.stop(home, timeout=0.1) is True
    assert not it.processes()


def test_a_driver_that_misses_the_marker_is_asked_by_a_signal_before_it_is_killed(home: Settings) -> None:
    started(home, 1, "--slow")
    assert process.stop(home, timeout=0.5) is True
    assert (home.stream_dir / "terminated").exists()


def test_stop_finds_the_child_that_outlived_its_leader(home: Settings) -> None:
    it = started(home, 1)
    leader = psutil.Process(it.pid)
    leader.kill()
    psutil.wait_procs([leader], timeout=10)
    assert not it.alive
    assert len(it.processes()) == 1
    assert process.running(home) is None
    process.stop(home, timeout=0)
    assert not it.processes()


def test_stop_of_another_epoch_does_nothing(home: Settings) -> None:
    it = started(home, 2)
    assert process.stop(home, timeout=0, epoch=1) is False
    assert it.alive


def test_a_command_that_dies_is_reported_with_its_output(home: Settings) -> None:
    it = process.start(home, 1, [sys.executable, "-c", "raise SystemExit('no such table')"])
    with pytest.raises(process.DriverError, match="no such table"):
        process.wait_started(home, it, timeout=20)


def test_early_deaths_are_counted_until_a_long_life_or_a_stop_on_purpose(home: Settings) -> None:
    folder = home.stream_dir
    for epoch in (1, 2, 3):
        it = process.start(home, epoch, [sys.executable, "-c", ""])
        assert it.crashes == epoch - 1
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended already
            psutil.Process(it.pid).wait(10)
    assert process.deaths(folder) == 3

    it = started(home, 4)
    assert it.crashes == 3
    process.stop(home, timeout=20)
    assert process.deaths(folder) == 0


def test_airflows_secrets_do_not_reach_the_driver(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_PROVISION", "secret")
    it = started(home, 1)
    assert "AIRFLOW_CONN_KAFKA_PROVISION" not in psutil.Process(it.pid).environ()


def test_a_version_is_not_provisioned_while_a_driver_runs_that_does_not_read_it(
    home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it accepts it keeps no bytes of, so what the version adds would be lost."""
    from airflow.sdk.exceptions import AirflowFailException

    monkeypatch.setattr("infra.settings.settings", lambda: home)
    monkeypatch.syspath_prepend(str(PROJECT / "dags"))
    task = importlib.import_module("provision").provision.function
    flights = contract_in(home.contracts, "flights")
    ingest_start.remember(flights.model_copy(update={"versions": flights.versions[:1]}), home, 1)
    require_deployed(home, flights)  # the next driver reads it
    started(home, 1)
    with pytest.raises(AirflowFailException, match=r"does not read aircraft, .* of flights.*`millrace stream deploy`"):
        task("flights")
    require_deployed(home, contract_in(home.contracts, "weather"))  # which no driver has begun to read
    ingest_start.remember(flights, home, 1)  # as a new driver does, and so a deployment
    require_deployed(home, flights)


def test_a_halt_fails_the_task_and_leaves_the_driver_alone(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    monkeypatch.setattr("infra.settings.settings", lambda: home)
    monkeypatch.syspath_prepend(str(PROJECT / "dags"))
    it = started(home, 1)
    watch = importlib.import_module("stream_supervisor").Watch(task_id="watch", epoch=1)
    halted = {"reason": "halted", "detail": "flights waits for a decision", "epoch": 1}
    with pytest.raises(AirflowFailException, match="flights waits for a decision"):
        watch.ended({}, halted)
    assert it.alive
    with pytest.raises(AirflowFailException, match="stalled"):
        watch.ended({}, halted | {"reason": "stalled"})
    assert not it.alive
