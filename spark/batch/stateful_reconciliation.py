"""The batch layer of velocity, sessions and joins: recompute exactly what is new or has changed, explain, publish.

A result is recomputed from distinct events by the pure functions of `spark.transforms`, for the keys that have events
which the last publication did not know or which were not final then, from the first of those events on. Its rows
become final as far as the streams it is made of are final (`spark.jobs.reconcile` has published them before).

Where the exact rows differ from those that were served without any explanation, nothing is published, as with windows.
The new rows replace the old ones in one commit; then its rows of `publications` make them count. A run that died in
between is undone first: the table goes back to its last published version.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow
from deltalake import DeltaTable
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from infra.settings import Settings
from schemas.contract.model import Contract, Join, StatefulResult, Velocity
from spark.batch import stateful_ledger
from spark.batch.ledger import OUTPUT
from spark.batch.logs import BatchLogs
from spark.batch.plan import UnexplainedDifference
from spark.batch.stateful_planner import StatefulPlan
from spark.definitions import stateful_results
from spark.definitions.times import literal, time_of
from spark.lake import contents, names, table_schemas
from spark.lake.publications import Publication, unique_run_id
from spark.speed.checkpoint import stateful_start

log = logging.getLogger("millrace.reconcile")


@dataclass
class StatefulReconciliation:
    """One run for one result. `session` begins the Spark session or returns it, `now` is the time that the log rows
    carry, and `emitted` is how far the speed layer has come (`stateful_start.emitted_through`). `may_commit` is called
    before each write and raises when this process must not (any more)."""

    session: Callable[[], SparkSession]
    lake_uri: str
    contract: Contract
    result: StatefulResult
    run_id: str
    now: datetime
    emitted: datetime | None
    may_commit: Callable[[], None] = lambda: None

    def run(self) -> dict[str, Any]:
        """Does the run and returns its summary. Raises `UnexplainedDifference`, with nothing published: the ledger has
        the alert until a later run finds it gone."""
        plan = StatefulPlan(self.session, self.lake_uri, self.contract, self.result)
        known = {publication.run_id for publication in plan.published}
        self.run_id = unique_run_id(self.run_id, plan.published)
        if plan.is_idle:
            return self._summary(plan, 0, Counter())
        self.session()  # without one there are no functions of Spark
        self._undo(plan, known)
        dirty = plan.dirty().localCheckpoint()
        micros = (dirty.agg(F.unix_micros(F.min("$since"))).head() or [None])[0]
        if micros is None:
            self._publish(plan, 0)
            return self._summary(plan, 0, Counter())
        since = literal(time_of(micros))
        exact = plan.exact(dirty, F.expr(since)).localCheckpoint()
        old = plan.read(names.batch).where(F.col(plan.time_column) >= F.expr(since))
        marked = old.join(dirty, plan.key, "left").withColumn("$stale", F.col(plan.time_column) >= F.col("$since"))
        stale = F.coalesce("$stale", F.lit(False))
        replaced = marked.where(stale).select(*old.columns).localCheckpoint()
        found = self.differences(plan, exact, replaced).localCheckpoint()
        causes = Counter({row.cause: row.n for row in found.groupBy("cause").agg(F.count("*").alias("n")).collect()})
        log.info("%s: ledger: %s", plan.title, dict(causes) or "no differences")
        self._logs(plan).forget_ledger(known)
        if causes["unexplained"]:
            self._refuse(plan, found.where("cause = 'unexplained'"))
        self._replace(plan, exact, marked.where(~stale), since)
        if causes:
            self._logs(plan).append_ledger(_arrow(found))
        rows = exact.count()
        self._publish(plan, rows)
        return self._summary(plan, rows, causes)

    # -- the steps -------------------------------------------------------------------------------------------------

    def differences(self, plan: StatefulPlan, exact: DataFrame, replaced: DataFrame) -> DataFrame:
        """The ledger rows of the run: against the speed layer for rows that are published for the first time, against
        the published ones for those that are published again."""
        speed = plan.read(names.speed)
        generation = F.lit(contents.newest_batch(plan.uri(names.speed)) or 0).bitwiseAND(~((1 << 40) - 1))
        new = (
            speed.where(F.col("batch") >= generation)
            .where(F.col(stateful_results.CLOSES_AT) > F.expr(literal(plan.final_before)))
            .where(F.col(stateful_results.CLOSES_AT) <= F.expr(literal(plan.final)))
        )
        identity = stateful_results.identity(self.result, self.contract)
        columns = [*stateful_results.columns(self.contract, self.result), stateful_results.CLOSES_AT]
        served = replaced.select(*columns).unionByName(new.select(*columns).join(replaced, identity, "left_anti"))
        emitted = F.expr(literal(max(self.emitted, plan.final_before))) if self.emitted else None
        different = stateful_ledger.differences(exact, served, self.contract, self.result, emitted).localCheckpoint()
        if different.isEmpty():
            return self.session().createDataFrame([], table_schemas.SYSTEM["ledger"])
        keys = different.select(*plan.key).distinct() if isinstance(self.result, Velocity) else None
        # Of all batches: the query may have taken some after the cut together with those up to it.
        arrived = {
            source.stream: stateful_ledger.arrivals(
                plan.accepted(source),
                source,
                (F.col("batch") > plan.through_before[source.stream])
                & (F.col("event_time") < F.expr(literal(plan.final_before))),
                keys,
            )
            for source in plan.sources
        }
        values = [F.col(name).cast("string") for name in plan.key]
        return stateful_ledger.explained(different, arrived, self.contract, self.result).select(
            F.lit(self.run_id).alias("run_id"),
            F.lit(plan.title).alias("stream"),
            F.lit(self.result.name).alias("aggregate"),
            F.lit(type(self.result).__name__.lower()).alias("window"),
            F.col(plan.time_column).alias("window_start"),
            F.map_from_arrays(F.array(*(F.lit(name) for name in plan.key)), F.array(*values)).alias("keys"),
            *(F.col(f"${name}").alias(name) for name in OUTPUT),
            F.expr(literal(self.now)).alias("recorded_at"),
        )  # fmt: skip

    def _replace(self, plan: StatefulPlan, exact: DataFrame, kept: DataFrame, since: str) -> None:
        """Makes `exact` and `kept` the rows of the batch table from the place `since` (SQL) on, in one commit."""
        columns = table_schemas.stateful_batch_schema(self.contract, self.result).names
        staged = exact.withColumn("run_id", F.lit(self.run_id)).select(*columns).unionByName(kept.select(*columns))
        self.may_commit()
        staged.write.format("delta").mode("overwrite").save(plan.uri(names.staged))
        self.may_commit()
        (
            plan.read(names.staged)
            .write.format("delta")
            .mode("overwrite")
            .option("replaceWhere", f"{plan.time_column} >= {since}")
            .option("userMetadata", self.run_id)
            .save(plan.uri(names.batch))
        )

    def _refuse(self, plan: StatefulPlan, unexplained: DataFrame) -> None:
        self._logs(plan).append_ledger(_arrow(unexplained))
        examples = "\n  ".join(
            f"{row['keys']} {row.start}: {row.measure} was served as {row.speed}, exact is {row.exact}"
            for row in _examples_of(unexplained)
        )
        refused = UnexplainedDifference(
            f"{plan.title}: served numbers differ from the exact ones and nothing explains it: nothing is published. "
            f"The ledger has them all (run_id {self.run_id}); if the exact ones are right, let the query begin again: "
            f"`millrace checkpoint reset {plan.title}`:\n  {examples}"
        )
        row = {"run_id": self.run_id, "stream": plan.title, "final_through": plan.final}
        self._logs(plan).append("refusals", [row | {"reason": str(refused), "recorded_at": self.now}])
        raise refused

    def _publish(self, plan: StatefulPlan, rows: int) -> None:
        """Its own row says how far it is final; one for each other source, what of it is in there. One commit."""
        assert plan.final is not None
        titles = {source.stream: f"{plan.title}.{source.stream}" for source in plan.sources}
        titles[self.contract.stream] = plan.title
        self._logs(plan).append(
            "publications",
            [
                Publication(self.run_id, name, plan.final, plan.through[stream], 0, rows, self.now).row
                for stream, name in titles.items()
            ],
        )

    def _undo(self, plan: StatefulPlan, known: set[str]) -> None:
        table = DeltaTable(names.local_path(plan.uri(names.batch)))
        # Newest first; what is neither a run's nor takes one back (a compaction) changes no row.
        telling = [
            entry
            for entry in table.history()
            if "userMetadata" in entry or entry["operation"] in ("RESTORE", "CREATE TABLE")
        ]
        good = next(entry for entry in telling if entry.get("userMetadata") is None or entry["userMetadata"] in known)
        if good is not telling[0]:
            log.warning("%s: an unfinished run is undone, back to version %d", plan.title, good["version"])
            self.may_commit()
            table.restore(good["version"])

    def _logs(self, plan: StatefulPlan) -> BatchLogs:
        return BatchLogs(self.lake_uri, plan.title, self.may_commit)

    def _summary(self, plan: StatefulPlan, rows: int, causes: Counter[str]) -> dict[str, Any]:
        return {
            "result": plan.title,
            "rows": rows,
            "final_through": plan.final and plan.final.isoformat(),
            "ledger": dict(causes),
        }


EXAMPLES = 10
"""Differences that a refusal names."""


def _arrow(rows: DataFrame) -> pyarrow.Table:
    """Rows of the ledger in its columns."""
    schema = table_schemas.SYSTEM["ledger"]
    return rows.select(*schema.names).toArrow().cast(to_arrow_schema(schema, timezone="UTC"))


def _examples_of(unexplained: DataFrame) -> list[Row]:
    """Some of the differences, with `start` as text: Python makes no instants of the year 1 of Spark's."""
    shown = unexplained.withColumn("start", F.col("window_start").cast("string"))
    return shown.drop("window_start", "recorded_at").limit(EXAMPLES).collect()


def stateful_reconciliations(
    spark: Callable[[], SparkSession],
    settings: Settings,
    contracts: dict[str, Contract],
    stream: str,
    run_id: str,
    now: datetime,
    may_commit: Callable[[], None] = lambda: None,
) -> list[StatefulReconciliation]:
    """What a publication of `stream` may change: its own results, and the joins of other streams with it."""
    return [
        StatefulReconciliation(
            spark,
            settings.lake_uri,
            contract,
            result,
            run_id,
            now,
            stateful_start.emitted_through(contract, result, settings),
            may_commit,
        )
        for contract in contracts.values()
        for result in contract.stateful_results
        if contract.stream == stream or (isinstance(result, Join) and result.other == stream)
    ]
