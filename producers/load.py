"""A load generator that is not the bottleneck: events are made and encoded beforehand, and stamped as they are sent.

A pool of generated telemetry is encoded once. What differs from event to event lies at the front of the Avro body, the
event time and the reading's number, both as numbers whose encoding has always the same width; so a batch of events is
their new fronts, made by numpy for all of them at once, before the pool's old tails. librdkafka takes them in batches
(`produce_batch`). Each process of a load has numbers of its own, so events stay unique.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from confluent_kafka import Producer

from infra.settings import Settings, settings
from producers.codec import Codec, registry, schema_id
from producers.generators import generated
from producers.produce import FLUSH_SECONDS, OPTIONS
from schemas.contract.model import Contract
from schemas.contract.predicates import Alerts
from schemas.errors import TransientError
from schemas.wire import HEADER, header

STREAM = "telemetry"
POOL = 20_000
BATCH = 2_000
TIME_BYTES, NUMBER_BYTES = 8, 7
"""Bytes that the encoded event time (any instant from 1979 to 3111) and the encoded number of the reading take."""
STEP = 0.005
"""Seconds between what a paced load hands over: about what producers linger by default. Event by event would cost it
more than half a core at a few thousand a second."""
FIRST_NUMBER = 1 << 41
"""Readings of loads have numbers from here on, each process its own 2**36 of them."""
_MINE = 1 << 36


class LoadError(TransientError):
    """Kafka did not take all of a load."""


def varints(values: np.ndarray, width: int) -> bytes:
    """Returns Avro's encoding of non-negative longs that all take `width` bytes, one after the other. Raises ValueError
    if a value takes another number of bytes.

    The Avro 1.12 specification, "Binary encoding", says: zig-zag, then seven bits a byte, lowest first, the high bit
    set on all bytes but the last.
    """
    zigzag = values.astype(np.uint64) << np.uint64(1)
    shifts = np.arange(width, dtype=np.uint64) * np.uint64(7)
    seven = ((zigzag[:, None] >> shifts) & np.uint64(0x7F)).astype(np.uint8)
    seven[:, :-1] |= 0x80
    if len(values) and (seven[:, -1].min() == 0 or int(zigzag.max()) >> (7 * width)):
        raise ValueError(f"not every value takes {width} bytes")
    return seven.tobytes()


@dataclass(frozen=True)
class Load:
    """Encoded telemetry without an end. `keys` and `tails` come from the pool; event number n has those at index n
    modulo the pool's size. `head` is the wire format's header; `first` is added to n for the reading's number."""

    head: bytes
    keys: Sequence[bytes]
    tails: Sequence[bytes]
    first: int = FIRST_NUMBER

    def values(self, start: int, times: np.ndarray) -> list[bytes]:
        """Returns the values of the events from number `start` on, which happen at `times` (microseconds since 1970
        UTC)."""
        numbers = self.first + np.arange(start, start + len(times), dtype=np.int64)
        stamps, ids = varints(times, TIME_BYTES), varints(numbers, NUMBER_BYTES)
        head, tails, size = self.head, self.tails, len(self.tails)
        return [
            head
            + stamps[at * TIME_BYTES : (at + 1) * TIME_BYTES]
            + ids[at * NUMBER_BYTES : (at + 1) * NUMBER_BYTES]
            + tails[(start + at) % size]
            for at in range(len(times))
        ]

    def batch(self, start: int, times: np.ndarray) -> list[dict[str, Any]]:
        """Returns keys and values of the same events, as `Producer.produce_batch` takes them."""
        keys, size = self.keys, len(self.keys)
        return [
            {"key": keys[(start + at) % size], "value": value} for at, value in enumerate(self.values(start, times))
        ]


def load(contract: Contract, schema: int, seed: int = 0, alerting: float | None = None, process: int = 0) -> Load:
    """Returns a load for `contract`, which is telemetry's, in the schema that is registered with the id `schema`.
    `alerting` is the share of events that raise an alert of the contract; with None it is what the generator gives."""
    records = list(generated(STREAM, POOL, seed=seed))
    if alerting is not None:
        raised = Alerts(contract).raised
        faulty = {**records[0], "temperature": 250.0}
        assert raised(faulty)
        calm = [{**record, "temperature": min(record["temperature"], 60.0), "battery": 50} for record in records]
        calm = [{**record, "vibration": record["vibration"] and min(record["vibration"], 2.0)} for record in calm]
        every = max(1, round(1 / alerting))
        records = [
            {**record, "temperature": 250.0} if index % every == 0 else record for index, record in enumerate(calm)
        ]
    codec = Codec(contract, schema)
    front = HEADER.size + TIME_BYTES + NUMBER_BYTES
    values = [codec.value({**record, "reading": FIRST_NUMBER}) for record in records]
    return Load(
        header(schema), [codec.key(record) for record in records], [value[front:] for value in values],
        FIRST_NUMBER + process * _MINE,
    )  # fmt: skip


def producer(config: Settings, **options: str | int | float | bool) -> Producer:
    """A producer for loads: idempotent, with room for what is on its way."""
    return Producer(
        {
            **config.kafka_client("producer"),
            **OPTIONS,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 256 * 1024,
            **options,
        }
    )


def flat_out(load: Load, client: Producer, topic: str, events: int) -> None:
    """Sends `events` events as fast as Kafka takes them, stamped with the moment. Raises `LoadError`."""
    for start in range(0, events, BATCH):
        times = time.time_ns() // 1000 + np.arange(min(BATCH, events - start))
        left: list[dict[str, Any]] = load.batch(start, times)
        while left := _queued(client, topic, left):
            client.poll(0.05)
        client.poll(0)
    _flushed(client)


def paced(
    load: Load,
    client: Producer,
    topic: str,
    rate: float,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Sends `rate` events a second for `seconds`, some each `STEP`, stamped with the moment in which they are handed
    over; returns their number. What a slow moment held up is sent at once. Raises `LoadError`."""
    begun, sent = clock(), 0
    while (passed := clock() - begun) < seconds:
        due = int(passed * rate)
        if due > sent:
            times = np.full(min(due - sent, BATCH), time.time_ns() // 1000)
            left: list[dict[str, Any]] = load.batch(sent, times)
            while left := _queued(client, topic, left):
                client.poll(0.001)
            sent += len(times)
        client.poll(0)
        sleep(STEP)
    _flushed(client)
    return sent


def _queued(client: Producer, topic: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Hands `messages` to the client and returns those for which its queue had no room."""
    client.produce_batch(topic, messages)  # marks those that it did not take
    return [message for message in messages if message.pop("_error", None) is not None]


def _flushed(client: Producer) -> None:
    if left := client.flush(FLUSH_SECONDS):
        raise LoadError(f"{left} events of the load were not taken by Kafka within {FLUSH_SECONDS:.0f} s")


def in_processes(contract: Contract, events: int, processes: int) -> float:
    """Has `processes` processes send `events` events flat out, together; returns the seconds from the start of the
    first to the end of the last. What they have to prepare is not counted. The settings are read from the
    environment. Raises `LoadError`."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(processes)
    with context.Pool(processes, initializer=_prepare, initargs=(ready,)) as pool:
        spans = pool.map(partial(_share_sent, contract.folder.name, events // processes), range(processes), chunksize=1)
    return max(end for _, end in spans) - min(begin for begin, _ in spans)


_ready: Any = None


def _prepare(ready: Any) -> None:
    global _ready  # noqa: PLW0603  # the only way from a pool's initializer to its tasks
    _ready = ready


def _share_sent(stream: str, events: int, process: int) -> tuple[float, float]:
    """Sends the share of process number `process`; returns when it began and ended, in seconds since 1970."""
    from schemas.contract.catalog import contract_in

    config = settings()
    contract = contract_in(config.contracts, stream)
    mine = load(contract, schema_id(contract, registry(config)), process=process)
    client = producer(config)
    client.list_topics(contract.main_topic, 10)  # connected
    _ready.wait(120)
    begin = time.time()
    flat_out(mine, client, contract.main_topic, events)
    return begin, time.time()
