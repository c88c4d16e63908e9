"""What must be published of a feed, and what its ledger must say, by plain SQL over bronze."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC
from typing import Any

import duckdb
import pyarrow
import pytest
from deltalake import DeltaTable

from spark.lake import names
from tests.support.feed import Feed, at

PLACE = ["batch", "topic", "partition", "offset"]


SIZES = {"1m": "1 minute", "5m": "5 minutes", "1h": "1 hour"}


def expected(feed: Feed, window: str) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """The windows of `by_shop` before final_through, from the rows of bronze by plain SQL in DuckDB."""
    bronze = DeltaTable(names.local_path(names.bronze(feed.lake_uri, "sales"))).to_pyarrow_table()
    naive = bronze["sold_at"].cast(pyarrow.timestamp("us"))
    final = max(row["final_through"] for row in feed.log("publications")).replace(tzinfo=None)
    connection = duckdb.connect()
    connection.register("bronze", bronze.select([*feed.contract.fields, *PLACE]).set_column(0, "sold_at", naive))
    found = connection.execute(
        f"""
        with events as (
            select distinct on ({", ".join(feed.contract.event_id)}) * from bronze
            order by batch, topic, partition, "offset"
        )
        select time_bucket(interval '{SIZES[window]}', sold_at) as start, shop, count(*), count(price), avg(price),
            quantile_disc(price, 0.95 order by price), count(distinct buyer)
        from events where time_bucket(interval '{SIZES[window]}', sold_at) + interval '{SIZES[window]}' <= ?
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


BY_SHOP = {
    "sales": "count(*)", "priced": "count(price)", "mean_price": "avg(price)",
    "p95_price": "quantile_disc(price, 0.95 order by price)", "buyers": "count(distinct buyer)",
}  # fmt: skip


BY_BUYER = {"turnover": "sum(price)", "cheapest": "min(price)", "buys": "count(*)"}


def expected_ledger(feed: Feed, run_id: str) -> list[dict[str, Any]]:
    """Every row that the ledger must have of the run, by plain SQL in DuckDB: what was served before it and what is
    exact, each computed from the rows of bronze, and the counts that are the evidence. Quantiles and distinct
    counts are compared where exact ones had been served."""
    published = sorted(feed.log("publications"), key=lambda row: row["published_at"])
    [number] = [n for n, row in enumerate(published) if row["run_id"] == run_id]
    now, before = published[number], published[number - 1] if number else None
    bronze = DeltaTable(names.local_path(names.bronze(feed.lake_uri, "sales"))).to_pyarrow_table()
    connection = duckdb.connect()
    connection.execute("set timezone = 'UTC'")
    connection.register("bronze", bronze.select([*feed.contract.fields, *PLACE, "original"]))
    connection.execute(
        """
        create table rows as
        select *, date_trunc('hour', sold_at) < $horizon as published_before, batch > $batch as is_new,
            row_number() over (partition by sold_at, id order by batch, "offset") = 1 as is_first,
            row_number() over (partition by sold_at, id, batch order by "offset") = 1 as is_first_of_batch
        from bronze where batch <= $through and date_trunc('hour', sold_at) < $final
        """,
        {
            "horizon": before["final_through"] if before else at(-10_000),
            "batch": before["through_batch"] if before else -1,
            "through": now["through_batch"],
            "final": now["final_through"],
        },
    )
    found: list[dict[str, Any]] = []
    for aggregate, key, measures in (("by_shop", "shop", BY_SHOP), ("by_buyer", "buyer", BY_BUYER)):
        for window, size in SIZES.items():
            for measure, value in measures.items():
                counted = "(if(published_before, is_first and not is_new, is_first_of_batch))"
                rows = connection.execute(
                    f"""
                    select time_bucket(interval '{size}', sold_at) as start, {key},
                        {value} filter (where {counted}) as speed, {value} filter (where is_first) as exact,
                        case when not any_value(published_before) then 'duplicate'
                            when count(*) filter (where is_new and original is not null) > 0 then 'replayed'
                            else 'late' end,
                        count(*), count(*) filter (where not is_first),
                        count(*) filter (where published_before and is_new),
                        count(*) filter (where original is not null)
                    from rows group by start, {key} having speed is distinct from exact
                        and ('{measure}' not in ('p95_price', 'buyers')
                            or (any_value(published_before) and count(*) filter (where {counted}) > 0))
                    """
                ).fetchall()
                labels = ("window_start", "key", "speed", "exact", "cause", "rows", "repeats", "late", "replayed")
                about = {"aggregate": aggregate, "window": window, "measure": measure}
                found += [about | dict(zip(labels, row, strict=True)) for row in rows]
    return found


def assert_ledger_equals_oracle(feed: Feed, run_id: str) -> None:
    def by_place(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
        numbers = ("speed", "exact")
        return {
            (row["aggregate"], row["window"], row["measure"], row["window_start"], row["key"]): (
                *(None if row[name] is None else pytest.approx(row[name]) for name in numbers),
                *(row[name] for name in ("cause", "rows", "repeats", "late", "replayed")),
            )
            for row in rows
        }

    mine = [row for row in feed.log("ledger") if row["run_id"] == run_id]
    actual = by_place([row | {"key": next(iter(dict(row["keys"]).values()))} for row in mine])
    assert len(actual) == len(mine), "a row each"
    assert actual == by_place(expected_ledger(feed, run_id))
    for row in mine:
        same = None if None in (row["speed"], row["exact"]) else pytest.approx(row["exact"] - row["speed"])
        assert row["difference"] == same


def causes(feed: Feed) -> Counter[str]:
    return Counter(row["cause"] for row in feed.log("ledger"))
