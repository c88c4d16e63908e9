"""The batch lock: PostgreSQL holds it for as long as its owner is connected, so batch runs of all processes and
machines take turns.

The pool of Airflow lets the batch jobs take turns; the lock covers jobs that somebody starts by hand as well. A process
that dies, by whatever signal, gives it up with its connection; one that is paused keeps it; and one whose connection
was cut finds that out before its next commit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from zlib import crc32

import psycopg2

from infra.settings import Settings
from schemas.errors import TransientError

log = logging.getLogger("millrace.exclusive")

PATIENCE = 600.0
"""Seconds that a run waits for another one's end, if the caller says nothing else."""


class Busy(TransientError):
    """Another process has the lock, or PostgreSQL cannot be asked; the message says which."""


class LockLost(TransientError):
    """The connection that held the lock is gone, so another process may be at work, and this one must not commit."""


@contextmanager
def exclusive(settings: Settings, name: str, patience: float = PATIENCE) -> Iterator[Callable[[], None]]:
    """Holds the lock `name` inside the block, and waits `patience` seconds for it. Gives the block a function that
    raises `LockLost` when the lock is no longer held: call it before each commit. Raises `Busy`."""
    try:
        connection = psycopg2.connect(
            settings.postgres("millrace"), connect_timeout=5, application_name=f"millrace-{name}-{os.getpid()}",
            keepalives_idle=5, keepalives_interval=2, keepalives_count=3,
        )  # fmt: skip
    except psycopg2.OperationalError as error:
        raise Busy(
            f"it is unknown whether another {name} run is at work, since PostgreSQL does not answer: {error}"
        ) from error
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            key = {"key": crc32(name.encode())}
            cursor.execute("select pg_try_advisory_lock(%(key)s)", key)
            if cursor.fetchone() != (True,):
                log.warning("another %s run is at work (%s): waiting for its end", name, _owner(cursor, key))
                cursor.execute("select set_config('lock_timeout', %s, false)", [f"{int(patience * 1000)}ms"])
                try:
                    cursor.execute("select pg_advisory_lock(%(key)s)", key)
                except psycopg2.errors.LockNotAvailable as error:
                    raise Busy(
                        f"another {name} run is at work ({_owner(cursor, key)}) and did not end within {patience:.0f} s"
                    ) from error

            def still_held() -> None:
                try:
                    cursor.execute("select 1")
                except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
                    raise LockLost(f"the lock of the {name} run is lost with its connection: {error}") from error

            yield still_held
    finally:
        connection.close()


def _owner(cursor: psycopg2.extensions.cursor, key: dict[str, int]) -> str:
    """The application name of the connection that holds the lock, in words for people."""
    cursor.execute(
        "select application_name from pg_locks join pg_stat_activity using (pid) "
        "where locktype = 'advisory' and granted and (classid::bigint << 32 | objid::bigint) = %(key)s",
        key,
    )
    return ", ".join(row[0] for row in cursor.fetchall()) or "it has just ended"
