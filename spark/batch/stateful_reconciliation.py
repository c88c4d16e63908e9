"""The batch layer of velocity, sessions and joins: recompute exactly what is new or has changed, explain, publish.

A result is recomputed from distinct events by the pure functions of `spark.transforms`, for the keys that have events
which the last publication did not know or which were not final then, from the first of those events on. Its rows
become final as far as the streams it is made of are final (`spark.jobs.reconcile` has published them before).

Where the exact rows differ from those that were served without any explanation, nothing is published, as with windows.
The new rows replace the old ones in one commit; then its rows of `publications` make them count. A run that died in
between is undone first: the table goes back to its last published version.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, reduce
from typing import Any, assert_never

from deltalake import DeltaTable
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from infra.settings import Settings
from schemas.contract.model import Contract, Join, Sessions, StatefulResult, Velocity
from spark.batch import stateful_ledger
from spark.batch.plan import UnexplainedDifference
from spark.batch.store import BatchStore
from spark.definitions import stateful_results
from spark.definitions.times import BEGINNING_OF_TIME, literal, time_of
from spark.definitions.windows import interval
from spark.lake import contents, names, table_schemas
from spark.lake.publications import Publication, publications, unique_run_id
from spark.speed.checkpoint import stateful_start
from spark.transforms import velocity
from spark.transforms.aggregates import distinct_events
from spark.transforms.joins import joined
from spark.transforms.sessions import sessions

log = logging.getLogger("millrace.reconcile")


@dataclass
class Derivation:
    """One run for one result. `now` is the time that its log rows carry; `emitted` is how far the speed layer has come
    (`stateful.emitted_through`). `may_commit` is called before each write and raises when this process must not (any
    more)."""

    spark: SparkSession
    lake_uri: str
    contract: Contract
    one: StatefulResult
    run_id: str
    now: datetime
    emitted: datetime | None
    may_commit: Callable[[], None] = lambda: None

    def run(self) -> dict[str, Any]:
        """Does the run and returns its summary. Raises `UnexplainedDifference`, with nothing published: the ledger has
        the alert until a later run finds it gone."""
        known = publications(self.lake_uri, self.title)
        self.run_id = unique_run_id(self.run_id, known)
        if self.final is None or (known and self.final == self._before and not self._news()):
            return self._summary(0, Counter())
        self._undo({publication.run_id for publication in known})
        dirty = self.dirty().localCheckpoint()
        micros = (dirty.agg(F.unix_micros(F.min("since"))).head() or [None])[0]
        if micros is None:
            self._publish(0)
            return self._summary(0, Counter())
        first = literal(time_of(micros))
        since = F.expr(first)
        exact = self.exact(dirty, since).localCheckpoint()
        old = self._read(names.batch).where(F.col(self.place) >= since)
        marked = old.join(dirty, self.key, "left").withColumn("_stale", F.col(self.place) >= F.col("since"))
        stale = F.coalesce("_stale", F.lit(False))
        replaced = marked.where(stale).select(*old.columns).localCheckpoint()
        found = self.differences(exact, replaced).localCheckpoint()
        causes = Counter({row.cause: row.n for row in found.groupBy("cause").agg(F.count("*").alias("n")).collect()})
        log.info("%s: ledger: %s", self.title, dict(causes) or "no differences")
        self.store.forget_ledger({publication.run_id for publication in known}, self.title)
        if causes["unexplained"]:
            self._refuse(found.where("cause = 'unexplained'"))
        kept = marked.where(~stale).select(*old.columns)
        columns = table_schemas.stateful_batch_schema(self.contract, self.one).names
        staged = exact.withColumn("run_id", F.lit(self.run_id)).select(*columns).unionByName(kept.select(*columns))
        self.may_commit()
        staged.write.format("delta").mode("overwrite").save(self._uri(names.staged))
        rows = exact.count()
        self.may_commit()
        (
            self._read(names.staged)
            .write.format("delta")
            .mode("overwrite")
            .option("replaceWhere", f"{self.place} >= {first}")
            .option("userMetadata", self.run_id)
            .save(self._uri(names.batch))
        )
        if causes:
            self.store.append_ledger(found)
        self._publish(rows)
        return self._summary(rows, causes)

    # -- the steps -------------------------------------------------------------------------------------------------

    def dirty(self) -> DataFrame:
        """The keys whose rows must be computed again, and since which place: the columns of the key, `since`."""
        found = []
        for source in self.sources:
            own = source is self.contract
            earlier = timedelta() if own or not isinstance(self.one, Join) else self.one.after
            since = F.min("event_time") - F.expr(interval(earlier))
            found.append(self._unsettled(source).groupBy(*self.key).agg(since.alias("since")))
        dirty = reduce(DataFrame.unionByName, found).groupBy(*self.key).agg(F.min("since").alias("since"))
        if not isinstance(self.one, Sessions):
            return dirty
        # A session that is not closed may have begun long ago, but not before the end of the last one that is.
        ended = self._read(names.batch).select(*self.key, "session_end").join(dirty, self.key)
        last = (
            ended.where(F.col("session_end") < F.col("since"))
            .groupBy(*self.key)
            .agg(F.max("session_end").alias("_last"))
        )
        beginning = F.expr(literal(BEGINNING_OF_TIME))
        return dirty.join(last, self.key, "left").select(*self.key, F.coalesce("_last", beginning).alias("since"))

    def exact(self, dirty: DataFrame, since: Column) -> DataFrame:
        """The exact rows of the dirty keys from `since` (theirs; at least the given one) on that are final."""
        final = F.expr(literal(self.final))
        context = F.expr(interval(stateful_ledger.reach(self.one)))

        def events(source: Contract) -> DataFrame:
            """Distinct events of the dirty keys from a little before their `since`. Repeats may have other times than
            the event, so they are dropped before."""
            columns = list(dict.fromkeys(["event_time", *source.fields]))
            rows = self._accepted(source)
            if source.event_time in source.event_id:
                rows = rows.where(F.col("event_time") >= since - context)
            distinct = distinct_events(rows, source).select(*columns)
            return distinct.join(dirty, self.key).where(F.col("event_time") >= F.col("since") - context).drop("since")

        match self.one:
            case Velocity():
                rows = velocity.exact(events(self.contract), self.contract, self.one)
            case Sessions():
                mine = events(self.contract).join(dirty, self.key).where(F.col("event_time") >= F.col("since"))
                rows = sessions(mine.drop("since"), self.contract, self.one)
            case Join():
                mine, theirs = (events(source) for source in self.sources)
                rows = joined(mine, theirs, self.contract, self.one)
            case _:
                assert_never(self.one)
        wanted = rows.join(dirty, self.key).where(F.col(self.place) >= F.col("since"))
        return wanted.where(F.col(stateful_results.CLOSES_AT) <= final).select(*rows.columns)

    def differences(self, exact: DataFrame, replaced: DataFrame) -> DataFrame:
        """The ledger rows of the run: against the speed layer for rows that are published for the first time, against
        the published ones for those that are published again."""
        speed = self._read(names.speed)
        generation = F.lit(contents.newest_batch(self._uri(names.speed)) or 0).bitwiseAND(~((1 << 40) - 1))
        new = (
            speed.where(F.col("batch") >= generation)
            .where(F.col(stateful_results.CLOSES_AT) > F.expr(literal(self._before)))
            .where(F.col(stateful_results.CLOSES_AT) <= F.expr(literal(self.final)))
        )
        identity = stateful_results.identity(self.one, self.contract)
        columns = [*stateful_results.columns(self.contract, self.one), stateful_results.CLOSES_AT]
        served = replaced.select(*columns).unionByName(new.select(*columns).join(replaced, identity, "left_anti"))
        emitted = F.expr(literal(max(self.emitted, self._before))) if self.emitted else None
        different = stateful_ledger.differences(exact, served, self.contract, self.one, emitted).localCheckpoint()
        if different.isEmpty():
            return self.spark.createDataFrame([], table_schemas.SYSTEM["ledger"])
        keys = different.select(*self.key).distinct() if isinstance(self.one, Velocity) else None
        # Of all batches: the query may have taken some after the cut together with those up to it.
        arrived = {
            source.stream: stateful_ledger.arrivals(
                BatchStore(self.spark, self.lake_uri, source).accepted(),
                source,
                (F.col("batch") > self._through_before[source.stream])
                & (F.col("event_time") < F.expr(literal(self._before))),
                keys,
            )
            for source in self.sources
        }
        values = [F.col(name).cast("string") for name in self.key]
        return stateful_ledger.explained(different, arrived, self.contract, self.one).select(
            F.lit(self.run_id).alias("run_id"),
            F.lit(self.title).alias("stream"),
            F.lit(self.one.name).alias("aggregate"),
            F.lit(type(self.one).__name__.lower()).alias("window"),
            F.col(self.place).alias("window_start"),
            F.map_from_arrays(F.array(*(F.lit(name) for name in self.key)), F.array(*values)).alias("keys"),
            "measure", "speed", "exact",
            (F.col("exact") - F.col("speed")).alias("difference"),
            "cause", "rows", "repeats", "late", "replayed",
            F.expr(literal(self.now)).alias("recorded_at"),
        )  # fmt: skip

    def _unsettled(self, source: Contract) -> DataFrame:
        """The accepted rows of a source that can change what is published: those that came after the last publication
        and those of which rows were not closed then."""
        rows = self._accepted(source)
        new = F.col("batch") > self._through_before[source.stream]
        if source is not self.contract:
            return rows.where(new)
        match self.one:
            case Velocity():
                open_for = timedelta()
            case Sessions():
                open_for = self.one.gap
            case Join():
                open_for = self.one.after
            case _:
                assert_never(self.one)
        return rows.where(new | (F.col("event_time") >= F.expr(literal(self._before)) - F.expr(interval(open_for))))

    def _refuse(self, unexplained: DataFrame) -> None:
        self.store.append_ledger(unexplained)
        examples = "\n  ".join(
            f"{row['keys']} {row.start}: {row.measure} was served as {row.speed}, exact is {row.exact}"
            for row in unexplained.withColumn("start", F.col("window_start").cast("string")).limit(10).collect()
        )
        refused = UnexplainedDifference(
            f"{self.title}: served numbers differ from the exact ones and nothing explains it: nothing is published. "
            f"The ledger has them all (run_id {self.run_id}); if the exact ones are right, let the query begin again: "
            f"`millrace checkpoint reset {self.title}`:\n  {examples}"
        )
        row = {"run_id": self.run_id, "stream": self.title, "final_through": self.final}
        self.store.log_rows("refusals", [row | {"reason": str(refused), "recorded_at": self.now}])
        raise refused

    def _publish(self, rows: int) -> None:
        """Its own row says how far it is final; one for each other source, what of it is in there. One commit."""
        assert self.final is not None
        titles = {source.stream: f"{self.title}.{source.stream}" for source in self.sources}
        titles[self.contract.stream] = self.title
        self.store.log_rows(
            "publications",
            [
                Publication(self.run_id, name, self.final, self._through[stream], 0, rows, self.now).row
                for stream, name in titles.items()
            ],
        )

    def _undo(self, known: set[str]) -> None:
        table = DeltaTable(names.local_path(self._uri(names.batch)))
        # Newest first; what is neither a run's nor takes one back (a compaction) changes no row.
        telling = [
            entry
            for entry in table.history()
            if "userMetadata" in entry or entry["operation"] in ("RESTORE", "CREATE TABLE")
        ]
        good = next(entry for entry in telling if entry.get("userMetadata") is None or entry["userMetadata"] in known)
        if good is not telling[0]:
            log.warning("%s: an unfinished run is undone, back to version %d", self.title, good["version"])
            self.may_commit()
            table.restore(good["version"])

    # -- facts -----------------------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        return stateful_results.title(self.contract, self.one)

    @property
    def key(self) -> list[str]:
        return stateful_results.key(self.one)

    @property
    def place(self) -> str:
        return stateful_results.time_column(self.one)

    @property
    def store(self) -> BatchStore:
        return BatchStore(self.spark, self.lake_uri, self.contract, self.may_commit)

    @cached_property
    def sources(self) -> tuple[Contract, ...]:
        return stateful_results.sources(self.contract, self.one)

    @cached_property
    def _published(self) -> dict[str, list[Publication]]:
        return {source.stream: publications(self.lake_uri, source.stream) for source in self.sources}

    @cached_property
    def final(self) -> datetime | None:
        """How far its rows can be final: as far as all of its sources are. None while one of them is nowhere."""
        ends = [found[-1].final_through if found else None for found in self._published.values()]
        return None if None in ends else min(end for end in ends if end)

    @cached_property
    def _through(self) -> dict[str, int]:
        """The newest batch of each source that its last publication contains."""
        return {stream: found[-1].through_batch for stream, found in self._published.items()}

    @cached_property
    def _before(self) -> datetime:
        known = publications(self.lake_uri, self.title)
        return known[-1].final_through if known else BEGINNING_OF_TIME

    @cached_property
    def _through_before(self) -> dict[str, int]:
        found = {}
        for source in self.sources:
            name = self.title if source is self.contract else f"{self.title}.{source.stream}"
            known = publications(self.lake_uri, name)
            found[source.stream] = known[-1].through_batch if known else -1
        return found

    def _news(self) -> bool:
        return any(self._through[stream] > before for stream, before in self._through_before.items())

    def _accepted(self, source: Contract) -> DataFrame:
        return BatchStore(self.spark, self.lake_uri, source).accepted(self._through[source.stream])

    def _uri(self, layer: Any) -> str:
        uri: str = layer(self.lake_uri, self.contract.stream, self.one.name)
        return uri

    def _read(self, layer: Any) -> DataFrame:
        return self.spark.read.format("delta").load(self._uri(layer))

    def _summary(self, rows: int, causes: Counter[str]) -> dict[str, Any]:
        return {
            "result": self.title,
            "rows": rows,
            "final_through": self.final and self.final.isoformat(),
            "ledger": dict(causes),
        }


def derivations(
    spark: SparkSession,
    settings: Settings,
    contracts: dict[str, Contract],
    stream: str,
    run_id: str,
    now: datetime,
    may_commit: Callable[[], None] = lambda: None,
) -> list[Derivation]:
    """What a publication of `stream` may change: its own results, and the joins of other streams with it."""
    return [
        Derivation(
            spark,
            settings.lake_uri,
            contract,
            one,
            run_id,
            now,
            stateful_start.emitted_through(contract, one, settings),
            may_commit,
        )
        for contract in contracts.values()
        for one in contract.stateful_results
        if contract.stream == stream or (isinstance(one, Join) and one.other == stream)
    ]
