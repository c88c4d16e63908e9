"""The served views in Spark SQL, as temporary views of a session."""

from __future__ import annotations

from pyspark.sql import SparkSession

from schemas.model import Contract
from spark.serving.views import views


def register(spark: SparkSession, contract: Contract, lake_uri: str) -> None:
    """Makes (or replaces) the views of `contract`, under the same names and with the same columns as in DuckDB. The
    tables must exist."""
    for name, select in views(contract, "spark", lake_uri, lambda uri, _: f"delta.`{uri}`").items():
        spark.sql(f"create or replace temporary view `{name}` as {select}")
