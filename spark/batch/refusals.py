"""The refusals log: hours that closed and were kept back. The served views mark the speed rows in their place
`withheld`, until a run publishes them. Written without a JVM."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime

import duckdb
from duckdb_extensions import import_extension

from schemas.contract.model import Contract
from spark.batch.plan import TouchedHour, plan
from spark.definitions.times import BEGINNING_OF_TIME, floor_hour
from spark.lake import contents, names
from spark.lake.publications import Publication, publications


def withhold(lake_uri: str, contract: Contract, run_id: str, through: int, reason: str) -> datetime | None:
    """Records that the hours which a reconciliation up to batch `through` would have published for the first time were
    kept back before it began, and why. Returns their end (UTC), None if no new hour has closed."""
    last = next(reversed(publications(lake_uri, contract.stream)), None)
    final = _final_through(lake_uri, contract, through, last)
    if final is None or (last and final <= last.final_through):
        return None
    row = {"run_id": run_id, "stream": contract.stream, "final_through": final, "reason": reason}
    contents.append_rows(lake_uri, "refusals", [row | {"recorded_at": datetime.now(UTC)}])
    return final


def _final_through(lake_uri: str, contract: Contract, through: int, last: Publication | None) -> datetime | None:
    """How far the plan of a reconciliation makes the stream final, from the newest of its accepted rows."""
    import_extension("delta")
    with closing(duckdb.connect()) as connection:
        connection.execute("load delta; set timezone = 'UTC'")
        path = names.local_path(names.bronze(lake_uri, contract.stream)).replace("'", "''")
        found = connection.execute(
            f"select max(least(event_time, kafka_timestamp)) from delta_scan('{path}') "
            "where accepted and batch <= $through and event_time >= $since",
            {"through": through, "since": last.final_through if last else BEGINNING_OF_TIME},
        ).fetchone()
    newest: datetime | None = found[0] if found else None
    touched = [] if newest is None else [TouchedHour(floor_hour(newest), newest.astimezone(UTC), 1)]
    return plan(touched, through, last, contract.allowed_lateness).final_through
