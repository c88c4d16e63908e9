"""From handing an event to the producer until its alert is in a consumer's hands: `millrace bench latency`.

Telemetry is sent at a steady rate; a known share of it is too hot. Each event carries the moment in which it was handed
over, and the alert has it back. Producer, lane and consumer are processes of their own on this machine, so one clock
counts. Each rate is measured alone and beside the ingest of the same stream, once the JVM is warm: a lane runs for
weeks, and in its first minutes the compiler takes a third of a core. Every event that must alert is waited for: one
that is missing fails the benchmark. So does a measurement that was long enough for a checkpoint of the lane and had
none: checkpoints stall the lane, and the figures are with them.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from rich.console import Console
from rich.table import Table

from infra.operations.provisioning import provision_subject, provision_topics
from infra.settings import PROJECT, Settings, settings
from producers import load
from producers.codec import registry, schema_id
from schemas.contract.catalog import contract_in
from schemas.contract.folders import USES
from schemas.contract.model import Contract
from tests.support import stacks

RATES = (1_000, 5_000, 20_000)
SHARE = 0.05
"""Of the events that alert."""
PATIENCE = 60.0
"""Seconds that alerts are waited for, at the start and at the end."""
CHECKPOINT = 60
"""Seconds between checkpoints of the lane, so that each measurement of its usual length has some."""
SENDER: dict[str, str | int | float | bool] = {"linger.ms": 5, "compression.type": "none"}
"""Five milliseconds are the default of librdkafka and, since 4.0, of the Java client."""
AGAIN = 20.0
"""Seconds to get used to another rate, at most."""


PLACES = {"alone": False, "beside": True}
"""Where the lane runs, and whether the ingest does too."""


def bench(rates: list[int], seconds: float, warm: float, console: Console, only: str | None = None) -> dict[str, Any]:
    """Measures each rate, and returns one object for each: the figures beside the ingest, and those `alone`; one of
    both with `only`, a key of `PLACES`. Raises RuntimeError if an alert is missing, or a checkpoint."""
    found: dict[int, dict[str, Any]] = {rate: {"rate": rate} for rate in rates}
    with tempfile.TemporaryDirectory() as folder:
        contracts = Path(folder) / "contracts"
        shutil.copytree(USES / load.STREAM, contracts / load.STREAM)
        for beside in [PLACES[only]] if only else PLACES.values():
            with (
                stacks.running("millrace-latency-", contracts, ["kafka", "registry"]) as config,
                multiprocessing.get_context("spawn").Pool(1) as sender,
            ):
                contract = contract_in(config.contracts, load.STREAM)
                provision_topics(AdminClient(config.kafka_client("provision")), contract)
                provision_subject(registry(config), contract)
                desk = Desk(config, contract)
                with _lane(config, beside) as lane:
                    for phase, rate in enumerate(rates):
                        for part, length in enumerate((min(warm, AGAIN) if phase else warm, seconds)):
                            before = _cpu(lane)
                            begin = time.time()
                            sent = sender.apply_async(_send, (rate, length, 2 * phase + part))
                            figures = desk.figures(sent) | {
                                "cpu_us_per_event": round((_cpu(lane) - before) / sent.get() * 1e6, 1),
                                "checkpoints": _checkpoints(config, contract, begin),
                            }
                        what = f"{rate:,} events/s {'beside the ingest' if beside else 'alone'}"
                        console.print(f"{what}: {figures}")
                        if seconds >= 2 * CHECKPOINT and not figures["checkpoints"]:
                            raise RuntimeError(
                                f"{what}: no checkpoint came in {seconds:g} s, though the lane makes one each "
                                f"{CHECKPOINT} s; the figures would be too good"
                            )
                        if beside:
                            found[rate] |= figures
                        else:
                            found[rate]["alone"] = figures
    return {"seconds": seconds, "alerting": SHARE, "rates": list(found.values())}


@cache
def _client() -> Producer:
    """One for all phases: connecting takes half a second, which the first, unmeasured phase pays."""
    return load.producer(settings(), **SENDER)


def _send(rate: float, seconds: float, phase: int) -> int:
    """The sender's process: the number of events it sent."""
    config = settings()
    contract = contract_in(config.contracts, load.STREAM)
    mine = load.load(contract, schema_id(contract, registry(config)), alerting=SHARE, process=phase)
    return load.paced(mine, _client(), contract.stream, rate, seconds)


class Desk:
    """Reads the alerts topic and notes when each alert came."""

    def __init__(self, config: Settings, contract: Contract) -> None:
        self._consumer = Consumer(
            {
                **config.kafka_client("admin"),
                "group.id": "desk",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.queue.backoff.ms": 1,
                "log_level": 2,
            }
        )
        partitions = range(contract.topic.partitions)
        self._consumer.assign([TopicPartition(contract.alerts_topic, number, 0) for number in partitions])

    def figures(self, sent: Any) -> dict[str, Any]:
        """Reads until every alert of what is `sent` (a result to come: a number of events) has come. Milliseconds. The
        reader's own garbage is left lying for as long: to collect it took up to a quarter of a second."""
        gc.collect()
        gc.disable()
        try:
            return self._figures(sent)
        finally:
            gc.enable()

    def _figures(self, sent: Any) -> dict[str, Any]:
        came: list[tuple[int, bytes]] = []
        expected: int | None = None
        deadline = float("inf")
        while expected is None or len(came) < expected:
            message = self._consumer.poll(0.1)
            if message is not None and message.error() is None:
                came.append((time.time_ns(), message.value() or b""))
            if expected is None and sent.ready():
                expected = -(-sent.get() // round(1 / SHARE))
                deadline = time.monotonic() + PATIENCE
            elif message is None and time.monotonic() > deadline:
                raise RuntimeError(f"{expected} alerts must come, but {len(came)} came within {PATIENCE:.0f} s")
        alerts = [json.loads(value) for _, value in came]
        if len({alert["id"] for alert in alerts}) != expected or {a["alert"] for a in alerts} != {"overheating"}:
            raise RuntimeError(f"{expected} alerts must come, each once, but there were others")
        stamps = [datetime.fromisoformat(alert["event_time"]).timestamp() for alert in alerts]
        waited = np.array([at / 1e6 - stamp * 1e3 for (at, _), stamp in zip(came, stamps, strict=True)])
        p50, p99, p999 = np.percentile(waited, [50, 99, 99.9])
        return {
            "events": sent.get(),
            "alerts": len(alerts),
            "p50_ms": round(float(p50), 1),
            "p99_ms": round(float(p99), 1),
            "p99_9_ms": round(float(p999), 1),
            "max_ms": round(float(waited.max()), 1),
        }


@contextmanager
def _lane(config: Settings, beside: bool) -> Iterator[psutil.Process]:
    """The process that runs the lane, and with `beside` the ingest, until the end."""
    arguments = [sys.executable, "-m", "tests.benchmarks.latency", "--lane", *(["--beside"] if beside else [])]
    environment = os.environ | {"MILLRACE_ALERT_CHECKPOINT": str(CHECKPOINT)}
    log = config.log_dir / "lane.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            arguments, cwd=PROJECT, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            one.kill()
        process.wait(30)


def run_lane(beside: bool) -> None:
    """What runs in that process: the parts of the streaming driver that are measured."""
    from spark.lake import tables
    from spark.session import session
    from spark.speed.alert_lane import Lane
    from spark.speed.ingest_query import IngestQuery
    from spark.speed.query import Query

    config = settings()
    contract = contract_in(config.contracts, load.STREAM)
    spark = session(config, "stream", "millrace-latency")
    tables.create(config.lake_uri, contract)
    queries: list[Query] = [Lane(contract, config)]
    if beside:
        queries.append(IngestQuery(contract, config, threading.Event(), lambda: None))
        queries[-1].start(spark)
    while True:
        for query in queries:
            query.tend(spark)
            if why := query.error() or (query.progress()["halted"] or {}).get("why"):
                raise RuntimeError(why)
        threading.Event().wait(1.0)


def _cpu(process: psutil.Process) -> float:
    return sum(sum(one.cpu_times()[:2]) for one in [process, *process.children(recursive=True)])


def _checkpoints(config: Settings, contract: Contract, since: float) -> int:
    """Checkpoints of the lane since that moment."""
    from spark.lake import names

    commits = Path(names.local_path(config.checkpoints_uri), contract.alerts_topic).glob("g*/commits/[0-9]*")
    return sum(os.stat(commit).st_mtime >= since for commit in commits)


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title=f"produce to alert, milliseconds, {result['seconds']:g} s each")
    for name in ("events/s", "", "p50", "p99", "p99.9", "max", "alerts", "checkpoints"):
        table.add_column(name, justify="right")
    for rate in result["rates"]:
        for title, figures in (("alone", rate.get("alone")), ("beside the ingest", rate)):
            if figures and "alerts" in figures:
                row = [figures[name] for name in ("p50_ms", "p99_ms", "p99_9_ms", "max_ms", "alerts", "checkpoints")]
                table.add_row(f"{rate['rate']:,}", title, *map(str, row))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="From producing an event to its alert.")
    parser.add_argument("--rates", type=int, nargs="+", default=list(RATES))
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--warm", type=float, default=120)
    parser.add_argument("--only", choices=PLACES, help="measure only alone, or only beside the ingest")
    parser.add_argument("--json", action="store_true", help="end with one JSON document")
    parser.add_argument("--lane", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--beside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.lane:
        run_lane(given.beside)
        return
    console = Console(stderr=given.json)
    result = bench(given.rates, given.seconds, given.warm, console, given.only)
    if given.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        show(result, console)


if __name__ == "__main__":
    main()
