"""Stop, start, restart and deploy under load, through a real Airflow and the command line; nothing is lost by it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.driver import process
from infra.settings import Settings
from tests.faults.world import STREAM, World, wait_for, world

pytestmark = [pytest.mark.long, pytest.mark.timeout(900), pytest.mark.usefixtures("every_service")]


@pytest.fixture(scope="module")
def pulses(stack: Settings) -> Iterator[World]:
    with world(stack) as it:
        it.airflow.wait_for_dags(["operate_stream"])
        it.airflow.unpause("operate_stream")
        it.load.start()
        it.recovery()
        yield it


def millrace(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("millrace"))
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=300)


def done(*arguments: str) -> dict[str, Any]:
    """What a command that succeeds says."""
    answer = millrace(*arguments, "--json")
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def drive_state(pulses: World) -> str | None:
    newest = pulses.airflow.runs("stream_supervisor")[0]
    return pulses.airflow.task_states(newest).get("drive")


def test_the_dag_restarts_the_stream_with_one_gap_of_seconds(pulses: World) -> None:
    before = pulses.driver().epoch
    run = pulses.airflow.wait(pulses.airflow.trigger("operate_stream", {"action": "restart", "because": "a test"}))
    said = pulses.airflow.xcom(run, "operate")
    assert (said["action"], said["before"], said["after"]) == ("restart", before, pulses.driver().epoch)
    assert 0 < said["gap_seconds"] < 90
    ended = [it.state for it in pulses.airflow.runs("stream_supervisor", limit=2)]
    assert ended == ["running", "success"], "a life that ended on purpose is green"
    pulses.recovery()


def test_a_deployment_that_a_stream_would_refuse_changes_nothing(pulses: World) -> None:
    before = pulses.driver()
    contract = pulses.settings.contracts / STREAM / "stream.yaml"
    text = contract.read_text()
    try:
        contract.write_text(text.replace("event_id: [number]", "event_id: [sensor]"))
        refused = millrace("stream", "deploy")
        assert refused.returncode == 1
        assert "changed what may not change" in refused.stderr
        assert pulses.driver() == before
    finally:
        contract.write_text(text)
    deployed = done("stream", "deploy")
    assert (deployed["before"], deployed["after"]) == (before.epoch, before.epoch + 1)
    pulses.recovery()


def test_a_stopped_stream_waits_in_the_ui_until_it_is_started(pulses: World) -> None:
    last = pulses.driver().epoch
    assert done("stream", "stop", "--because", "broker moves")["before"] == last
    assert process.running(pulses.settings) is None
    wait_for("the next start waits", lambda: drive_state(pulses) == "deferred", 60, every=0.5)
    told = done("status")["stream_driver"]
    assert "broker moves" in told["waits"]
    assert "no driver to restart" in millrace("stream", "restart").stderr
    assert done("stream", "start")["after"] == last + 1
    pulses.recovery()
    found = pulses.verdict(publish=False)
    assert found.good, found.examples


def test_a_supervisor_that_is_paused_is_said(pulses: World) -> None:
    pulses.airflow.pause("stream_supervisor")
    try:
        refused = millrace("stream", "restart")
        assert refused.returncode == 1
        assert "the DAG stream_supervisor is paused" in refused.stderr
        assert process.running(pulses.settings) is not None
    finally:
        pulses.airflow.unpause("stream_supervisor")
