"""How long a dashboard waits for its windows: `millrace bench query`.

The lake is built straight, from a seed, as the platform leaves it after thirty days of 100 million events. Batch
windows are published an hour at a time and kept up by `maintenance.maintain` each night, so that the hours of today are
small files and the others large ones. Of the partials only the open hours and as many before them are built: a row for
each micro-batch and key, ten minutes a file, with sketches that hold the events that such a row would have.

Timed is the query of a dashboard that is open (its connection stands, its publication is pinned), from SQL to Arrow;
apart from it, opening a connection.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import datasketches
import numpy
import pyarrow
from deltalake import DeltaTable, write_deltalake
from pyspark.sql.pandas.types import to_arrow_schema
from rich.console import Console
from rich.table import Table

from infra.settings import Settings
from schemas.contract.catalog import catalog
from schemas.contract.model import Aggregate, Contract
from spark.definitions import measures
from spark.definitions.windows import SECONDS
from spark.lake import contents, maintenance, names, table_schemas, tables
from spark.lake.publications import Publication
from spark.serving import snapshot
from spark.serving.duck import connect

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
CARRIERS = [f"C{number:02}" for number in range(16)]
OPEN_HOURS = 3
"""Hours of which the newest events are not final: the allowed lateness of two, and the one that runs."""

POOL = 512
"""Different partials, of which the speed layer's rows are made."""


@dataclass(frozen=True)
class Figures:
    """Milliseconds."""

    query: str
    rows: int
    p50: float
    p95: float


class Lake:
    """Windows of `departures_by_carrier`, `days` of them, of `events` events in all."""

    def __init__(self, home: Path, days: int, events: int, batches_a_minute: int, seed: int) -> None:
        self.settings = Settings(home=home)
        self.contract: Contract = catalog()["flights"]
        self.aggregate: Aggregate = self.contract.aggregate("departures_by_carrier")
        self.end = T0 + timedelta(days=days)
        self.final = self.end - OPEN_HOURS * HOUR
        self._random = numpy.random.default_rng(seed)
        self._events_a_minute = events / (days * 24 * 60 * len(CARRIERS))
        self._batches_a_minute = batches_a_minute
        self._place = (self.settings.lake_uri, "flights", self.aggregate.name)
        for contract in catalog().values():
            tables.create(self.settings.lake_uri, contract)

    def build(self, tell: Callable[[str], None]) -> None:
        hour, number = T0, 0
        while hour < self.final:
            self._publish(hour, number)
            hour, number = hour + HOUR, number + 1
            if hour.hour == 4:  # half an hour after it is due
                maintenance.maintain(self.settings.lake_uri, [self.contract], "batch", f"m{number}", hour)
                tell(f"{hour:%d} days are published and kept up")
        for ago in range(2 * OPEN_HOURS, 0, -1):
            self._ingest(self.end - ago * HOUR)

    def _publish(self, hour: datetime, number: int) -> None:
        parts = [self._windows(hour, window, f"r{number}") for window in self.aggregate.windows]
        path = names.local_path(names.batch(*self._place))
        write_deltalake(path, pyarrow.concat_tables(parts), mode="append")
        versions = {self.aggregate.name: int(DeltaTable(path).version())}
        rows = sum(part.num_rows for part in parts)
        published = Publication(f"r{number}", "flights", hour + HOUR, number, 1, rows, hour + HOUR, versions)
        contents.append_rows(self.settings.lake_uri, "publications", [published.row])

    def _windows(self, hour: datetime, window: str, run_id: str) -> pyarrow.Table:
        size = SECONDS[window]  # type: ignore[index]
        count = 3600 // size
        starts = int(hour.timestamp()) + numpy.repeat(numpy.arange(count) * size, len(CARRIERS))
        scheduled = self._random.poisson(self._events_a_minute * size / 60, len(starts))
        values = {
            "window": [window] * len(starts),
            "window_start": starts * 1_000_000,
            "window_end": (starts + size) * 1_000_000,
            "carrier": CARRIERS * count,
            "scheduled": scheduled,
            "departed": scheduled,
            "mean_dep_delay": self._random.normal(12, 4, len(starts)),
            "p95_dep_delay": self._random.normal(60, 9, len(starts)),
            "tail_numbers": numpy.minimum(scheduled, 600),
            "hour": [hour] * len(starts),
            "run_id": [run_id] * len(starts),
        }
        return _table(
            values, to_arrow_schema(table_schemas.batch_schema(self.contract, self.aggregate), timezone="UTC")
        )

    def _ingest(self, hour: datetime) -> None:
        """The partials of an hour's events, ten minutes a file, as compaction leaves them."""
        schema = to_arrow_schema(table_schemas.speed_schema(self.contract, self.aggregate), timezone="UTC")
        each = max(1, round(self._events_a_minute / self._batches_a_minute))
        pool = pyarrow.Table.from_pylist([self._partial(each) for _ in range(POOL)])
        for ten in range(6):
            start = int(hour.timestamp()) + ten * 600
            count = 10 * self._batches_a_minute
            rows = count * len(CARRIERS)
            minutes = numpy.repeat(numpy.arange(count) // self._batches_a_minute, len(CARRIERS))
            values = pool.take(self._random.integers(0, POOL, rows)).to_pydict() | {
                "window_start": (start + minutes * 60) * 1_000_000,
                "carrier": CARRIERS * count,
                "batch": numpy.repeat(start + numpy.arange(count), len(CARRIERS)),
            }
            write_deltalake(names.local_path(names.speed(*self._place)), _table(values, schema), mode="append")

    def _partial(self, events: int) -> dict[str, object]:
        delays = self._random.integers(-15, 120, events)
        tails = datasketches.hll_sketch(measures.HLL_LG_K, datasketches.HLL_8)
        quantiles = datasketches.kll_doubles_sketch(measures.KLL_K)
        for delay in delays:
            tails.update(int(self._random.integers(0, 600)))
            quantiles.update(float(delay))
        total = int(delays.sum())
        states = {"count_of_rows": events, "count_of_dep_delay": events, "sum_of_dep_delay": total}
        return states | {"kll_of_dep_delay": quantiles.serialize(), "hll_of_tailnum": tails.serialize_updatable()}


def _table(values: dict[str, object], schema: pyarrow.Schema) -> pyarrow.Table:
    arrays = [pyarrow.array(values[field.name]).cast(field.type) for field in schema]
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def dashboards(lake: Lake) -> dict[str, str]:
    since = f"timestamptz '{(lake.end - timedelta(hours=24)).replace(tzinfo=None)}+00'"
    view = f"{lake.aggregate.name}_5m where window_start >= {since}"
    return {
        "all measures": f"select * from {view} order by window_start, carrier",
        "without sketches": (
            f"select window_start, carrier, scheduled, departed, mean_dep_delay, final from {view} order by 1, 2"
        ),
        "final windows": f"select * from {view} and final order by window_start, carrier",
    }


def timed(work: Callable[[], int], times: int) -> tuple[int, list[float]]:
    """Rows, and milliseconds of each of `times` runs after one that is not counted."""
    rows, found = work(), []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append((time.perf_counter() - started) * 1000)
    return rows, found


def measure(lake: Lake, times: int) -> list[Figures]:
    contracts = [lake.contract]

    def opened() -> int:
        pinned = snapshot.now(lake.settings.lake_uri, contracts)
        connect(lake.settings, contracts, pinned).close()
        return 0

    found = [_figures("open a connection", *timed(opened, max(3, times // 10)))]
    with connect(lake.settings, contracts, snapshot.now(lake.settings.lake_uri, contracts)) as served:
        served.execute("set threads = 2")

        def rows(sql: str) -> int:
            return int(served.execute(sql).to_arrow_table().num_rows)

        for name, sql in dashboards(lake).items():
            found.append(_figures(name, *timed(partial(rows, sql), times)))
    return found


def _figures(name: str, rows: int, milliseconds: list[float]) -> Figures:
    p50, p95 = numpy.percentile(milliseconds, [50, 95])
    return Figures(name, rows, round(float(p50), 1), round(float(p95), 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--events", type=int, default=100_000_000)
    parser.add_argument("--batches", type=int, default=30, help="micro-batches a minute")
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    console = Console(stderr=given.json)
    home = Path(tempfile.mkdtemp(prefix="millrace-bench-query-"))
    try:
        lake = Lake(home, given.days, given.events, given.batches, given.seed)
        with console.status("building") as status:
            lake.build(status.update)
        found = measure(lake, given.times)
        files = {
            one.table: one.files
            for one in maintenance.usage(lake.settings.lake_uri, [lake.contract])
            if one.table.endswith(lake.aggregate.name)
        }
    finally:
        shutil.rmtree(home)
    table = Table(
        "query", "rows", "p50 ms", "p95 ms", title=f"last 24 h of {given.events:,} events", title_justify="left"
    )
    for one in found:
        table.add_row(one.query, f"{one.rows:,}", f"{one.p50:,}", f"{one.p95:,}")
    console.print(table)
    console.print(f"files: {files}")
    if given.json:
        sys.stdout.write(json.dumps(vars(given) | {"files": files, "figures": [asdict(one) for one in found]}) + "\n")


if __name__ == "__main__":
    main()
