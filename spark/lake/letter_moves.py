"""The records of what replays did with dead letters. The replay task alone writes them, without a JVM.

`system/moves` has a row for each letter that a replay sent to `.retry` or `.parked`, with who decided it and why if a
person did. Moves are read back from Kafka by `producers.moves` and appended together with their offsets, so that each
is there once, whatever is killed when. `system/replays` has a row for each run. Nothing is ever updated: the view
`<stream>_letters` derives the present status of each letter from the moves and bronze.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from duckdb import DuckDBPyConnection

from schemas.contract.model import TOMBSTONE, Contract
from schemas.dead_letter import Identity, Place, Stored
from schemas.errors import TerminalError
from spark.lake import contents, names, table_schemas


class LettersLost(TerminalError):
    """Letters were sent to `.retry`, the ingest has passed them, and bronze does not have them."""


def recorded_through(served: DuckDBPyConnection, stream: str) -> dict[tuple[str, int], int]:
    """Returns, for each (topic, partition), the offset of the last recorded move. `served` is a connection to the
    served views."""
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
    """Returns the identities of the letters that people decided upon: `dl-id` and `dl-attempt` as the letters had them
    then, and True. One that could not be sent was parked with an attempt more, like one that was."""
    rows = served.execute(
        "select id, attempt - (status <> 'discarded')::int from moves where stream = ? and decision is not null",
        [stream],
    ).fetchall()
    return {(number, str(attempt), True) for number, attempt in rows}


def moved_through(served: DuckDBPyConnection, stream: str) -> dict[str, int]:
    """Returns the highest attempt with which each letter was moved, by its id: letters of that attempt, or of a lower
    one, about which nobody decided, are not in `.dlq` any more, or only as copies."""
    rows = served.execute(
        "select id, max(attempt - (status = 'replayed')::int) from moves where stream = ? group by all", [stream]
    ).fetchall()
    return dict(rows)


def stored(
    served: DuckDBPyConnection, contract: Contract, lake_uri: str, places: Sequence[Place]
) -> dict[Place, Stored]:
    """Returns the rejected records at `places` as bronze has them, by their place; those that it has not are left
    out."""
    wanted = [{"topic": topic, "partition": partition, "offset": offset} for topic, partition, offset in set(places)]
    rows = served.execute(
        """
        with wanted as (select unnest($wanted, recursive := true))
        select topic, partition, "offset", key, value, headers from delta_scan($bronze)
            join wanted using (topic, partition, "offset")
        where not accepted
        """,
        {"wanted": wanted, "bronze": names.local_path(names.bronze(lake_uri, contract.stream))},
    ).fetchall()
    return {
        (topic, partition, offset): Stored(
            key, value, tuple((one["key"], one["value"]) for one in headers or ()), topic == contract.retry_topic
        )
        for topic, partition, offset, key, value, headers in rows
    }


def arrivals(served: DuckDBPyConnection, contract: Contract, lake_uri: str) -> dict[str, int]:
    """Returns how many of the letters that were ever sent to `.retry` have `landed` in bronze as an accepted row
    or a tombstone that is skipped, have `returned` as a rejected row, are `in_flight` to the ingest, or are `lost`.

    A letter is lost if the ingest has passed its offset on `.retry` and bronze has no row for it, unless a repair sent
    the letter once more.
    """
    # Bronze is scanned once, because a second scan could see a micro-batch that the first one did not.
    row = served.execute(
        """
        with arrived as materialized (
            select partition, "offset", original, attempt, bool_or(accepted or error_class = $tombstone) as accepted
                from delta_scan($bronze)
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
            "tombstone": TOMBSTONE,
            "bronze": names.local_path(names.bronze(lake_uri, contract.stream)),
        },
    ).fetchone()
    return dict(zip(("landed", "returned", "in_flight", "lost"), row or (), strict=True))


def record_replay(lake_uri: str, run_id: str, stream: str, at: datetime, counts: Mapping[str, int]) -> None:
    """Appends a row to `system/replays`: the run, the time `at` (UTC), and the `counts` of the run's letters by what it
    did with them, together with the counts of `arrivals`."""
    given: dict[str, object] = {"run_id": run_id, "stream": stream, "recorded_at": at, **counts}
    contents.append_rows(lake_uri, "replays", [{name: given[name] for name in table_schemas.SYSTEM["replays"].names}])


def require_none_lost(contract: Contract, counts: Mapping[str, int]) -> None:
    """Raises `LettersLost` if `arrivals` counted lost letters. The message says what to do."""
    if counts["lost"]:
        raise LettersLost(
            f"{counts['lost']:,} letters of stream {contract.stream} were sent to {contract.retry_topic} and passed by "
            "the ingest, but bronze does not have them. The records are still on the topic: `millrace audit --repair` "
            "ingests what bronze lacks; the view moves has the offsets of the letters"
        )
