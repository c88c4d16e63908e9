"""Compares the exact windows of a run with what was served for the same hours, and lets the ledger explain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pyspark.sql.pandas.types import to_arrow_schema

from schemas.contract.model import Aggregate, Contract
from spark.batch import ledger, windows
from spark.batch.planner import PlannedHours, is_forced
from spark.batch.store import BatchStore
from spark.definitions.times import time_of
from spark.lake import table_schemas
from spark.lake.columnar import instant, micros, quoted
from spark.lake.publications import Publication, published_without

UNEXPLAINED = "\"$cause\" = 'unexplained'"


@dataclass(frozen=True)
class Comparer:
    """One comparison. `rows` are `planned.rows()`, `exact` the exact windows by aggregate (`windows.exact`, as tables),
    `published` the publications so far, oldest first; `run_id` and `now` stand in the rows of the ledger."""

    planned: PlannedHours
    rows: str
    exact: Mapping[str, str]
    published: list[Publication]
    run_id: str
    now: datetime

    def differences(self) -> str:
        """The ledger rows of the run, all aggregates together, as a table in the columns of `system/ledger`."""
        found = [rows for aggregate in self._contract.aggregates if (rows := self._of_aggregate(aggregate))]
        columns = table_schemas.SYSTEM["ledger"]
        self._store.connection.register("no ledger", to_arrow_schema(columns, timezone="UTC").empty_table())
        listed = ", ".join(f'"{name}"' for name in columns.names)
        parts = ['from "no ledger"', *(f"select {listed} from ({rows})" for rows in found)]
        return self._store.keep("ledger rows", " union all ".join(parts))

    def _of_aggregate(self, aggregate: Aggregate) -> str | None:
        """The ledger rows of one aggregate as SQL; None if there are none."""
        store, contract = self._store, self._contract
        served = self._served(aggregate)
        unequal = ledger.differences(self.exact[aggregate.name], served, contract, aggregate)
        different = store.keep(f"different {aggregate.name}", self._without_unserved(unequal, aggregate))
        if not store.has_rows(different):
            return None
        found = ledger.explained(different, self.rows, contract, aggregate)
        explained = self._reconsidered(store.keep(f"explained {aggregate.name}", found), aggregate)
        return ledger.rows_of(explained, contract, aggregate, quoted(self.run_id), instant(self.now))

    def _without_unserved(self, different: str, aggregate: Aggregate) -> str:
        """`different` less the measures of hours that were published before the measure was added: what was not served
        was not wrong."""
        late_hours, conditions = self.planned.plan.late_hours, []
        for measure in aggregate.measures if late_hours else ():
            until, since = published_without(self.published, f"{aggregate.name}.{measure.name}")
            if until is None or until <= late_hours[0]:
                continue
            again = self._store.hours_of(aggregate, since)
            lacking = [str(micros(hour)) for hour in late_hours if hour < until and hour not in again]
            if lacking:
                is_lacking = f"""{windows.hour('"$start"')} in ({", ".join(lacking)})"""
                conditions.append(f""" not ("$measure" = {quoted(measure.name)} and {is_lacking})""")
        return f"select * from ({different}) where {' and '.join(conditions)}" if conditions else different

    def _reconsidered(self, found: str, aggregate: Aggregate) -> str:
        """`found` after a second look at what is unexplained in it."""
        store, contract, plan = self._store, self._contract, self.planned.plan
        if not store.has_rows(found, UNEXPLAINED):
            return found
        if store.has_rows(self.rows, "original is not null"):
            lost = ledger.lost(self.rows, self.planned.partials(aggregate), contract, aggregate)
            history = self.rows
            if lost is not None:
                lost = f'(select * replace (batch > {plan.batch_before} as "$is_new") from {lost})'
                history = f"(from {self.rows} union all by name from {lost})"
            again = ledger.reconsidered(found, history, "replayed", contract, aggregate)
            found = store.keep(f"replayed {aggregate.name}", again)
        if store.has_rows(found, UNEXPLAINED) and plan.new_hours:
            since: dict[int, list[str]] = {}
            for measure, batch in store.first_batches(aggregate, plan.through_batch).items():
                since.setdefault(batch, []).append(measure)
            for batch, names in since.items():
                history = f'(select * from {self.rows} where "$is_late_hour" or batch >= {batch})'
                again = ledger.reconsidered(found, history, "added", contract, aggregate, names)
                found = store.keep(f"added since {batch} {aggregate.name}", again)
        corrected = f"""{UNEXPLAINED} and {is_forced(plan.forced, '"$start"')}"""
        return f"""(select * replace (case when {corrected} then 'corrected' else "$cause" end as "$cause")
            from {found})"""

    def by_hour(self, found: str) -> list[dict[str, Any]]:
        """The run in hours of event time, oldest first: `hour`, the `windows` that were computed, and how many of the
        differences `found` have which cause."""
        starts = " union all ".join(f'select "$start" from {exact}' for exact in self.exact.values())
        hour = windows.hour('"$start"')
        hours: dict[int, dict[str, Any]] = {
            at: {"hour": time_of(at).isoformat(), "windows": n}
            for at, n in self._store.rows(f"select {hour}, count(*) from ({starts}) group by 1")
        }
        hour = windows.hour("epoch_us(window_start)")
        for at, cause, n in self._store.rows(f"select {hour}, cause, count(*) from {found} group by all"):
            mine = hours.setdefault(at, {"hour": time_of(at).isoformat(), "windows": 0})
            mine[cause] = n
        return [hours[hour] for hour in sorted(hours)]

    def _served(self, aggregate: Aggregate) -> str:
        """What was served so far for the windows of the plan's hours: the folded speed layer for new hours, the
        published rows for late ones."""
        store, contract = self._store, self._contract
        columns = ", ".join([*windows.keys(aggregate), *(f'"{measure.name}"' for measure in aggregate.measures)])
        speed = windows.folded(self.planned.new_partials(aggregate), contract, aggregate)
        served = f'select {columns}, true as "$estimated" from ({speed})'
        if not self.planned.plan.late_hours:
            return f"({served})"
        present = store.keep(f"present {aggregate.name}", f"from {self.planned.published(aggregate)}")
        # A run that died while it published has replaced these hours; what it replaced is computed again.
        runs = ", ".join(quoted(publication.run_id) for publication in self.published)
        dead = f"select distinct epoch_us(hour) as hour from {present} where run_id not in ({runs})"
        orphaned = store.keep(f"orphaned {aggregate.name}", dead)
        served += f""" union all select {columns}, false from {present}
            where epoch_us(hour) not in (select hour from {orphaned})"""
        if store.has_rows(orphaned):
            as_published = f"""(select * from {self.rows} where "$is_late_hour" and "$distinct_event" and not "$is_new"
                and {windows.hour()} in (select hour from {orphaned}))"""
            computed = windows.exact(as_published, contract, aggregate)
            served += f" union all select {columns}, false from ({computed})"
        return f"({served})"

    @property
    def _store(self) -> BatchStore:
        return self.planned.store

    @property
    def _contract(self) -> Contract:
        return self.planned.store.contract
