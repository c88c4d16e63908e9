"""# replay_dead_letters

Gives dead letters another try, per stream and by the contract's policy for their error class. A letter in
`<stream>.dlq` goes to `<stream>.retry` when it is due (the ingest reads it there like any record), back to `.dlq`
while it is not, and to `<stream>.parked` when its attempts are used up or its class is for a person to decide. Each
move is a Kafka transaction: a run that is killed, or run twice, changes nothing.

**When.** Every five minutes. The delay between attempts is in the letter (`dl-next-due-at`), not in this schedule.

**Result.** The task of a stream returns the number of letters read, retried, waiting and parked (tab *XCom*, and one
row in the view `replays`).

**When it fails.** No letter is lost: what was not committed is read again by the next run.

| message | do |
|---|---|
| *another replay … has taken over* | two runs at once, say a manual one: the newer one does the work |
| *Kafka failed the replay*, *does not answer* | retried by itself; `millrace status` shows what is down |

Letters that end in `.parked` await a person: the view `<stream>_dead_letters` shows them with their reason.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, task
from wiring import DEFAULTS, at, duty, streams

with DAG(
    "replay_dead_letters",
    description="Dead letters that are due come back, exhausted ones are parked",
    doc_md=__doc__,
    schedule=at("*/5 * * * *"),
    catchup=False,
    max_active_runs=1,
    max_active_tasks=1,  # the table of replays has one writer at a time
    dagrun_timeout=timedelta(hours=1),
    default_args=DEFAULTS,
    tags=["millrace", "letters"],
):

    @task
    @duty
    def replay(stream: str, run_id: str) -> dict[str, int]:
        """Returns the number of letters by what became of them."""
        from dataclasses import asdict
        from datetime import UTC, datetime

        from infra.settings import settings
        from producers.codec import registry, schema_exists
        from producers.replay import replay
        from schemas.catalog import load
        from spark import replays

        config = settings()
        now = datetime.now(UTC)
        report = replay(load(config.contracts / stream), config, now=now, schema_exists=schema_exists(registry(config)))
        counts = asdict(report)
        replays.record(config.lake_uri, run_id, stream, now, counts)
        return counts

    for stream in streams():
        replay.override(task_id=stream)(stream, run_id="{{ run_id }}")
