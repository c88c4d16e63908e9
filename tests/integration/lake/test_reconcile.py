"""The batch layer on real tables: exact, explained, repeatable, and never half published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from infra.settings import PROJECT
from schemas.contract.model import Aggregate
from spark.batch import refusals
from spark.batch.logs import BatchLogs
from spark.batch.plan import UnexplainedDifference
from spark.batch.store import BatchStore
from spark.definitions.measures import KLL_K
from spark.lake import names
from spark.quality.auditor import Auditor, FailedExpectations
from spark.speed import delta_append
from tests.support.feed import NOW, Feed, at, contract, hours_of_sales, sale
from tests.support.feed_oracle import assert_ledger_equals_oracle, assert_published_equals_oracle, causes


def test_the_first_hours_are_exact_and_the_ledger_explains_repeats(published: Feed) -> None:
    assert_published_equals_oracle(published)
    assert {row["hour"] for row in published.published()} == {at(0), at(1), at(2)}
    by_hour = [row for row in published.log("ledger") if row["window"] == "1h" and row["aggregate"] == "by_shop"]
    [counted] = [row for row in by_hour if row["measure"] == "sales"]
    assert (counted["speed"], counted["exact"], counted["difference"]) == (6.0, 5.0, -1.0)
    assert (counted["cause"], dict(counted["keys"]), counted["window_start"]) == ("duplicate", {"shop": "a"}, at(0))
    assert (counted["rows"], counted["repeats"], counted["late"], counted["replayed"]) == (9, 4, 0, 0)
    assert set(causes(published)) == {"duplicate"}
    assert_ledger_equals_oracle(published, "r1")


def test_events_late_by_minutes_hours_and_days_repeats_and_replays_are_told_apart(published: Feed) -> None:
    """Each row of the ledger and of the publications, against plain SQL over the raw events."""
    feed = published
    before = feed.log("publications")
    feed.send([
        sale(7000, at(3, 1), "a", 40.0, "zoe"),  # minutes late: its hour has not closed, so nothing was wrong
        sale(7001, at(1, 10), "b", 500.0, "zoe"),  # hours
        sale(7002, at(-49, 5), "a", 3.0, "ann"),  # days: of an hour of which nothing was ever served
        hours_of_sales(1, each=7)[0],  # a repeat, hours late, of what is published: no difference
    ])  # fmt: skip
    feed.send([sale(7003, at(2, 20), "a", 3.0, None)], attempt=1)
    feed.send([sale(7004, at(5, 30))])  # closes hour 3
    summary = feed.reconcile("r2")
    assert_published_equals_oracle(feed)
    assert_ledger_equals_oracle(feed, "r2")
    told = {(row["cause"], row["window_start"]) for row in feed.log("ledger")
            if (row["run_id"], row["window"]) == ("r2", "1h")}  # fmt: skip
    assert told == {("late", at(1)), ("late", at(-49)), ("replayed", at(2))}
    [publication] = [row for row in feed.log("publications") if row not in before]
    windows = [row for name in ("by_shop", "by_buyer") for row in feed.published(name) if row["run_id"] == "r2"]
    assert {row["hour"] for row in windows} == {at(-49), at(1), at(2), at(3)}
    assert (publication["final_through"], publication["through_batch"]) == (at(4), feed.through)
    assert (publication["hours"], publication["rows"]) == (summary["hours"], summary["rows"]) == (4, len(windows))


@pytest.mark.long
def test_each_run_recomputes_what_changed_and_explains_it(published: Feed) -> None:
    feed = published
    before = {name: feed.log(name) for name in ("publications", "ledger", "quality")}, feed.published()
    summary = feed.reconcile("idle")
    assert (summary["hours"], summary["rows"], summary["ledger"]) == (0, 0, {})
    feed.send(hours_of_sales(4, first_id=50))  # an open hour
    feed.reconcile("open")
    assert ({name: feed.log(name) for name in ("publications", "ledger", "quality")}, feed.published()) == before

    known = len(feed.log("ledger"))
    feed.send([sale(7777, at(1, 10), "b", 500.0, "zoe")])  # hours late
    assert feed.reconcile("late")["hours"] == 1
    assert_published_equals_oracle(feed)
    assert {(row["hour"], row["run_id"]) for row in feed.published()} == {(at(0), "r1"), (at(1), "late"), (at(2), "r1")}
    new = [row for row in feed.log("ledger") if row["run_id"] == "late"]
    assert {row["cause"] for row in new} == {"late"}
    assert len(feed.log("ledger")) == known + len(new)
    [minute] = [row for row in new if row["window"] == "1m" and row["measure"] == "p95_price"]
    assert (minute["speed"], minute["exact"], minute["rows"], minute["late"]) == (2.0, 500.0, 2, 1)
    # the buyer is new, so the window was not served before: nothing was counted, and there was no sum
    zoe = {row["measure"]: row for row in new if dict(row["keys"]) == {"buyer": "zoe"}}
    assert (zoe["buys"]["speed"], zoe["turnover"]["speed"], zoe["turnover"]["exact"]) == (0.0, None, 500.0)

    feed.send([sale(7777, at(1, 10), "b", 500.0, "zoe")])  # a late repeat of a published event is no difference
    feed.send([sale(8888, at(2, 20), "a", 3.0)], attempt=1)  # and a replayed dead letter is named
    feed.reconcile("replayed")
    assert {row["cause"] for row in feed.log("ledger") if row["run_id"] == "replayed"} == {"replayed"}
    assert {row["replayed"] for row in feed.log("ledger") if row["run_id"] == "replayed"} == {1}
    assert_published_equals_oracle(feed)


def marked(feed: Feed) -> list[tuple[Any, ...]]:
    """What the views say of each hour, in every view that has it: (hour, source, final, withheld)."""
    views = " union ".join(
        f"select date_trunc('hour', window_start) as hour, source, final, withheld from {aggregate.name}_{window}"
        for aggregate in feed.contract.aggregates
        for window in aggregate.windows
    )
    return feed.served(
        f"select cast(extract(hour from hour) as int), source, final, withheld from ({views}) order by 1, 2"
    )


def test_a_failing_expectation_publishes_nothing(published: Feed, tmp_path: Path) -> None:
    """With the project's own suites in Great Expectations; the view goes on serving what it served, and marks it."""
    project = PROJECT / "great_expectations"
    auditor = Auditor(project, tmp_path / "gx", tmp_path / "docs", "sales", "r2", NOW)
    before = published.published(), published.log("publications"), published.log("ledger")
    published.send([sale(9000, at(1, 15), "b", 5000.0), *hours_of_sales(5)])  # no rule forbids it, but the range does
    with pytest.raises(FailedExpectations, match=r"expect_column_values_to_be_between\(column=price.*5000"):
        published.reconcile("r2", auditor.audit_query)
    assert (published.published(), published.log("publications"), published.log("ledger")) == before
    [refused] = published.log("refusals")
    assert (refused["run_id"], refused["final_through"]) == ("r2", at(4))
    assert "expect_column_values_to_be_between(column=price" in refused["reason"]
    # Hour 1 goes on as it was published; 3 has closed and was refused; 4 and 5 are still open.
    assert marked(published) == [
        (0, "batch", True, False), (1, "batch", True, False), (2, "batch", True, False),
        (3, "speed", False, True), (4, "speed", False, False), (5, "speed", False, False),
    ]  # fmt: skip
    failed = [row for row in published.log("quality") if not row["success"]]
    assert {row["suite"] for row in failed} >= {"events"}
    assert {row["suite"] for row in published.log("quality") if row["success"]} >= {"layers"}
    auditor.build_docs()
    assert (tmp_path / "docs" / failed[0]["docs"].lstrip("/")).is_file()

    lax = contract().model_dump()["quality"] | {"severity": {"price": "warning"}}
    published.contract = contract(quality=lax)  # the person's fix; the next run needs nothing else
    auditor = Auditor(project, tmp_path / "gx", tmp_path / "docs", "sales", "r3", NOW)
    assert published.reconcile("r3", auditor.audit_query)["final_through"] == at(4).isoformat()
    assert_published_equals_oracle(published)
    assert {row[1:] for row in marked(published)} == {("batch", True, False), ("speed", False, False)}
    told = [row for row in published.log("quality") if row["run_id"] == "r3" and row["warnings"]]
    assert {row["suite"] for row in told} == {"events", "staged.by_shop", "staged.by_buyer"}
    assert all(row["success"] and row["failed"] == 0 for row in told)


def test_what_an_audit_keeps_back_is_marked_until_a_run_publishes_it(published: Feed) -> None:
    def withhold(run_id: str) -> datetime | None:
        return refusals.withhold(published.lake_uri, published.contract, run_id, published.through, "2 are missing")

    assert withhold("none") is None, "no hour has closed since the publication"
    assert published.log("refusals") == []
    published.send(hours_of_sales(5))
    assert withhold("audited") == at(4)
    assert [(row["run_id"], row["reason"]) for row in published.log("refusals")] == [("audited", "2 are missing")]
    assert marked(published)[3:] == [
        (3, "speed", False, True), (4, "speed", False, False), (5, "speed", False, False)
    ]  # fmt: skip
    assert published.reconcile("repaired")["final_through"] == at(4).isoformat()
    assert not any(withheld for *_, withheld in marked(published))


@pytest.mark.long
def test_a_tampered_speed_layer_is_unexplained_and_publishes_nothing(feed: Feed) -> None:
    feed.send(hours_of_sales(0, 1, 3))
    uri = names.speed(feed.lake_uri, "sales", feed.contract.aggregates[0].name)
    tampered = feed.spark.read.format("delta").load(uri).where(F.col("window_start") == at(1, 20))
    delta_append.append(tampered.localCheckpoint(), uri, "tamper", 1)
    with pytest.raises(UnexplainedDifference, match=r"by_shop_1m .* 01:20.*sales was served as 2.0, exact is 1.0"):
        feed.reconcile("r1")
    assert feed.published() == feed.log("publications") == []
    assert set(causes(feed)) == {"unexplained"}
    assert {row[1:] for row in marked(feed) if row[0] < 2} == {("speed", False, True)}
    DeltaTable(names.local_path(uri)).restore(1)
    feed.reconcile("r2")
    assert not any(withheld for *_, withheld in marked(feed))
    assert causes(feed) == {}
    assert_published_equals_oracle(feed)


@pytest.mark.long
def test_an_event_from_the_future_closes_no_hour_before_its_time(feed: Feed) -> None:
    feed.send([*hours_of_sales(0, 1, 2), sale(4711, at(24 * 365))], arrived=at(2, 59))
    assert feed.reconcile("r1")["final_through"] == at(1).isoformat()
    assert_published_equals_oracle(feed)


@pytest.mark.long
def test_estimates_are_no_difference(feed: Feed) -> None:
    many = [sale(n, at(0, n / 20), "a", float(n % 977) + 0.5, f"buyer {n}") for n in range(1100)]
    assert len(many) > KLL_K
    feed.send(many[:600])
    feed.send(many[600:] + hours_of_sales(3))
    assert feed.reconcile("r1")["ledger"] == {}
    assert_published_equals_oracle(feed)


@pytest.mark.long
def test_identity_without_event_time_counts_once_over_all_hours(feed: Feed) -> None:
    feed.contract = contract(event_id=["id"], aggregates=feed.contract.model_dump()["aggregates"])
    feed.send([sale(1, at(0)), sale(2, at(1)), sale(3, at(4))])
    feed.send([sale(1, at(1, 30))])
    feed.reconcile("r1")
    assert_published_equals_oracle(feed)
    assert {row["hour"] for row in feed.published()} == {at(0), at(1)}
    feed.send([sale(2, at(0, 45)), sale(4, at(0, 50))])
    assert feed.reconcile("r2")["hours"] == 1
    assert_published_equals_oracle(feed)


class Crash(Exception):
    """A kill -9, as far as the tables can tell."""


def crash_at(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the store die once, before or after the named write."""

    def dying(writer: type, name: str, dies: Callable[..., bool], after: bool) -> None:
        real = getattr(writer, name)

        def write(self: Any, *arguments: Any) -> None:
            dead = dies(*arguments)
            if after or not dead:
                real(self, *arguments)
            if dead:
                raise Crash

        monkeypatch.setattr(writer, name, write)

    def is_second(aggregate: Aggregate, *_: Any) -> bool:
        return aggregate.name == "by_buyer"

    match step:
        case "staged in part":
            dying(BatchStore, "stage", is_second, after=False)
        case "replaced in part":
            dying(BatchStore, "replace", is_second, after=False)
        case "ledger written":
            dying(BatchLogs, "append_ledger", lambda _: True, after=True)
        case "publication missing":
            dying(BatchLogs, "append", lambda name, _: name == "publications", after=False)
        case "publication written":
            dying(BatchLogs, "append", lambda name, _: name == "publications", after=True)


def tables_of(feed: Feed) -> dict[str, Any]:
    """What the lake says, without the ids and times of the runs that wrote it and the Delta versions they made."""
    ignored = {"run_id", "recorded_at", "published_at", "versions"}

    def plain(rows: list[dict[str, Any]]) -> Counter[str]:
        return Counter(
            str(sorted((key, str(value)) for key, value in row.items() if key not in ignored)) for row in rows
        )

    found = {aggregate.name: plain(feed.published(aggregate.name)) for aggregate in feed.contract.aggregates}
    return found | {name: plain(feed.log(name)) for name in ("ledger", "publications")}


@pytest.fixture(scope="module")
def calm(spark: SparkSession, first: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the lake says when the run of the next test does not die."""
    feed = Feed.copied(spark, first, tmp_path_factory.mktemp("calm"))
    feed.send(SECOND)
    feed.reconcile("r2")
    return tables_of(feed)


SECOND = [*hours_of_sales(3, 6), sale(7777, at(1, 10), "b", 500.0, "zoe"), hours_of_sales(0, 2, each=9)[5]]
"""New hours, an event for a late one, and a repeat."""


@pytest.mark.parametrize(
    "step",
    [
        "publication missing",  # everything is replaced and nothing is published: the most that can be half done
        *(
            pytest.param(step, marks=pytest.mark.long)
            for step in ("staged in part", "replaced in part", "ledger written", "publication written")
        ),
    ],
)
def test_a_run_killed_at_any_step_and_run_again_gives_the_same_tables(
    published: Feed, calm: dict[str, Any], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The killed run publishes new hours for the first time and a late one again."""
    published.send(SECOND)
    with monkeypatch.context() as patched:
        crash_at(step, patched)
        with pytest.raises(Crash):
            published.reconcile("r2")
    published.reconcile("r2")
    assert_published_equals_oracle(published)
    assert tables_of(published) == calm


@pytest.mark.long
def test_news_between_a_killed_run_and_its_repetition_are_explained(
    published: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.send([sale(7777, at(1, 10), "b", 500.0, "zoe")])
    with monkeypatch.context() as patched:
        crash_at("replaced in part", patched)
        with pytest.raises(Crash):
            published.reconcile("r2")
    published.send([sale(7778, at(1, 11), "b", 600.0, "zoe")])
    published.reconcile("r2")
    assert_published_equals_oracle(published)
    [hour] = [
        row for row in published.log("ledger")
        if row["run_id"] == "r2" and row["window"] == "1h" and row["measure"] == "sales"
        and dict(row["keys"]) == {"shop": "b"}
    ]  # fmt: skip
    assert (hour["exact"] - hour["speed"], hour["late"], hour["cause"]) == (2.0, 2, "late")
