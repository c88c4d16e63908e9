"""Alerts of records, by Spark; fastavro and DuckDB say what they must be."""

from __future__ import annotations

import json

import pytest
from pyspark.sql import SparkSession

from producers.codec import Codec
from producers.generators import generated
from schemas.contract import references
from schemas.contract.catalog import load
from schemas.contract.examples import bad, good
from schemas.contract.folders import USES
from schemas.contract.model import Contract
from schemas.contract.predicates import Alerts
from schemas.contract.verdict import Judge
from spark.transforms.alerts import alerts
from tests.support.kafka_rows import Row, frame


def raised(spark: SparkSession, contract: Contract, rows: list[Row]) -> dict[str, dict[str, object]]:
    """The documents by id; each comes once."""
    tables = {one.name: spark.createDataFrame(references.table(contract, one)) for one in contract.references}
    found = alerts(frame(spark, rows), contract, {1: json.dumps(contract.schema_now)}, tables).collect()
    documents = {document["id"]: document for document in (json.loads(row.value) for row in found)}
    assert len(documents) == len(found)
    return documents


@pytest.mark.parametrize("stream", ["transactions", "telemetry"])
def test_generated_and_bad_records_alert_as_duckdb_says(spark: SparkSession, stream: str) -> None:
    contract = load(USES / stream)
    codec, judge, oracle = Codec(contract, 1), Judge(contract), Alerts(contract)
    values = [codec.value(record) for record in generated(stream, 6_000, seed=5)]
    values += [example.value for example in good(contract) + bad(contract)]
    documents = raised(spark, contract, [Row(value, stream, offset) for offset, value in enumerate(values)])

    at_random, quiet = values[::40], set(range(len(values)))
    for id_, document in documents.items():
        offset = int(id_.split("/")[2])
        quiet.discard(offset)
        record = judge.verdict(values[offset]).record
        assert record is not None
        assert document["alert"] in {alert.name for alert in oracle.raised(record)}, id_
        assert document["original"] == f"{stream}/0/{offset}"
    assert {document["alert"] for document in documents.values()} == {alert.name for alert in contract.alerts}
    for value in at_random + [example.value for example in good(contract) + bad(contract)]:
        offset, verdict = values.index(value), judge.verdict(value)
        expected = oracle.raised(verdict.record or {}) if verdict.error_class is None else []
        assert {f"{stream}/0/{offset}/{alert.name}" for alert in expected} == {
            id_ for id_, document in documents.items() if document["original"] == f"{stream}/0/{offset}"
        }


def test_each_record_is_decoded_once(spark: SparkSession) -> None:
    contract = load(USES / "telemetry")
    tables = {one.name: spark.createDataFrame(references.table(contract, one)) for one in contract.references}
    found = alerts(frame(spark, []), contract, {1: json.dumps(contract.schema_now)}, tables)
    assert found._jdf.queryExecution().executedPlan().toString().count("from_avro") == 1


def test_a_record_without_a_row_in_a_reference_is_judged_and_told_with_null(spark: SparkSession) -> None:
    contract = load(USES / "transactions")
    codec = Codec(contract, 1)
    [record] = list(generated("transactions", 1))
    stranger = {**record, "category": "zeppelins", "channel": "atm", "country": "PT", "home": "DE"}
    rows = [Row(codec.value(stranger | {"amount_cents": amount}), "transactions", amount) for amount in (50_000, 10)]
    documents = raised(spark, contract, rows)
    assert [(d["alert"], "references" in d) for d in documents.values()] == [("cash_abroad", False)]


def test_a_replayed_record_keeps_its_name(spark: SparkSession) -> None:
    contract = load(USES / "telemetry")
    value = Codec(contract, 1).value({**next(iter(generated("telemetry", 1))), "temperature": 200.0})
    replayed = Row(value, "telemetry.retry", 5, headers=[("dl-id", b"telemetry/3/9")])
    forged = Row(value, "telemetry", 6, headers=[("dl-id", b"telemetry/3/10")])
    documents = raised(spark, contract, [replayed, forged])
    assert {id_ for id_ in documents if id_.endswith("overheating")} == {
        "telemetry/3/9/overheating", "telemetry/0/6/overheating",
    }  # fmt: skip
