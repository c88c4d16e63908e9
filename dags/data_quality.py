"""# data_quality

Checks the tables as they are served, per stream, with Great Expectations: events, speed and batch (types, nulls,
ranges, identity, freshness, row counts, and sums that must agree between the layers).

**When.** Hourly, twenty minutes past, after `reconcile`; the two share the pool `batch`, so they never run at once.

**Result.** The task of a stream returns its suites with the number of expectations evaluated and failed (tab *XCom*),
and the Data Docs hold every expectation with the values that broke it (`millrace status` prints their address).
Skipped while a stream has no rows yet.

**When it fails.** The message names the suites and their failed expectations. It is not tried again: the data would
be the same. What is served stays served; `reconcile` audits its own result before it publishes, so a red run here
means that a check beyond that audit has failed, or that a source changed.

| suite | a failure means |
|---|---|
| events | records that pass the contract's row rules and still are not plausible: talk to the owner of the source |
| speed | the speed layer does not add up: compare it with the `ledger` |
| batch | published numbers disagree with the events: pause `reconcile`, and report a defect |
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG
from wiring import DEFAULTS, SparkJob, at, failed_suites, streams


def checked(served: Any, job: dict[str, Any]) -> dict[str, Any]:
    """The job's suites with their expectations met, and why those failed that did."""
    suites = served.execute(
        "select suite, evaluated - failed, evaluated from quality "
        "where stream = $stream and recorded_at >= $since order by recorded_at, suite",
        job,
    ).fetchall()
    return {
        "suites": {suite: f"{met} of {evaluated}" for suite, met, evaluated in suites},
        "failures": failed_suites(served, job),
    }


with DAG(
    "data_quality",
    description="Expectations on the events, speed and batch tables",
    doc_md=__doc__,
    schedule=at("20 * * * *"),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=3),
    default_args=DEFAULTS | {"retries": 0, "execution_timeout": timedelta(hours=1)},
    tags=["millrace", "quality"],
):
    for stream in streams():
        SparkJob(task_id=stream, job="quality", stream=stream, report=checked)
