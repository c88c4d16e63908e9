"""What `millrace status` says of the streams, from tables that were written without a driver. No JVM."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from deltalake import write_deltalake
from pyspark.sql.pandas.types import to_arrow_schema

from infra.commands import status
from infra.settings import PROJECT, Settings
from schemas.contract.catalog import catalog
from spark.lake import contents, names, table_schemas, tables
from spark.lake.publications import Publication
from spark.serving import duck

T0 = datetime(2024, 1, 1, tzinfo=UTC)
STREAMS = ("flights", "weather")


@pytest.fixture
def config(tmp_path: Path) -> Settings:
    (tmp_path / "contracts").mkdir()
    for stream in STREAMS:
        (tmp_path / "contracts" / stream).symlink_to(PROJECT / "schemas" / "streams" / stream)
    made = Settings(home=tmp_path, contracts=tmp_path / "contracts")
    for contract in catalog(made.contracts).values():
        tables.create(made.lake_uri, contract)
    return made


def add(config: Settings, name: str, **row: Any) -> None:
    contents.append_rows(config.lake_uri, name, [{"stream": "weather", "run_id": "r", "recorded_at": T0} | row])


def held(config: Settings) -> dict[str, Any]:
    return status._held(config, catalog(config.contracts))


def test_a_stream_is_told_by_its_own_rows(config: Settings) -> None:
    schema = to_arrow_schema(table_schemas.bronze_schema(catalog(config.contracts)["weather"]), timezone="UTC")
    records = [{"topic": "weather", "partition": 0, "offset": n, "batch": 0, "accepted": n < 3} for n in range(5)]
    arrow = pyarrow.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in records], schema)
    write_deltalake(names.local_path(names.bronze(config.lake_uri, "weather")), arrow, mode="append")
    for cause, stream in (("late", "weather"), ("late", "weather.storms"), ("duplicate", "flights")):
        add(config, "ledger", stream=stream, cause=cause)
    for suite, failed in (("speed", 0), ("batch", 2)):
        add(config, "quality", suite=suite, success=not failed, evaluated=9, failed=failed)
    add(config, "quality", run_id="older", recorded_at=T0 - timedelta(hours=1), success=True, evaluated=1, failed=0)
    for partition in range(2):
        add(config, "audits", partition=partition, from_offset=10, to_offset=15, residual=partition)
    add(config, "replays", read=4, retried=3, waiting=1, parked=0)
    found = held(config)
    assert found["weather"] == {
        "events": 3,
        "dead_letters": 2,
        "tombstones": 0,
        "alerts": None,
        "windows": {"batch": 0, "speed": 0, "withheld": 0},
        "final_through": None,
        "last_reconciliation": None,
        "ledger": {"late": 2},
        "last_quality": {
            "run_id": "r", "recorded_at": T0.isoformat(), "success": False, "evaluated": 18, "failed": 2,
        },
        "last_audit": {"recorded_at": T0.isoformat(), "offsets": 10, "residual": 1, "made_anew": False},
        "last_replay": {"recorded_at": T0.isoformat(), "read": 4, "retried": 3, "waiting": 1, "parked": 0},
        "letters_to_decide": 0,
    }  # fmt: skip
    assert (found["flights"]["events"], found["flights"]["ledger"]) == (0, {"duplicate": 1})
    assert found["flights"]["last_quality"] is found["flights"]["last_audit"] is found["flights"]["last_replay"] is None


def test_the_last_reconciliation_is_none_of_maintenance_whatever_runs_are_called(config: Settings) -> None:
    def publish(run_id: str, hour: int, **more: Any) -> None:
        row = Publication(run_id, "weather", T0, 1, 2, 30, T0 + timedelta(hours=hour)).row | more
        contents.append_rows(config.lake_uri, "publications", [row])

    publish("maintain by hand, says a person", 1)
    shown = {"run_id": "maintain by hand, says a person", "published_at": "2024-01-01T01:00:00+00:00"}
    assert held(config)["weather"]["last_reconciliation"] == shown | {"hours": 2, "rows": 30}
    publish("keep up", 2, kind="maintain")
    publish("maintain scheduled__2024", 3, kind=None)  # by an older version, which recorded no kind
    found = held(config)["weather"]
    assert found["last_reconciliation"] == shown | {"hours": 2, "rows": 30}
    assert found["final_through"] == T0.isoformat()


def test_the_views_are_made_once_for_all_streams(config: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    real = duck.create_views
    made: list[str] = []

    def counted(connection: Any, contracts: Any, *rest: Any, **more: Any) -> None:
        made.extend(contract.stream for contract in contracts)
        real(connection, contracts, *rest, **more)

    monkeypatch.setattr(duck, "create_views", counted)
    assert sorted(held(config)) == sorted(made) == sorted(STREAMS)
