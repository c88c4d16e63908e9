"""Two speeds, one truth: partials of any batches, folded in any order, are the batch result."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from schemas.contract.model import Contract
from schemas.contract.model import Window as WindowName
from spark.batch import windows
from spark.batch.deduplication import mark
from spark.definitions import avro_types, measures
from spark.lake import columnar, table_schemas
from spark.transforms.aggregates import distinct_events, finalize, partials, rollup

AVRO = {
    "type": "record",
    "name": "Sale",
    "fields": [
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "id", "type": "long"},
        {"name": "shop", "type": ["null", "string"], "default": None},
        {"name": "items", "type": ["null", "int"], "default": None},
        {"name": "stock", "type": "long"},
        {"name": "price", "type": ["null", "double"], "default": None},
        {"name": "buyer", "type": ["null", "string"], "default": None},
    ],
}
SALES = Contract.model_validate(
    {
        "stream": "sales",
        "description": "",
        "owner": "",
        "key": ["shop"],
        "event_id": ["id"],
        "event_time": "at",
        "folder": Path("sales"),
        "versions": (AVRO,),
        "aggregates": [
            {
                "name": "sales_by_shop",
                "description": "",
                "dimensions": ["shop"],
                "measures": [
                    {"name": "sales", "kind": "count"},
                    {"name": "priced", "kind": "count", "of": "price"},
                    {"name": "sold", "kind": "sum", "of": "items"},
                    {"name": "stocked", "kind": "sum", "of": "stock"},
                    {"name": "turnover", "kind": "sum", "of": "price"},
                    {"name": "mean_items", "kind": "avg", "of": "items"},
                    {"name": "mean_price", "kind": "avg", "of": "price"},
                    {"name": "cheapest", "kind": "min", "of": "price"},
                    {"name": "last_buyer", "kind": "max", "of": "buyer"},
                    {"name": "buyers", "kind": "distinct", "of": "buyer"},
                    {"name": "prices", "kind": "distinct", "of": "price"},
                    {"name": "median_price", "kind": "quantile", "of": "price", "rank": 0.5},
                    {"name": "p95_items", "kind": "quantile", "of": "items", "rank": 0.95},
                ],
            }
        ],
    }
)
AGGREGATE = SALES.aggregates[0]
START = datetime(2024, 3, 31, 0, 58, tzinfo=UTC)  # an hour that clocks in Europe skip

SALE = st.fixed_dictionaries(
    {
        "at": st.integers(-(10**9), 4 * 10**9).map(lambda micros: START + timedelta(microseconds=micros)),
        "shop": st.sampled_from(["a", "b", "c", "d", "e", None]),
        "items": st.none() | st.integers(-(2**31), 2**31 - 1),
        "stock": st.sampled_from([0, 2**63 - 1, -(2**63)]) | st.integers(0, 100),
        "price": st.sampled_from([None, math.nan, math.inf, 0.1, 0.2, 0.3, 1e18, 1e300]) | st.floats(0, 1e6),
        "buyer": st.none() | st.sampled_from(["ann", "bob", "cid", ""]),
    }
)


def events(spark: SparkSession, sales: list[dict[str, Any]], schema: StructType) -> DataFrame:
    rows = [
        {
            "batch": 1, "topic": "sales", "partition": 0, "offset": offset, **sale, "event_time": sale["at"],
        }
        for offset, sale in enumerate(sales)
    ]  # fmt: skip
    return spark.createDataFrame(rows, schema)


@pytest.fixture(scope="module")
def schema() -> StructType:
    place = StructType.fromJson(table_schemas.bronze_schema(SALES).jsonValue())
    names = [
        "batch",
        "topic",
        "partition",
        "offset",
        *(field.name for field in avro_types.columns(SALES)),
        "event_time",
    ]
    return StructType([place[name] for name in names])


def rows(frame: DataFrame) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {(row["window_start"].astimezone(UTC), row["shop"]): row.asDict() for row in frame.collect()}


def exact(frame: DataFrame, window: WindowName) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The windows of the batch layer for events some of which repeat, as `rows` has those of the speed layer."""
    connection = columnar.connect("1g")
    connection.register("arrived", frame.toArrow())
    source = '(select *, epoch_us(event_time) as "$micros" from arrived)'
    mark(connection, SALES, "marked", [*frame.columns, "$micros"], source)
    aggregate = AGGREGATE.model_copy(update={"windows": (window,)})
    found = windows.exact('(select * from marked where "$distinct_event")', SALES, aggregate)
    stored = windows.stored(SALES, aggregate, f"({found})", "'r'")
    table = connection.execute(f"select * exclude (hour, run_id) from {stored}").to_arrow_table().to_pylist()
    return {(row["window_start"].astimezone(UTC), row["shop"]): row for row in table}


@settings(
    max_examples=3, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(
    sales=st.lists(SALE, min_size=1, max_size=120),  # many groups rather than many queries
    places=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), min_size=120, max_size=120),
    order=st.permutations(range(3)),
    window=st.sampled_from(["1m", "5m", "1h"]),
)
def test_partials_of_any_batches_in_any_order_fold_to_the_batch_result(
    spark: SparkSession,
    schema: StructType,
    sales: list[dict[str, Any]],
    places: list[tuple[int, int]],
    order: list[int],
    window: WindowName,
) -> None:
    """Each sale goes to one of three batches and is there one to three times."""
    sales = [sale | {"id": number} for number, sale in enumerate(sales)]
    batches: list[list[dict[str, Any]]] = [[], [], []]
    for sale, (batch, copies) in zip(sales, places, strict=False):
        batches[batch] += [sale] * copies
    folded = reduce(
        DataFrame.union,
        (partials(distinct_events(events(spark, batches[i], schema), SALES), SALES, AGGREGATE) for i in order),
    )
    speed = rows(finalize(rollup(folded, SALES, AGGREGATE, window), SALES, AGGREGATE, window))
    together = [sale for batch in batches for sale in batch]
    batch_result = exact(events(spark, together, schema), window)
    # Below 200 values both sketches are exact, so the results are the same to the last bit.
    for row in (*speed.values(), *batch_result.values()):
        row.update({name: row[name].astimezone(UTC) for name in ("window_start", "window_end")})
    assert speed == batch_result


def test_the_batch_result_is_what_plain_python_computes(spark: SparkSession, schema: StructType) -> None:
    prices = [0.1, 0.2, 0.3, None, math.nan, 1e300]
    sales = [
        {
            "at": START + timedelta(seconds=i),
            "shop": "a",
            "items": i,
            "stock": 2**63 - 1,
            "price": price,
            "buyer": "ann",
        }
        for i, price in enumerate(prices)
    ]
    sales = [sale | {"id": i} for i, sale in enumerate(sales)]
    [found] = exact(events(spark, sales + sales[:2], schema), "5m").values()
    assert found["window_end"] - found["window_start"] == timedelta(minutes=5)
    assert (found["sales"], found["priced"], found["sold"]) == (6, 4, 15)
    assert found["stocked"] == 6 * (2**63 - 1)
    assert (found["turnover"], found["mean_price"]) == (math.inf, math.inf)  # 1e300 does not fit a sum
    assert (found["mean_items"], found["cheapest"], found["last_buyer"]) == (2.5, 0.1, "ann")
    assert (found["buyers"], found["prices"], found["median_price"], found["p95_items"]) == (1, 4, 0.2, 5.0)


def test_sketches_of_many_values_stay_within_their_stated_error(spark: SparkSession) -> None:
    many = 20_000
    sales = spark.range(many).select(
        F.lit(START).alias("event_time"),
        F.lit("a").alias("shop"),
        F.lit(1).alias("items"),
        F.lit(1).cast("bigint").alias("stock"),
        F.col("id").cast("double").alias("price"),
        F.concat(F.lit("buyer "), F.col("id")).alias("buyer"),
        F.pmod("id", F.lit(4)).alias("part"),
    )
    parts = [partials(sales.where(f"part = {part}"), SALES, AGGREGATE) for part in range(4)]
    folded = reduce(DataFrame.union, parts)
    [row] = finalize(rollup(folded, SALES, AGGREGATE, "1h"), SALES, AGGREGATE, "1h").collect()
    assert abs(row.buyers - many) <= measures.distinct_error(3) * many
    assert abs((row.median_price + 1) / many - 0.5) <= measures.rank_error()
    assert (row.sales, row.turnover) == (many, many * (many - 1) / 2)


def test_the_first_of_repeated_events_is_kept(spark: SparkSession, schema: StructType) -> None:
    sale = {"at": START, "id": 1, "shop": "a", "items": 1, "stock": 1, "price": 1.0, "buyer": "ann"}
    frame = events(spark, [sale, sale | {"items": 2}, sale | {"items": 3}], schema)
    later = frame.withColumn("batch", F.when(F.col("items") == 1, 9).otherwise(F.lit(1).cast("bigint")))
    assert [row["items"] for row in distinct_events(later, SALES).collect()] == [2]
