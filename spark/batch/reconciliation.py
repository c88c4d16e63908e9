"""The batch layer of one stream: recompute, compare, audit, publish."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from infra.locks.batch_lock import exclusive
from infra.settings import Settings, of_checkout
from schemas.contract.catalog import catalog, contract_in
from schemas.contract.model import Aggregate, Contract
from schemas.errors import TerminalError, TransientError
from spark.batch import ledger
from spark.batch.layer_counts import counter, layers
from spark.batch.plan import Plan, TouchedHour, UnexplainedDifference, plan
from spark.batch.stateful_reconciliation import Derivation, derivations
from spark.batch.store import BatchStore
from spark.definitions.times import BEGINNING_OF_TIME, Hours, literal, time_of
from spark.lake import table_schemas, tables
from spark.lake.publications import Publication, publications, published_without, unique_run_id
from spark.quality import suites
from spark.quality.auditor import Auditor, FailedExpectations, Outcome, require_success, warm_up
from spark.serving.duck import write_catalog
from spark.session import session
from spark.speed.checkpoint import generations
from spark.transforms.aggregates import exact, folded, truncated

if TYPE_CHECKING:
    import pandas


log = logging.getLogger("millrace.reconcile")


PLACE = ("topic", "partition", "offset", "batch", "attempt", "original")


SHOWN_HOURS = 48
"""Hours that a summary lists at most, the newest."""


SHOWN_CHANGES = 200
"""Differences that a survey lists at most."""


Audit = Callable[[str, "DataFrame | pandas.DataFrame", list[suites.Expectation] | None], Outcome]
"""Runs a suite (by name, with generated expectations, or with None the hand-written one) on a frame."""


@dataclass
class Reconciliation:
    """One run. `now` is the time that all its log rows carry."""

    store: BatchStore
    contract: Contract
    run_id: str
    through: int
    now: datetime
    audit: Audit
    forced: Hours | None = None
    """Hours to recompute in any case."""
    _windows: dict[str, DataFrame] = field(default_factory=dict, init=False)
    """By aggregate, what this run has computed."""

    def run(self) -> dict[str, Any]:
        """Does the run and returns its summary. Raises `FailedExpectations` or `UnexplainedDifference`, with nothing
        published."""
        published, planned = self._begin()
        if planned.is_idle:
            return self._summary(planned, [])
        if not planned.hours:
            self._publish(planned, 0)
            return self._summary(planned, [])
        rows = self.rows(planned).persist()
        try:
            for aggregate in self.contract.aggregates:
                self._stage(aggregate, rows)
            found = self.differences(planned, rows, published)
            hours = self.by_hour(found)
            causes, staged = total_causes(hours), sum(hour["windows"] for hour in hours)
            log.info("staged %d windows; ledger: %s", staged, causes or "no differences")
            known = {publication.run_id for publication in published}
            if causes.get("unexplained"):  # before the audit, whose sums over layers would fail and hide where
                self._refuse(found.where("cause = 'unexplained'"), known)
            self._audit(planned, rows)
            for aggregate in self.contract.aggregates:
                self.store.replace(aggregate, planned.replaced)
            self._write_ledger(found, known, empty=not causes)
            self._publish(planned, staged)
        except (FailedExpectations, UnexplainedDifference) as error:
            # The hours stay the speed layer's; the served views mark them until a run publishes them.
            row = {"run_id": self.run_id, "stream": self.contract.stream, "final_through": planned.final_through}
            self.store.log_rows("refusals", [row | {"reason": str(error), "recorded_at": self.now}])
            raise
        finally:
            rows.unpersist()
        return self._summary(planned, hours)

    def survey(self) -> dict[str, Any]:
        """What `run` would do, without the audit: its summary and, as `changes`, rows of the ledger that it would
        write, `SHOWN_CHANGES` at most. Writes nothing."""
        published, planned = self._begin()
        if not planned.hours:
            return self._summary(planned, []) | {"changes": []}
        rows = self.rows(planned).persist()
        try:
            for aggregate in self.contract.aggregates:
                self._windows[aggregate.name] = self._computed(aggregate, rows).persist()
            found = self.differences(planned, rows, published)
            changes = found.orderBy("window_start", "aggregate", "window", "measure").limit(SHOWN_CHANGES).toPandas()
            hours = self.by_hour(found)
        finally:
            rows.unpersist()
        shown = json.loads(changes.drop(columns=["run_id", "recorded_at"]).to_json(orient="records", date_format="iso"))
        return self._summary(planned, hours) | {"changes": shown}

    def _begin(self) -> tuple[list[Publication], Plan]:
        published = publications(self.store.lake_uri, self.contract.stream)
        self.run_id = unique_run_id(self.run_id, published)
        planned = self.plan(published[-1] if published else None)
        log.info(
            "%s: batches up to %d, %d new and %d late hours, final through %s",
            self.contract.stream, self.through, len(planned.new_hours), len(planned.late_hours), planned.final_through,
        )  # fmt: skip
        return published, planned

    # -- the steps -------------------------------------------------------------------------------------------------

    def plan(self, last: Publication | None) -> Plan:
        """The plan of this run, from the hours that bronze has new or not yet final rows for."""
        accepted = self.store.accepted(self.through)
        before = last.through_batch if last else -1
        if last:
            not_final = F.col("event_time") >= F.expr(literal(last.final_through))
            news = F.col("batch") > before
            if (since := self.store.kept_since()) is not None:  # hours that are not kept any more are not made again
                news &= F.col("event_time") >= F.expr(literal(since))
            accepted = accepted.where(news | not_final | self._is_forced("event_time"))
        newest = F.max(F.least("event_time", "kafka_timestamp")).alias("newest")
        new_rows = F.count_if(F.col("batch") > before).alias("new_rows")
        hours = (
            accepted.groupBy(truncated("event_time", "1h").alias("hour"))
            .agg(newest, new_rows)
            .select(F.unix_micros("hour").alias("hour"), F.unix_micros("newest").alias("newest"), "new_rows")
        )
        touched = [TouchedHour(time_of(row.hour), time_of(row.newest), row.new_rows) for row in hours.collect()]
        return plan(touched, self.through, last, self.contract.allowed_lateness, self.forced)

    def _is_forced(self, time: str) -> Column:
        return ~F.expr(self._not_forced(time))

    def _not_forced(self, time: str) -> str:
        """The hours that a person has not ordered, as a SQL predicate on the column `time`."""
        if self.forced is None:
            return "true"
        since, until = self.forced
        return f"({time} < {literal(since)} or {time} >= {literal(until)})"

    def rows(self, planned: Plan) -> DataFrame:
        """The accepted rows of the plan's hours with the flags of `ledger.marked`, `is_late_hour` and `is_new`."""
        return self._marked(planned, self._accepted())

    def _accepted(self) -> DataFrame:
        return self.store.accepted(self.through).select(*PLACE, *dict.fromkeys(["event_time", *self.contract.fields]))

    def _marked(self, planned: Plan, accepted: DataFrame) -> DataFrame:
        before = F.expr(literal(planned.final_before or BEGINNING_OF_TIME))
        inside = self._inside(accepted, planned, "event_time")
        if self.contract.event_time in self.contract.event_id:
            marked = ledger.marked(inside, self.contract)  # all copies of an event are in the same hour
        else:
            ids = inside.select(*self.contract.event_id).distinct()
            copies = accepted.join(ids, self.contract.event_id, "left_semi")
            marked = self._inside(ledger.marked(copies, self.contract), planned, "event_time")
        return marked.withColumns(
            {
                "is_late_hour": F.col("event_time") < before,
                "is_new": F.col("batch") > planned.batch_before,
            }
        )

    def differences(self, planned: Plan, rows: DataFrame, published: list[Publication]) -> DataFrame:
        """The ledger rows of the run, all aggregates together."""
        found = []
        for aggregate in self.contract.aggregates:
            served = self._served(planned, rows, aggregate, [publication.run_id for publication in published])
            different = ledger.differences(self._windows[aggregate.name], served, self.contract, aggregate)
            different = self._without_unserved(planned, different, aggregate, published).persist()
            if different.isEmpty():
                continue
            # A checkpoint and not `persist`: Spark would compute cached rows again, from what is published by then, as
            # soon as the batch tables change.
            explained = ledger.explained(different, rows, self.contract, aggregate).localCheckpoint()
            explained = self._reconsidered(planned, explained, rows, aggregate)
            names = [F.lit(name) for name in aggregate.dimensions]
            values = [F.col(name).cast("string") for name in aggregate.dimensions]
            found.append(
                explained.select(
                    F.lit(self.run_id).alias("run_id"),
                    F.lit(self.contract.stream).alias("stream"),
                    F.lit(aggregate.name).alias("aggregate"),
                    "window", "window_start",
                    F.map_from_arrays(F.array(*names), F.array(*values)).alias("keys"),
                    "measure", "speed", "exact",
                    (F.col("exact") - F.col("speed")).alias("difference"),
                    "cause", "rows", "repeats", "late", "replayed",
                    F.expr(literal(self.now)).alias("recorded_at"),
                )
            )  # fmt: skip
        nothing = self.store.spark.createDataFrame([], table_schemas.SYSTEM["ledger"])
        return ledger.union(found or [nothing])

    def _without_unserved(
        self, planned: Plan, different: DataFrame, aggregate: Aggregate, published: list[Publication]
    ) -> DataFrame:
        """`different` less the measures of hours that were published before the measure was added: what was not served
        was not wrong."""
        if not planned.late_hours:
            return different
        for measure in aggregate.measures:
            until, since = published_without(published, f"{aggregate.name}.{measure.name}")
            if until is None or until <= planned.late_hours[0]:
                continue
            again = self.store.hours_of(aggregate, since)
            lacking = [hour for hour in planned.late_hours if hour < until and hour not in again]
            hour, hours = truncated("window_start", "1h"), [F.expr(literal(hour)) for hour in lacking]
            different = different.where((F.col("measure") != measure.name) | ~hour.isin(*hours))
        return different

    def _reconsidered(self, planned: Plan, found: DataFrame, rows: DataFrame, aggregate: Aggregate) -> DataFrame:
        """`found` after a second look at what is unexplained in it."""

        def left() -> bool:
            return not found.where("cause = 'unexplained'").isEmpty()

        if not left():
            return found
        if not rows.where("original is not null").isEmpty():
            partials = self._inside(self.store.partials(aggregate, self.through), planned, "window_start")
            lost = ledger.lost(rows, partials, self.contract, aggregate)
            lost = lost.withColumn("is_new", F.col("batch") > planned.batch_before)
            history = rows.unionByName(lost)
            found = ledger.reconsidered(found, history, "replayed", self.contract, aggregate).localCheckpoint()
        if left() and planned.new_hours:
            since: dict[int, list[str]] = {}
            for measure, batch in self.store.first_batches(aggregate, self.through).items():
                since.setdefault(batch, []).append(measure)
            for batch, names in since.items():
                history = rows.where(F.col("is_late_hour") | (F.col("batch") >= batch))
                found = ledger.reconsidered(found, history, "added", self.contract, aggregate, *names)
            found = found.localCheckpoint()
        corrected = (F.col("cause") == "unexplained") & self._is_forced("window_start")
        return found.withColumn("cause", F.when(corrected, "corrected").otherwise(F.col("cause")))

    def by_hour(self, found: DataFrame) -> list[dict[str, Any]]:
        """The run in hours of event time, oldest first: `hour`, the `windows` that were computed, and how many of the
        differences `found` have which cause."""
        hour = F.unix_micros(truncated("window_start", "1h")).alias("hour")
        counted = ledger.union([windows.select("window_start") for windows in self._windows.values()])
        hours: dict[int, dict[str, Any]] = {
            row.hour: {"hour": time_of(row.hour).isoformat(), "windows": row.n}
            for row in counted.groupBy(hour).agg(F.count("*").alias("n")).collect()
        }
        for row in found.groupBy(hour, "cause").agg(F.count("*").alias("n")).collect():
            mine = hours.setdefault(row.hour, {"hour": time_of(row.hour).isoformat(), "windows": 0})
            mine[row.cause] = row.n
        return [hours[hour] for hour in sorted(hours)]

    def _served(self, planned: Plan, rows: DataFrame, aggregate: Aggregate, published_runs: list[str]) -> DataFrame:
        """What was served so far for the windows of the plan's hours: the folded speed layer for new hours, the
        published rows for late ones."""
        partials = self.store.partials(aggregate, self.through)
        new = self._new(partials, planned, "window_start")
        speed = folded(new, self.contract, aggregate, *aggregate.windows).withColumn("estimated", F.lit(True))
        if not planned.late_hours:
            return speed
        late = self.store.hours_frame(planned.late_hours)
        present = self.store.published(aggregate).join(F.broadcast(late), "hour", "left_semi")
        runs = self.store.runs_frame(published_runs)
        # A run that died while it published has replaced these hours; what it replaced is computed again.
        orphaned = present.join(F.broadcast(runs), "run_id", "left_anti").select("hour").distinct().persist()
        served = present.join(F.broadcast(orphaned), "hour", "left_anti").select(
            *(name for name in present.columns if name not in ("hour", "run_id"))
        )
        if not orphaned.isEmpty():
            as_published = rows.where("is_late_hour and distinct_event and not is_new").join(
                F.broadcast(orphaned), "hour", "left_semi"
            )
            served = served.unionByName(exact(as_published, self.contract, aggregate, *aggregate.windows))
        return speed.unionByName(served.withColumn("estimated", F.lit(False)))

    def _computed(self, aggregate: Aggregate, rows: DataFrame) -> DataFrame:
        windows = exact(rows.where("distinct_event"), self.contract, aggregate, *aggregate.windows)
        return windows.withColumns({"hour": truncated("window_start", "1h"), "run_id": F.lit(self.run_id)})

    def _stage(self, aggregate: Aggregate, rows: DataFrame) -> None:
        self.store.stage(aggregate, self._computed(aggregate, rows))
        self._windows[aggregate.name] = self.store.staged(aggregate)

    def _audit(self, planned: Plan, rows: DataFrame) -> None:
        """Raises `FailedExpectations` after all suites have run."""
        suite = suites.events(self.contract)
        outcomes = [self.audit(suite.name, suite.audited(rows.where("distinct_event")), suite.expectations)]
        for aggregate in self.contract.aggregates:
            suite = suites.windows(self.contract, aggregate, "staged")
            outcomes.append(self.audit(suite.name, suite.audited(self._windows[aggregate.name]), suite.expectations))
        partials = {}
        for aggregate in self.contract.aggregates:
            everything = self.store.partials(aggregate, self.through)
            partials[aggregate.name] = self._inside(everything, planned, "window_start")
        if any(counter(aggregate) for aggregate in self.contract.aggregates):
            counted = layers(
                rows,
                partials,
                self._windows,
                self.contract,
                self.store.began(),
                compared=f"{self._not_forced('hour')} and {self.store.has_partials()}",
            )
            outcomes.append(self.audit("layers", counted.toPandas(), None))
        stream, through = self.contract.stream, self.through
        self.store.log_rows("quality", [o.row(self.run_id, stream, through, self.now) for o in outcomes])
        require_success(self.contract.stream, outcomes)

    def _refuse(self, unexplained: DataFrame, known: set[str]) -> None:
        self._write_ledger(unexplained, known, empty=False)
        examples = "\n  ".join(
            f"{row.aggregate}_{row.window} {row.start} {row['keys']}: {row.measure} was served as {row.speed}, "
            f"exact is {row.exact}"
            for row in unexplained.withColumn("start", F.col("window_start").cast("string")).limit(10).collect()
        )
        raise UnexplainedDifference(
            f"{self.contract.stream}: served numbers differ from the exact ones and no calculation explains it, so "
            f"nothing is published; the ledger has them all (run_id {self.run_id}):\n  {examples}"
        )

    def _write_ledger(self, found: DataFrame, known: set[str], *, empty: bool) -> None:
        self.store.forget_ledger(known)
        if not empty:
            self.store.append_ledger(found)

    def _publish(self, planned: Plan, staged: int) -> None:
        row = Publication(
            self.run_id, self.contract.stream, planned.final_through or BEGINNING_OF_TIME, self.through, planned.hours,
            staged, self.now, self.store.versions(),
            tuple(f"{a.name}.{measure.name}" for a in self.contract.aggregates for measure in a.measures),
        )  # fmt: skip
        self.store.log_rows("publications", [row.row])
        log.info("published %d windows of %d hours", staged, planned.hours)

    def _summary(self, planned: Plan, hours: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "stream": self.contract.stream,
            "run_id": self.run_id,
            "hours": planned.hours,
            "rows": sum(hour["windows"] for hour in hours),
            "final_through": planned.final_through and planned.final_through.isoformat(),
            "through_batch": self.through,
            "ledger": total_causes(hours),
            "by_hour": hours[-SHOWN_HOURS:],
        }

    def _inside(self, frame: DataFrame, planned: Plan, time_column: str) -> DataFrame:
        """Rows whose time is in an hour of the plan."""
        if not planned.late_hours:
            return self._new(frame, planned, time_column)
        final = F.expr(literal(planned.final_through))
        since = F.expr(literal(planned.late_hours[0]))
        late = self.store.hours_frame(planned.late_hours).withColumnRenamed("hour", "_late")
        time_ = F.col(time_column)
        recent = frame.where((time_ >= since) & (time_ < final))  # prunes files
        matched = recent.join(F.broadcast(late), truncated(time_column, "1h") == F.col("_late"), "left")
        is_new_hour = time_ >= F.expr(literal(planned.final_before))
        return matched.where(F.col("_late").isNotNull() | is_new_hour).drop("_late")

    def _new(self, frame: DataFrame, planned: Plan, time_column: str) -> DataFrame:
        """Rows whose time is in an hour that is published for the first time."""
        time_ = F.col(time_column)
        since = F.expr(literal(planned.final_before or BEGINNING_OF_TIME))
        return frame.where((time_ >= since) & (time_ < F.expr(literal(planned.final_through))))


def total_causes(hours: list[dict[str, Any]]) -> dict[str, int]:
    """How many differences `by_hour` has of which cause."""
    counted = sum(
        (Counter({cause: hour.get(cause, 0) for cause in table_schemas.LEDGER_CAUSES}) for hour in hours), Counter()
    )
    return dict(counted)


def reconcile(
    config: Settings, stream: str, run_id: str, forced: Hours | None = None, *, dry_run: bool = False
) -> dict[str, Any]:
    """Runs the stream's reconciliation with `config` and returns its summary: alone, whoever else starts one. Raises
    `NothingSettled`, `Busy`, and what `Reconciliation.run` raises."""
    if dry_run:
        return _reconcile(config, stream, run_id, forced, None)
    with exclusive(config, "batch") as still_alone:
        return _reconcile(config, stream, run_id, forced, still_alone)


def _reconcile(
    config: Settings, stream: str, run_id: str, forced: Hours | None, may_commit: Callable[[], None] | None
) -> dict[str, Any]:
    """The run if it `may_commit`, else the survey."""
    loading = warm_up()
    contract = contract_in(config.contracts, stream)
    now = datetime.now(UTC)
    tables.create(config.lake_uri, contract)
    through = generations.settled_batch(contract, config)
    if through is None:
        raise generations.NothingSettled(
            f"{stream} has no complete batch yet; start the streaming job and produce events first"
        )
    spark = session(config, "batch", "millrace-reconcile")
    if may_commit is None:
        store = BatchStore(spark, config.lake_uri, contract, _refuse_writes)
        return Reconciliation(store, contract, run_id, through, now, _no_audit, forced).survey()
    store = BatchStore(spark, config.lake_uri, contract, may_commit)
    auditor: list[Auditor] = []

    def audit(
        suite: str, frame: DataFrame | pandas.DataFrame, expectations: list[suites.Expectation] | None
    ) -> Outcome:
        if not auditor:
            loading.join()
            home, project = config.home / "great_expectations", of_checkout("great_expectations")
            auditor.append(Auditor(project, home, config.data_docs_dir, stream, run_id, now))
        return auditor[0].audit(suite, frame, expectations)

    try:
        summary = Reconciliation(store, contract, run_id, through, now, audit, forced).run()
        found = derivations(spark, config, catalog(config.contracts), stream, run_id, now, may_commit)
        for contract in {derivation.contract.stream: derivation.contract for derivation in found}.values():
            tables.create(config.lake_uri, contract)
        return summary | {"derived": publish_stateful_results(config, found)}
    finally:
        for one in auditor:
            one.build_docs()


def publish_stateful_results(config: Settings, found: list[Derivation]) -> list[dict[str, Any]]:
    """Runs them all and returns their summaries. What one raises is raised when the others have had their turn and the
    catalog shows what was published; several errors as one that tells them all."""
    summaries, failures = [], []
    for derivation in found:
        try:
            summaries.append(derivation.run())
        except Exception as error:  # Spark's own, of any kind, as well
            failures.append(error)
    write_catalog(config)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        again = not all(isinstance(error, TerminalError) for error in failures)
        told = "\n".join(map(str, failures))
        raise (TransientError if again else TerminalError)(told) from ExceptionGroup("all of them", failures)
    return summaries


def _refuse_writes() -> None:
    raise AssertionError("a dry run writes nothing")


def _no_audit(suite: str, frame: Any, expectations: Any) -> Outcome:
    raise AssertionError("a dry run audits nothing")
