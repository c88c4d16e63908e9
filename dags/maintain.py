"""# maintain

Keeps the Delta tables small and quick: merges small files into large ones (OPTIMIZE) and removes the files that only
versions older than seven days need (VACUUM), so that time travel reaches back a week and disk use is bounded. What is
served does not change, except that published windows older than the contract's `retention: {batch: …}` are removed. The
batch tables are published again at their new versions, by a run called `maintain …`.

**When.** Daily at 03:30. A table is only ever written by one process, so each task waits for its turn among the tasks
that own the tables: `batch` (batch, staged, ledger, quality, publications) with the Spark jobs, `letters` (moves,
replays) with the replay of dead letters, `audits` with the audit of `reconcile`. Bronze and speed belong to the
streaming driver and are not touched here; it removes the published rows of speed that are older than `retention:
{speed: …}` itself.

**Result.** Each task returns the tables that changed, with the files that were merged and removed and the rows that
were too old (tab *XCom*). `millrace tables` says how much disk each table uses.

**When it fails.** Nothing is lost, and queries go on; tables only grow. A run that was killed may be run again.

| message | do |
|---|---|
| *holds rows that are not published* | a run of `reconcile` died: its table waits for the next one |
| anything about files or disk | make room: `millrace doctor` |
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, task
from wiring import AUDITS_POOL, BATCH_POOL, DEFAULTS, LETTERS_POOL, at, duty

with DAG(
    "maintain",
    description="Merges small files of the Delta tables, and removes what time travel does not reach",
    doc_md=__doc__,
    schedule=at("30 3 * * *"),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=6),
    default_args=DEFAULTS | {"retries": 1, "execution_timeout": timedelta(hours=2)},
    tags=["millrace", "upkeep"],
):

    @task
    @duty
    def maintain(whose: Any, run_id: str) -> dict[str, dict[str, Any]]:
        """Returns what was done to each table: the tables that changed, and those that were left alone, with why."""
        import logging
        from contextlib import nullcontext
        from datetime import UTC, datetime

        from infra.deployed import contracts_in_service
        from infra.locks.batch_lock import exclusive
        from infra.settings import settings
        from spark.lake import maintenance
        from spark.serving.duck import write_catalog

        config, log = settings(), logging.getLogger("airflow.task")
        done = {}
        contracts = contracts_in_service(config).values()
        # The pool holds off the jobs of Airflow; the lock, a backfill that somebody starts by hand.
        with exclusive(config, "batch") if whose == BATCH_POOL else nullcontext():
            for its in maintenance.maintain(config.lake_uri, contracts, whose, run_id, datetime.now(UTC)):
                log.info("%s", its)
                if its.compacted or its.removed or its.expired or its.left_alone:
                    done[its.table] = {
                        "joined": its.compacted, "removed": its.removed, "expired": its.expired,
                        "left_alone": its.left_alone,
                    }  # fmt: skip
            if whose == BATCH_POOL:
                write_catalog(config)
        return done

    for pool in (BATCH_POOL, LETTERS_POOL, AUDITS_POOL):
        maintain.override(task_id=pool, pool=pool)(pool, run_id="{{ run_id }}")
