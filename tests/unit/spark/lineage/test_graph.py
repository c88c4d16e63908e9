"""Lineage: every table and view has a way from a topic, and the ways are those that the code goes. No JVM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.settings import Settings, SettingsError, settings
from schemas.contract.catalog import catalog
from spark.lake import tables
from spark.lineage.events import reporting_run
from spark.lineage.graph import DRIVER, RECONCILE, Edge, NoSuchName, around, edges
from spark.serving.views import view_names
from tests.support.command_line import millrace

FLIGHTS = catalog()["flights"]
FOUND = edges([FLIGHTS])


def test_every_table_and_every_view_is_made_of_topics_in_the_end() -> None:
    made = {edge.target for edge in FOUND}
    expected = {uri.removeprefix("/") for uri in tables.uris("", FLIGHTS)}
    expected |= {f"view {name}" for name in view_names(FLIGHTS)}
    assert made >= expected
    for name in expected:
        assert {edge.source for edge in around(FOUND, name)} & {"topic flights", "topic flights.alerts"}, name


def test_a_served_window_goes_from_its_topic_over_bronze_batch_and_publication() -> None:
    way = set(around(FOUND, "departures_by_origin_5m"))
    assert way >= {
        Edge("topic flights", "bronze/flights", "streaming driver"),
        Edge("bronze/flights", "speed/flights/departures_by_origin", "streaming driver"),
        Edge("speed/flights/departures_by_origin", "view departures_by_origin_5m", "serving"),
        Edge("staged/flights/departures_by_origin", "batch/flights/departures_by_origin", "reconcile"),
        Edge("system/publications", "view departures_by_origin_5m", "serving"),
    }
    others = ("by_carrier", "weather")  # the publications of all streams and aggregates are in one table
    assert not [edge for edge in way if any(other in edge.source + edge.target for other in others)]


def test_the_command_tells_one_name_as_json_and_knows_no_other(tmp_path: Path) -> None:
    document = json.loads(millrace(tmp_path, "lineage", "weather", "--json").stdout)
    assert {"source": "topic weather", "target": "bronze/weather", "by": "streaming driver"} in document
    assert not [edge for edge in document if edge["target"] == "bronze/flights"]
    unknown = millrace(tmp_path, "lineage", "nothing")
    assert unknown.returncode == 1
    assert "there is no topic, table or view nothing" in unknown.stderr
    with pytest.raises(NoSuchName):
        around(FOUND, "nothing")


def test_runs_are_told_of_with_what_they_read_and_write(tmp_path: Path) -> None:
    file = tmp_path / "told" / "events.jsonl"
    file.parent.mkdir()
    config = Settings(home=tmp_path, kafka_port=19092, openlineage=str(file))
    task = "0197f0c5-8f3e-7bd0-9d5d-0c6a3b1f2e4d"
    with reporting_run(config, "reconcile", FLIGHTS, RECONCILE, parent=f"millrace/reconcile.reconcile/{task}"):
        pass
    with pytest.raises(ZeroDivisionError), reporting_run(config, "ingest", FLIGHTS, DRIVER, "STREAMING"):
        1 / 0
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(event["job"]["name"], event["eventType"]) for event in events] == [
        ("reconcile.flights", "START"), ("reconcile.flights", "COMPLETE"),
        ("ingest.flights", "START"), ("ingest.flights", "FAIL"),
    ]  # fmt: skip
    assert events[0]["run"]["runId"] == events[1]["run"]["runId"] != events[2]["run"]["runId"]
    assert events[0]["run"]["facets"]["parent"]["run"]["runId"] == task
    assert events[0]["run"]["facets"]["parent"]["job"]["name"] == "reconcile.reconcile"

    def names(event: dict[str, Any], side: str) -> set[tuple[str, str]]:
        return {(one["namespace"], one["name"]) for one in event[side]}

    lake = f"{tmp_path}/lake"
    assert ("file", f"{lake}/bronze/flights") in names(events[1], "inputs")
    assert ("file", f"{lake}/batch/flights/departures_by_origin") in names(events[1], "outputs")
    topics = {("kafka://127.0.0.1:19092", topic) for topic in ("flights", "flights.retry")}
    assert names(events[2], "inputs") == topics
    assert ("file", f"{lake}/bronze/flights") in names(events[2], "outputs")
    everything = {f"{lake}/{edge.target}" for edge in FOUND if edge.by == RECONCILE}
    assert {name for _, name in names(events[1], "outputs")} == everything


def test_what_cannot_be_told_stops_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with reporting_run(Settings(home=tmp_path, openlineage="/proc/nobody/events"), "reconcile", FLIGHTS, RECONCILE):
        pass
    assert "did not accept the event about reconcile.flights" in caplog.text


def test_lineage_is_told_to_a_file_or_a_service_or_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().openlineage_transport is None
    given = Settings(openlineage="file:/var/log/lineage.jsonl").openlineage_transport
    assert given == {"type": "file", "log_file_path": "/var/log/lineage.jsonl", "append": True}
    service = Settings(openlineage="https://marquez:5000/api/v1/lineage").openlineage_transport or {}
    assert (service["type"], service["url"], service["endpoint"]) == ("http", "https://marquez:5000", "api/v1/lineage")
    monkeypatch.setenv("MILLRACE_OPENLINEAGE", "kafka://broker")
    settings.cache_clear()
    with pytest.raises(SettingsError, match="MILLRACE_OPENLINEAGE"):
        settings()
    settings.cache_clear()
