"""The streaming driver: runs the queries of all streams until it must end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import SparkSession
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from infra.locks.driver_lease import Lease, LeaseUnreachable
from infra.settings import Settings
from schemas.contract.catalog import catalog
from schemas.contract.model import Contract
from schemas.errors import MillraceError
from spark.definitions import stateful_results
from spark.lake import tables
from spark.lineage import graph
from spark.lineage.events import reporting_run
from spark.session import session
from spark.speed.alert_lane import Lane
from spark.speed.clock import Clock
from spark.speed.heartbeat import Heartbeat
from spark.speed.ingest_query import IngestQuery
from spark.speed.query import Query
from spark.speed.stateful_query import StatefulQuery

log = logging.getLogger("millrace.stream")

PATIENCE = 60.0
"""Seconds that a commit waits for the lease's server, and that a stop waits for running batches."""

RETRY_HALTED = 30.0
"""Seconds between the attempts of a halted query; one costs a look at the checkpoint, or a count over one batch."""


class QueryFailed(MillraceError):
    """A stream's query ended by itself; the message says which and why."""


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
    queries: dict[str, Query] = field(default_factory=dict)
    """The running queries by the names that the heartbeat has for them."""

    def run(self) -> None:
        """Starts the queries of all streams and runs them until the driver must end. For OpenLineage this is a run of
        each stream.

        Raises `QueryFailed` and `ClockSetBack` after the running batches are finished, and what the lease raises when
        it is lost."""
        may_commit = _patient(lambda: self.lease.check(self.epoch))
        may_commit()
        spark = session(self.settings, "stream", "millrace-stream")
        contracts = catalog(self.settings.contracts)
        for contract in contracts.values():
            for change in tables.create(self.settings.lake_uri, contract):
                log.info("%s", change)
        self._add_queries(contracts.values(), may_commit)
        clock = Clock()
        for query in self.queries.values():
            self.heartbeat.beat("starting", {})
            query.start(spark)
        log.info("running: %s", ", ".join(self.queries))
        with ExitStack() as runs:
            for contract in contracts.values():
                runs.enter_context(reporting_run(self.settings, "ingest", contract, graph.DRIVER, "STREAMING"))
            failure = self._watch(spark, clock)
            self.stopping.set()
            self._finish()
            if failure is not None:
                raise failure
            spark.stop()

    def progress(self) -> dict[str, dict[str, Any]]:
        """The progress of each query, as the heartbeat has it."""
        return {name: query.progress() for name, query in self.queries.items()}

    def _add_queries(self, contracts: Collection[Contract], may_commit: Callable[[], None]) -> None:
        """Makes the queries in the order in which they are started: the ingests, by stream; the stateful results, by
        title; the alert lanes, by topic."""
        for contract in contracts:
            self.queries[contract.stream] = IngestQuery(contract, self.settings, self.stopping, may_commit)
        for contract in contracts:
            for result in contract.stateful_results:
                title = stateful_results.title(contract, result)
                self.queries[title] = StatefulQuery(contract, result, self.settings, may_commit)
        for contract in contracts:
            if contract.alerts:
                self.queries[contract.alerts_topic] = Lane(contract, self.settings, may_commit)

    def _watch(self, spark: SparkSession, clock: Clock) -> MillraceError | None:
        """Renews the lease, tends the queries and writes the heartbeat, each second until the driver must end. Returns
        the failure that it ends of, None if somebody stops it."""
        stop_file = self.settings.stream_dir / "stop"
        renewal, retry = 0.0, time.monotonic() + RETRY_HALTED
        while not (self.stopping.is_set() or stop_file.exists()):
            if time.monotonic() >= renewal:
                renewal = time.monotonic() + self.settings.lease_seconds / 3
                try:
                    self.lease.renew(self.epoch)
                except LeaseUnreachable as error:  # commits wait for it themselves; reading may go on
                    log.warning("%s", error)
            if (failure := self._failure(clock)) is not None:
                return failure
            if time.monotonic() >= retry:
                retry = time.monotonic() + RETRY_HALTED
                for query in self.queries.values():
                    if query.halted:
                        query.start(spark)
            for query in self.queries.values():
                query.tend(spark)
            self.heartbeat.beat("running", self.progress())
            self.stopping.wait(1.0)
        return None

    def _failure(self, clock: Clock) -> MillraceError | None:
        """Why the driver must end, None while there is no reason."""
        errors = [f"stream {name}: {why}" for name, query in self.queries.items() if (why := query.error())]
        if errors:
            return QueryFailed("; ".join(errors))
        if back := clock.set_back():
            return ClockSetBack(f"the machine's clock was set back by {back:.0f} s; a new driver goes on by its time")
        return None

    def _finish(self) -> None:
        """Lets running batches finish, for `PATIENCE` seconds, and ends the queries. Lanes, which were started last,
        are ended first: they have no batches to wait for, and leave their slots to those that have."""
        deadline = time.monotonic() + PATIENCE
        pending = dict(reversed(self.queries.items()))
        while pending and time.monotonic() < deadline:
            pending = {name: query for name, query in pending.items() if not query.finish()}
            threading.Event().wait(0.05)
        for name in pending:
            log.warning("stream %s: the running batch did not finish; it runs again", name)
        for query in self.queries.values():
            query.close()


def _patient(check: Callable[[], None]) -> Callable[[], None]:
    """`check`, asked again for a while when its server does not answer."""
    return Retrying(
        retry=retry_if_exception_type(LeaseUnreachable),
        wait=wait_exponential_jitter(multiplier=0.2, max=5),
        stop=stop_after_delay(PATIENCE),
        reraise=True,
    ).wraps(check)
