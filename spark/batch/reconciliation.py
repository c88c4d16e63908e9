"""The batch layer of one stream: recompute, compare, audit, publish."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
from pyspark.sql import SparkSession

from infra.deployed import contract_in_service, contracts_in_service
from infra.locks.batch_lock import exclusive
from infra.settings import Settings, of_checkout
from schemas.contract.model import Aggregate, Contract
from schemas.errors import TerminalError, TransientError
from spark.batch import windows
from spark.batch.comparer import Comparer
from spark.batch.layer_counts import counter, layers
from spark.batch.plan import Plan, UnexplainedDifference
from spark.batch.planner import PlannedHours, is_forced, plan_hours
from spark.batch.publisher import Publisher
from spark.batch.stateful_reconciliation import StatefulReconciliation, stateful_reconciliations
from spark.batch.store import BatchStore, engine, iso, with_iso_hours
from spark.definitions.times import Hours
from spark.lake import table_schemas, tables
from spark.lake.columnar import quoted
from spark.lake.publications import Publication, publications, unique_run_id
from spark.quality import suites
from spark.quality.auditor import Auditor, FailedExpectations, Outcome, require_success, warm_up
from spark.serving.duck import write_catalog
from spark.session import session
from spark.speed.checkpoint import generations

log = logging.getLogger("millrace.reconcile")


SHOWN_HOURS = 48
"""Hours that a summary lists at most, the newest."""


SHOWN_CHANGES = 200
"""Differences that a survey lists at most."""


Audit = Callable[[str, duckdb.DuckDBPyConnection, str, list[suites.Expectation] | None], Outcome]
"""Runs a suite (by name, with generated expectations, or with None the hand-written one) on the rows of a query."""


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

    def run(self) -> dict[str, Any]:
        """Does the run and returns its summary. Raises `FailedExpectations` or `UnexplainedDifference`, with nothing
        published."""
        published, planned = self._begin()
        publisher = Publisher(self.store, planned.plan, self.run_id, {known.run_id for known in published}, self.now)
        if planned.plan.is_idle:
            return self._summary(planned.plan, [])
        if not planned.plan.hours:
            publisher.publish(0)
            return self._summary(planned.plan, [])
        try:
            rows = planned.rows()
            exact = {aggregate.name: self._computed(aggregate, rows) for aggregate in self.contract.aggregates}
            for aggregate in self.contract.aggregates:
                self._stage(aggregate, exact[aggregate.name])
            comparer = Comparer(planned, rows, exact, published, self.run_id, self.now)
            found = comparer.differences()
            hours = comparer.by_hour(found)
            causes, staged = total_causes(hours), sum(hour["windows"] for hour in hours)
            log.info("staged %d windows; ledger: %s", staged, causes or "no differences")
            if causes.get("unexplained"):  # before the audit, whose sums over layers would fail and hide where
                publisher.refuse_unexplained(f"(select * from {found} where cause = 'unexplained')")
            self._audit(planned, rows)
            for aggregate in self.contract.aggregates:
                self.store.replace(aggregate, planned.plan.replaced)
            publisher.write_ledger(found, empty=not causes)
            publisher.publish(staged)
        except (FailedExpectations, UnexplainedDifference) as error:
            publisher.record_refusal(error)
            raise
        return self._summary(planned.plan, hours)

    def survey(self) -> dict[str, Any]:
        """What `run` would do, without the audit: its summary and, as `changes`, rows of the ledger that it would
        write, `SHOWN_CHANGES` at most. Writes nothing."""
        published, planned = self._begin()
        if not planned.plan.hours:
            return self._summary(planned.plan, []) | {"changes": []}
        rows = planned.rows()
        exact = {aggregate.name: self._computed(aggregate, rows) for aggregate in self.contract.aggregates}
        comparer = Comparer(planned, rows, exact, published, self.run_id, self.now)
        found = comparer.differences()
        changes = f"""select * exclude (run_id, recorded_at) replace ({iso("window_start")} as window_start)
            from {found} order by window_start, aggregate, "window", measure limit {SHOWN_CHANGES}"""
        shown = self.store.connection.execute(changes).to_arrow_table().to_pylist(maps_as_pydicts="strict")
        return self._summary(planned.plan, comparer.by_hour(found)) | {"changes": shown}

    def _begin(self) -> tuple[list[Publication], PlannedHours]:
        published = publications(self.store.lake_uri, self.contract.stream)
        self.run_id = unique_run_id(self.run_id, published)
        hours = plan_hours(self.store, self.through, published[-1] if published else None, self.forced)
        log.info(
            "%s: batches up to %d, %d new and %d late hours, final through %s",
            self.contract.stream, self.through, len(hours.plan.new_hours), len(hours.plan.late_hours),
            hours.plan.final_through,
        )  # fmt: skip
        return published, hours

    def _computed(self, aggregate: Aggregate, rows: str) -> str:
        """The exact windows of the aggregate, as a table."""
        distinct = f'(select * from {rows} where "$distinct_event")'
        return self.store.keep(f"exact {aggregate.name}", windows.exact(distinct, self.contract, aggregate))

    def _stage(self, aggregate: Aggregate, exact: str) -> None:
        stored = windows.stored(self.contract, aggregate, exact, quoted(self.run_id))
        self.store.stage(aggregate, f"select * from {stored} order by hour")

    def _audit(self, planned: PlannedHours, rows: str) -> None:
        """Raises `FailedExpectations` after all suites have run."""
        store, contract = self.store, self.contract

        def ask(suite: str, sql: str, expectations: list[suites.Expectation] | None) -> Outcome:
            return self.audit(suite, store.connection, sql, expectations)

        suite = suites.events(contract)
        distinct = f'(select * from {rows} where "$distinct_event")'
        outcomes = [ask(suite.name, suite.audited(distinct, store.bronze_types()), suite.expectations)]
        for aggregate in contract.aggregates:
            suite = suites.windows(contract, aggregate, "staged")
            audited = suite.audited(store.staged(aggregate), store.staged_types(aggregate))
            outcomes.append(ask(suite.name, audited, suite.expectations))
        if any(counter(aggregate) for aggregate in contract.aggregates):
            counted = layers(
                rows,
                {aggregate.name: planned.partials(aggregate) for aggregate in contract.aggregates},
                {aggregate.name: store.staged(aggregate) for aggregate in contract.aggregates},
                contract,
                store.began(),
                compared=f"not {is_forced(self.forced, 'epoch_us(hour)')} and {store.has_partials()}",
            )
            outcomes.append(ask("layers", with_iso_hours(counted), None))
        stream, through = contract.stream, self.through
        store.logs.append("quality", [o.row(self.run_id, stream, through, self.now) for o in outcomes])
        require_success(stream, outcomes)

    def _summary(self, plan: Plan, hours: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "stream": self.contract.stream,
            "run_id": self.run_id,
            "hours": plan.hours,
            "rows": sum(hour["windows"] for hour in hours),
            "final_through": plan.final_through and plan.final_through.isoformat(),
            "through_batch": self.through,
            "ledger": total_causes(hours),
            "by_hour": hours[-SHOWN_HOURS:],
        }


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
    contract = contract_in_service(config, stream)
    now = datetime.now(UTC)
    tables.create(config.lake_uri, contract)
    through = generations.settled_batch(contract, config)
    if through is None:
        raise generations.NothingSettled(
            f"{stream} has no complete batch yet; start the streaming job and produce events first"
        )
    with engine(config) as connection:
        if may_commit is None:
            store = BatchStore(config.lake_uri, contract, _refuse_writes, connection)
            return Reconciliation(store, contract, run_id, through, now, _no_audit, forced).survey()
        store = BatchStore(config.lake_uri, contract, may_commit, connection)
        with _auditing(config, store, run_id, now) as audit:
            summary = Reconciliation(store, contract, run_id, through, now, audit, forced).run()
            contracts = contracts_in_service(config)
            found = stateful_reconciliations(config, contracts, stream, run_id, now, may_commit, connection)
            for source in {one.contract.stream: one.contract for one in found}.values():
                tables.create(config.lake_uri, source)
            return summary | {"derived": publish_stateful_results(config, found)}


@contextmanager
def _auditing(config: Settings, store: BatchStore, run_id: str, now: datetime) -> Iterator[Audit]:
    """Gives what runs suites; their pages are built at the end. Great Expectations, whose import takes seconds, is
    loaded meanwhile."""
    loading, begun = warm_up(), list[Auditor]()

    def spark() -> SparkSession:
        return session(config, "batch", "millrace-reconcile", store.bronze_rows())

    def audit(
        suite: str, asked: duckdb.DuckDBPyConnection, sql: str, expectations: list[suites.Expectation] | None
    ) -> Outcome:
        if not begun:
            loading.join()
            home, project = config.home / "great_expectations", of_checkout("great_expectations")
            stream = store.contract.stream
            begun.append(Auditor(project, home, config.data_docs_dir, stream, run_id, now, spark))
        return begun[0].audit_query(suite, asked, sql, expectations)

    try:
        yield audit
    finally:
        for auditor in begun:
            auditor.build_docs()


def publish_stateful_results(config: Settings, found: list[StatefulReconciliation]) -> list[dict[str, Any]]:
    """Runs them all and returns their summaries. What one raises is raised when the others have had their turn and the
    catalog shows what was published; several errors as one whose message has those of all."""
    summaries, failures = [], []
    for reconciliation in found:
        try:
            summaries.append(reconciliation.run())
        except Exception as error:  # the engine's own, of any kind, as well
            failures.append(error)
    write_catalog(config)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        again = not all(isinstance(error, TerminalError) for error in failures)
        messages = "\n".join(map(str, failures))
        raise (TransientError if again else TerminalError)(messages) from ExceptionGroup("all of them", failures)
    return summaries


def _refuse_writes() -> None:
    raise AssertionError("a dry run writes nothing")


def _no_audit(suite: str, asked: Any, sql: str, expectations: Any) -> Outcome:
    raise AssertionError("a dry run audits nothing")
