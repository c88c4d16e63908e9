"""The lease against a real PostgreSQL: takeover fences the old holder, whatever it still believes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import psycopg2
import pytest

from infra.locks.driver_lease import Lease, LeaseHeld, LeaseLost, LeaseUnreachable
from infra.settings import Settings
from tests.support.chance import fresh

NewLease = Callable[..., Lease]


@pytest.fixture
def new_lease(stack: Settings) -> Iterator[NewLease]:
    """Leases of one fresh name, each with its own connection, as two processes would have."""
    name = fresh("test-")
    opened: list[Lease] = []

    def make(seconds: float = 60) -> Lease:
        opened.append(Lease(stack, name, seconds))
        return opened[-1]

    yield make
    for lease in opened:
        lease.close()


def test_another_holder_waits_until_expiry_and_then_fences_the_old_one(new_lease: NewLease) -> None:
    first, second = new_lease(seconds=60), new_lease()
    epoch = first.acquire("here")
    first.check(epoch)
    with pytest.raises(LeaseHeld, match="held by 'here'"):
        second.acquire("there")

    first._seconds = 0  # as if it had not renewed for its whole life
    first.renew(epoch)
    taken = second.acquire("there")

    assert taken == epoch + 1
    second.check(taken)
    for refused in (first.check, first.renew):
        with pytest.raises(LeaseLost, match="'there' holds epoch"):
            refused(epoch)


def test_the_same_holder_takes_over_at_once_with_a_new_epoch(new_lease: NewLease) -> None:
    supervisor, driver = new_lease(), new_lease()
    old = supervisor.acquire("supervisor")
    new = supervisor.acquire("supervisor")

    assert new == old + 1
    with pytest.raises(LeaseLost):
        driver.check(old)
    driver.check(new)


def test_an_expired_lease_that_nobody_took_is_still_owned(new_lease: NewLease) -> None:
    lease = new_lease(seconds=0)
    epoch = lease.acquire("slow")
    lease.check(epoch)
    lease.renew(epoch)


def test_release_lets_another_in_and_epochs_never_repeat(new_lease: NewLease) -> None:
    first, second = new_lease(), new_lease()
    epoch = first.acquire("here")
    first.release(epoch)
    assert second.acquire("there") == epoch + 1
    first.release(epoch)  # the old owner's release must not free the new owner's lease
    with pytest.raises(LeaseHeld):
        first.acquire("here")


def test_of_many_at_once_exactly_one_gets_it(new_lease: NewLease) -> None:
    barrier, won, lost = threading.Barrier(8), [], []

    def contend(index: int) -> None:
        lease = new_lease()
        barrier.wait()
        try:
            won.append(lease.acquire(f"holder-{index}"))
        except LeaseHeld:
            lost.append(index)

    threads = [threading.Thread(target=contend, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [1]
    assert len(lost) == 7


def test_survives_a_connection_that_the_server_closed(new_lease: NewLease, stack: Settings) -> None:
    lease = new_lease()
    epoch = lease.acquire("here")
    assert lease._connection is not None
    backend = lease._connection.get_backend_pid()
    with psycopg2.connect(stack.postgres("millrace")) as admin, admin.cursor() as cursor:
        cursor.execute("select pg_terminate_backend(%s, 5000)", (backend,))
    admin.close()
    lease.check(epoch)


def test_an_absent_server_is_transient(stack: Settings) -> None:
    nowhere = stack.model_copy(update={"postgres_url": "postgresql://millrace:x@127.0.0.1:1"})
    with pytest.raises(LeaseUnreachable, match="does not answer"):
        Lease(nowhere).check(1)
