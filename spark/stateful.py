"""Velocity, sessions and joins as streaming queries: each is one query over bronze, with state of its own.

Bronze is what the ingest has decoded, judged and committed, so nothing is decoded twice, and a query that begins anew
finds everything from the beginning. Compaction (commits that change no data) is not news to it, and rewritten rows are
not read again. Events older than the watermark (event time less the allowed lateness) come too late for the state; the
batch layer repairs what they would have changed.

A batch is appended to the speed table under the transaction id of the query's checkpoint, so a batch that runs again
appends nothing twice. But it must run: a write that is skipped does not look at its rows, and then the state would lack
what they changed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from infra.settings import Settings
from schemas.contract.model import Contract, Derived, Join, Sessions, Velocity
from schemas.errors import Halt
from spark import batches, checkpoint_log, checkpoints
from spark.checkpoint_log import Unreadable
from spark.definitions import stateful_results
from spark.fingerprint import Fingerprint, changes
from spark.heartbeat import NO_PROGRESS, plain
from spark.lake import batch_numbers, contents, names, retention
from spark.transforms.joins import joined
from spark.transforms.sessions import sessions
from spark.transforms.velocity import Event, crossings
from spark.upkeep import Upkeep

log = logging.getLogger(__name__)

EVERYTHING = 1_000_000
"""Files a batch takes at most. All that is there when a query begins must be one batch: files come in the order in
which they were last written, and compaction would make old events late."""

TOLD_AFTER = timedelta(seconds=60)
"""How long a query that failed stands still before it counts as halted: it is tried again meanwhile, twice. A column
that its tables gain (Delta ends each running read of a table whose columns change), or a disk that is full for a
moment, is no news for people."""

SLOWER = 5
"""Times the ingest's trigger interval: a batch with state costs more than its rows."""


class CheckpointRefused(Halt):
    """The query must not start from its checkpoint; the message says why and what to do."""


# -- what it computes ----------------------------------------------------------------------------------------------


def events(spark: SparkSession, contract: Contract, lake_uri: str) -> DataFrame:
    """The accepted rows of bronze as a stream of `event_time` and the contract's fields, with the watermark."""
    return (
        spark.readStream.format("delta")
        .option("skipChangeCommits", "true")
        .option("maxFilesPerTrigger", EVERYTHING)
        .load(names.bronze(lake_uri, contract.stream))
        .where("accepted")
        .select(*dict.fromkeys(["event_time", *contract.fields]))
        .withWatermark("event_time", f"{contract.allowed_lateness // timedelta(milliseconds=1)} milliseconds")
    )


def results(spark: SparkSession, contract: Contract, one: Derived, lake_uri: str) -> DataFrame:
    """The streaming rows of the speed table of `one`, without `batch`."""
    mine = events(spark, contract, lake_uri)
    match one:
        case Velocity():
            return crossings(mine, contract, one)
        case Sessions():
            return sessions(mine.dropDuplicatesWithinWatermark(contract.event_id), contract, one)
        case Join():
            other = stateful_results.other(contract, one)
            theirs = events(spark, other, lake_uri).dropDuplicatesWithinWatermark(other.event_id)
            return joined(mine.dropDuplicatesWithinWatermark(contract.event_id), theirs, contract, one)


def append(rows: DataFrame, uri: str, application: str, batch_id: int, may_commit: Callable[[], None]) -> None:
    """Appends a batch of a stateful query once, and lets its state have the batch every time."""
    written = contents.newest_append(uri, application)
    if written is not None and written >= batch_id:
        rows.write.format("noop").mode("append").save()
    else:
        batches.append(rows, uri, application, batch_id, may_commit)


FIRST_STATE = "at, id, amount, told"
"""What the state of velocity held when its fingerprint did not say so."""


def fingerprint(contract: Contract, one: Derived) -> Fingerprint:
    """Of the query: what its state is made of and how long it is kept (the types of what it is made of are those of
    bronze, which the ingest's fingerprint holds). Of the table: what kind of rows it has, and the types of its columns.
    A limit (`more_than`) may change, and counts from then on."""
    found = {"key": ", ".join(stateful_results.key(one))}
    for source in stateful_results.sources(contract, one):
        found[f"identity of {source.stream}"] = ", ".join(source.event_id)
        found[f"watermark of {source.stream}"] = f"{source.event_time} - {source.allowed_lateness}"
    match one:
        case Velocity():
            found |= {"within": str(one.within), "of": str(one.of), "state": ", ".join(Event._fields)}
        case Sessions():
            found |= {"gap": str(one.gap), "measures": ", ".join(f"{m.kind} {m.of}" for m in one.measures)}
        case Join():
            shown = ", ".join(stateful_results.columns(contract, one))
            found |= {"interval": f"{one.before}, {one.after}", "kind": one.kind, "columns": shown}
    types = {f"column {name}": type_.simpleString() for name, type_ in stateful_results.columns(contract, one).items()}
    return Fingerprint(query=found, tables={"kind of result": type(one).__name__.lower()} | types)


# -- its checkpoint ------------------------------------------------------------------------------------------------


def opening(contract: Contract, one: Derived, settings: Settings) -> int:
    """The generation with which the query starts. Changes nothing. Raises `CheckpointRefused`."""
    title = stateful_results.title(contract, one)
    generation = checkpoints.generation(settings, title)
    place = checkpoints.location(settings, title, generation)
    try:
        log = checkpoint_log.read(place, kafka=False)
        before = remembered(contract, one, settings, generation)
    except Unreadable as error:
        raise _refused(title, f"{error}. Put the file back from a copy, or {_reset(title)}") from error
    uri = names.speed(settings.lake_uri, contract.stream, one.name)
    misfit = checkpoints.misfit(settings, title, generation, log, uri, "its table")
    if misfit:
        raise _refused(title, f"{misfit}. Put the right checkpoint back from a copy, or {_reset(title)}")
    changed = changes(before, fingerprint(contract, one))
    if changed:
        told = "; ".join(f"{change.name}: {change.before!r} became {change.now!r}" for change in changed)
        resettable = all(change.resettable for change in changed)
        way_out = f"Undo it, or {_reset(title) if resettable else 'give the result a new name'}"
        raise _refused(title, f"{contract.folder / 'stream.yaml'} changed what may not change ({told}). {way_out}")
    return generation


def remember(contract: Contract, one: Derived, settings: Settings, generation: int) -> None:
    """Notes the fingerprint that the query of `generation` starts with."""
    before = remembered(contract, one, settings, generation)
    known = fingerprint(contract, one).after(before)
    if known != before:
        place = checkpoints.location(settings, stateful_results.title(contract, one), generation)
        checkpoint_log.put(_noted(place), known.model_dump_json(indent=1))


def remembered(contract: Contract, one: Derived, settings: Settings, generation: int) -> Fingerprint:
    """The fingerprint noted beside the checkpoint of `generation`, an empty one if there is none. Raises
    `Unreadable`."""
    place = checkpoints.location(settings, stateful_results.title(contract, one), generation)
    noted = checkpoint_log.model(Fingerprint, _noted(place)) or Fingerprint()
    if "within" in noted.query and "state" not in noted.query:  # of velocity, from before its state was noted
        return noted.model_copy(update={"query": noted.query | {"state": FIRST_STATE}})
    return noted


def reset(contract: Contract, one: Derived, settings: Settings) -> int:
    """Makes the next generation, which begins with the first row of bronze; what older ones made counts no more in the
    served view. No driver may run. Returns the generation."""
    title = stateful_results.title(contract, one)
    newest = contents.newest_batch(names.speed(settings.lake_uri, contract.stream, one.name)) or 0
    generation = max(checkpoints.generation(settings, title), batch_numbers.generation_of(newest)) + 1
    known = Fingerprint(tables=fingerprint(contract, one).tables)
    checkpoint_log.put(_noted(checkpoints.location(settings, title, generation)), known.model_dump_json(indent=1))
    return generation


def emitted_through(contract: Contract, one: Derived, settings: Settings) -> datetime | None:
    """The watermark of the newest committed batch: rows that closed before it have been appended. None before the
    first."""
    title = stateful_results.title(contract, one)
    place = checkpoints.location(settings, title, checkpoints.generation(settings, title))
    committed = max(checkpoint_log.numbers(f"{place}/commits", r"(\d+)"), default=None)
    text = None if committed is None else checkpoint_log.document(f"{place}/offsets/{committed}")
    if text is None:
        return None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
        milliseconds=json.loads(text.splitlines()[1])["batchWatermarkMs"]
    )


def _noted(place: str) -> str:
    return f"{place}/fingerprint.json"


def _refused(title: str, why: str) -> CheckpointRefused:
    return CheckpointRefused(f"{title} does not start: {why}")


def _reset(title: str) -> str:
    return f"begin again with the first row of bronze: `millrace checkpoint reset {title}`"


# -- the running query ---------------------------------------------------------------------------------------------


@dataclass
class StatefulQuery:
    """One derived result's query in the driver; what `spark.jobs.stream.Stream` is to an ingest. If it fails it halts
    itself alone: the ingest goes on, and the driver tries it again. (A lost lease is among what a batch fails of; the
    driver learns of it when it renews the lease, and ends.)"""

    contract: Contract
    one: Derived
    configured: Settings
    may_commit: Callable[[], None] = lambda: None
    once: bool = False
    """Whether it ends when it has taken what is there."""
    query: StreamingQuery | None = None
    failure: BaseException | None = None
    since: datetime | None = None
    """When it failed first; kept while it is tried again, until a batch is finished."""
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def start(self, spark: SparkSession) -> None:
        """Starts the query. What keeps it from that, `halted` tells."""
        try:
            self._start(spark)
        except Exception as error:  # a refused checkpoint, Spark, Delta, the disk
            self._failed(error)

    def _start(self, spark: SparkSession) -> None:
        title, settings = stateful_results.title(self.contract, self.one), self.configured
        generation = opening(self.contract, self.one, settings)
        remember(self.contract, self.one, settings, generation)
        self.failure = None
        every = f"{int(SLOWER * settings.trigger_interval * 1000)} milliseconds"
        uri = names.speed(settings.lake_uri, self.contract.stream, self.one.name)
        application = checkpoints.application(title, generation)
        kept = [retention.of_derived(settings.lake_uri, self.contract, self.one)]
        history = timedelta(hours=settings.history_hours)
        upkeep = Upkeep([uri], history, self.may_commit, settings.lake_uri, kept)

        def batch(rows: DataFrame, batch_id: int) -> None:
            try:
                number = batches.stamp(batch_numbers.batch_number(generation, batch_id))
                append(rows.withColumn("batch", number), uri, application, batch_id, self.may_commit)
                upkeep.after_batch(waiting=False)  # the batch is in the served view by now
                self.may_commit()  # else Spark would note the batch as done in a checkpoint that is another driver's
                self.since = None
            except BaseException as error:
                self._failed(error)
                raise

        spark.sparkContext.setLocalProperty("spark.scheduler.pool", title)
        self.query = (
            results(spark, self.contract, self.one, settings.lake_uri)
            .writeStream.queryName(title)
            .option("checkpointLocation", checkpoints.location(settings, title, generation))
            .trigger(**({"availableNow": True} if self.once else {"processingTime": every}))
            .foreachBatch(batch)
            .start()
        )

    @property
    def active(self) -> bool:
        return self.query is not None and self.query.isActive

    @property
    def halted(self) -> bool:
        """Whether it stands still."""
        if self.active:
            return False
        if self.failure is None and self.query is not None:
            self._failed(self.query.exception() or RuntimeError("the query ended without a reason"))
        return self.failure is not None

    def _failed(self, error: BaseException) -> None:
        self.failure = error
        if self.since is None:
            self.since = self.clock()
            log.error("%s stands still: %s", stateful_results.title(self.contract, self.one), error)

    def _told(self) -> dict[str, str] | None:
        """Why it is halted, with the way out, and since when it counts as that: at once if somebody must decide."""
        if not self.halted or self.failure is None or self.since is None:
            return None
        title = stateful_results.title(self.contract, self.one)
        if isinstance(self.failure, Halt):
            return {"why": str(self.failure), "since": self.since.isoformat()}
        since = self.since + TOLD_AFTER
        if since > self.clock():
            return None
        words = plain(self.failure) or type(self.failure).__name__
        again = f"It is tried again by itself; if it stays so, {_reset(title)}"
        return {"why": f"{title} stands still: {words}\n{again}", "since": since.isoformat()}

    def progress(self) -> dict[str, Any]:
        """The newest batch_id, its rows and `halted`, as an ingest's. It has no lag: its first batch is all that there
        is, and however long that takes, the driver of the other streams must not be replaced for it."""
        last: Any = self.query.lastProgress if self.query else None
        found = {"batch_id": last["batchId"], "rows": last["numInputRows"]} if last else {}
        return NO_PROGRESS | found | {"halted": self._told()}

    def error(self) -> str | None:
        """Why the driver must end: never for this."""
        return None

    def finish(self) -> bool:
        """Stops the query if it is between two batches; returns whether it has ended."""
        if self.query is not None and self.query.isActive:
            if self.query.status["isTriggerActive"]:
                return False
            self.query.stop()
        self.query = None
        return True

    def close(self) -> None:
        pass
