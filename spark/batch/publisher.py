"""What a reconciliation writes: the ledger, the publication, and why it refuses."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

from spark.batch.plan import Plan, UnexplainedDifference
from spark.batch.store import BatchStore
from spark.definitions.times import BEGINNING_OF_TIME
from spark.lake import table_schemas
from spark.lake.columnar import ident
from spark.lake.publications import Publication

log = logging.getLogger("millrace.reconcile")


EXAMPLES = 10
"""Differences that a refusal names."""


@dataclass(frozen=True)
class Publisher:
    """Writes for the run `run_id`; `published` are the runs that published before, and `now` is the time that all rows
    carry."""

    store: BatchStore
    plan: Plan
    run_id: str
    published: set[str]
    now: datetime

    def refuse_unexplained(self, unexplained: str) -> None:
        """Puts the differences, rows of the ledger, on it, until a later run finds them gone, and raises
        `UnexplainedDifference`."""
        self.write_ledger(unexplained, empty=False)
        shown = self.store.rows(
            f"""select aggregate, "window", strftime(window_start, '%Y-%m-%d %H:%M:%S'), keys, measure, speed, exact
            from {unexplained} limit {EXAMPLES}"""
        )
        examples = "\n  ".join(
            f"{aggregate}_{window} {start} {keys}: {measure} was served as {speed}, exact is {exact}"
            for aggregate, window, start, keys, measure, speed, exact in shown
        )
        raise UnexplainedDifference(
            f"{self.store.contract.stream}: served numbers differ from the exact ones and no calculation explains it, "
            f"so nothing is published; the ledger has them all (run_id {self.run_id}):\n  {examples}"
        )

    def write_ledger(self, found: str, *, empty: bool) -> None:
        """Puts `found`, rows of the ledger, on it, in place of what runs that never published have left there."""
        self.store.logs.forget_ledger(self.published)
        if not empty:
            schema = table_schemas.SYSTEM["ledger"]
            columns = ", ".join(map(ident, schema.names))
            self.store.logs.append_ledger(self.store.reader(f"select {columns} from {found}", schema))

    def publish(self, staged: int) -> None:
        """Makes what the batch tables have of the run count; `staged` is how many windows it has published."""
        row = Publication(
            self.run_id, self.store.contract.stream, self.plan.final_through or BEGINNING_OF_TIME,
            self.plan.through_batch, self.plan.hours, staged, self.now, self.store.versions(),
            tuple(f"{a.name}.{measure.name}" for a in self.store.contract.aggregates for measure in a.measures),
        )  # fmt: skip
        self.store.logs.append("publications", [row.row])
        log.info("published %d windows of %d hours", staged, self.plan.hours)

    def record_refusal(self, reason: Exception) -> None:
        """The hours stay the speed layer's; the served views mark them until a run publishes them."""
        row = {
            "run_id": self.run_id, "stream": self.store.contract.stream, "final_through": self.plan.final_through,
            "reason": str(reason), "recorded_at": self.now,
        }  # fmt: skip
        self.store.logs.append("refusals", [row])
