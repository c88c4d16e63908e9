"""A small stream for the tests of the batch layer, written to real Delta tables as the streaming driver writes it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow
from deltalake import DeltaTable, write_deltalake
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from infra.settings import Settings
from schemas.contract.model import Contract
from spark.batch.reconciliation import Audit, Reconciliation
from spark.batch.store import BatchStore
from spark.definitions.times import Hours
from spark.lake import names, table_schemas, tables
from spark.lake.batch_numbers import batch_number
from spark.quality import auditor
from spark.quality.suites import Expectation
from spark.serving import duck, spark_views
from spark.speed import delta_append
from spark.transforms.aggregates import distinct_events, partials

AVRO: dict[str, Any] = {
    "type": "record",
    "name": "Sale",
    "fields": [
        {"name": "sold_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "id", "type": "long"},
        {"name": "shop", "type": "string"},
        {"name": "price", "type": ["null", "double"], "default": None},
        {"name": "buyer", "type": ["null", "string"], "default": None},
    ],
}
MEASURES = [
    {"name": "sales", "kind": "count"},
    {"name": "priced", "kind": "count", "of": "price"},
    {"name": "mean_price", "kind": "avg", "of": "price"},
    {"name": "p95_price", "kind": "quantile", "of": "price", "rank": 0.95},
    {"name": "buyers", "kind": "distinct", "of": "buyer"},
]
EXTREMES = [
    {"name": "turnover", "kind": "sum", "of": "price"},
    {"name": "cheapest", "kind": "min", "of": "price"},
    {"name": "last_buyer", "kind": "max", "of": "buyer"},
    {"name": "buys", "kind": "count"},
]

T0 = datetime(2024, 3, 31, 0, tzinfo=UTC)
"""The start of the first hour; the clocks in Europe skip the next one."""

NOW = datetime(2024, 4, 2, tzinfo=UTC)


DOCUMENT = {
    "stream": "sales",
    "description": "",
    "owner": "",
    "key": ["shop"],
    "event_id": ["sold_at", "id"],
    "event_time": "sold_at",
    "allowed_lateness": "1h",
    "rules": [{"name": "price_is_positive", "predicate": "price is null or price > 0", "reason": "price"}],
    "aggregates": [
        {"name": "by_shop", "description": "", "dimensions": ["shop"], "measures": MEASURES},
        {"name": "by_buyer", "description": "", "dimensions": ["buyer"], "measures": EXTREMES},
    ],
    "quality": {"ranges": {"price": [0, 1000]}, "values": {"shop": ["a", "b"]}},
}


def contract(**changes: Any) -> Contract:
    """Sales by shop, with an allowed lateness of an hour."""
    return Contract.model_validate(DOCUMENT | {"folder": Path("sales"), "versions": (AVRO,)} | changes)


def at(hour: float, minute: float = 0) -> datetime:
    return T0 + timedelta(hours=hour, minutes=minute)


def sale(
    id_: int, when: datetime, shop: str = "a", price: float | None = 10.0, buyer: str | None = "ann"
) -> dict[str, Any]:
    return {"id": id_, "sold_at": when, "shop": shop, "price": price, "buyer": buyer}


def hours_of_sales(*hours: int, each: int = 6, first_id: int = 0) -> list[dict[str, Any]]:
    """`each` sales in each hour, ten minutes apart, over both shops and three buyers."""
    return [
        sale(first_id + hour * 100 + n, at(hour, 10 * n % 60), "ab"[n % 2], 1.0 + n, ["ann", "bob", None][n % 3])
        for hour in hours
        for n in range(each)
    ]


def passing(
    suite: str, connection: duckdb.DuckDBPyConnection, sql: str, expectations: list[Expectation] | None
) -> auditor.Outcome:
    """For tests that are not about the audit."""
    return auditor.Outcome(suite, True, 0)


@dataclass
class Feed:
    """Bronze and speed of `contract` in a lake of its own; `send` is a micro-batch."""

    spark: SparkSession
    lake_uri: str
    contract: Contract = field(default_factory=contract)
    batch: int = 0
    runs: int = 0

    def __post_init__(self) -> None:
        tables.create(self.lake_uri, self.contract)

    @property
    def through(self) -> int:
        return batch_number(1, self.batch)

    @property
    def store(self) -> BatchStore:
        return BatchStore(self.lake_uri, self.contract)

    @classmethod
    def copied(cls, spark: SparkSession, lake: str, folder: Path) -> Feed:
        """A feed that goes on from a copy of another one's lake."""
        shutil.copytree(lake, folder / "lake")
        newest = DeltaTable(str(folder / "lake" / "bronze" / "sales")).to_pyarrow_table(columns=["batch"])["batch"]
        return cls(spark, f"file:{folder}/lake", batch=max(newest.to_pylist()) - batch_number(1, 0), runs=10)

    def send(
        self,
        sales: list[dict[str, Any]],
        attempt: int = 0,
        arrived: datetime | None = None,
        originals: Sequence[int] | None = None,
    ) -> None:
        """`originals` are the offsets of the records that these are sent again for, by the retry topic."""
        self.batch += 1
        if attempt and originals is None:
            originals = range(len(sales))
        schema = table_schemas.bronze_schema(self.contract)
        nothing = dict.fromkeys(schema.names)
        rows = [
            nothing
            | one
            | {
                "topic": "sales" if originals is None else "sales.retry", "partition": 0,
                "offset": self.batch * 10_000 + place, "batch": self.through,
                "original": None if originals is None else f"sales/0/{originals[place]}",
                "attempt": attempt, "event_time": one["sold_at"], "kafka_timestamp": arrived, "accepted": True,
            }
            for place, one in enumerate(sales)
        ]  # fmt: skip
        arrow = pyarrow.Table.from_pylist(rows, to_arrow_schema(schema, timezone="UTC"))
        write_deltalake(names.local_path(names.bronze(self.lake_uri, "sales")), arrow, mode="append")
        events = distinct_events(self.spark.createDataFrame(arrow), self.contract)
        for aggregate in self.contract.aggregates:
            found = partials(events, self.contract, aggregate).withColumn("batch", F.lit(self.through))
            delta_append.append(found, names.speed(self.lake_uri, "sales", aggregate.name), "sales.g1", self.batch)

    def lose(self, *places: tuple[int, int]) -> list[dict[str, Any]]:
        """Deletes rows of bronze, given as the batch and the place in it, and returns them."""
        offsets = [batch * 10_000 + place for batch, place in places]
        bronze = names.bronze(self.lake_uri, "sales")
        lost = {row["offset"]: row for row in self.rows(bronze) if row["offset"] in offsets}
        DeltaTable(names.local_path(bronze)).delete(f'"offset" in ({", ".join(map(str, offsets))})')
        return [lost[offset] for offset in offsets]

    def repair(self, lost: list[dict[str, Any]]) -> None:
        """Sends rows that were lost again, as `producers.repair` does and the ingest reads them."""
        self.send(
            [{name: row[name] for name in self.contract.fields} for row in lost],
            originals=[row["offset"] for row in lost],
        )

    def reconcile(self, run_id: str, audit: Audit = passing, forced: Hours | None = None) -> dict[str, Any]:
        """A run of the batch job, a minute after the one before."""
        self.runs += 1
        now = NOW + timedelta(minutes=self.runs)
        return Reconciliation(self.store, self.contract, run_id, self.through, now, audit, forced).run()

    def survey(self, forced: Hours) -> dict[str, Any]:
        return Reconciliation(self.store, self.contract, "survey", self.through, NOW, passing, forced).survey()

    def rows(self, uri: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = DeltaTable(names.local_path(uri)).to_pyarrow_table().to_pylist()
        return found

    def served(self, sql: str) -> list[tuple[Any, ...]]:
        """What the views answer now, which is the same from DuckDB and from Spark."""
        with duck.connect(Settings(home=Path("/nowhere"), lake=self.lake_uri), [self.contract]) as views:
            found = views.execute(sql).fetchall()
        spark_views.register(self.spark, self.contract, self.lake_uri)
        assert [tuple(row) for row in self.spark.sql(sql).collect()] == found
        return found

    def published(self, aggregate: str = "by_shop") -> list[dict[str, Any]]:
        return self.rows(names.batch(self.lake_uri, "sales", aggregate))

    def log(self, name: str) -> list[dict[str, Any]]:
        return self.rows(names.system(self.lake_uri, name))
