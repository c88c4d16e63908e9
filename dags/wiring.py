"""What the DAG files have in common: the streams, the defaults of every task, and how our errors become Airflow's.

Not a DAG (see `.airflowignore`). Other rooms of the project are imported inside functions, when a task runs: the DAG
processor reads these files once a minute and must stay quick, and an error in a job must not take the DAGs away.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import Context, CronTriggerTimetable
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

P = ParamSpec("P")
R = TypeVar("R")

PROJECT = Path(__file__).resolve().parent.parent

BATCH_POOL = "batch"
"""One slot: the batch tables have one writing process, so the jobs that write them take turns."""

DEFAULTS: dict[str, Any] = {
    "owner": "data-platform",
    "retries": 2,
    "retry_delay": timedelta(seconds=15),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=5),
    "execution_timeout": timedelta(minutes=5),
}


def at(cron: str) -> CronTriggerTimetable:
    """The schedule `cron`, UTC. A DAG that is switched on waits for its next time; with a plain cron string and a start
    date it would at once make up for the last one, beside the run that whoever switched it on triggers."""
    return CronTriggerTimetable(cron, timezone="UTC", run_immediately=timedelta(minutes=1))


def streams() -> list[str]:
    """The streams that have a contract, by the names of their folders; the contracts themselves are not read."""
    from infra.settings import settings

    return sorted(path.parent.name for path in settings().contracts.glob("*/stream.yaml"))


def duty(work: Callable[P, R]) -> Callable[P, R]:
    """Between `@task` and a function: a `TerminalError` fails the task for good, everything else is tried again."""

    @functools.wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        from schemas.errors import TerminalError

        try:
            return work(*args, **kwargs)
        except TerminalError as error:
            raise AirflowFailException(str(error)) from error

    return run


Report = Callable[[Any, dict[str, Any]], dict[str, Any]]
"""(DuckDB connection with the served views, parameters `stream` and `since` for its queries) to what a job did."""


class SparkJob(SparkSubmitOperator):
    """`spark/jobs/<job>.py --stream <stream> --run-id <run id>` by spark-submit, in the batch pool.

    Skipped, without starting Spark, while the stream has no rows yet and when `unneeded(stream)` gives a reason.
    `report` says afterwards, from the tables, what the job did: that is logged and is the task's result, also when
    the job failed. If it then has `failures`, they are the reason, and another try would find the same data.
    """

    def __init__(
        self,
        *,
        job: str,
        stream: str,
        report: Report,
        unneeded: Callable[[str], str | None] = lambda stream: None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            application=str(PROJECT / "spark" / "jobs" / f"{job}.py"),
            application_args=["--stream", stream, "--run-id", "{{ run_id }}"],
            name=f"millrace-{job}-{stream}",
            conn_id="spark_batch",
            pool=BATCH_POOL,
            **kwargs,
        )
        self.stream = stream
        self.report = report
        self.unneeded = unneeded

    def execute(self, context: Context) -> dict[str, Any]:
        from infra.settings import settings
        from spark.session import submit_conf

        if not _has_rows(self.stream):
            raise AirflowSkipException(f"bronze/{self.stream} holds no row yet: provision, stream and produce first")
        if reason := self.unneeded(self.stream):
            raise AirflowSkipException(reason)
        self.conf = submit_conf(settings(), "batch")
        since = datetime.now(UTC)
        try:
            super().execute(context)
        except AirflowException as error:
            report = self._reported(since)
            context["ti"].xcom_push("return_value", report)
            if failures := report.get("failures"):
                raise AirflowFailException("; ".join(failures)) from error
            raise
        return self._reported(since)

    def _reported(self, since: datetime) -> dict[str, Any]:
        from infra.settings import settings
        from schemas.catalog import load
        from spark.serving.duck import connect

        config = settings()
        with connect(config, [load(config.contracts / self.stream)]) as served:
            report = self.report(served, {"stream": self.stream, "since": since})
        self.log.info("%s", report)
        return report


def failed_suites(served: Any, job: dict[str, Any]) -> list[str]:
    """One line for each Great Expectations suite that failed in a job, with where to read more."""
    rows = served.execute(
        "select suite, failed, evaluated, failures, docs from quality "
        "where stream = $stream and recorded_at >= $since and not success order by recorded_at, suite",
        job,
    ).fetchall()
    return [
        f"{job['stream']}, suite {suite}: {failed} of {evaluated} expectations failed: {failures} ({docs})"
        for suite, failed, evaluated, failures, docs in rows
    ]


def _has_rows(stream: str) -> bool:
    from deltalake import DeltaTable

    from infra.settings import settings
    from spark import tables

    path = tables.local_path(tables.bronze(settings().lake_uri, stream))
    return DeltaTable.is_deltatable(path) and bool(DeltaTable(path).file_uris())
