"""The lease: one row of PostgreSQL that says which streaming driver may commit.

A lease has an *epoch*, a number that grows with every takeover and is the fencing token: the driver asks `check`
before each commit, and a driver whose epoch has passed is refused, even one that was paused for an hour and resumed.
The expiry only says when *another holder* may take over without asking. A holder that was slow (or cut off from
PostgreSQL) and finds its epoch unchanged still owns the lease, because nobody was let in meanwhile.

All times are the server's clock, UTC; clients' clocks are never compared.
"""

from __future__ import annotations

import threading
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection

from infra.settings import Settings
from schemas.errors import TerminalError, TransientError

_CREATE = """
create table if not exists lease (
  name text primary key,
  holder text not null,
  epoch bigint not null,
  expires_at timestamptz not null
)"""

_ACQUIRE = """
insert into lease as l (name, holder, epoch, expires_at)
values (%(name)s, %(holder)s, 1, clock_timestamp() + %(seconds)s * interval '1 second')
on conflict (name) do update
  set holder = excluded.holder, epoch = l.epoch + 1, expires_at = excluded.expires_at
  where l.holder = excluded.holder or l.expires_at <= clock_timestamp()
returning epoch"""

_RENEW = """
update lease set expires_at = clock_timestamp() + %(seconds)s * interval '1 second'
where name = %(name)s and epoch = %(epoch)s
returning epoch"""

# The epoch of the row is kept, so that the next acquisition still gets a greater one.
_RELEASE = "update lease set expires_at = clock_timestamp() where name = %(name)s and epoch = %(epoch)s returning epoch"

_CHECK = "select epoch from lease where name = %(name)s and epoch = %(epoch)s"

_STATE = "select holder, epoch, extract(epoch from expires_at - clock_timestamp()) from lease where name = %(name)s"


class LeaseLost(TerminalError):
    """The epoch is not the newest: another driver was started. This process must stop without committing."""


class LeaseHeld(TransientError):
    """Another holder has the lease and it has not expired; the message says who and for how long."""


class LeaseUnreachable(TransientError):
    """PostgreSQL cannot be asked, so nobody knows who owns the lease; do not commit, try again."""


class Lease:
    """The lease `name`, which lives for `seconds` after each renewal. It has one connection, opened on first use and
    again after a failure, and is safe to share between threads. Every method is one short statement in its own
    transaction and raises `LeaseUnreachable` when the server does not answer."""

    def __init__(self, settings: Settings, name: str = "stream", seconds: float | None = None) -> None:
        self._url = settings.postgres("millrace")
        self._name = name
        self._seconds = settings.lease_seconds if seconds is None else seconds
        self._connection: Connection | None = None
        self._lock = threading.Lock()

    def acquire(self, holder: str) -> int:
        """Takes the lease and returns its new epoch, greater than every earlier one. The same holder may always
        take it again (that is how the supervisor fences a driver it has lost); another one only after expiry or
        release, else `LeaseHeld`."""
        row = self._one(_ACQUIRE, holder=holder, seconds=self._seconds)
        if row is not None:
            return int(row[0])
        owner, epoch, left = self._one(_STATE) or (None, None, 0)
        raise LeaseHeld(
            f"lease {self._name!r} is held by {owner!r} (epoch {epoch}) for another {max(0, left):.0f} s; "
            f"{holder!r} may take it when it is released or has expired"
        )

    def renew(self, epoch: int) -> None:
        """Moves the expiry to `seconds` from now. Raises `LeaseLost` when `epoch` is not the newest."""
        if self._one(_RENEW, epoch=epoch, seconds=self._seconds) is None:
            raise self._lost(epoch)

    def check(self, epoch: int) -> None:
        """Returns only if `epoch` is the newest: call it right before a commit. Raises `LeaseLost` otherwise."""
        if self._one(_CHECK, epoch=epoch) is None:
            raise self._lost(epoch)

    def release(self, epoch: int) -> None:
        """Lets anyone take over at once. Does nothing when `epoch` is not the newest."""
        self._one(_RELEASE, epoch=epoch)

    def close(self) -> None:
        """Closes the connection. The lease stays with its holder until it expires."""
        with self._lock:
            self._drop()

    def _lost(self, epoch: int) -> LeaseLost:
        owner, newest, _ = self._one(_STATE) or ("nobody", None, 0)
        return LeaseLost(
            f"lease {self._name!r}: epoch {epoch} is over, {owner!r} holds epoch {newest}; "
            "another driver has been started, this one must stop"
        )

    def _one(self, statement: str, **parameters: Any) -> tuple[Any, ...] | None:
        parameters["name"] = self._name
        with self._lock:
            used_before = self._connection is not None
            try:
                return self._execute(statement, parameters)
            except LeaseUnreachable:
                if not used_before:
                    raise
                return self._execute(statement, parameters)  # the server may only have restarted since last time

    def _execute(self, statement: str, parameters: dict[str, Any]) -> tuple[Any, ...] | None:
        try:
            if self._connection is None:
                self._connection = self._connect()
            with self._connection.cursor() as cursor:
                cursor.execute(statement, parameters)
                row: tuple[Any, ...] | None = cursor.fetchone() if cursor.description else None
                return row
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            self._drop()
            raise LeaseUnreachable(f"the lease's PostgreSQL does not answer: {error}".strip()) from error

    def _connect(self) -> Connection:
        # The timeouts bound a commit's wait for an answer: a server that hangs is as good as one that is away.
        connection = psycopg2.connect(
            self._url,
            connect_timeout=5,
            application_name=f"millrace-lease-{self._name}",
            options="-c statement_timeout=5000 -c timezone=UTC",
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
        )
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("select to_regclass('lease')")
            if cursor.fetchone() == (None,):
                self._create(connection)
        return connection

    @staticmethod
    def _create(connection: Connection) -> None:
        with connection.cursor() as cursor:
            try:
                cursor.execute(_CREATE)
            except psycopg2.errors.UniqueViolation:  # another process created it in the same instant
                cursor.execute(_CREATE)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
