"""How many events a second the load generator gets onto the broker of this machine: `millrace bench produce`.

Sent are encoded telemetry events, idempotently and acknowledged by all replicas, by one process and then by several.
Counted is from the first event handed over to the last one acknowledged; the broker's offsets must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from confluent_kafka.admin import AdminClient
from rich.console import Console

from infra.broker.offsets import broker_offsets
from infra.local.supervisor import Supervisor
from infra.operations.provisioning import provision_subject, provision_topics
from infra.settings import Settings
from producers import load
from producers.codec import registry
from schemas.contract.catalog import contract_in
from schemas.contract.folders import USES
from schemas.contract.model import Contract
from tests.support import stacks


def bench(events: int, processes: list[int], console: Console) -> dict[str, Any]:
    """Runs the benchmark and returns its figures, the best at the top. Raises RuntimeError if the broker holds another
    number of records than were sent."""
    with tempfile.TemporaryDirectory() as folder:
        contracts = Path(folder) / "contracts"
        shutil.copytree(USES / load.STREAM, contracts / load.STREAM)
        with stacks.running("millrace-produce-", contracts, ["kafka", "registry"]) as config:
            contract = contract_in(config.contracts, load.STREAM)
            provision_topics(AdminClient(config.kafka_client("provision")), contract)
            provision_subject(registry(config), contract)
            load.in_processes(contract, max(10_000, events // 10), 1)  # the broker is warm, and so is its disk cache
            runs = []
            for count in processes:
                runs.append(_run(config, contract, events // count * count, count))
                console.print(f"{count} processes: {runs[-1]['events_per_second']:,} events/s")
    best = max(runs, key=lambda run: run["events_per_second"])
    return {"events": events, **best, "encoded_per_second": _encoding(contract), "runs": runs}


def _run(config: Settings, contract: Contract, events: int, processes: int) -> dict[str, Any]:
    broker = psutil.Process(Supervisor(config).information()["kafka"]["pid"])
    before, broker_before, mine = _held(config, contract), sum(broker.cpu_times()[:2]), os.times()
    seconds = load.in_processes(contract, events, processes)
    used, now = sum(broker.cpu_times()[:2]) - broker_before, os.times()
    if (held := _held(config, contract) - before) != events:
        raise RuntimeError(f"sent {events:,} events, but the broker has {held:,} more than before")
    # The processes' preparation, half a second of CPU each, is counted with their sending.
    own = now.children_user + now.children_system - mine.children_user - mine.children_system
    return {
        "processes": processes,
        "seconds": round(seconds, 2),
        "events_per_second": round(events / seconds),
        "cpu_us_per_event": round(own / events * 1e6, 2),
        "broker_cpu_us_per_event": round(used / events * 1e6, 2),
    }


def _held(config: Settings, contract: Contract) -> int:
    return sum(broker_offsets(config, [contract.stream]).values())


def _encoding(contract: Contract, events: int = 200_000) -> int:
    """Events a second that one process stamps and encodes when it sends them to nobody."""
    mine = load.load(contract, 1)
    begin = time.process_time()
    for start in range(0, events, load.BATCH):
        mine.batch(start, time.time_ns() // 1000 + np.arange(load.BATCH))
    return round(events / (time.process_time() - begin))


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast the load generator is.")
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", action="store_true", help="end with one JSON document")
    given = parser.parse_args()
    console = Console(stderr=given.json)
    result = bench(given.events, given.processes, console)
    if given.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        console.print(result)


if __name__ == "__main__":
    main()
