"""From handing an event to the producer until the served view shows it: `millrace bench freshness`.

Readings are sent at a steady rate while the streaming driver runs as it does on the platform. Twenty times a second one
of them is a probe: it has a device of its own, so that the view itself says whether it is in. The view is asked again
as soon as it has answered, by DuckDB, as people do; what it takes to answer is a part of the figure. Producer, driver
and reader are processes of their own on this machine, so one clock counts. In the end every event that was sent must
be in the view.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fastavro
import numpy as np
import psutil
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from duckdb import DuckDBPyConnection
from rich.console import Console
from rich.table import Table

from infra.driver.waiting import wait_until_running
from infra.locks.driver_lease import Lease
from infra.operations.provisioning import provision_subject, provision_topics
from infra.settings import PROJECT, Settings, settings
from producers.codec import registry, schema_id
from producers.produce import OPTIONS
from schemas.contract.catalog import contract_in
from schemas.wire import header
from spark.serving.duck import connect
from tests.benchmarks import readings
from tests.support import stacks

RATES = (20_000, 1_000)
PROBES = 20
"""Each second."""
TICKS = 100
"""Each second: a tick's readings are sent together."""
PAUSE = 0.1
"""Seconds between an answer of the view and the next question."""
PATIENCE = 60.0
"""Seconds that events may take to be seen, in the end."""


def bench(rates: list[int], seconds: float, warm: float, idle: float, console: Console) -> dict[str, Any]:
    """Measures each rate, and then how much the driver works when nothing comes for `idle` seconds. Raises
    RuntimeError if an event is not seen, or is seen twice."""
    found: list[dict[str, Any]] = []
    with (
        stacks.running("millrace-freshness-", readings.CONTRACTS, ["kafka", "registry", "postgres"]) as config,
        multiprocessing.get_context("spawn").Pool(1) as sender,
    ):
        contract = contract_in(config.contracts, readings.STREAM)
        provision_topics(AdminClient(config.kafka_client("provision")), contract)
        provision_subject(registry(config), contract)
        with _driver(config) as driver, connect(config, [contract]) as served:
            total = 0
            for phase, rate in enumerate(rates):
                for part, length in (("warm", warm), ("timed", seconds)):
                    prefix, before, began = f"probe-{phase}-{part}-", _cpu(driver), time.monotonic()
                    sending = sender.apply_async(_send, (rate, length, prefix))
                    waited = _waited(served, prefix, sending)
                    events, _ = sending.get()
                    total += events
                    busy = (_cpu(driver) - before) / (time.monotonic() - began)
                p50, p99 = np.percentile(waited, [50, 99])
                found.append(
                    {
                        "rate": rate, "events": events, "probes": len(waited), "p50_s": round(p50, 2),
                        "p99_s": round(p99, 2), "max_s": round(max(waited), 2), "driver_cores": round(busy, 2),
                        "rss_mib": sum(one.memory_info().rss for one in _both(driver)) >> 20,
                    }
                )  # fmt: skip
                console.print(f"{rate:,} events/s: {found[-1]}")
            seen = served.execute("select sum(readings) from amounts_by_device_1m").fetchone()
            if seen != (total,):
                raise RuntimeError(f"{total:,} events were sent, and the view has counted {seen}")
            before = _cpu(driver)
            threading.Event().wait(idle)
            idle_cores = round((_cpu(driver) - before) / idle, 3)
    return {"seconds": seconds, "idle_cores": idle_cores, "rates": found}


def _waited(served: DuckDBPyConnection, prefix: str, sending: Any) -> list[float]:
    """Seconds from the sending of each probe of that prefix until the view showed it."""
    seen: dict[int, float] = {}
    expected: dict[int, float] | None = None
    deadline = float("inf")
    while expected is None or len(seen) < len(expected):
        rows = served.execute(
            "select distinct device from amounts_by_device_1m where starts_with(device, ?)", [prefix]
        ).fetchall()
        now = time.time()
        for (device,) in rows:
            seen.setdefault(int(device.removeprefix(prefix)), now)
        if expected is None and sending.ready():
            expected, deadline = sending.get()[1], time.monotonic() + PATIENCE
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(expected or ())} probes were sent, and {len(seen)} seen {PATIENCE:.0f} s later")
        threading.Event().wait(PAUSE)
    return [seen[probe] - sent for probe, sent in expected.items()]


def _send(rate: int, seconds: float, prefix: str) -> tuple[int, dict[int, float]]:
    """The sender's process: the number of events that it sent, and when it handed over each probe."""
    config = settings()
    contract = contract_in(config.contracts, readings.STREAM)
    parsed, start = fastavro.parse_schema(contract.schema_now), header(schema_id(contract, registry(config)))
    producer = Producer(config.kafka_client("producer") | OPTIONS)
    first = time.time_ns()  # ids of another phase are smaller
    probes: dict[int, float] = {}
    sent, began = 0, time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        due = int(passed * rate) - sent
        for _ in range(due):
            now = time.time()
            probe = len(probes)
            is_probe = probe < passed * PROBES
            device = f"{prefix}{probe}" if is_probe else f"device-{sent * 7919 % readings.DEVICES:04d}"
            record = {
                "id": first + sent, "device": device, "event_time": int(now * 1e6), "amount": sent % 1000,
                "battery": sent % 101,
            }  # fmt: skip
            buffer = io.BytesIO(start)
            buffer.seek(0, io.SEEK_END)
            fastavro.schemaless_writer(buffer, parsed, record)
            producer.produce(contract.stream, buffer.getvalue(), device.encode())
            if is_probe:
                probes[probe] = now
            sent += 1
        producer.poll(0)
        threading.Event().wait(1 / TICKS)
    if left := producer.flush(PATIENCE):
        raise RuntimeError(f"{left} readings were not taken by Kafka")
    return sent, probes


@contextmanager
def _driver(config: Settings) -> Iterator[psutil.Process]:
    """The streaming driver's JVM, which runs until the end."""
    epoch = Lease(config).acquire("bench")
    log = config.log_dir / "stream.log"
    with log.open("w") as output:
        command = [sys.executable, "-m", "spark.jobs.stream", "--epoch", str(epoch)]
        process = subprocess.Popen(command, cwd=PROJECT, stdout=output, stderr=output)
    mine = psutil.Process(process.pid)
    try:
        wait_until_running(config)
        yield next(child for child in mine.children(recursive=True) if "java" in child.name())
    finally:
        for one in [*mine.children(recursive=True), mine]:
            one.kill()
        process.wait(30)


def _cpu(jvm: psutil.Process) -> float:
    """Seconds of CPU that the driver has used so far."""
    return sum(sum(one.cpu_times()[:2]) for one in _both(jvm))


def _both(jvm: psutil.Process) -> list[psutil.Process]:
    """The driver's JVM and its Python."""
    return [one for one in (jvm, jvm.parent()) if one is not None]


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title=f"produce to served view, {result['seconds']:g} s each")
    for name in result["rates"][0]:
        table.add_column(name.replace("_", " "), justify="right")
    for figures in result["rates"]:
        table.add_row(*(f"{value:,}" for value in figures.values()))
    console.print(table)
    console.print(f"an idle stream takes {result['idle_cores']:.1%} of a core")


def main() -> None:
    parser = argparse.ArgumentParser(description="How old what the served view shows is.")
    parser.add_argument("--rates", type=int, nargs="+", default=RATES, help="events per second, one after the other")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--warm", type=float, default=60, help="seconds at each rate before the measurement")
    parser.add_argument("--idle", type=float, default=30, help="seconds without events in the end")
    parser.add_argument("--json", action="store_true", help="end with one JSON document")
    given = parser.parse_args()
    console = Console(stderr=given.json)
    result = bench(given.rates, given.seconds, given.warm, given.idle, console)
    if given.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        show(result, console)


if __name__ == "__main__":
    main()
