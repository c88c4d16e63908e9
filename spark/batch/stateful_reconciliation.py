"""The batch layer of velocity, sessions and joins: recompute exactly what is new or has changed, explain, publish.

A result is recomputed from distinct events (`spark.batch.stateful_exact`), for the keys that have events which the last
publication did not know or which were not final then, from the first of those events on. Its rows become final as far
as the streams it is made of are final (`spark.jobs.reconcile` has published them before). Where the exact rows differ
from those that were served without any explanation, nothing is published, as with windows.

The rows that differ from the published ones take their place in one commit; then the result's rows of `publications`
make them count. A run that died in between is undone first: the table goes back to its last published version.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import duckdb
from pyspark.sql.pandas.types import to_arrow_schema

from infra.settings import Settings
from schemas.contract.model import Contract, Join, StatefulResult, Velocity
from spark.batch import stateful_ledger
from spark.batch.plan import UnexplainedDifference
from spark.batch.stateful_planner import StatefulPlan
from spark.batch.stateful_store import StatefulStore
from spark.batch.windows import same
from spark.definitions import stateful_results
from spark.definitions.times import time_of
from spark.lake import contents, names, table_schemas
from spark.lake.columnar import connect, ident, micros, quoted
from spark.lake.publications import Publication, unique_run_id
from spark.speed.checkpoint import stateful_start

log = logging.getLogger("millrace.reconcile")

EXAMPLES = 10
"""Differences that a refusal names."""


@dataclass
class StatefulReconciliation:
    """One run for one result. `now` is the time that the log rows carry, and `emitted` is how far the speed layer has
    come (`stateful_start.emitted_through`). `may_commit` is called before each write and raises when this process must
    not (any more)."""

    lake_uri: str
    contract: Contract
    result: StatefulResult
    run_id: str
    now: datetime
    emitted: datetime | None
    may_commit: Callable[[], None] = lambda: None
    connection: duckdb.DuckDBPyConnection = field(default_factory=lambda: connect("1g"))

    def run(self) -> dict[str, Any]:
        """Does the run and returns its summary. Raises `UnexplainedDifference`, with nothing published: the ledger has
        the alert until a later run finds it gone."""
        plan, store = StatefulPlan(self.store), self.store
        known = {publication.run_id for publication in plan.published}
        self.run_id = unique_run_id(self.run_id, plan.published)
        if plan.is_idle:
            return self._summary(plan, 0, Counter())
        store.undo(known, plan.title)
        dirty = plan.dirty()
        [(since,)] = store.rows(f'select min("$since") from {dirty}')
        if since is None:
            self._publish(plan, 0)
            return self._summary(plan, 0, Counter())
        exact, replaced = plan.exact(dirty, since), self._replaced(plan, dirty, since)
        found = self.differences(plan, exact, replaced)
        causes = Counter(dict(store.rows(f"select cause, count(*) from {found} group by cause")))
        log.info("%s: ledger: %s", plan.title, dict(causes) or "no differences")
        store.logs.forget_ledger(known)
        if causes["unexplained"]:
            self._refuse(plan, f"(select * from {found} where cause = 'unexplained')")
        self._replace(exact, replaced)
        if causes:
            self._append_ledger(found)
        [(rows,)] = store.rows(f"select count(*) from {exact}")
        self._publish(plan, rows)
        return self._summary(plan, rows, causes)

    # -- the steps -------------------------------------------------------------------------------------------------

    def _replaced(self, plan: StatefulPlan, dirty: str, since: int) -> str:
        """The published rows that the exact ones take the place of, as a table."""
        old = self.store.read(names.batch, lambda file: file.may_hold(self.store.time_column, least=time_of(since)))
        mine = f"""select b.* from {old} b join {dirty} d on {plan.same_key("b", "d")} where b."$at" >= d."$since" """
        return self.store.keep("replaced rows", mine)

    def differences(self, plan: StatefulPlan, exact: str, replaced: str) -> str:
        """The ledger rows of the run, as a table: against the speed layer for rows that are published for the first
        time, against the published ones for those that are published again."""
        assert plan.final is not None  # a plan without it is idle
        store, contract, result = self.store, self.contract, self.result
        uri, closes_at = store.uri(names.speed), f"epoch_us({stateful_results.CLOSES_AT})"
        generation = (contents.newest_batch(uri) or 0) & ~((1 << 40) - 1)
        speed = store.read(names.speed, lambda file: file.may_hold("batch", least=generation))
        identity = ", ".join(map(ident, stateful_results.identity(result, contract)))
        columns = ", ".join(map(ident, [*stateful_results.columns(contract, result), stateful_results.CLOSES_AT]))
        new = f"""select {columns} from {speed} where batch >= {generation}
            and {closes_at} > {micros(plan.final_before)} and {closes_at} <= {micros(plan.final)}"""
        served = f"""(select {columns} from {replaced} union all
            select {columns} from ({new}) anti join (select distinct {identity} from {replaced}) using ({identity}))"""
        emitted = max(self.emitted, plan.final_before) if self.emitted else None
        unequal = stateful_ledger.differences(exact, served, contract, result, emitted)
        different = store.keep("different rows", unequal)
        schema = table_schemas.SYSTEM["ledger"]
        if not store.has_rows(different):
            store.connection.register("no ledger", to_arrow_schema(schema, timezone="UTC").empty_table())
            return store.keep("ledger of rows", 'from "no ledger"')
        key = stateful_results.key(result)
        keys = f"(select distinct {', '.join(plan.key)} from {different})" if isinstance(result, Velocity) else None
        arrived = {
            source.stream: stateful_ledger.arrivals(
                plan.arrived(source),
                source,
                f'(batch > {plan.through_before[source.stream]} and "$micros" < {micros(plan.final_before)})',
                keys,
                key,
            )
            for source in plan.sources
        }
        explained = store.keep("explained rows", stateful_ledger.explained(different, arrived, contract, result))
        rows = stateful_ledger.rows_of(explained, contract, result, self.run_id, self.now)
        return store.keep("ledger of rows", rows)

    def _replace(self, exact: str, replaced: str) -> None:
        """Publishes the rows of `exact` in the place of `replaced`; those that are in both stay as they are."""
        mine = [ident(name) for name in table_schemas.stateful_batch_schema(self.contract, self.result).names]
        compared = [name for name in mine if name != ident("run_id")]
        number = f"row_number() over (partition by {', '.join(compared)})"  # of equal rows as many stay as there are
        new, old = (f'(select *, {number} as "$n" from {rows})' for rows in (exact, replaced))
        equal = same("a", "b", [*compared, '"$n"'])
        gone = self.store.keep("gone", f"select {', '.join(mine)} from {old} a anti join {new} b on {equal}")
        come = (
            f"select {', '.join(compared)}, {quoted(self.run_id)} as run_id from {new} a anti join {old} b on {equal}"
        )
        come = self.store.keep("come", come)
        if self.store.has_rows(gone) or self.store.has_rows(come):
            self.store.replace(gone, come, self.run_id)

    def _append_ledger(self, rows: str) -> None:
        schema = table_schemas.SYSTEM["ledger"]
        columns = ", ".join(map(ident, schema.names))
        self.store.logs.append_ledger(self.store.reader(f"select {columns} from {rows}", schema))

    def _refuse(self, plan: StatefulPlan, unexplained: str) -> None:
        self._append_ledger(unexplained)
        shown = self.store.rows(
            f"""select keys, strftime(window_start, '%Y-%m-%d %H:%M:%S'), measure, speed, exact
            from {unexplained} limit {EXAMPLES}"""
        )
        examples = "\n  ".join(
            f"{keys} {start}: {measure} was served as {speed}, exact is {exact}"
            for keys, start, measure, speed, exact in shown
        )
        refused = UnexplainedDifference(
            f"{plan.title}: served numbers differ from the exact ones and nothing explains it: nothing is published. "
            f"The ledger has them all (run_id {self.run_id}); if the exact ones are right, let the query begin again: "
            f"`millrace checkpoint reset {plan.title}`:\n  {examples}"
        )
        row = {"run_id": self.run_id, "stream": plan.title, "final_through": plan.final}
        self.store.logs.append("refusals", [row | {"reason": str(refused), "recorded_at": self.now}])
        raise refused

    def _publish(self, plan: StatefulPlan, rows: int) -> None:
        """Its own row says how far it is final; one for each other source, what of it is in there. One commit."""
        assert plan.final is not None
        titles = {source.stream: f"{plan.title}.{source.stream}" for source in plan.sources}
        titles[self.contract.stream] = plan.title
        self.store.logs.append(
            "publications",
            [
                Publication(self.run_id, name, plan.final, plan.through[stream], 0, rows, self.now).row
                for stream, name in titles.items()
            ],
        )

    @property
    def store(self) -> StatefulStore:
        """The tables of the result."""
        return StatefulStore(self.lake_uri, self.contract, self.result, self.may_commit, self.connection)

    def _summary(self, plan: StatefulPlan, rows: int, causes: Counter[str]) -> dict[str, Any]:
        return {
            "result": plan.title,
            "rows": rows,
            "final_through": plan.final and plan.final.isoformat(),
            "ledger": dict(causes),
        }


def stateful_reconciliations(
    settings: Settings,
    contracts: dict[str, Contract],
    stream: str,
    run_id: str,
    now: datetime,
    may_commit: Callable[[], None],
    connection: duckdb.DuckDBPyConnection,
) -> list[StatefulReconciliation]:
    """What a publication of `stream` may change: its own results, and the joins of other streams with it."""
    return [
        StatefulReconciliation(
            settings.lake_uri,
            contract,
            result,
            run_id,
            now,
            stateful_start.emitted_through(contract, result, settings),
            may_commit,
            connection,
        )
        for contract in contracts.values()
        for result in contract.stateful_results
        if contract.stream == stream or (isinstance(result, Join) and result.other == stream)
    ]
