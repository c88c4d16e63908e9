"""The standing check of a stream's tables."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql.types import DataType

from infra.deployed import contract_in_service
from infra.settings import Settings, of_checkout
from schemas.contract.model import Aggregate, Contract
from spark.batch.deduplication import mark
from spark.batch.layer_counts import counter, layers
from spark.batch.planner import COORDINATES
from spark.batch.store import BatchStore, engine, iso, with_iso_hours
from spark.batch.usual_hours import usual
from spark.definitions.times import before, floor_hour, time_of
from spark.lake import tables
from spark.lake.columnar import ident, instant, quoted
from spark.lake.publications import Publication, publications
from spark.quality import suites
from spark.quality.auditor import Auditor, Outcome, require_success, warm_up
from spark.serving import snapshot
from spark.serving.duck import create_views, prepare
from spark.session import session
from spark.speed.checkpoint import generations

log = logging.getLogger("millrace.quality")


DAYS = 400
"""Days of event time that are checked, back from the newest event."""


AROUND = timedelta(days=3)
"""How far before `final_through` the served views are checked; before that they are the batch tables."""


NEWEST = timedelta(days=7)
"""How far before `final_through` hours are compared with earlier days."""


@dataclass
class Check:
    """One run over the tables in `store`; `through` is the newest settled batch."""

    store: BatchStore
    contract: Contract
    through: int
    now: datetime
    auditor: Auditor
    days: int = DAYS

    def run(self) -> list[Outcome]:
        """The outcome of every suite: events, speed and batch per aggregate, layers, usual, view."""
        store, contract = self.store, self.contract
        [(newest,)] = store.rows(f'select max("$micros") from {store.accepted([], self.through)}')
        since = floor_hour(before(time_of(newest or 0), timedelta(days=self.days)))
        since = max(since, store.kept_since() or since)
        columns = [*dict.fromkeys([*COORDINATES, "event_time", *contract.fields]), "$micros"]
        accepted = store.accepted(columns, self.through, lambda file: file.may_hold("event_time", least=since))
        recent = f"""(select * from {accepted} where event_time >= {instant(since)})"""
        mark(store.connection, contract, "recent rows", columns, recent)
        return list(self._outcomes('"recent rows"', since, publications(store.lake_uri, contract.stream)))

    def _outcomes(self, rows: str, since: datetime, published: list[Publication]) -> list[Outcome]:
        store, contract, last = self.store, self.contract, published[-1] if published else None
        events = suites.events(contract, whole_table=True, now=self.now)
        found = [self._audit(events, f'(select * from {rows} where "$distinct_event")', store.bronze_types())]
        partials, windows = {}, {}
        for aggregate in contract.aggregates:
            recent = store.partials(aggregate, self.through, lambda file: file.may_hold("window_start", least=since))
            partials[aggregate.name] = f"(select * from {recent} where window_start >= {instant(since)})"
            suite = suites.partials(contract, aggregate)
            found.append(self._audit(suite, partials[aggregate.name], store.partial_types(aggregate)))
            recent = store.published(aggregate, lambda file: file.may_hold("hour", least=since))
            windows[aggregate.name] = f"(select * from {recent} where hour >= {instant(since)})"
            suite = suites.windows(contract, aggregate, "batch")
            found.append(self._audit(suite, windows[aggregate.name], store.published_types(aggregate)))
        if last is None:
            log.info("nothing is published yet, so no layers are compared")
            return found
        if not any(counter(aggregate) for aggregate in contract.aggregates):
            return found
        counted = layers(
            rows, partials, windows, contract, store.began(),
            published=f"batch <= {last.through_batch}", final=f"hour < {instant(last.final_through)}",
            compared=f"{self._not_corrected(published)} and {store.has_partials()}",
        )  # fmt: skip
        found.append(self._ask("layers", with_iso_hours(counted)))
        judged = " union all ".join(sql for a in contract.aggregates if (sql := usual(windows[a.name], a)))
        newest = f"hour >= {instant(before(last.final_through, NEWEST))} and earlier >= 7"
        found.append(self._ask("usual", with_iso_hours(f"select * from ({judged}) where {newest}")))
        found.append(self._ask("view", self._served(last.final_through)))
        return found

    def _audit(self, suite: suites.Suite, relation: str, types: Mapping[str, DataType]) -> Outcome:
        return self._ask(suite.name, suite.audited(relation, types), suite.expectations)

    def _ask(self, suite: str, sql: str, expectations: list[suites.Expectation] | None = None) -> Outcome:
        return self.auditor.audit_query(suite, self.store.connection, sql, expectations)

    def _not_corrected(self, published: list[Publication]) -> str:
        """The hours whose speed values nobody has replaced on purpose, as a SQL predicate on `aggregate` and `hour`."""
        corrected = self.store.corrected(publication.run_id for publication in published)
        parts = [
            f"not (aggregate = '{aggregate}' and hour in ({', '.join(map(instant, sorted(hours)))}))"
            for aggregate, hours in corrected.items()
        ]
        return " and ".join(parts) or "true"

    def _served(self, final_through: datetime) -> str:
        """The served windows from `AROUND` before `final_through` on, all views together."""
        connection = self.store.connection
        prepare(connection)
        lake, mine = self.store.lake_uri, [self.contract]
        create_views(connection, mine, lake, snapshot.published(lake, mine))
        since = instant(before(final_through, AROUND))

        def key(aggregate: Aggregate) -> str:
            dimensions = ", ".join(f"{quoted(name)}: {ident(name)}" for name in aggregate.dimensions)
            return f"cast(to_json({{{dimensions}}}) as varchar)" if dimensions else "'{}'"

        return " union all ".join(
            f"""select {quoted(aggregate.name)} as aggregate, {quoted(window)} as "window",
                {iso("window_start")} as window_start, {iso("window_end")} as window_end, {key(aggregate)} as "key",
                source, final, final = (source = 'batch') as source_fits,
                final = (window_end <= {instant(final_through)}) as final_fits
            from {ident(f"{aggregate.name}_{window}")} where window_start >= {since}"""
            for aggregate in self.contract.aggregates
            for window in aggregate.windows
        )


def check(config: Settings, stream: str, run_id: str) -> dict[str, Any]:
    """Runs the stream's suites with `config`, writes their rows, builds Data Docs and returns a summary. Raises
    `NothingSettled`, and `FailedExpectations` with every one that failed."""
    loading = warm_up()
    contract = contract_in_service(config, stream)
    tables.create(config.lake_uri, contract)
    through = generations.settled_batch(contract, config)
    if through is None:
        raise generations.NothingSettled(
            f"{stream} has no complete batch yet; start the streaming job and produce events first"
        )
    now = datetime.now(UTC)

    def spark() -> SparkSession:
        return session(config, "batch", "millrace-quality", store.bronze_rows())

    with engine(config) as connection:
        store = BatchStore(config.lake_uri, contract, connection=connection)
        loading.join()
        home, project = config.home / "great_expectations", of_checkout("great_expectations")
        auditor = Auditor(project, home, config.data_docs_dir, stream, run_id, now, spark)
        outcomes = Check(store, contract, through, now, auditor).run()
        store.logs.append("quality", [outcome.row(run_id, stream, through, now) for outcome in outcomes])
        auditor.build_docs()
    require_success(stream, outcomes)
    return {
        "stream": stream,
        "suites": {outcome.suite: outcome.success for outcome in outcomes},
        "evaluated": sum(outcome.evaluated for outcome in outcomes),
    }
