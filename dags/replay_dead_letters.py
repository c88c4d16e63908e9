"""# replay_dead_letters

Gives dead letters another try, per stream and by the contract's policy for their error class. A letter in
`<stream>.dlq` goes to `<stream>.retry` when it is due (the ingest reads it there like any record), back to `.dlq`
while it is not, and to `<stream>.parked` when its attempts are used up or its class is for a person to decide. What
people decided about parked letters is done here as well. Each move is a Kafka transaction: a run that is killed, or run
twice, changes nothing.

**When.** Every five minutes, and with `millrace dead-letters replay`. The delay between attempts is in the letter
(`dl-next-due-at`), not in this schedule.

**Result.** The task of a stream returns the number of letters read, retried, waiting, parked, discarded and repeated
(dropped copies); and how many of all letters that were ever sent to `.retry` landed as events, became dead letters
again, or are on their way to the ingest (tab *XCom*, and a row in the view `replays`). Each single move is in the view
`moves`, each letter's status in `<stream>_letters`.

**When it fails.** No letter is lost: what was not committed is read again by the next run.

| message | do |
|---|---|
| *another replay … has taken over* | nothing: there were two runs at once, and the newer one does the work |
| *Kafka failed the replay*, *does not answer* | retried by itself; `millrace status` shows what is down |
| *bronze does not have them* | letters were sent, and the ingest did not read them: the message says how to go on |

Letters in `.parked` wait for a person: `millrace dead-letters list --status parked`, or the DAG
`decide_parked_letters`.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, task
from wiring import DEFAULTS, LETTERS_POOL, asset, at, duty, streams


def replayed(stream: str, run_id: str) -> dict[str, int]:
    """Replays the letters of `stream`, records their moves in `system/moves` and the run in `system/replays`, and
    returns the number of letters by what became of them, of the run and of all that were ever replayed (`arrivals`)."""
    from dataclasses import asdict
    from datetime import UTC, datetime
    from functools import partial

    from infra.deployed import contract_in_service
    from infra.settings import settings
    from producers.codec import registry, schema_exists
    from producers.moves import moves
    from producers.replay import replay
    from schemas.dead_letter import Identity
    from spark.lake import letter_moves
    from spark.serving.duck import connect

    config, now = settings(), datetime.now(UTC)
    contract = contract_in_service(config, stream)
    with connect(config, [contract]) as served:

        def record_moves() -> None:
            news = moves(contract, config, letter_moves.recorded_through(served, stream))
            letter_moves.record_moves(config.lake_uri, run_id, now, news)

        def decided() -> set[Identity]:
            record_moves()  # a run that was killed may have left some unrecorded
            return letter_moves.decided(served, stream)

        def moved_through() -> dict[str, int]:
            record_moves()
            return letter_moves.moved_through(served, stream)

        exists = schema_exists(contract, registry(config))
        stored = partial(letter_moves.stored, served, contract, config.lake_uri)
        report = replay(
            contract, config, now=now, schema_exists=exists, decided=decided, moved_through=moved_through, stored=stored
        )
        record_moves()
        counts = asdict(report) | letter_moves.arrivals(served, contract, config.lake_uri)
    letter_moves.record_replay(config.lake_uri, run_id, stream, now, counts)
    letter_moves.require_none_lost(contract, counts)
    return counts


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

    @task(pool=LETTERS_POOL)
    @duty
    def replay(stream: str, run_id: str) -> dict[str, int]:
        """Returns the number of letters by what became of them."""
        return replayed(stream, run_id)

    for stream in streams():
        moved = {"inlets": [asset("bronze", stream)], "outlets": [asset("letters", stream)]}
        replay.override(task_id=stream, **moved)(stream, run_id="{{ run_id }}")
