"""The batch layer on real tables: exact, explained, repeatable, and never half published."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from datetime import UTC
from typing import Any

import duckdb
import pyarrow
import pytest
from deltalake import DeltaTable
from pyspark.sql import functions as F

from schemas.model import Aggregate
from spark import tables
from spark.batch_store import BatchStore
from spark.measures import KLL_K
from spark.reconcile import UnexplainedDifference
from tests.unit.batch.feed import Feed, at, contract, hours_of_sales, sale

PLACE = ["batch", "topic", "partition", "offset"]
SIZES = {"1m": "1 minute", "5m": "5 minutes", "1h": "1 hour"}


def expected(feed: Feed, window: str) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """The windows of `by_shop` before final_through, from the rows of bronze by plain SQL in DuckDB."""
    bronze = DeltaTable(tables.local_path(tables.bronze(feed.lake_uri, "sales"))).to_pyarrow_table()
    naive = bronze["at"].cast(pyarrow.timestamp("us"))
    final = max(row["final_through"] for row in feed.log("publications")).replace(tzinfo=None)
    connection = duckdb.connect()
    connection.register("bronze", bronze.select([*feed.contract.fields, *PLACE]).set_column(0, "at", naive))
    found = connection.execute(
        f"""
        with events as (
            select distinct on ({", ".join(feed.contract.event_id)}) * from bronze
            order by batch, topic, partition, "offset"
        )
        select time_bucket(interval '{SIZES[window]}', at) as start, shop, count(*), count(price), avg(price),
            quantile_disc(price, 0.95 order by price), count(distinct buyer)
        from events where time_bucket(interval '{SIZES[window]}', at) + interval '{SIZES[window]}' <= ?
        group by all
        """,
        [final],
    ).fetchall()
    return {(row[0].replace(tzinfo=UTC), row[1]): row[2:] for row in found}


def assert_published_equals_oracle(feed: Feed) -> None:
    for window in SIZES:
        actual = {
            (row["window_start"], row["shop"]): (
                row["sales"], row["priced"], row["mean_price"], row["p95_price"], row["buyers"],
            )
            for row in feed.published()
            if row["window"] == window
        }  # fmt: skip
        wanted = expected(feed, window)
        assert actual.keys() == wanted.keys()
        for key, values in wanted.items():
            assert all(
                (got is None and want is None) or math.isclose(got, want, rel_tol=1e-12)
                for got, want in zip(actual[key], values, strict=True)
            ), (window, key, actual[key], values)


def causes(feed: Feed) -> Counter[str]:
    return Counter(row["cause"] for row in feed.log("ledger"))


def test_published_windows_are_exact_and_the_ledger_explains_repeats(feed: Feed) -> None:
    first, second = hours_of_sales(0, 2, each=9), hours_of_sales(1, 3, 4, each=7)
    feed.send([*first, *first[:3]])  # repeats within a batch: the speed layer drops them itself
    feed.send([*second, first[4], first[4], second[0]])  # one of an earlier batch
    summary = feed.reconcile("r1")
    assert summary["final_through"] == at(3).isoformat()
    assert summary["hours"] == 3
    assert_published_equals_oracle(feed)
    by_hour = [row for row in feed.log("ledger") if row["window"] == "1h" and row["aggregate"] == "by_shop"]
    [counted] = [row for row in by_hour if row["measure"] == "sales"]
    assert (counted["speed"], counted["exact"], counted["difference"]) == (6.0, 5.0, -1.0)
    assert (counted["cause"], dict(counted["keys"]), counted["window_start"]) == ("duplicate", {"shop": "a"}, at(0))
    assert (counted["rows"], counted["repeats"], counted["late"], counted["replayed"]) == (9, 4, 0, 0)
    assert set(causes(feed)) == {"duplicate"}


def test_a_run_without_news_changes_nothing(feed: Feed) -> None:
    feed.send(hours_of_sales(0, 1, 2))
    feed.reconcile("r1")
    before = {name: feed.log(name) for name in ("publications", "ledger", "quality")}, feed.published()
    summary = feed.reconcile("r2")
    assert (summary["hours"], summary["rows"], summary["ledger"]) == (0, 0, {})
    feed.send(hours_of_sales(2, first_id=50))  # an open hour
    feed.reconcile("r3")
    assert ({name: feed.log(name) for name in ("publications", "ledger", "quality")}, feed.published()) == before


def test_an_event_hours_late_dirties_exactly_its_hour(feed: Feed) -> None:
    feed.send(hours_of_sales(0, 1, 2, 5))
    feed.reconcile("r1")
    assert causes(feed) == {}
    feed.send([sale(7777, at(1, 10), "b", 500.0, "zoe")])
    summary = feed.reconcile("r2")
    assert summary["hours"] == 1
    assert_published_equals_oracle(feed)
    runs = {(row["hour"], row["run_id"]) for row in feed.published()}
    assert runs == {(at(0), "r1"), (at(1), "r2"), (at(2), "r1")}
    assert set(causes(feed)) == {"late"}
    [minute] = [row for row in feed.log("ledger") if row["window"] == "1m" and row["measure"] == "p95_price"]
    assert (minute["speed"], minute["exact"], minute["rows"], minute["late"]) == (2.0, 500.0, 2, 1)
    # the buyer is new, so the window was not served before: nothing was counted, and there was no sum
    new = {row["measure"]: row for row in feed.log("ledger") if dict(row["keys"]) == {"buyer": "zoe"}}
    assert (new["buys"]["speed"], new["turnover"]["speed"], new["turnover"]["exact"]) == (0.0, None, 500.0)


def test_a_late_repeat_is_no_difference_and_a_replayed_letter_is_named(feed: Feed) -> None:
    sales = hours_of_sales(0, 1, 2, 5)
    feed.send(sales)
    feed.reconcile("r1")
    feed.send([sales[0]])
    assert feed.reconcile("r2")["ledger"] == {}
    feed.send([sale(8888, at(2, 20), "a", 3.0)], attempt=1)
    feed.reconcile("r3")
    assert set(causes(feed)) == {"replayed"}
    assert {row["replayed"] for row in feed.log("ledger")} == {1}
    assert_published_equals_oracle(feed)


def test_a_tampered_speed_layer_is_unexplained_and_publishes_nothing(feed: Feed) -> None:
    feed.send(hours_of_sales(0, 1, 3))
    aggregate = feed.contract.aggregates[0]
    uri = tables.speed(feed.lake_uri, "sales", aggregate.name)
    tampered = feed.spark.read.format("delta").load(uri).where(F.col("window_start") == at(1, 20))
    tables.append(tampered.localCheckpoint(), uri, "tamper", 1)
    with pytest.raises(UnexplainedDifference, match=r"by_shop_1m .* 01:20.*sales was served as 2.0, exact is 1.0"):
        feed.reconcile("r1")
    assert feed.published() == feed.log("publications") == []
    assert set(causes(feed)) == {"unexplained"}
    DeltaTable(tables.local_path(uri)).restore(1)
    feed.reconcile("r2")
    assert causes(feed) == {}
    assert_published_equals_oracle(feed)


def test_estimates_are_no_difference(feed: Feed) -> None:
    feed.contract = contract(aggregates=[contract().aggregates[0].model_dump()])
    many = [sale(n, at(0, n / 20), "a", float(n % 977) + 0.5, f"buyer {n}") for n in range(1100)]
    assert len(many) > KLL_K
    feed.send(many[:600])
    feed.send(many[600:] + hours_of_sales(3))
    assert feed.reconcile("r1")["ledger"] == {}
    assert_published_equals_oracle(feed)


def test_identity_without_event_time_counts_once_over_all_hours(feed: Feed) -> None:
    feed.contract = contract(event_id=["id"])
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

    def dying(name: str, dies: Callable[..., bool], after: bool) -> None:
        real = getattr(BatchStore, name)

        def write(store: BatchStore, *arguments: Any) -> None:
            if not dies(*arguments):
                return real(store, *arguments)
            if after:
                real(store, *arguments)
            raise Crash

        monkeypatch.setattr(BatchStore, name, write)

    def is_second(aggregate: Aggregate, *_: Any) -> bool:
        return aggregate.name == "by_buyer"

    match step:
        case "staged in part":
            dying("stage", is_second, after=False)
        case "replaced in part":
            dying("replace", is_second, after=False)
        case "replaced":
            dying("replace", is_second, after=True)
        case "ledger written":
            dying("append_log", lambda name, _: name == "ledger", after=True)
        case "publication missing":
            dying("log_rows", lambda name, _: name == "publications", after=False)
        case "publication written":
            dying("log_rows", lambda name, _: name == "publications", after=True)


def tables_of(feed: Feed) -> dict[str, Any]:
    """What the lake says, without the ids and times of the runs that wrote it."""
    ignored = {"run_id", "recorded_at", "published_at"}

    def plain(rows: list[dict[str, Any]]) -> Counter[str]:
        return Counter(
            str(sorted((key, str(value)) for key, value in row.items() if key not in ignored)) for row in rows
        )

    found = {aggregate.name: plain(feed.published(aggregate.name)) for aggregate in feed.contract.aggregates}
    return found | {name: plain(feed.log(name)) for name in ("ledger", "publications")}


@pytest.mark.parametrize(
    "step",
    ["staged in part", "replaced in part", "replaced", "ledger written", "publication missing", "publication written"],
)
def test_a_run_killed_at_any_step_and_run_again_gives_the_same_tables(
    feed: Feed, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The killed run publishes new hours and publishes late ones again; more arrives before it is run again."""
    sales = hours_of_sales(0, 1, 2, 4)
    feed.send(sales)
    feed.reconcile("r1")
    feed.send([*hours_of_sales(3, 6), sale(7777, at(1, 10), "b", 500.0, "zoe"), sales[-1]])
    with monkeypatch.context() as patched:
        crash_at(step, patched)
        with pytest.raises(Crash):
            feed.reconcile("r2")
    feed.reconcile("r2")
    assert_published_equals_oracle(feed)
    crashed = tables_of(feed)

    calm = Feed(feed.spark, f"{feed.lake_uri}-calm")
    calm.send(sales)
    calm.reconcile("r1")
    calm.send([*hours_of_sales(3, 6), sale(7777, at(1, 10), "b", 500.0, "zoe"), sales[-1]])
    calm.reconcile("r2")
    assert tables_of(calm) == crashed
    assert set(causes(feed)) == {"late", "duplicate"}


def test_news_between_a_killed_run_and_its_repetition_are_explained(
    feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed.send(hours_of_sales(0, 1, 2, 4))
    feed.reconcile("r1")
    feed.send([sale(7777, at(1, 10), "b", 500.0, "zoe")])
    with monkeypatch.context() as patched:
        crash_at("replaced in part", patched)
        with pytest.raises(Crash):
            feed.reconcile("r2")
    feed.send([sale(7778, at(1, 11), "b", 600.0, "zoe")])
    feed.reconcile("r2")
    assert_published_equals_oracle(feed)
    [hour] = [
        row for row in feed.log("ledger")
        if row["window"] == "1h" and row["measure"] == "sales" and dict(row["keys"]) == {"shop": "b"}
    ]  # fmt: skip
    assert (hour["speed"], hour["exact"], hour["late"], hour["cause"]) == (3.0, 5.0, 2, "late")
