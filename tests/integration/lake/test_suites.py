"""What the suites that are made from a contract find, and what it costs to find nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyspark.sql import SparkSession
from pyspark.sql.pandas.types import to_arrow_schema

from infra.settings import PROJECT
from schemas.contract.model import Contract
from spark.lake import columnar
from spark.lake.table_schemas import bronze_schema
from spark.quality import suites
from spark.quality.auditor import Auditor, Outcome
from tests.support.feed import DOCUMENT, NOW, contract, sale

GOOD = [sale(n, NOW - timedelta(hours=n), "ab"[n % 2], 1.0 + n, ["ann", "bob", None][n % 3]) for n in range(30)]


@pytest.fixture
def strict(tmp_path: Path) -> Contract:
    """Sales of the last day, to buyers that the shop knows."""
    (tmp_path / "buyers.csv").write_text("buyer\nann\nbob\n")
    checks = {"references": {"buyers": {}}, "freshness": "1d", "minimum_rows": len(GOOD)}
    known = {"name": "buyers", "description": "Known buyers.", "file": "buyers.csv", "key": ["buyer"]}
    return contract(quality=DOCUMENT["quality"] | checks, references=[known], folder=tmp_path)  # type: ignore[operator]


def audited(
    contract: Contract, rows: list[dict[str, Any]], folder: Path, spark: Callable[[], SparkSession] | None = None
) -> Outcome:
    schema = bronze_schema(contract)
    nothing = dict.fromkeys(schema.names)
    arrived = [nothing | {"event_time": row["sold_at"]} | row for row in rows]
    connection = columnar.connect("1g")
    connection.register("events", pyarrow.Table.from_pylist(arrived, to_arrow_schema(schema, timezone="UTC")))
    project = PROJECT / "great_expectations"
    auditor = Auditor(project, folder / "gx", folder / "docs", "sales", "r1", NOW, spark)
    suite = suites.events(contract, whole_table=True, now=NOW)
    sql = suite.audited("events", {field.name: field.dataType for field in schema})
    return auditor.audit_query(suite.name, connection, sql, suite.expectations)


def found(outcome: Outcome) -> set[tuple[str, str]]:
    """The failed expectations, each with the column that it is about."""
    return {
        (failure["expectation"].removeprefix("expect_"), str(failure["about"].get("column", "")))
        for failure in outcome.failures
    }


def test_good_events_are_found_good(strict: Contract, tmp_path: Path) -> None:
    outcome = audited(strict, GOOD, tmp_path)
    assert (outcome.success, outcome.failures) == (True, [])
    assert outcome.evaluated == 15


def test_many_rows_are_audited_by_spark_and_more_expectations_are_no_more_jobs(
    spark: SparkSession, batch_semantics: None, strict: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spark.quality.auditor.IN_MEMORY", len(GOOD) - 1)

    def jobs() -> set[int]:
        return set(spark.sparkContext.statusTracker().getJobIdsForGroup("audit"))

    def session() -> SparkSession:
        spark.sparkContext.setJobGroup("audit", "")
        return spark

    [rule] = strict.rules
    stricter = strict.model_copy(update={"rules": [rule.model_copy(update={"name": f"r{n}"}) for n in range(12)]})
    counted = []
    try:
        for asked, folder in ((strict, "few"), (stricter, "many")):
            before = jobs()
            outcome = audited(asked, GOOD, tmp_path / folder, session)
            assert (outcome.success, outcome.failures) == (True, [])
            counted.append(len(jobs() - before))
        assert counted[0] == counted[1] > 0
        outcome = audited(strict, broken("dear"), tmp_path / "dear", session)
        assert found(outcome) == {("column_values_to_be_between", "price")}
    finally:
        spark.sparkContext.setLocalProperty("spark.jobGroup.id", None)  # type: ignore[arg-type]


def broken(what: str) -> list[dict[str, Any]]:
    first, *others = GOOD
    changed: dict[str, dict[str, Any]] = {
        "no shop": {"shop": None}, "dear": {"price": 5000.0}, "another shop": {"shop": "z"}, "free": {"price": 0.0},
        "a stranger": {"buyer": "mallory"}, "another's id": {"id": 1, "sold_at": others[0]["sold_at"]},
    }  # fmt: skip
    if what == "old":
        return [row | {"sold_at": row["sold_at"] - timedelta(days=2)} for row in GOOD]
    return others if what == "few" else [first | changed[what], *others]


def test_each_thing_that_is_wrong_is_found_and_named(strict: Contract, tmp_path: Path) -> None:
    wrong = {
        "no shop": ("column_values_to_not_be_null", "shop"),
        "dear": ("column_values_to_be_between", "price"),
        "another shop": ("column_values_to_be_in_set", "shop"),
        "free": ("column_values_to_be_in_set", "rule price_is_positive"),
        "a stranger": ("column_values_to_be_in_set", "found in buyers"),
        "another's id": ("column_values_to_be_in_set", "sold_at, id is unique"),
        "old": ("column_max_to_be_between", "event_time"),
        "few": ("table_row_count_to_be_between", ""),
    }
    for what, failure in wrong.items():
        outcome = audited(strict, broken(what), tmp_path / what)
        assert (outcome.success, found(outcome)) == (False, {failure}), what


def test_the_clock_of_the_check_decides_what_is_fresh(strict: Contract) -> None:
    def oldest(now: datetime | None) -> list[Any]:
        made = suites.events(strict, whole_table=True, now=now).expectations
        return [one["kwargs"]["min_value"] for one in made if one["type"] == "expect_column_max_to_be_between"]

    assert oldest(NOW) == [(NOW - timedelta(days=1)).replace(tzinfo=None)]
    assert oldest(None) == []
