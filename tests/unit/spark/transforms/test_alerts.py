"""Alerts of records, by Spark; fastavro and DuckDB say what they must be."""

from __future__ import annotations

import json

import pytest
from pyspark.sql import SparkSession

from producers.codec import Codec
from producers.generators import generated
from schemas import sizes
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


@pytest.mark.parametrize("escaped", ['"', "\u0001", "a"])
def test_an_alert_is_as_large_as_its_topic_takes_or_comes_without_its_record(spark: SparkSession, escaped: str) -> None:
    """JSON makes two or six characters of one: what the stream's topic took, the alerts' topic may not take."""
    contract = load(USES / "transactions")
    limit = 10_000
    contract = contract.model_copy(
        update={"topic": contract.topic.model_copy(update={"configs": {"max.message.bytes": str(limit)}})}
    )
    [record] = list(generated("transactions", 1))
    record = {**record, "amount_cents": 9_999_900, "category": "groceries"}
    codec, each = Codec(contract, 1), len(json.dumps(escaped)) - 2
    tables = {one.name: spark.createDataFrame(references.table(contract, one)) for one in contract.references}

    def told(lengths: list[int]) -> list[tuple[bytes | None, str]]:
        values = [codec.value({**record, "merchant": escaped * length}) for length in lengths]
        rows = [Row(value, "transactions", offset) for offset, value in enumerate(values)]
        found = alerts(frame(spark, rows), contract, {1: json.dumps(contract.schema_now)}, tables).collect()
        return [(row.key, row.value) for row in found if json.loads(row.value)["alert"] == "over_limit"]

    [(key, least)] = told([0])
    room = limit - sizes.BATCH_OVERHEAD - len(key or b"") - len(least.encode())
    lengths = [0, room // each - 1, room // each, room // each + 1, 3 * limit]
    found = told(lengths)
    for length, (its_key, document) in zip(lengths, found, strict=True):
        size, alert = len(its_key or b"") + len(document.encode()), json.loads(document)
        assert size <= limit - sizes.BATCH_OVERHEAD
        if length <= room // each:
            assert (its_key, alert["record"]["merchant"]) == (key, escaped * length)
            assert size == len(key or b"") + len(least.encode()) + length * each, "only what is too large is cut"
        else:
            assert (its_key, alert["record"], "references" in alert) == (None, None, False)
            assert "larger than its topic takes" in alert["omitted"]
            assert alert["original"] == f"transactions/0/{lengths.index(length)}"


def test_a_replayed_record_keeps_its_name(spark: SparkSession) -> None:
    contract = load(USES / "telemetry")
    value = Codec(contract, 1).value({**next(iter(generated("telemetry", 1))), "temperature": 200.0})
    replayed = Row(value, "telemetry.retry", 5, headers=[("dl-id", b"telemetry/3/9")])
    forged = Row(value, "telemetry", 6, headers=[("dl-id", b"telemetry/3/10")])
    documents = raised(spark, contract, [replayed, forged])
    assert {id_ for id_ in documents if id_.endswith("overheating")} == {
        "telemetry/3/9/overheating", "telemetry/0/6/overheating",
    }  # fmt: skip
