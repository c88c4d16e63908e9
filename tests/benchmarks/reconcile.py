"""What the exact batch and the audit before it cost: an hour of many events, and one late event in a long history:
`millrace bench reconcile`.

The lake is written as the streaming driver would have written it, from seeded readings: bronze, partials, and a commit
log that says that all of it is settled; one reading in a thousand is there twice. Measured is the job as Airflow starts
it, from its start to its end: Python, recomputation, ledger, Great Expectations, publication. What it published is
compared with Polars over the generator's own arrays. Of the audit it is the proof that bronze has each offset once,
with no earlier proof to go on from; there is no broker to ask, and no gap to ask it about.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import psutil
import pyarrow
import pyarrow.compute
from deltalake import write_deltalake
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML

from infra.settings import PROJECT, Settings
from schemas.contract.catalog import load as load_contract
from schemas.contract.model import Contract
from spark.conservation import accounting
from spark.conservation.bronze_coordinates import BronzeCoordinates
from spark.lake import batch_numbers, names, table_schemas, tables
from spark.serving.duck import connect
from spark.speed.checkpoint import generations
from tests.benchmarks import readings
from tests.support import stacks

BATCH = 1_000_000
"""Rows of a micro-batch."""
REPEATED = 1000
"""One reading in so many comes again in the next batch."""
HOUR = 3_600_000_000
BEGINNING = int(readings.columns(0, 1)["event_time"][0])
MEASURES = [
    {"name": "p95", "kind": "quantile", "of": "amount", "rank": 0.95},
    {"name": "charges", "kind": "distinct", "of": "battery"},
]
"""Beside those of the contract: what costs the exact batch most."""
IDENTITIES: dict[str, dict[str, Any]] = {
    "id with the time": {"event_id": ["id", "event_time"]},
    "id alone": {"event_id": ["id"], "repeats_within": "1d"},
}
"""What the identity of a reading is. The hour of those with an id alone comes after the history."""
SAMPLE_SECONDS = 0.1
PLACE = (readings.STREAM, 0)
"""Topic and partition of all records."""


@dataclass(frozen=True)
class Figures:
    """What a run of the job needed: CPU seconds and peak memory (MiB) of Python and JVM together."""

    seconds: float
    cpu_seconds: float
    peak_rss_mib: int


class Lake:
    """The lake of the readings stream in `config`, which grows by batches."""

    def __init__(self, config: Settings, contract: Contract) -> None:
        self._config, self.contract = config, contract
        [self._aggregate] = contract.aggregates
        self._next = 0
        self.offsets = 0
        """Where the topic's only partition ends."""
        tables.create(config.lake_uri, contract)

    def add(self, numbers: np.ndarray, times: np.ndarray) -> None:
        """A settled batch of the readings of these numbers at these times (microseconds)."""
        batch_id, self._next = self._next, self._next + 1
        batch = batch_numbers.batch_number(1, batch_id)
        frame = table(numbers, times)
        rows = frame.append_column("batch", pyarrow.array(np.full(len(numbers), batch)))
        rows = rows.append_column("topic", pyarrow.array([PLACE[0]] * len(numbers)))
        rows = rows.append_column("partition", pyarrow.array(np.full(len(numbers), PLACE[1], np.int32)))
        rows = rows.append_column("offset", pyarrow.array(self.offsets + np.arange(len(numbers))))
        self.offsets += len(numbers)
        rows = rows.append_column("attempt", pyarrow.array(np.zeros(len(numbers), np.int32)))
        rows = rows.append_column("accepted", pyarrow.array(np.ones(len(numbers), bool)))
        place = (self._config.lake_uri, self.contract.stream)
        self._append(names.bronze(*place), rows, table_schemas.bronze_schema(self.contract))
        partials = (
            duckdb.connect()
            .execute(
                "select time_bucket(interval 1 minute, event_time) as window_start, device, count(*) as count_of_rows, "
                "sum(amount)::decimal(38,0) as sum_of_amount, min(amount) as min_of_amount, "
                f"max(amount) as max_of_amount, {batch}::bigint as batch from frame group by all"
            )
            .to_arrow_table()
        )
        self._append(
            names.speed(*place, self._aggregate.name),
            partials,
            table_schemas.speed_schema(self.contract, self._aggregate),
        )
        commits = Path(names.local_path(generations.location(self._config, self.contract.stream, 1))) / "commits"
        commits.mkdir(parents=True, exist_ok=True)
        (commits / str(batch_id)).touch()

    def _append(self, uri: str, rows: pyarrow.Table, schema: StructType) -> None:
        wanted = to_arrow_schema(schema, timezone="UTC")
        columns = [
            rows[field.name].cast(field.type) if field.name in rows.column_names
            else pyarrow.nulls(rows.num_rows, field.type)
            for field in wanted
        ]  # fmt: skip
        write_deltalake(names.local_path(uri), pyarrow.Table.from_arrays(columns, schema=wanted), mode="append")


def table(numbers: np.ndarray, times: np.ndarray) -> pyarrow.Table:
    """The readings of these numbers, but at these times."""
    first = int(numbers.min())
    made = readings.columns(first, int(numbers.max()) + 1 - first)
    own = numbers - first
    names = pyarrow.array([f"device-{number:04d}" for number in range(readings.DEVICES)])
    return pyarrow.table(
        {
            "id": numbers,
            "device": pyarrow.compute.take(names, pyarrow.array(made["device"][own])),
            "event_time": pyarrow.array(times).cast(pyarrow.timestamp("us", "UTC")),
            "amount": made["amount"][own],
            "battery": made["battery"][own].astype(np.int32),
        }
    )


def batches(events: int, hours: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers and times of `events` readings, spread evenly over `hours`, with their repeats."""
    for first in range(0, events, BATCH):
        numbers = np.arange(first, min(first + BATCH, events), dtype=np.int64)
        again = numbers[:0] if first == 0 else np.arange(first - BATCH, first, REPEATED, dtype=np.int64)
        mine = np.concatenate([numbers, again])
        yield mine, BEGINNING + mine * (hours * HOUR) // events


def run(config: Settings, run_id: str) -> Figures:
    """Runs the job. Raises RuntimeError with the end of its log if it fails."""
    log = config.home / f"{run_id}.log"
    command = [sys.executable, "spark/jobs/reconcile.py", "--run-id", run_id, "--stream", readings.STREAM]
    began = time.monotonic()
    with log.open("w") as out:
        job = subprocess.Popen(command, cwd=PROJECT, stdout=out, stderr=out)
        cpu: dict[int, float] = {}
        peak = 0
        while job.poll() is None:
            memory = 0
            for process in _family(job.pid):
                try:
                    cpu[process.pid] = sum(process.cpu_times()[:2])
                    memory += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, memory)
            time.sleep(SAMPLE_SECONDS)  # the sampling interval, not a wait for something
    if job.returncode:
        raise RuntimeError(f"{run_id} failed:\n{log.read_text()[-4000:]}")
    seconds = time.monotonic() - began
    return Figures(round(seconds, 1), round(sum(cpu.values()), 1), peak // 2**20)


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def one_hour(
    config: Settings, contract: Contract, events: int, console: Console, days: int = 0, each_hour: int = 0
) -> dict[str, object]:
    """The cost of an hour of `events`, after `days` of published history with `each_hour` events in an hour."""
    lake = Lake(config, contract)
    for day in range(days, 0, -1):
        numbers = events + (days - day) * 24 * each_hour + np.arange(24 * each_hour, dtype=np.int64)
        lake.add(numbers, BEGINNING - day * 24 * HOUR + (numbers - numbers[0]) * HOUR // each_hour)
    if days:
        lake.add(np.array([events + days * 24 * each_hour]), np.array([BEGINNING]))
        run(config, "history")
    for numbers, times in batches(events, 1):
        lake.add(numbers, times)
    lake.add(np.array([2 * events]), np.array([BEGINNING + 3 * HOUR]))  # closes the hour
    console.print(f"one hour of {events:,} events is written")
    seconds = audited(config, contract, lake.offsets)
    figures = run(config, "one-hour")
    windows = compared(config, contract, events, days * 24 * each_hour + events if days else None)
    return {
        "events": events,
        **asdict(figures),
        "cpu_us_per_event": round(figures.cpu_seconds * 1e6 / events, 2),
        "windows_equal": windows,
        "audit_seconds": seconds,
    }


def audited(config: Settings, contract: Contract, offsets: int) -> float:
    """The seconds in which it is found that bronze has each of so many offsets once. Raises RuntimeError if it is
    not."""
    began = time.monotonic()
    with BronzeCoordinates(config.lake_uri, contract.stream) as bronze:
        found, rows = accounting.held(bronze.breaks({PLACE: offsets}, -1)), bronze.all_rows()
    seconds = time.monotonic() - began
    if (found, rows) != ({PLACE: accounting.BronzeOffsets(0, offsets - 1)}, offsets):
        raise RuntimeError(f"of {offsets:,} offsets bronze has {found} in {rows:,} rows")
    return round(seconds, 1)


def compared(config: Settings, contract: Contract, events: int, also: int | None = None) -> int:
    """The number of published windows of the hour, all equal to the generator's as Polars computes them. `also` is a
    reading more, at the beginning of the hour. Raises RuntimeError if one is not."""
    numbers = np.arange(events, dtype=np.int64)
    made = pl.DataFrame(table(numbers, BEGINNING + numbers * HOUR // events))
    if also is not None:
        made = pl.concat([made, pl.DataFrame(table(np.array([also]), np.array([BEGINNING])))])
    equal = 0
    with connect(config, [contract]) as served:
        for window in ("1m", "5m", "1h"):
            position = (pl.len() * 95 + 99) // 100 - 1  # the ceiling of 0.95 n, from 0
            oracle = made.group_by(pl.col("event_time").dt.truncate(window).alias("window_start"), "device").agg(
                pl.len().cast(pl.Int64).alias("readings"),
                pl.col("amount").cast(pl.Int64).sum().alias("total"),
                pl.col("amount").min().cast(pl.Int64).alias("least"),
                pl.col("amount").max().cast(pl.Int64).alias("most"),
                pl.col("amount").sort().get(position).cast(pl.Int64).alias("p95"),
                pl.col("battery").n_unique().cast(pl.Int64).alias("charges"),
            )
            ours = served.execute(
                f"""
                select window_start, device, readings, total::bigint as total, least::bigint as least,
                    most::bigint as most, p95::bigint as p95, charges
                from amounts_by_device_{window} where final and epoch_us(window_start) between {BEGINNING}
                    and {BEGINNING + HOUR - 1}
                """
            ).pl()
            both = oracle.join(ours, on=oracle.columns, how="inner")
            if not len(oracle) == len(ours) == len(both):
                raise RuntimeError(
                    f"windows of {window}: oracle {len(oracle)}, published {len(ours)}, equal {len(both)}"
                )
            equal += len(both)
    return equal


def late_event(config: Settings, contract: Contract, days: int, each_hour: int, console: Console) -> Figures:
    """The cost of one late event in a published history of `days`."""
    lake = Lake(config, contract)
    events = days * 24 * each_hour
    for day in range(days):
        numbers = np.arange(day * 24 * each_hour, (day + 1) * 24 * each_hour, dtype=np.int64)
        lake.add(numbers, BEGINNING + numbers * HOUR // each_hour)
    lake.add(np.array([events]), np.array([BEGINNING + days * 24 * HOUR + 2 * HOUR]))
    run(config, f"history-of-{days}")
    console.print(f"{days} days with {events:,} events are published")
    lake.add(np.array([events + 1]), np.array([BEGINNING + 12 * HOUR + 1]))
    figures = run(config, f"late-in-{days}")
    with connect(config, [contract]) as served:
        causes = served.execute(
            "select cause, count(*), (select hours from publications where run_id = $1) from ledger where run_id = $1 "
            "group by all", [f"late-in-{days}"]
        ).fetchall()  # fmt: skip
    if [(cause, hours) for cause, _, hours in causes] != [("late", 1)]:
        raise RuntimeError(f"one late event made {causes}")
    return figures


def bench(events: int, days: int, each_hour: int, console: Console) -> dict[str, Any]:
    """Runs the benchmark and returns its figures. Raises RuntimeError when a published number is wrong."""
    with stacks.running("millrace-bench-", readings.CONTRACTS, ["postgres"]) as config:
        late: dict[str, dict[int, Figures]] = {}
        hours = {}
        for identity, changes in IDENTITIES.items():
            contract = _with(config, changes)
            late[identity] = {}
            for history in (1, days):
                late[identity][history] = late_event(config, contract, history, each_hour, console)
                _forget(config)
            before = {} if contract.event_time in contract.event_id else {"days": days, "each_hour": each_hour}
            hours[identity] = one_hour(config, contract, events, console, **before)
            _forget(config)
    return {
        "one_hour": hours,
        "late_event": {
            identity: {str(history): asdict(figures) for history, figures in found.items()}
            for identity, found in late.items()
        },
        "each_hour": each_hour,
    }


def _with(config: Settings, changes: dict[str, Any]) -> Contract:
    """The contract with more measures and the `changes`."""
    path = config.contracts / readings.STREAM / "stream.yaml"
    yaml = YAML(typ="safe")
    document = yaml.load(readings.CONTRACTS / readings.STREAM / "stream.yaml") | changes
    document["aggregates"][0]["measures"] += MEASURES
    yaml.dump(document, path)
    return load_contract(path.parent)


def _forget(config: Settings) -> None:
    for uri in (config.lake_uri, config.checkpoints_uri):
        shutil.rmtree(names.local_path(uri))


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title="reconcile")
    for name in ("", "events", "seconds", "CPU seconds", "CPU µs per event", "peak MiB"):
        table.add_column(name, justify="right" if name else "left")
    for identity, hour in result["one_hour"].items():
        table.add_row(
            f"one hour, {identity}", f"{hour['events']:,}", f"{hour['seconds']}", f"{hour['cpu_seconds']}",
            f"{hour['cpu_us_per_event']}", f"{hour['peak_rss_mib']:,}",
        )  # fmt: skip
    for identity, found in result["late_event"].items():
        for days, late in found.items():
            table.add_row(
                f"one late event in {days} days, {identity}", "1", f"{late['seconds']}", f"{late['cpu_seconds']}", "",
                f"{late['peak_rss_mib']:,}",
            )  # fmt: skip
    console.print(table)
    for identity, hour in result["one_hour"].items():
        equal, seconds = f"{hour['windows_equal']:,}", hour["audit_seconds"]
        console.print(f"{identity}: {equal} windows equal; the audit proves the hour in {seconds} s")


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of the exact batch.")
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--each-hour", type=int, default=2000, help="events in each hour of the history")
    parser.add_argument("--json", action="store_true", help="end with one JSON document")
    given = parser.parse_args()
    console = Console(stderr=given.json)
    result = bench(given.events, given.days, given.each_hour, console)
    if given.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        show(result, console)


if __name__ == "__main__":
    main()
