"""What must be published of a feed, and what its ledger must say, computed in plain Python from the rows of bronze: the
layers compute with Spark and with DuckDB."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from spark.lake import names
from tests.support.feed import Feed

Row = dict[str, Any]

SIZES = {"1m": timedelta(minutes=1), "5m": timedelta(minutes=5), "1h": timedelta(hours=1)}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def values(rows: list[Row], name: str) -> list[Any]:
    return [row[name] for row in rows if row[name] is not None]


def mean(numbers: list[float]) -> float | None:
    return math.fsum(numbers) / len(numbers) if numbers else None


def quantile(numbers: list[float], hundredths: int) -> float | None:
    return sorted(numbers)[-(-hundredths * len(numbers) // 100) - 1] if numbers else None


Measure = Callable[[list[Row]], Any]

BY_SHOP: dict[str, Measure] = {
    "sales": len,
    "priced": lambda rows: len(values(rows, "price")),
    "mean_price": lambda rows: mean(values(rows, "price")),
    "p95_price": lambda rows: quantile(values(rows, "price"), 95),
    "buyers": lambda rows: len(set(values(rows, "buyer"))),
}

BY_BUYER: dict[str, Measure] = {
    "turnover": lambda rows: math.fsum(values(rows, "price")) if values(rows, "price") else None,
    "cheapest": lambda rows: min(values(rows, "price"), default=None),
    "buys": len,
}


def start(time: datetime, size: timedelta) -> datetime:
    return time - (time - EPOCH) % size


def arrived(feed: Feed) -> list[Row]:
    """The rows of bronze in the order in which they count, with `is_first` (the row is an event) and
    `is_first_of_batch`."""
    rows = feed.rows(names.bronze(feed.lake_uri, "sales"))
    rows.sort(key=lambda row: (row["batch"], row["topic"], row["partition"], row["offset"]))
    seen: dict[Any, list[datetime]] = defaultdict(list)
    in_batch = set()
    within = feed.contract.repeats_within
    for row in rows:
        row["sold_at"] = row["sold_at"].astimezone(UTC)
        identity = tuple(row[name] for name in feed.contract.event_id)
        near = (time for time in seen[identity] if within is None or abs(time - row["sold_at"]) < within)
        row["is_first"] = next(near, None) is None
        row["is_first_of_batch"] = (row["batch"], identity) not in in_batch
        seen[identity].append(row["sold_at"])
        in_batch.add((row["batch"], identity))
    return rows


def grouped(rows: Iterable[Row], size: timedelta, key: str) -> Iterator[tuple[tuple[datetime, Any], list[Row]]]:
    groups: dict[tuple[datetime, Any], list[Row]] = defaultdict(list)
    for row in rows:
        groups[start(row["sold_at"], size), row[key]].append(row)
    yield from groups.items()


def expected(feed: Feed, window: str) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """The windows of `by_shop` before final_through."""
    final, size = max(row["final_through"] for row in feed.log("publications")), SIZES[window]
    events = [row for row in arrived(feed) if row["is_first"] and start(row["sold_at"], size) + size <= final]
    return {place: tuple(of(rows) for of in BY_SHOP.values()) for place, rows in grouped(events, size, "shop")}


def assert_published_equals_oracle(feed: Feed) -> None:
    for window in SIZES:
        actual = {
            (row["window_start"], row["shop"]): tuple(row[measure] for measure in BY_SHOP)
            for row in feed.published()
            if row["window"] == window
        }
        wanted = expected(feed, window)
        assert actual.keys() == wanted.keys()
        for key, numbers in wanted.items():
            assert all(
                (got is None and want is None) or math.isclose(got, want, rel_tol=1e-12)
                for got, want in zip(actual[key], numbers, strict=True)
            ), (window, key, actual[key], numbers)


def expected_ledger(feed: Feed, run_id: str) -> list[Row]:
    """Every row that the ledger must have of the run: what was served before it and what is exact, and the counts that
    are the evidence. Quantiles and distinct counts are compared where exact ones had been served."""
    published = sorted(feed.log("publications"), key=lambda row: row["published_at"])
    [number] = [n for n, row in enumerate(published) if row["run_id"] == run_id]
    now, before = published[number], published[number - 1] if number else None
    hour = timedelta(hours=1)
    rows = [
        row
        | {
            "published_before": before is not None and start(row["sold_at"], hour) < before["final_through"],
            "is_new": before is None or row["batch"] > before["through_batch"],
        }
        for row in arrived(feed)
        if row["batch"] <= now["through_batch"] and start(row["sold_at"], hour) < now["final_through"]
    ]
    found = []
    for aggregate, key, measures in (("by_shop", "shop", BY_SHOP), ("by_buyer", "buyer", BY_BUYER)):
        for window, size in SIZES.items():
            for (window_start, of_key), group in grouped(rows, size, key):
                about = {"aggregate": aggregate, "window": window, "window_start": window_start, "key": of_key}
                found += [about | difference for difference in _differences(group, measures)]
    return found


def _differences(group: list[Row], measures: dict[str, Measure]) -> Iterator[Row]:
    """The measures of a window and key that differ, and why."""
    again = group[0]["published_before"]
    served = [row for row in group if (row["is_first"] and not row["is_new"] if again else row["is_first_of_batch"])]
    exact = [row for row in group if row["is_first"]]
    by_retry = [row for row in group if row["original"] is not None]
    late_cause = "replayed" if any(row["is_new"] for row in by_retry) else "late"
    for measure, of in measures.items():
        if of(served) == of(exact) or (measure in ("p95_price", "buyers") and not (again and served)):
            continue
        yield {
            "measure": measure, "speed": of(served), "exact": of(exact), "cause": late_cause if again else "duplicate",
            "rows": len(group), "repeats": len(group) - len(exact), "replayed": len(by_retry),
            "late": sum(again and row["is_new"] for row in group),
        }  # fmt: skip


def assert_ledger_equals_oracle(feed: Feed, run_id: str) -> None:
    def by_place(rows: list[Row]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
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
