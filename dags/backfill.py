"""# backfill

Computes past hours of a stream again, also published ones, and publishes the result. What bronze lacks and Kafka still
has is sent again first (task `audit`); then each closed hour of the range is recomputed from bronze, compared with what
is served, audited with Great Expectations and published (task `backfill`), as `reconcile` does it.

**When.** By hand, after one of these:

| reason | cause in the ledger |
|---|---|
| an aggregate or a measure was added: hours published before lack it | none: what was not served was not wrong |
| a defect was mended, or a published table was damaged | `corrected` |
| the speed layer is damaged: `reconcile` refuses the hours as `unexplained` | `corrected`: exact values are taken |
| records are missing in bronze | `replayed`, where the speed layer had counted them before |

**Parameters.** `stream` is the stream. `from` and `to` are times of events, UTC; all hours that they touch are
computed. `dry_run` is on by default: nothing is written, and the task's result (tab *XCom*) says, hour by hour, what
would change. `records` narrows what is sent again: `topic/partition:first-last`, or `from..to`, times of Kafka's
records. Look at a dry run, then trigger it again with `dry_run` off.

**Result.** `audit` returns how many records were missing and how many were sent. `backfill` returns the hours, the
windows and the differences by cause, in all and `by_hour`; a dry run adds `changes`, with what is served now and what
would be served. Hours after `final_through` are not closed: `reconcile` takes them in time.

**When it fails.** Nothing was published: see the table in `reconcile`. Run it again after mending: a run that died
half-way leaves nothing that the next one does not replace. It shares the pool `batch` with the other jobs, and a lock
with those that are started by hand (`millrace backfill` does the same as this DAG).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, Context, Param, task
from wiring import DEFAULTS, BatchJob, duty, hour_table, published, streams


class Backfill(BatchJob):
    """Runs the job `reconcile` for a stream, hours forced into its plan. The job's summary is the task's result."""

    def execute(self, context: Context) -> Any:
        """Runs the job with the hours of the run's parameters, and returns its report and summary by stream."""
        from infra.settings import settings

        asked = context["params"]
        folder = settings().run_dir / "backfill"
        folder.mkdir(parents=True, exist_ok=True)
        self.summary = folder / f"{context['ti'].id}.json"
        hours = [f"--from={asked['from']}", f"--to={asked['to']}", f"--summary={self.summary}"]
        return self._done(context, [asked["stream"]], *hours, *(["--dry-run"] if asked["dry_run"] else []))

    def _reports(self, chosen: list[str], since: datetime) -> dict[str, Any]:
        import json

        reports = super()._reports(chosen, since)
        if self.summary.exists():
            for summary in json.loads(self.summary.read_text()):
                reports[summary["stream"]] |= summary
                self.log.info("%s, by hour:\n%s", summary["stream"], hour_table(summary["by_hour"]))
            self.summary.unlink()
        return reports


with DAG(
    "backfill",
    description="Recomputes past hours of a stream from bronze, after sending again what bronze lacks",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=12),
    default_args=DEFAULTS | {"retries": 0, "execution_timeout": timedelta(hours=6)},
    tags=["millrace", "batch"],
    params={
        "stream": Param(None, type="string", enum=streams(), description="Stream whose hours are computed again."),
        "from": Param(None, type="string", format="date-time", description="First hour of event time, UTC."),
        "to": Param(None, type="string", format="date-time", description="End of the hours, exclusive."),
        "dry_run": Param(True, type="boolean", description="Write nothing, say what would change."),
        "records": Param(
            [], type="array", items={"type": "string"},
            description="Which missing records are sent again: topic/partition:first-last, or from..to, times of "
            "Kafka's records. None: all of them.",
        ),
    },
) as dag:  # fmt: skip

    @task
    @duty
    def audit(params: Any = None) -> dict[str, Any]:
        """Returns how many records bronze lacks and Kafka has, and how many of them were sent again."""
        from infra.operations.backfill import repair_selected
        from infra.settings import settings

        missing, sent = repair_selected(settings(), params["stream"], params["records"], dry_run=params["dry_run"])
        return {"missing": missing, "sent": sent}

    audit() >> Backfill(job="reconcile", task_id="backfill", report=published)
