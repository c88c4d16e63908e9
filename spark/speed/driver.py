"""The streaming driver: runs the queries of all streams until it must end.

Each stream has a thread of its own (`spark.speed.attendant`), and what goes wrong in it stops that stream alone. The
driver ends for what concerns all: it is asked to, the lease is lost, Spark's session has ended, or the machine's clock
was set back. This thread writes the heartbeat and another renews the lease, so neither waits for a stream.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from py4j.protocol import Py4JError
from pyspark.sql import SparkSession
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from infra.locks.driver_lease import Lease, LeaseUnreachable
from infra.settings import Settings
from schemas.contract.folders import folders
from schemas.errors import MillraceError
from spark.lake import tables
from spark.session import session
from spark.speed.alert_lane import Lane
from spark.speed.attendant import Attendant
from spark.speed.clock import Clock
from spark.speed.heartbeat import Heartbeat
from spark.speed.query import Query
from spark.speed.standstill import words

log = logging.getLogger("millrace.stream")

PATIENCE = 60.0
"""Seconds that a commit waits for the lease's server, and that a stop waits for running batches."""

SLOW_START = 60.0
"""Seconds after which the driver counts as running though the first start of a stream is not done: it may have a batch
of an older generation to finish, or wait for a server."""


class DriverEnds(MillraceError):
    """What concerns all queries has happened; the message says what."""


class ClockSetBack(MillraceError):
    """The machine's clock was set back, so the queries would wait for the time that it showed before."""


@dataclass
class Driver:
    """The streaming driver of `settings`, whose process holds the `lease` with `epoch`. It runs until `stopping` is set
    or the stop file appears."""

    settings: Settings
    epoch: int
    lease: Lease
    heartbeat: Heartbeat
    stopping: threading.Event
    attendants: list[Attendant] = field(default_factory=list)
    _lost: Exception | None = None
    """Why the lease cannot be renewed any more."""

    def run(self) -> None:
        """Starts the queries of all streams and runs them until the driver must end. Raises `DriverEnds` and
        `ClockSetBack` after the running batches are finished, and what the lease raises when it is lost."""
        may_commit = _patient(lambda: self.lease.check(self.epoch))
        may_commit()
        threading.Thread(target=self._renew, name="lease", daemon=True).start()
        spark = session(self.settings, "stream", "millrace-stream")
        self._create_system_tables()
        for folder in folders(self.settings.contracts):
            self.attendants.append(Attendant(folder.name, self.settings, spark, self.stopping, may_commit))
        clock = Clock()
        for attendant in self.attendants:
            attendant.start()
        failure = self._watch(spark, clock)
        self.stopping.set()
        self._finish()
        if failure is not None:
            raise failure

    def progress(self) -> dict[str, dict[str, Any]]:
        """The progress of each query, as the heartbeat has it."""
        return {name: found for attendant in self.attendants for name, found in attendant.progress().items()}

    def _create_system_tables(self) -> None:
        try:
            for change in tables.create_all_system(self.settings.lake_uri):
                log.info("%s", change)
        except Exception as error:  # no stream needs them; who does reports what is wrong with them
            log.error("a table of the platform cannot be created: %s", words(error))

    def _renew(self) -> None:
        """Renews the lease three times in its life, until the driver ends or has lost it."""
        while not self.stopping.is_set():
            try:
                self.lease.renew(self.epoch)
            except LeaseUnreachable as error:  # commits wait for it themselves; reading may go on
                log.warning("%s", error)
            except Exception as error:
                self._lost = error
                return
            self.stopping.wait(self.settings.lease_seconds / 3)

    def _watch(self, spark: SparkSession, clock: Clock) -> Exception | None:
        """Writes the heartbeat each second until the driver must end. Returns the failure that it ends of, None if
        somebody stops it."""
        stop_file = self.settings.stream_dir / "stop"
        patient_until = time.monotonic() + SLOW_START
        starting = True
        while not (self.stopping.is_set() or stop_file.exists()):
            if (failure := self._failure(spark, clock)) is not None:
                return failure
            if starting and (all(a.started.is_set() for a in self.attendants) or time.monotonic() >= patient_until):
                starting = False
                log.info("running: %s", ", ".join(self.progress()))
            self.heartbeat.beat("starting" if starting else "running", {} if starting else self.progress())
            self.stopping.wait(0.1 if starting else 1.0)
        return None

    def _failure(self, spark: SparkSession, clock: Clock) -> Exception | None:
        """Why the driver must end, None while there is no reason."""
        if self._lost is not None:
            return self._lost
        errors = [f"{name}: {why}" for name, query in self._queries().items() if (why := query.error())]
        if errors:
            return DriverEnds("; ".join(errors))
        if _has_ended(spark):
            return DriverEnds("Spark's session has ended; its log says why: `millrace logs stream`")
        if back := clock.set_back():
            return ClockSetBack(f"the machine's clock was set back by {back:.0f} s; a new driver goes on by its time")
        return None

    def _queries(self) -> dict[str, Query]:
        return {name: query for attendant in self.attendants for name, query in list(attendant.queries.items())}

    def _finish(self) -> None:
        """Lets running batches finish, for `PATIENCE` seconds, and ends the queries. Lanes are ended first: they have
        no batches to wait for, and leave their slots to those that have."""
        deadline = time.monotonic() + PATIENCE
        for attendant in self.attendants:  # they may be in the middle of a start
            attendant.join(max(0.0, deadline - time.monotonic()))
        queries = self._queries()
        pending = dict(sorted(queries.items(), key=lambda named: not isinstance(named[1], Lane)))
        while pending and time.monotonic() < deadline:
            pending = {name: query for name, query in pending.items() if not query.finish()}
            threading.Event().wait(0.05)
        for name in pending:
            log.warning("stream %s: the running batch did not finish; it runs again", name)
        for query in queries.values():
            query.close()


def _has_ended(spark: SparkSession) -> bool:
    try:
        return bool(spark.sparkContext._jsc.sc().isStopped())
    except (Py4JError, OSError, AttributeError):  # the JVM is gone
        return True


def _patient(check: Callable[[], None]) -> Callable[[], None]:
    """`check`, asked again for a while when its server does not answer."""
    return Retrying(
        retry=retry_if_exception_type(LeaseUnreachable),
        wait=wait_exponential_jitter(multiplier=0.2, max=5),
        stop=stop_after_delay(PATIENCE),
        reraise=True,
    ).wraps(check)
