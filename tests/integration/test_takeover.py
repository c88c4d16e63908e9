"""Two supervisors, one lake: the lease in a real PostgreSQL decides whose driver may go on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.driver import process
from infra.locks.driver_lease import Lease, LeaseHeld, LeaseLost
from infra.settings import Settings
from tests.support.chance import fresh
from tests.support.drivers import SMALL_DRIVER


class Supervisor:
    """What the task `drive` does, with its own home and its own connection, as another machine would have."""

    def __init__(self, settings: Settings, home: Path, name: str) -> None:
        self.settings = settings.model_copy(update={"home": home, "postgres_url": settings.postgres("").rstrip("/")})
        self.lease = Lease(self.settings, name)

    def drive(self) -> process.Driver:
        folder = str(self.settings.stream_dir)
        it = process.ensure(
            self.settings, self.lease, lambda epoch: [sys.executable, str(SMALL_DRIVER), folder, str(epoch)]
        )
        process.wait_started(self.settings, it, timeout=30)
        return it


@pytest.fixture
def supervisors(stack: Settings, tmp_path: Path) -> Iterator[tuple[Supervisor, Supervisor]]:
    name = fresh("test-")
    both = Supervisor(stack, tmp_path / "one", name), Supervisor(stack, tmp_path / "two", name)
    yield both
    for supervisor in both:
        process.stop(supervisor.settings, timeout=0)
        supervisor.lease.close()


def test_finds_its_driver_again_and_replaces_a_dead_one(supervisors: tuple[Supervisor, Supervisor]) -> None:
    one, _ = supervisors
    first = one.drive()
    assert one.drive() == first
    os.kill(first.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(first.pid)], timeout=10)

    second = one.drive()

    assert second.epoch == first.epoch + 1
    assert not first.processes(), "the child that outlived the driver is gone too"
    with pytest.raises(LeaseLost):
        one.lease.check(first.epoch)


def test_a_second_installation_waits_and_its_driver_is_not_started(
    supervisors: tuple[Supervisor, Supervisor],
) -> None:
    one, two = supervisors
    first = one.drive()
    with pytest.raises(LeaseHeld):
        two.drive()
    assert process.recorded(two.settings.stream_dir) is None
    one.lease.check(first.epoch)


def test_a_driver_paused_past_its_lease_is_fenced_and_replaced(supervisors: tuple[Supervisor, Supervisor]) -> None:
    one, two = supervisors
    paused = one.drive()
    os.kill(paused.pid, signal.SIGSTOP)
    one.lease._seconds = 0  # its lease runs out while it is paused
    one.lease.renew(paused.epoch)
    taken = two.drive()
    os.kill(paused.pid, signal.SIGCONT)

    for refused in (one.lease.check, one.lease.renew):
        with pytest.raises(LeaseLost):
            refused(paused.epoch)
    two.lease.check(taken.epoch)
    two.lease.renew(taken.epoch)
    with pytest.raises(LeaseHeld):
        one.drive()
    assert not paused.processes(), "a fenced driver is not left running"
