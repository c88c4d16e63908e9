"""The load generator: its events are what the codec would have made, stamped, unique and paced."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import fastavro
import numpy as np
import pytest

from producers import load
from producers.codec import Codec
from schemas.contract.catalog import load as load_contract
from schemas.contract.folders import USES
from schemas.contract.predicates import Alerts
from schemas.contract.verdict import Judge

CONTRACT = load_contract(USES / load.STREAM)
NOW = 1_767_603_600_123_456


@pytest.fixture(scope="module")
def mine() -> load.Load:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "POOL", 300)
        return load.load(CONTRACT, 7, alerting=0.05, process=2)


def decoded(mine: load.Load, start: int, count: int) -> Iterator[Any]:
    judge = Judge(CONTRACT, {7: CONTRACT.schema_now})
    for value in mine.values(start, NOW + np.arange(count)):
        verdict = judge.verdict(value)
        assert verdict.error_class is None
        yield verdict.record


@pytest.mark.parametrize(("width", "values"), [(8, [2**48, NOW, 2**55 - 1]), (7, [2**41, 2**48 - 1])])
def test_varints_are_avros_own(width: int, values: list[int]) -> None:
    buffer = io.BytesIO()
    for value in values:
        fastavro.schemaless_writer(buffer, "long", value)
    assert load.varints(np.array(values), width) == buffer.getvalue()


@pytest.mark.parametrize("value", [2**41 - 1, 2**48])
def test_a_number_of_another_width_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="not every value takes 7 bytes"):
        load.varints(np.array([2**42, value]), 7)


def test_events_are_accepted_stamped_unique_and_end_as_the_codec_ends_them(mine: load.Load) -> None:
    records = list(decoded(mine, 250, 100))
    assert [int(record["event_time"].timestamp() * 1e6 + 0.5) for record in records] == [NOW + n for n in range(100)]
    assert [record["reading"] for record in records] == [mine.first + 250 + n for n in range(100)]
    codec = Codec(CONTRACT, 7)
    messages = mine.batch(250, NOW + np.arange(100))
    assert [message["key"] for message in messages] == [codec.key(record) for record in records]
    assert [message["value"] for message in messages] == [codec.value(record) for record in records]


def test_the_wanted_share_alerts(mine: load.Load) -> None:
    alerts = Alerts(CONTRACT)
    raised = [[alert.name for alert in alerts.raised(record)] for record in decoded(mine, 0, 100)]
    assert raised == [["overheating"] if number % 20 == 0 else [] for number in range(100)]


class Clock:
    """Time that passes only when somebody sleeps; a `producer` that counts."""

    def __init__(self) -> None:
        self.now, self.sent = 0.0, 0
        self.full = True
        self.late: list[float] = []
        self.values: list[bytes] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + 1e-6

    def produce_batch(self, topic: str, messages: list[dict[str, Any]]) -> None:
        if messages and self.full:  # takes all but the last one, once
            self.full = False
            messages[-1]["_error"] = "queue full"
            messages = messages[:-1]
        self.sent += len(messages)
        self.values += [message["value"] for message in messages]
        self.late.append(self.now - self.sent / 500)

    def poll(self, seconds: float) -> None: ...

    def flush(self, seconds: float) -> int:
        return 0


def test_a_paced_load_keeps_its_rate_and_makes_up_for_a_pause(mine: load.Load) -> None:
    clock = Clock()
    clock.sleep(0.5)  # counts from here
    sent = load.paced(mine, clock, "telemetry", 500, 2, clock, clock.sleep)  # type: ignore[arg-type]
    assert sent == clock.sent == pytest.approx(1000, abs=3)
    assert max(clock.late) - 0.5 < 2 * load.STEP
    assert len(set(clock.values)) == sent  # also the one that found the queue full


def test_a_load_that_kafka_does_not_take_is_an_error(mine: load.Load) -> None:
    clock = Clock()
    clock.flush = lambda seconds: 3  # type: ignore[method-assign]
    with pytest.raises(load.LoadError, match="3 events"):
        load.paced(mine, clock, "telemetry", 500, 0.1, clock, clock.sleep)  # type: ignore[arg-type]
