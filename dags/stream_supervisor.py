"""# stream_supervisor

Keeps the streaming driver (`spark/jobs/stream.py`) alive. Each run of this DAG is one life of the driver, so the grid
is the history of incidents: a red run is a life that ended by accident, with the reason in the log of `watch`.

**When.** Always (`@continuous`): the end of a run starts the next one, whatever the end was.

**What it does.** `drive` takes the lease and finds the running driver again or starts a new one, in a session of its
own, so that neither this task's end nor a restart of Airflow touches it. `watch` then waits in the triggerer, without
a worker slot, and ends when the driver does: *exited*, *failed* (it said why), *stalled* (no heartbeat), *lag*
(records wait and no batch is finished within the contract's `progress_within`, by default 15 minutes). It kills what
is left of the driver, fails, and the next run starts another one, which goes on where the last committed batch ended:
nothing is lost and nothing is doubled.

**A run that waits in `drive`** (deferred, its log says why) starts no driver yet. Either somebody has stopped the
stream; or drivers die within a minute or in their first batch, time after time: the next one waits 2, 4, 8 … seconds,
and after five such deaths the *circuit breaker* is open, for ten minutes. Then one more is tried (half-open); if it
lives, the breaker is closed. When the cause is mended: `millrace stream close-breaker`, or the action *close-breaker*
of the DAG `operate_stream`. `millrace status` shows the breaker too.

**Pausing this DAG stops supervising, not the stream.** The driver goes on, and nobody starts another one when it dies.

**A red run whose driver lives.** Whatever goes wrong in a stream halts it alone; the others go on. The run that saw it
halt turns red, `watch` says why and gives the command, and the next run finds the same driver again. The stream is
tried again by itself, so it goes on soon after the decision or once the cause is mended; until then each `watch` begins
its log with what the stream waits for, and `millrace status` says it too.

- *Poison storm*: most records of a batch are bad. Read `<stream>_dead_letters`, stop the producer, then `millrace
  checkpoint accept-storm <stream>`; or register the schema that the records lack.
- *Checkpoint refused*: the checkpoint is damaged, or does not fit the tables or the changed contract. Put it back or
  undo the change, and restart the driver; or stop streaming (below), `millrace checkpoint reset <stream>`, start it
  again.
- *The contract of <stream> cannot be read*: mend its files; jobs and views go by the one that was deployed last.
- *<stream>.<name> stands still* (velocity, sessions, a join): everything else goes on, and this query is tried again.
  The message says why, and which command begins it anew if that is needed.
- *The alert lane of … stands still*: no alerts are sent, and the ingest goes on. The lane is tried again and makes
  up for what it missed. The reason is in the message: Kafka or the registry away, a reference file
  that cannot be read. If it is a damaged checkpoint: stop streaming, `millrace checkpoint reset <stream>.alerts`, start
  it again. The message stays until the lane has run for half a minute.

**What to do about a red run.** A single one needs nothing: read the reason. When many follow each other, the log of
`watch` ends with the driver's last lines, and the rest is in `<home>/logs/stream.log`. Typical reasons are missing
topics (run `provision`), Kafka or the registry being away, and too little memory.

| to | do (or trigger the DAG `operate_stream`) |
|---|---|
| restart the driver | `millrace stream restart`: it finishes its batch, the run ends green |
| go over to new code or contracts | `millrace stream deploy`: checks them first, then restarts |
| stop streaming, start again | `millrace stream stop`, `millrace stream start` |
| stop everything | `millrace down` |

*more records come than are ingested*: the driver is well and lives on, but is too slow. Give it more cores
(`MILLRACE_SPARK_MASTER`), or send fewer records to the stream's topic. It is reported again as long as it is so.

*records of … wait behind an open transaction*: a producer has begun a transaction and neither commits nor aborts it, so
nobody may read what stands behind it. The driver is well. The message has the command that names the producer: end it,
or abort its transaction.

*lease … is held by …* in `drive`: another installation streams into the same lake. Stop one of them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import DAG, BaseOperator, Context
from airflow.sdk.exceptions import AirflowFailException
from wiring import DEFAULTS, assets, duty


class Drive(BaseOperator):
    """Finds the running driver or starts one, once nothing keeps it from that; returns its epoch."""

    def execute(self, context: Context) -> int:
        """Begins the task."""
        return self.begun()

    def allowed(self, context: Context, event: Any = None) -> int:
        """Goes on with the task once a driver may be started."""
        return self.begun()

    def begun(self) -> int:
        """Returns the driver's epoch. While none may be started it defers the task, which goes on with `allowed`."""
        from infra.driver import process
        from infra.driver.airflow_triggers import MayStart
        from infra.driver.restart_policy import waits
        from infra.settings import settings

        config = settings()
        while True:
            if process.running(config) is None and (why := waits(config, datetime.now(UTC))):
                self.log.warning("no driver is started: %s", why)
                self.defer(trigger=MayStart(str(config.home)), method_name="allowed")
            if (epoch := self.started()) is not None:
                return epoch

    @staticmethod
    @duty
    def started() -> int | None:
        """Returns the driver's epoch; None if somebody has stopped the stream while the driver was started, which then
        is killed. Whoever stops a stream notes that first and then looks for a driver; here it is the other way round,
        so one of the two sees the other."""
        from infra.driver import process
        from infra.driver.restart_policy import held
        from infra.locks.driver_lease import Lease
        from infra.settings import settings
        from spark.session import submit_conf

        config = settings()
        before = process.running(config)
        found = process.ensure(
            config, Lease(config), lambda epoch: process.submit_command(submit_conf(config, "stream"), epoch)
        )
        if found != before and held(config):
            process.stop(config, timeout=0, epoch=found.epoch)
            return None
        return found.epoch


class Watch(BaseOperator):
    """Waits in the triggerer until the driver with `epoch` has ended, or one of its streams has halted since the run
    began; fails unless the driver was asked to stop."""

    template_fields = ("epoch",)

    def __init__(self, *, epoch: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epoch = epoch

    def execute(self, context: Context) -> None:
        """Logs what halted streams wait for, and defers the task until the driver's life ends."""
        from infra.driver.airflow_triggers import DriverWatch
        from infra.driver.heartbeat import halts, heartbeat
        from infra.settings import settings

        folder, epoch = settings().stream_dir, int(self.epoch)
        for why in halts(heartbeat(folder, epoch)).values():
            self.log.error("still waiting for a decision: %s", why)
        since = (context["dag_run"].start_date or datetime.now(UTC)).isoformat()
        self.defer(trigger=DriverWatch(str(folder), epoch, settings().stall_after, since), method_name="ended")

    def ended(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Clears up after the driver, and fails with the reason unless the driver was asked to stop."""
        from infra.driver import process
        from infra.driver.restart_policy import waits
        from infra.settings import settings

        if event["reason"] == "stopped":
            return event
        if event["reason"] in ("halted", "behind", "transaction"):  # the driver goes on, and the next run finds it
            raise AirflowFailException(event["detail"])
        process.stop(settings(), timeout=0, epoch=event["epoch"])
        message = f"driver with epoch {event['epoch']} {event['reason']}: {event['detail']}"
        self.log.error("%s; its last words:\n%s", message, process.log_end(settings()))
        if why := waits(settings(), datetime.now(UTC)):
            self.log.warning("%s", why)
        raise AirflowFailException(message)


with DAG(
    "stream_supervisor",
    description="Keeps the streaming driver alive: one run is one life. Pausing stops supervising, not the stream",
    doc_md=__doc__,
    schedule="@continuous",
    start_date=datetime(2024, 1, 1, tzinfo=UTC),  # a continuous schedule needs one in the past
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    tags=["millrace", "speed"],
):
    # No time limits: a start may wait for somebody, and the longer a life lasts, the better. No retries of `watch`: the
    # next run is the retry.
    drive = Drive(task_id="drive", execution_timeout=None, inlets=assets("topic"), outlets=assets("bronze", "speed"))
    Watch(task_id="watch", epoch=drive.output, execution_timeout=None, retries=0)
