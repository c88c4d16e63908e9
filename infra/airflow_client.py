"""A client of Airflow for an operator's program: unpause, trigger, wait, last run. Everything goes through the public
API (`apache-airflow-client`), so it works against any Airflow 3, not only the embedded one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
from airflow_client.client import ApiClient, Configuration
from airflow_client.client.api import dag_api, dag_run_api, task_instance_api, x_com_api
from airflow_client.client.exceptions import ApiException, NotFoundException
from airflow_client.client.models import DAGPatchBody, TriggerDAGRunPostBody
from tenacity import retry, retry_if_exception_type, retry_if_result, stop_after_delay, wait_fixed
from urllib3.exceptions import HTTPError

from infra.settings import Settings
from schemas.errors import TerminalError, TransientError

FINISHED = frozenset({"success", "failed"})

LAST_WORDS = 5
"""Lines of a failed task's log that its run's error shows."""


class AirflowUnreachable(TransientError):
    """The Airflow API does not answer, or refuses the operator's password."""


class RunFailed(TerminalError):
    """A DAG run that was waited for did not succeed; the message names its failed tasks and where to look."""


@dataclass(frozen=True)
class Run:
    """A DAG run. Times are UTC; `started` is None while it is queued, `ended` while it runs."""

    dag_id: str
    run_id: str
    state: str
    started: datetime | None
    ended: datetime | None


DAGS = (
    "provision", "stream_supervisor", "reconcile", "data_quality", "replay_dead_letters", "decide_parked_letters",
    "maintain", "backfill", "operate_stream",
)  # fmt: skip
"""Every DAG of the platform."""


class Airflow:
    """A logged-in session of the user `admin`. Raises `AirflowUnreachable` when the API cannot be reached."""

    def __init__(self, settings: Settings) -> None:
        self.url = settings.airflow_url
        try:
            answer = httpx.post(
                f"{self.url}/auth/token",
                json={"username": "admin", "password": settings.secret("airflow-admin")},
                timeout=30,
                trust_env=False,
            )
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise AirflowUnreachable(f"Airflow at {self.url} is not reachable: {error}; is the stack up?") from error
        client = ApiClient(Configuration(host=self.url, access_token=answer.json()["access_token"]))
        self._dags = dag_api.DAGApi(client)
        self._runs = dag_run_api.DagRunApi(client)
        self._tasks = task_instance_api.TaskInstanceApi(client)
        self._xcoms = x_com_api.XComApi(client)

    def wait_for_dags(self, dag_ids: Iterable[str], timeout: float = 120) -> None:
        """Blocks until the DAG processor has parsed every one of `dag_ids`. Raises `TransientError` after `timeout`
        seconds."""
        wanted = set(dag_ids)

        @retry(
            wait=wait_fixed(1),
            stop=stop_after_delay(timeout),
            retry=retry_if_result(bool) | retry_if_exception_type((ApiException, HTTPError)),
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )
        def missing() -> set[str]:
            return wanted - {dag.dag_id for dag in self._dags.get_dags(limit=100).dags}

        if left := missing():
            raise TransientError(f"Airflow did not parse {sorted(left)} within {timeout:.0f} s: see its import errors")

    def unpause(self, dag_id: str) -> None:
        """Switches the DAG on; does nothing if it is on."""
        self._dags.patch_dag(dag_id, DAGPatchBody(is_paused=False))

    def pause(self, dag_id: str) -> None:
        """Switches the DAG off: no further run begins; what runs goes on."""
        self._dags.patch_dag(dag_id, DAGPatchBody(is_paused=True))

    def is_paused(self, dag_id: str) -> bool:
        """Whether the DAG is switched off."""
        return bool(self._dags.get_dag(dag_id).is_paused)

    def runbook(self, dag_id: str) -> str:
        """The DAG's documentation as its page in the UI shows it (Markdown)."""
        return str(self._dags.get_dag_details(dag_id).doc_md or "")

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None) -> Run:
        """Starts a run now and returns it. `logical_date` is null: a triggered run stands for no interval."""
        now = datetime.now(UTC)
        body = TriggerDAGRunPostBody(dag_run_id=f"manual__{now:%Y-%m-%dT%H%M%S.%f}Z", conf=conf or {})
        return _run(self._runs.trigger_dag_run(dag_id, body))

    def run(self, dag_id: str, run_id: str) -> Run:
        """Returns the run as it is now."""
        return _run(self._runs.get_dag_run(dag_id, run_id))

    def runs(self, dag_id: str, limit: int = 1) -> list[Run]:
        """Returns the last `limit` runs, the newest first; none when the DAG never ran or is not known."""
        try:
            found = self._runs.get_dag_runs(dag_id, limit=limit, order_by=["-run_after"])
        except NotFoundException:
            return []
        return [_run(run) for run in found.dag_runs]

    def task_states(self, run: Run) -> dict[str, str]:
        """Returns the state of each task of `run`, by task id."""
        tasks = self._tasks.get_task_instances(run.dag_id, run.run_id).task_instances
        return {task.task_id: str(getattr(task.state, "value", task.state)) for task in tasks}

    def last_words(self, run: Run, task_id: str) -> list[str]:
        """Returns the exceptions in the log of the task's newest try, else its last lines, `LAST_WORDS` at most; an
        empty list if the log cannot be had."""
        try:
            newest = self._tasks.get_task_instance(run.dag_id, run.run_id, task_id).try_number
            # The client's own model of an entry drops what its exception said.
            answer = self._tasks.get_log_without_preload_content(
                run.dag_id, run.run_id, task_id, newest, full_content=True, accept="application/json"
            )
            entries = json.loads(answer.read())["content"]
        except (ApiException, HTTPError, ValueError, KeyError):
            return []
        logged: list[dict[str, Any]] = [{"event": it} if isinstance(it, str) else it for it in entries]
        errors = [
            f"{error.get('exc_type')}: {error.get('exc_value')}"
            for entry in logged
            for error in entry.get("error_detail") or ()
        ]
        return (errors or [str(entry.get("event")) for entry in logged])[-LAST_WORDS:]

    def xcom(self, run: Run, task_id: str, key: str = "return_value") -> Any:
        """Returns what a task of `run` pushed under `key`, by default its result; None when it pushed nothing."""
        try:
            entry = self._xcoms.get_xcom_entry(run.dag_id, task_id, run.run_id, key, deserialize=False)
        except NotFoundException:
            return None
        return getattr(entry.actual_instance, "value", None)

    def wait(self, run: Run, timeout: float = 600, on_change: Callable[[dict[str, str]], None] | None = None) -> Run:
        """Blocks until `run` has ended and returns it. `on_change` is called each second with the task states.

        Raises `RunFailed` when the run failed or did not end within `timeout` seconds.
        """

        @retry(
            wait=wait_fixed(1),
            stop=stop_after_delay(timeout),
            retry=retry_if_result(lambda now: now.state not in FINISHED)
            | retry_if_exception_type((ApiException, HTTPError)),
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )
        def ended() -> Run:
            now = self.run(run.dag_id, run.run_id)
            if on_change:
                on_change(self.task_states(now))
            return now

        now: Run = ended()
        if now.state != "success":
            states = self.task_states(now)
            bad = [task for task, state in states.items() if state in ("failed", "upstream_failed")]
            what = f"failed in {', '.join(bad)}" if bad else f"is still {now.state} after {timeout:.0f} s: {states}"
            where = f"{self.url}/dags/{run.dag_id}/runs/{run.run_id}"
            failed = [task for task in bad if states[task] == "failed"]
            words = "".join(f"\n  {task}: {line}" for task in failed for line in self.last_words(now, task))
            raise RunFailed(f"DAG {run.dag_id} {what}; its log: {where} or `millrace logs airflow-scheduler`{words}")
        return now


def _run(found: Any) -> Run:
    state = str(getattr(found.state, "value", found.state))
    return Run(found.dag_id, found.dag_run_id, state, found.start_date, found.end_date)
