"""A fresh stream of sales per test, under the SQL semantics of the batch jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from tests.unit.batch.feed import Feed


@pytest.fixture
def feed(spark: SparkSession, tmp_path: Path) -> Iterator[Feed]:
    ansi = spark.conf.get("spark.sql.ansi.enabled")
    spark.conf.set("spark.sql.ansi.enabled", "true")
    yield Feed(spark, f"file:{tmp_path}/lake")
    spark.catalog.clearCache()
    spark.conf.set("spark.sql.ansi.enabled", str(ansi))
