"""The quick part of the fault matrix: a driver, a broker and a replay are killed under load, on a stack of their own,
which the stories of other tests do not disturb. The longer tests pause a driver and set its clock. `make faults` runs
all of it; `docs/reliability.md` tells what it counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.jvm import class_archive
from tests.faults.catalogue import FAKETIME, FAULTS
from tests.faults.matrix import cell
from tests.faults.world import CONTRACTS, World, world
from tests.support import stacks

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def pulses() -> Iterator[World]:
    with stacks.running("millrace-faults-", CONTRACTS) as settings, world(settings) as it:
        yield it


def test_the_driver_has_its_classes_from_the_archive(pulses: World) -> None:
    """`up` made it; the JVM maps it only if it fits its Java and its jars."""
    mapped = {Path(found.path) for found in psutil.Process(pulses.driver().pid).memory_maps()}
    assert class_archive.archive(pulses.settings) in mapped


@pytest.mark.parametrize(
    "name",
    [
        "driver-between",
        "replay-killed",
        "broker-killed",
        pytest.param("driver-paused", marks=pytest.mark.long),
        pytest.param(
            "clock-jumps", marks=[pytest.mark.long, pytest.mark.skipif(not FAKETIME, reason="no libfaketime")]
        ),
    ],
)
def test_nothing_is_lost_or_doubled(pulses: World, name: str) -> None:
    found = cell(pulses, FAULTS[name], seed=1, publish=False)
    assert found.good, found
