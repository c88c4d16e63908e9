"""Streams of sales under the SQL semantics of the batch jobs, in lakes of their own; no servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from tests.support.feed import Feed, contract, hours_of_sales


@pytest.fixture(autouse=True)
def forgotten(spark: SparkSession) -> Iterator[None]:
    """Delta keeps what it knows of a table for an hour, with a session of its own: the tables of the tests so far would
    fill the heap."""
    yield
    spark.catalog.clearCache()
    jvm: Any = spark._jvm
    jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()


@pytest.fixture(scope="module")
def batch_semantics(spark: SparkSession) -> Iterator[None]:
    mine = {
        "spark.sql.ansi.enabled": "true",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        # Compiling a plan costs more than these few rows; the platform test runs the compiled ones.
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    }
    before = {name: spark.conf.get(name) for name in mine}
    for name, value in mine.items():
        spark.conf.set(name, value)
    yield
    for name, found in before.items():
        spark.conf.set(name, str(found))


@pytest.fixture
def feed(spark: SparkSession, batch_semantics: None, tmp_path: Path) -> Feed:
    """An empty stream with one aggregate, `by_shop`."""
    return Feed(spark, f"file:{tmp_path}/lake", contract(aggregates=contract().model_dump()["aggregates"][:1]))


@pytest.fixture(scope="module")
def first(spark: SparkSession, batch_semantics: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The lake of a stream with two aggregates of which the run `r1` has published three hours, with repeats within a
    batch, which the speed layer drops itself, and across batches."""
    folder = tmp_path_factory.mktemp("first") / "lake"
    feed = Feed(spark, f"file:{folder}")
    early, later = hours_of_sales(0, 2, each=9), hours_of_sales(1, 3, 4, each=7)
    feed.send([*early, *early[:3]])
    feed.send([*later, early[4], early[4], later[0]])
    summary = feed.reconcile("r1")
    assert (summary["final_through"], summary["hours"]) == ("2024-03-31T03:00:00+00:00", 3)
    return str(folder)


@pytest.fixture
def published(spark: SparkSession, first: str, tmp_path: Path) -> Feed:
    """A copy of `first` to go on with."""
    return Feed.copied(spark, first, tmp_path)
