"""Events known by an id without their time: each counts once, over all hours or as far as the contract says."""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from deltalake import DeltaTable

from spark.lake import names
from tests.support import chance
from tests.support.feed import Feed, at, contract, sale
from tests.support.feed_oracle import assert_published_equals_oracle


@pytest.mark.parametrize("within", [None, "3h"])
def test_repeats_in_any_hour_and_any_order_count_once(feed: Feed, within: str | None) -> None:
    """Forty ids over ten hours, so that copies of one are often in different hours, in the same batch or in later
    ones, and before or after the hour of the first was published."""
    feed.contract, drawn = _by_id(feed, within), random.Random(chance.octets(8))
    for number in range(5):
        arrivals = [
            sale(drawn.randrange(40), at(drawn.uniform(0, 2 * number + 2)), drawn.choice("ab"), float(n))
            for n in range(30)
        ]
        feed.send([*arrivals, sale(1000 + number, at(2 * number + 3.5))])
        feed.reconcile(f"r{number}")
        assert_published_equals_oracle(feed)
    if within is not None:
        events = sum(row["sales"] for row in feed.published() if row["window"] == "1h")
        assert events > len({row["id"] for row in feed.rows(names.bronze(feed.lake_uri, "sales"))})


def test_copies_as_far_apart_as_the_contract_says_are_two_events(feed: Feed) -> None:
    feed.contract = _by_id(feed, "2h")
    near = timedelta(hours=2) - timedelta(microseconds=1)
    feed.send([sale(1, at(0)), sale(1, at(0) + near), sale(2, at(0)), sale(2, at(2)), sale(3, at(6))])
    feed.reconcile("r1")
    assert_published_equals_oracle(feed)
    counted = {(row["hour"], row["sales"]) for row in feed.published() if row["window"] == "1h"}
    assert counted == {(at(0), 2), (at(2), 1)}


def test_what_is_read_for_repeats_ends_where_the_contract_says(feed: Feed) -> None:
    """The files of the first hours are away, so a run that read them would fail."""
    feed.contract = _by_id(feed, "3h")
    for hour in range(10):
        feed.send([sale(hour, at(hour)), sale(hour - 2, at(hour, 30))])
        if hour == 5:
            feed.reconcile("r1")
    root = Path(names.local_path(names.bronze(feed.lake_uri, "sales")))
    away = []
    for action in pyarrow.table(DeltaTable(str(root)).get_add_actions(flatten=True)).to_pylist():
        if action["max.event_time"] < at(1).replace(tzinfo=action["max.event_time"].tzinfo):
            away.append(root / action["path"])
    kept = [(file, file.read_bytes()) for file in away]
    assert kept
    for file in away:
        file.unlink()
    feed.reconcile("r2")
    for file, content in kept:
        file.write_bytes(content)
    assert_published_equals_oracle(feed)


def _by_id(feed: Feed, within: str | None) -> Any:
    aggregates = feed.contract.model_dump()["aggregates"]
    return contract(event_id=["id"], repeats_within=within, aggregates=aggregates)
