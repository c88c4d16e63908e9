"""The streaming driver: runs the queries of all streams until it must end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from infra.locks.driver_lease import Lease, LeaseUnreachable
from infra.settings import Settings
from schemas.contract.catalog import catalog
from schemas.errors import MillraceError
from spark.definitions import stateful_results
from spark.lake import tables
from spark.lineage import graph
from spark.lineage.events import reporting_run
from spark.session import session
from spark.speed.clock import Clock
from spark.speed.heartbeat import Heartbeat
from spark.speed.ingest_query import Stream
from spark.speed.stateful_query import StatefulQuery

log = logging.getLogger("millrace.stream")


PATIENCE = 60.0
"""Seconds that a commit waits for the lease's server, and that a stop waits for running batches."""


RETRY_HALTED = 30.0
"""Seconds between the attempts of a halted stream; one costs a look at the checkpoint, or a count over one batch."""


Query = Stream | StatefulQuery
"""What the driver runs and reports in its heartbeat, by stream or by the title of a stateful result."""


class QueryFailed(MillraceError):
    """A stream's query ended by itself; the message says which and why."""


class ClockSetBack(MillraceError):
    """The machine's clock was set back, so the queries would wait for the time that it showed before."""


def run(
    configured: Settings,
    epoch: int,
    lease: Lease,
    heartbeat: Heartbeat,
    streams: dict[str, Query],
    told_to_stop: threading.Event,
    runs: ExitStack,
) -> None:
    """`runs` are the streams' as OpenLineage is told of them: as long as the driver's life."""
    marker = configured.stream_dir / "stop"
    may_commit = _patient(lambda: lease.check(epoch))
    may_commit()
    spark = session(configured, "stream", "millrace-stream")
    contracts = catalog(configured.contracts)
    for name, contract in contracts.items():
        for change in tables.create(configured.lake_uri, contract):
            log.info("%s", change)
        streams[name] = Stream(contract, configured, told_to_stop, may_commit)
    for contract in contracts.values():
        for one in contract.stateful_results:
            streams[stateful_results.title(contract, one)] = StatefulQuery(contract, one, configured, may_commit)
    clock = Clock()
    for stream in streams.values():
        heartbeat.beat("starting", {})
        stream.start(spark)
    log.info("running: %s", ", ".join(streams))
    for contract in contracts.values():
        runs.enter_context(reporting_run(configured, "ingest", contract, graph.DRIVER, "STREAMING"))

    renewal, retry = 0.0, time.monotonic() + RETRY_HALTED
    while not (told_to_stop.is_set() or marker.exists()):
        if time.monotonic() >= renewal:
            renewal = time.monotonic() + configured.lease_seconds / 3
            try:
                lease.renew(epoch)
            except LeaseUnreachable as error:  # commits wait for it themselves; reading may go on
                log.warning("%s", error)
        failures = [f"stream {name}: {why}" for name, stream in streams.items() if (why := stream.error())]
        if failures:
            told_to_stop.set()
            _finish(streams)
            raise QueryFailed("; ".join(failures))
        if back := clock.set_back():
            told_to_stop.set()
            _finish(streams)
            raise ClockSetBack(f"the machine's clock was set back by {back:.0f} s; a new driver goes on by its time")
        if time.monotonic() >= retry:
            retry = time.monotonic() + RETRY_HALTED
            for stream in streams.values():
                if stream.halted:
                    stream.start(spark)
        for stream in streams.values():
            if isinstance(stream, Stream) and stream.lane is not None:
                stream.lane.tend(spark)
        heartbeat.beat("running", progress(streams))
        told_to_stop.wait(1.0)
    told_to_stop.set()
    _finish(streams)
    spark.stop()


def _finish(streams: dict[str, Query]) -> None:
    """Stops the lanes, lets running batches finish, for `PATIENCE` seconds, and stops their queries."""
    for stream in streams.values():
        if isinstance(stream, Stream) and stream.lane is not None:
            stream.lane.close()
    deadline = time.monotonic() + PATIENCE
    pending = list(streams.values())
    while pending and time.monotonic() < deadline:
        pending = [stream for stream in pending if not stream.finish()]
        threading.Event().wait(0.05)
    for stream in pending:
        log.warning("stream %s: the running batch did not finish; it runs again", stream.contract.stream)
    for stream in streams.values():
        stream.close()


def _patient(check: Callable[[], None]) -> Callable[[], None]:
    """`check`, asked again for a while when its server does not answer."""
    return Retrying(
        retry=retry_if_exception_type(LeaseUnreachable),
        wait=wait_exponential_jitter(multiplier=0.2, max=5),
        stop=stop_after_delay(PATIENCE),
        reraise=True,
    ).wraps(check)


def progress(streams: dict[str, Query]) -> dict[str, dict[str, Any]]:
    ingests = [stream for stream in streams.values() if isinstance(stream, Stream)]
    lanes = {stream.contract.alerts_topic: stream.lane.progress() for stream in ingests if stream.lane}
    return {name: stream.progress() for name, stream in streams.items()} | lanes
