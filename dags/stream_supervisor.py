"""# stream_supervisor

Keeps the streaming driver (`spark/jobs/stream.py`) alive. Each run of this DAG is one life of the driver, so the grid
is the history of incidents: a red run is a life that ended by accident, with the reason in the log of `watch`.

**When.** Always (`@continuous`): the end of a run starts the next one, whatever the end was.

**What it does.** `drive` takes the lease and finds the running driver again or starts a new one, in a session of its
own, so that neither this task's end nor a restart of Airflow touches it. `watch` then waits in the triggerer, without
a worker slot, and ends when the driver does: *exited*, *failed* (it said why), *stalled* (no heartbeat), *lag*
(records wait and no batch finishes). It kills what is left of the driver, fails, and the next run starts another one,
which goes on where the last committed batch ended: nothing is lost and nothing is doubled. A driver that dies within
a minute of its start, time after time, is restarted after 2, 4, 8 … and at most 300 seconds.

**A red run whose driver lives.** A stream that needs a decision halts alone; the others go on. The run that saw it
halt turns red, `watch` says why and gives the command, and the next run finds the same driver again. The stream is
tried again twice a minute, so it goes on soon after the decision; until then each `watch` begins its log with what it
waits for, and `millrace status` says it too.

- *Poison storm*, most records of a batch are bad: read `<stream>_dead_letters`, stop the producer, then `millrace
  checkpoint accept-storm <stream>`; or register the schema that the records lack.
- *Checkpoint refused*, it is damaged or does not fit the tables or the changed contract: put it back or undo the
  change and restart the driver; or stop streaming (below), `millrace checkpoint reset <stream>`, unpause.

**What to do about a red run.** One: nothing, read the reason. Many in a row: the log of `watch` ends with the
driver's last lines, the rest is in `<home>/logs/stream.log`. Typical: topics missing (run `provision`), Kafka or the
registry away, no memory.

| to | do |
|---|---|
| restart the driver, say with new code | `touch <home>/run/stream/stop`: it finishes its batch, the run ends green |
| stop streaming | pause this DAG, then `touch <home>/run/stream/stop` |
| stop everything | `millrace down` |

*lease … is held by …* in `drive`: another installation streams into the same lake. Stop one of them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, BaseOperator, Context, task
from airflow.sdk.exceptions import AirflowFailException
from wiring import DEFAULTS, duty


class Watch(BaseOperator):
    """Waits in the triggerer until the driver with `epoch` has ended, or one of its streams has halted since the run
    began; fails unless the driver was asked to stop."""

    template_fields = ("epoch",)

    def __init__(self, *, epoch: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epoch = epoch

    def execute(self, context: Context) -> None:
        from infra import driver
        from infra.offsets import halts
        from infra.settings import settings
        from infra.watch import DriverWatch

        folder, epoch = driver.place(settings()), int(self.epoch)
        for why in halts(driver.heartbeat(folder, epoch)).values():
            self.log.error("still waiting for a decision: %s", why)
        since = context["dag_run"].start_date.isoformat()
        self.defer(trigger=DriverWatch(str(folder), epoch, settings().stall_after, since), method_name="ended")

    def ended(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Clears up after the driver; then fails, at once or after the pause that a crash loop asks for."""
        from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger

        from infra import driver
        from infra.settings import settings

        if event["reason"] == "stopped":
            return event
        if event["reason"] == "halted":  # the driver goes on with the other streams, and the next run finds it
            raise AirflowFailException(event["detail"])
        driver.stop(settings(), timeout=0, epoch=event["epoch"])
        message = f"driver with epoch {event['epoch']} {event['reason']}: {event['detail']}"
        self.log.error("%s; its last words:\n%s", message, driver.log_end(settings()))
        if pause := driver.restart_delay(driver.deaths(driver.place(settings()))):
            self.log.warning("it died young, and not for the first time: the next one is started in %.0f s", pause)
            self.defer(
                trigger=TimeDeltaTrigger(timedelta(seconds=pause)), method_name="over", kwargs={"message": message}
            )
        raise AirflowFailException(message)

    def over(self, context: Context, message: str, event: Any = None) -> None:
        raise AirflowFailException(message)


with DAG(
    "stream_supervisor",
    description="Keeps the streaming driver alive: one run is one life of it",
    doc_md=__doc__,
    schedule="@continuous",
    start_date=datetime(2024, 1, 1, tzinfo=UTC),  # a continuous schedule needs one in the past
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    tags=["millrace", "speed"],
):

    @task
    @duty
    def drive() -> int:
        """Returns the epoch of the driver that runs."""
        from infra import driver
        from infra.lease import Lease
        from infra.settings import settings
        from spark.session import submit_conf

        config = settings()
        return driver.ensure(
            config, Lease(config), lambda epoch: driver.submit_command(submit_conf(config, "stream"), epoch)
        ).epoch

    # No time limit: the longer it lasts, the better. No retries: the next run is the retry.
    Watch(task_id="watch", epoch=drive(), execution_timeout=None, retries=0)
