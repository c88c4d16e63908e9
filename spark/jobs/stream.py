"""The streaming driver: one ingest query per stream, an alert lane for each that has alerts, and a query for each
velocity, sessions or join that a contract declares, in one process, until it is told to stop.

    spark-submit spark/jobs/stream.py --epoch N        (or plain python; the session configures itself)

`--epoch` is the lease's fencing token: the driver renews the lease while it runs and asks before each commit whether
its epoch is still the newest. It ends

- with exit code 0 after SIGTERM, SIGINT or when `<run_dir>/stream/stop` appears: running batches are finished first;
- with exit code 1 when any query fails, the lease is lost or the machine's clock was set back (see `spark.clock`), with
  the reason in the heartbeat and on standard error.

A stream that needs a person's decision (`Halt`: its topics are missing, its checkpoint is refused, or a poison storm)
only halts itself: the heartbeat says so, the other streams go on, and it is tried again each `RETRY_HALTED` seconds, so
it resumes soon after the decision.

Between batches it merges the small files of its tables (see `spark.upkeep`).

`<run_dir>/stream/heartbeat.json` is written each second (see `spark.heartbeat`).
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from types import FrameType
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from infra.broker.offsets import require_topics
from infra.locks.driver_lease import Lease, LeaseUnreachable
from infra.settings import Settings, settings
from schemas.contract.catalog import catalog
from schemas.contract.model import Contract
from schemas.errors import Halt, MillraceError, TransientError
from spark import checkpoints, lineage, restart, source
from spark.clock import Clock
from spark.definitions import stateful_results
from spark.heartbeat import NO_PROGRESS, Heartbeat, plain, progress
from spark.ingest import Ingest
from spark.lake import batch_numbers, retention, tables
from spark.lane import Lane
from spark.letters import Letters
from spark.lineage_events import told
from spark.session import session
from spark.stateful import StatefulQuery
from spark.upkeep import Upkeep, of_ingest
from spark.writers import Writers

log = logging.getLogger("millrace.stream")

PATIENCE = 60.0
"""Seconds that a commit waits for the lease's server, and that a stop waits for running batches."""

RETRY_HALTED = 30.0
"""Seconds between the attempts of a halted stream; one costs a look at the checkpoint, or a count over one batch."""


class Stopping(Exception):
    """Ends a query at the start of a batch, before it has done anything; the batch runs again after the restart."""


@dataclass
class Stream:
    """One stream's ingest query and what is going on in it."""

    contract: Contract
    configured: Settings
    stopping: threading.Event
    may_commit: Callable[[], None]
    query: StreamingQuery | None = None
    letters: Letters | None = None
    writers: Writers | None = None
    failure: BaseException | None = None
    told: tuple[str, datetime] | None = None
    """The last halt's message and when it began; kept while the stream is tried again, until a batch is finished."""
    running: bool = field(default=False)
    lane: Lane | None = field(default=None, init=False)
    """If the contract has alerts; it runs whether the ingest is halted or not."""

    def __post_init__(self) -> None:
        if self.contract.alerts:
            self.lane = Lane(self.contract, self.configured, self.may_commit)

    def start(self, spark: SparkSession) -> None:
        """Finishes what a reset left to be finished and starts the query. What `Halt`s it, `halted` tells."""
        try:
            self._start(spark)
        except Halt as halt:
            self._failed(halt)

    def _start(self, spark: SparkSession) -> None:
        name, settings = self.contract.stream, self.configured
        if checkpoints.settled_batch(self.contract, settings) is None:  # else it costs each recovery a connection
            with suppress(TransientError):  # a broker that is away is waited for by the query
                require_topics(settings, self.contract, "stream")
        opening = restart.opening(self.contract, settings)
        if opening.unfinished is not None:
            ingest = self._ingest(batch_numbers.generation_of(opening.unfinished))
            ingest.onward(spark, batch_numbers.batch_id_of(opening.unfinished))
            restart.finished(self.contract, settings, opening.generation)
        restart.remember(self.contract, settings, opening.generation)
        ingest = self._ingest(opening.generation)
        history = timedelta(hours=settings.history_hours)
        lake = settings.lake_uri
        upkeep = Upkeep(
            of_ingest(lake, self.contract), history, self.may_commit, lake, retention.of_ingest(lake, self.contract)
        )

        def batch(records: DataFrame, batch_id: int) -> None:
            if self.stopping.is_set():
                raise Stopping
            self.running = True
            try:
                ingest.batch(records, batch_id)
                # The batch is in the served view by now: nobody waits for this but a batch to come.
                upkeep.after_batch(waiting=self.query is not None and progress(self.query, False)["lag"] > 0)
                self.may_commit()  # else Spark would note the batch as done in a checkpoint that is another driver's
                self.told = None
            except BaseException as error:
                self._failed(error)
                raise
            finally:
                self.running = False

        self.failure = None
        spark.sparkContext.setLocalProperty("spark.scheduler.pool", name)
        self.query = (
            source.records(spark, self.contract, settings, opening.start)
            .writeStream.queryName(name)
            .option("checkpointLocation", checkpoints.location(settings, name, opening.generation))
            .trigger(processingTime=f"{int(settings.trigger_interval * 1000)} milliseconds")
            .foreachBatch(batch)
            .start()
        )

    def _ingest(self, generation: int) -> Ingest:
        name, settings = self.contract.stream, self.configured
        self.close()
        self.letters = Letters(
            self.contract, settings.kafka_client("stream"), checkpoints.application(name, generation)
        )
        self.writers = self.writers or Writers(self.contract, settings, self.stopping)
        return Ingest(
            self.contract,
            settings.lake_uri,
            generation,
            self.writers,
            self.letters,
            self.may_commit,
            partial(restart.is_accepted, settings, name),
        )

    def _failed(self, error: BaseException) -> None:
        self.failure = error
        if isinstance(error, Halt) and (self.told is None or self.told[0] != str(error)):
            self.told = (str(error), datetime.now(UTC))
            log.error("stream %s is halted: %s", self.contract.stream, error)

    @property
    def active(self) -> bool:
        return self.query is not None and self.query.isActive

    @property
    def halted(self) -> bool:
        """Whether the stream stands still until somebody decides."""
        return not self.active and isinstance(self.failure, Halt)

    def progress(self) -> dict[str, Any]:
        """As `spark.heartbeat.progress`, and `halted`: why and since when (ISO-8601, UTC), None while it runs;
        `waiting`: why a batch waits for the schema registry, None while none does; and `within`: the seconds in which
        its contract wants a batch finished, None if it does not say."""
        found = progress(self.query, self.running) if self.query else dict(NO_PROGRESS)
        halted = {"why": self.told[0], "since": self.told[1].isoformat()} if self.halted and self.told else None
        within = self.contract.progress_within
        return found | {
            "halted": halted,
            "waiting": self.writers and self.writers.waiting,
            "within": within and within.total_seconds(),
        }

    def error(self) -> str | None:
        """Why the query ended by itself, None while it runs or is halted."""
        if self.query is None or self.active or self.halted:
            return None
        return _message(self.failure or self.query.exception() or RuntimeError("the query ended without a reason"))

    def close(self) -> None:
        if self.letters is not None:
            self.letters.close()

    def finish(self) -> bool:
        """With `stopping` set: stops the query if it is between two batches; returns whether it has ended."""
        if self.query is None or not self.query.isActive:
            return True
        if not self.query.status["isTriggerActive"]:
            self.query.stop()
            return True
        return False


Query = Stream | StatefulQuery
"""What the driver runs and reports in its heartbeat, by stream or by the title of a derived result."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the driver and returns its exit code."""
    parser = argparse.ArgumentParser(description="The streaming driver of Millrace.")
    parser.add_argument("--epoch", type=int, required=True, help="epoch of the lease that this driver was started with")
    epoch = parser.parse_args(arguments).epoch
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for ours in ("millrace", "spark"):
        logging.getLogger(ours).setLevel(logging.INFO)
    configured = settings()
    told_to_stop = threading.Event()

    def on_signal(number: int, _: FrameType | None) -> None:
        log.info("%s: finishing the running batches", signal.Signals(number).name)
        told_to_stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    heartbeat = Heartbeat(configured.run_dir / "stream" / "heartbeat.json", epoch)
    heartbeat.beat("starting", {})
    streams: dict[str, Query] = {}
    lease = Lease(configured)
    try:
        with ExitStack() as runs:
            _run(configured, epoch, lease, heartbeat, streams, told_to_stop, runs)
    except Exception as error:
        log.exception("the driver stops")
        heartbeat.beat("failed", _progress(streams), _message(error))
        return 1
    heartbeat.beat("stopped", _progress(streams))
    log.info("stopped")
    return 0


class QueryFailed(MillraceError):
    """A stream's query ended by itself; the message says which and why."""


class ClockSetBack(MillraceError):
    """The machine's clock was set back, so the queries would wait for the time that it showed before."""


def _run(
    configured: Settings,
    epoch: int,
    lease: Lease,
    heartbeat: Heartbeat,
    streams: dict[str, Query],
    told_to_stop: threading.Event,
    runs: ExitStack,
) -> None:
    """`runs` are the streams' as OpenLineage is told of them: as long as the driver's life."""
    marker = configured.run_dir / "stream" / "stop"
    may_commit = _patient(lambda: lease.check(epoch))
    may_commit()
    spark = session(configured, "stream", "millrace-stream")
    contracts = catalog(configured.contracts)
    for name, contract in contracts.items():
        for change in tables.create(configured.lake_uri, contract):
            log.info("%s", change)
        streams[name] = Stream(contract, configured, told_to_stop, may_commit)
    for contract in contracts.values():
        for one in contract.derived:
            streams[stateful_results.title(contract, one)] = StatefulQuery(contract, one, configured, may_commit)
    clock = Clock()
    for stream in streams.values():
        heartbeat.beat("starting", {})
        stream.start(spark)
    log.info("running: %s", ", ".join(streams))
    for contract in contracts.values():
        runs.enter_context(told(configured, "ingest", contract, lineage.DRIVER, "STREAMING"))

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
        heartbeat.beat("running", _progress(streams))
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


def _progress(streams: dict[str, Query]) -> dict[str, dict[str, Any]]:
    ingests = [stream for stream in streams.values() if isinstance(stream, Stream)]
    lanes = {stream.contract.alerts_topic: stream.lane.progress() for stream in ingests if stream.lane}
    return {name: stream.progress() for name, stream in streams.items()} | lanes


def _message(error: BaseException) -> str:
    if isinstance(error, MillraceError):
        return str(error)
    return f"{type(error).__name__}: {plain(error)}"


if __name__ == "__main__":
    sys.exit(main())
