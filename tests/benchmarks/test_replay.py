"""How fast dead letters come back, and in how much memory: a million of them through a real broker on this machine."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from infra.broker.offsets import broker_offsets
from infra.settings import PROJECT, Settings
from producers.moves import moves
from producers.replay import replay
from schemas.contract.catalog import catalog
from schemas.contract.model import Contract
from spark.lake import letter_moves, tables
from spark.serving.duck import connect

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

LETTERS = int(os.environ.get("LETTERS", "1000000"))
NOW = datetime(2013, 6, 1, 12, 0, tzinfo=UTC)
VALUE = b"\0\0\0\0\x07" + bytes(range(256))[:120]  # a flight takes about 60 bytes


@pytest.fixture
def contract(stack: Settings) -> Iterator[Contract]:
    mine = catalog(PROJECT / "schemas" / "streams")["flights"].model_copy(update={"stream": "replay_benchmark"})
    admin, forever = AdminClient(stack.kafka_client("admin")), {"retention.ms": "-1"}
    for future in admin.create_topics([NewTopic(topic, 4, 1, config=forever) for topic in mine.topics]).values():
        future.result()
    yield mine
    for future in admin.delete_topics(list(mine.topics)).values():
        future.result()


def bury(stack: Settings, contract: Contract, count: int) -> None:
    producer = Producer(stack.kafka_client("admin") | {"compression.type": "lz4", "linger.ms": 20})
    same: list[tuple[str, str | bytes | None]]
    same = [("dl-error-class", b"transient"), ("dl-reason", b"the registry did not answer"), ("dl-attempt", b"0")]
    same += [("dl-first-failed-at", b"2013-06-01T11:00:00Z"), ("dl-next-due-at", b"2013-06-01T11:59:59.123456Z")]
    for number in range(count):
        headers = [("trace", b"\x01\x02"), ("dl-id", f"replay_benchmark/{number % 4}/{number}".encode()), *same]
        while True:
            try:
                producer.produce(contract.dlq_topic, VALUE, b"UA|%d" % number, headers=headers)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    assert producer.flush(60) == 0


def measured(work: Callable[[], Any]) -> dict[str, Any]:
    """Seconds, CPU seconds and the greatest memory so far (MiB) of this process, and what `work` returned."""
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    result = work()
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu": cpu, "peak_mib": after.ru_maxrss / 1024, "result": result}


def run(contract: Contract, stack: Settings, answer: Any) -> None:
    """In a process of its own: the replay, then the record of its moves."""
    replayed = measured(lambda: replay(contract, stack, now=NOW, schema_exists=lambda _: True).retried)

    def record() -> int:
        with connect(stack, [contract]) as served:
            news = moves(contract, stack, letter_moves.recorded_through(served, contract.stream))
            return letter_moves.record_moves(stack.lake_uri, "benchmark", NOW, news)

    answer.put({"replay": replayed, "record": measured(record)})


def test_a_million_letters_come_back_within_a_minute(
    stack: Settings, contract: Contract, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = stack.model_copy(update={"lake": f"file:{tmp_path}/lake"})
    tables.create(stack.lake_uri, contract)
    bury(stack, contract, LETTERS)
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=run, args=(contract, stack, answer))
    process.start()
    found = answer.get(timeout=600)
    process.join()
    for of in found.values():
        of["letters_per_second"] = of["result"] / of["seconds"]
        of["cpu_us_per_letter"] = of["cpu"] / of["result"] * 1e6
    with capsys.disabled():
        print(f"\n{LETTERS:,} letters: {json.dumps(found)}")  # noqa: T201
    assert found["replay"]["result"] == found["record"]["result"] == LETTERS
    assert sum(broker_offsets(stack, [contract.retry_topic]).values()) >= LETTERS
    assert found["replay"]["seconds"] < 60 * LETTERS / 1_000_000 + 5
    assert found["record"]["peak_mib"] < 700
