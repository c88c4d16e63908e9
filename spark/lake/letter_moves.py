"""What became of dead letters, recorded by the replay task alone and without a JVM.

`system/moves` has a row for each letter that a replay sent to `.retry` or `.parked`, with who decided it and why if a
person did: read back from Kafka by `producers.moves`, and appended together with its offset, so each move is there once
whatever is killed when. `system/replays` has a row for each run. Nothing is ever updated: what a letter's status is now
is the view `<stream>_letters`, which joins the moves and bronze.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from duckdb import DuckDBPyConnection

from schemas.contract.model import Contract
from schemas.errors import TerminalError
from spark.lake import contents, names, tables

Identity = tuple[str, str, bool]


class LettersLost(TerminalError):
    """Letters were sent to `.retry`, the ingest has passed them, and bronze does not have them."""


def recorded_through(served: DuckDBPyConnection, stream: str) -> dict[tuple[str, int], int]:
    """The last offset of each (topic, partition) whose moves are recorded."""
    rows = served.execute(
        'select topic, partition, max("offset") from moves where stream = ? group by all', [stream]
    ).fetchall()
    return {(topic, partition): offset for topic, partition, offset in rows}


def record_moves(lake_uri: str, run_id: str, at: datetime, moves: Iterable[Mapping[str, list[Any]]]) -> int:
    """Appends `moves` (columns of `producers.moves`, read after `recorded_through`), a commit each, and returns their
    number."""
    total = 0
    for columns in moves:
        count = len(columns["id"])
        contents.append_columns(lake_uri, "moves", {**columns, "run_id": [run_id] * count, "recorded_at": [at] * count})
        total += count
    return total


def decided(served: DuckDBPyConnection, stream: str) -> set[Identity]:
    """Who the letters were that people decided upon: `dl-id` and `dl-attempt` as they had them then, and True."""
    rows = served.execute(
        "select id, attempt - (status = 'replayed')::int from moves where stream = ? and decision is not null", [stream]
    ).fetchall()
    return {(number, str(attempt), True) for number, attempt in rows}


def arrivals(served: DuckDBPyConnection, contract: Contract, lake_uri: str) -> dict[str, int]:
    """What became of all the letters that were ever sent to `.retry`, by their place there: `landed` as an accepted row
    of bronze, `returned` as a rejected one, `in_flight` to the ingest, or `lost`: it has passed them, and they are not
    in bronze, nor were they sent once more by a repair of the audit."""
    # Bronze is scanned once: of two scans the later could know of a batch that the earlier did not.
    row = served.execute(
        """
        with arrived as materialized (
            select partition, "offset", original, attempt, bool_or(accepted) as accepted from delta_scan($bronze)
            where topic = $retry group by all
        ),
        passed as (select partition, max("offset") as through from arrived group by all),
        repaired as (select distinct original as id, attempt, true as elsewhere from arrived)
        select
            count(*) filter (accepted) as landed,
            count(*) filter (not accepted) as returned,
            count(*) filter (accepted is null and "offset" > coalesce(through, -1)) as in_flight,
            count(*) filter (accepted is null and "offset" <= through and elsewhere is null) as lost
        from moves left join arrived using (partition, "offset") left join passed using (partition)
            left join repaired on repaired.id = moves.id and repaired.attempt = moves.attempt
        where stream = $stream and topic = $retry
        """,
        {
            "stream": contract.stream,
            "retry": contract.retry_topic,
            "bronze": names.local_path(names.bronze(lake_uri, contract.stream)),
        },
    ).fetchone()
    return dict(zip(("landed", "returned", "in_flight", "lost"), row or (), strict=True))


def record_replay(lake_uri: str, run_id: str, stream: str, at: datetime, counts: Mapping[str, int]) -> None:
    """Appends a row to `system/replays`, at `at` (UTC): the `counts` of the run's letters by what became of them, and
    of `arrivals`."""
    given: dict[str, object] = {"run_id": run_id, "stream": stream, "recorded_at": at, **counts}
    contents.append_rows(lake_uri, "replays", [{name: given[name] for name in tables.SYSTEM["replays"].names}])


def require_none_lost(contract: Contract, counts: Mapping[str, int]) -> None:
    """Raises `LettersLost` if `arrivals` found any."""
    if counts["lost"]:
        raise LettersLost(
            f"{counts['lost']:,} letters of stream {contract.stream} were sent to {contract.retry_topic} and passed by "
            "the ingest, but bronze does not have them. The records are still on the topic: `millrace audit --repair` "
            "ingests what bronze lacks; the view moves has the offsets of the letters"
        )
