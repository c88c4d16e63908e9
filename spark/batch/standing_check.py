"""The standing check of a stream's tables."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from infra.deployed import contract_in_service
from infra.settings import Settings, of_checkout
from schemas.contract.model import Contract
from spark.batch import ledger
from spark.batch.layer_counts import counter, layers
from spark.batch.store import BatchStore
from spark.batch.usual_hours import usual
from spark.definitions.times import before, literal, time_of
from spark.lake import tables
from spark.lake.publications import Publication, publications
from spark.quality import suites
from spark.quality.auditor import Auditor, Outcome, require_success, warm_up
from spark.serving.spark_views import register
from spark.session import session
from spark.speed.checkpoint import generations
from spark.transforms.iso_times import with_iso_times

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
        accepted = self.store.accepted(self.through)
        newest = accepted.agg(F.max("event_time").alias("newest")).select(F.unix_micros("newest")).first()
        assert newest is not None
        since = before(time_of(newest[0] or 0), timedelta(days=self.days))
        since = since.replace(minute=0, second=0, microsecond=0)
        since = max(since, self.store.kept_since() or since)
        recent = F.col("event_time") >= F.expr(literal(since))
        fields = dict.fromkeys(["event_time", *self.contract.fields])
        columns = ["topic", "partition", "offset", "batch", "attempt", "original", *fields]
        rows = ledger.marked(accepted.where(recent).select(*columns), self.contract).persist()
        published = publications(self.store.lake_uri, self.contract.stream)
        try:
            return list(self._outcomes(rows, since, published))
        finally:
            rows.unpersist()

    def _outcomes(self, rows: DataFrame, since: datetime, published: list[Publication]) -> list[Outcome]:
        contract, last = self.contract, published[-1] if published else None
        events = suites.events(contract, whole_table=True, now=self.now)
        found = [self._audit(events, rows.where("`$distinct_event`"))]
        partials, windows = {}, {}
        for aggregate in contract.aggregates:
            partials[aggregate.name] = self.store.partials(aggregate, self.through).where(
                F.col("window_start") >= F.expr(literal(since))
            )
            found.append(self._audit(suites.partials(contract, aggregate), partials[aggregate.name]))
            windows[aggregate.name] = self.store.published(aggregate).where(F.col("hour") >= F.expr(literal(since)))
            found.append(self._audit(suites.windows(contract, aggregate, "batch"), windows[aggregate.name]))
        if last is None:
            log.info("nothing is published yet, so no layers are compared")
            return found
        if not any(counter(aggregate) for aggregate in contract.aggregates):
            return found
        counted = layers(
            rows, partials, windows, contract, self.store.began(),
            published=f"batch <= {last.through_batch}", final=f"hour < {literal(last.final_through)}",
            compared=f"{self._not_corrected(published)} and {self.store.has_partials()}",
        )  # fmt: skip
        found.append(self.auditor.audit("layers", with_iso_times(counted).toPandas()))
        newest = before(last.final_through, NEWEST)
        judged = ledger.union([usual(windows[aggregate.name], aggregate) for aggregate in contract.aggregates])
        judged = judged.where((F.col("hour") >= F.expr(literal(newest))) & (F.col("earlier") >= 7))
        found.append(self.auditor.audit("usual", with_iso_times(judged).toPandas()))
        found.append(self.auditor.audit("view", with_iso_times(self._served(last.final_through)).toPandas()))
        return found

    def _audit(self, suite: suites.Suite, frame: DataFrame) -> Outcome:
        return self.auditor.audit(suite.name, suite.audited(frame), suite.expectations)

    def _not_corrected(self, published: list[Publication]) -> str:
        """The hours whose speed values nobody has replaced on purpose, as a SQL predicate on `aggregate` and `hour`."""
        corrected = self.store.corrected(publication.run_id for publication in published)
        parts = [
            f"not (aggregate = '{aggregate}' and hour in ({', '.join(map(literal, sorted(hours)))}))"
            for aggregate, hours in corrected.items()
        ]
        return " and ".join(parts) or "true"

    def _served(self, final_through: datetime) -> DataFrame:
        """The served windows from `AROUND` before `final_through` on, all views together."""
        register(self.store.spark, self.contract, self.store.lake_uri)
        ends = F.col("window_end") <= F.expr(literal(final_through))
        parts = [
            self.store.spark.table(f"{aggregate.name}_{window}").select(
                F.lit(aggregate.name).alias("aggregate"),
                F.lit(window).alias("window"),
                "window_start",
                "window_end",
                F.to_json(F.struct(*aggregate.dimensions)).alias("key"),
                "source",
                "final",
                (F.col("final") == (F.col("source") == "batch")).alias("source_fits"),
                (F.col("final") == ends).alias("final_fits"),
            )
            for aggregate in self.contract.aggregates
            for window in aggregate.windows
        ]
        return ledger.union(parts).where(F.col("window_start") >= F.expr(literal(before(final_through, AROUND))))


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
    store = BatchStore(session(config, "batch", "millrace-quality"), config.lake_uri, contract)
    now = datetime.now(UTC)
    loading.join()
    home, project = config.home / "great_expectations", of_checkout("great_expectations")
    auditor = Auditor(project, home, config.data_docs_dir, stream, run_id, now)
    outcomes = Check(store, contract, through, now, auditor).run()
    store.log_rows("quality", [outcome.row(run_id, stream, through, now) for outcome in outcomes])
    auditor.build_docs()
    require_success(stream, outcomes)
    return {
        "stream": stream,
        "suites": {outcome.suite: outcome.success for outcome in outcomes},
        "evaluated": sum(outcome.evaluated for outcome in outcomes),
    }
