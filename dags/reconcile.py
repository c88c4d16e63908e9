"""# reconcile

Proves, per stream, that nothing is lost (task `audit`): each offset of `<stream>` and `<stream>.retry` up to the newest
complete batch is exactly one row of bronze. Then recomputes the hours that are closed and that new records have
touched, exactly and from the raw events; compares them with what the speed layer served; audits the result; and
publishes it, which moves `final_through` (task `reconcile`).

**When.** Hourly. A stream's hours close by its own event time (its newest event less its allowed lateness), so a
replay of 2013 and a live stream are both right. One process works on the streams in turn; a stream is left
out while none of its batches is complete, and when nothing was ingested since its last publication. The task is skipped
if no stream is left.

**Result.** `audit` returns, by stream, the offsets that it accounts for, the gaps by their reason and the residual; the
view `audits` has them by partition, with the offsets. `reconcile` returns what was published: `final_through`, hours,
rows, and how many differences the ledger explains by which cause, in all and `by_hour` of event time (tab *XCom*; as a
table at the end of its log).

**When it fails.** The log and the result say for which streams. Nothing of these streams was published, and their
served numbers are as they were; the next run tries the same hours again together with the newer ones. The other streams
are published. If velocity, sessions or joins failed (`<stream>.<name>` in the log), everything else of the stream is
published as well. A stream in which the audit found a residual is withheld: numbers that lack records must not become
final.

| message | do |
|---|---|
| offsets `missing` | rows of bronze are lost and Kafka has them: trigger a run with `{"repair": true}` |
| offsets `expired` | lost for good: restore bronze, or go on without them by a run with `{"accept": true}` |
| offsets `doubled` | rows are there twice: stop the streaming driver and delete one of each two |
| *is not audited in this run* | the task `audit` says why |
| an expectation on staged rows failed | the new numbers are wrong: see the Data Docs and `staged/<stream>/…` |
| `unexplained` differences | a defect: see the view `ledger`; if the exact values are right, `backfill` publishes |
| the same for `<stream>.<name>` | if the exact rows are right: `millrace checkpoint reset <stream>.<name>` |
| anything else | the end of the task's log holds the error itself |

The task is retried once; streams that were published are left out then. In a run with `{"force": true}` neither a
residual nor the lack of new records keeps a stream from its turn.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, TriggerRule, task
from wiring import AUDITS_POOL, DEFAULTS, BatchJob, assets, at, duty, nothing_settled, published, streams


def nothing_new(stream: str) -> str | None:
    """Why a reconciliation would find nothing to do, in words; None if it might find something. No micro-batch was
    ingested after those in the last publication, and velocity, sessions and joins are published as far."""
    from infra.deployed import contracts_in_service
    from infra.settings import settings
    from spark.lake.publications import behind, in_force, publications
    from spark.speed.checkpoint.generations import settled_batch

    config = settings()
    contracts = contracts_in_service(config)
    if behind(contracts, stream, in_force(publications(config.lake_uri))):
        return None
    done = publications(config.lake_uri, stream)
    settled = settled_batch(contracts[stream], config)
    if done and settled is not None and settled <= done[-1].through_batch:
        return f"nothing was ingested since the publication of {done[-1].published_at:%Y-%m-%d %H:%M} UTC"
    return None


def residual(stream: str, run_id: str) -> str | None:
    """Why the stream's numbers must not be published, in words; None if they may be. The run's audit found a residual,
    or the stream has no audit in this run. The hours that a residual keeps back are recorded, and served as withheld.
    """
    from infra.deployed import contract_in_service
    from infra.settings import settings
    from spark.batch import refusals
    from spark.conservation.audit import NotConserved, require_conserved
    from spark.conservation.audit_log import audits

    config = settings()
    own = [audit for audit in audits(config.lake_uri, stream) if audit.run_id == run_id]
    if not own:
        return f"{stream} is not audited in this run"
    try:
        require_conserved(own[-1])
    except NotConserved as error:
        refusals.withhold(
            config.lake_uri, contract_in_service(config, stream), run_id, own[-1].through_batch, str(error)
        )
        return str(error)
    return None


with DAG(
    "reconcile",
    description="Proves that nothing is lost, recomputes closed hours exactly, audits them and publishes them",
    doc_md=__doc__,
    schedule=at("0 * * * *"),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=6),
    default_args=DEFAULTS | {"retries": 1, "execution_timeout": timedelta(hours=2)},
    tags=["millrace", "batch"],
) as dag:

    @task(pool=AUDITS_POOL)
    @duty
    def audit(run_id: Any = None, dag_run: Any = None, ti: Any = None) -> dict[str, Any]:
        """Returns, by stream, how many offsets there are, the gaps by reason and the residual, also when it fails."""
        import logging

        from infra.deployed import contract_in_service
        from infra.operations.repair import repair_and_wait
        from infra.settings import settings
        from schemas.errors import MillraceError, TerminalError, TransientError
        from spark.conservation import audit as conservation_audit
        from spark.conservation import audit_log

        log, config, asked = logging.getLogger("airflow.task"), settings(), dag_run.conf or {}
        found: dict[str, Any] = {}
        failures: list[MillraceError] = []
        for stream in streams():
            try:
                if reason := nothing_settled(stream):
                    log.info("%s is left out: %s", stream, reason)
                    continue
                contract = contract_in_service(config, stream)
                account = conservation_audit.audit(config, contract, run_id, accept=bool(asked.get("accept")))
                if asked.get("repair") and account.residual:
                    repair_and_wait(config, contract, account)
                    account = conservation_audit.audit(config, contract, run_id, accept=bool(asked.get("accept")))
                audit_log.record(config.lake_uri, account)
                found[stream] = {"offsets": account.offsets, "gaps": account.gaps, "residual": account.residual}
                log.info("%s: %s", stream, found[stream])
                conservation_audit.require_conserved(account)
            except MillraceError as error:  # must not keep the other streams from their turn
                log.error("%s", error)
                failures.append(error)
        if failures:
            ti.xcom_push("return_value", found)
            again = any(isinstance(error, TransientError) for error in failures)
            raise (TransientError if again else TerminalError)("; ".join(map(str, failures)))
        return found

    audit() >> BatchJob(
        job="reconcile",
        report=published,
        unneeded=nothing_new,
        withheld=residual,
        inlets=assets("bronze", "speed"),
        outlets=assets("batch", "published"),
        trigger_rule=TriggerRule.ALL_DONE,  # what is conserved is published
    )
