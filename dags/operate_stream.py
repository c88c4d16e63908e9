"""# operate_stream

Stops, starts, restarts or deploys the streaming driver: trigger it with an action. `millrace stream` does the same.

**When.** When somebody triggers it.

| action | does |
|---|---|
| `restart` | the driver finishes its batch and leaves, `stream_supervisor` starts the next one |
| `deploy` | first checks that each stream may start with the code and contracts that are here now, then as `restart` |
| `stop` | the driver finishes its batch and leaves; none is started until the action `start` |
| `start` | `stream_supervisor` starts drivers again |
| `close-breaker` | after a crash loop whose cause is mended: the next driver is started at once |

**Result.** The task returns what was done, the epochs of the driver before and after, and for how many seconds nothing
streamed: a start of Spark, some 15 s on two cores. Records that arrive meanwhile are ingested afterwards.

**When it fails.** The message says what to do. A deployment that is refused has changed nothing, and the old driver
goes on.

| message | do |
|---|---|
| *is paused* | unpause `stream_supervisor`: nothing else would start the next driver |
| *no driver runs after …* | the log of `stream_supervisor` says why |
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, task
from wiring import DEFAULTS, duty

with DAG(
    "operate_stream",
    description="Stop, start, restart or deploy the streaming driver",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    params={
        "action": Param(
            "restart", type="string", enum=["restart", "deploy", "stop", "start", "close-breaker"], title="What to do"
        ),
        "because": Param("from Airflow", type="string", minLength=1, maxLength=500, title="Why"),
    },
    tags=["millrace", "speed"],
):

    @task(execution_timeout=timedelta(minutes=6), retries=0)
    @duty
    def operate(params: Any = None, dag_run: Any = None) -> dict[str, Any]:
        """Returns the action, what it did in words, the driver's epochs before and after, and the gap in seconds."""
        from dataclasses import asdict

        from infra.driver import actions
        from infra.settings import settings

        who = getattr(dag_run, "triggering_user_name", None) or "somebody"
        return asdict(actions.operate(settings(), params["action"], f"{who} (in Airflow)", params["because"]))

    operate()
