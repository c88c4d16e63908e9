"""What the batch tasks tell Airflow about their job, from real tables (no JVM)."""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyspark.sql.pandas.types import to_arrow_schema

from infra.settings import PROJECT, Settings, settings
from schemas.contract.catalog import load
from spark.lake import letter_moves, names, table_schemas, tables
from spark.serving.duck import connect

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
JOB = {"stream": "weather", "since": NOW}


@pytest.fixture
def lake(tmp_path: Path) -> str:
    uri = f"file:{tmp_path / 'lake'}"
    tables.create(uri, load(PROJECT / "schemas" / "streams" / "weather"))
    return uri


@pytest.fixture
def served(lake: str, tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(Settings(home=tmp_path, lake=lake), [load(PROJECT / "schemas" / "streams" / "weather")]) as connection:
        yield connection


@pytest.fixture
def dags(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a DAG file as Airflow does, with its folder at the end of the path."""
    monkeypatch.syspath_prepend(str(PROJECT / "dags"))
    return importlib.import_module


@pytest.fixture
def commits(lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The commit log of the stream's checkpoint, empty, under the settings that the DAGs see."""
    monkeypatch.setattr("infra.settings.settings", lambda: Settings(home=tmp_path, lake=lake))
    folder = tmp_path / "checkpoints" / "weather" / "g1" / "commits"
    folder.mkdir(parents=True)
    return folder


def add(lake: str, name: str, **row: Any) -> None:
    schema = to_arrow_schema(table_schemas.SYSTEM[name], timezone="UTC")
    full = {field: row.get(field) for field in schema.names} | {"stream": row.get("stream", "weather")}
    write_deltalake(
        names.local_path(names.system(lake, name)), pa.Table.from_pylist([full], schema=schema), mode="append"
    )


def test_a_publication_is_told_with_what_the_ledger_explains(lake: str, served: Any, dags: Any) -> None:
    add(lake, "publications", final_through=NOW, hours=9, rows=90, published_at=NOW - timedelta(hours=1))
    add(lake, "publications", final_through=NOW, hours=2, rows=20, published_at=NOW + timedelta(seconds=5))
    add(lake, "publications", stream="flights", final_through=NOW, hours=3, published_at=NOW + timedelta(seconds=6))
    for cause in ("late", "duplicate", "late"):
        add(lake, "ledger", cause=cause, window_start=NOW, recorded_at=NOW + timedelta(seconds=4))
    assert dags("reconcile").published(served, JOB) == {
        "published": True,
        "final_through": "2026-01-01T12:00:00+00:00",
        "hours": 2,
        "rows": 20,
        "differences": {"late": 2, "duplicate": 1},
        "by_hour": [{"hour": "2026-01-01T12:00:00+00:00", "late": 2, "duplicate": 1}],
        "failures": [],
    }


def test_a_refused_publication_says_why(lake: str, served: Any, dags: Any) -> None:
    add(lake, "ledger", cause="unexplained", window_start=NOW, recorded_at=NOW)
    add(lake, "ledger", stream="weather.storms", cause="unexplained", window_start=NOW, recorded_at=NOW)
    add(lake, "ledger", stream="weather.storms", cause="late", window_start=NOW, recorded_at=NOW)
    add(
        lake,
        "quality",
        suite="staged",
        success=False,
        evaluated=9,
        failed=2,
        failures='["x"]',
        docs="/d",
        recorded_at=NOW,
    )
    report = dags("reconcile").published(served, JOB)
    assert report["published"] is False
    assert report["failures"] == [
        f'weather, suite staged: 2 of 9 expectations failed: ["x"] ({settings().data_docs_url}/d)',
        "weather: 1 differences without an explanation; query the view ledger",
        "weather.storms: 1 rows without an explanation; query the view ledger",
    ]


def test_reconciles_only_when_a_batch_was_ingested_after_the_last_publication(
    lake: str, commits: Path, dags: Any
) -> None:
    (commits / "0").touch()
    nothing_new = dags("reconcile").nothing_new
    assert nothing_new("weather") is None, "never published"
    add(lake, "publications", run_id="r", final_through=NOW, through_batch=1 << 40, published_at=NOW)
    assert nothing_new("weather") == "nothing was ingested since the publication of 2026-01-01 12:00 UTC"
    (commits / "1").touch()
    assert nothing_new("weather") is None


def test_reconciles_again_what_was_published_without_its_join(lake: str, commits: Path, dags: Any) -> None:
    (commits / "0").touch()
    nothing_new = dags("reconcile").nothing_new
    told = {"run_id": "r", "final_through": NOW, "through_batch": 1 << 40, "published_at": NOW}
    add(lake, "publications", **told)
    add(lake, "publications", stream="flights", **told)
    assert nothing_new("weather") is None, "the join was refused"
    add(lake, "publications", stream="flights.flights_with_weather", **told)
    assert nothing_new("weather") is None, "it was published with less of the weather"
    add(lake, "publications", stream="flights.flights_with_weather.weather", **told)
    assert nothing_new("weather")


def test_checks_only_what_changed_since_it_was_found_in_order(lake: str, commits: Path, dags: Any) -> None:
    (commits / "0").touch()
    unchanged = dags("data_quality").unchanged
    assert unchanged("weather") is None, "never checked"
    seen = {"through_batch": 1 << 40, "evaluated": 1, "failed": 0}
    add(lake, "quality", run_id="r", suite="staged.x", success=True, recorded_at=NOW, **seen)
    assert unchanged("weather") is None, "an audit is no check of what is there"
    add(lake, "quality", run_id="c", suite="events", success=True, recorded_at=NOW, **seen)
    add(lake, "quality", run_id="c", suite="speed.x", success=True, recorded_at=NOW, **seen)
    assert (
        unchanged("weather") == "nothing was ingested or published since it was found in order at 2026-01-01 12:00 UTC"
    )
    add(lake, "quality", run_id="d", suite="speed.x", success=True, recorded_at=NOW + timedelta(hours=1), **seen)
    add(lake, "quality", run_id="d", suite="view", success=False, recorded_at=NOW + timedelta(hours=1), **seen)
    assert unchanged("weather") is None, "it was not in order"
    add(lake, "quality", run_id="e", suite="speed.x", success=True, recorded_at=NOW + timedelta(hours=2), **seen)
    assert unchanged("weather")
    (commits / "1").touch()
    assert unchanged("weather") is None, "a batch came"
    (commits / "1").unlink()
    add(
        lake, "publications", run_id="p", final_through=NOW, through_batch=1 << 40, published_at=NOW + timedelta(days=1)
    )
    assert unchanged("weather") is None, "hours were published"


def test_a_stream_is_left_out_without_a_batch_and_without_need_unless_forced(commits: Path, dags: Any) -> None:
    job = dags("wiring").BatchJob(job="quality", report=lambda *_: {}, unneeded=lambda _: "nothing is new")
    waiting = "no batch of weather is complete yet: provision, stream and produce first"
    assert job._reason_against("weather", forced=True) == waiting
    (commits / "0").touch()
    assert job._reason_against("weather", forced=False) == "nothing is new"
    assert job._reason_against("weather", forced=True) is None
    assert job._reason_against("no_such_contract", forced=False) is None, "the job says what is wrong, in its turn"


def audited(lake: str, run_id: str, stream: str, missing: int) -> None:
    counts = {"from_offset": 0, "to_offset": 9, "rows": 9 - missing, "doubled": 0, "missing": missing}
    lost = [{"first": 9 - missing, "last": 8, "reason": "missing"}] if missing else []
    place = {"topic": stream, "partition": 0, "gaps": [], "not_ingested": 0, "through_batch": 1 << 40, "version": 1}
    add(lake, "audits", run_id=run_id, stream=stream, findings=lost, recorded_at=NOW, **place, **counts)


def accepted(lake: str, event_time: datetime) -> None:
    """An accepted row of weather in its first batch."""
    contract = load(PROJECT / "schemas" / "streams" / "weather")
    schema = to_arrow_schema(table_schemas.bronze_schema(contract), timezone="UTC")
    row = {"batch": 1 << 40, "accepted": True, "event_time": event_time, "kafka_timestamp": event_time, "offset": 0}
    rows = pa.Table.from_pylist([dict.fromkeys(schema.names) | row], schema=schema)
    write_deltalake(names.local_path(names.bronze(lake, "weather")), rows, mode="append")


def refused(lake: str) -> list[tuple[str, datetime, str]]:
    rows = DeltaTable(names.local_path(names.system(lake, "refusals"))).to_pyarrow_table().to_pylist()
    return [(row["stream"], row["final_through"].astimezone(UTC), row["reason"]) for row in rows]


def test_a_stream_with_a_residual_is_withheld_and_the_others_go_on(
    lake: str, commits: Path, dags: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (commits / "0").touch()
    shutil.copytree(commits.parent.parent, commits.parents[2] / "flights")
    residual = dags("reconcile").residual
    assert residual("weather", "r") == "weather is not audited in this run"
    audited(lake, "r", "weather", missing=2)
    audited(lake, "r", "flights", missing=0)
    audited(lake, "other", "weather", missing=0)
    newest = NOW + timedelta(minutes=30)
    accepted(lake, newest)
    assert residual("flights", "r") is None
    assert residual("weather", "other") is None
    assert refused(lake) == []
    assert "2 of 9 offsets are not exactly one row of bronze: weather/0: 2 missing (7-8)" in residual("weather", "r")
    lateness = load(PROJECT / "schemas" / "streams" / "weather").allowed_lateness
    [(stream, through, reason)] = refused(lake)
    assert (stream, through) == ("weather", (newest - lateness).replace(minute=0)), "its views say `withheld`"
    assert "7-8" in reason

    from airflow.sdk.exceptions import AirflowFailException

    job = dags("reconcile").dag.get_task("reconcile")
    done: list[list[str]] = []

    def run(self: Any, context: Any, chosen: list[str]) -> dict[str, str]:
        done.append(chosen)
        return {"flights": "done"}

    monkeypatch.setattr(type(job), "_done", run)
    pushed: dict[str, Any] = {}
    told = SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))
    context = {"run_id": "r", "dag_run": SimpleNamespace(conf={}), "ti": told}
    execute = inspect.unwrap(type(job).execute)
    with pytest.raises(AirflowFailException, match="weather: 2 of 9 offsets"):
        execute(job, context)
    assert (done, pushed) == ([["flights"]], {"return_value": {"flights": "done"}})
    execute(job, context | {"dag_run": SimpleNamespace(conf={"force": True})})
    assert done[1:] == [["flights", "weather"]]


def test_a_broken_contract_keeps_no_other_stream_from_its_turn(
    lake: str, commits: Path, tmp_path: Path, dags: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in ("flights", "weather"):
        shutil.copytree(PROJECT / "schemas" / "streams" / stream, tmp_path / "contracts" / stream)
    (tmp_path / "contracts" / "weather" / "stream.yaml").write_text("stream: [")
    config = Settings(home=tmp_path, lake=lake, contracts=tmp_path / "contracts")
    monkeypatch.setattr("infra.settings.settings", lambda: config)
    (commits / "0").touch()
    shutil.copytree(commits.parent.parent, commits.parents[2] / "flights")
    audited(lake, "r", "flights", missing=0)

    job = dags("reconcile").dag.get_task("reconcile")
    done: list[list[str]] = []
    monkeypatch.setattr(type(job), "_done", lambda self, context, chosen: done.append(chosen))
    inspect.unwrap(type(job).execute)(job, {"run_id": "r", "dag_run": SimpleNamespace(conf={})})
    assert done == [["flights", "weather"]], "the job itself says what is wrong with weather, in its turn"


def test_suites_are_told_and_older_failures_are_not(lake: str, served: Any, dags: Any) -> None:
    add(lake, "quality", suite="old", success=False, evaluated=9, failed=2, recorded_at=NOW - timedelta(hours=1))
    far = {"expectation": "to_be_usual", "about": {"column": "share"}, "observed": {"n": 1}, "severity": "warning"}
    warned = {"failed": 0, "warnings": 1, "failures": json.dumps([far])}
    add(lake, "quality", suite="events", success=True, evaluated=26, recorded_at=NOW, **warned)
    add(lake, "quality", suite="view", success=True, evaluated=5, failed=0, recorded_at=NOW)
    assert dags("data_quality").checked(served, JOB) == {
        "suites": {"events": "25 of 26", "view": "5 of 5"},
        "warnings": {"events": ["to_be_usual: {'column': 'share'}, observed {'n': 1}"]},
        "failures": [],
    }


def test_a_job_that_wrote_nothing_has_nothing_to_tell(served: Any, dags: Any) -> None:
    assert dags("reconcile").published(served, JOB)["published"] is False
    assert dags("data_quality").checked(served, JOB) == {"suites": {}, "warnings": {}, "failures": []}


def test_replays_are_recorded_one_row_each(lake: str, served: Any) -> None:
    names = ("read", "retried", "waiting", "parked", "discarded", "repeated", "landed", "returned", "in_flight", "lost")
    counts = {name: number for number, name in enumerate(names)}
    letter_moves.record_replay(lake, "run-1", "weather", NOW, counts)
    letter_moves.record_replay(lake, "run-2", "weather", NOW, counts | {"read": 4})
    rows = served.execute('select run_id, "read", retried, waiting, parked, lost, recorded_at from replays order by 1')
    assert rows.fetchall() == [("run-1", 0, 1, 2, 3, 9, NOW), ("run-2", 4, 1, 2, 3, 9, NOW)]
