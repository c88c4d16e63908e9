"""Hours beside what is usual at that hour of the day, with pandas as the oracle."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pandas
import pyarrow
import pytest
from pyspark.sql.pandas.types import to_arrow_schema

from spark.batch.usual_hours import DAYS, usual
from spark.lake import columnar, table_schemas
from tests.support.feed import contract

T0 = datetime(2024, 1, 1, tzinfo=UTC)


def windows(days: int) -> list[dict[str, Any]]:
    """Published rows of two shops, of two hours of each day; one shop has no price on some days."""
    chance = random.Random(7)
    return [
        {
            "window": "1h", "window_start": start, "window_end": start + timedelta(hours=1), "hour": start,
            "shop": shop, "sales": chance.randint(1, 50), "priced": 1, "p95_price": 1.0, "buyers": 1, "run_id": "r",
            "mean_price": None if shop == "b" and day % 5 == 0 else chance.uniform(1, 20),
        }
        for day in range(days)
        for hour in (3, 17)
        for shop in "ab"
        for start in [T0 + timedelta(days=day, hours=hour)]
    ]  # fmt: skip


def test_an_hour_is_compared_with_the_same_hour_of_earlier_days() -> None:
    rows, days = windows(40), 40
    aggregate = contract().aggregates[0]
    minutes = [row | {"window": "1m", "sales": 1000} for row in rows]
    connection = columnar.connect("1g")
    schema = to_arrow_schema(table_schemas.batch_schema(contract(), aggregate), timezone="UTC")
    connection.register("published", pyarrow.Table.from_pylist(rows + minutes, schema))
    query = usual("published", aggregate)
    assert query is not None
    judged = connection.execute(query).to_arrow_table().to_pylist()
    found = {(row["measure"], row["hour"].astimezone(UTC)): SimpleNamespace(**row) for row in judged}
    assert len(found) == 2 * 2 * days
    truth = pandas.DataFrame(rows)
    for hour in (3, 17):
        mine = truth[truth["hour"].dt.hour == hour]
        sums = mine.groupby("hour")["sales"].sum()
        priced = mine[mine["mean_price"].notna()]
        means = (priced["mean_price"] * priced["sales"]).groupby(priced["hour"]).sum() / priced.groupby("hour")[
            "sales"
        ].sum()
        for day in (0, 1, 8, 39):
            start = T0 + timedelta(days=day, hours=hour)
            earlier = range(max(0, day - DAYS), day)
            count, average = found["sales", start], found["mean_price", start]
            assert (count.earlier, average.earlier) == (len(earlier), len(earlier))
            assert count.value == sums[start]
            if not earlier:
                assert (count.share, average.distance) == (None, None)
                continue
            before = [T0 + timedelta(days=d, hours=hour) for d in earlier]
            assert count.share == pytest.approx(sums[start] / sums[before].mean())
            assert count.distance is None
            if len(before) > 1:
                distance = abs(means[start] - means[before].mean()) / means[before].std()
                assert average.distance == pytest.approx(distance)
