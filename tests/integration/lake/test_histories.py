"""Differences that come of what happened to the lake: rows that it lost, definitions that it gained, and backfills."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest
from deltalake import DeltaTable
from pyspark.sql import functions as F

from infra.settings import PROJECT
from schemas.contract.model import Contract
from spark.batch.plan import UnexplainedDifference
from spark.batch.standing_check import Check
from spark.lake import names, tables
from spark.lake.maintenance import maintain
from spark.lake.retention import rules_of_partials
from spark.quality.auditor import Auditor, Outcome
from spark.speed import delta_append
from spark.speed.small_files import Upkeep
from tests.support.feed import NOW, Feed, at, contract, hours_of_sales, sale
from tests.support.feed_oracle import assert_published_equals_oracle, causes


def counts(feed: Feed, run_id: str, window: str = "1h", aggregate: str = "by_shop") -> Counter[tuple[Any, ...]]:
    """(hour, shop, speed, exact, cause, replayed) of the ledger's rows about the number of sales."""
    return Counter(
        (row["window_start"].hour, dict(row["keys"])["shop"], row["speed"], row["exact"], row["cause"], row["replayed"])
        for row in feed.log("ledger")
        if (row["run_id"], row["window"], row["aggregate"], row["measure"]) == (run_id, window, aggregate, "sales")
    )


def test_lost_rows_that_came_back_are_counted_twice_by_the_speed_layer_and_explained(feed: Feed, tmp_path: Any) -> None:
    """Among them one that is a repeat of a row that stayed, which the speed layer had dropped before; a second one in a
    batch of which nothing is left; and one whose repeat came back in the same batch."""
    early = hours_of_sales(0, 1, each=6)
    feed.send([*early, early[3], early[5], early[5]])  # places 12 (of 3) and 13, 14 (of 5)
    feed.send([early[1], early[1]])
    feed.send(hours_of_sales(4))
    lost = feed.lose((1, 0), (1, 3), (1, 5), (1, 13), (1, 14), (2, 0), (2, 1))
    feed.repair(lost)
    auditor = Auditor(PROJECT / "great_expectations", tmp_path / "gx", tmp_path / "docs", "sales", "r1", NOW)
    summary = feed.reconcile("r1", auditor.audit_query)
    assert_published_equals_oracle(feed)
    # shop a has 0, 2 and 4: 0 was lost. Shop b has 1, 3 and 5: the speed layer counted 1 in batches 1 and 2, and again
    # with 3 and 5 when they came back; 3 only once before, as its repeat was in the same batch.
    assert counts(feed, "r1") == Counter({(0, "a", 4.0, 3.0, "replayed", 1): 1, (0, "b", 7.0, 3.0, "replayed", 6): 1})
    # A copy of 3 stayed in batch 1, so bronze alone says why the minutes with nothing but 3 were counted twice.
    repeated = [row for row in feed.log("ledger") if row["cause"] == "duplicate"]
    assert {(row["window_start"], row["window"]) for row in repeated} == {(at(0, 30), "1m"), (at(0, 30), "5m")}
    assert {(row["repeats"], row["replayed"]) for row in repeated} == {(1, 1)}
    assert set(summary["ledger"]) == {"replayed", "duplicate"}
    assert [row for row in feed.log("quality") if not row["success"] or row["warnings"]] == []


@pytest.mark.long
def test_lost_rows_of_a_published_hour_and_a_late_event_are_told_apart(published: Feed) -> None:
    lost = published.lose((1, 1), (1, 10))
    published.repair(lost)
    assert published.reconcile("nothing-new")["ledger"] == {}
    published.send([sale(7777, at(0, 10), "b", 500.0, "zoe")])
    published.reconcile("late")
    assert_published_equals_oracle(published)
    assert set(causes(published)) == {"duplicate", "late"}
    lost = published.lose((1, 0))
    published.repair(lost)
    published.send([sale(7778, at(0, 20), "a", 500.0, "zoe")])
    published.reconcile("both")
    assert_published_equals_oracle(published)
    # Only the hour of shop a has both; the late event's minutes and its buyer have nothing that came again.
    both = {
        (row["window"], row["window_start"], *dict(row["keys"]).values(), row["cause"])
        for row in published.log("ledger")
        if row["run_id"] == "both"
    }
    assert both == {
        ("1h", at(0), "a", "replayed"),
        *((window, at(0, 20), who, "late") for window in ("1m", "5m") for who in ("a", "zoe")),
        ("1h", at(0), "zoe", "late"),
    }


@pytest.mark.long
def test_a_record_that_bronze_lost_before_it_was_counted_is_no_second_count(feed: Feed) -> None:
    feed.send(hours_of_sales(0))
    feed.repair([sale(500, at(0, 5), "a") | {"offset": 10_100}])
    feed.send(hours_of_sales(3))
    assert feed.reconcile("r1")["ledger"] == {}
    assert_published_equals_oracle(feed)


@pytest.mark.long
def test_a_tampered_speed_layer_beside_a_repair_stays_unexplained(feed: Feed) -> None:
    feed.send(hours_of_sales(0, 1, 4))
    feed.repair(feed.lose((1, 0)))
    uri = names.speed(feed.lake_uri, "sales", "by_shop")
    tampered = feed.spark.read.format("delta").load(uri).where(F.col("window_start") == at(1, 20))
    delta_append.append(tampered.localCheckpoint(), uri, "tamper", 1)
    with pytest.raises(UnexplainedDifference, match=r"by_shop_1m .* 01:20.*sales was served as 2.0, exact is 1.0"):
        feed.reconcile("r1")
    assert {row["window_start"].hour for row in feed.log("ledger")} == {1}


def grown(before: Contract) -> Contract:
    """With a second aggregate, and a measure more in the first one."""
    more = contract().model_dump()["aggregates"]
    more[0]["measures"].append({"name": "dearest", "kind": "max", "of": "price"})
    return contract(aggregates=more)


def test_an_aggregate_and_a_measure_that_are_added_to_a_stream_that_runs(feed: Feed) -> None:
    """Hours that were open then differ because of it, hours that were published are not served with it; a backfill
    makes them whole."""
    feed.send(hours_of_sales(0, 1, 3))
    feed.reconcile("r1")  # publishes hours 0 and 1
    feed.contract = grown(feed.contract)
    tables.create(feed.lake_uri, feed.contract)
    feed.send(hours_of_sales(3, 6, each=3, first_id=5000))  # none in the second half of an hour, none as dear
    summary = feed.reconcile("r2")
    assert_published_equals_oracle(feed)
    assert (summary["hours"], set(summary["ledger"])) == (1, {"added"})
    added = {(row["aggregate"], row["measure"]) for row in feed.log("ledger")}
    assert {measure for aggregate, measure in added if aggregate == "by_shop"} == {"dearest"}
    assert {measure for aggregate, measure in added if aggregate == "by_buyer"} == {"turnover", "cheapest", "buys"}
    assert {row["hour"] for row in feed.published("by_buyer")} == {at(3)}

    asked = (at(0), at(24))
    before = feed.log("ledger"), feed.published(), feed.published("by_buyer"), feed.log("publications")
    surveyed = feed.survey(asked)
    assert (feed.log("ledger"), feed.published(), feed.published("by_buyer"), feed.log("publications")) == before
    assert (surveyed["hours"], surveyed["ledger"], surveyed["changes"]) == (3, {}, [])
    done = feed.reconcile("backfill", forced=asked)
    assert (done["hours"], done["ledger"], done["by_hour"]) == (3, {}, surveyed["by_hour"])
    assert_published_equals_oracle(feed)
    assert {row["hour"] for row in feed.published("by_buyer")} == {at(0), at(1), at(3)}
    assert sum(row["buys"] for row in feed.published("by_buyer") if row["window"] == "1h") == 21
    assert all(row["dearest"] is not None for row in feed.published())


@pytest.mark.long
def test_a_backfill_corrects_what_was_published_wrongly_and_touches_nothing_else(published: Feed) -> None:
    feed = published
    path = names.local_path(names.batch(feed.lake_uri, "sales", "by_shop"))
    DeltaTable(path).update(updates={"sales": "sales + 5"}, predicate="\"window\" = '1h' and shop = 'b'")
    known = len(feed.log("ledger"))
    surveyed = feed.survey((at(1), at(2)))
    assert (surveyed["hours"], surveyed["ledger"]) == (1, {"corrected": 1})
    [change] = surveyed["changes"]
    assert (change["speed"], change["exact"], change["cause"], change["keys"]) == (8.0, 3.0, "corrected", {"shop": "b"})
    assert len(feed.log("ledger")) == known
    feed.reconcile("backfill", forced=(at(1), at(2)))
    [row] = [row for row in feed.log("ledger") if row["run_id"] == "backfill"]
    assert (row["window_start"], row["difference"], row["cause"]) == (at(1), -5.0, "corrected")
    wrong = {row["hour"] for row in feed.published() if (row["window"], row["shop"], row["sales"]) == ("1h", "b", 9)}
    assert wrong == {at(0), at(2)}, "they were not asked for"
    feed.reconcile("again", forced=(at(0), at(3)))
    assert_published_equals_oracle(feed)


@pytest.mark.long
def test_a_person_may_publish_what_a_tampered_speed_layer_withholds(feed: Feed, tmp_path: Any) -> None:
    """And the standing check does not complain of it again, but does of what nobody has explained."""

    def tamper(when: datetime, number: int) -> None:
        uri = names.speed(feed.lake_uri, "sales", "by_shop")
        tampered = feed.spark.read.format("delta").load(uri).where(F.col("window_start") == when)
        delta_append.append(tampered.localCheckpoint(), uri, "tamper", number)

    def auditor(run_id: str) -> Auditor:
        return Auditor(PROJECT / "great_expectations", tmp_path / "gx", tmp_path / "docs", "sales", run_id, NOW)

    def layers(run_id: str) -> Outcome:
        check = Check(feed.store, feed.contract, feed.through, NOW, auditor(run_id))
        return next(outcome for outcome in check.run() if outcome.suite == "layers")

    feed.send(hours_of_sales(0, 1, 3))
    tamper(at(1, 20), 1)
    with pytest.raises(UnexplainedDifference):
        feed.reconcile("r1", forced=(at(0), at(1)))
    assert feed.reconcile("r2", auditor("r2").audit_query, forced=(at(1), at(2)))["ledger"].keys() == {"corrected"}
    assert_published_equals_oracle(feed)
    assert layers("c1").failures == []
    tamper(at(0, 20), 2)
    [failure] = layers("c2").critical
    assert failure["about"]["column_A"] == "with_replays"


def test_what_is_kept_no_longer_is_neither_compared_nor_computed_again(feed: Feed, tmp_path: Any) -> None:
    """Hours 0 and 1 are older than both layers keep them, hour 30 than the speed layer does."""
    first = contract().model_dump()["aggregates"][:1]
    feed.contract = contract(aggregates=first, retention={"speed": "1d", "batch": "2d"})
    feed.send(hours_of_sales(0, 1, 30, 80, 82))
    feed.reconcile("r1")
    Upkeep([], timedelta(days=1), lake_uri=feed.lake_uri, kept=rules_of_partials(feed.lake_uri, feed.contract)).clean()
    maintain(feed.lake_uri, [feed.contract], "batch", "m", NOW + timedelta(minutes=feed.runs, seconds=30))
    partials = feed.rows(names.speed(feed.lake_uri, "sales", "by_shop"))
    assert {row["window_start"].replace(minute=0) for row in partials} == {at(80), at(82)}
    assert {row["hour"] for row in feed.published()} == {at(30), at(80)}

    def auditor(run_id: str) -> Auditor:
        return Auditor(PROJECT / "great_expectations", tmp_path / "gx", tmp_path / "docs", "sales", run_id, NOW)

    feed.send([sale(7777, at(0, 10)), sale(7778, at(30, 10)), *hours_of_sales(84)])
    summary = feed.reconcile("r2", auditor("r2").audit_query)
    assert (summary["hours"], set(summary["ledger"])) == (2, {"late"})
    assert {(row["hour"], row["run_id"]) for row in feed.published()} == {
        (at(30), "r2"),
        (at(80), "r1"),
        (at(82), "r2"),
    }
    assert sum(row["sales"] for row in feed.published() if (row["hour"], row["window"]) == (at(30), "1h")) == 7
    outcomes = Check(feed.store, feed.contract, feed.through, NOW, auditor("c1")).run()
    assert [failure for outcome in outcomes for failure in outcome.failures] == []
