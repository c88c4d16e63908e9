"""The quick part of the fault matrix, on the session's stack: a driver and a replay are killed under load; the longer
tests kill the broker, which fails where Kafka leaves a transaction open (`docs/reliability.md`), and pause a driver.
`make faults` runs all of it; what it counts and how is in `docs/reliability.md`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.settings import Settings
from tests.faults.catalogue import FAULTS
from tests.faults.matrix import cell
from tests.faults.world import World, world

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def pulses(stack: Settings) -> Iterator[World]:
    with world(stack) as it:
        yield it


@pytest.mark.parametrize(
    "name",
    [
        "driver-between",
        "replay-killed",
        pytest.param("broker-killed", marks=pytest.mark.long),
        pytest.param("driver-paused", marks=pytest.mark.long),
    ],
)
def test_nothing_is_lost_or_doubled(pulses: World, name: str) -> None:
    found = cell(pulses, FAULTS[name], seed=1, publish=False)
    assert found.good, found
