"""The plan of a stateful result's run: how far its rows are final, and which of them to compute again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, reduce
from typing import Any, assert_never

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.contract.model import Contract, Join, Sessions, StatefulResult, Velocity
from spark.batch import stateful_ledger
from spark.definitions import stateful_results
from spark.definitions.times import BEGINNING_OF_TIME, literal
from spark.definitions.windows import interval
from spark.lake import names
from spark.lake.publications import Publication, publications
from spark.transforms import velocity
from spark.transforms.aggregates import distinct_events
from spark.transforms.joins import joined
from spark.transforms.sessions import sessions


@dataclass(frozen=True)
class StatefulPlan:
    """What is known before the run for the `result` of `contract`. All times are UTC. `session` begins the Spark
    session or returns it: a run that has nothing to do needs none."""

    session: Callable[[], SparkSession]
    lake_uri: str
    contract: Contract
    result: StatefulResult

    @property
    def title(self) -> str:
        """The result's name in logs and tables, such as `clicks.visits`."""
        return stateful_results.title(self.contract, self.result)

    @property
    def key(self) -> list[str]:
        return stateful_results.key(self.result)

    @property
    def time_column(self) -> str:
        """The column by whose time a row has its place among those of its key."""
        return stateful_results.time_column(self.result)

    @cached_property
    def sources(self) -> tuple[Contract, ...]:
        """The contracts of the streams that it is made of, its own first."""
        return stateful_results.sources(self.contract, self.result)

    @cached_property
    def published(self) -> list[Publication]:
        """The publications of the result so far, oldest first."""
        return publications(self.lake_uri, self.title)

    @cached_property
    def _of_sources(self) -> dict[str, list[Publication]]:
        return {source.stream: publications(self.lake_uri, source.stream) for source in self.sources}

    @cached_property
    def final(self) -> datetime | None:
        """How far its rows can be final: as far as all of its sources are. None while one of them is nowhere."""
        ends = [found[-1].final_through if found else None for found in self._of_sources.values()]
        return None if None in ends else min(end for end in ends if end)

    @cached_property
    def through(self) -> dict[str, int]:
        """The newest batch of each source that its last publication contains."""
        return {stream: found[-1].through_batch for stream, found in self._of_sources.items()}

    @cached_property
    def final_before(self) -> datetime:
        """How far its rows were final before."""
        return self.published[-1].final_through if self.published else BEGINNING_OF_TIME

    @cached_property
    def through_before(self) -> dict[str, int]:
        """The newest batch of each source that the result's last publication contains, -1 for none."""
        found = {}
        for source in self.sources:
            name = self.title if source is self.contract else f"{self.title}.{source.stream}"
            known = self.published if source is self.contract else publications(self.lake_uri, name)
            found[source.stream] = known[-1].through_batch if known else -1
        return found

    @property
    def is_idle(self) -> bool:
        """Nothing can have changed since the last publication, or nothing can be final yet."""
        if self.final is None:
            return True
        news = any(self.through[stream] > before for stream, before in self.through_before.items())
        return bool(self.published) and self.final == self.final_before and not news

    def dirty(self) -> DataFrame:
        """The keys whose rows must be computed again, and since when: the columns of the key, `$since`."""
        found = []
        for source in self.sources:
            own = source is self.contract
            earlier = timedelta() if own or not isinstance(self.result, Join) else self.result.after
            since = F.min("event_time") - F.expr(interval(earlier))
            since = F.greatest(since, F.expr(literal(BEGINNING_OF_TIME)))
            found.append(self._unsettled(source).groupBy(*self.key).agg(since.alias("$since")))
        dirty = reduce(DataFrame.unionByName, found).groupBy(*self.key).agg(F.min("$since").alias("$since"))
        if not isinstance(self.result, Sessions):
            return dirty
        # A session that is not closed may have begun long ago, but not before the end of the last one that is.
        ended = self.read(names.batch).select(*self.key, "session_end").join(dirty, self.key)
        last = (
            ended.where(F.col("session_end") < F.col("$since"))
            .groupBy(*self.key)
            .agg(F.max("session_end").alias("$last"))
        )
        beginning = F.expr(literal(BEGINNING_OF_TIME))
        return dirty.join(last, self.key, "left").select(*self.key, F.coalesce("$last", beginning).alias("$since"))

    def exact(self, dirty: DataFrame, since: Column) -> DataFrame:
        """The exact rows of the dirty keys from `since` on (the column of `dirty`, and at least the given one) that are
        final."""
        final = F.expr(literal(self.final))
        context = F.expr(interval(stateful_ledger.reach(self.result)))

        def events(source: Contract) -> DataFrame:
            """Distinct events of the dirty keys from a little before their `since`. Repeats may have other times than
            the event, so they are dropped before."""
            columns = list(dict.fromkeys(["event_time", *source.fields]))
            rows, within = self._accepted(source), source.repeats_within
            if source.event_time in source.event_id:
                rows = rows.where(F.col("event_time") >= since - context)
            elif within is not None:
                rows = rows.where(F.col("event_time") >= since - context - F.expr(interval(within)))
            distinct = distinct_events(rows, source, within).select(*columns)
            return distinct.join(dirty, self.key).where(F.col("event_time") >= F.col("$since") - context).drop("$since")

        match self.result:
            case Velocity():
                rows = velocity.exact(events(self.contract), self.contract, self.result)
            case Sessions():
                mine = events(self.contract).join(dirty, self.key).where(F.col("event_time") >= F.col("$since"))
                rows = sessions(mine.drop("$since"), self.contract, self.result)
            case Join():
                mine, theirs = (events(source) for source in self.sources)
                rows = joined(mine, theirs, self.contract, self.result)
            case _:
                assert_never(self.result)
        wanted = rows.join(dirty, self.key).where(F.col(self.time_column) >= F.col("$since"))
        return wanted.where(F.col(stateful_results.CLOSES_AT) <= final).select(*rows.columns)

    def _unsettled(self, source: Contract) -> DataFrame:
        """The accepted rows of a source that can change what is published: those that came after the last publication
        and those of which rows were not closed then."""
        rows = self._accepted(source)
        new = F.col("batch") > self.through_before[source.stream]
        if source is not self.contract:
            return rows.where(new)
        match self.result:
            case Velocity():
                open_for = timedelta()
            case Sessions():
                open_for = self.result.gap
            case Join():
                open_for = self.result.after
            case _:
                assert_never(self.result)
        return rows.where(
            new | (F.col("event_time") >= F.expr(literal(self.final_before)) - F.expr(interval(open_for)))
        )

    def _accepted(self, source: Contract) -> DataFrame:
        return self.accepted(source).where(F.col("batch") <= self.through[source.stream])

    def accepted(self, source: Contract) -> DataFrame:
        """All accepted rows of bronze of a source."""
        return self._read(names.bronze(self.lake_uri, source.stream)).where("accepted")

    def uri(self, layer: Any) -> str:
        """The place of the result's table in a `layer`, a function of `spark.lake.names`."""
        uri: str = layer(self.lake_uri, self.contract.stream, self.result.name)
        return uri

    def read(self, layer: Any) -> DataFrame:
        """The result's table in a `layer`, a function of `spark.lake.names`."""
        return self._read(self.uri(layer))

    def _read(self, uri: str) -> DataFrame:
        return self.session().read.format("delta").load(uri)
