"""What a reconciliation writes: the ledger, the publication, and why it refuses."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from spark.batch.plan import Plan, UnexplainedDifference
from spark.batch.store import BatchStore
from spark.definitions.times import BEGINNING_OF_TIME
from spark.lake.publications import Publication

log = logging.getLogger("millrace.reconcile")


def examples_of(unexplained: DataFrame) -> list[Row]:
    """Returns ten of the differences, with `start` as text: Python makes no instants of the year 1 of Spark's."""
    shown = unexplained.withColumn("start", F.col("window_start").cast("string"))
    return shown.drop("window_start", "recorded_at").limit(10).collect()


@dataclass(frozen=True)
class Publisher:
    """Writes for the run `run_id`; `published` are the runs that published before, and `now` is the time that all rows
    carry."""

    store: BatchStore
    plan: Plan
    run_id: str
    published: set[str]
    now: datetime

    def refuse_unexplained(self, unexplained: DataFrame) -> None:
        """Puts the differences on the ledger, until a later run finds them gone, and raises
        `UnexplainedDifference`."""
        self.write_ledger(unexplained, empty=False)
        examples = "\n  ".join(
            f"{row.aggregate}_{row.window} {row.start} {row['keys']}: {row.measure} was served as {row.speed}, "
            f"exact is {row.exact}"
            for row in examples_of(unexplained)
        )
        raise UnexplainedDifference(
            f"{self.store.contract.stream}: served numbers differ from the exact ones and no calculation explains it, "
            f"so nothing is published; the ledger has them all (run_id {self.run_id}):\n  {examples}"
        )

    def write_ledger(self, found: DataFrame, *, empty: bool) -> None:
        """Puts `found` on the ledger, in place of what runs that never published have left there."""
        self.store.forget_ledger(self.published)
        if not empty:
            self.store.append_ledger(found)

    def publish(self, staged: int) -> None:
        """Makes what the batch tables have of the run count; `staged` is how many windows it has published."""
        row = Publication(
            self.run_id, self.store.contract.stream, self.plan.final_through or BEGINNING_OF_TIME,
            self.plan.through_batch, self.plan.hours, staged, self.now, self.store.versions(),
            tuple(f"{a.name}.{measure.name}" for a in self.store.contract.aggregates for measure in a.measures),
        )  # fmt: skip
        self.store.log_rows("publications", [row.row])
        log.info("published %d windows of %d hours", staged, self.plan.hours)

    def record_refusal(self, reason: Exception) -> None:
        """The hours stay the speed layer's; the served views mark them until a run publishes them."""
        row = {
            "run_id": self.run_id, "stream": self.store.contract.stream, "final_through": self.plan.final_through,
            "reason": str(reason), "recorded_at": self.now,
        }  # fmt: skip
        self.store.log_rows("refusals", [row])
