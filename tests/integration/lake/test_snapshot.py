"""One query sees one publication, whatever is written between the reads of its tables, and any that is kept can be
seen again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from infra.settings import Settings
from spark.batch.publisher import Publisher
from spark.lake import names
from spark.lake.publications import publications
from spark.serving import snapshot, spark_views
from spark.serving.duck import connect
from spark.serving.snapshot import NoSuchSnapshot, Snapshot
from tests.support.feed import Feed, at, hours_of_sales, sale

BY_SHOP = [
    "select shop, window_start, sales, source from by_shop_1h order by all",
    "select buyer, window_start, buys, source from by_buyer_5m order by all",
    "select max(final_through), count(*) from publications",
]
LATE = [sale(7777, at(1, 10), "b", 500.0, "zoe"), *hours_of_sales(3, 6)]
"""An event for a published hour, and new hours."""


def seen(feed: Feed, pinned: Snapshot | None) -> list[Any]:
    config = Settings(home=Path("/nowhere"), lake=feed.lake_uri)
    with connect(config, [feed.contract], pinned) as served:
        return [served.execute(sql).fetchall() for sql in BY_SHOP]


def seen_by_spark(feed: Feed, pinned: Snapshot) -> list[Any]:
    spark_views.register(feed.spark, feed.contract, feed.lake_uri, pinned)
    return [
        list(map(tuple, feed.spark.sql(sql.replace("order by all", "order by 1, 2, 3")).collect())) for sql in BY_SHOP
    ]


def publish(feed: Feed) -> None:
    """A publication that replaces a published hour and moves the horizon."""
    feed.send(LATE)
    assert feed.reconcile("r2")["hours"] == 3


def test_a_publication_between_the_pins_of_a_snapshot_is_in_it_as_a_whole_or_not_at_all(
    published: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = seen(published, None)
    real: Callable[[str], int | None] = snapshot._newest
    pins: list[str] = []

    def newest(uri: str) -> int | None:
        version = real(uri)
        pins.append(uri)
        if len(pins) == 1:
            publish(published)
        return version

    with monkeypatch.context() as patched:
        patched.setattr(snapshot, "_newest", newest)
        pinned = snapshot.now(published.lake_uri, [published.contract])
    assert len(pins) > 1
    assert finals(seen(published, pinned)) == finals(before)
    after = snapshot.now(published.lake_uri, [published.contract])
    assert finals(seen(published, after)) != finals(before)
    open_now = [row for row in seen(published, pinned)[0] if row[-1] == "speed"]
    assert {row[1] for row in open_now} >= {at(3), at(4)}, "what was sent meanwhile is in the open windows"


def finals(found: list[Any]) -> list[Any]:
    return [[row for row in rows if row[-1] != "speed"] for rows in found]


def test_a_snapshot_stays_what_it_was_while_tables_are_written_and_compacted(published: Feed) -> None:
    published.send(hours_of_sales(5))
    pinned = snapshot.now(published.lake_uri, [published.contract])
    before = seen(published, pinned)
    assert {row[-1] for row in before[0]} == {"batch", "speed"}
    publish(published)
    for make in (names.batch, names.speed):
        table = DeltaTable(names.local_path(make(published.lake_uri, "sales", "by_shop")))
        assert table.optimize.z_order(["window_start"])["numFilesRemoved"]  # which a single file goes through too
        table.vacuum(dry_run=False)
    assert seen(published, pinned) == before
    assert [sorted(map(str, rows)) for rows in seen_by_spark(published, pinned)[:2]]
    assert seen(published, None) != before


def killed(*_: Any) -> None:
    raise RuntimeError("killed")


def test_rows_of_a_run_that_died_while_it_published_are_not_served(
    published: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = finals(seen(published, None))
    published.send(LATE)
    with monkeypatch.context() as patched:
        patched.setattr(Publisher, "publish", killed)
        with pytest.raises(RuntimeError, match="killed"):
            published.reconcile("r2")
    assert {row["run_id"] for row in published.published()} == {"r1", "r2"}, "it had replaced published hours"
    assert finals(seen(published, None)) == before
    published.reconcile("r2")
    assert finals(seen(published, None)) != before


def test_time_travel_shows_what_was_served_then(published: Feed, spark: SparkSession) -> None:
    then = snapshot.now(published.lake_uri, [published.contract])
    before = seen(published, then)
    instant = snapshot._committed(names.system(published.lake_uri, "publications"), 1)
    publish(published)
    after = seen(published, snapshot.now(published.lake_uri, [published.contract]))
    assert before != after

    def taken(as_of: Any) -> list[Any]:
        return seen(published, snapshot.taken(published.lake_uri, [published.contract], as_of))

    assert taken("r1") == taken(instant) == before
    assert taken(instant.replace(tzinfo=None).isoformat()) == before, "without a zone it is UTC"
    assert taken("r2") == after
    assert taken("1970-01-01T00:00:01") == [[], [], [(None, 0)]]
    with pytest.raises(NoSuchSnapshot, match="no run 'r3' has published"):
        taken("r3")


def test_a_publication_names_the_versions_that_it_made_final(published: Feed) -> None:
    publish(published)
    [first, second] = publications(published.lake_uri, "sales")
    for aggregate in ("by_shop", "by_buyer"):
        path = names.local_path(names.batch(published.lake_uri, "sales", aggregate))
        assert first.versions[aggregate] < second.versions[aggregate] == DeltaTable(path).version()
        runs = {
            row["run_id"] for row in DeltaTable(path, version=first.versions[aggregate]).to_pyarrow_table().to_pylist()
        }
        assert runs == {"r1"}


def test_polars_and_pandas_read_the_published_windows_as_the_view_serves_them(published: Feed) -> None:
    columns = ["shop", "window_start", "window_end", "sales", "priced", "mean_price", "p95_price", "buyers"]
    with connect(Settings(home=Path("/nowhere"), lake=published.lake_uri), [published.contract]) as served:
        asked = served.execute(f"select {', '.join(columns)} from by_shop_1h where final order by all").to_arrow_table()
    rows = [tuple(row.values()) for row in asked.to_pylist()]
    assert len(rows) == 6
    path = names.local_path(names.batch(published.lake_uri, "sales", "by_shop"))
    in_polars = polars.read_delta(path).filter(polars.col("window") == "1h").select(columns).sort(columns)
    in_pandas = DeltaTable(path).to_pandas(filters=[("window", "=", "1h")], columns=columns).sort_values(columns)
    assert polars.DataFrame(asked).rows() == in_polars.rows() == rows
    assert list(asked.to_pandas().itertuples(index=False, name=None)) == rows
    assert list(in_pandas.itertuples(index=False, name=None)) == rows
