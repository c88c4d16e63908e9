"""What the DAG files have in common: the streams, the defaults of every task, and how our errors become Airflow's.

This is no DAG (see `.airflowignore`). Other packages of the project are imported inside functions, when a task runs:
the DAG processor reads these files once a minute and must stay quick, and an error in a job must not take the DAGs
away.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import Asset, BaseOperator, Context, CronTriggerTimetable
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

P = ParamSpec("P")
R = TypeVar("R")

PROJECT = Path(__file__).resolve().parent.parent

BATCH_POOL, LETTERS_POOL, AUDITS_POOL = "batch", "letters", "audits"
"""Pools of one slot: a table has one writing process, so the tasks that write the same tables take turns."""

SHOWN_HOURS = 48
"""Hours that a report lists at most."""

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
    from schemas.contract.folders import folders

    return [folder.name for folder in folders(settings().contracts)]


def duty(work: Callable[P, R]) -> Callable[P, R]:
    """Decorates a task's function, below `@task`: a `TerminalError` fails the task for good, every other error is tried
    again."""

    @functools.wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        from schemas.errors import TerminalError

        try:
            return work(*args, **kwargs)
        except TerminalError as error:
            raise AirflowFailException(str(error)) from error

    return run


def asset(kind: str, stream: str) -> Asset:
    """Returns the asset of a stream that `kind` names (`topic`, `bronze`, `speed`, `batch`, `published` or `letters`),
    for the graph of assets in the UI; `millrace lineage` has each single table."""
    return Asset(name=f"{kind}/{stream}", uri=f"millrace://{kind}/{stream}", group=kind)


def assets(*kinds: str) -> list[Asset]:
    """The assets of those kinds of all streams."""
    return [asset(kind, stream) for kind in kinds for stream in streams()]


Report = Callable[[Any, dict[str, Any]], dict[str, Any]]
"""A function of a DuckDB connection with the served views, and of the parameters `stream` and `since` (UTC) for its
queries, that returns what a job did for the stream."""


class BatchJob(BaseOperator):
    """Runs `spark/jobs/<job>.py --run-id <run id> --stream <stream> …` in a process of its own, in the batch pool: one
    process for all streams, since starting one costs more than an hour's work of a stream. It begins a Spark session
    itself if it needs one.

    A stream is left out while none of its batches is complete and when `unneeded(stream)` gives a reason; the task is
    skipped, without starting the process, when none is left. `report` says afterwards, from the tables, what the job
    did for a stream: that is logged and is, by stream, the task's result, also when the job failed. If reports then
    have `failures`, they are the reason that Airflow shows. A stream for which `withheld(stream, run id)` gives a
    reason is left out as well, and the task fails with the reason after the others had their turn. With
    `{"force": true}` as the run's configuration neither is asked.
    """

    def __init__(
        self,
        *,
        job: str,
        report: Report,
        task_id: str = "",
        unneeded: Callable[[str], str | None] = lambda stream: None,
        withheld: Callable[[str, str], str | None] = lambda stream, run_id: None,
        **kwargs: Any,
    ) -> None:
        super().__init__(task_id=task_id or job, pool=BATCH_POOL, **kwargs)
        self.job = job
        self.report = report
        self.unneeded = unneeded
        self.withheld = withheld

    def execute(self, context: Context) -> Any:
        """Chooses the streams, runs the job on them, and returns its reports by stream."""
        forced = bool((context["dag_run"].conf or {}).get("force"))
        withheld = {} if forced else self._withheld(context["run_id"])
        left_out = {stream: reason for stream in streams() if (reason := self._reason_against(stream, forced))}
        for stream, reason in (left_out | withheld).items():
            self.log.info("%s is left out: %s", stream, reason)
        chosen = [stream for stream in streams() if stream not in left_out | withheld]
        if not chosen and not withheld:
            raise AirflowSkipException("; ".join(f"{stream}: {reason}" for stream, reason in left_out.items()))
        result = self._done(context, chosen) if chosen else {}
        if withheld:
            context["ti"].xcom_push("return_value", result)
            raise AirflowFailException("; ".join(withheld.values()))
        return result

    def on_kill(self) -> None:
        """Ends the job when the task is."""
        self._process.send_sigterm()  # type: ignore[no-untyped-call]

    @functools.cached_property
    def _process(self) -> SubprocessHook:
        return SubprocessHook()

    def _done(self, context: Context, chosen: list[str], *more: str) -> dict[str, Any]:
        """Runs the job on the `chosen` streams, with `more` arguments, and returns its reports. Raises AirflowException
        if the job failed."""
        from infra.settings import settings

        arguments = ["--run-id", context["run_id"], *(f"--stream={stream}" for stream in chosen), *more]
        if settings().openlineage_transport:
            from airflow.providers.openlineage.plugins.macros import lineage_parent_id

            arguments.append(f"--parent={lineage_parent_id(context['ti'])}")
        since = datetime.now(UTC)
        program = str(PROJECT / "spark" / "jobs" / f"{self.job}.py")
        ended = self._process.run_command([sys.executable, program, *arguments], cwd=str(PROJECT))
        reports = self._reports(chosen, since)
        if ended.exit_code:
            context["ti"].xcom_push("return_value", reports)
            failures = [failure for report in reports.values() for failure in report.get("failures", [])]
            unsaid = f"{self.job} ended with exit code {ended.exit_code}: the end of this log says why"
            raise AirflowException("; ".join(failures) or unsaid)
        return reports

    def _withheld(self, run_id: str) -> dict[str, str]:
        """The streams that have something to work on and must not be worked on, with why. As in `_reason_against`, an
        error in a stream is left for the job to report."""
        from schemas.errors import MillraceError

        found = {}
        for stream in streams():
            try:
                if nothing_settled(stream) is None and (reason := self.withheld(stream, run_id)):
                    found[stream] = reason
            except MillraceError as error:
                self.log.warning("%s: %s", stream, error)
        return found

    def _reason_against(self, stream: str, forced: bool) -> str | None:
        """Why the stream is left out; None if it is not. An error is left for the job to report in its turn."""
        from schemas.errors import MillraceError

        try:
            return nothing_settled(stream) or (None if forced else self.unneeded(stream))
        except MillraceError as error:
            self.log.warning("%s: %s", stream, error)
            return None

    def _reports(self, chosen: list[str], since: datetime) -> dict[str, Any]:
        from infra.deployed import contract_in_service
        from infra.settings import settings
        from schemas.errors import MillraceError
        from spark.serving.duck import connect

        config = settings()
        reports: dict[str, Any] = {}
        for stream in chosen:
            try:
                with connect(config, [contract_in_service(config, stream)]) as served:
                    reports[stream] = self.report(served, {"stream": stream, "since": since})
            except MillraceError as error:
                reports[stream] = {"failures": [f"{stream}: {error}"]}
            self.log.info("%s: %s", stream, {name: it for name, it in reports[stream].items() if name != "by_hour"})
            if hours := reports[stream].get("by_hour"):
                self.log.info("%s, differences by hour:\n%s", stream, hour_table(hours))
        return reports


def published(served: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Reports what the job has published and written to the ledger, as a `Report` does: `final_through` (ISO-8601,
    UTC), hours, rows, differences by cause, and `by_hour` for the newest `SHOWN_HOURS` hours with differences."""
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
    hours = served.execute(
        "select date_trunc('hour', window_start) as hour, cause, count(*) from ledger "
        "where stream = $stream and recorded_at >= $since group by all order by all",
        job,
    ).fetchall()
    by_hour: dict[str, dict[str, Any]] = {}
    for hour, cause, count in hours:
        by_hour.setdefault(hour.isoformat(), {"hour": hour.isoformat()})[cause] = count
    if unexplained := causes.get("unexplained"):
        failures.append(f"{job['stream']}: {unexplained} differences without an explanation; query the view ledger")
    stateful = served.execute(  # what is made of the stream has a ledger of its own, as <stream>.<name>
        "select stream, count(*) from ledger where starts_with(stream, $stream || '.') and recorded_at >= $since "
        "and cause = 'unexplained' group by all order by all",
        job,
    ).fetchall()
    failures += [f"{title}: {count} rows without an explanation; query the view ledger" for title, count in stateful]
    final_through, hours, rows = publication or (None, 0, 0)
    return {
        "published": publication is not None,
        "final_through": final_through and final_through.isoformat(),
        "hours": hours,
        "rows": rows,
        "differences": causes,
        "by_hour": list(by_hour.values())[-SHOWN_HOURS:],
        "failures": failures,
    }


def hour_table(by_hour: list[dict[str, Any]]) -> str:
    """Returns hours, with what was counted in each, as the lines of a table."""
    columns = list(dict.fromkeys(name for hour in by_hour for name in hour))
    rows = [columns, *([str(hour.get(name, 0)) for name in columns] for hour in by_hour)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def failed_suites(served: Any, job: dict[str, Any]) -> list[str]:
    """Returns a line for each Great Expectations suite that failed in a job, with the address of its page."""
    from infra.settings import settings

    rows = served.execute(
        "select suite, failed, evaluated, failures, docs from quality "
        "where stream = $stream and recorded_at >= $since and not success order by recorded_at, suite",
        job,
    ).fetchall()
    site = settings().data_docs_url
    return [
        f"{job['stream']}, suite {suite}: {failed} of {evaluated} expectations failed: {failures} ({site}{docs})"
        for suite, failed, evaluated, failures, docs in rows
    ]


def nothing_settled(stream: str) -> str | None:
    """Why there is nothing to work on, in words: no micro-batch of the stream is complete yet. None if one is."""
    from infra.deployed import contract_in_service
    from infra.settings import settings
    from spark.speed.checkpoint.generations import settled_batch

    config = settings()
    if settled_batch(contract_in_service(config, stream), config) is None:
        return f"no batch of {stream} is complete yet: provision, stream and produce first"
    return None
