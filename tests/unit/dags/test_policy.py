"""Policy for every DAG. One fresh interpreter parses the folder as the DAG processor does, and reports what it saw."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from infra.airflow_client import DAGS
from infra.settings import PROJECT

JOBS = {"reconcile": "reconcile", "data_quality": "quality", "backfill": "backfill"}

BATCH_JOBS = {"BatchJob", "Backfill"}

HEAVY = {
    "pyspark", "great_expectations", "confluent_kafka", "deltalake", "delta", "pandas", "pyarrow", "duckdb", "fastavro",
    "psycopg2",
}  # fmt: skip

SCHEDULES = {
    "provision": "0 0 * * *",
    "stream_supervisor": "@continuous",
    "reconcile": "0 * * * *",
    "data_quality": "20 * * * *",
    "replay_dead_letters": "*/5 * * * *",
    "decide_parked_letters": "40 * * * *",
    "operate_stream": None,
    "maintain": "30 3 * * *",
    "backfill": None,
}

WAITS_FOR_SOMEBODY = {
    ("stream_supervisor", "drive"),
    ("stream_supervisor", "watch"),
    ("decide_parked_letters", "reason.ask"),
}
"""Tasks that hold no worker while they wait: for a driver's start or end, for a person."""

PARSE = """
import json, sys, time
from collections.abc import Callable
from pathlib import Path

folder = Path(sys.argv[1])
from airflow.dag_processing.dagbag import BundleDagBag  # what the DAG processor has loaded before it reads a file

before, started = set(sys.modules), time.process_time()
bag = BundleDagBag(dag_folder=str(folder), bundle_path=folder, bundle_name="dags-folder")
seconds = time.process_time() - started

def seconds_of(delta):
    return delta.total_seconds() if delta else None

def described(dag):
    return {
        "doc": dag.doc_md, "description": dag.description, "file": Path(dag.fileloc).name, "tags": sorted(dag.tags),
        "catchup": dag.catchup, "max_active_runs": dag.max_active_runs, "max_active_tasks": dag.max_active_tasks,
        "schedule": getattr(dag.schedule, "expression", dag.schedule),
        "params": dag.params.dump() if dag.dag_id == "backfill" else {},
        "dagrun_timeout": seconds_of(dag.dagrun_timeout),
        "tasks": {
            task.task_id: {
                "owner": task.owner, "retries": task.retries, "timeout": seconds_of(task.execution_timeout),
                "pool": task.pool, "type": type(task).__name__, "upstream": sorted(task.upstream_task_ids),
                "job": getattr(task, "job", None),
                "inlets": [asset.name for asset in task.inlets], "outlets": [asset.name for asset in task.outlets],
                "trigger_rule": task.trigger_rule,
            }
            for task in dag.tasks
        },
    }

print(json.dumps({
    "errors": bag.import_errors,
    "modules": sorted({name.split(".")[0] for name in set(sys.modules) - before}),
    "seconds": seconds,
    "files": [Path(stat.file).name for stat in bag.dagbag_stats],
    "dags": {dag_id: described(dag) for dag_id, dag in bag.dags.items()},
}))
"""


def parse(home: Path, contracts: Path = PROJECT / "schemas" / "streams") -> dict[str, Any]:
    environment = {
        "PATH": str(Path(sys.executable).parent) + ":/usr/bin:/bin",
        "HOME": str(home),
        "PYTHONPATH": str(PROJECT),
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "MILLRACE_HOME": str(home),
        "MILLRACE_CONTRACTS": str(contracts),
    }
    command = [sys.executable, "-c", PARSE, str(PROJECT / "dags")]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return parse(tmp_path_factory.mktemp("home"))


@pytest.fixture(params=sorted(SCHEDULES))
def dag(request: pytest.FixtureRequest, seen: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = seen["dags"][request.param] | {"id": request.param}
    return found


def test_the_commands_know_every_dag() -> None:
    assert set(DAGS) == SCHEDULES.keys()


def test_every_file_parses_to_the_dag_of_its_name(seen: dict[str, Any]) -> None:
    assert seen["errors"] == {}
    assert set(seen["dags"]) == set(SCHEDULES)
    assert {dag["file"] for dag in seen["dags"].values()} == {f"{name}.py" for name in SCHEDULES}
    assert "wiring.py" not in seen["files"]


def test_parsing_imports_nothing_heavy_and_of_our_rooms_the_settings_alone(
    seen: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    modules = set(seen["modules"])
    assert not modules & HEAVY
    assert not modules & {"spark", "producers"}
    record_property("parse_seconds", seen["seconds"])
    assert seen["seconds"] < 3, "CPU seconds for all files together; 0.3 on an idle machine"


def test_is_documented_as_a_runbook(dag: dict[str, Any]) -> None:
    assert dag["doc"].startswith(f"# {dag['id']}\n")
    for part in ("**When.**", "fail"):
        assert part in dag["doc"]
    assert dag["description"]
    assert "millrace" in dag["tags"]
    assert len(dag["tags"]) == 2


def test_runs_one_at_a_time_and_makes_up_for_nothing(dag: dict[str, Any]) -> None:
    assert dag["catchup"] is False
    assert dag["max_active_runs"] == 1
    assert dag["schedule"] == SCHEDULES[dag["id"]]


def test_every_task_has_an_owner_and_an_end(dag: dict[str, Any]) -> None:
    assert dag["tasks"]
    for name, task in dag["tasks"].items():
        assert task["owner"] not in ("", "airflow"), name
        assert task["retries"] in (0, 1, 2), name
        assert (task["timeout"] is None) == ((dag["id"], name) in WAITS_FOR_SOMEBODY), name


POOLS = {
    ("reconcile", "audit"): "audits", ("maintain", "batch"): "batch", ("maintain", "letters"): "letters",
    ("maintain", "audits"): "audits",
}  # fmt: skip
"""Tasks that write tables, other than batch jobs: those with the same tables share a pool of one slot."""


def test_tasks_that_write_the_same_tables_take_turns(dag: dict[str, Any]) -> None:
    assert any(task["type"] in BATCH_JOBS for task in dag["tasks"].values()) == (
        dag["id"] in ("reconcile", "data_quality", "backfill")
    )
    for name, task in dag["tasks"].items():
        if task["type"] in BATCH_JOBS:
            assert task["pool"] == "batch", name
            assert (PROJECT / "spark" / "jobs" / f"{task['job']}.py").is_file(), name
        else:
            expected = "letters" if dag["id"] == "replay_dead_letters" else POOLS.get((dag["id"], name), "default_pool")
            assert task["pool"] == expected, name
    if dag["id"] in ("provision", "replay_dead_letters"):
        assert dag["max_active_tasks"] == 1, "their tables have one writer at a time"


def test_a_new_stream_is_a_folder(tmp_path: Path) -> None:
    for name in ("orders", "payments"):
        (tmp_path / "contracts" / name).mkdir(parents=True)
        (tmp_path / "contracts" / name / "stream.yaml").touch()  # parsing lists folders and reads no contract
    (tmp_path / "contracts" / "not_a_stream").mkdir()
    dags = parse(tmp_path, tmp_path / "contracts")["dags"]
    several = {"stream_supervisor", "decide_parked_letters", "operate_stream", "maintain"}
    for dag_id in SCHEDULES.keys() - several:
        by_stream = dag_id in ("provision", "replay_dead_letters")  # the batch jobs take every stream when they run
        batch_tasks = {JOBS.get(dag_id)} | ({"audit"} if dag_id in ("reconcile", "backfill") else set())
        assert set(dags[dag_id]["tasks"]) == ({"orders", "payments"} if by_stream else batch_tasks), dag_id


def test_a_backfill_shows_first(seen: dict[str, Any]) -> None:
    backfill = seen["dags"]["backfill"]
    assert backfill["params"]["dry_run"] is True
    assert set(backfill["params"]) == {"stream", "from", "to", "dry_run", "records"}
    assert backfill["tasks"]["backfill"]["upstream"] == ["audit"]
    assert backfill["tasks"]["backfill"]["trigger_rule"] == "all_success", "numbers that lack records are not published"


def test_nothing_is_reconciled_that_was_not_audited_before(seen: dict[str, Any]) -> None:
    tasks = seen["dags"]["reconcile"]["tasks"]
    assert tasks["reconcile"]["upstream"] == ["audit"]
    assert tasks["reconcile"]["trigger_rule"] == "all_done", "a residual of one stream does not hold up the others"
    assert tasks["audit"]["retries"] == 1


def test_the_graph_of_assets_goes_from_topic_to_published(seen: dict[str, Any]) -> None:
    tasks = [task for dag in seen["dags"].values() for task in dag["tasks"].values()]
    steps = {(made, of) for task in tasks for made in task["outlets"] for of in task["inlets"]}
    for stream in ("flights", "weather"):
        assert any(f"topic/{stream}" in task["outlets"] for task in tasks), "provision makes it"
        way = ["published", "bronze", "topic"]
        assert {(f"{made}/{stream}", f"{of}/{stream}") for made, of in pairwise(way)} <= steps
        assert (f"batch/{stream}", f"bronze/{stream}") in steps


def test_the_supervisor_watches_what_it_drives(seen: dict[str, Any]) -> None:
    tasks = seen["dags"]["stream_supervisor"]["tasks"]
    assert tasks["watch"]["upstream"] == ["drive"]
    assert tasks["watch"]["retries"] == 0, "the next run is the retry"


def test_our_errors_become_airflows() -> None:
    """Terminal fails for good; transient is left for Airflow's retries."""
    check = """
import sys; sys.path.append(sys.argv[1])
from airflow.sdk.exceptions import AirflowFailException
from schemas.errors import TerminalError, TransientError
from wiring import duty

def caught(error):
    @duty
    def work():
        raise error
    try:
        work()
    except Exception as seen:
        return type(seen), str(seen)

assert caught(TerminalError("no")) == (AirflowFailException, "no")
assert caught(TransientError("later")) == (TransientError, "later")
"""
    command = [sys.executable, "-c", check, str(PROJECT / "dags")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
