"""The served views in Spark SQL, as temporary views of a session."""

from __future__ import annotations

from pyspark.sql import SparkSession

from schemas.contract.model import Contract
from spark.serving.snapshot import NoSuchSnapshot, Snapshot, published
from spark.serving.views import views


def register(spark: SparkSession, contract: Contract, lake_uri: str, snapshot: Snapshot | None = None) -> None:
    """Creates or replaces the views of `contract` in the session, as the `snapshot` (default: what is published now)
    pins them. Names and columns are the same as in DuckDB.

    The tables must exist. Raises `NoSuchSnapshot` if a table's state in the snapshot is not kept any more.
    """
    shown = snapshot or published(lake_uri, [contract])

    def scan(uri: str, _: object) -> str:
        if uri in shown.gone:
            raise NoSuchSnapshot(f"the state of {uri} at that time is not kept any more")
        version = shown.versions.get(uri)
        return f"delta.`{uri}`" if version is None else f"delta.`{uri}` version as of {version}"

    for name, select in views(contract, "spark", lake_uri, scan, shown.final_through(contract.stream)).items():
        spark.sql(f"create or replace temporary view `{name}` as {select}")
