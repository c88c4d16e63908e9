"""# data_quality

Checks the tables of every stream, as they are served, with Great Expectations: events, speed and batch (types, nulls,
ranges, identity, freshness, row counts), sums that must agree between the layers, and whether the newest hours are as
full, and their averages as high, as the same hours of earlier days.

**When.** Hourly, twenty minutes past, after `reconcile`; the two share the pool `batch`, so they never run at once.

**Result.** The task returns, by stream, the suites with how many of their expectations hold (tab *XCom*), and the Data
Docs hold every expectation with the values that broke it (`millrace status` prints their address). A stream is
left out while none of its batches is complete, and when nothing changed since it was last found in order. After a
change of a contract or a suite, trigger a run with the configuration `{"force": true}`: it checks again all the same.

**Severity.** Each expectation is `critical` or a `warning`; for those that follow from a contract, `quality.severity`
says which. Warnings are in the result and in the Data Docs, and fail nothing; in `reconcile` they do not block
publication.

**When it fails.** The message names the suites and their failed expectations. The task is not tried again: the data
would be the same. What is served stays served; `reconcile` audits its own result before it publishes, so a red run here
means that a check beyond that audit has failed, or that a source changed.

| suite | a failure means |
|---|---|
| events | records that pass the contract's row rules and still are not plausible: talk to the owner of the source |
| usual | an hour is much emptier, fuller or otherwise than that hour of the day was: ask the source |
| speed | the speed layer does not add up: compare it with the `ledger` |
| batch | published numbers disagree with the events: pause `reconcile`, and report a defect |
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG
from wiring import DEFAULTS, BatchJob, assets, at, failed_suites


def checked(served: Any, job: dict[str, Any]) -> dict[str, Any]:
    """What the job found: how many expectations of each suite were met, its warnings, and why suites failed. `served`
    has the served views, `job` the parameters `stream` and `since` (UTC)."""
    suites = served.execute(
        "select suite, evaluated - failed - coalesce(warnings, 0), evaluated, failures from quality "
        "where stream = $stream and recorded_at >= $since order by recorded_at, suite",
        job,
    ).fetchall()
    return {
        "suites": {suite: f"{met} of {evaluated}" for suite, met, evaluated, _ in suites},
        "warnings": {suite: found for suite, *_, failures in suites if (found := warnings(failures))},
        "failures": failed_suites(served, job),
    }


def warnings(failures: str | None) -> list[str]:
    """The failed expectations that are warnings, each with what it is about and what was observed. `failures` is the
    column of that name in the view `quality`, as JSON."""
    import json

    return [
        f"{failure['expectation']}: {failure['about']}, observed {failure['observed']}"
        for failure in json.loads(failures or "[]")
        if isinstance(failure, dict) and failure.get("severity") == "warning"
    ]


def unchanged(stream: str) -> str | None:
    """Why a check would find what the last one found, in words; None if it might not. The last one was green and saw
    the newest micro-batch and the newest publication, and the contract does not ask for freshness, which time alone can
    break."""
    from infra.deployed import contract_in_service
    from infra.settings import settings
    from spark.lake.publications import publications
    from spark.serving.duck import connect
    from spark.speed.checkpoint.generations import settled_batch

    config = settings()
    contract = contract_in_service(config, stream)
    published = publications(config.lake_uri, stream)
    with connect(config, [contract]) as served:
        last = served.execute(
            # Only this job has suites of the speed layer.
            "select bool_and(success), min(through_batch), min(recorded_at) from quality where run_id = "
            "(select max_by(run_id, recorded_at) from quality where stream = $stream and suite like 'speed.%') "
            "and stream = $stream",
            {"stream": stream},
        ).fetchone()
    green, through_batch, at = last or (False, None, None)
    if contract.quality.freshness or not green or through_batch != settled_batch(contract, config):
        return None
    if published and published[-1].published_at > at:
        return None
    return f"nothing was ingested or published since it was found in order at {at:%Y-%m-%d %H:%M} UTC"


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
    BatchJob(job="quality", report=checked, unneeded=unchanged, inlets=assets("bronze", "speed", "batch"))
