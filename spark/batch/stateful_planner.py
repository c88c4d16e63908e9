"""The plan of a stateful result's run: how far its rows are final, and which of them to compute again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import assert_never

from schemas.contract.model import Contract, Join, Sessions, StatefulResult, Velocity
from spark.batch import stateful_exact, stateful_ledger
from spark.batch.deduplication import mark
from spark.batch.planner import COORDINATES
from spark.batch.stateful_store import StatefulStore
from spark.batch.store import BatchStore
from spark.definitions import stateful_results
from spark.definitions.times import BEGINNING_OF_TIME, time_of
from spark.definitions.times import before as earlier
from spark.lake import names
from spark.lake.columnar import File, ident, micros
from spark.lake.publications import Publication, publications

MICRO = timedelta(microseconds=1)


@dataclass(frozen=True)
class StatefulPlan:
    """What is known before the run for the result in `store`. All times are UTC."""

    store: StatefulStore

    @property
    def title(self) -> str:
        """The result's name in logs and tables, such as `clicks.visits`."""
        return stateful_results.title(self._contract, self._result)

    @property
    def key(self) -> list[str]:
        """The columns of the key, as identifiers of SQL."""
        return [ident(name) for name in stateful_results.key(self._result)]

    @cached_property
    def sources(self) -> tuple[Contract, ...]:
        """The contracts of the streams that it is made of, its own first."""
        return stateful_results.sources(self._contract, self._result)

    @cached_property
    def published(self) -> list[Publication]:
        """The publications of the result so far, oldest first."""
        return publications(self._lake_uri, self.title)

    @cached_property
    def _of_sources(self) -> dict[str, list[Publication]]:
        return {source.stream: publications(self._lake_uri, source.stream) for source in self.sources}

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
            name = self.title if source is self._contract else f"{self.title}.{source.stream}"
            known = self.published if source is self._contract else publications(self._lake_uri, name)
            found[source.stream] = known[-1].through_batch if known else -1
        return found

    @property
    def is_idle(self) -> bool:
        """Nothing can have changed since the last publication, or nothing can be final yet."""
        if self.final is None:
            return True
        news = any(self.through[stream] > before for stream, before in self.through_before.items())
        return bool(self.published) and self.final == self.final_before and not news

    def dirty(self) -> str:
        """The keys whose rows must be computed again, and since when, as a table: the columns of the key, and `$since`
        in microseconds."""
        key = ", ".join(self.key)
        found = []
        for source in self.sources:
            own = source is self._contract
            reach = timedelta() if own or not isinstance(self._result, Join) else self._result.after
            since = f'greatest(min("$micros") - {reach // MICRO}, {_BEGINNING}) as "$since"'
            found.append(f"select {key}, {since} from {self._unsettled(source)} group by {key}")
        dirty = f'select {key}, min("$since") as "$since" from ({" union all ".join(found)}) group by {key}'
        there = " and ".join(f"{name} is not null" for name in self.key)
        known = self.store.keep("dirty", f"from ({dirty}) where {there}")
        if not isinstance(self._result, Sessions):
            return known
        # A session that is not closed may have begun long ago, but not before the end of the last one that is.
        ended = f'select {key}, epoch_us(session_end) as "$end" from {self.store.read(names.batch)}'
        last = f"""(select d.*, (select max("$end") from ({ended}) e
            where {" and ".join(f"e.{name} = d.{name}" for name in self.key)} and e."$end" < d."$since") as "$last"
            from {known} d)"""
        return self.store.keep("dirty keys", f'select {key}, coalesce("$last", {_BEGINNING}) as "$since" from {last}')

    def exact(self, dirty: str, since: int) -> str:
        """The exact rows of the `dirty` keys from their `$since` on (`since` is the least of them) that are final, as a
        table with the columns of `stateful_exact`."""
        assert self.final is not None  # a plan without it is idle
        contract, result = self._contract, self._result
        match result:
            case Velocity():
                rows = stateful_exact.crossings(self._events(contract, dirty, since), contract, result)
            case Sessions():
                mine = self._events(contract, dirty, since, timedelta())
                rows = stateful_exact.sessions(mine, contract, result)
            case Join():
                mine, theirs = (self._events(source, dirty, since) for source in self.sources)
                rows = stateful_exact.joined(mine, theirs, contract, result)
            case _:
                assert_never(result)
        wanted = f"""select r.* from {rows} r join {dirty} d on {self.same_key("r", "d")}
            where r."$at" >= d."$since" and epoch_us(r.{stateful_results.CLOSES_AT}) <= {micros(self.final)}"""
        return self.store.keep("exact rows", wanted)

    def same_key(self, left: str, right: str) -> str:
        """The SQL condition that two relations have the same key."""
        return " and ".join(f"{left}.{name} = {right}.{name}" for name in self.key)

    def _events(self, source: Contract, dirty: str, since: int, context: timedelta | None = None) -> str:
        """The distinct events of the dirty keys from `context` before their `$since`, by default as far as rows depend
        on them. Repeats may have other times than the event, so they are dropped before."""
        context = stateful_ledger.reach(self._result) if context is None else context
        from_ = earlier(time_of(since), stateful_ledger.reach(self._result))
        bounded: datetime | None = from_
        if source.event_time not in source.event_id:
            bounded = None if source.repeats_within is None else earlier(from_, source.repeats_within)
        columns = [*dict.fromkeys([*COORDINATES, "event_time", *source.fields])]

        def wanted(file: File) -> bool:
            return bounded is None or file.may_hold("event_time", least=bounded)

        rows = BatchStore(self._lake_uri, source, connection=self.store.connection).accepted(
            columns, self.through[source.stream], wanted
        )
        if bounded is not None:
            rows = f'(select * from {rows} where "$micros" >= {micros(bounded)})'
        marked = f"events of {source.stream}"
        mark(self.store.connection, source, marked, [*columns, "$micros"], rows)
        return f"""(select e.* from {ident(marked)} e join {dirty} d on {self.same_key("e", "d")}
            where e."$distinct_event" and e."$micros" >= d."$since" - {context // MICRO})"""

    def _unsettled(self, source: Contract) -> str:
        """The accepted rows of a source that can change what is published: those that came after the last publication
        and those of which rows were not closed then."""
        before, open_since = self.through_before[source.stream], None
        if source is self._contract:
            match self._result:
                case Velocity():
                    open_for = timedelta()
                case Sessions():
                    open_for = self._result.gap
                case Join():
                    open_for = self._result.after
                case _:
                    assert_never(self._result)
            open_since = earlier(self.final_before, open_for)

        def wanted(file: File) -> bool:
            is_new = file.may_hold("batch", least=before + 1)
            return is_new or (open_since is not None and file.may_hold("event_time", least=open_since))

        key = stateful_results.key(self._result)
        rows = BatchStore(self._lake_uri, source, connection=self.store.connection).accepted(
            key, self.through[source.stream], wanted
        )
        is_open = "false" if open_since is None else f'"$micros" >= {micros(open_since)}'
        return f"(select * from {rows} where batch > {before} or {is_open})"

    def arrived(self, source: Contract) -> str:
        """All accepted rows of a source, also those of batches after the cut: the query may have taken some together
        with those up to it."""
        columns = [*COORDINATES, *stateful_results.key(self._result), *source.event_id]
        return BatchStore(self._lake_uri, source, connection=self.store.connection).accepted(columns)

    @property
    def _contract(self) -> Contract:
        return self.store.contract

    @property
    def _result(self) -> StatefulResult:
        return self.store.result

    @property
    def _lake_uri(self) -> str:
        return self.store.lake_uri


_BEGINNING = micros(BEGINNING_OF_TIME)
