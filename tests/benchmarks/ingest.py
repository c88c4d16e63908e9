"""How fast the whole ingest catches up, beside the job that most people would write: `millrace bench ingest`.

That job runs twice, in Millrace's own session and with everything left at its default (`tests.benchmarks.textbook`).
All read the same topic on the same machine in the same run, one after the other, each in a JVM that has taken as many
records before: a driver runs for weeks, and its first minutes are the compiler's. Timed is from the start of the query
to the end of its last batch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import pyarrow
from confluent_kafka.admin import AdminClient
from confluent_kafka.schema_registry import SchemaRegistryClient
from rich.console import Console
from rich.table import Table

from infra.local.supervisor import Supervisor
from infra.operations.provisioning import provision_subject, provision_topics
from infra.settings import PROJECT, Settings
from schemas.contract.catalog import contract_in
from schemas.contract.model import Contract
from spark.lake import names
from spark.serving.duck import connect
from tests.benchmarks import readings, textbook
from tests.support import stacks

RIVALS = ("textbook", "defaults")

HEAP = "1600m"
SAMPLE_SECONDS = 0.2


@dataclass(frozen=True)
class Figures:
    """What one contestant needed for the timed part. CPU is microseconds per event, memory the peak of its processes
    (Python and JVM) in MiB."""

    seconds: float
    events_per_second: float
    cpu_us_per_event: float
    broker_cpu_us_per_event: float
    peak_rss_mib: int


class Contestant:
    """A running `tests.benchmarks.contestant`."""

    def __init__(self, name: str, broker: psutil.Process, log: Path) -> None:
        self._broker = broker
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.contestant", name],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
        )
        self._log = log

    def catch_up(self, events: int) -> Figures:
        """Has it take what the topic holds, which is `events` more than last time. Raises RuntimeError if it ends."""
        processes = self._processes()
        before, broker_before = _cpu(processes), _cpu([self._broker])
        with _peak(self._processes) as peak:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the contestant ended; see {self._log}:\n{self._log.read_text()[-3000:]}")
        seconds = json.loads(answer)["seconds"]
        return Figures(
            seconds=round(seconds, 2),
            events_per_second=round(events / seconds),
            cpu_us_per_event=round((_cpu(self._processes()) - before) / events * 1e6, 2),
            broker_cpu_us_per_event=round((_cpu([self._broker]) - broker_before) / events * 1e6, 2),
            peak_rss_mib=max(peak) >> 20,
        )

    def end(self) -> None:
        for process in reversed(self._processes()):
            process.kill()
        self._process.wait(30)

    def _processes(self) -> list[psutil.Process]:
        me = psutil.Process(self._process.pid)
        return [me, *me.children(recursive=True)]


def _cpu(processes: list[psutil.Process]) -> float:
    """Seconds of CPU that the processes have used so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@contextmanager
def _peak(processes: Callable[[], list[psutil.Process]]) -> Iterator[list[int]]:
    """Collects the resident bytes of all `processes()` while it is open."""
    found: list[int] = [0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE_SECONDS):
            try:
                found.append(sum(process.memory_info().rss for process in processes()))
            except psutil.NoSuchProcess:
                continue

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def bench(events: int, partitions: int, console: Console) -> dict[str, object]:
    """Runs the benchmark and returns its figures: those of the ingest, `textbook`'s and `defaults`', `ratio` to either,
    `rows_equal`. Raises RuntimeError when the results of the jobs, or of the generator, differ."""
    warm = max(100_000, events)
    os.environ["MILLRACE_STREAM_MEMORY"] = HEAP
    with stacks.running("millrace-bench-", readings.CONTRACTS, ["kafka", "registry"]) as config:
        contract = _with_partitions(contract_in(config.contracts, readings.STREAM), partitions)
        provision_topics(AdminClient(config.kafka_client("provision")), contract)
        provision_subject(SchemaRegistryClient(config.registry), contract)
        broker = psutil.Process(Supervisor(config).information()["kafka"]["pid"])
        sides = {name: Contestant(name, broker, config.log_dir / f"{name}.log") for name in (*RIVALS, "millrace")}
        try:
            console.print(f"{warm:,} readings to warm up")
            readings.load(config, contract, 0, warm)
            for name, side in sides.items():
                console.print(f"{name}: {side.catch_up(warm).events_per_second:,} events/s")
            console.print(f"{events:,} readings to be timed")
            readings.load(config, contract, warm, events)
            figures = {}
            for name, side in sides.items():
                figures[name] = side.catch_up(events)
                console.print(f"{name}: {figures[name].events_per_second:,} events/s")
        finally:
            for side in sides.values():
                side.end()
        compared = _compared(config, contract, warm + events)
    ours = figures["millrace"]
    ratios = {name: round(ours.events_per_second / figures[name].events_per_second, 2) for name in RIVALS}
    return {
        "events": events,
        "partitions": partitions,
        **asdict(ours),
        **{name: asdict(figures[name]) for name in RIVALS},
        "ratio": ratios["textbook"],
        "ratio_to_defaults": ratios["defaults"],
        "rows_equal": compared,
    }


def _with_partitions(contract: Contract, partitions: int) -> Contract:
    return contract.model_copy(update={"topic": contract.topic.model_copy(update={"partitions": partitions})})


def _compared(config: Settings, contract: Contract, total: int) -> int:
    """The number of windows in which the served view, both textbook jobs and the generator's own arrays agree. Raises
    RuntimeError if there is any other, or if bronze has not each reading once."""
    chunk = readings.columns(0, total)
    with connect(config, [contract]) as connection:
        connection.register("generated", pyarrow.table(chunk))
        ids = connection.execute(f"select count(*), count(distinct id) from {contract.stream}_events").fetchone()
        if ids != (total, total):
            raise RuntimeError(f"bronze has (rows, distinct ids) {ids} of {total:,} readings")
        equal = 0
        for window, size in {"1m": 60, "5m": 300, "1h": 3600}.items():
            theirs, defaults = (names.local_path(textbook.place(config, name, window)) for name in RIVALS)
            rows = connection.execute(
                f"""
                with oracle as (
                  select to_timestamp(event_time // 1000000 // {size} * {size}) as window_start,
                         format('device-{{:04d}}', device) as device,
                         count(*) as readings, sum(amount)::bigint as total, min(amount) as least, max(amount) as most
                  from generated group by 1, 2
                ),
                ours as (select window_start, device, readings, total, least, most
                         from amounts_by_device_{window}),
                theirs as (select window_start, device, readings, total, least, most from delta_scan('{theirs}')),
                defaults as (select window_start, device, readings, total, least, most from delta_scan('{defaults}'))
                select (select count(*) from oracle),
                       (select count(*) from (select * from oracle intersect select * from ours)),
                       (select count(*) from (select * from oracle intersect select * from theirs)),
                       (select count(*) from (select * from oracle intersect select * from defaults)),
                       (select count(*) from ours), (select count(*) from theirs), (select count(*) from defaults)
                """
            ).fetchone()
            assert rows is not None
            if len(set(rows)) != 1:
                raise RuntimeError(f"windows of {window}: (oracle, those equal to it, all), of ours, {RIVALS}: {rows}")
            equal += rows[0]
    return equal


def show(result: dict[str, object], console: Console) -> None:
    table = Table(title=f"ingest of {result['events']:,} events, {result['partitions']} partitions")
    table.add_column("")
    table.add_column("millrace", justify="right")
    rivals: list[dict[str, float]] = []
    for name in RIVALS:
        table.add_column(name, justify="right")
        found = result[name]
        assert isinstance(found, dict)
        rivals.append(found)
    for figure in rivals[0]:
        table.add_row(figure.replace("_", " "), f"{result[figure]:,}", *(f"{rival[figure]:,}" for rival in rivals))
    console.print(table)
    console.print(
        f"ratio {result['ratio']}, to defaults {result['ratio_to_defaults']}, {result['rows_equal']:,} windows equal"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Catch-up of the ingest beside a textbook Spark job.")
    parser.add_argument("--events", type=int, default=4_000_000)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="end with one JSON document")
    given = parser.parse_args()
    console = Console(stderr=given.json)
    result = bench(given.events, given.partitions, console)
    if given.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        show(result, console)


if __name__ == "__main__":
    main()
