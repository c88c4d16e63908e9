"""Lineage: every table and view has a way from a topic, and the ways are those that the code goes. No JVM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from schemas.catalog import catalog
from spark import tables
from spark.lineage import Edge, NoSuchName, around, edges
from spark.serving.views import view_names
from tests.unit.test_cli import millrace

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
    assert not [edge for edge in way if "by_carrier" in edge.target and edge.target.startswith("view")]


def test_the_command_tells_one_name_as_json_and_knows_no_other(tmp_path: Path) -> None:
    document = json.loads(millrace(tmp_path, "lineage", "weather", "--json").stdout)
    assert {"source": "topic weather", "target": "bronze/weather", "by": "streaming driver"} in document
    assert not [edge for edge in document if edge["target"] == "bronze/flights"]
    unknown = millrace(tmp_path, "lineage", "nothing")
    assert unknown.returncode == 1
    assert "there is no topic, table or view nothing" in unknown.stderr
    with pytest.raises(NoSuchName):
        around(FOUND, "nothing")
