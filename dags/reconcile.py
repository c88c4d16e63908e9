"""# reconcile

Recomputes, per stream, the hours that are closed and that new records have touched, exactly and from the raw events;
compares them with what the speed layer served; audits the result; and publishes it, which moves `final_through`.

**When.** Hourly. A stream's hours close by its own event time (its newest event less its allowed lateness), so a
replay of 2013 and a live stream are both right. One Spark application works on the streams in turn; a stream is left
out while none of its batches is complete, and when nothing was ingested since it last published. If none is left, the
task is skipped.

**Result.** The task returns, by stream, what was published: `final_through`, hours, rows, and how many differences the
ledger explains by which cause (tab *XCom*, and the end of its log).

**When it fails.** The log and the result say for which streams. Nothing was published of those, and their served
numbers are as they were; the next run tries the same hours again together with the newer ones. The other streams are
published.

| message | do |
|---|---|
| an expectation on staged rows failed | the new numbers are wrong: see the Data Docs and `staged/<stream>/…` |
| `unexplained` differences | speed and batch disagree without a cause: a defect; query the view `ledger` |
| anything else | the end of the task's log holds Spark's own error |

One retry is made: a run can be repeated, and streams that were published are left out of it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG
from wiring import DEFAULTS, SparkJob, at, failed_suites


def published(served: Any, job: dict[str, Any]) -> dict[str, Any]:
    """What the job has published and written to the ledger."""
    publication = served.execute(
        "select final_through, hours, rows from publications "
        "where stream = $stream and published_at >= $since order by published_at desc",
        job,
    ).fetchone()
    causes = dict(
        served.execute(
            "select cause, count(*) from ledger where stream = $stream and recorded_at >= $since group by cause", job
        ).fetchall()
    )
    failures = failed_suites(served, job)
    if unexplained := causes.get("unexplained"):
        failures.append(f"{job['stream']}: {unexplained} differences without an explanation; query the view ledger")
    final_through, hours, rows = publication or (None, 0, 0)
    return {
        "published": publication is not None,
        "final_through": final_through and final_through.isoformat(),
        "hours": hours,
        "rows": rows,
        "differences": causes,
        "failures": failures,
    }


def nothing_new(stream: str) -> str | None:
    """Why a reconciliation would find nothing to do: no batch was ingested after those in the last publication."""
    from infra.settings import settings
    from schemas.catalog import load
    from spark.checkpoints import settled_batch
    from spark.publications import publications

    config = settings()
    done = publications(config.lake_uri, stream)
    settled = settled_batch(load(config.contracts / stream), config)
    if done and settled is not None and settled <= done[-1].through_batch:
        return f"nothing was ingested since the publication of {done[-1].published_at:%Y-%m-%d %H:%M} UTC"
    return None


with DAG(
    "reconcile",
    description="Recomputes closed hours exactly, audits them and publishes them",
    doc_md=__doc__,
    schedule=at("0 * * * *"),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=6),
    default_args=DEFAULTS | {"retries": 1, "execution_timeout": timedelta(hours=2)},
    tags=["millrace", "batch"],
):
    SparkJob(job="reconcile", report=published, unneeded=nothing_new)
